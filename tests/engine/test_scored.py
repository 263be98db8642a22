"""Scores of runs that were trained."""

import re

import numpy as np
import pytest
from small_runs import dataset, finished, made

from lira import attacks, scoring
from lira.attacks.suite import ATTACKS, missing_signals
from lira.engine.fill import train
from lira.scoring import pool_of, score
from lira.store.config import Config
from lira.store.errors import RunError
from lira.store.run import Run
from lira.store.zarr import StoredSignal

OF_CHECKPOINTS = {name for name, attack in ATTACKS.items() if attack.signal == "trajectory"}


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
    monkeypatch.setattr(Run, "scores", lambda self, name, signals=None, features=None: None)
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
