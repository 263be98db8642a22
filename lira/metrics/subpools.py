"""Figures that need the attack itself: parts of one pool attacked within themselves.

Shadow models are exchangeable, so rows 0 to m - 1 of a pool of M are a pool of m. Each function takes any callable
`attack(phi [m, N, Q], keep [m, N]) -> scores [m, N]` that leaves the target's pair out, such as those of
`lira.attacks`, with options bound by `functools.partial`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lira.membership import is_paired
from lira.metrics._shared import MIN_CLUSTERS, Estimate, check_fpr, cluster_margin
from lira.metrics.comparison import Compared, Difference, compared, difference_of_curves
from lira.metrics.curve import OperatingPoint, roc
from lira.metrics.examples import Stability, stability
from lira.metrics.thresholds import youden
from lira.numbers import as_array
from lira.signals import ModelRows, SignalArray

__all__ = [
    "Attack",
    "LearningPoint",
    "Rescored",
    "enough_models",
    "learning_curve",
    "rescored_intervals",
    "stability_between_pools",
    "subpool_scores",
]


Attack = Callable[[Any, np.ndarray], np.ndarray]


def subpool_scores(attack: Attack, phi: SignalArray, keep: np.ndarray, size: int) -> np.ndarray:
    """Cut a pool into disjoint sub-pools of `size` models and attack each model by the others of its sub-pool.

    Sub-pools share no models, so what is chosen on one and used on another (thresholds, which examples are at risk)
    is independent of it.

    Args:
        attack: see the module.
        phi: float32 `[M, N, Q]`, an array or lazy: it is read a block of examples at a time, once a sub-pool.
        keep: bool `[M, N]`, rows in complementary pairs.
        size: even, from 4 to M. What M // size sub-pools do not need is left out at the end.

    Returns:
        float32 `[M // size * size, N]`, row t the scores of model t.

    Raises:
        ValueError: `size` does not fit, rows are not paired, or what the attack raises with so few models.
    """
    keep = _check_pool(phi, keep)
    if size % 2 or not 4 <= size <= len(keep):
        raise ValueError(
            f"a sub-pool's size must be even and from 4 to the pool's {len(keep)} models, so that every target has "
            f"others than its pair; got {size}"
        )
    scores = np.empty((len(keep) // size * size, keep.shape[1]), np.float32)
    for start in range(0, len(scores), size):
        rows = np.arange(start, start + size)
        scores[rows] = attack(_rows_of(phi, rows), keep[rows])
    return scores


@dataclass(frozen=True)
class LearningPoint:
    """What an attack achieves with `num_models` models in a pool, pooled over sub-pools of that size."""

    num_models: int
    num_subpools: int
    tpr: OperatingPoint
    auc: Estimate
    shortfall: (
        Difference  # of this size against the largest: the largest's figures less these, on the same targets
    )


def learning_curve(
    attack: Attack, phi: SignalArray, keep: np.ndarray, sizes: Sequence[int], *, fpr: float = 1e-3
) -> list[LearningPoint]:
    """How many shadow models are needed: TPR at FPR and AUC against the number of models, from one pool.

    For each size the pool is cut into disjoint sub-pools, see `subpool_scores`, and the scores of all are pooled, so
    that (nearly) every model is a target at every size and only the number of its opponents changes.

    Intervals resample whole sub-pools, which share nothing, where there are at least four. With fewer they resample
    pairs, which all lean on the same shadow models: too narrow for small sizes, see `Roc`. The shortfall compares the
    same targets at both sizes, resampled alike, in the clusters of the smaller size.

    Args:
        attack: see the module; with options bound, such as an attack that needs few models for the small sizes.
        phi: float32 `[M, N, Q]`, an array or lazy; every size reads it once a sub-pool.
        keep: bool `[M, N]`, rows in complementary pairs.
        sizes: even numbers from 4 to M, such as 4, 8, 16 ... M. Powers of two times one another use all of the pool.
        fpr: a fraction.

    Returns:
        A point for each different size, ascending; the shortfall of the largest is 0.

    Raises:
        ValueError: there is no size or one does not fit, rows are not paired, or what the attack raises.
    """
    check_fpr(fpr)
    keep = _check_pool(phi, keep)
    if not len(sizes):
        raise ValueError("sizes must name at least one number of models, such as [4, 8, 16]; got none")
    points = []
    best = np.empty(0)
    for size in sorted(set(sizes), reverse=True):
        scores = subpool_scores(attack, phi, keep, size)
        if not points:
            best = scores
        clusters = np.arange(len(scores)) // (size if len(scores) // size >= MIN_CLUSTERS else 2)
        # The last models of a pool may not fill a sub-pool of every size.
        common = min(len(scores), len(best))

        def of(scored: np.ndarray, clusters: np.ndarray = clusters, common: int = common) -> Compared:
            return compared(roc(scored[:common], keep[:common], clusters=clusters[:common]), fpr)

        # One curve at a time: each is several times its scores.
        largest = None if scores is best else of(best)
        curve = roc(scores, keep[: len(scores)], clusters=clusters)
        tpr, auc = curve.tpr_at(fpr), curve.auc_interval()
        own = compared(curve, fpr) if common == len(scores) else None
        del curve
        own = own or of(scores)
        shortfall = difference_of_curves(largest or own, own)
        points.append(LearningPoint(size, len(scores) // size, tpr, auc, shortfall))
    return points[::-1]


def enough_models(points: Sequence[LearningPoint], *, tolerance: float = 0.05) -> int | None:
    """The number of shadow models from which on more of them, up to the largest number tried, change little.

    The rule: the smallest size whose shortfall of TPR at FPR against the largest size is at most `tolerance` of the
    largest's TPR *at the upper end of its paired 95 % interval*, and so for every size in between. An interval that is
    too wide to tell therefore counts as not enough. 5 % of the TPR is less than what other choices move: the
    queries alone take CIFAR-10 from 7.5 to 8.4 % (2 to 18 of them, Carlini et al. 2022).

    Args:
        points: from `learning_curve`.
        tolerance: fraction of the largest size's TPR.

    Returns:
        The size, or None where no size below the largest is enough: then the largest may not be either. None too where
        the largest finds nobody.
    """
    enough = None
    ordered = sorted(points, key=lambda point: point.num_models, reverse=True)
    for point in ordered[1:]:
        # Of the same targets, as the shortfall is.
        largest = point.shortfall.tpr.value + point.tpr.tpr
        if not (largest > 0 and point.shortfall.tpr.high <= tolerance * largest):
            break
        enough = point.num_models
    return enough


@dataclass(frozen=True)
class Rescored:
    """Pooled figures with 95 % intervals that see the shadow models' share of the error, too."""

    tpr: Estimate
    auc: Estimate
    balanced_accuracy: Estimate  # the largest over thresholds: optimistic
    j: Estimate  # on held-out thresholds, for `information_bound` and `bayes_error_bound`


