"""From scores to figures: every attack's, with their intervals, and the curves to draw."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lira.attacks import PValues
from lira.attacks._pool import MANY_MODELS
from lira.engine.trained import Check
from lira.epsilon import EpsilonBound
from lira.learning.accounting import Guarantee
from lira.membership import is_paired
from lira.metrics import (
    MIN_CLUSTERS,
    CalibratedPoint,
    Estimate,
    NamedMembers,
    OperatingPoint,
    Roc,
    calibrated_tpr,
    mean_over_targets,
    named_members,
    roc,
    scored_part,
)
from lira.metrics.counting import last_within
from lira.metrics.curve import BYTES_A_SCORE
from lira.parallel import give_memory_back, side_by_side
from lira.reporting.implied import Leakage, leakage

__all__ = [
    "DISCOVERY_RATE",
    "FPRS",
    "LOW_FPR",
    "AttackFigures",
    "Calibrated",
    "CanaryFigures",
    "Curve",
    "MeanRate",
    "Measured",
    "Subject",
    "calibrate",
    "headline_attack",
    "interval_note",
    "low_fpr_threshold",
    "lowest_resolved",
    "measure",
    "measure_attacks",
    "strongest_attack",
    "thinned",
]

FPRS = (1e-5, 1e-4, 1e-3, 1e-2)
# The operating point that headlines, legends and per-example figures quote.
LOW_FPR = 1e-3
CURVE_POINTS = 2000
# Of those who are named members, at most so many are wrong on average.
DISCOVERY_RATE = 0.05


@dataclass(frozen=True, eq=False, repr=False)
class Curve:
    """A pooled ROC curve thinned for drawing: G realised operating points, the first at no false positive."""

    fpr: np.ndarray  # float64 [G], ascending from 0
    tpr: np.ndarray  # float64 [G]
    low: np.ndarray  # float64 [G], the 95 % interval's ends; NaN where there is none
    high: np.ndarray  # float64 [G]
    num_nonmembers: int
    auc: float
    low_fpr_tpr: float  # TPR at 0.1 % FPR; NaN where that is not resolvable

    def __repr__(self) -> str:
        """Its figures, not its points."""
        return f"Curve({len(self.fpr):,} points, AUC {self.auc:.4g}, TPR {100 * self.low_fpr_tpr:.3f} % at 0.1 % FPR)"

    @property
    def floor(self) -> float:
        """The lowest FPR that can be resolved, 1 / non-members."""
        return 1 / self.num_nonmembers


class MeanRate(NamedTuple):
    """A TPR at an FPR, averaged over targets."""

    tpr: Estimate  # NaN unless `status` is "ok"
    status: str  # "ok", "unresolvable" (by some target) or "undefined"
    floor: float  # the lowest FPR that every target resolves; NaN where one has no non-members


@dataclass(frozen=True, eq=False)
class AttackFigures:
    """What was measured of one attack: pooled over targets, and averaged over them."""

    auc: Estimate
    balanced_accuracy: Estimate
    tpr_at: dict[float, OperatingPoint]  # by FPR, those of FPRS
    mean_auc: Estimate
    mean_tpr_at: dict[float, MeanRate]
    curve: Curve | None  # None where it is undefined: no members or no non-members
    left_out: (
        np.ndarray
    )  # int, examples that it does not score, see `suite.call_where_enough`; figures are of the others


class Calibrated(NamedTuple):
    """What p-values say, every example having the same one for its threshold."""

    points: dict[float, CalibratedPoint]  # by FPR, those of FPRS
    named: NamedMembers


@dataclass(frozen=True, eq=False)
class CanaryFigures:
    """What was measured of a pool's canaries, which are in no other figure."""

    kind: str
    count: int
    attacks: dict[str, AttackFigures]  # the headline attack, and what a model by itself gives away
    epsilon: EpsilonBound | None
    """of the training, by `epsilon_attack` over all targets; None without `jax_privacy`, or such an attack"""
    epsilon_attack: str | None
    """the first that scores all canaries: coins of those that were chosen by their counts are not fair"""


