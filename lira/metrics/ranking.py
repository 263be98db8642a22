"""Every example's place among all: rates with intervals, ranks, and whether halves of the pool or attacks agree.

All count the scores above a bar, `threshold_above`: the highest score of a non-member that is turned away. Counting what
is above it, and not what reaches the next realised score, holds where scores are infinite or tie.
"""

from typing import NamedTuple

import numpy as np
from scipy import special

from lira.metrics._shared import check_fpr, check_scores, clusters_of
from lira.metrics.counting import allowed_false_positives, ratio
from lira.metrics.examples import example_gap
from lira.numbers import as_array, native_floats

__all__ = [
    "ExampleRates",
    "example_rates",
    "jaccard",
    "rank_examples",
    "rate_interval",
    "shares_reaching",
    "threshold_above",
    "top_examples",
    "top_in_halves",
]

# Random splits of the pool, each into two halves.
SPLITS = 5


class ExampleRates(NamedTuple):
    """In how many of the targets that hold an example it is found, and what share that is."""

    found: np.ndarray  # int64 [N]
    held: np.ndarray  # int64 [N]
    tpr: np.ndarray  # float64 [N], NaN where no target holds it
    low: np.ndarray  # float64 [N], `rate_interval`
    high: np.ndarray  # float64 [N]


def threshold_above(scores: np.ndarray, keep: np.ndarray, fpr: float) -> float:
    """The bar of a global FPR: of the non-members' scores, pooled over targets, at most `fpr` lie above it.

    `scores > threshold_above(...)` calls the same members as `scores >= roc(...).tpr_at(fpr).threshold`, at a small
    part of the time.

    Args:
        scores: float `[T, N]`.
        keep: bool `[T, N]`.
        fpr: a fraction below 1. Where it allows no false positive the bar is the highest score of a non-member.

    Returns:
        Infinity where infinite scores of non-members leave nothing above them; NaN without non-members.

    Raises:
        ValueError: shapes disagree, a score is NaN, or `fpr` is outside [0, 1].
    """
    scores, keep = check_scores(scores, keep)
    check_fpr(fpr)
    nonmembers = scores[~keep]
    if not len(nonmembers):
        return float("nan")
    rejected = min(int(allowed_false_positives(fpr, len(nonmembers))), len(nonmembers) - 1)
    return float(-np.partition(-nonmembers, rejected)[rejected])


def example_rates(scores: np.ndarray, keep: np.ndarray, bar: float) -> ExampleRates:
    """Each example's vulnerability: the share of the targets that hold it whose score for it lies above the bar.

    Args:
        scores: float `[T, N]`.
        keep: bool `[T, N]`.
        bar: one for all, from `threshold_above`; NaN leaves every share undefined.
    """
    scores, keep = check_scores(scores, keep)
    held = keep.sum(axis=0)
    found = np.sum(keep & (scores > bar), axis=0)
    tpr, (low, high) = ratio(found, held), rate_interval(found, held)
    if np.isnan(bar):
        tpr, low, high = (np.full(len(held), np.nan) for _ in range(3))
    return ExampleRates(found, held, tpr, low, high)


