"""All models of an unlearning: those before, those retrained, those of each method, and what is measured of them."""

import dataclasses
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from unlearned_runs import K, M, N, Net, configured, dataset

from lira import forgetting
from lira.engine.fill import DivergedWarning, train
from lira.membership import keep_mask
from lira.store import zarr
from lira.store.arrays import DIVERGED
from lira.store.errors import RunError
from lira.store.run import Run
from lira.unlearning.config import Forget, UnlearnConfig
from lira.unlearning.directory import Unlearning, measurements
from lira.unlearning.protocol import unlearn


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
    run, name = done.method("unlearned_runs.nudge"), "unlearned_runs.nudge"
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
    largest, read = [], zarr._values
    monkeypatch.setattr(
        zarr, "_values", lambda store, where: (largest.append(store.shape[0]), read(store, where))[1]
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


def test_method_that_returns_nan_is_one_error_or_a_warning(done, tmp_path):
    run = str(done.path / "before")
    name = "unlearned_runs.unlucky"
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
    config = configured(methods=("unlearned_runs.shapeless",))
    with pytest.raises(
        ValueError,
        match=r"method 'unlearned_runs.shapeless': must return the model's variables",
    ):
        Unlearning.create(tmp_path / "u", dataset(), config)
    config = configured(method={"finetune": {"epochs": -1}}, methods=("finetune",))
    with pytest.raises(ValueError, match=r"method 'finetune': epochs must be at least 1; got -1"):
        Unlearning.create(tmp_path / "u", dataset(), config)
    assert not (tmp_path / "u").exists()


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
