import dataclasses
import json
import os
import re
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

from lira import attacks, scoring
from lira.attacks.suite import ATTACKS, missing_signals
from lira.data.dataset import Dataset
from lira.engine import fill as engine_fill
from lira.engine import plan as plan_module
from lira.engine.calibrate import programs_for
from lira.engine.fill import DivergedWarning, train
from lira.engine.plan import plan
from lira.learning.augment import Queries
from lira.learning.convolution import LOWERINGS
from lira.learning.evaluation import evaluated, query
from lira.learning.learner import Learner, model_key
from lira.learning.recipe import Recipe, steps_per_epoch
from lira.learning.training import init_model, train_epochs
from lira.membership import Membership
from lira.reporting.checks import check_run
from lira.scoring import pool_of, score
from lira.store.arrays import DIVERGED
from lira.store.config import Config, Execution
from lira.store.errors import RunError
from lira.store.run import Run
from lira.store.zarr import StoredSignal

N = 120
RECIPE = Recipe(epochs=3, batch_size=10, learning_rate=0.05)
OF_CHECKPOINTS = {name for name, attack in ATTACKS.items() if attack.signal == "trajectory"}


def dataset(test=True):
    rng = np.random.default_rng(0)
    y = np.arange(N, dtype=np.int32) % 3
    y_test = np.arange(30, dtype=np.int32) % 3

    def images(labels):
        noise = rng.integers(0, 200, (len(labels), 6, 6, 1))
        return (noise + 20 * labels[:, None, None, None]).astype(np.uint8)

    x, x_test = images(y), images(y_test)
    return Dataset(
        x=x,
        y=y,
        num_classes=3,
        name="memory",
        x_test=x_test if test else None,
        y_test=y_test if test else None,
    )


