"""Thresholds that a target's own membership did not choose, and what they realise on it."""

import warnings
from dataclasses import dataclass

import numpy as np

from lira.metrics._shared import (
    MIN_CLUSTERS,
    UNDEFINED,
    Estimate,
    UndefinedMetricWarning,
    check_fpr,
    check_scores,
    cluster_margin,
    clusters_of,
)
from lira.metrics.counting import allowed_false_positives, largest_gap, ratio
from lira.metrics.curve import Roc, roc

__all__ = ["FixedThreshold", "Youden", "fixed_threshold", "ppv", "youden"]


@dataclass(frozen=True)
class Youden:
    """Youden's J = TPR - FPR and balanced accuracy (1 + J) / 2, on held-out thresholds, with 95 % intervals."""

    j: Estimate
    balanced_accuracy: Estimate
    optimistic: float  # J at the best threshold for these very scores: positive even for noise
    thresholds: tuple[float, float]
    """Applied to the first half, chosen on the second, and the reverse; NaN calls nobody a member."""


def youden(scores: np.ndarray, keep: np.ndarray, *, clusters: np.ndarray | None = None) -> Youden:
    """Youden's J (1950) at the threshold that is best on one half of the targets, applied to the other half.

    The maximum over thresholds of the same scores, `optimistic`, is positive even for noise; the held-out J of
    independent halves is zero there on average, so it may be negative. Targets are halved by pairs; a single target's
    examples, or a single pair's, are halved instead.

    Halves whose scores one pool made are not independent: each half's models were shadow models of the other. On pure
    noise a tenth of the optimism stays that way (M = 8 and 16, a sixth at M = 4; simulated). None does with the scores
    of halves that were attacked apart, `subpool_scores(attack, phi, keep, size=M // 4 * 2)`, with half the models each.

    The interval is Student's t over pairs (over examples, for a single target or pair) at the thresholds as chosen:
    near its maximum J hardly depends on the threshold. Like those of `Roc` it is conditional on the examples, and does
    not see what all targets have in common because one pool attacks them: it held the truth in 84 to 90 % of simulated
    pools of 16 to 256 models. `rescored_intervals` sees it, and errs on the wide side (99 %).

    Args:
        scores: float `[T, N]`, higher = more likely a member.
        keep: bool `[T, N]`.
        clusters: int `[T]`, as in `roc`.

    Returns:
        NaN with an UndefinedMetricWarning where a half has no members or no non-members; no interval between two and
        three clusters.

    Raises:
        ValueError: shapes disagree, a score is NaN, or one target has a single example.
    """
    scores, keep = check_scores(scores, keep)
    group = clusters_of(keep, clusters)
    P, N = int(group.max()) + 1, scores.shape[1]
    if P > 1:
        halves = [(group < P // 2, slice(None)), (group >= P // 2, slice(None))]
    elif N > 1:
        halves = [(slice(None), slice(start, None, 2)) for start in (0, 1)]
    else:
        raise ValueError("a single target's examples are halved to hold thresholds out; got one example")
    curves = [roc(scores[half], keep[half]) for half in halves]
    if not all(curve.num_members and curve.num_nonmembers for curve in curves):
        warnings.warn(
            "held-out J is undefined: a half has no members or no non-members",
            UndefinedMetricWarning,
            stacklevel=2,
        )
        return Youden(UNDEFINED, UNDEFINED, float("nan"), (float("nan"), float("nan")))
    # The highest of the thresholds with the largest J.
    best = [largest_gap(curve.false_positives, curve.true_positives) for curve in curves]
    chosen = [float(curve.thresholds[at]) for curve, at in zip(curves, best, strict=True)]
    del curves  # as large as the next
    called = np.empty(scores.shape, bool)
    for half, threshold in zip(halves, reversed(chosen), strict=True):
        called[half] = scores[half] >= threshold

    def by_cluster(cells: np.ndarray) -> np.ndarray:
        return np.bincount(group, weights=cells.sum(axis=1)) if P > 1 else cells.sum(axis=0)

    members, nonmembers = by_cluster(keep), by_cluster(~keep)
    true, false = by_cluster(keep & called), by_cluster(~keep & called)
    tpr, fpr = true.sum() / members.sum(), false.sum() / nonmembers.sum()
    # What each cluster adds to the error of the two pooled rates, to first order; times the number of clusters.
    shares = (true - tpr * members) / members.sum() - (false - fpr * nonmembers) / nonmembers.sum()
    j, margin = tpr - fpr, cluster_margin(shares * len(shares))
    highest = roc(scores, keep).balanced_accuracy
    return Youden(
        j=Estimate.around(j, margin, -1, 1),
        balanced_accuracy=Estimate.around((1 + j) / 2, margin / 2, 0, 1),
        optimistic=2 * highest - 1,
        thresholds=(chosen[1], chosen[0]),
    )


@dataclass(frozen=True, eq=False)
class FixedThreshold:
    """What thresholds chosen on the other models realise on each target, with 95 % intervals over pairs."""

    fpr: float  # as asked
    expected_fpr: float  # (k + 1) / (n + 1), the mean over targets: k of n other non-members may pass
    thresholds: np.ndarray  # float64 [T], predicted member: score >= threshold; NaN calls nobody a member
    target_fpr: np.ndarray  # float64 [T], realised: its spread is what one attacker must expect
    target_tpr: np.ndarray  # float64 [T]
    mean_fpr: Estimate  # over targets
    mean_tpr: Estimate
    pooled_fpr: Estimate  # false positives of all targets over their non-members
    pooled_tpr: Estimate


def fixed_threshold(
    scores: np.ndarray, keep: np.ndarray, fpr: float, *, clusters: np.ndarray | None = None
) -> FixedThreshold:
    """Attack each target at a threshold chosen on the other models alone, its pair left out: FPR and TPR it realises.

    The threshold is the lowest with at most `fpr` of the others' non-members at or above it; members are not looked
    at. An attacker without access to the target's non-members has no other, while thresholds chosen on the target's
    own scores, as in `Roc.tpr_at`, are slightly optimistic. The other models' scores were made with the target's pair
    among the shadow models, which touches a threshold pooled over thousands of scores by next to nothing; for
    thresholds that never saw the pair, attack the pool without it.

    The intervals are a jackknife over pairs: without each pair, all thresholds are chosen anew.

    Args:
        scores: float `[T, N]`, higher = more likely a member.
        keep: bool `[T, N]`.
        fpr: a fraction.
        clusters: int `[T]`, as in `roc`; a target's whole cluster is left out.

    Returns:
        The means and pooled rates are NaN where fewer than one false positive is allowed (`fpr` is unresolvable), and
        with an UndefinedMetricWarning where a target has no members or no non-members. No interval below four
        clusters.

    Raises:
        ValueError: a single cluster, shapes disagree, a score is NaN, or `fpr` is outside [0, 1].
    """
    scores, keep = check_scores(scores, keep)
    check_fpr(fpr)
    group = clusters_of(keep, clusters)
    if group.max() == 0:
        raise ValueError("fixed_threshold chooses on other targets: give at least two pairs (or two models)")
    nonmembers = (~keep).sum(axis=1)
    in_cluster = np.bincount(group, weights=nonmembers).astype(np.int64)
    others = in_cluster.sum() - in_cluster
    allowed = allowed_false_positives(fpr, others)
    thresholds = _thresholds_of_others(scores, keep, group, in_cluster, allowed)[group]
    called = scores >= thresholds[:, None]
    false, true = (called & ~keep).sum(axis=1), (called & keep).sum(axis=1)
    members = keep.shape[1] - nonmembers
    target_fpr, target_tpr = ratio(false, nonmembers), ratio(true, members)
    defined = members.all() and nonmembers.all()
    if not defined:
        warnings.warn(
            "realised rates are undefined: a target has no members or no non-members",
            UndefinedMetricWarning,
            stacklevel=2,
        )
    if defined and allowed.min() >= 1:
        values = np.array(
            [target_fpr.mean(), target_tpr.mean(), false.sum() / nonmembers.sum(), true.sum() / members.sum()]
        )
        margins = _jackknife_margins(roc(scores, keep, clusters=np.arange(len(scores))), group, fpr)
    else:
        values = margins = np.full(4, np.nan)
    mean_fpr, mean_tpr, pooled_fpr, pooled_tpr = (
        Estimate.around(value, margin, 0, 1) for value, margin in zip(values, margins, strict=True)
    )
    expected_fpr = float(np.mean(((allowed + 1) / (others + 1))[group]))
    return FixedThreshold(
        fpr, expected_fpr, thresholds, target_fpr, target_tpr, mean_fpr, mean_tpr, pooled_fpr, pooled_tpr
    )


def ppv(tpr: float | np.ndarray, fpr: float | np.ndarray, prior: float) -> np.ndarray:
    """Positive predictive value: the share of true members among those called members, at a stated prior.

    Args:
        tpr: fraction, or an array of them.
        fpr: fraction, of the shape of `tpr`. Where few false positives were allowed take `expected_fpr` of the
            operating point: the realised rate is below the true one.
        prior: share of members among the examples that the attacker asks about; a half flatters every attack.

    Returns:
        float64 of that shape; NaN with an UndefinedMetricWarning where nobody is called a member.

    Raises:
        ValueError: a rate or the prior is outside [0, 1].

    >>> float(ppv(tpr=0.08, fpr=0.001, prior=0.01).round(3))
    0.447
    """
    tpr, fpr = np.asarray(tpr, np.float64), np.asarray(fpr, np.float64)
    for name, value in (("tpr", tpr), ("fpr", fpr), ("prior", np.asarray(prior))):
        if ((value < 0) | (value > 1)).any():
            raise ValueError(
                f"{name} is a fraction between 0 and 1; got {value[(value < 0) | (value > 1)][0]}"
            )
    true, false = prior * tpr, (1 - prior) * fpr
    if (true + false == 0).any():
        warnings.warn("PPV is undefined: nobody is called a member", UndefinedMetricWarning, stacklevel=2)
    return np.asarray(ratio(true, true + false))


def _thresholds_of_others(
    scores: np.ndarray, keep: np.ndarray, group: np.ndarray, in_cluster: np.ndarray, allowed: np.ndarray
) -> np.ndarray:
    """The threshold that each cluster meets, float64 `[P]`: just above the first non-member to be rejected."""
    nonmembers = scores[~keep]
    owner = np.broadcast_to(group[:, None], keep.shape)[~keep]
    order = np.argsort(nonmembers)[::-1]
    thresholds = np.empty(len(in_cluster))
    for cluster, (size, k) in enumerate(zip(in_cluster, allowed, strict=True)):
        # The k + 1 highest of the others lie among this many of all.
        highest = order[: k + 1 + size]
        highest = highest[owner[highest] != cluster]
        if k >= len(highest):
            thresholds[cluster] = -np.inf
        else:
            bar = nonmembers[highest[k]]
            thresholds[cluster] = np.nan if bar == np.inf else np.nextafter(bar, np.inf, dtype=bar.dtype)
    return thresholds


def _last_of_others(everything: np.ndarray, by_cluster: np.ndarray, fpr: float) -> np.ndarray:
    """The last candidate at which all clusters but p have at most `fpr` of their false positives, int `[P]` for each p.

    Args:
        everything: false positives of all at each candidate, int `[G]`, ascending.
        by_cluster: of each, int `[P, G]`.
        fpr: a fraction.
    """
    clusters = np.arange(len(by_cluster))
    allowed = allowed_false_positives(fpr, everything[-1] - by_cluster[:, -1])
    # By bisection, for false positives ascend: those at the first candidate, none, are always few enough.
    low, high = np.zeros(len(clusters), np.int64), np.full(len(clusters), len(everything))
    while (high - low > 1).any():
        middle = (low + high) // 2
        passes = everything[middle] - by_cluster[clusters, middle] <= allowed
        low, high = np.where(passes, middle, low), np.where(passes, high, middle)
    return low


def _jackknife_margins(curve: Roc, group: np.ndarray, fpr: float) -> np.ndarray:
    """Half the intervals of mean FPR, mean TPR, pooled FPR, pooled TPR, float64 `[4]`; NaN below four clusters.

    Args:
        curve: with every target a cluster of its own; thresholds are chosen among its candidates.
        group: int `[T]`, the clusters that are left out.
        fpr: as asked.
    """
    P = int(group.max()) + 1
    if P < MIN_CLUSTERS:
        return np.full(4, np.nan)
    false, true = curve.cluster_counts
    totals = np.stack([false[:, -1], true[:, -1]])
    by_cluster = np.zeros((P, false.shape[1]), np.int64)
    np.add.at(by_cluster, group, false)
    everything = by_cluster.sum(axis=0)
    without = np.empty((P, 4))
    for left in range(P):
        index = _last_of_others(everything - by_cluster[left], by_cluster, fpr)[group]
        stay = np.flatnonzero(group != left)
        counts = np.stack([false[stay, index[stay]], true[stay, index[stay]]])
        rates = (counts / totals[:, stay]).mean(axis=1)
        without[left] = [*rates, *(counts.sum(axis=1) / totals[:, stay].sum(axis=1))]
    # A jackknife's squared error is (P - 1) times the variance, with divisor P, of the values without each cluster.
    return np.array([cluster_margin((P - 1) * column) for column in without.T])
