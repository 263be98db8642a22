"""What one attacked model can expect: figures of single targets, and their means."""

from typing import Any

import numpy as np

from lira.membership import is_paired
from lira.metrics._shared import check_scores
from lira.metrics.counting import allowed_false_positives, area, count_points, last_within, ratio
from lira.metrics.means import mean_over_clusters

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
    aucs, tprs = np.empty(len(scores)), np.full((len(scores), len(fprs)), np.nan)
    for target, (row, member) in enumerate(zip(scores, keep, strict=True)):
        false, true = count_points(row, member)
        aucs[target] = area(false, true)
        allowed = allowed_false_positives(fprs, false[-1])
        resolved = allowed >= 1
        tprs[target, resolved] = ratio(true[last_within(false, allowed[resolved])], true[-1])
    figures = np.column_stack([aucs, tprs])  # [T, 1 + F]
    if is_paired(keep):
        figures = figures.reshape(-1, 2, figures.shape[1]).mean(axis=1)
    auc, *means = (mean_over_clusters(column) for column in figures.T)
    return {"auc": auc, "tpr_at_fpr": dict(zip(fprs, means, strict=True))}
