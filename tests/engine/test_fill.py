import dataclasses
import json
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import RECIPE, N, dataset, finished, made

from lira.attacks.suite import select_attacks
from lira.engine import fill as engine_fill
from lira.engine.fill import DivergedWarning, train
from lira.engine.plan import plan
from lira.learning.convolution import LOWERINGS
from lira.learning.evaluation import evaluated, query
from lira.learning.learner import Learner, model_key
from lira.learning.privacy import Privacy
from lira.learning.recipe import Recipe
from lira.learning.training import init_model, train_epochs
from lira.membership import Membership
from lira.reporting.checks import check_run
from lira.scoring import score
from lira.store.arrays import DIVERGED
from lira.store.config import Execution
from lira.store.errors import RunError
from lira.store.run import Run


class Fragile(nn.Module):
    """A linear model whose loss is NaN for some initial weights: about one in three at first, one in eight for good."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        logits = nn.Dense(self.num_classes)(x.reshape(len(x), -1))
        luck = self.param("luck", nn.initializers.normal(1.0), ())
        return jnp.where(luck > 0.4, jnp.nan, logits)


def test_trained_run_holds_what_its_models_answer(tmp_path):
    run = finished(tmp_path, save_params=True)
    assert run.models.tolist() == list(range(6))
    assert run.phi.shape == (6, N, 2)
    assert run.signal("phi_test").shape == (6, 30, 2)
    assert np.isfinite(np.asarray(run.phi)).all()
    # Accuracy from the clean query: p_y > 1/2 makes it correct, and correct makes p_y > 1/3.
    phi, keep = np.asarray(run.phi)[:, :, 0], run.keep
    for side, among in (("in", keep), ("out", ~keep)):
        surely = np.array([(p[a] > 0).mean() for p, a in zip(phi, among, strict=True)])
        possibly = np.array([(p[a] > np.log(0.5)).mean() for p, a in zip(phi, among, strict=True)])
        assert (surely <= run.accuracy(side) + 1e-6).all()
        assert (run.accuracy(side) <= possibly + 1e-6).all()
    params = np.asarray(run.signal("params"))
    assert np.isfinite(params).all()
    assert len(np.unique(params[:, 0])) == 6


class Counting(nn.Module):
    """A linear model that counts the images it is trained on: by how often a batch has passed through it."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        seen = self.variable("batch_stats", "seen", jnp.zeros, (1,))
        if train:
            seen.value = seen.value + len(x)
        x = x.reshape(len(x), -1)
        return nn.Dense(self.num_classes)(x) + jnp.where(train, 0, seen.value * jnp.arange(self.num_classes))


def test_steps_follow_the_fraction_of_independent_coins(tmp_path):
    """Logits of the clean query say how many images a model has seen: 3 epochs of three steps of ten, where 36 are .3 N."""
    recipe = dataclasses.replace(RECIPE, model="tests.engine.test_fill.Counting", learning_rate=1e-9)
    coins = Membership("independent", 0.3)
    run = finished(tmp_path, recipe=recipe, membership=coins, num_models=7, signals=("logits",))
    held = run.keep.sum(axis=1)
    assert len(set(held)) > 1
    assert abs(held.mean() - 0.3 * N) < 5 * np.sqrt(0.21 * N / 7)
    logits = np.asarray(run.signal("logits"))[:, :, 0]
    # Without learning, a class's logits differ between runs by what is added alone.
    half = finished(tmp_path, "half", recipe=recipe, num_models=6, signals=("logits",))
    per_class = (np.asarray(half.signal("logits"))[:6, :, 0] - logits[:6]) / np.arange(3).clip(1)
    np.testing.assert_allclose(per_class[..., 1:], 3 * (60 - 30), rtol=1e-3)
    assert plan(run.config, dataset()).images == 7 * 3 * 30
    assert (
        "independent coins, each true with probability 0.3: 120 examples are attacked, which are in"
        in str(plan(run.config, dataset()))
    )


def test_models_of_a_smaller_fraction_are_those_that_training_alone_gives(tmp_path):
    """By hand, a model at a time, with a cosine over 3 epochs of three steps; and no other example touches them."""
    coins = Membership("independent", 0.3)
    run, data = finished(tmp_path, membership=coins, num_models=7), dataset()
    learner = Learner.of(RECIPE, data, 0.3)
    assert learner.total_steps == 9
    queries = run.config.queries

    @jax.jit
    def alone(key, x, keep):
        state, _ = train_epochs(learner, init_model(learner, key, x[:1]), key, 0, 3, 3, x, data.y, keep)
        variables = evaluated(learner, queries, state, key, x, keep)
        return query(learner.module, queries, (), variables, data.x, data.y)[0]["phi"]

    for model in (0, 6):
        keep = run.keep[model]
        x = np.where(keep[:, None, None, None], data.x, 255 - data.x)
        phi = alone(learner.key(model), x, keep)
        np.testing.assert_allclose(np.asarray(run.phi)[model], phi, rtol=1e-3, atol=1e-3)


