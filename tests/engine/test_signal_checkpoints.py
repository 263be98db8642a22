"""Signals of models on their way: phi at checkpoints of training."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from small_runs import RECIPE, N, dataset, finished, made

from lira.engine.calibrate import programs_for
from lira.engine.fill import train
from lira.learning.evaluation import evaluated, query
from lira.learning.learner import Learner
from lira.learning.recipe import Recipe, steps_per_epoch
from lira.learning.training import init_model, train_epochs
from lira.store.errors import RunError


class Normed(nn.Module):
    """With norms, whose statistics belong to the weights that are asked."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(8)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes)(nn.relu(x))


@pytest.mark.parametrize(("ema", "fraction", "epochs"), [(0.0, 0.75, 3), (0.9, 0.25, 1)])
def test_checkpoints_are_what_training_that_ends_there_gives(tmp_path, ema, fraction, epochs):
    """By a run of fewer epochs, where learning rates know no end; and the end is the same to the last bit without them."""
    net = "tests.engine.test_signal_checkpoints.Normed"
    recipe = Recipe(net, epochs=4, batch_size=10, learning_rate=0.05, schedule="constant", ema=ema)
    looked_at = finished(tmp_path, "with", recipe=recipe, signals=("phi@0.75", "entropy", "phi@0.25"))
    plain = finished(tmp_path, "without", recipe=recipe, signals=("entropy",))
    for name in ("phi", "entropy", "phi_test", "loss_in", "loss_last_epoch", "accuracy_in"):
        kept, alone = (np.asarray(run.arrays.read(name)) for run in (looked_at, plain))
        np.testing.assert_array_equal(kept, alone, err_msg=name)
    assert not plain.holds("phi@0.25")
    short = finished(tmp_path, "short", recipe=dataclasses.replace(recipe, epochs=epochs))
    stored = looked_at.signal(f"phi@{fraction}")
    assert stored.shape == (6, N, 2)
    np.testing.assert_array_equal(np.asarray(stored), np.asarray(short.phi))


def test_checkpoints_go_by_the_schedule_of_the_whole_training(tmp_path):
    """By hand, a model at a time: two of three epochs of a cosine's learning rates."""
    recipe = dataclasses.replace(RECIPE, ema=0.8)
    run, data = finished(tmp_path, recipe=recipe, signals=("phi@0.6",)), dataset()
    learner, steps = Learner.of(recipe, data), steps_per_epoch(N, recipe.batch_size)

    @jax.jit
    def by_hand(model, keep):
        key = learner.key(model)
        state = init_model(learner, key, data.x[:1])
        for epoch in range(2):
            state, _ = train_epochs(learner, state, key, epoch, 1, steps, data.x, data.y, keep)
        variables = evaluated(learner, run.config.queries, state, key, data.x, keep)
        return query(learner.module, run.config.queries, (), variables, data.x, data.y)[0]["phi"]

    expected = np.stack([by_hand(m, keep) for m, keep in enumerate(run.keep)])
    stored = np.asarray(run.signal("phi@0.6"))
    np.testing.assert_allclose(stored, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(stored - np.asarray(run.phi)).mean() > 0.05


def test_a_call_of_several_epochs_ends_at_every_checkpoint(tmp_path, monkeypatch):
    """As on an accelerator, where four short epochs are one call, and two where a checkpoint lies between them."""
    recipe = dataclasses.replace(RECIPE, epochs=4)
    on_cpu = finished(tmp_path, "cpu", recipe=recipe, signals=("phi@0.5",))
    learner_of = Learner.of
    monkeypatch.setattr(Learner, "of", lambda *data: dataclasses.replace(learner_of(*data), platform="gpu"))
    run = made(tmp_path, recipe=recipe, signals=("phi@0.5",))
    assert programs_for(run.config, dataset(), 6).epochs == 2
    assert programs_for(dataclasses.replace(run.config, signals=()), dataset(), 6).epochs == 4
    train(run, dataset(), show_progress=False)
    for name in ("phi", "phi@0.5"):
        stored, expected = (np.asarray(each.signal(name)) for each in (run, on_cpu))
        np.testing.assert_allclose(stored, expected, rtol=1e-3, atol=1e-3)


def test_a_run_with_checkpoints_grows_and_refuses_others(tmp_path):
    signals = ("phi@0.3", "phi@0.6")
    made(tmp_path, num_models=4, signals=signals)
    grown = made(tmp_path, num_models=8, signals=signals)
    assert grown.arrays.open("phi@0.3").shape == (8, N, 2)
    with pytest.raises(RunError, match=r"signals is \('phi@0.3', 'phi@0.6'\) there and \('phi@0.3',\) here"):
        made(tmp_path, num_models=8, signals=("phi@0.3",))
