"""How many bits a score gives away about membership, and how wrong the best attacker must be: bounds that hold.

All is for the balanced prior: the attacker is shown a member or a non-member with probability one half each.
"""

import warnings
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from scipy import special

from lira.metrics._shared import (
    UNDEFINED,
    Estimate,
    UndefinedMetricWarning,
    check_scores,
    clusters_of,
    resample_margin,
    resample_rates,
)
from lira.metrics.counting import count_type, descending

__all__ = ["MutualInformation", "bayes_error_bound", "information_bound", "mutual_information"]

# Bins by default. With few scores a bin the bias is not what the second order says: 40 members among 400 scores in 64
# bins seemed to tell .24 bits too much.
BINS = 64


def bayes_error_bound(j: Estimate) -> Estimate:
    """An upper bound on the Bayes error from J on held-out thresholds: P_e <= (1 - J) / 2.

    Any attack's error is an upper bound on the best attack's, so it holds for every J that was not chosen on the
    scores it is measured on: take `youden(...).j`, never the maximum over thresholds. At most 1/2, what guessing
    gives. With J's interval comes the bound's.
    """
    value, low, high = (0.5 * (1 - max(end, 0.0)) for end in (j.value, j.high, j.low))
    return Estimate(value, low, high)


def information_bound(j: Estimate) -> Estimate:
    """A lower bound, in bits, on the information between score and membership: I >= 1 - h((1 - J) / 2).

    By Fano's inequality with the error (1 - J) / 2 of one threshold, h the binary entropy; J must come from held-out
    thresholds, see `bayes_error_bound`. A J of 0 or below bounds nothing: 0.

    There is no upper bound from J. I <= 1 - 2 P_e needs the true Bayes error; with (1 - J) / 2 in its place it reads
    I <= J, which fails where the ROC curve is not concave: N(0, 1) against N(0, 9) has J = .242 and I = .269 bits.
    `mutual_information` estimates I itself.

    >>> str(information_bound(Estimate(0.5, 0.4, 0.6)))
    '0.1887 [0.1187, 0.2781]'
    """
    return Estimate(*(_known_bits(max(end, 0.0)) for end in (j.value, j.low, j.high)))


@dataclass(frozen=True)
class MutualInformation:
    """Information between binned score and membership in bits, with its 95 % interval, and the bias taken off it."""

    bits: Estimate  # after the bias is taken off; slightly negative values are estimates of none
    bias: float  # what noise alone adds to the plug-in estimate
    bins: int  # with any score in them


