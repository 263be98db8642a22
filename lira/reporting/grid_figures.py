"""What a grid's settings come to on the same targets: utility against leakage, differences pair by pair, the front."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from lira.epsilon import pool_epsilon
from lira.learning.accounting import Guarantee
from lira.metrics import Difference, Estimate, OperatingPoint, Roc, roc
from lira.metrics._shared import UNDEFINED, cluster_margin, clusters_of
from lira.metrics.comparison import Compared, compared, difference_of_curves
from lira.reporting.implied import DELTA, why_no_epsilon
from lira.reporting.measured import FPRS, LOW_FPR, interval_note

__all__ = [
    "CONFIDENCE",
    "AttackRate",
    "Bound",
    "GridDifference",
    "GridFigures",
    "Measurement",
    "SettingFigures",
    "measure_grid",
    "pareto_front",
]

# Of a lower bound by itself, and of all those of a grid together.
CONFIDENCE = 0.95


class AttackRate(NamedTuple):
    """An attack's TPR at some FPR, with its 95 % interval; NaN where there is none."""

    attack: str
    tpr: float
    low: float
    high: float


class Bound(NamedTuple):
    """A lower bound on the epsilon of a setting's training."""

    alone: float  # with 95 %, by itself
    together: float  # so that those of all settings hold together with 95 %


class Measurement(NamedTuple):
    """What is known of one setting's models, before anything is measured on them."""

    values: Mapping[str, Any]  # of the fields that are varied
    directory: str  # of its run, within the grid's
    targets: np.ndarray  # int [T], ascending
    # float [T, N], of the grid's attack; NaN for all targets at examples that it leaves out
    scores: np.ndarray
    keep: np.ndarray  # bool [T, N]
    accuracy: np.ndarray  # float [T], on the test set, or on examples that a model was not trained on
    accuracy_in: np.ndarray  # float [T], on members
    proven: Guarantee | None = None
    # Of every attack, by FPR where it is resolved.
    rates: Mapping[float, Sequence[AttackRate]] = MappingProxyType({})


@dataclass(frozen=True)
class SettingFigures:
    """What was measured of one setting."""

    values: Mapping[str, Any]
    directory: str
    accuracy: float  # mean over the models
    spread: float  # their standard deviation; NaN of one
    accuracy_in: float
    tpr: OperatingPoint | None  # at the grid's FPR; None where none can be resolved
    auc: Estimate
    strongest: AttackRate | None  # of all attacks, chosen by the figure itself; None where none is known
    epsilon: Bound | None  # at `delta`; None where none is claimed
    delta: float
    proven: Guarantee | None

    @property
    def leakage(self) -> float:
        """What the front is of, beside accuracy: the TPR, or the AUC where that cannot be resolved."""
        return self.auc.value if self.tpr is None else self.tpr.tpr


class GridDifference(NamedTuple):
    """One setting less another on the same targets, with 95 % intervals of the paired difference."""

    accuracy: Estimate
    tpr: Estimate  # NaN where it cannot be resolved
    auc: Estimate


@dataclass(frozen=True)
class GridFigures:
    """What was measured of all settings, on the targets that are usable in each."""

    settings: dict[str, SettingFigures]
    differences: dict[
        tuple[str, str], GridDifference
    ]  # of a setting and one before it: the first less the second
    reference: str  # with which all others are compared
    front: tuple[str, ...]  # settings that no other one beats in accuracy and leakage at once
    attack: str
    fpr: float | None  # of the TPRs; None where no listed one from 0.1 % on can be resolved
    side: str  # of the accuracies: "test" or "out"
    interval: str  # what the intervals of TPR and AUC are
    num_models: int
    num_examples: int  # that the attack scores in every setting
    confidence: float  # of each `Bound.together`
    no_epsilon: str | None  # why none is claimed; None where one is

    def difference(self, a: str, b: str) -> GridDifference:
        """Setting a less setting b."""
        if (a, b) in self.differences:
            return self.differences[a, b]
        return GridDifference(*(_negative(each) for each in self.differences[b, a]))


def _pool_epsilon(scores: np.ndarray, keep: np.ndarray, delta: float, confidence: float) -> float:
    return pool_epsilon(scores, keep, independent=True, delta=delta, confidence=confidence).epsilon