def rate_interval(count: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of Clopper and Pearson (1934) for a binomial share.

    Of all binomial intervals it is the one whose coverage is nowhere below 95 %, however few the trials are; Wilson's is
    shorter, and falls to 83 % at shares near 0 and 1. It takes the trials, here the models that hold an example, as
    independent and the threshold as given.

    Args:
        count: int `[...]`, how many of
        total: int `[...]`.

    Returns:
        The ends, float64 `[...]` each; NaN where `total` is 0.

    >>> low, high = rate_interval(np.array([0, 4]), np.array([4, 4]))
    >>> low.round(3), high.round(3)
    (array([0.   , 0.398]), array([0.602, 1.   ]))
    """
    count, total = np.broadcast_arrays(np.asarray(count, np.int64), np.asarray(total, np.int64))
    # There are few different pairs of the two, and an interval takes time.
    pairs, inverse = np.unique(np.stack([count.ravel(), total.ravel()]), axis=1, return_inverse=True)
    k, n = pairs.astype(np.float64)
    low = np.where(k == 0, 0.0, special.betaincinv(np.maximum(k, 1), n - k + 1, 0.025))
    high = np.where(k == n, 1.0, special.betaincinv(k + 1, np.maximum(n - k, 1), 0.975))
    low, high = (np.where(n == 0, np.nan, end)[inverse].reshape(count.shape) for end in (low, high))
    return low, high


def rank_examples(*keys: np.ndarray) -> np.ndarray:
    """Ranks from 1, the highest first, by the first key and where that ties by the next.

    Args:
        *keys: float `[N]` each, the first above all.

    Returns:
        float64 `[N]`: one more than the number of examples that stand above. Examples that all keys tie share it. NaN
        where the first key is NaN.

    >>> rank_examples(np.array([0.5, 1, 0.5, np.nan]), np.array([3.0, 0, 3, 9]))
    array([ 2.,  1.,  2., nan])
    """
    columns = [native_floats(key) for key in keys]
    ranks = np.full(len(columns[0]), np.nan)
    known = np.flatnonzero(~np.isnan(columns[0]))
    order = np.lexsort([-column[known] for column in reversed(columns)])
    ordered = np.stack([column[known][order] for column in columns])
    is_first = np.append(True, (ordered[:, 1:] != ordered[:, :-1]).any(axis=0))[: len(known)]
    ranks[known[order]] = np.maximum.accumulate(np.where(is_first, np.arange(len(known)), 0)) + 1
    return ranks


def top_examples(ranks: np.ndarray, count: int) -> np.ndarray:
    """Which examples are among the first `count`, bool `[N]`, from their ranks.

    Examples that tie across the last place are all left out: nothing says which of them belongs there.
    """
    # How many rank as high as each, itself and its ties included.
    reached = np.searchsorted(np.sort(ranks), ranks, side="right")
    return ~np.isnan(ranks) & (reached <= count)


def top_in_halves(scores: np.ndarray, keep: np.ndarray, fpr: float, count: int) -> tuple[np.ndarray, int]:
    """In how many halves of the pool each example is among the `count` most vulnerable.

    The pool is split at random SPLITS times into two halves that share no model, complementary pairs together; each half
    has its own bar at `fpr` and its own ranks, by vulnerability and where that ties by `example_gap`. The scores stay as
    the whole pool made them: see `stability` for what the halves share by that. Below some six pairs the splits repeat.

    Args:
        scores: float `[T, N]`.
        keep: bool `[T, N]`.
        fpr: a fraction.
        count: how many are at the top.

    Returns:
        int64 `[N]`, and of how many halves: 2 SPLITS, 0 for a single pair or target.
    """
    scores, keep = check_scores(scores, keep)
    group = clusters_of(keep)
    clusters, times = int(group.max()) + 1, np.zeros(keep.shape[1], np.int64)
    if clusters < 2:
        return times, 0
    rng = np.random.default_rng(0)
    for _ in range(SPLITS):
        order = rng.permutation(clusters)
        for chosen in (order[: clusters // 2], order[clusters // 2 : clusters // 2 * 2]):
            half = np.isin(group, chosen)
            s, k = scores[half], keep[half]
            rates = example_rates(s, k, threshold_above(s, k, fpr))
            times += top_examples(rank_examples(rates.tpr, example_gap(s, k)), count)
    return times, 2 * SPLITS


def shares_reaching(score: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Of one target, the share of its non-members whose score reaches each example's: the FPR that finding it costs.

    Args:
        score: float `[N]`.
        keep: bool `[N]`.

    Returns:
        float64 `[N]`; a non-member reaches its own score. NaN without non-members.
    """
    score, keep = native_floats(score), as_array(keep)
    nonmembers = np.sort(score[~keep])
    below = np.searchsorted(nonmembers, score, side="left")
    return ratio(len(nonmembers) - below, len(nonmembers))


def jaccard(sets: np.ndarray) -> np.ndarray:
    """How far sets agree: the members of both over the members of either.

    Args:
        sets: bool `[A, N]`.

    Returns:
        float64 `[A, A]`; NaN for two empty sets.

    >>> jaccard(np.array([[True, True, False], [False, True, True]]))[0, 1].round(3)
    np.float64(0.333)
    """
    both = sets.astype(np.float64) @ sets.T.astype(np.float64)
    sizes = sets.sum(axis=1)
    return ratio(both, sizes[:, None] + sizes - both)