class Fragile(nn.Module):
    """A linear model whose loss is NaN for some initial weights: about one in three at first, one in eight for good."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        logits = nn.Dense(self.num_classes)(x.reshape(len(x), -1))
        luck = self.param("luck", nn.initializers.normal(1.0), ())
        return jnp.where(luck > 0.4, jnp.nan, logits)


def made(tmp_path, name="run", **changes):
    # A pinned width: nothing is calibrated but where a test asks for it.
    pinned = {"queries": Queries(mirror=True), "execution": Execution(width=6)}
    arguments = {"recipe": RECIPE, "num_models": 6, **pinned, **changes}
    return Run.create(tmp_path / name, dataset(), arguments.pop("recipe"), **arguments)


def finished(tmp_path, name="run", **changes):
    run = made(tmp_path, name, **changes)
    train(run, dataset(), show_progress=False)
    return run


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
    for model in (0, 6):
        keep, key = run.keep[model], learner.key(model)
        x = np.where(keep[:, None, None, None], data.x, 255 - data.x)
        state = init_model(learner, key, x[:1])
        state, _ = train_epochs(learner, state, key, 0, 3, 3, x, data.y, keep)
        variables = evaluated(learner, run.config.queries, state, key, x, keep)
        phi = query(learner.module, run.config.queries, (), variables, data.x, data.y)[0]["phi"]
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
    net = "tests.engine.test_fill.Normed"
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
        "from test_fill import *\n"
        "write = Run.write_model\n"
        "Run.write_model = lambda *args, **options: (time.sleep(0.3), write(*args, **options))\n"
        "run = Run.create(sys.argv[1], dataset(), RECIPE, num_models=8, queries=Queries(mirror=True), execution=Execution(width=1))\n"
        "train(run, dataset(), show_progress=False)\n"
    )
    path, states = tmp_path / "killed", [0]
    for _ in range(2):
        command = [sys.executable, "-c", code, str(path), os.path.dirname(__file__)]
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
        scores = score(run)
    assert all(s.shape == (len(left), N) and np.isfinite(s).all() for s in scores.values())
    # Nothing else suffers: the neighbours in the stack are what they are alone.
    alone = made(tmp_path, "alone", recipe=recipe, num_models=24, execution=Execution(width=1))
    with pytest.warns(DivergedWarning):
        train(alone, dataset(), show_progress=False)
    np.testing.assert_array_equal(alone.done, run.done)
    np.testing.assert_allclose(np.asarray(alone.phi), np.asarray(run.phi), rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")
def test_scores_are_those_of_the_attacks_and_computed_once(tmp_path, monkeypatch):
    run = finished(tmp_path, signals=(*Config.signals, "phi@0.3"))
    scores = score(run)
    assert list(scores) == [name for name, attack in ATTACKS.items() if "features" not in attack.needs]
    scores = score(run, dataset())
    assert list(scores) == list(ATTACKS), "those read the data set"
    phi = np.asarray(run.phi)
    np.testing.assert_array_equal(scores["lira_online"], attacks.lira_online(phi, run.keep))
    monkeypatch.setattr(scoring, "ATTACKS", dict.fromkeys(ATTACKS, None))
    for name, stored in score(run).items():
        np.testing.assert_array_equal(stored, scores[name])


@pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")
def test_signals_are_read_once_where_they_fit_and_in_blocks_elsewhere(tmp_path, monkeypatch):
    run = finished(tmp_path, signals=(*Config.signals, "phi@0.3"))
    reads = []
    read = StoredSignal._read
    monkeypatch.setattr(
        StoredSignal,
        "_read",
        lambda self, *part: reads.append(self.where.rsplit("/", 1)[1]) or read(self, *part),
    )
    scores = score(run)
    assert sorted(reads) == ["entropy", "modified_entropy", "phi", "phi@0.3", "phi_test"]
    monkeypatch.setattr(scoring, "HELD", 0)
    monkeypatch.setattr(Run, "scores", lambda self, name, signals=None: None)
    assert isinstance(scoring._held(pool_of(run)).signals["phi"], StoredSignal)
    for name, values in score(run).items():
        np.testing.assert_array_equal(values, scores[name])


def test_features_are_computed_by_who_reads_them(tmp_path, monkeypatch):
    run = finished(tmp_path)
    pool = pool_of(run, dataset())
    expected = scoring._features(dataset().x, dataset().y, dataset().num_classes)
    np.testing.assert_array_equal(np.asarray(pool.features), expected)
    monkeypatch.setattr(scoring, "_features", None)
    assert missing_signals(pool_of(run, dataset())).keys() == OF_CHECKPOINTS


def test_features_are_patch_means_and_labels():
    """16 x 16 pixels are 8 x 8 patches of 2 x 2, and 6 x 6 stay as they are; vectors are not touched."""
    x = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    y = np.arange(5) % 3
    features = scoring._features(x, y, 3)
    patches = x.astype(np.float64).reshape(5, 8, 2, 8, 2, 3).mean(axis=(2, 4)).reshape(5, -1)
    np.testing.assert_allclose(features[:, :-3], patches, rtol=1e-6)
    np.testing.assert_array_equal(features[:, -3:], np.eye(3)[y])
    np.testing.assert_array_equal(scoring._features(x[:, :6, :6], y, 3)[:, :-3], x[:, :6, :6].reshape(5, -1))
    vectors = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_array_equal(scoring._features(vectors, y, 3)[:, :-3], vectors)


def test_too_few_pairs_are_said(tmp_path):
    run = made(tmp_path, num_models=4)
    with pytest.raises(
        RunError, match="has 0 complete pairs of models, and the attacks need two: train it first"
    ):
        score(run)
    train(run, dataset(), show_progress=False)
    with pytest.warns(UserWarning, match="is left out") as said:
        scores = score(run)
    left_out = {"lira_online", "lira_online_multivariate", "lira_offline", "pmia_class"}
    assert all(
        re.search(r"(lira_o\w+|pmia) needs 2 (IN|OUT) models for every example", str(w.message)) for w in said
    )
    assert {str(each.message).split()[0] for each in said} == left_out
    unread = {name for name, attack in ATTACKS.items() if "features" in attack.needs}
    assert set(ATTACKS) - set(scores) == left_out | unread | OF_CHECKPOINTS


@pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")
def test_plan_counts_models_images_and_bytes(tmp_path):
    run = made(tmp_path, signals=("logits", "phi@0.3", "phi@0.6"))
    cost = plan(run.config, dataset(), run)
    assert (cost.models, cost.of) == (6, 6)
    assert cost.images == 6 * 3 * (N // 2 // 10) * 10
    assert cost.seconds > 0
    train(run, dataset(), show_progress=False)
    stored = sum(
        p.stat().st_size
        for p in Path(run.path / "arrays").rglob("*")
        if p.is_file() and p.name != "zarr.json"
    )
    assert cost.bytes_on_disk == pytest.approx(stored, rel=0.1)
    score(run)
    scored = [p.stat().st_size for p in Path(run.path / "scores/lira_online/c").rglob("*") if p.is_file()]
    assert cost.bytes_of_scores == pytest.approx(sum(scored), rel=0.1)
    assert plan(run.config, dataset(), run).models == 0
    assert "6 of 6 models to train" in str(cost)


def test_plan_counts_the_sweeps_of_checkpoints(tmp_path, monkeypatch):
    """A query costs a third of a training step's image: two more sweeps of two views of the pool, not of the test set."""
    monkeypatch.setattr(plan_module, "seconds_per_step", lambda *_: 1.0)
    seconds = {}
    for name, signals in (("without", ()), ("with", ("phi@0.3", "phi@0.6"))):
        config = made(tmp_path, name, signals=signals, execution=Execution(width=6, workers=1)).config
        seconds[name] = plan(config, dataset()).seconds
    assert seconds["with"] - seconds["without"] == pytest.approx(2 * 2 * N / 10 / 3)


def test_other_data_is_refused_before_anything_is_trained(tmp_path):
    run = made(tmp_path)
    with pytest.raises(RunError, match="is a run of other data"):
        train(run, dataset(test=False), show_progress=False)
    assert (run.done == 0).all()
