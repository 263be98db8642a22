"""ROC curves at low false-positive rates, from scores and membership alone, with intervals that hold.

Only realised operating points count: nothing is interpolated, and a group of tied scores is one step. The 95 %
intervals of pooled curves resample whole pairs of models, because the scores of one model are not independent. They
are conditional on the examples.

Coverage, by simulation with shared shadow models and a random effect per model (N = 800, FPR 1 %, 100 to 200 runs):
TPR at FPR .905 to .935 at M = 16 and .95 at M = 64; AUC only .845 to .875 and .93, because all targets share
the estimation error of one small pool.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import stats

from lira.membership import is_paired

__all__ = [
    "Estimate",
    "OperatingPoint",
    "Roc",
    "UndefinedMetricWarning",
    "example_tpr",
    "mean_over_targets",
    "roc",
]

RESAMPLES = 1000
# Thresholds that the bootstrap may choose from. Beyond this many the low-FPR end stays complete and the rest is
# spaced by equal ratios of FPR, some 0.2 % apart: far below the standard error it serves.
CANDIDATES = 8192
MIN_CLUSTERS = 4


class UndefinedMetricWarning(UserWarning):
    """A metric is NaN because there are no members or no non-members."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; `low` and `high` are NaN where no interval can be given."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Show `0.614 [0.610, 0.618]`."""
        return f"{self.value:.4g}" + ("" if np.isnan(self.low) else f" [{self.low:.4g}, {self.high:.4g}]")


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
    threshold: float  # predicted member: score >= threshold
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
            return f"unresolvable (floor {self.floor:.2g}; TPR at 0 false positives {self.tpr_at_zero:.3%})"
        text = f"{self.tpr:.3%}"
        if not np.isnan(self.low):
            text += f" [{self.low:.3%}, {self.high:.3%}]"
        if self.allowed < 10:
            text += f" (k = {self.allowed}, true FPR about {self.expected_fpr:.2g})"
        return text


@dataclass(frozen=True, eq=False)
class Roc:
    """The realised operating points of pooled scores, from (0, 0) at threshold infinity to (1, 1).

    K is the number of distinct scores plus one; a score >= `thresholds[i]` is called a member.
    """

    thresholds: np.ndarray  # float [K], descending
    false_positives: np.ndarray  # int64 [K]
    true_positives: np.ndarray  # int64 [K]
    highest_nonmember: np.ndarray  # float [N], each example's highest score among targets that do not hold it
    candidates: np.ndarray  # int64 [G], indices of the points that the bootstrap may choose
    cluster_counts: np.ndarray  # int64 [2, P, G], false and true positives of each cluster at the candidates

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
    def fpr(self) -> np.ndarray:
        """False-positive rates, float64 `[K]`; NaN without non-members."""
        return _ratio(self.false_positives, self.num_nonmembers)

    @property
    def tpr(self) -> np.ndarray:
        """True-positive rates, float64 `[K]`; NaN without members."""
        return _ratio(self.true_positives, self.num_members)

    @cached_property
    def auc(self) -> float:
        """Area under the curve; a tie counts one half."""
        if not self._is_defined("AUC"):
            return float("nan")
        # Integers: twice the area, in units of one member times one non-member, is exact.
        steps = np.diff(self.false_positives)
        heights = self.true_positives[1:] + self.true_positives[:-1]
        return float(np.dot(steps, heights) / (2 * self.num_members * self.num_nonmembers))

    @cached_property
    def balanced_accuracy(self) -> float:
        """The largest (TPR + TNR) / 2 over thresholds, which the target's own membership chooses: optimistic."""
        if not self._is_defined("balanced accuracy"):
            return float("nan")
        return float(0.5 + 0.5 * np.max(self.tpr - self.fpr))

    def tpr_at(self, fpr: float) -> OperatingPoint:
        """The operating point at a false-positive rate, with its interval.

        Args:
            fpr: in [0, 1], a fraction: 1e-3 is 0.1 %.

        Raises:
            ValueError: `fpr` is outside [0, 1].
        """
        if not 0 <= fpr <= 1:
            raise ValueError(f"fpr is a fraction between 0 and 1; got {fpr}")
        n = self.num_nonmembers
        allowed = _allowed(fpr, n)
        index = int(np.searchsorted(self.false_positives, allowed, side="right")) - 1
        threshold, realised = float(self.thresholds[index]), int(self.false_positives[index])
        status = "ok"
        if not self._is_defined("TPR"):
            status, tpr, low, high, at_zero = "undefined", *[float("nan")] * 4
        else:
            at_zero = (
                self.true_positives[np.searchsorted(self.false_positives, 0, side="right") - 1]
                / self.num_members
            )
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

    def band(self, fprs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """TPR and the 95 % interval's ends at each of `fprs [F]`, each float64 `[F]`; NaN ends with too few clusters.

        Estimate +- t(.975, P - 1) bootstrap standard errors over P clusters, clipped to [0, 1]; the threshold is
        chosen anew on every resample.
        """
        allowed = np.array([_allowed(fpr, self.num_nonmembers) for fpr in fprs])
        tpr = self.tpr[np.searchsorted(self.false_positives, allowed, side="right") - 1]
        if self._resamples is None:
            return tpr, np.full(len(tpr), np.nan), np.full(len(tpr), np.nan)
        resampled = np.stack(
            [
                tpr_b[np.searchsorted(fpr_b, fprs * (1 + 1e-12), side="right") - 1]
                for fpr_b, tpr_b in zip(*self._resamples, strict=True)
            ]
        )
        margin = self._t * np.std(resampled, axis=0, ddof=1)
        return tpr, np.maximum(tpr - margin, 0), np.minimum(tpr + margin, 1)

    def auc_interval(self) -> Estimate:
        """AUC with its interval from the same resamples: 95 % nominally, too narrow below some 64 models."""
        if self._resamples is None:
            return Estimate(self.auc, float("nan"), float("nan"))
        fpr, tpr = self._resamples
        # The candidates end at the last threshold; the corner (0, 0) is their first.
        return self._estimate(self.auc, np.sum(np.diff(fpr) * (tpr[:, 1:] + tpr[:, :-1]) / 2, axis=1))

    def balanced_accuracy_interval(self) -> Estimate:
        """Balanced accuracy with its 95 % interval, from the same resamples."""
        if self._resamples is None:
            return Estimate(self.balanced_accuracy, float("nan"), float("nan"))
        fpr, tpr = self._resamples
        return self._estimate(self.balanced_accuracy, 0.5 + 0.5 * np.max(tpr - fpr, axis=1))

    def _estimate(self, value: float, resampled: np.ndarray) -> Estimate:
        margin = self._t * float(np.std(resampled, ddof=1))
        return Estimate(value, max(value - margin, 0.0), min(value + margin, 1.0))

    def _is_defined(self, metric: str) -> bool:
        if self.num_members and self.num_nonmembers:
            return True
        missing = "non-members" if self.num_members else "members"
        warnings.warn(f"{metric} is undefined: there are no {missing}", UndefinedMetricWarning, stacklevel=3)
        return False

    @property
    def _t(self) -> float:
        """Student's quantile for P clusters; the normal one for a single target, whose examples are resampled."""
        return float(
            stats.norm.ppf(0.975) if self.num_clusters == 1 else stats.t.ppf(0.975, self.num_clusters - 1)
        )

    @cached_property
    def _resamples(self) -> tuple[np.ndarray, np.ndarray] | None:
        """FPR and TPR at the candidates in each resample, float64 `[B, G]`; None where there are too few clusters."""
        if not (self.num_members and self.num_nonmembers) or 1 < self.num_clusters < MIN_CLUSTERS:
            return None
        rng = np.random.default_rng(0)  # Fixed, so that a figure is the same each time it is asked for.
        if self.num_clusters == 1:
            # One target: members and non-members are drawn apart, which on the candidates is a multinomial.
            false, true = (
                np.cumsum(rng.multinomial(c[-1], np.diff(c, prepend=0) / c[-1], size=RESAMPLES), axis=1)
                / c[-1]
                for c in self.cluster_counts[:, 0]
            )
            return false, true
        P = self.num_clusters
        draws = rng.multinomial(P, np.full(P, 1 / P), size=RESAMPLES).astype(np.float64)
        false, true = (draws @ counts for counts in self.cluster_counts.astype(np.float64))
        return _ratio(false, false[:, -1:]), _ratio(true, true[:, -1:])


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
    """
    scores, keep = _check(scores, keep)
    T, N = scores.shape
    belongs = (
        (np.arange(T) // 2 if is_paired(keep) else np.arange(T)) if clusters is None else np.asarray(clusters)
    )
    group = np.unique(belongs, return_inverse=True)[1]
    flat = scores.ravel()
    order = np.argsort(flat)[::-1]
    ordered = flat[order]
    member = keep.ravel()[order]
    # One operating point a distinct score: the last of its ties.
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    true = np.cumsum(member, dtype=np.int64)[last]
    false = last + 1 - true
    true, false = np.insert(true, 0, 0), np.insert(false, 0, 0)
    candidates = _candidates(false)
    # Which interval between candidates each score falls into, in descending order of score.
    ends = np.append(0, last + 1)[candidates]
    interval = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    P, G = int(group.max()) + 1, len(candidates)
    cell = (member * P + group[order // N]) * G + interval
    counts = np.bincount(cell, minlength=2 * P * G).reshape(2, P, G)
    return Roc(
        thresholds=np.insert(ordered[last], 0, np.inf),
        false_positives=false,
        true_positives=true,
        highest_nonmember=np.where(keep, -np.inf, scores).max(axis=0),
        candidates=candidates,
        cluster_counts=np.cumsum(counts, axis=2),
    )


def mean_over_targets(scores: np.ndarray, keep: np.ndarray, fprs: list[float]) -> dict[str, Any]:
    """Each target's own AUC and TPR at FPR, averaged: what one attacked model can expect.

    A TPR whose FPR some target cannot resolve (fpr * non-members < 1) is NaN: it is neither averaged nor to be
    compared with pooled figures. The intervals are Student's t over the means of pairs (of targets, where these are
    not paired).

    Returns:
        {"auc": Estimate, "tpr_at_fpr": {fpr: Estimate}}.
    """
    scores, keep = _check(scores, keep)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        aucs = []
        tprs = np.empty((len(scores), len(fprs)))
        for t, (row, member) in enumerate(zip(scores, keep, strict=True)):
            members, nonmembers = np.sort(row[member]), np.sort(row[~member])
            below = np.searchsorted(nonmembers, members, "left") + np.searchsorted(
                nonmembers, members, "right"
            )
            aucs.append(_ratio(below.sum() / 2, len(members) * len(nonmembers)))
            for i, fpr in enumerate(fprs):
                allowed = _allowed(fpr, len(nonmembers))
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


def example_tpr(scores: np.ndarray, keep: np.ndarray, threshold: float) -> np.ndarray:
    """Per-example vulnerability: the share of the models that hold an example whose score for it reaches `threshold`.

    Args:
        scores: float `[T, N]`.
        keep: bool `[T, N]`.
        threshold: one for all, such as that of a global FPR.

    Returns:
        float64 `[N]`, NaN for an example that no target holds.
    """
    scores, keep = _check(scores, keep)
    return _ratio((keep & (scores >= threshold)).sum(axis=0), keep.sum(axis=0))


def _check(scores, keep) -> tuple[np.ndarray, np.ndarray]:
    scores, keep = np.asarray(scores), np.asarray(keep)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"scores must be [targets, examples] and not empty; got shape {scores.shape}")
    if keep.shape != scores.shape or keep.dtype != bool:
        raise ValueError(
            f"keep must be bool of shape {scores.shape} like scores; got {keep.dtype} of shape {keep.shape}"
        )
    nan = np.isnan(scores)
    if nan.any():
        target, example = np.argwhere(nan)[0]
        raise ValueError(
            f"scores[{target}, {example}] is NaN: leave out the targets that could not be attacked"
        )
    return scores, keep


def _allowed(fpr: float, nonmembers: int) -> int:
    """floor(fpr * n), where 0.07 * 100 counts as 7 although it is 7.000000000000001 or 6.999999999999999."""
    return int(np.floor(fpr * nonmembers * (1 + 1e-12)))


def _ratio(count, total):
    """Count / total, NaN where total is 0."""
    total = np.asarray(total, np.float64)
    return count / np.where(total == 0, np.nan, total)


def _candidates(false_positives: np.ndarray) -> np.ndarray:
    """Points worth choosing on a resample: the last at each number of false positives, thinned to CANDIDATES."""
    corners = np.append(np.flatnonzero(np.diff(false_positives)), len(false_positives) - 1)
    if len(corners) > CANDIDATES:
        dense = CANDIDATES // 8
        ratios = np.geomspace(dense, len(corners) - 1, CANDIDATES - dense)
        corners = corners[np.unique(np.concatenate([np.arange(dense), np.round(ratios).astype(int)]))]
    return corners


def _mean(values: np.ndarray, paired: bool) -> Estimate:
    clusters = values.reshape(-1, 2).mean(axis=1) if paired else values
    if len(clusters) < MIN_CLUSTERS or np.isnan(clusters).any():
        return Estimate(float(values.mean()), float("nan"), float("nan"))
    margin = stats.t.ppf(0.975, len(clusters) - 1) * clusters.std(ddof=1) / np.sqrt(len(clusters))
    return Estimate(float(values.mean()), float(values.mean() - margin), float(values.mean() + margin))