def rescored_intervals(
    attack: Attack, phi: SignalArray, keep: np.ndarray, *, fpr: float = 1e-3, groups: int = 16
) -> Rescored:
    """Pooled figures with intervals that hold for small pools: a jackknife over pairs with rescoring.

    `Roc`'s intervals resample targets with their scores held fixed, and do not see that all of them lean on the same
    few shadow models. Here each of `groups` groups of pairs is left out in turn, as targets and as shadow models, and
    the rest is attacked anew. The squared error of the jackknife is too large on average rather than too small (Efron
    and Stein 1981, Ann. Statist. 9). It costs `groups` times the attack: worth while below some 64 models.

    Args:
        attack: see the module.
        phi: float32 `[M, N, Q]`, an array or lazy.
        keep: bool `[M, N]`, rows in complementary pairs.
        fpr: a fraction.
        groups: at least 4; as many as there are pairs if that is fewer. Student's t has groups - 1 degrees of freedom.

    Returns:
        The figures of the whole pool. TPR is NaN where fewer than one false positive is allowed.

    Raises:
        ValueError: fewer than four groups or pairs, rows are not paired, or what the attack raises.
    """
    check_fpr(fpr)
    keep = _check_pool(phi, keep)
    pairs = len(keep) // 2
    groups = min(groups, pairs)
    if groups < 4:
        raise ValueError(f"the jackknife needs at least 4 groups of pairs; got {groups} ({pairs} pairs)")
    left_out = np.arange(len(keep)) // 2 * groups // pairs
    figures = []
    for group in (None, *range(groups)):
        rows = np.flatnonzero(left_out != group) if group is not None else np.arange(len(keep))
        scores = attack(_rows_of(phi, rows), keep[rows])
        curve = roc(scores, keep[rows])
        held_out = youden(scores, keep[rows]).j.value
        figures.append((curve.realised_tpr(fpr), curve.auc, curve.balanced_accuracy, held_out))
    whole, without = figures[0], np.array(figures[1:])
    # A jackknife's squared error is (G - 1) times the variance, with divisor G, of the values without each group.
    margins = [cluster_margin((groups - 1) * column) for column in without.T]
    lowest = (0, 0, 0, -1)
    return Rescored(*map(Estimate.around, whole, margins, lowest, (1, 1, 1, 1)))


def stability_between_pools(
    attack: Attack, phi: SignalArray, keep: np.ndarray, *, fpr: float = 1e-3
) -> Stability:
    """`stability` of vulnerable examples between two halves of a pool, each attacked within itself.

    Would another pool, with other shadow models and other targets, name the same examples? Both pools have half the
    models, so it understates the stability of figures from the whole. Errors are those of `stability` and of
    `subpool_scores`; at least eight models are needed.
    """
    keep = _check_pool(phi, keep)
    half = len(keep) // 4 * 2
    scores = subpool_scores(attack, phi, keep, half)
    return stability(scores, keep[: len(scores)], fpr=fpr)


def _rows_of(phi: SignalArray, rows: np.ndarray) -> SignalArray:
    """Some models of a signal, int `[m]`; of a stored one only these are then read."""
    take = getattr(phi, "take_models", None)
    return ModelRows(phi, rows) if take is None else take(rows)


def _check_pool(phi: SignalArray, keep: np.ndarray) -> np.ndarray:
    keep = as_array(keep)
    if keep.ndim != 2 or keep.dtype != bool or tuple(phi.shape[:2]) != keep.shape:
        raise ValueError(
            f"keep must be bool [models, examples] like phi, whose shape is {tuple(phi.shape)}; got {keep.dtype} of "
            f"shape {keep.shape}"
        )
    if not is_paired(keep):
        raise ValueError(
            "a pool is cut by complementary pairs, keep[2p + 1] = ~keep[2p]; the rows of keep are not paired"
        )
    return keep