def test_signals_by_name_are_stored_and_no_others(tmp_path):
    run = finished(tmp_path, signals=("modified_entropy", "logits"))
    assert not run.holds("entropy")
    logits = np.asarray(run.signal("logits"))
    assert logits.shape == (6, N, 2, 3)
    y = dataset().y
    label = np.take_along_axis(logits, y[None, :, None, None], axis=3)[..., 0]
    others = np.where(np.arange(3) == y[:, None, None], -np.inf, logits)
    phi = label - np.logaddexp.reduce(others, axis=3)
    np.testing.assert_allclose(np.asarray(run.phi), phi, rtol=1e-4, atol=1e-4)
    # Both are small where the label is sure, and only there.
    order = np.argsort(phi, axis=None)
    stored = np.asarray(run.signal("modified_entropy")).ravel()[order]
    assert stored[:50].min() > stored[-50:].max()
    with pytest.raises(RunError, match=r"signals is \('modified_entropy', 'logits'\) there and \(\) here"):
        made(tmp_path, signals=())


def test_what_a_model_becomes_does_not_depend_on_its_stack(tmp_path):
    """Width 1, 4 with a short last stack, and 6: equal up to the order of float32 sums over 18 steps."""
    phis = [np.asarray(finished(tmp_path, f"w{w}", execution=Execution(width=w)).phi) for w in (1, 4, 6)]
    np.testing.assert_allclose(phis[1], phis[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(phis[2], phis[0], rtol=1e-3, atol=1e-3)
    between_models = np.abs(phis[0][0] - phis[0][1]).mean()
    assert between_models > 0.05, "the models differ by far more than the tolerance"


def test_lowerings_agree(tmp_path):
    recipe = Recipe(model="cnn-small", epochs=1, batch_size=20, learning_rate=0.01)
    data, phi = dataset(test=False), {}
    for lowering in LOWERINGS:
        run = Run.create(
            tmp_path / lowering, data, recipe, num_models=4, execution=Execution(2, lowering, workers=1)
        )
        train(run, data, show_progress=False)
        phi[lowering] = np.asarray(run.phi)
    for lowering in LOWERINGS:
        np.testing.assert_allclose(phi[lowering], phi["xla"], rtol=1e-3, atol=1e-3, err_msg=lowering)


def test_training_a_finished_run_changes_nothing(tmp_path):
    run = finished(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in Path(run.path).rglob("*") if p.is_file() and p.name != ".lock"}
    train(run, dataset(), show_progress=False)
    assert {
        p: p.stat().st_mtime_ns for p in Path(run.path).rglob("*") if p.is_file() and p.name != ".lock"
    } == before


def test_interrupted_run_resumes_to_the_same_arrays(tmp_path, monkeypatch):
    whole = finished(tmp_path, "whole", execution=Execution(width=2))
    run = made(tmp_path, "cut", execution=Execution(width=2, workers=1))
    write, written = Run.write_model, []

    def cut(self, index, arrays, **options):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(index)
        return write(self, index, arrays, **options)

    monkeypatch.setattr(Run, "write_model", cut)
    with pytest.raises(KeyboardInterrupt):
        train(run, dataset(), show_progress=False)
    monkeypatch.undo()
    assert run.done.tolist() == [1, 1, 1, 0, 0, 0]
    train(run, dataset(), show_progress=False)
    np.testing.assert_allclose(np.asarray(run.phi), np.asarray(whole.phi), rtol=1e-3, atol=1e-3)
    sessions = json.loads((run.path / "provenance.json").read_text())["sessions"]
    assert [session["models"] for session in sessions] == [3, 3]


def test_kill_9_leaves_a_run_that_resumes(tmp_path):
    """Killed twice in its midst: whatever is marked done is whole, and the rest is trained afterwards."""
    models = 8
    whole = finished(tmp_path, "whole", num_models=models, execution=Execution(width=1))
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[2])\n"
        "from small_runs import *\n"
        "write = Run.write_model\n"
        "Run.write_model = lambda *args, **options: (time.sleep(0.3), write(*args, **options))\n"
        "run = Run.create(sys.argv[1], dataset(), RECIPE, num_models=8, queries=Queries(mirror=True), execution=Execution(width=1))\n"
        "train(run, dataset(), show_progress=False)\n"
    )
    path, states = tmp_path / "killed", [0]
    for _ in range(2):
        command = [sys.executable, "-c", code, str(path), str(Path(__file__).parents[1])]
        process = subprocess.Popen(command)
        while process.poll() is None:
            done = int((Run.open(path).done > 0).sum()) if (path / "config.toml").exists() else 0
            if done > states[-1]:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        run = Run.open(path, dataset())
        states.append(int((run.done > 0).sum()))
        assert np.isfinite(np.asarray(run.phi)).all()
    assert 0 < states[1] < states[2] < models
    run = Run.open(path, dataset())
    train(run, dataset(), show_progress=False)
    np.testing.assert_allclose(np.asarray(run.phi), np.asarray(whole.phi), rtol=1e-3, atol=1e-3)


