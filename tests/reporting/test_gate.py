"""Limits of a pipeline, against a report whose figures are known."""

import pytest

from lira.reporting.gate import gate

POINT = {"tpr": 0.036, "low": 0.035, "high": 0.037, "status": "ok"}
UNKNOWN = {"tpr": None, "low": None, "high": None, "status": "unresolvable"}
FIGURES = {
    "auc": 0.61,
    "auc_low": 0.60,
    "auc_high": 0.62,
    "balanced_accuracy": 0.56,
    "balanced_accuracy_low": None,
    "balanced_accuracy_high": None,
    "tpr_at_fpr": {"1e-05": UNKNOWN, "0.001": POINT},
}
DOCUMENT = {
    "verdict": {"attack": "lira_online"},
    "attacks": {"lira_online": FIGURES, "base": {**FIGURES, "auc": 0.5}},
}


@pytest.mark.parametrize(
    ("limit", "status", "sentence"),
    [
        (
            "tpr@0.001=0.02",
            "fail",
            "lira_online's TPR at 0.1 % FPR is 3.60 % (3.50 % to 3.70 %), above 2.00 %",
        ),
        (
            "tpr@1e-3=0.036",
            "ok",
            "lira_online's TPR at 0.1 % FPR is 3.60 % (3.50 % to 3.70 %), not above 3.60 %",
        ),
        (
            "tpr@0.00001=0.5",
            "fail",
            "lira_online's TPR at 0.001 % FPR is unresolvable, so it may be above 50.0 %",
        ),
        ("auc=0.6", "fail", "lira_online's AUC is 0.610 (0.600 to 0.620), above 0.600"),
        ("base:auc=0.6", "ok", "base's AUC is 0.500 (0.600 to 0.620), not above 0.600"),
        ("balanced_accuracy=0.6", "ok", "lira_online's balanced accuracy is 56.0 %, not above 60.0 %"),
    ],
)
def test_a_limit_is_a_check(limit, status, sentence):
    (check,) = gate(DOCUMENT, [limit])
    assert (check.status, check.sentence) == (status, sentence)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("tpr=0.02", r"must be FIGURE=LIMIT.*got 'tpr=0.02'"),
        ("tpr@0.001", "must be FIGURE=LIMIT"),
        ("tpr@0.001=2", "a limit from 0 to 1; got 'tpr@0.001=2'"),
        ("tpr@0.001=nan", "a limit from 0 to 1"),
        ("tpr@0.002=0.02", "reports have a TPR at 1e-05, 0.001; got 'tpr@0.002=0.02'"),
        ("rmia_online:auc=0.6", "no attack 'rmia_online' in the report; it has lira_online, base"),
    ],
)
def test_a_limit_that_cannot_be_judged_is_named(limit, message):
    with pytest.raises(ValueError, match=message):
        gate(DOCUMENT, [limit])
