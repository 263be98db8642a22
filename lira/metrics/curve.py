"""ROC curves at low false-positive rates, from scores and membership alone, with intervals that hold.

Only realised operating points count: nothing is interpolated, and a group of tied scores is one step. The 95 %
intervals of pooled curves resample whole pairs of models, because the scores of one model are not independent. They
are conditional on the examples.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lira.metrics._shared import (
    Estimate,
    UndefinedMetricWarning,
    check_fpr,
    check_scores,
    clusters_of,
    resample_margin,
    resample_rates,
)
from lira.metrics.counting import (
    allowed_false_positives,
    area,
    descending,
    largest_gap,
    last_within,
    last_within_each,
    ratio,
    tie_ends,
)

__all__ = ["BYTES_A_SCORE", "OperatingPoint", "Roc", "roc"]

# What `roc` and its intervals take at their peak, in bytes a score, where all scores are distinct.
BYTES_A_SCORE = 40

# Thresholds that the bootstrap may choose from. Beyond this many the low-FPR end stays complete and the rest is
# spaced by equal ratios of FPR, at most some 0.3 % apart: far below the standard error it serves.
CANDIDATES = 4096
# Scores that are counted at a time: their cells stay in a core's cache.
COUNTED = 1 << 17


@dataclass(frozen=True)
class OperatingPoint:
    """The largest realised operating point with FPR <= `fpr`.

    `status` is "ok" (a TPR of 0 is then a measured zero), "unresolvable" (fewer than one false positive is allowed:
    `tpr` is NaN, and `tpr_at_zero` is the TPR at no false positive, at whatever FPR that is), or "undefined" (no
    members or no non-members).
    """

    fpr: float  # as asked
    status: str
    tpr: float
    low: float
    high: float
    threshold: float  # predicted member: score >= threshold; NaN calls nobody a member
    allowed: int  # k = floor(fpr * nonmembers)
    false_positives: int  # realised, at most k
    expected_fpr: (
        float  # (k + 1) / (nonmembers + 1): the true FPR, on average, of a threshold chosen this way
    )
    distinct_examples: int  # that the false positives come from
    nonmembers: int
    tpr_at_zero: float

    @property
    def floor(self) -> float:
        """The lowest FPR that can be resolved, 1 / non-members."""
        return 1 / self.nonmembers if self.nonmembers else float("nan")

    def __str__(self) -> str:
        """Show the TPR with its interval; with fewer than ten false positives, how many and what FPR that means."""
        if self.status == "undefined":
            return "undefined (one class)"
        if self.status == "unresolvable":
            return f"unresolvable (floor {self.floor:.2g}; TPR at 0 false positives {100 * self.tpr_at_zero:.3f} %)"
        text = f"{100 * self.tpr:.3f} %"
        if not np.isnan(self.low):
            text += f" [{100 * self.low:.3f} %, {100 * self.high:.3f} %]"
        if self.allowed < 10:
            text += f" (k = {self.allowed}, true FPR about {self.expected_fpr:.2g})"
        return text


@dataclass(frozen=True, eq=False, repr=False)
class Roc:
    """The realised operating points of pooled scores, from (0, 0), which calls nobody a member, to (1, 1).

    K is the number of distinct scores plus one; a score >= `thresholds[i]` is called a member. The first threshold is
    infinity, and NaN where scores are infinite: no score reaches that, and infinity would call these members.
    """

    thresholds: np.ndarray  # float [K], descending
    false_positives: np.ndarray  # int32 [K], int64 where that does not hold the number of scores
    true_positives: np.ndarray  # the same
    highest_nonmember: np.ndarray
    """float [N], each example's highest score among targets that do not hold it; NaN where all do"""
    candidates: np.ndarray  # int64 [G], indices of the points that the bootstrap may choose
    cluster_counts: np.ndarray  # int64 [2, P, G], false and true positives of each cluster at the candidates

    def __repr__(self) -> str:
        """Figures and sizes; no interval, which takes resamples."""
        counts = f"{self.num_members:,} members, {self.num_nonmembers:,} non-members"
        if not (self.num_members and self.num_nonmembers):
            return f"Roc(undefined: {counts})"
        return f"Roc(AUC {self.auc:.4g}, TPR {100 * self.realised_tpr(1e-3):.3f} % at 0.1 % FPR; {counts})"

    @property
    def num_members(self) -> int:
        """Scores of members, pooled over targets."""
        return int(self.true_positives[-1])

    @property
    def num_nonmembers(self) -> int:
        """Scores of non-members, pooled over targets."""
        return int(self.false_positives[-1])

    @property
    def num_clusters(self) -> int:
        """Independent groups of targets: pairs, or models where these are not paired."""
        return self.cluster_counts.shape[1]

    @property
    def distinct_scores(self) -> int:
        """How many different values the scores take: few for attacks that are step functions of phi."""
        return len(self.thresholds) - 1

    @property
    def fpr(self) -> np.ndarray:
        """False-positive rates, float64 `[K]`; NaN without non-members."""
        return ratio(self.false_positives, self.num_nonmembers)

    @property
    def tpr(self) -> np.ndarray:
        """True-positive rates, float64 `[K]`; NaN without members."""
        return ratio(self.true_positives, self.num_members)

    @cached_property
    def auc(self) -> float:
        """Area under the curve; a tie counts one half."""
        if not self._is_defined("AUC"):
            return float("nan")
        return float(area(self.false_positives, self.true_positives))

    @cached_property
    def balanced_accuracy(self) -> float:
        """The largest (TPR + TNR) / 2 over thresholds, which the target's own membership chooses: optimistic."""
        if not self._is_defined("balanced accuracy"):
            return float("nan")
        best = largest_gap(self.false_positives, self.true_positives)
        tpr = self.true_positives[best] / self.num_members
        return float(0.5 + 0.5 * (tpr - self.false_positives[best] / self.num_nonmembers))

    def tpr_at(self, fpr: float) -> OperatingPoint:
        """The operating point at a false-positive rate, with its interval.

        Args:
            fpr: in [0, 1], a fraction: 1e-3 is 0.1 %.

        Raises:
            ValueError: `fpr` is outside [0, 1].
        """
        check_fpr(fpr)
        n = self.num_nonmembers
        allowed = int(allowed_false_positives(fpr, n))
        index = last_within(self.false_positives, allowed)
        threshold, realised = float(self.thresholds[index]), int(self.false_positives[index])
        status = "ok"
        if not self._is_defined("TPR"):
            status, tpr, low, high, at_zero = "undefined", *[float("nan")] * 4
        else:
            at_zero = self.true_positives[last_within(self.false_positives, 0)] / self.num_members
            tpr, low, high = (float(a[0]) for a in self.band(np.array([fpr])))
            if allowed < 1:
                status, tpr, low, high = "unresolvable", *[float("nan")] * 3
        return OperatingPoint(
            fpr=fpr,
            status=status,
            tpr=tpr,
            low=low,
            high=high,
            threshold=threshold,
            allowed=allowed,
            false_positives=realised,
            expected_fpr=(allowed + 1) / (n + 1),
            distinct_examples=int(np.sum(self.highest_nonmember >= threshold)) if realised else 0,
            nonmembers=n,
            tpr_at_zero=float(at_zero),
        )

    def realised_tpr(self, fpr: float) -> float:
        """`tpr_at(fpr).tpr` without its interval: NaN where fewer than one false positive is allowed."""
        allowed = allowed_false_positives(fpr, self.num_nonmembers)
        return float(self._tpr(allowed)) if allowed >= 1 else float("nan")

    def threshold_at(self, fpr: float) -> float:
        """`tpr_at(fpr).threshold`, which takes no resamples."""
        check_fpr(fpr)
        allowed = allowed_false_positives(fpr, self.num_nonmembers)
        return float(self.thresholds[last_within(self.false_positives, allowed)])

    def _tpr(self, allowed: np.ndarray) -> np.ndarray:
        """TPR at each number of false positives that are allowed."""
        return ratio(self.true_positives[last_within(self.false_positives, allowed)], self.num_members)

    def band(self, fprs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """TPR and the 95 % interval's ends at each of `fprs [F]`, each float64 `[F]`; NaN ends with too few clusters.

        Estimate +- t(.975, P - 1) sqrt(P / (P - 1)) bootstrap standard errors over P clusters, clipped to [0, 1]; the
        threshold is chosen anew on every resample.
        """
        tpr = self._tpr(allowed_false_positives(fprs, self.num_nonmembers))
        resampled = self.resampled_tpr(fprs)
        if resampled is None:
            return tpr, np.full(len(tpr), np.nan), np.full(len(tpr), np.nan)
        margin = resample_margin(resampled, self.num_clusters)
        return tpr, np.maximum(tpr - margin, 0), np.minimum(tpr + margin, 1)

    def auc_interval(self) -> Estimate:
        """AUC with its interval from the same resamples: 95 % nominally, too narrow below some 64 models."""
        return self._interval(self.auc, self.resampled_auc())

    def balanced_accuracy_interval(self) -> Estimate:
        """Balanced accuracy with its interval from the same resamples: 95 % nominally, 87 to 93 % in simulated pools."""
        best = None
        if self._resamples is not None:
            best = np.concatenate([0.5 + 0.5 * np.max(true - false, axis=1) for false, true in self._parts()])
        return self._interval(self.balanced_accuracy, best)

    def resampled_tpr(self, fprs: np.ndarray) -> np.ndarray | None:
        """TPR at each of `fprs [F]` in each resample of the clusters, float64 `[B, F]`; None with too few clusters.

        Curves of equally many clusters are resampled alike, so the differences of two are paired.
        """
        if self._resamples is None:
            return None
        false, true = self._resamples
        return np.take_along_axis(true, last_within_each(false, fprs * (1 + 1e-12)), axis=1)

    def resampled_auc(self) -> np.ndarray | None:
        """AUC in each of the same resamples, float64 `[B]`; None with too few clusters."""
        if self._resamples is None:
            return None
        # The candidates end at the last threshold; the corner (0, 0) is their first.
        return np.concatenate([area(false, true) for false, true in self._parts()])

    def _interval(self, value: float, resampled: np.ndarray | None) -> Estimate:
        margin = np.nan if resampled is None else float(resample_margin(resampled, self.num_clusters))
        return Estimate.around(value, margin, 0, 1)

    def _is_defined(self, metric: str) -> bool:
        if self.num_members and self.num_nonmembers:
            return True
        missing = "non-members" if self.num_members else "members"
        warnings.warn(f"{metric} is undefined: there are no {missing}", UndefinedMetricWarning, stacklevel=3)
        return False

    def _parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The resamples, some at a time, so that what is made of them stays in a core's cache."""
        assert self._resamples is not None
        false, true = (np.array_split(rates, 32) for rates in self._resamples)
        return zip(false, true, strict=True)

    @cached_property
    def _resamples(self) -> tuple[np.ndarray, np.ndarray] | None:
        """FPR and TPR at the candidates in each resample, float64 `[B, G]`; None where there are too few clusters."""
        return resample_rates(self.cluster_counts)


def roc(scores: np.ndarray, keep: np.ndarray, *, clusters: np.ndarray | None = None) -> Roc:
    """Pool the scores of all targets into one ROC curve.

    Args:
        scores: float `[T, N]`, higher = more likely a member. +-inf are ordered.
        keep: bool `[T, N]`, true where the target was trained on the example.
        clusters: int `[T]`, targets that belong together and are resampled together. Default: complementary pairs
            of rows where `keep` has them, else every target by itself. A single target has its members and its
            non-members resampled instead.

    Raises:
        ValueError: shapes disagree, a score is NaN, or there are no scores.

    >>> curve = roc(np.array([[0.9, 0.8, 0.3, 0.1]]), np.array([[True, False, True, False]]))
    >>> curve.auc, curve.distinct_scores, curve.tpr_at(0.5).tpr
    (0.75, 4, 1.0)
    """
    scores, keep = check_scores(scores, keep)
    group = clusters_of(keep, clusters)
    P = int(group.max()) + 1
    cells = keep.astype(np.uint32)
    cells *= np.uint32(P)
    cells += group.astype(np.uint32)[:, None]
    ordered, cells = descending(scores, cells)
    reached = tie_ends(ordered)
    true = np.zeros(len(ordered) + 1, reached.dtype)
    np.cumsum(cells >= P, out=true[1:])
    true = true[reached]
    false = reached - true
    candidates = _candidates(false)
    counts = _count(cells, reached[candidates], 2 * P)
    del cells
    thresholds = np.empty(len(reached), ordered.dtype)
    thresholds[0] = np.nan if ordered[0] == np.inf else np.inf
    thresholds[1:] = ordered[reached[1:] - 1]
    highest = np.max(scores, axis=0, where=~keep, initial=-np.inf)
    return Roc(
        thresholds=thresholds,
        false_positives=false,
        true_positives=true,
        highest_nonmember=np.where(keep.all(axis=0), np.nan, highest).astype(scores.dtype),
        candidates=candidates,
        cluster_counts=counts.reshape(2, P, -1),
    )


def _count(cells: np.ndarray, ends: np.ndarray, kinds: int) -> np.ndarray:
    """How many of the first `ends[g]` cells are of each kind, int64 `[kinds, G]`; the last end is their number."""
    counts = np.zeros((len(ends), kinds), np.int64)
    for start in range(0, len(cells), COUNTED):
        part = cells[start : start + COUNTED]
        stop = start + len(part)
        # The intervals between ends that the part touches, and how much of it lies in each.
        first, last = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop, side="left")
        lengths = np.diff(np.minimum(ends[first : last + 1], stop), prepend=start)
        interval = np.repeat(np.arange(len(lengths)), lengths)
        in_part = np.bincount(interval * kinds + part, minlength=len(lengths) * kinds)
        counts[first : last + 1] += in_part.reshape(-1, kinds)
    return np.ascontiguousarray(np.cumsum(counts, axis=0).T)


def _candidates(false_positives: np.ndarray) -> np.ndarray:
    """Points worth choosing on a resample: the last at each number of false positives, thinned to CANDIDATES."""
    steps = np.flatnonzero(false_positives[1:] != false_positives[:-1])
    corners = np.append(steps, len(false_positives) - 1)
    if len(corners) > CANDIDATES:
        dense = CANDIDATES // 8
        ratios = np.geomspace(dense, len(corners) - 1, CANDIDATES - dense)
        corners = corners[np.unique(np.concatenate([np.arange(dense), np.round(ratios).astype(int)]))]
    return corners