@dataclass(frozen=True)
class Subject:
    """What was attacked, as far as it is known; accuracies are means over the models, NaN where they are not known."""

    dataset: str = ""  # the source, as in config.toml
    model: str = ""  # the recipe's
    num_examples: int = 0  # of the data set
    num_models: int = 0  # that attack
    outside: bool = False  # whether what is attacked is none of these
    queries: int = 0
    design: str = ""  # of the memberships, as in config.toml
    accuracy_in: float = float("nan")  # on members, what a model was trained on
    accuracy_out: float = float("nan")  # on the other examples
    accuracy_test: float = float("nan")


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured of every attack on the same targets."""

    interval: str  # what the intervals of pooled figures are
    num_models: int  # attacked
    num_examples: int
    num_members: int  # scores of members, pooled over targets
    num_nonmembers: int
    attacks: dict[str, AttackFigures]
    headline: str
    """the attack that leads, declared before any score was seen: see `headline_attack`"""
    implied: Leakage | None
    """by the headline attack; None without members or non-members"""
    models: list[int] | None  # indices of those attacked
    calibrated: dict[str, Calibrated]
    """by attack, and "conformal", see `suite.pool_p_values`; empty where no p-values were given"""
    pool: list[int] | None = None  # indices of all models of the run, attacked or not; None without a run
    subject: Subject = Subject()
    checks: tuple[Check, ...] = ()
    warnings: tuple[str, ...] = ()  # that were given on the way
    selected: tuple[str, ...] | None = None  # attacks that were asked for; None: all
    canaries: CanaryFigures | None = None  # None without any

    @property
    def curves(self) -> dict[str, Curve]:
        """The curves to draw, of the attacks that have one."""
        return {name: each.curve for name, each in self.attacks.items() if each.curve is not None}


def measure(
    scores: Mapping[str, np.ndarray],
    keep: np.ndarray,
    models: list[int] | None = None,
    *,
    independent: bool = False,
    calibrated: Mapping[str, Calibrated] | None = None,
    headline: str | None = None,
    num_shadows: int | None = None,
    proven: Guarantee | None = None,
) -> Measured:
    """Measure every attack, and what the headline attack implies.

    Args:
        scores: float `[T, N]` by attack, higher = more likely a member; NaN for all targets at examples that an attack
            leaves out. They are asked for one by one, and let go, so
            that a mapping may read them when it is asked.
        keep: bool `[T, N]`, true where the target was trained on the example.
        models: indices of the targets, for metrics.json.
        independent: as in `leakage`.
        calibrated: of the same targets, from `calibrate`; None goes without.
        headline: the attack that leads; None: `headline_attack` of pools of `num_shadows` models.
        num_shadows: models of the pool that attacks, targets among them; None: the targets alone.
        proven: as in `leakage`.

    Raises:
        ValueError: there is no attack, or not the headline's; shapes disagree, or a score is NaN where others are not.
    """
    if not scores:
        raise ValueError("scores holds no attack: give at least one array [targets, examples] by name")
    keep = np.asarray(keep)
    (T, N), members = keep.shape, int(keep.sum())
    if headline is not None and headline not in scores:
        raise ValueError(
            f"the headline attack {headline!r} is not among those that were run: {', '.join(scores)}"
        )
    headline = headline or headline_attack(scores, T if num_shadows is None else num_shadows)
    attacks, implied = measure_attacks(scores, keep), None
    if 0 < members < keep.size:
        theirs, held, scored = scored_part(scores[headline], keep)
        # Examples that were chosen by their counts are no independent coins.
        implied = leakage(
            theirs, held, fpr=LOW_FPR, independent=independent and len(scored) == N, proven=proven
        )
    return Measured(
        interval_note(keep),
        T,
        N,
        members,
        T * N - members,
        attacks,
        headline,
        implied,
        models,
        dict(calibrated or {}),
    )


def calibrate(
    p_values: Iterable[tuple[str, PValues]], keep: np.ndarray
) -> tuple[dict[str, Calibrated], tuple[str, np.ndarray] | None]:
    """Measure p-values of bool `keep [T, N]`, from `suite.pool_p_values`, one after the other.

    Returns:
        By attack what they say; and the first that has its own, with its p-values float64 `[T, N]`, None without any.
        The others are let go.
    """
    measured, first = {}, None
    for name, p in p_values:
        points = {fpr: calibrated_tpr(p.values, keep, fpr, smallest=p.smallest) for fpr in FPRS}
        measured[name] = Calibrated(points, named_members(p.values, keep, DISCOVERY_RATE))
        if first is None and name != "conformal":
            first = name, p.values
        del p  # before the next are computed
        give_memory_back()
    return measured, first


def measure_attacks(scores: Mapping[str, np.ndarray], keep: np.ndarray) -> dict[str, AttackFigures]:
    """Measure attacks, those of different cores side by side: one full ROC curve is held for each."""
    names = list(scores)
    measured = side_by_side(
        lambda name: _measure(scores[name], keep), names, bytes_each=BYTES_A_SCORE * keep.size
    )
    return dict(zip(names, measured, strict=True))


def _measure(scores: np.ndarray, keep: np.ndarray) -> AttackFigures:
    N = keep.shape[1]
    scores, keep, scored = scored_part(scores, keep)
    left_out = np.setdiff1d(np.arange(N), scored)
    curve = roc(scores, keep)
    points = {fpr: curve.tpr_at(fpr) for fpr in FPRS}
    means = mean_over_targets(scores, keep, list(FPRS))
    # Every target must resolve an FPR before its TPR may be averaged.
    fewest = int(np.min(np.sum(~keep, axis=1)))
    undefined = not fewest or not keep.any(axis=1).all()
    floor = 1 / fewest if fewest else float("nan")

    def mean_rate(tpr: Estimate) -> MeanRate:
        status = "undefined" if undefined else "ok" if np.isfinite(tpr.value) else "unresolvable"
        return MeanRate(tpr, status, floor)

    return AttackFigures(
        curve.auc_interval(),
        curve.balanced_accuracy_interval(),
        points,
        means["auc"],
        {fpr: mean_rate(tpr) for fpr, tpr in means["tpr_at_fpr"].items()},
        thinned(curve, points[LOW_FPR].tpr) if curve.num_members and curve.num_nonmembers else None,
        left_out,
    )


def thinned(curve: Roc, low_fpr_tpr: float | None = None) -> Curve:
    """A curve for drawing: the last point at each of some 2,000 log-spaced numbers of false positives, and of none.

    `low_fpr_tpr` is its TPR at 0.1 % FPR, where that is known already.
    """
    if not (curve.num_members and curve.num_nonmembers):
        raise ValueError("there are no members, or no non-members: a curve of one class is undefined")
    if low_fpr_tpr is None:
        low_fpr_tpr = curve.realised_tpr(LOW_FPR)
    false = curve.false_positives
    wanted = np.append(0, np.geomspace(1, curve.num_nonmembers, CURVE_POINTS - 1))
    index = np.unique(last_within(false, wanted * (1 + 1e-12)))
    fpr = false[index] / curve.num_nonmembers
    return Curve(fpr, *curve.band(fpr), curve.num_nonmembers, curve.auc, low_fpr_tpr)


def headline_attack(names: Collection[str], num_models: int) -> str:
    """The attack whose figures lead: by the pool's size and design alone, so that no score can have chosen it.

    LiRA with IN and OUT models, of one variance below MANY_MODELS models; without IN models its offline form; the global
    threshold where there are no shadow models to speak of; else the first of the attacks that could run, `names`.
    """
    kind = "" if num_models >= MANY_MODELS else "_fixed"
    order = [f"lira_online{kind}", "lira_online_fixed", f"lira_offline{kind}", "lira_offline_fixed"]
    return next((name for name in (*order, "global_threshold") if name in names), next(iter(names)))


def low_fpr_threshold(attack: AttackFigures) -> tuple[float, float]:
    """The global operating point at which examples are judged: 0.1 % FPR, else the lowest resolvable one above it.

    Returns:
        (FPR, threshold). Where no listed FPR is resolvable: 0 and the threshold without a false positive.
    """
    point = lowest_resolved(attack)
    return (point.fpr, point.threshold) if point else (0.0, attack.tpr_at[LOW_FPR].threshold)


def strongest_attack(attacks: Mapping[str, AttackFigures]) -> tuple[str, float | None]:
    """The strongest attack at the lowest listed FPR from 0.1 % up that is resolvable, and that FPR; else by AUC."""
    point = lowest_resolved(next(iter(attacks.values())))
    if point is None:
        return max(attacks, key=lambda name: np.nan_to_num(attacks[name].auc.value)), None
    return max(attacks, key=lambda name: attacks[name].tpr_at[point.fpr].tpr), point.fpr


def lowest_resolved(attack: AttackFigures) -> OperatingPoint | None:
    """The pooled operating point at the lowest listed FPR from 0.1 % up that is resolvable; None without one."""
    points = (point for fpr, point in attack.tpr_at.items() if fpr >= LOW_FPR and point.status == "ok")
    return next(points, None)


def interval_note(keep: np.ndarray) -> str:
    """What the intervals of `metrics.roc` are."""
    units = "complementary pairs of models" if is_paired(keep) else "models"
    clusters = len(keep) // 2 if is_paired(keep) else len(keep)
    if 1 < clusters < MIN_CLUSTERS:
        return f"none, because {clusters} {units} are too few to resample"
    if len(keep) == 1:
        units = "members and non-members of the one target"
    return f"95 %, {units} resampled, conditional on the examples"