def measure_grid(
    measured: Mapping[str, Measurement],
    *,
    attack: str,
    side: str,
    reference: str = "",
    independent: bool = False,
) -> GridFigures:
    """Measure settings that were attacked by the same attack on the same memberships.

    A lower bound on epsilon is given by itself, with 95 %, and such that those of all S settings hold together with 95 %,
    each with 1 - 5 % / S (Bonferroni), so that one may be picked. Intervals of TPRs, AUCs and differences are each by itself.

    Args:
        measured: by setting, one or more.
        attack: whose scores they are.
        side: which examples the accuracies are on, test or out.
        reference: the setting that others are compared with; the first where it is none of them.
        independent: whether memberships are known to be independent coins, see `implied.leakage`.

    Raises:
        ValueError: no target is usable in all of them, or their memberships differ.
    """
    targets = _common_targets(measured)
    measured, all_scored = _scored_in_all(measured)
    first = next(iter(measured.values()))
    keep = first.keep[np.isin(first.targets, targets)]
    group = clusters_of(keep)
    # Examples that were chosen by their counts are no independent coins.
    why = why_no_epsilon(independent and all_scored)
    fpr = next((each for each in FPRS if each >= LOW_FPR and each * np.sum(~keep) >= 1), None)
    default = next((each.proven.delta for each in measured.values() if each.proven is not None), DELTA)
    levels = CONFIDENCE, 1 - (1 - CONFIDENCE) / len(measured)
    settings, curves, accuracies = {}, {}, {}
    for name, each in measured.items():
        rows = np.isin(each.targets, targets)
        if not np.array_equal(each.keep[rows], keep):
            raise ValueError(f"setting {name} has other memberships: settings are compared on the same ones")
        curve = roc(each.scores[rows], keep)
        delta = default if each.proven is None else each.proven.delta
        settings[name] = _figures(
            each,
            rows,
            curve,
            fpr,
            None if why else Bound(*(_pool_epsilon(each.scores[rows], keep, delta, c) for c in levels)),
            delta,
        )
        curves[name] = compared(curve, LOW_FPR if fpr is None else fpr)
        accuracies[name] = np.bincount(group, each.accuracy[rows]) / np.bincount(group)
    return GridFigures(
        settings,
        {
            (b, a): _difference(curves[b], curves[a], accuracies[b] - accuracies[a], fpr is not None)
            for a, b in itertools.combinations(settings, 2)
        },
        reference if reference in settings else next(iter(settings)),
        _front(settings),
        attack,
        fpr,
        side,
        interval_note(keep),
        len(keep),
        keep.shape[1],
        levels[1],
        why,
    )


def _figures(
    measured: Measurement,
    rows: np.ndarray,
    curve: Roc,
    fpr: float | None,
    epsilon: Bound | None,
    delta: float,
) -> SettingFigures:
    """Of one setting over some of its targets, bool `rows [T]`."""
    accuracy = measured.accuracy[rows].astype(np.float64)
    return SettingFigures(
        measured.values,
        measured.directory,
        float(accuracy.mean()),
        float(np.std(accuracy, ddof=1)) if len(accuracy) > 1 else float("nan"),
        float(measured.accuracy_in[rows].mean()),
        None if fpr is None else curve.tpr_at(fpr),
        curve.auc_interval(),
        None if fpr is None else max(measured.rates.get(fpr, ()), key=lambda rate: rate.tpr, default=None),
        epsilon,
        delta,
        measured.proven,
    )


def _front(settings: Mapping[str, SettingFigures]) -> tuple[str, ...]:
    """The settings on the front, in their order."""
    accuracies, leakages = zip(*((each.accuracy, each.leakage) for each in settings.values()), strict=True)
    return tuple(name for name, on in zip(settings, pareto_front(accuracies, leakages), strict=True) if on)


def pareto_front(utility: Sequence[float] | np.ndarray, leakage: Sequence[float] | np.ndarray) -> np.ndarray:
    """Which points no other one beats: none has as much utility and as little leakage, and more or less of one.

    Args:
        utility: float `[S]`, higher is better.
        leakage: float `[S]`, lower is better.

    Returns:
        bool `[S]`; false where either is NaN.

    >>> pareto_front([0.9, 0.8, 0.8], [0.1, 0.02, 0.05]).tolist()
    [True, True, False]
    """
    u, v = np.asarray(utility, float), np.asarray(leakage, float)
    as_good = (u[:, None] >= u) & (v[:, None] <= v)  # [other, point]
    better = (u[:, None] > u) | (v[:, None] < v)
    return ~(as_good & better).any(axis=0) & ~np.isnan(u) & ~np.isnan(v)


def _common_targets(measured: Mapping[str, Measurement]) -> np.ndarray:
    """The targets that are usable in every setting, int `[T]`."""
    each = [measurement.targets for measurement in measured.values()]
    common = each[0]
    for other in each[1:]:
        common = np.intersect1d(common, other)
    if not len(common):
        raise ValueError("no model is usable in every setting: nothing is to be compared")
    return common


def _scored_in_all(measured: Mapping[str, Measurement]) -> tuple[dict[str, Measurement], bool]:
    """The settings at the examples that the attack scores in each of them, and whether these are all.

    In thin designs it leaves out some, and other ones where other models diverged, see `suite.call_where_enough`.
    """
    scored = np.logical_and.reduce([~np.isnan(each.scores).all(axis=0) for each in measured.values()])
    if scored.all():
        return dict(measured), True
    return {
        name: each._replace(scores=each.scores[:, scored], keep=each.keep[:, scored])
        for name, each in measured.items()
    }, False


def _difference(a: Compared, b: Compared, accuracies: np.ndarray, resolved: bool) -> GridDifference:
    """Of two settings: their curves, and the difference in accuracy of each cluster of targets."""
    if a.num_clusters < 2:  # the draws of one target's members are not the same for both
        a = a._replace(resampled=None)
    curves: Difference = difference_of_curves(a, b)
    accuracy = Estimate.around(float(accuracies.mean()), cluster_margin(accuracies), -1, 1)
    return GridDifference(accuracy, curves.tpr if resolved else UNDEFINED, curves.auc)


def _negative(estimate: Estimate) -> Estimate:
    return Estimate(-estimate.value, -estimate.high, -estimate.low)
