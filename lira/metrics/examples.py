"""Which examples are at risk: per-example vulnerability, and whether another pool would name the same ones."""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy import special

from lira.metrics._shared import (
    UNDEFINED,
    Estimate,
    UndefinedMetricWarning,
    check_fpr,
    check_scores,
    clusters_of,
)
from lira.metrics.counting import ratio
from lira.metrics.curve import roc
from lira.numbers import as_array, native_floats

__all__ = ["Stability", "example_gap", "example_tpr", "most_and_least_vulnerable", "stability"]

RESAMPLES = 200


@dataclass(frozen=True, eq=False)
class Stability:
    """How far two halves of a pool agree on which examples are vulnerable; 95 % intervals by resampling examples."""

    pearson: Estimate
    spearman: Estimate
    vulnerability: (
        np.ndarray
    )  # float64 [2, N], `example_tpr` in each half; NaN where no target of the half holds it


def example_tpr(scores: np.ndarray, keep: np.ndarray, threshold: float) -> np.ndarray:
    """Per-example vulnerability: the share of the models that hold an example whose score for it reaches `threshold`.

    Args:
        scores: float `[T, N]`.
        keep: bool `[T, N]`.
        threshold: one for all, such as that of a global FPR; NaN, such as that of a curve whose highest scores are
            infinite, calls nobody a member.

    Returns:
        float64 `[N]`, NaN for an example that no target holds.
    """
    scores, keep = check_scores(scores, keep)
    return ratio((keep & (scores >= threshold)).sum(axis=0), keep.sum(axis=0))


def example_gap(scores: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The mean score of the targets that hold an example less that of those that do not, float64 `[N]`.

    Infinite scores count as one beyond the largest finite one; where all targets hold an example, or none, the gap is 0.
    """
    scores, keep = native_floats(scores), as_array(keep)
    held, finite = keep.sum(axis=0), np.isfinite(scores)
    if not finite.all():
        ends = np.min(scores, where=finite, initial=0) - 1, np.max(scores, where=finite, initial=0) + 1
        scores = np.clip(scores, *ends)
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = np.sum(scores, axis=0, where=keep, dtype=np.float64) / held
        outside = np.sum(scores, axis=0, where=~keep, dtype=np.float64) / (len(keep) - held)
        return np.nan_to_num(inside - outside)


def most_and_least_vulnerable(
    scores: np.ndarray, keep: np.ndarray, threshold: float, count: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """The examples that are recognised in the largest, and in the smallest, share of the targets that hold them.

    Ties in that share (`example_tpr`) are broken by `example_gap`.
    Examples that all targets or none hold are left out.

    Args:
        scores: float `[T, N]`.
        keep: bool `[T, N]`.
        threshold: one for all, such as that of a global FPR.
        count: how many of each.

    Returns:
        int `[count]` most vulnerable first, and int `[count]` least vulnerable first; no example is in both.
    """
    scores, keep = check_scores(scores, keep)
    held = keep.sum(axis=0)
    usable = np.flatnonzero((held > 0) & (held < len(keep)))
    if not len(usable):
        return usable, usable
    scores, keep = scores[:, usable], keep[:, usable]
    order = usable[np.lexsort((example_gap(scores, keep), example_tpr(scores, keep, threshold)))]
    count = min(count, len(order) // 2)
    return order[::-1][:count], order[:count]


def stability(scores: np.ndarray, keep: np.ndarray, *, fpr: float = 1e-3) -> Stability:
    """Correlate the examples' vulnerability in the first half of the targets with that in the second half.

    Each half has its own global threshold at `fpr`. Scores that a whole pool made share its shadow models between the
    halves, and with these whether an example's Gaussians came out favourable: examples that do not differ at all agree
    with a rank correlation of .41 that way (M = 256, fixed variance). `stability_between_pools` shares none.

    The intervals resample the examples, each with its two values. An example's two values err independently of each
    other and, but for what whole models have in common, of other examples', so this covers the models' share too.

    Args:
        scores: float `[T, N]`, higher = more likely a member; complementary pairs of rows stay in one half.
        keep: bool `[T, N]`.
        fpr: of the global thresholds, a fraction.

    Returns:
        Correlations in [-1, 1]. NaN with an UndefinedMetricWarning where one half finds all examples alike, as when
        no member is found at this FPR.

    Raises:
        ValueError: fewer than two clusters (pairs, or models where these are not paired), shapes disagree, NaN.
    """
    scores, keep = check_scores(scores, keep)
    check_fpr(fpr)
    group = clusters_of(keep)
    clusters = int(group[-1]) + 1
    if clusters < 2:
        raise ValueError(
            f"stability compares two halves of the pool: give at least two pairs; got {clusters}"
        )
    halves = []
    for half in (group < clusters // 2, group >= clusters - clusters // 2):
        threshold = roc(scores[half], keep[half]).threshold_at(fpr)
        halves.append(example_tpr(scores[half], keep[half], threshold))
    vulnerability = np.stack(halves)
    both = vulnerability[:, ~np.isnan(vulnerability).any(axis=0)]
    if both.shape[1] < 2 or (both == both[:, :1]).all(axis=1).any():
        warnings.warn(
            f"stability is undefined: at FPR {fpr:g} a half of the pool finds all examples equally vulnerable",
            UndefinedMetricWarning,
            stacklevel=2,
        )
        return Stability(UNDEFINED, UNDEFINED, vulnerability)
    rng = np.random.default_rng(0)
    resampled = []
    for _ in range(RESAMPLES):
        drawn = both[:, rng.integers(both.shape[1], size=both.shape[1])]
        if not (drawn == drawn[:, :1]).all(axis=1).any():
            resampled.append(_correlations(drawn))
    margins = special.ndtri(0.975) * np.std(resampled, axis=0, ddof=1)
    pearson, spearman = (
        Estimate.around(value, margin, -1, 1)
        for value, margin in zip(_correlations(both), margins, strict=True)
    )
    return Stability(pearson, spearman, vulnerability)


def _correlations(values: np.ndarray) -> tuple[float, float]:
    """Pearson's and Spearman's correlation of two rows."""
    from scipy import stats  # slow to import, and needed here alone

    return np.corrcoef(values)[0, 1], np.corrcoef(stats.rankdata(values, axis=1))[0, 1]
