"""Export, and the original's own formulas on it."""

import json
import warnings

import numpy as np
import pytest
from foreign_layouts import (
    pool,
    write_carlini,
)
from scipy.stats import norm
from sklearn.metrics import auc, roc_curve

from lira import attacks
from lira.attacks.suite import ATTACKS
from lira.data.canaries import Canaries
from lira.data.dataset import Dataset
from lira.data.planting import plant
from lira.exchange.export import export_carlini
from lira.exchange.layouts import import_run
from lira.learning.recipe import Recipe
from lira.membership import Membership, keep_mask
from lira.metrics import roc
from lira.store.config import Config
from lira.store.errors import RunError
from lira.store.run import Run

pytestmark = pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")


def original_directory(place, order):
    """Scores and keep as the original loads them: the last file of each directory, in some order of directories."""
    scores, keep = [], []
    for name in order:
        files = sorted((place / name / "scores").iterdir())
        scores.append(np.load(files[-1]))
        keep.append(np.load(place / name / "keep.npy"))
    return np.array(scores), np.array(keep)


def original_attack(name, keep, scores, check_keep, check_scores):
    """The original's scores of the left-out models, lower = member, and their memberships."""
    inside = [scores[keep[:, j], j] for j in range(keep.shape[1])]
    outside = [scores[~keep[:, j], j] for j in range(keep.shape[1])]
    in_size, out_size = min(map(len, inside)), min(map(len, outside))
    inside, outside = np.array([x[:in_size] for x in inside]), np.array([x[:out_size] for x in outside])
    mean_in, mean_out = np.median(inside, 1), np.median(outside, 1)
    if name.endswith("_fixed"):
        sd_in, sd_out = np.std(inside), np.std(inside if "online" in name else outside)
    else:
        sd_in, sd_out = np.std(inside, 1), np.std(outside, 1)
    prediction, answers = [], []
    for answer, values in zip(check_keep, check_scores, strict=True):
        if name == "global_threshold":
            score = -values
        else:
            score = norm.logpdf(values, mean_out, sd_out + 1e-30)
            if "online" in name:
                score = score - norm.logpdf(values, mean_in, sd_in + 1e-30)
        prediction.extend(score.mean(1))
        answers.extend(answer)
    return np.array(prediction), np.array(answers, dtype=bool)


def original_sweep(prediction, answers, fpr_bound):
    """AUC, and TPR at the last point below an FPR: the original's `<`, not `<=`."""
    fpr, tpr, _ = roc_curve(answers, -prediction, drop_intermediate=False)
    return auc(fpr, tpr), tpr[np.where(fpr < fpr_bound)[0][-1]]


def original_rows(phi, keep, name):
    """The same attack here: the convention of that name, the last row as the target, whose mate stays in the pool."""
    options = {} if name == "global_threshold" else {"convention": "original"}
    return getattr(attacks, name)(phi[:-1], keep[:-1], target=phi[-1:], **options)


@pytest.mark.parametrize("text_order", [False, True])
@pytest.mark.parametrize(("M", "paired"), [(8, True), (12, False)])
def test_exported_runs_give_the_same_figures_in_the_originals_formulas(tmp_path, M, paired, text_order):
    """Whatever order the directories are listed in: its last one is the target, and it truncates in that order."""
    logits, keep, labels = pool(M=M, paired=paired)
    run = import_run("carlini", write_carlini(tmp_path / "exp", logits, keep, labels), tmp_path / "run")
    export_carlini(run, tmp_path / "out")
    names = [f"experiment-{i}_{M}" for i in range(M)]
    names = sorted(names) if text_order else names
    order = [int(name.split("-")[1].split("_")[0]) for name in names]
    scores, exported_keep = original_directory(tmp_path / "out", names)
    np.testing.assert_array_equal(exported_keep, keep[order])
    phi = np.asarray(run.phi)[order]
    for name in ATTACKS:
        if name not in (
            "lira_online",
            "lira_online_fixed",
            "lira_offline",
            "lira_offline_fixed",
            "global_threshold",
        ):
            continue  # the original has no others
        theirs = original_attack(name, exported_keep[:-1], scores[:-1], exported_keep[-1:], scores[-1:])
        curve = roc(original_rows(phi, keep[order], name), keep[order][-1:])
        for bound in (0.001, 0.0101, 0.05, 0.2):
            area, low = original_sweep(*theirs, bound)
            assert curve.auc == pytest.approx(area, abs=1e-6)
            assert curve.tpr[np.flatnonzero(curve.fpr < bound)[-1]] == pytest.approx(low, abs=1e-6)
            n = (~keep[order][-1]).sum()
            if bound * n != np.floor(bound * n) and bound * n >= 1:  # where `<` and `<=` are the same
                assert curve.tpr_at(bound).tpr == pytest.approx(low, abs=1e-6)


