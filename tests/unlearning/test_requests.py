"""Which examples are to be forgotten: at random, by class, by list, by their exposure."""

import dataclasses

import numpy as np
import pytest
from unlearned_runs import RECIPE, M, N, configured, dataset

from lira.engine.fill import train
from lira.membership import keep_mask
from lira.store.config import ConfigError, Execution
from lira.store.errors import RunError
from lira.store.run import Run
from lira.unlearning.config import Forget, read_unlearning
from lira.unlearning.requests import draw_requests


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
    thin = scores.copy()
    thin[:, 11] = np.nan  # an example that the attack leaves out is no obstacle
    run.write_scores("lira_online_fixed", thin, run.fingerprint())
    requests = draw_requests(config, dataset(), keep)
    assert set(np.flatnonzero(requests[0])) == {42, 30}
    assert not requests[1, 11]
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
