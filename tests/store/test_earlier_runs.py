"""A run directory that was made before the package was parted into rooms: opens, scores, reports and grows."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

import lira
from lira.attacks.suite import ATTACKS
from lira.learning.fingerprint import UncheckedWarning

ARCHIVE = Path(__file__).parent / "data/run_before_rooms.tar.gz"


@pytest.fixture
def run(tmp_path):
    """Four MLPs on 200 digits, scored by version 0.1.0."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return lira.Run.open(tmp_path / "run")


@pytest.fixture(scope="module")
def dataset():
    return lira.load_dataset("digits", num_examples=200)


@pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning", "ignore:.*is left out:UserWarning")
def test_its_scores_and_figures_are_computed_anew_as_they_were(run, dataset):
    stored = {name: run.scores(name) for name in ATTACKS if run.scores(name) is not None}
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert len(stored) > 10
    shutil.rmtree(run.path / "scores")
    (run.path / "scores").mkdir()
    lira.report(run, dataset)
    for name, scores in stored.items():
        again = run.scores(name)
        if name.startswith("rmia"):  # odds a / (points + 1 - a), where it was a / points
            points = again.shape[1] - 1
            again = again / (1 + again) * (points + 1) / points
        np.testing.assert_allclose(again, scores, rtol=1e-5, atol=1e-6, err_msg=name)
    again = json.loads((run.path / "metrics.json").read_text())
    assert again["attacks"].keys() >= metrics["attacks"].keys()  # attacks of later versions come on top
    for name, entry in metrics["attacks"].items():
        assert again["attacks"][name]["auc"] == pytest.approx(entry["auc"], abs=1e-4), name


def test_it_grows_by_the_same_models(run, dataset):
    phi, keep = np.asarray(run.phi), run.keep
    with pytest.warns(UncheckedWarning, match="a version that did not record it"):
        grown = lira.Run.create(
            run.path, dataset, run.config.recipe, num_models=6, execution=lira.Execution(width=2)
        )
    with pytest.warns(UncheckedWarning, match="a version that did not record it"):
        lira.train(grown, dataset, show_progress=False)
    np.testing.assert_array_equal(np.asarray(grown.phi)[:4], phi)
    np.testing.assert_array_equal(grown.keep[:4], keep)
    fresh = lira.Run.create(
        run.path.parent / "fresh", dataset, run.config.recipe, num_models=6, execution=lira.Execution(width=2)
    )
    lira.train(fresh, dataset, show_progress=False)
    np.testing.assert_allclose(np.asarray(grown.phi), np.asarray(fresh.phi), rtol=1e-3, atol=1e-3)
