import dataclasses
import itertools
import shutil
import warnings
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tomli_w
from jax.flatten_util import ravel_pytree

import lira
from lira import forgetting
from lira.cli import main
from lira.data.dataset import Dataset
from lira.engine import device
from lira.engine import programs as engine_programs
from lira.engine.calibrate import programs_for
from lira.engine.fill import DivergedWarning, train
from lira.engine.programs import fit_beside
from lira.engine.verify import verify
from lira.learning.recipe import Recipe
from lira.membership import keep_mask
from lira.store import zarr
from lira.store.arrays import DIVERGED
from lira.store.config import Config, ConfigError, Execution
from lira.store.errors import RunError
from lira.store.imported import run_of_models
from lira.store.run import Run
from lira.unlearning.config import Forget, UnlearnConfig, as_table, read_unlearning, resolved
from lira.unlearning.directory import Unlearning, measurements
from lira.unlearning.mend import mend_unlearning
from lira.unlearning.plan import operations, plan_unlearning
from lira.unlearning.protocol import unlearn
from lira.unlearning.requests import draw_requests

N, M, K = 60, 4, 2
RECIPE = Recipe(model="tests.unlearning.test_protocol.Net", epochs=2, batch_size=10, learning_rate=0.05)


class Net(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


def dataset(test=True):
    rng = np.random.default_rng(0)
    y = np.arange(N, dtype=np.int32) % 3
    return Dataset(
        x=rng.normal(size=(N, 4)).astype(np.float32),
        y=y,
        num_classes=3,
        name="memory",
        x_test=rng.normal(size=(9, 4)).astype(np.float32) if test else None,
        y_test=y[:9] if test else None,
    )


def configured(**changes):
    execution = Execution(width=2, workers=1)
    pool = Config(dataset="memory", num_models=M, save_params=True, recipe=RECIPE, execution=execution)
    names = [field.name for field in dataclasses.fields(Config)]
    pool = dataclasses.replace(pool, **{name: changes.pop(name) for name in names if name in changes})
    values = {
        "methods": ("none", "tests.unlearning.test_protocol.nudge"),
        "forget": Forget(size=6, requests=K),
    }
    return UnlearnConfig(pool, **{**values, **changes})


def nudge(problem, key, *, by=1.0):
    """Adds to the bias: what was done to a model can be counted."""
    layer = problem.variables["params"]["Dense_0"]
    return {"params": {"Dense_0": {**layer, "bias": layer["bias"] + by}}}


def unlucky(problem, key, *, share=1.0):
    """NaN for a share of the models."""
    bad = jax.random.uniform(key) < share
    return jax.tree.map(lambda leaf: jnp.where(bad, jnp.nan, leaf), problem.variables)


def finished(place, **changes):
    unlearning = Unlearning.create(place, dataset(), configured(**changes))
    unlearn(unlearning, dataset(), show_progress=False)
    return unlearning


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Two requests of six examples, forgotten by four linear models."""
    return finished(
        tmp_path_factory.mktemp("unlearning") / "u",
        methods=("none", "retrain", "tests.unlearning.test_protocol.nudge"),
    )


def test_what_is_broken_is_named_and_made_again(done, tmp_path):
    place = Path(shutil.copytree(done.path, tmp_path / "u"))
    assert not verify(place, deep=True)
    unlearning = Unlearning.open(place)
    method = "tests.unlearning.test_protocol.nudge"
    before = {file: file.read_bytes() for file in place.rglob("*/c/*/*") if file.is_file()}
    broken = (
        f"methods/{method}/arrays/params/c/3/0",  # after the first request, which the second starts from
        "retrained/arrays/keep/c/6/0",
        "before/arrays/labels/c/0",
    )
    for each in broken:
        (place / each).write_bytes((place / each).read_bytes()[:-1])
    assert {each.place for each in verify(place)} == set(broken)
    assert len(mend_unlearning(place, dataset())) == 3
    unlearn(unlearning, dataset(), show_progress=False)
    assert not verify(place, deep=True)
    np.testing.assert_array_equal(unlearning.retrained.keep, done.retrained.keep)
    np.testing.assert_allclose(unlearning.method(method).phi, done.method(method).phi, rtol=1e-5)
    changed = {file for file, content in before.items() if file.read_bytes() != content}
    assert all("/c/3/" in str(file) for file in changed)


@pytest.mark.parametrize("what", ["forget/c/0/0", "forget/zarr.json", "forget"])
def test_requests_are_drawn_again_and_are_those_that_the_runs_were_made_by(done, tmp_path, what):
    place = Path(shutil.copytree(done.path, tmp_path / "u"))
    if (place / what).is_dir():
        shutil.rmtree(place / what)
    else:
        (place / what).write_bytes((place / what).read_bytes()[:-1])
    assert any(each.place.startswith("forget") for each in verify(place))
    other = dataclasses.replace(dataset(), x=dataset().x + 1)
    with pytest.raises(RunError, match="is a run of other data"):
        lira.mend(place, other)
    (said,) = lira.mend(place, dataset())
    assert said.startswith("forget is damaged or missing: ")
    assert not verify(place, deep=True)
    np.testing.assert_array_equal(Unlearning.open(place).requests, done.requests)
    assert not lira.mend(place, dataset())


def test_requests_that_come_out_otherwise_are_refused(done, tmp_path, monkeypatch):
    """As where the scores that they were drawn from have changed."""
    place = Path(shutil.copytree(done.path, tmp_path / "u"))
    shutil.rmtree(place / "forget")
    monkeypatch.setattr("lira.unlearning.mend.draw_requests", lambda *_: np.roll(done.requests, 1, axis=1))
    with pytest.raises(RunError, match=r"drawn again it is not what .*retrained was made by"):
        mend_unlearning(place, dataset())
    assert not (place / "forget").exists()


def test_directory_holds_all_three_kinds_of_models(done):
    keep, requests = keep_mask(0, M, N), done.requests
    assert requests.shape == (K, N)
    assert requests.sum(axis=1).tolist() == [6, 6]
    assert not requests.all(axis=0).any()
    assert done.is_complete()
    np.testing.assert_array_equal(done.before.keep, keep)
    for run in (done.retrained, done.method("none"), done.method("retrain")):
        rows = run.memberships(np.arange(K * M)).reshape(K, M, N)
        np.testing.assert_array_equal(rows[0], keep & ~requests[0])
        np.testing.assert_array_equal(rows[1], keep & ~requests[0] & ~requests[1])


def test_control_is_the_model_before_and_retraining_shares_no_randomness_with_its_reference(done):
    before = np.asarray(done.before.phi)
    for k in range(K):
        after = measurements(done, "none", k)
        np.testing.assert_allclose(after.after, before, rtol=1e-5, atol=1e-5)
        assert np.abs(np.asarray(after.retrained) - before).mean() > 0.05
        again = measurements(done, "retrain", k)
        assert np.abs(np.asarray(again.after) - np.asarray(again.retrained)).mean() > 0.05


def test_checkpoints_of_training_are_kept_by_the_run_to_start_from_alone(tmp_path):
    with pytest.raises(
        ValueError, match=r"an unlearning keeps no checkpoints of training; leave out phi@0.5"
    ):
        configured(signals=("entropy", "phi@0.5"))
    pool = dataclasses.replace(configured().pool, signals=("entropy", "phi@0.5"))
    train(Run.from_config(tmp_path / "run", dataset(), pool), dataset(), show_progress=False)
    config = UnlearnConfig.of_run(tmp_path / "run", methods=("none", "retrain"), forget=Forget(size=6))
    unlearning = Unlearning.create(tmp_path / "u", dataset(), config)
    unlearn(unlearning, dataset(), show_progress=False)
    assert unlearning.before.holds("phi@0.5")
    for run in (unlearning.retrained, unlearning.method("none"), unlearning.method("retrain")):
        assert run.holds("entropy")
        assert not run.holds("phi@0.5")
    kept = measurements(unlearning, "none", 0)
    np.testing.assert_allclose(kept.after, kept.before, rtol=1e-5, atol=1e-5)
    assert kept.features[0].shape[2] == 2


def test_requests_are_forgotten_one_after_the_other(done):
    run, name = done.method("tests.unlearning.test_protocol.nudge"), "tests.unlearning.test_protocol.nudge"
    before = np.asarray(done.before.signal("params", np.arange(M)))
    after = np.asarray(run.signal("params", np.arange(K * M))).reshape(K, M, -1)
    held = (done.before.keep[None] & done.requests[:, None]).any(axis=2)
    # In the order of ravel_pytree the three biases stand first.
    for k in range(K):
        times = held[: k + 1].sum(axis=0)
        np.testing.assert_allclose(after[k, :, :3], before[:, :3] + times[:, None], atol=1e-5)
        np.testing.assert_array_equal(after[k, :, 3:], before[:, 3:])
    assert measurements(done, name, 1).seconds > 0


def test_measurements_hold_what_metrics_need(done):
    kept = measurements(done, "retrain", 1)
    assert kept.keep.shape == (M, N)
    np.testing.assert_array_equal(kept.forget, done.requests.any(axis=0))
    np.testing.assert_array_equal(kept.requests, done.requests)
    np.testing.assert_array_equal(kept.labels, dataset().y)
    assert kept.before.shape == kept.after.shape == kept.retrained.shape == (M, N, 1)
    assert kept.seconds_retrained > 0
    # Three classes: phi > 0 is surely right, phi < -ln 2 surely wrong.
    for name, stored in (("after", kept.after), ("retrained", kept.retrained)):
        phi = np.asarray(stored)
        for side, among in (("retain", kept.keep & ~kept.forget), ("forget", kept.keep & kept.forget)):
            share = kept.accuracies[name][side]
            surely = [(p[a] > 0).mean() for p, a in zip(phi[:, :, 0], among, strict=True)]
            possibly = [(p[a] > -np.log(2)).mean() for p, a in zip(phi[:, :, 0], among, strict=True)]
            assert (surely <= share + 1e-6).all()
            assert (share <= np.array(possibly) + 1e-6).all()
        assert np.isfinite(kept.accuracies[name]["test"]).all()
    assert measurements(done, "retrain", 0).forget.sum() == 6
    retrained = done.retrained
    np.testing.assert_allclose(retrained.accuracy("in")[M:], kept.accuracies["retrained"]["retain"])


def test_no_more_than_a_model_and_the_forgotten_are_read_at_once(done, monkeypatch):
    """Whatever M and N; and what comes of it is what all arrays in memory give."""
    kept, whole = measurements(done, "retrain", 1), np.asarray(measurements(done, "retrain", 1).after)
    assert whole.shape == kept.after.shape == (M, N, 1)
    assert kept.features[0].shape == np.asarray(kept.features[0]).shape == (M, N, 3)
    arrays = {name: np.asarray(getattr(kept, name)) for name in ("before", "after", "retrained", "previous")}
    features = tuple(np.asarray(each) for each in kept.features)

    def measured(phi, features):
        return forgetting.measure(
            phi["before"],
            phi["after"],
            phi["retrained"],
            kept.keep,
            kept.forget,
            previous=phi["previous"],
            latest=kept.requests[-1],
            features=features,
        )

    expected = measured(arrays, features)
    largest, read = [], zarr.read_store
    monkeypatch.setattr(
        zarr, "read_store", lambda store, where: (largest.append(store.shape[0]), read(store, where))[1]
    )
    stored = {name: getattr(kept, name) for name in arrays}
    assert str(measured(stored, kept.features)) == str(expected)
    assert max(largest) == 1


class CrashError(Exception):
    pass


def test_stopped_anywhere_it_goes_on_and_ends_the_same(done, tmp_path, monkeypatch):
    """Every third model written is the last before a crash, until nothing is missing."""
    write, count = Run.write_model, itertools.count(1)

    def crashing(self, index, arrays, **options):
        write(self, index, arrays, **options)
        if next(count) % 3 == 0:
            raise CrashError

    config = done.config
    crashes = 0
    with monkeypatch.context() as patched:
        patched.setattr(Run, "write_model", crashing)
        while True:
            try:
                unlearn(Unlearning.create(tmp_path / "u", dataset(), config), dataset(), show_progress=False)
                break
            except CrashError:
                crashes += 1
    assert crashes == (M + 4 * K * M) // 3
    again = Unlearning.open(tmp_path / "u")
    assert again.is_complete()
    for name in done.config.methods:
        for one, other in zip(
            measurements(again, name, 1)[4:7], measurements(done, name, 1)[4:7], strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_finished_directory_is_not_touched_and_takes_more_methods(done, tmp_path):
    small = finished(tmp_path / "u", methods=("none",))
    files = {
        p: p.stat().st_mtime_ns for p in Path(small.path).rglob("*") if p.is_file() and p.name != ".lock"
    }
    more = finished(tmp_path / "u", methods=("none", "tests.unlearning.test_protocol.nudge"))
    now = {p: p.stat().st_mtime_ns for p in Path(more.path).rglob("*") if p.is_file() and p.name != ".lock"}
    assert [p for p in files if now[p] != files[p]] == [more.path / "config.toml"]
    np.testing.assert_allclose(
        measurements(more, "tests.unlearning.test_protocol.nudge", 1).after,
        measurements(done, "tests.unlearning.test_protocol.nudge", 1).after,
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": dataclasses.replace(RECIPE, epochs=3)}, "recipe.epochs is 2 there and 3 here"),
        ({"forget": Forget(size=7, requests=K)}, "forget.size is 6 there and 7 here"),
        ({"num_models": 6}, "num_models is 4 there and 6 here"),
        (
            {"method": {"tests.unlearning.test_protocol.nudge": {"by": 2.0}}},
            "nudge has by = 1.0 there and by = 2.0 here",
        ),
    ],
)
def test_another_unlearning_in_the_same_place_is_refused_by_name(done, changes, message):
    with pytest.raises(RunError, match=message):
        Unlearning.create(done.path, dataset(), configured(**changes))


def test_requests_are_of_the_data_that_they_were_drawn_from(done, tmp_path):
    """Also where it was killed before its first run was made, or all is done."""
    begun = Unlearning.create(tmp_path / "u", dataset(), configured())
    permuted = dataclasses.replace(dataset(), x=dataset().x[::-1].copy())
    for place in (begun.path, done.path):
        with pytest.raises(RunError, match="is an unlearning of other data: its requests were drawn from"):
            Unlearning.create(place, permuted, configured())
    assert Unlearning.create(begun.path, dataset(), configured()).config == begun.config


def test_run_that_is_there_is_taken_as_it_is(done, tmp_path):
    config = resolved(UnlearnConfig.of_run(done.path / "before", methods=("none",), forget=Forget(size=6)))
    assert (config.pool.recipe, config.pool.num_models, config.pool.dataset) == (RECIPE, M, "memory")
    unlearning = Unlearning.create(tmp_path / "u", dataset(), config)
    unlearn(unlearning, dataset(), show_progress=False)
    assert not (unlearning.path / "before").exists()
    np.testing.assert_allclose(
        measurements(unlearning, "none", 0).after, np.asarray(done.before.phi), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(
        ConfigError, match=r"decides these, so leave them out: recipe.epochs is 2 there and 50 here"
    ):
        resolved(with_pool(config, recipe=dataclasses.replace(RECIPE, epochs=50)))
    with pytest.raises(ConfigError, match=r"num_models is 4 there and 8 here"):
        resolved(with_pool(config, num_models=8))
    with pytest.raises(RunError, match=r"is a run of other data"):
        Unlearning.create(tmp_path / "v", dataset(test=False), config)


def with_pool(config, **changes):
    return dataclasses.replace(config, pool=dataclasses.replace(config.pool, **changes))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("num_models = 256", "num_models is 4 there and 256 here"),  # the default, but said
        ("[recipe]\nepochs = 50", "recipe.epochs is 2 there and 50 here"),
        ("[queries]\nmirror = true", "queries.mirror is False there and True here"),
        ("num_models = 4", None),
        ("[execution]\nworkers = 1", None),
        ("[recipe]\nepochs = 2", None),
    ],
)
@pytest.mark.parametrize("by_flag", [False, True])
def test_what_is_said_beside_a_run_is_told_from_a_default(done, tmp_path, line, message, by_flag):
    before = done.path / "before"
    text = "" if by_flag else f'run = "{before}"\n'
    (tmp_path / "c.toml").write_text(f"{text}{line}\n[forget]\nsize = 6\n")
    config = read_unlearning(tmp_path / "c.toml", str(before) if by_flag else "")
    if message is None:
        assert resolved(config).pool.recipe == RECIPE
    else:
        with pytest.raises(ConfigError, match=f"decides these, so leave them out: {message}$"):
            resolved(config)


def test_runs_that_cannot_be_unlearned_are_refused(tmp_path):
    run = Run.create(tmp_path / "bare", dataset(), RECIPE, num_models=M)
    with pytest.raises(RunError, match=r"bare: saved no parameters, .*: train a run with save_params = true"):
        UnlearnConfig.of_run(run.path)
    run = Run.create(tmp_path / "begun", dataset(), RECIPE, num_models=M, save_params=True)
    with pytest.raises(RunError, match=r"begun: lacks 4 models: finish it first"):
        UnlearnConfig.of_run(run.path)
    run_of_models(
        tmp_path / "other",
        keep_mask(0, M, N),
        dataset().y,
        [
            {
                "phi": np.zeros((N, 1), np.float32),
                **dict.fromkeys(("accuracy_in", "accuracy_out", "accuracy_test"), np.float32(0)),
            }
        ]
        * M,
        source={"path": "x"},
    )
    with pytest.raises(RunError, match=r"other: was imported and has no recipe"):
        UnlearnConfig.of_run(tmp_path / "other")


def test_method_that_returns_nan_is_one_error_or_a_warning(done, tmp_path):
    run = str(done.path / "before")
    name = "tests.unlearning.test_protocol.unlucky"
    config = UnlearnConfig.of_run(run, methods=(name,), forget=Forget(size=6, requests=2))
    unlearning = Unlearning.create(tmp_path / "all", dataset(), config)
    for _ in range(2):
        with pytest.raises(
            RunError, match=r"unlucky' returned NaN or infinity for every model at request 0"
        ) as caught:
            unlearn(unlearning, dataset(), show_progress=False)
        assert "\n" not in str(caught.value)
    some = dataclasses.replace(config, method={name: {"share": 0.3}})
    unlearning = Unlearning.create(tmp_path / "some", dataset(), some)
    with pytest.warns(
        DivergedWarning, match=r"unlucky' returned NaN or infinity for \d of 4 models at request \d"
    ):
        unlearn(unlearning, dataset(), show_progress=False)
    lost = (unlearning.method(name).done == DIVERGED).reshape(K, M)
    assert lost.any()
    assert not lost.all(axis=1)[0]
    assert (lost[1] >= lost[0]).all(), "what has diverged stays so"
    pairs = lost.reshape(K, -1, 2).any(axis=2)
    for k in range(K):
        if not pairs[k].all():
            left = np.flatnonzero(np.repeat(~pairs[k], 2))
            np.testing.assert_array_equal(measurements(unlearning, name, k).keep, keep_mask(0, M, N)[left])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unlearn(unlearning, dataset(), show_progress=False)  # said once


def test_method_that_returns_something_else_is_refused_before_anything_is_trained(tmp_path):
    config = configured(methods=("tests.unlearning.test_protocol.shapeless",))
    with pytest.raises(
        ValueError,
        match=r"method 'tests.unlearning.test_protocol.shapeless': must return the model's variables",
    ):
        Unlearning.create(tmp_path / "u", dataset(), config)
    config = configured(method={"finetune": {"epochs": -1}}, methods=("finetune",))
    with pytest.raises(ValueError, match=r"method 'finetune': epochs must be at least 1; got -1"):
        Unlearning.create(tmp_path / "u", dataset(), config)
    assert not (tmp_path / "u").exists()


def shapeless(problem, key):
    return problem.variables["params"]


# --- Requests --------------------------------------------------------------------------------------------------------


def drawn(keep=None, **forget):
    config = configured(forget=Forget(**forget))
    return draw_requests(config, dataset(), keep_mask(0, M, N) if keep is None else keep)


def test_random_requests_are_disjoint_and_by_seed():
    requests = drawn(size=20, requests=2)
    assert requests.sum(axis=1).tolist() == [20, 20]
    assert requests.sum(axis=0).max() == 1
    np.testing.assert_array_equal(requests, drawn(size=20, requests=2))
    assert (requests != drawn(size=20, requests=2, seed=1)).any()


def test_class_requests_are_whole_classes_in_turn():
    np.testing.assert_array_equal(
        drawn(kind="class", label=1, requests=2), [dataset().y == 1, dataset().y == 2]
    )


def test_classes_are_forgotten_by_their_names(tmp_path):
    """Folders 1, 10 and 2 are labels 0, 1 and 2: label = 2 is the folder of that name."""
    named = dataclasses.replace(dataset(), class_names=("1", "10", "2"))
    keep = keep_mask(0, M, N)
    for label, y in ((2, 2), ("2", 2), (10, 1)):
        config = configured(forget=Forget(kind="class", label=label))
        np.testing.assert_array_equal(draw_requests(config, named, keep), [named.y == y])
    with pytest.raises(ValueError, match=r"forget\.label: .* has no class '0': nearest is 10 of 1, 10, 2"):
        draw_requests(configured(forget=Forget(kind="class", label=0)), named, keep)
    assert Forget(kind="class", label="2") == Forget(kind="class", label=2)  # a flag, and TOML
    path = tmp_path / "forget.toml"
    for text, label in (("3", 3), ('"cat"', "cat")):
        path.write_text(f"save_params = true\n[forget]\nkind = 'class'\nlabel = {text}\n")
        assert read_unlearning(path).forget.label == label
    path.write_text("save_params = true\n[forget]\nkind = 'class'\nlabel = 1.5\n")
    with pytest.raises(ConfigError, match=r"'forget\.label' must be a string or a whole number; got 1\.5"):
        read_unlearning(path)


@pytest.mark.parametrize("form", ["indices", "mask", "csv"])
def test_given_requests_are_read_in_their_order(tmp_path, form):
    indices = np.array([5, 50, 7, 9])
    place = tmp_path / ("given.csv" if form == "csv" else "given.npy")
    if form == "csv":
        place.write_text("\n".join(map(str, indices)))
    else:
        np.save(place, np.isin(np.arange(N), indices) if form == "mask" else indices)
    requests = drawn(kind="given", path=str(place), requests=2)
    order = np.sort(indices) if form == "mask" else indices
    for request, part in zip(requests, (order[:2], order[2:]), strict=True):
        assert set(np.flatnonzero(request)) == set(part)


def test_vulnerable_requests_are_what_lira_finds_most_often(tmp_path):
    run = Run.create(
        tmp_path / "run", dataset(), RECIPE, num_models=M, execution=Execution(width=2, workers=1)
    )
    train(run, dataset(), show_progress=False)
    keep = run.keep
    # Non-members at 0: members of two examples stand out in both models that hold them, of one more in one.
    scores = np.zeros((M, N), np.float32)
    scores[:, [11, 42]] = np.where(keep[:, [11, 42]], 5, 0)
    scores[np.flatnonzero(keep[:, 30])[0], 30] = 9
    config = configured(forget=Forget(kind="vulnerable", scores=str(run.path), size=2, requests=2))
    with pytest.raises(RunError, match=r"has no scores of LiRA: lira score"):
        draw_requests(config, dataset(), keep)
    run.write_scores("lira_online_fixed", scores, run.fingerprint())
    requests = draw_requests(config, dataset(), keep)
    assert set(np.flatnonzero(requests[0])) == {11, 42}
    assert requests[1, 30]
    with pytest.raises(ValueError, match=r"needs forget.scores, a scored run of the same data"):
        drawn(kind="vulnerable", size=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([3, 60]), "example 60 is outside the pool, 0..59"),
        (np.array([3, -1]), "example -1 is outside the pool"),
        (np.array([3.5]), "holds 3.5, which is no index"),
        (np.array([3, 3]), "names an example twice"),
        (np.zeros(N, bool), "the forget set is empty"),
        (np.ones(N + 1, bool), "is a mask of 61 examples, and the pool has 60"),
        (np.zeros((2, N), bool), "must be a list of indices or a mask"),
        (np.ones(N, bool), "model 0 would be left with no example"),
    ],
)
def test_given_requests_that_do_not_fit_are_refused(tmp_path, values, message):
    np.save(tmp_path / "given.npy", values)
    with pytest.raises(ValueError, match=message) as caught:
        drawn(kind="given", path=str(tmp_path / "given.npy"))
    assert "\n" not in str(caught.value)


def test_other_requests_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"larger than the pool: 2 requests of 31 among 60 examples"):
        drawn(size=31, requests=2)
    with pytest.raises(ValueError, match=r"no class '3': the classes are 0..2"):
        drawn(kind="class", label=3)
    with pytest.raises(ValueError, match=r"class 3 is outside 0..2"):
        drawn(kind="class", label=2, requests=2)
    keep = keep_mask(0, M, N) & (dataset().y != 1)
    with pytest.raises(ValueError, match=r"no model holds any of the 20 examples of request 0"):
        drawn(keep, kind="class", label=1)


# --- Cost ------------------------------------------------------------------------------------------------------------


def test_plan_counts_the_models_of_each_kind(done):
    config = dataclasses.replace(done.config, methods=("retrain", "finetune"), method={})
    cost = plan_unlearning(resolved(config), dataset())
    assert [(kind.name, kind.models, kind.of) for kind in cost.kinds] == [
        ("original", M, M),
        ("retrained", K * M, K * M),
        ("retrain", K * M, K * M),
        ("finetune", K * M, K * M),
    ]
    assert cost.kinds[1].seconds == pytest.approx(K * cost.kinds[0].seconds)
    left = plan_unlearning(done.config, dataset(), done)
    assert all(kind.models == 0 == kind.seconds for kind in left.kinds)
    assert str(left).count("\n") == len(left.kinds)


def test_operations_are_those_of_products_and_convolutions_as_often_as_loops_turn():
    a, b = jnp.ones((3, 4)), jnp.ones((4, 5))

    def looped(a, b):
        return jax.lax.scan(
            lambda carry, _: (carry + (jax.jit(jnp.dot)(a, b)).sum(), None), 0.0, None, length=7
        )[0]

    assert operations(jax.make_jaxpr(jnp.dot)(a, b).jaxpr) == 60
    assert operations(jax.make_jaxpr(looped)(a, b).jaxpr) == 7 * 60

    def either(a, b):
        return jax.lax.cond(a.sum() > 0, lambda: a @ b, lambda: jnp.zeros((3, 5)))

    assert operations(jax.make_jaxpr(either)(a, b).jaxpr) == 60
    image, conv = jnp.ones((2, 8, 8, 3)), nn.Conv(5, (3, 3))
    kernel = conv.init(jax.random.key(0), image)
    assert operations(jax.make_jaxpr(conv.apply)(kernel, image).jaxpr) == 2 * 64 * 9 * 3 * 5


def test_what_takes_more_memory_than_training_goes_by_in_parts(monkeypatch):
    config = Config(dataset="memory", recipe=RECIPE, execution=Execution(width=6, workers=2))
    programs = programs_for(config, dataset(), 24)
    assert (programs.width, programs.workers) == (6, 2)

    def one(a, b):
        big = jnp.outer(a, a) @ jnp.outer(b, b)
        return {"sum": big.sum(), "same": a}

    a, b = jnp.asarray(np.random.default_rng(0).normal(size=(6, 200)), jnp.float32), jnp.ones(200)
    whole, function = fit_beside(programs, one, (0, None), (a, b))
    assert whole.workers == 2
    expected = function(a, b)
    usage: Any = jax.jit(jax.vmap(one, (0, None))).lower(a, b).compile().memory_analysis()
    needed = usage.argument_size_in_bytes + usage.temp_size_in_bytes
    widths = []

    def by_parts(compiled, axes, width, *arguments):
        widths.append(width)
        return whole_by_parts(compiled, axes, width, *arguments)

    whole_by_parts = engine_programs._by_parts
    monkeypatch.setattr(engine_programs, "_by_parts", by_parts)
    # Fewer workers before narrower parts, as in training.
    for there_is, workers, width in ((2.1, 2, 6), (1.1, 1, 6), (0.7, 1, 3)):
        monkeypatch.setattr(
            engine_programs, "device_memory", lambda s=there_is: s * needed / device.MEMORY_SHARE
        )
        fitted, function = fit_beside(programs, one, (0, None), (a, b))
        got = function(a, b)
        assert (fitted.workers, widths.pop()) == (workers, width)
        np.testing.assert_allclose(got["sum"], expected["sum"], rtol=1e-4)
        np.testing.assert_array_equal(got["same"], a)
    monkeypatch.setattr(engine_programs, "device_memory", lambda: 1.0)
    with pytest.raises(ValueError, match=r"not even one model fits on the device"):
        fit_beside(programs, one, (0, None), (a, b))


# --- Files and the command line --------------------------------------------------------------------------------------


SMALL = """\
dataset = "npz:{data}"
num_models = 4
methods = ["none", "finetune"]
[forget]
size = 8
[recipe]
epochs = 2
batch_size = 10
[execution]
width = 4
"""


@pytest.fixture
def config_file(tmp_path, monkeypatch):
    monkeypatch.setenv("LIRA_CACHE", str(tmp_path / "cache"))
    data = dataset()
    np.savez(tmp_path / "data.npz", x=data.x, y=data.y)
    path = tmp_path / "unlearn.toml"
    path.write_text(SMALL.format(data=tmp_path / "data.npz"))
    return path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_one_command_unlearns_and_reports_and_then_only_reports(tmp_path, config_file, capsys):
    place = tmp_path / "u"
    assert run("plan", config_file) == 0
    assert "retrained: 4 of 4 models" in capsys.readouterr().out
    assert run("unlearn", config_file, "--run-dir", place, "--method.finetune.epochs", "2") == 0
    assert "finetune: 4 of 4 models" in capsys.readouterr().out
    unlearning = Unlearning.open(place)
    assert unlearning.config.method["finetune"] == {"epochs": 2, "rate": 0.5}
    assert unlearning.is_complete()
    assert run("unlearn", config_file, "--run-dir", place, "--method.finetune.epochs", "2") == 0
    out = capsys.readouterr().out
    assert "are trained, retrained and unlearned" in out
    assert "finetune" in out
    for name in ("metrics.json", "unlearning.png", "report.html"):
        assert (place / name).exists()
    # What is stored needs no other file.
    assert run("unlearn", place / "config.toml", "--run-dir", place) == 0
    assert run("plan", config_file, "--run-dir", place) == 0
    assert "together: about 0 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("size = 8", "size = 0", "forget.size must be at least 1: the forget set is empty; got 0"),
        ("size = 8", "size = 61", "the forget set is larger than the pool"),
        ("size = 8", "sizes = 8", "unknown key 'forget.sizes': did you mean 'forget.size'"),
        ("size = 8", 'kind = "rare"', "forget.kind must be one of random, class, vulnerable, given"),
        ("size = 8", 'kind = "given"', 'forget.kind = "given" needs forget.path'),
        ("size = 8", 'kind = "given"\npath = "absent.npy"', "absent.npy: there is no such file"),
        ('"finetune"', '"finetun"', "unknown method 'finetun', did you mean 'finetune'"),
        ('"finetune"', '"none"', "methods must be named, each once"),
        ('"finetune"', "3", "'methods' must be a list of strings"),
        (
            "[recipe]",
            "[method.finetune]\nepoch = 2\n[recipe]",
            "unknown option 'epoch': did you mean 'epochs'",
        ),
        ("[recipe]", "[method]\nfinetune = 2\n[recipe]", "'method' must hold tables"),
        ("[recipe]", "[methods]\nx = 2\n[recipe]", "is not valid TOML"),
        ("num_models = 4", 'num_models = 4\nrun = "absent"', "absent: is not a run directory"),
        ("num_models = 4", "num_models = 4\nsave_params = false", "save_params must be true"),
        ("num_models = 4", "num_model = 4", "unknown key 'num_model': did you mean 'num_models'"),
    ],
)
def test_every_mistake_is_one_line_and_status_2(tmp_path, config_file, capsys, old, new, message):
    text = config_file.read_text()
    assert text.count(old) == 1
    config_file.write_text(text.replace(old, new))
    assert run("unlearn", config_file, "--run-dir", tmp_path / "u") == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "u").exists()


def test_written_configuration_reads_back_equal(tmp_path):
    config = configured(method={"finetune": {"epochs": 3, "rate": 0.25}})
    (tmp_path / "c.toml").write_text(tomli_w.dumps(as_table(config)))
    assert read_unlearning(tmp_path / "c.toml") == config


# --- Runs of given memberships ---------------------------------------------------------------------------------------


def test_run_of_given_memberships_holds_them_and_does_not_grow(tmp_path):
    keep = np.random.default_rng(0).random((M, N)) < 0.3
    config = Config(dataset="memory", num_models=M, recipe=RECIPE, execution=Execution(width=2, workers=1))
    made = Run.from_config(tmp_path / "run", dataset(), config, keep=keep)
    assert not made.independent, "memberships that were given are of any design"
    train(made, dataset(), show_progress=False)
    np.testing.assert_array_equal(made.keep, keep)
    correct = np.asarray(made.signal("correct"), bool)
    np.testing.assert_allclose(
        made.accuracy("in"), (correct & keep).sum(axis=1) / keep.sum(axis=1), rtol=1e-6
    )
    assert (Run.from_config(made.path, dataset(), config, keep=keep).done == 1).all()
    for other in (None, ~keep):
        with pytest.raises(RunError, match=r"is a run of other memberships"):
            Run.from_config(made.path, dataset(), config, keep=other)
    more = dataclasses.replace(config, num_models=2 * M)
    with pytest.raises(RunError, match=r"is a run of other memberships"):
        Run.from_config(made.path, dataset(), more, keep=np.tile(keep, (2, 1)))
    with pytest.raises(ValueError, match=r"keep must be \[num_models, N\], here \[8, 60\]; got \[4, 60\]"):
        Run.from_config(tmp_path / "new", dataset(), more, keep=keep)


def test_stored_parameters_are_those_that_answer(done):
    """What unlearning starts from: ravel_pytree of the evaluated variables, whose answers are phi."""
    module, data = Net(3), dataset()
    variables = module.init(jax.random.key(0), data.x[:1], train=False)
    _, unravel = ravel_pytree(dict(variables))
    flat = jnp.asarray(np.asarray(done.before.signal("params", np.arange(1)))[0])
    logits = np.asarray(module.apply(unravel(flat), data.x, train=False), np.float64)
    others = np.where(np.eye(3, dtype=bool)[data.y], -np.inf, logits)
    phi = logits[np.arange(N), data.y] - np.log(np.exp(others).sum(axis=1))
    np.testing.assert_allclose(np.asarray(done.before.phi)[0, :, 0], phi, rtol=1e-4, atol=1e-4)
