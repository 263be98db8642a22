"""What one attacked model can expect: figures of single targets, and their means."""

from typing import Any

import numpy as np

from lira.membership import is_paired
from lira.metrics._shared import Estimate, check_scores, cluster_margin
from lira.metrics.counting import allowed_false_positives, area, count_points, last_within, ratio

__all__ = ["mean_over_targets"]


def mean_over_targets(scores: np.ndarray, keep: np.ndarray, fprs: list[float]) -> dict[str, Any]:
    """Each target's own AUC and TPR at FPR, averaged: what one attacked model can expect.

    A TPR whose FPR some target cannot resolve (fpr * non-members < 1) is NaN: it is neither averaged nor to be
    compared with pooled figures. The intervals are Student's t over the means of pairs (of targets, where these are
    not paired).

    Returns:
        {"auc": Estimate, "tpr_at_fpr": {fpr: Estimate}}.
    """
    scores, keep = check_scores(scores, keep)
    curves = [count_points(row, member) for row, member in zip(scores, keep, strict=True)]
    aucs = np.array([area(false, true) for false, true in curves])
    tprs = np.full((len(scores), len(fprs)), np.nan)
    for values, (false, true) in zip(tprs, curves, strict=True):
        allowed = allowed_false_positives(fprs, false[-1])
        resolved = allowed >= 1
        values[resolved] = ratio(true[last_within(false, allowed[resolved])], true[-1])
    paired = is_paired(keep)
    return {
        "auc": _mean(aucs, paired),
        "tpr_at_fpr": {fpr: _mean(tprs[:, i], paired) for i, fpr in enumerate(fprs)},
    }


def _mean(values: np.ndarray, paired: bool) -> Estimate:
    clusters = values.reshape(-1, 2).mean(axis=1) if paired else values
    return Estimate.around(values.mean(), cluster_margin(clusters))