def test_export_without_logits_says_so_and_round_trips(tmp_path):
    logits, keep, labels = pool()
    first = import_run(
        "carlini", write_carlini(tmp_path / "exp", logits, keep, labels, scores=True), tmp_path / "one"
    )
    missing = export_carlini(first, tmp_path / "out")
    assert any(sentence.startswith("no logits, because the run holds none") for sentence in missing)
    assert not list((tmp_path / "out").glob("*/logits"))
    assert json.loads((tmp_path / "out/experiment-3_8/hparams.json").read_text())["expid"] == 3
    assert np.load(tmp_path / "out/experiment-3_8/scores/0000000010.npy").dtype == np.float64
    second = import_run("carlini", tmp_path / "out", tmp_path / "two")
    np.testing.assert_array_equal(np.asarray(second.phi), np.asarray(first.phi))
    np.testing.assert_array_equal(second.keep, first.keep)


def test_export_with_logits_round_trips(tmp_path):
    logits, keep, labels = pool()
    first = import_run("carlini", write_carlini(tmp_path / "exp", logits, keep, labels), tmp_path / "one")
    assert export_carlini(first, tmp_path / "out") == [
        "no x_train.npy, because a run does not hold its inputs"
    ]
    exported = np.load(tmp_path / "out/experiment-0_8/logits/0000000010.npy")
    np.testing.assert_array_equal(exported, logits[0][:, None])
    np.testing.assert_array_equal(np.load(tmp_path / "out/y_train.npy"), labels)


def test_a_trained_run_is_exported(tmp_path):
    """Memberships, epochs and recipe of a run of this project's own; the models that are not usable stay out."""
    rng = np.random.default_rng(0)
    data = Dataset.from_arrays(rng.normal(size=(60, 4)), np.arange(60) % 2)
    run = Run.create(tmp_path / "run", data, Recipe(epochs=3, batch_size=10), num_models=6)
    phi = rng.normal(size=(6, 60, 1)).astype(np.float32)
    with pytest.raises(RunError, match="has no usable model to export"):
        export_carlini(run, tmp_path / "none")
    for m in range(5):
        row = {
            "phi": phi[m],
            **dict.fromkeys(("accuracy_in", "accuracy_out", "accuracy_test"), np.float32(0.5)),
        }
        run.write_model(m, row, diverged=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_carlini(run, tmp_path / "out")
    assert sorted(each.name for each in tmp_path.glob("out/exp*")) == [f"experiment-{m}_6" for m in range(4)]
    np.testing.assert_array_equal(np.load(tmp_path / "out/experiment-2_6/scores/0000000003.npy"), phi[2])
    np.testing.assert_array_equal(np.load(tmp_path / "out/experiment-2_6/keep.npy"), keep_mask(0, 6, 60)[2])
    hparams = json.loads((tmp_path / "out/experiment-2_6/hparams.json").read_text())
    assert (hparams["arch"], hparams["epochs"], hparams["num_experiments"]) == ("mlp", 3, 6)


def test_export_tells_of_canaries_and_targets_which_the_layout_does_not_know(tmp_path):
    """Read back, they are examples and models as all others are, and figures are of all together."""
    rng = np.random.default_rng(0)
    data = plant(Dataset.from_arrays(rng.normal(size=(60, 4)), np.arange(60) % 2), Canaries(7, "random"))
    run = Run.from_config(
        tmp_path / "run",
        data,
        Config(
            dataset="memory",
            num_models=6,
            membership=Membership("disjoint", num_targets=2),
            canaries=data.canaries,
            recipe=Recipe(epochs=3, batch_size=5),
        ),
    )
    for m in range(6):
        row = {
            "phi": rng.normal(size=(67, 1)),
            "entropy": np.ones((67, 1)),
            "modified_entropy": np.ones((67, 1)),
        }
        run.write_model(m, {name: each.astype(np.float32) for name, each in row.items()}, diverged=False)
    assert export_carlini(run, tmp_path / "out")[-2:] == [
        "no word of canaries, which are the last 7 examples: leave these columns out",
        "no word of who is attacked, which are models 0, 1, by the others alone",
    ]
    np.testing.assert_array_equal(
        np.load(tmp_path / "out/experiment-1_6/keep.npy"), run.memberships(np.array([1]))[0]
    )