def mutual_information(
    scores: np.ndarray, keep: np.ndarray, *, bins: int | None = None, clusters: np.ndarray | None = None
) -> MutualInformation:
    """Estimate the information in bits between score and membership, from bins of equal weight.

    The plug-in estimate, members and non-members weighted alike, less its bias to second order (Miller and Madow
    1955): `(bins - 1) / (2 n ln 2)` bits for n scores that tell nothing. That takes scores as independent, and so it
    is too small where those of one target go together. Binning only loses information, so but for its error the
    estimate is not above the truth. The bins' edges are quantiles of all scores, members and non-members weighted alike
    here, too: a few members among many others would all fall into one bin.

    The interval resamples pairs as `Roc`'s does.

    Args:
        scores: float `[T, N]`, higher = more likely a member. +-inf are ordered.
        keep: bool `[T, N]`.
        bins: at least 2; tied scores share one. None: as many as the smaller of members and non-members has scores,
            divided by eight (by five up to eight bins), from 2 to 64. So the mean estimate of 400, 1,000 or 4,000 scores,
            half or a tenth of them members, is within a standard deviation of the truth.
        clusters: int `[T]`, as in `roc`.

    Returns:
        NaN with an UndefinedMetricWarning without members or non-members; no interval between two and three clusters.

    Raises:
        ValueError: fewer than two bins, shapes disagree, or a score is NaN.
    """
    scores, keep = check_scores(scores, keep)
    members = int(keep.sum())
    if bins is None:
        fewer = min(members, keep.size - members)
        bins = int(np.clip(fewer // 8, max(2, min(fewer // 5, 8)), BINS))
    if bins < 2:
        raise ValueError(f"bins must be at least 2; got {bins}")
    if members in (0, keep.size):
        warnings.warn(
            f"mutual information is undefined: there are no {'non-' if members else ''}members",
            UndefinedMetricWarning,
            stacklevel=2,
        )
        return MutualInformation(UNDEFINED, float("nan"), 0)
    group = clusters_of(keep, clusters)
    P = int(group.max()) + 1
    edges = _edges(scores, keep, bins)
    counts = np.zeros((2, P, len(edges) + 1), np.int64)
    for row, held, cluster in zip(scores, keep, group, strict=True):
        # Descending, as `resample_rates` wants thresholds.
        cell = len(edges) - np.searchsorted(edges, row, side="right")
        found = np.bincount((~held) * (len(edges) + 1) + cell, minlength=2 * (len(edges) + 1))
        counts[:, cluster] += found.reshape(2, -1)[::-1]
    totals = counts.sum(axis=1)
    q, p = totals / totals.sum(axis=1, keepdims=True)
    bias = _bias(p, q, members, keep.size - members)
    resampled = resample_rates(np.cumsum(counts, axis=2))
    margin = np.nan
    if resampled is not None:
        q_resampled, p_resampled = (np.diff(rates, axis=1, prepend=0) for rates in resampled)
        margin = float(resample_margin(_information(p_resampled, q_resampled), P))
    value = float(_information(p, q)) - bias
    return MutualInformation(Estimate.around(value, margin), bias, int((totals.sum(axis=0) > 0).sum()))


def _edges(scores: np.ndarray, keep: np.ndarray, bins: int) -> np.ndarray:
    """Lowest score of each bin but the lowest one, ascending; realised scores, so that ties are never parted."""
    ordered, held = descending(scores, keep.astype(np.uint32))
    true = np.cumsum(held, dtype=count_type(len(held)))
    members, others = int(true[-1]), len(true) - int(true[-1])

    def mass(i: int) -> int:
        """Up to the middle of score i; whole numbers, so that rounding moves no edge."""
        found = int(true[i])
        return 2 * (found * others + (i + 1 - found) * members) - (others if held[i] else members)

    wanted = 4 * members * others * np.arange(1, bins) / bins
    at = [bisect_left(range(len(true)), mid, key=mass) - 1 for mid in wanted]
    return np.unique(ordered[np.maximum(at, 0)])


def _known_bits(j: float) -> float:
    """1 - h((1 - j) / 2) in bits, for j in [0, 1]; without the cancellation that its definition suffers near 0."""
    if j >= 1:
        return 1.0
    return float((np.log1p(-j * j) + 2 * j * np.arctanh(j)) / np.log(4))


def _information(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence in bits of distributions p and q over the last axis."""
    mean = 0.5 * (p + q)
    return 0.5 * np.sum(special.rel_entr(p, mean) + special.rel_entr(q, mean), axis=-1) / np.log(2)


def _bias(p: np.ndarray, q: np.ndarray, members: int, nonmembers: int) -> float:
    """Second-order bias in bits of `_information` of frequencies p of members and q of non-members.

    Half the variance of each frequency times the second derivative of the divergence, which is q / (2 p (p + q)) nats
    in p. For p = q and equally many of both it is (bins - 1) / (2 n). A frequency of 0 has no variance.
    """
    total = np.where(p + q > 0, p + q, 1)
    of_members = np.where(p > 0, q * (1 - p) / total, 0) / members
    of_nonmembers = np.where(q > 0, p * (1 - q) / total, 0) / nonmembers
    return float(0.25 * np.sum(of_members + of_nonmembers) / np.log(2))
