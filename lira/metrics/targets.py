"""What one attacked model can expect: figures of single targets, and their means."""

from typing import Any

import numpy as np

from lira.membership import is_paired
from lira.metrics._shared import Estimate, allowed_false_positives, check_scores, cluster_margin, ratio

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
    aucs = []
    tprs = np.empty((len(scores), len(fprs)))
    for t, (row, member) in enumerate(zip(scores, keep, strict=True)):
        members, nonmembers = np.sort(row[member]), np.sort(row[~member])
        below = np.searchsorted(nonmembers, members, "left") + np.searchsorted(nonmembers, members, "right")
        aucs.append(ratio(below.sum() / 2, len(members) * len(nonmembers)))
        for i, fpr in enumerate(fprs):
            allowed = allowed_false_positives(fpr, len(nonmembers))
            if allowed < 1 or not len(members):
                tprs[t, i] = np.nan
            elif allowed >= len(nonmembers):
                tprs[t, i] = 1
            else:
                # The highest non-member that must stay below the threshold.
                bar = nonmembers[len(nonmembers) - 1 - allowed]
                tprs[t, i] = 1 - np.searchsorted(members, bar, "right") / len(members)
    paired = is_paired(keep)
    return {
        "auc": _mean(np.array(aucs), paired),
        "tpr_at_fpr": {fpr: _mean(tprs[:, i], paired) for i, fpr in enumerate(fprs)},
    }


def _mean(values: np.ndarray, paired: bool) -> Estimate:
    clusters = values.reshape(-1, 2).mean(axis=1) if paired else values
    return Estimate.around(values.mean(), cluster_margin(clusters))
