"""What is measured of scores: figures, curves, the examples most at risk."""

import dataclasses
import json

import numpy as np
import pytest
from reported_scores import N, pool

from lira import metrics as measure
from lira import parallel
from lira.metrics import example_tpr
from lira.reporting import measured
from lira.reporting.document import metrics_document


def test_side_by_side_nothing_changes(evaluated, monkeypatch):
    scores, keep, evaluation, metrics = evaluated
    for cores in (1, 4):
        monkeypatch.setattr(parallel, "cores", lambda cores=cores: cores)
        again = measured.measure(scores, keep)
        assert json.dumps(metrics_document(again)) == json.dumps(metrics)
        assert list(again.curves) == list(evaluation.curves) == list(scores)
        for name, curve in again.curves.items():
            for field in dataclasses.fields(curve):
                np.testing.assert_array_equal(
                    getattr(curve, field.name), getattr(evaluation.curves[name], field.name)
                )


def test_an_attacks_error_is_the_reports(evaluated):
    scores, keep, _, _ = evaluated
    broken = scores["lira_online"].copy()
    broken[3, 5] = np.nan
    with pytest.raises(ValueError, match=r"scores\[3, 5\] is NaN"):
        measured.measure({**scores, "lira_offline_fixed": broken}, keep)


def test_no_attack_is_refused():
    with pytest.raises(ValueError, match="holds no attack"):
        measured.measure({}, np.ones((4, 5), bool))


def test_curves_are_thinned_to_realised_points():
    scores, keep = pool(32, 2000)
    for name, curve in measured.measure(scores, keep).curves.items():
        roc = measure.roc(scores[name], keep)
        assert 1000 < len(curve.fpr) <= 2000
        assert (np.diff(curve.fpr) > 0).all()
        assert (curve.fpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 1, 1)
        assert curve.fpr[1] == curve.floor == 1 / 32000
        index = np.searchsorted(roc.fpr, curve.fpr, side="right") - 1
        np.testing.assert_array_equal(curve.fpr, roc.fpr[index])
        np.testing.assert_array_equal(curve.tpr, roc.tpr[index])
        assert (curve.low <= curve.tpr).all()
        assert (curve.tpr <= curve.high).all()
        assert (curve.auc, curve.low_fpr_tpr) == (roc.auc, roc.tpr_at(1e-3).tpr)


def test_vulnerable_examples_are_ordered_by_tpr_then_by_gap():
    scores, keep = pool()
    values = scores["lira_online"]
    most, least = measure.most_and_least_vulnerable(values, keep, 2.0, count=N // 2)
    tpr = example_tpr(values, keep, 2.0)
    gap = [values[keep[:, n], n].mean() - values[~keep[:, n], n].mean() for n in range(N)]
    naive = sorted(range(N), key=lambda n: (tpr[n], gap[n]))
    assert list(least) == naive[: N // 2]
    assert list(most) == naive[::-1][: N // 2]


def test_examples_without_both_sides_and_infinite_scores_are_survived():
    values = np.array([[3.0, np.inf, 9, 1], [0, 0, 9, 0], [2, np.inf, 9, 1], [0, np.inf, 9, 0]])
    keep = np.array([[1, 1, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1], [0, 0, 1, 0]], bool)
    most, least = measure.most_and_least_vulnerable(values, keep, 1.5, count=3)
    assert (list(most), list(least)) == ([0], [3])
