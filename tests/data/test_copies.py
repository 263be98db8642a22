"""Examples that stand in a data set more than once are counted, and told where a run begins, in its checks and on its page."""

import warnings

import numpy as np
import pytest

import lira
from lira.data.copies import CopiesWarning, copies_of


def by_loop(x, y):
    """Every row against all before it."""
    found = [(i, next((j for j in range(i) if (x[j] == x[i]).all()), None)) for i in range(len(x))]
    copies = [(i, j) for i, j in found if j is not None]
    return len(copies), copies[0] if copies else None, sum(y[i] != y[j] for i, j in copies)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(2,), (1, 2, 1)])
def test_copies_are_those_of_a_plain_loop(dtype, shape):
    rng = np.random.default_rng(0)
    for values in (2, 5, 200):
        x = rng.integers(0, values, (60, *shape)).astype(dtype)
        y = rng.integers(0, 2, 60)
        found = copies_of(x, y)
        assert (found.count, found.first, found.relabelled) == by_loop(x, y)
        assert found.total == 60


@pytest.mark.parametrize("values", [2, 5, 200])
def test_held_out_copies_are_those_of_a_plain_loop(values):
    rng = np.random.default_rng(0)
    x, x_test = (rng.integers(0, values, (n, 2)).astype(np.float32) for n in (30, 50))
    pairs = [(i, next((j for j in range(30) if (x[j] == x_test[i]).all()), None)) for i in range(50)]
    pairs = [(i, j) for i, j in pairs if j is not None]
    found = copies_of(x, x_test=x_test)
    assert (found.held_out, found.held_out_total) == (len(pairs), 50)
    assert found.first_held_out == (pairs[0] if pairs else None)
    assert (found.count, found.first) == (copies_of(x).count, copies_of(x).first)


def test_held_out_rows_at_the_place_of_other_rows_are_no_copies():
    assert not copies_of(np.arange(6).reshape(3, 2), x_test=np.arange(6, 12).reshape(3, 2)).any
    assert copies_of(np.arange(6).reshape(3, 2), x_test=np.arange(6).reshape(3, 2)).held_out == 3


def test_rows_that_are_apart_in_memory():
    x = np.asfortranarray(np.array([[1, 2], [3, 4], [1, 2]], np.float32))
    assert copies_of(x) == copies_of(np.ascontiguousarray(x))


def test_rows_whose_hashes_meet_are_told_apart(monkeypatch):
    monkeypatch.setattr("lira.data.copies.hash", lambda row: 0, raising=False)
    found = copies_of(np.array([[1], [2], [1], [3]]), x_test=np.array([[1], [3]]))
    assert (found.count, found.held_out, found.first_held_out) == (1, 1, (0, 0))


X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
Y = np.arange(40) % 2
TWICE = np.concatenate([X, X[:3]])
LABELS = np.concatenate([Y, [Y[0], Y[1], 1 - Y[2]]])
SAYS = (
    r"3 of 43 examples are copies of an earlier one \(first 40 of 0, counted from 0, 1 with another label\)"
)


def test_a_run_tells_of_them_and_keeps_that(tmp_path):
    recipe = lira.Recipe(model="mlp", epochs=1, batch_size=8)
    with pytest.warns(CopiesWarning, match=SAYS):
        run = lira.Run.create(tmp_path / "a", lira.Dataset.from_arrays(TWICE, LABELS), recipe, num_models=4)
    (check,) = (each for each in lira.check(run) if each.name == "copies")
    assert check.status == "warn"
    assert check.sentence.endswith("leave the copies out of the data")
    with warnings.catch_warnings():
        warnings.simplefilter("error", CopiesWarning)
        run = lira.Run.create(tmp_path / "b", lira.Dataset.from_arrays(X, Y), recipe, num_models=4)
    assert ("copies", "ok") in [each[:2] for each in lira.check(run)]


HELD_OUT = r"2 of 12 held-out examples are copies of one of the pool \(first 10 of 4, counted from 0\)"


def with_held_out(x_test):
    return lira.Dataset.from_arrays(X, Y, x_test=x_test, y_test=np.arange(len(x_test)) % 2)


def test_a_run_tells_of_held_out_copies_beside(tmp_path):
    recipe = lira.Recipe(model="mlp", epochs=1, batch_size=8)
    others = np.random.default_rng(1).normal(size=(10, 3)).astype(np.float32)
    with pytest.warns(CopiesWarning, match=f"^{HELD_OUT}: models were trained on it"):
        run = lira.Run.create(
            tmp_path / "a", with_held_out(np.concatenate([others, X[4:6]])), recipe, num_models=4
        )
    (check,) = (each for each in lira.check(run) if each.name == "copies")
    assert (check.status, check.sentence.count("copies of")) == ("warn", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CopiesWarning)
        run = lira.Run.create(tmp_path / "b", with_held_out(others), recipe, num_models=4)
    (check,) = (each for each in lira.check(run) if each.name == "copies")
    assert check.sentence == "no example is a copy of another, and no held-out one of an example of the pool"


def test_canaries_are_alike_by_design(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1)).astype(np.uint8)
    dataset = lira.plant(lira.Dataset.from_arrays(images, Y), lira.Canaries(count=10, kind="blank"))
    dataset.x[-1] = dataset.x[-2]
    assert copies_of(dataset.x).count == 1
    recipe = lira.Recipe(model="mlp", epochs=1, batch_size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CopiesWarning)
        run = lira.Run.create(tmp_path / "run", dataset, recipe, num_models=4)
    assert ("copies", "ok") in [each[:2] for each in lira.check(run)]


def test_so_does_an_audit_of_a_function(tmp_path):
    def train(model, members):
        return lambda x: np.stack([x[:, 0], -x[:, 0]], 1)

    options = {"num_models": 8, "workers": 1, "attacks": ("global_threshold",), "show_progress": False}
    with pytest.warns(CopiesWarning, match=SAYS):
        evaluation = lira.audit_training(train, TWICE, LABELS, run_dir=tmp_path / "run", **options)
    assert sum("3 of 43 examples are copies" in each for each in evaluation.verdict.warnings) == 1
    assert "3 of 43 examples are copies" in (tmp_path / "run" / "report.html").read_text()
    held_out = {"x_test": X[:5], "y_test": Y[:5]}
    with pytest.warns(CopiesWarning, match="5 of 5 held-out examples are copies of one of the pool"):
        evaluation = lira.audit_training(train, X, Y, run_dir=tmp_path / "b", **held_out, **options)
    assert sum("5 of 5 held-out examples" in each for each in evaluation.verdict.warnings) == 1