def test_grown_run_equals_one_made_large(tmp_path):
    small = finished(tmp_path, "grown", num_models=4)
    first = np.asarray(small.phi)
    grown = finished(tmp_path, "grown", num_models=8)
    large = finished(tmp_path, "large", num_models=8)
    np.testing.assert_array_equal(np.asarray(grown.phi)[:4], first)
    np.testing.assert_array_equal(grown.keep, large.keep)
    np.testing.assert_allclose(np.asarray(grown.phi), np.asarray(large.phi), rtol=1e-3, atol=1e-3)


def luck(key):
    """That of a `Fragile` model with a key."""
    state = init_model(Learner(Fragile(3), Recipe(), 1), key, dataset().x[:1])
    return float(state.params["luck"])


def test_a_run_whose_models_all_diverge_says_why_and_is_not_told_to_train(tmp_path):
    data = dataset(test=False)
    x = (1e6 * np.random.default_rng(0).normal(size=(N, 5))).astype(np.float32)
    huge = dataclasses.replace(data, x=x)
    run = Run.create(
        tmp_path / "run",
        huge,
        Recipe(epochs=2, batch_size=10, learning_rate=1e6),
        num_models=4,
        execution=Execution(width=4),
    )
    with pytest.warns(
        DivergedWarning,
        match=r"4 of 4 models diverged twice.*features reach \d.*standardise them, or a lower",
    ):
        train(run, huge, show_progress=False)
    # Images of floats are as they are, too: 0 to 255 is their author's mistake.
    pixels = dataclasses.replace(data, x=np.full((N, 2, 2, 1), 255, np.float32))
    assert "features reach 255 in size: standardise them" in engine_fill._what_would_help(run, pixels)
    (models,) = [check for check in check_run(run) if check.name == "models"]
    assert (models.status, models.sentence[:23]) == ("fail", "all 4 models diverged: ")
    with pytest.raises(
        RunError, match=r"has 0 complete pairs.*: 4 of 4 models diverged: .*in another directory"
    ):
        score(run)


def test_diverged_models_are_named_and_their_pairs_left_out(tmp_path):
    recipe = Recipe(model="tests.engine.test_fill.Fragile", epochs=2, batch_size=10)
    run = made(tmp_path, recipe=recipe, num_models=24)
    with pytest.warns(
        DivergedWarning,
        match="of 24 models diverged twice and are left out of the attacks with their mates: ",
    ):
        train(run, dataset(), show_progress=False)
    diverged = np.flatnonzero(run.done == DIVERGED)
    assert 0 < len(diverged) < 12
    # By hand: the luck of each attempt's initial weights.
    lucks = np.array([[luck(model_key(0, m, attempt)) for attempt in (0, 1)] for m in range(24)])
    np.testing.assert_array_equal(run.done == DIVERGED, (lucks > 0.4).all(axis=1))
    np.testing.assert_array_equal(run.attempts(np.arange(24)), lucks[:, 0] > 0.4)
    assert run.attempts(run.models).any(), "a second attempt that went well"
    left = sorted(set(range(24)) - {m for d in diverged for m in (d, d ^ 1)})
    assert run.models.tolist() == left
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        some = select_attacks(("lira_online", "rmia_offline", "global_threshold"))
        scores = score(run, attacks=some)
    assert list(scores) == list(some)
    assert all(s.shape == (len(left), N) and np.isfinite(s).all() for s in scores.values())
    # Nothing else suffers: the neighbours in the stack are what they are alone.
    alone = made(tmp_path, "alone", recipe=recipe, num_models=24, execution=Execution(width=1))
    with pytest.warns(DivergedWarning):
        train(alone, dataset(), show_progress=False)
    np.testing.assert_array_equal(alone.done, run.done)
    np.testing.assert_allclose(np.asarray(alone.phi), np.asarray(run.phi), rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:optax.global_norm:DeprecationWarning")  # of jax_privacy, told again
def test_private_models_that_diverge_are_not_tried_again(tmp_path):
    """A second attempt would tell of the first, and be accounted for twice."""
    recipe = Recipe(
        model="tests.engine.test_fill.Fragile", epochs=1, batch_size=10, privacy=Privacy(noise=1.0)
    )
    run = made(tmp_path, recipe=recipe, num_models=12, execution=Execution(width=12))
    with pytest.warns(DivergedWarning, match="of 12 models diverged and are left out"):
        train(run, dataset(), show_progress=False)
    lucks = np.array([luck(model_key(0, m)) for m in range(12)])
    np.testing.assert_array_equal(run.done == DIVERGED, lucks > 0.4)
    assert (run.done == DIVERGED).any()
    assert not run.attempts(np.arange(12)).any()


def test_other_data_is_refused_before_anything_is_trained(tmp_path):
    run = made(tmp_path)
    with pytest.raises(RunError, match="is a run of other data"):
        train(run, dataset(test=False), show_progress=False)
    assert (run.done == 0).all()
