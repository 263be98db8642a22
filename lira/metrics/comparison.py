"""Which of two attacks, or of two runs, gives more away: differences on the same targets, resampled alike."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special

from lira.metrics._shared import RESAMPLES, Estimate, check_fpr, check_scores, resample_margin
from lira.metrics.counting import allowed_false_positives, area, last_within, tie_ends
from lira.metrics.curve import Roc, roc

__all__ = ["Compared", "Difference", "compared", "difference", "difference_of_curves"]


@dataclass(frozen=True)
class Difference:
    """The first less the second of two attacks or runs, with 95 % intervals of the paired difference."""

    fpr: float
    tpr: Estimate  # at `fpr`; NaN where fewer than one false positive is allowed
    auc: Estimate


def difference(
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    keep: np.ndarray,
    *,
    fpr: float = 1e-3,
    keep_b: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
) -> Difference:
    """Pooled TPR at FPR and AUC of one attack or run less those of another on the same memberships.

    Both are recomputed on the same resamples of the clusters, each with its threshold chosen anew, so what the two
    have in common cancels. The interval is that of `Roc`, and conditional on the examples like it. A single target
    has the same members and non-members drawn for both.

    Args:
        scores_a: float `[T, N]`, higher = more likely a member.
        scores_b: float `[T, N]`, of the other attack on the same targets, or of the other run.
        keep: bool `[T, N]`.
        fpr: a fraction.
        keep_b: bool `[T, N]`, the other run's own memberships, to have them checked: they must be the same.
        clusters: int `[T]`, as in `roc`.

    Returns:
        The differences; NaN with an UndefinedMetricWarning without members or non-members, no interval between two
        and three clusters.

    Raises:
        ValueError: shapes or memberships disagree, a score is NaN, or `fpr` is outside [0, 1].
    """
    a, keep = check_scores(scores_a, keep)
    b, _ = check_scores(scores_b, keep)
    check_fpr(fpr)
    if keep_b is not None and not np.array_equal(keep, keep_b):
        raise ValueError(
            "keep_b differs from keep: two runs are compared pair by pair only on the same memberships; "
            "make them with one membership seed"
        )
    # One curve after the other: each is several times its scores.
    first, second = (compared(roc(scores, keep, clusters=clusters), fpr) for scores in (a, b))
    if first.num_clusters > 1 or keep.all() or not keep.any():
        return difference_of_curves(first, second)
    errors = np.std(_paired_draws(a.ravel(), b.ravel(), keep.ravel(), fpr), axis=0, ddof=1)
    return _assemble(first, second, special.ndtri(0.975) * errors)


class Compared(NamedTuple):
    """What is compared of a curve, which may then be let go."""

    fpr: float
    tpr: float  # at `fpr`
    auc: float
    resampled: np.ndarray | None  # float64 [B, 2], TPR and AUC in each resample; None with too few clusters
    num_clusters: int


def compared(curve: Roc, fpr: float) -> Compared:
    """What `difference_of_curves` takes of a curve."""
    tpr, auc = curve.resampled_tpr(np.array([fpr])), curve.resampled_auc()
    resampled = None if tpr is None or auc is None else np.column_stack([tpr, auc])
    return Compared(fpr, curve.realised_tpr(fpr), curve.auc, resampled, curve.num_clusters)


def difference_of_curves(a: Compared, b: Compared) -> Difference:
    """`difference` from the curves of the same targets in the same two or more clusters."""
    margins = np.full(2, np.nan)
    if a.resampled is not None and b.resampled is not None:
        margins = resample_margin(a.resampled - b.resampled, a.num_clusters)
    return _assemble(a, b, margins)


def _assemble(a: Compared, b: Compared, margins: np.ndarray) -> Difference:
    return Difference(
        a.fpr,
        Estimate.around(a.tpr - b.tpr, margins[0], -1, 1),
        Estimate.around(a.auc - b.auc, margins[1], -1, 1),
    )


def _paired_draws(a: np.ndarray, b: np.ndarray, member: np.ndarray, fpr: float) -> np.ndarray:
    """Differences of TPR and AUC, float64 `[B, 2]`, as one target's members and non-members are drawn for both."""
    rng = np.random.default_rng(0)
    sides = (np.flatnonzero(~member), np.flatnonzero(member))
    allowed = allowed_false_positives(fpr, len(sides[0]))
    orders = [np.argsort(scores)[::-1] for scores in (a, b)]
    ends = [tie_ends(scores[order]) for scores, order in zip((a, b), orders, strict=True)]
    figures = np.empty((RESAMPLES, 2, 2))
    for draw in range(RESAMPLES):
        weights = np.zeros((2, len(member) + 1), np.int64)  # behind the last of them the point (0, 0)
        for weight, side in zip(weights, sides, strict=True):
            weight[side] = np.bincount(rng.integers(len(side), size=len(side)), minlength=len(side))
        for figure, order, end in zip(figures[draw], orders, ends, strict=True):
            false, true = np.cumsum(weights[:, np.append(-1, order)], axis=1)[:, end]
            figure[:] = true[last_within(false, allowed)] / true[-1], area(false, true)
    return figures[:, 0] - figures[:, 1]
