"""What p-values of membership say: TPR where every example has the same false-positive rate, and members by name."""

from dataclasses import dataclass

import numpy as np

from lira.metrics._shared import UNDEFINED, Estimate, check_fpr, check_scores, clusters_of
from lira.metrics.means import mean_over_clusters, ratio_of_means

__all__ = ["CalibratedPoint", "NamedMembers", "calibrated_tpr", "named_members"]


@dataclass(frozen=True)
class CalibratedPoint:
    """TPR where x is called a member of a target if its p-value is at most `fpr`: one rate for every example.

    The threshold is fixed beforehand, so the realised rate may differ: by chance, or because the p-values' assumption
    fails, as where phi is not Gaussian. `status` is "ok", "unresolvable" (no p-value can be that low) or "undefined" (no
    members or no non-members).
    """

    fpr: float  # as asked
    status: str
    tpr: Estimate  # NaN unless `status` is "ok"
    realised_fpr: Estimate
    floor: float  # the smallest p-value that every example can have


@dataclass(frozen=True)
class NamedMembers:
    """Members by name at a false discovery rate, target by target; means over targets."""

    rate: float  # as asked
    named: Estimate  # examples of a target
    false_share: Estimate  # of those, 0 where none is named: on average at most `rate`
    targets: float  # the share of targets of which any is named


def calibrated_tpr(
    p_values: np.ndarray, keep: np.ndarray, fpr: float, *, smallest: float = 0.0
) -> CalibratedPoint:
    """TPR and realised FPR where p-values of at most `fpr` are called members, with 95 % intervals over pairs.

    Args:
        p_values: float `[T, N]`, lower = more likely a member, such as those of `lira.attacks.p_values`.
        keep: bool `[T, N]`.
        fpr: a fraction.
        smallest: the smallest p-value that every example can have, see `PValues`.

    Raises:
        ValueError: shapes disagree, a p-value is NaN, or `fpr` is outside [0, 1].

    >>> point = calibrated_tpr(np.array([[0.001, 0.2, 0.5, 0.009]]), np.array([[True, True, False, False]]), 0.01)
    >>> point.tpr.value, point.realised_fpr.value
    (0.5, 0.5)
    """
    check_fpr(fpr)
    p_values, keep = check_scores(p_values, keep)
    if not keep.any() or keep.all():
        return CalibratedPoint(fpr, "undefined", UNDEFINED, UNDEFINED, smallest)
    if fpr < smallest:
        return CalibratedPoint(fpr, "unresolvable", UNDEFINED, UNDEFINED, smallest)
    found, cluster = p_values <= fpr, clusters_of(keep)
    tpr, realised = _rate(found, keep, cluster), _rate(found, ~keep, cluster)
    return CalibratedPoint(fpr, "ok", tpr, realised, smallest)


def named_members(p_values: np.ndarray, keep: np.ndarray, rate: float = 0.05) -> NamedMembers:
    """How many members can be named so that on average at most `rate` of those named are wrong, and how many are.

    Benjamini and Hochberg's procedure (1995) on the examples of each target: the k smallest p-values, with the largest
    k for which the k-th is at most `rate k / N`. It holds for p-values that are independent or positively dependent
    (Benjamini and Yekutieli 2001), and with m of N examples members at `rate (1 - m / N)`.

    Args:
        p_values: float `[T, N]`, lower = more likely a member.
        keep: bool `[T, N]`.
        rate: the false discovery rate, a fraction.

    Raises:
        ValueError: shapes disagree, a p-value is NaN, or `rate` is outside [0, 1].

    >>> named = named_members(np.array([[0.001, 0.002, 0.5, 0.9]]), np.array([[True, False, True, False]]))
    >>> named.named.value, named.false_share.value
    (2.0, 0.5)
    """
    from scipy import stats  # slow to import, and needed here alone

    check_fpr(rate)
    p_values, keep = check_scores(p_values, keep)
    # A target at a time: its sorted copies of all of them would be several times as large.
    chosen = np.stack([stats.false_discovery_control(each) <= rate for each in p_values])
    count, wrong = chosen.sum(axis=1), (chosen & ~keep).sum(axis=1)
    cluster = clusters_of(keep)
    named, false_share = (
        mean_over_clusters(np.bincount(cluster, each) / np.bincount(cluster), 0, highest)
        for each, highest in ((count, np.inf), (wrong / np.maximum(count, 1), 1))
    )
    return NamedMembers(rate, named, false_share, float(np.mean(count > 0)))


def _rate(found: np.ndarray, side: np.ndarray, cluster: np.ndarray) -> Estimate:
    """The share found of one side, pooled; clusters may hold different numbers of it."""
    hits, total = (np.bincount(cluster, each.sum(axis=1)) for each in (found & side, side))
    estimate = ratio_of_means(hits, total)
    return Estimate(estimate.value, max(estimate.low, 0.0), min(estimate.high, 1.0))
