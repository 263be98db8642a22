"""Scores that are read from a run when they are asked for."""

import shutil

import numpy as np
import pytest
from stored_runs import M, N, dataset, made, rows

from lira import scoring
from lira.attacks.suite import ATTACKS, attack_pool
from lira.data.dataset import Dataset
from lira.exchange.audit import audit
from lira.membership import keep_mask
from lira.scoring import pool_of, score
from lira.store.run import Run

TWO = {name: ATTACKS[name] for name in ("lira_online_fixed", "global_threshold")}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # six models are few


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "ATTACKS", TWO)
    run = made(tmp_path, signals=())
    rng = np.random.default_rng(0)
    for index in range(M):
        phi = {name: rng.normal(size=(n, 1)).astype(np.float32) for name, n in (("phi", N), ("phi_test", 7))}
        run.write_model(index, {**rows(index), **phi}, diverged=False)
    return run


def test_scores_are_a_mapping_of_what_the_attacks_return(run):
    scores = score(run, dataset())
    expected = attack_pool(pool_of(run, dataset()), TWO)
    assert list(scores) == list(expected) == list(TWO)
    assert len(scores) == len(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(scores[name], values)
        assert scores[name].shape == (M, N)
    assert "no_attack" not in scores
    with pytest.raises(KeyError):
        scores["no_attack"]


def test_scores_that_are_gone_are_computed_again(run):
    scores = score(run)
    before = dict(scores)
    shutil.rmtree(run.path / "scores")
    for name in TWO:
        np.testing.assert_array_equal(scores[name], before[name])


def test_scores_of_other_features_are_computed_again(tmp_path):
    """Of models of other code the labels alone say which data they are of: features may be pixels today, an embedding tomorrow."""
    rng, keep = np.random.default_rng(0), keep_mask(0, M, 80)
    labels = np.arange(80) % 3
    audit(
        tmp_path / "run",
        phi=rng.normal(size=keep.shape),
        keep=keep,
        labels=labels,
        attacks=["global_threshold"],
    )
    run, name = Run.open(tmp_path / "run"), "pmia_neighbours_fixed"
    pixels, embedding = (Dataset.from_arrays(rng.normal(size=(80, 2)), labels) for _ in range(2))
    asked = {name: ATTACKS[name]}
    first = score(run, pixels, attacks=asked)
    expected = attack_pool(pool_of(run, embedding), asked)[name]
    np.testing.assert_array_equal(score(run, embedding, attacks=asked)[name], expected)
    assert (first[name] != expected).mean() > 0.9, "what was read before is of its own features still"
    np.testing.assert_array_equal(score(run, attacks=asked)[name], expected)
