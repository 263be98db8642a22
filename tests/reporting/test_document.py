"""metrics.json: what the curves say, the unresolvable and the undefined told apart."""

import json

import numpy as np
import pytest
from reported_scores import M, N, pool, rendered

from lira import metrics as measure
from lira.membership import keep_mask
from lira.reporting import measured, plots, write
from lira.reporting.document import metrics_document


def numbers(value):
    """All leaves of a JSON document."""
    if isinstance(value, dict | list | tuple):
        items = value.values() if isinstance(value, dict) else value
        return [leaf for item in items for leaf in numbers(item)]
    return [value]


def test_the_document_holds_what_the_roc_says(evaluated):
    scores, keep, _, metrics = evaluated
    metrics = json.loads(json.dumps(metrics, allow_nan=False))
    assert (metrics["num_models"], metrics["num_examples"]) == (M, N)
    assert metrics["num_members"] == metrics["num_nonmembers"] == M * N // 2
    assert list(metrics["attacks"]) == list(scores)
    for name, attack in metrics["attacks"].items():
        roc = measure.roc(scores[name], keep)
        assert attack["auc"] == roc.auc
        assert (attack["auc_low"], attack["auc_high"]) == (roc.auc_interval().low, roc.auc_interval().high)
        assert attack["balanced_accuracy"] == roc.balanced_accuracy
        assert attack["balanced_accuracy_low"] == roc.balanced_accuracy_interval().low
        for fpr in (1e-3, 1e-2):
            point, entry = roc.tpr_at(fpr), attack["tpr_at_fpr"][f"{fpr:g}"]
            assert entry == {
                "tpr": point.tpr,
                "low": point.low,
                "high": point.high,
                "status": "ok",
                "threshold": point.threshold,
                "false_positives": point.false_positives,
                "allowed_false_positives": int(fpr * M * N / 2),
                "expected_fpr": point.expected_fpr,
                "distinct_examples": point.distinct_examples,
                "floor": 2 / (M * N),
                "tpr_at_zero_fpr": point.tpr_at_zero,
            }
        mean = measure.mean_over_targets(scores[name], keep, [1e-2])
        assert attack["mean_over_targets"]["auc"] == mean["auc"].value
        entry = attack["mean_over_targets"]["tpr_at_fpr"]["0.01"]
        assert (entry["tpr"], entry["low"], entry["high"]) == (
            mean["tpr_at_fpr"][1e-2].value,
            mean["tpr_at_fpr"][1e-2].low,
            mean["tpr_at_fpr"][1e-2].high,
        )


def test_fpr_keys_are_the_fractions_of_the_format(evaluated):
    for attack in evaluated[3]["attacks"].values():
        for part in (attack, attack["mean_over_targets"]):
            assert list(part["tpr_at_fpr"]) == ["1e-05", "0.0001", "0.001", "0.01"]


def test_the_unresolvable_is_null_with_its_floor(evaluated):
    scores, keep, _, metrics = evaluated
    for name, attack in metrics["attacks"].items():
        entry = attack["tpr_at_fpr"]["0.0001"]
        assert (entry["tpr"], entry["low"], entry["high"]) == (None, None, None)
        assert entry["status"] == "unresolvable"
        assert entry["floor"] == 1 / 3200
        best_nonmember = scores[name][~keep].max()
        assert entry["tpr_at_zero_fpr"] == pytest.approx(np.mean(scores[name][keep] > best_nonmember))
        # A single target has some 200 non-members: 0.1 % is not to be averaged although it is pooled.
        mean = attack["mean_over_targets"]["tpr_at_fpr"]["0.001"]
        assert (mean["tpr"], mean["status"]) == (None, "unresolvable")
        assert mean["floor"] == 1 / (~keep).sum(axis=1).min()


def test_zero_is_measured_and_not_null():
    keep = keep_mask(0, M, N)
    evaluation = measured.measure({"reversed": np.where(keep, -1.0, 1.0)}, keep)
    entry = metrics_document(evaluation)["attacks"]["reversed"]["tpr_at_fpr"]["0.01"]
    assert (entry["tpr"], entry["status"], entry["false_positives"]) == (0, "ok", 0)
    assert entry["threshold"] is None  # All non-members tie at the top: only infinity keeps them out.
    assert measured.low_fpr_threshold(evaluation.attacks["reversed"]) == (0.001, np.inf)


def test_one_class_is_undefined_everywhere_and_still_reported(tmp_path):
    scores = {"attack": np.random.default_rng(0).normal(size=(4, 50))}
    with pytest.warns(measure.UndefinedMetricWarning):
        evaluation = measured.measure(scores, np.ones((4, 50), bool))
    metrics = metrics_document(evaluation)
    attack = metrics["attacks"]["attack"]
    assert (attack["auc"], attack["balanced_accuracy"], evaluation.curves) == (None, None, {})
    assert metrics["implied"] is None
    for part in (attack, attack["mean_over_targets"]):
        assert {entry["status"] for entry in part["tpr_at_fpr"].values()} == {"undefined"}
    write.write_report(tmp_path, evaluation)
    assert "undefined" in (tmp_path / "report.html").read_text()
    assert "undefined" in rendered(evaluation, 100)


@pytest.mark.parametrize("num_models", [1, 4, 7])
def test_pools_of_other_sizes_hold_no_nan(num_models):
    """One target; two pairs, too few for intervals; an unpaired pool."""
    scores, keep = pool(8)
    evaluation = measured.measure({"a": scores["lira_online"][:num_models]}, keep[:num_models])
    metrics = metrics_document(evaluation)
    json.dumps(metrics, allow_nan=False)
    assert metrics["attacks"]["a"]["auc"] > 0.5
    interval = {1: "of the one target", 4: "none, because 2 complementary pairs", 7: "95 %, models resampled"}
    assert interval[num_models] in metrics["interval"]
    assert (metrics["attacks"]["a"]["auc_low"] is None) == (num_models == 4)
    assert len(plots.plot_roc(evaluation.curves).collections) == (num_models != 4)


def test_infinite_scores_are_ordered():
    scores, keep = pool(4)
    values = scores["lira_online"].copy()
    values[keep & (values > 3)] = np.inf
    values[~keep & (values < -1)] = -np.inf
    metrics = metrics_document(measured.measure({"a": values}, keep))
    assert all(leaf is None or isinstance(leaf, str) or np.isfinite(leaf) for leaf in numbers(metrics))
