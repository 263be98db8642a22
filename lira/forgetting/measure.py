"""Everything that is measured of one unlearning method at one request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lira.attacks import lira_online_fixed
from lira.forgetting._check import Ensemble, as_ensembles, joined_pool, of_forgotten, row_of
from lira.forgetting.attacks import FPRS, Attack, lira_after, u_lira, update_leakage
from lira.forgetting.chance import RetrainedValues, retrained_values
from lira.forgetting.classical import (
    Called,
    NormalisedPsi,
    called_members,
    mia_efficacy,
    psi,
    psi_normalised,
)
from lira.forgetting.ensembles import example_epsilons, forgetting_quality, klom, largest_epsilon
from lira.metrics import (
    Estimate,
    OperatingPoint,
    Roc,
    example_tpr,
    mean_over_clusters,
    most_and_least_vulnerable,
    roc,
)

__all__ = [
    "ClassicalFigures",
    "CurveFigures",
    "Direction",
    "ExposedExample",
    "MethodFigures",
    "direction",
    "exposure_threshold",
    "measure",
]


# phi, or other features, of the models before, after and retrained, float [M, N, Q] each.
Ensembles = tuple[Ensemble, Ensemble, Ensemble]


class Direction(NamedTuple):
    """On which side of the retrained models the unlearned ones stand, over the forgotten examples that they held."""

    shift: Estimate  # mean of phi(unlearned) - phi(retrained), the same model and example
    auc: Estimate  # of phi itself, unlearned against never held: 1 above, 0 below

    @property
    def over_forgotten(self) -> bool:
        """Below: the shift's whole interval is negative, and the AUC, which outliers do not move, agrees."""
        return bool(self.shift.high < 0 and self.auc.value < 0.5)


class CurveFigures(NamedTuple):
    """What a ROC curve says at low FPR."""

    auc: Estimate
    tpr_at_fpr: dict[float, OperatingPoint]  # those of FPRS


class ClassicalFigures(NamedTuple):
    """A classical attack at one FPR, by the models that it attacks: "before", "after" and "retrained"."""

    mia_efficacy: dict[str, Estimate]
    psi: dict[str, Estimate]
    psi_normalised: NormalisedPsi
    tpr: dict[str, Estimate]  # realised
    fpr: dict[str, Estimate]


class ExposedExample(NamedTuple):
    """A forgotten example that U-LiRA finds in many of the models that held it."""

    example: int
    share: float  # of them, in which it is found
    epsilon: float
    phi: dict[str, float]  # mean over them, "before", "after" and "retrained"


@dataclass(frozen=True, eq=False)
class MethodFigures:
    """What was measured of one method at one request.

    Beside a figure of the unlearned models, "after", stands the retrained models' own, "retrained": for U-LiRA, epsilon and
    KLoM the range of `retrained_values`, elsewhere the figure with the retrained models in place of the unlearned ones.
    """

    num_models: int
    num_forgotten: int
    attack: str
    u_lira: CurveFigures
    untouched: CurveFigures
    """U-LiRA on the original models, in place of the unlearned ones: what a method that does nothing scores."""
    retrained: RetrainedValues
    lira: dict[str, CurveFigures]  # "before" and "after"
    classical: dict[str, dict[float, ClassicalFigures]]
    """By attack ("threshold", and "logistic" where there are several features), then by FPR."""
    delta: float  # of the examples' epsilons
    largest_epsilon: float  # that so many models can show
    infinite: float  # share of examples with an infinite epsilon
    quality: float  # forgetting quality
    score: float  # it times the ratios of retain and test accuracy to retraining's; NaN without these
    klom_mean: float
    klom_95: float  # 95th percentile over examples
    update_leakage: dict[str, dict[str, CurveFigures]]
    """By "difference" and "lira", then "after" and "retrained"."""
    direction: Direction  # exact retraining has 0 and 1/2
    accuracy: dict[str, dict[str, Estimate]]
    """Means over models, by group as given, then "after" and "retrained"."""
    worst_fpr: float
    worst: list[ExposedExample]
    """Those that U-LiRA finds in most of the models that held them, at `worst_fpr`. They are picked by that share, so it
    is high by choice for the few at the top."""

    @property
    def lowest_fpr(self) -> float | None:
        """The lowest of U-LiRA's FPRs that can be resolved; None where none can."""
        return next((fpr for fpr, point in self.u_lira.tpr_at_fpr.items() if point.status == "ok"), None)

    @property
    def verdict(self) -> str:
        """What is said of the method: "over-forgotten", "exposed", "as retrained" or "not resolved".

        Over-forgotten: see `Direction`. Exposed: U-LiRA's AUC, or its TPR at the lowest resolvable FPR, lies above the
        range that holds 95 % of exact retrainings. Of 100 simulated exact retrainings (50 examples forgotten by 16 and
        by 32 models) 8 were called exposed and 2 over-forgotten.
        "As retrained" says that neither shows a difference, with so many models and examples, and no more. Where the
        original models show none either, nothing can be told apart, and it is "not resolved".
        """
        if self.direction.over_forgotten:
            return "over-forgotten"
        if self._told(self.u_lira):
            return "exposed"
        return "as retrained" if self.is_resolved else "not resolved"

    @property
    def is_resolved(self) -> bool:
        """Whether U-LiRA tells the original models, which forgot nothing, from retrained ones."""
        return self._told(self.untouched)

    @property
    def shows_in_rate(self) -> bool:
        """Whether U-LiRA's TPR at the lowest resolvable FPR lies above the range of exact retrainings."""
        return self._rate_told(self.u_lira)

    def _told(self, found: CurveFigures) -> bool:
        """Whether a figure that the verdict looks at lies above the range of exact retrainings."""
        return bool(found.auc.value > self.retrained.auc.high) or self._rate_told(found)

    def _rate_told(self, found: CurveFigures) -> bool:
        fpr = self.lowest_fpr
        return fpr is not None and bool(found.tpr_at_fpr[fpr].tpr > self.retrained.tpr_at_fpr[fpr].high)


def direction(after: np.ndarray, retrained: np.ndarray, keep: np.ndarray, forget: np.ndarray) -> Direction:
    """Whether unlearned models are too sure of what they unlearned, or too unsure: that is no success either.

    Args:
        after: float `[M, N, Q]`, phi of the unlearned models; queries are averaged.
        retrained: float `[M, N, Q]`.
        keep: bool `[M, N]`, complementary pairs.
        forget: bool `[N]`.

    Raises:
        ValueError: shapes disagree, rows are not paired, the forget set is empty, or a value is not finite.
    """
    keep, forget, after, retrained = as_ensembles(keep, forget, after=after, retrained=retrained)
    pool, held = joined_pool(after, retrained, keep, forget)
    apart = (after[:, forget].astype(np.float64) - retrained[:, forget]).mean(axis=2)
    # A pair holds every forgotten example once.
    by_pair = np.where(held, apart, 0.0).reshape(len(keep) // 2, -1).sum(axis=1) / held.shape[1]
    curve = roc(pool.mean(axis=2, dtype=np.float64), held)
    return Direction(mean_over_clusters(by_pair), curve.auc_interval())


def exposure_threshold(curve: Roc) -> tuple[float, float]:
    """The operating point at which examples count as found: the lowest of FPRS that can be resolved.

    Returns:
        (FPR, threshold). Where none can be: 0 and the threshold without a false positive, NaN if only calling nobody a
        member has none.
    """
    points = [curve.tpr_at(fpr) for fpr in FPRS]
    lowest = next((point for point in points if point.status == "ok"), None)
    return (lowest.fpr, lowest.threshold) if lowest else (0.0, points[0].threshold)


def measure(
    before: Ensemble,
    after: Ensemble,
    retrained: Ensemble,
    keep: np.ndarray,
    forget: np.ndarray,
    *,
    previous: Ensemble | None = None,
    latest: np.ndarray | None = None,
    features: Ensembles | None = None,
    accuracy: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    attack: Attack = lira_online_fixed,
    fprs: Sequence[float] = (0.1, 0.5),
    delta: float = 1e-5,
    reference: RetrainedValues | None = None,
    worst: int = 10,
    seed: int = 0,
) -> MethodFigures:
    """Measure one method at one request; what each figure is, its own function says.

    After several requests `forget` is everything forgotten so far and `before` the original models, so that the
    figures say whether earlier requests stay forgotten. Only update leakage looks at the latest request by itself.

    Whatever is `[M, N, ...]` is read a model at a time, and held of the forgotten examples alone.

    Args:
        before: float `[M, N, Q]`, phi of the original models.
        after: float `[M, N, Q]`, phi of the unlearned ones.
        retrained: float `[M, N, Q]`, phi of those trained from scratch without the forget set.
        keep: bool `[M, N]`, what the original models held; complementary pairs.
        forget: bool `[N]`, everything forgotten so far.
        previous: float `[M, N, Q]`, phi of this method's models before the latest request; None: `before`.
        latest: bool `[N]`, the latest request; None: `forget`.
        features: float `[M, N, D]` of `before`, `after` and `retrained`, for the classical attacks that join several
            signals; None: phi's queries.
        accuracy: of the unlearned and of the retrained models, float `[M]` each, by what it is measured on: "retain",
            "forget" and "test" (held-out examples, or those that a model never held). NaN where unknown.
        attack: of U-LiRA, of LiRA and on updates.
        fprs: of the classical attacks, in (0, 1).
        delta: of the examples' epsilons.
        reference: of `retrained_values`, which is the same for all methods of a request; None: computed here.
        worst: how many of the most exposed examples are named.
        seed: of the halves that the classical attacks are fitted on.

    Raises:
        ValueError: an argument is out of range, shapes disagree, rows are not paired, the forget set is empty or leaves
            nothing else, a value is not finite, or what the attack raises.
    """
    previous = before if previous is None else previous
    latest = forget if latest is None else latest
    among = np.flatnonzero(forget)
    held, every, *phi = of_forgotten(keep, forget, before=before, after=after, retrained=retrained)
    original, unlearned, scratch = phi
    leakage = _leakage((previous, after, retrained), keep, latest, attack)
    scores, _ = u_lira(unlearned, scratch, held, every, attack=attack)
    curve = roc(scores, held)
    worst_fpr, threshold = exposure_threshold(curve)
    epsilons = example_epsilons(unlearned, scratch, held, every, delta=delta)
    quality = forgetting_quality(epsilons)
    divergence = klom(unlearned, scratch, held, every)

    return MethodFigures(
        num_models=len(keep),
        num_forgotten=len(among),
        attack=getattr(attack, "__name__", str(attack)),
        u_lira=_curve(curve),
        untouched=_curve(roc(*u_lira(original, scratch, held, every, attack=attack))),
        retrained=reference or retrained_values(scratch, held, every, attack=attack, delta=delta, seed=seed),
        lira={
            name: _curve(roc(*lira_after(models, held, every, attack=attack)))
            for name, models in (("before", original), ("after", unlearned))
        },
        classical=_classical((before, after, retrained), keep, forget, features, fprs, seed),
        delta=delta,
        largest_epsilon=largest_epsilon(len(keep), delta=delta),
        infinite=float(np.mean(np.isinf(epsilons))),
        quality=quality,
        score=_score(quality, accuracy or {}),
        klom_mean=float(divergence.mean()),
        klom_95=float(np.quantile(divergence, 0.95)),
        update_leakage=leakage,
        direction=direction(unlearned, scratch, held, every),
        accuracy={group: _accuracies(*pair) for group, pair in (accuracy or {}).items()},
        worst_fpr=worst_fpr,
        worst=_worst((original, unlearned, scratch), held, among, scores, threshold, epsilons, worst),
    )


# --- Parts ----------------------------------------------------------------------------------------------------------


def _curve(curve: Roc) -> CurveFigures:
    return CurveFigures(curve.auc_interval(), {fpr: curve.tpr_at(fpr) for fpr in FPRS})


def _accuracies(after: np.ndarray, retrained: np.ndarray) -> dict[str, Estimate]:
    """Means of the accuracies of models, float `[M]` each, with pairs as clusters."""
    return {
        name: mean_over_clusters(np.asarray(values, np.float64).reshape(-1, 2).mean(axis=1), 0, 1)
        for name, values in (("after", after), ("retrained", retrained))
    }


def _leakage(
    ensembles: Ensembles, keep: np.ndarray, latest: np.ndarray, attack: Attack
) -> dict[str, dict[str, CurveFigures]]:
    """Of the update from the first ensemble to either of the others, by attack on it."""
    held, every, *phi = of_forgotten(
        keep, latest, **dict(zip(("previous", "after", "retrained"), ensembles, strict=True))
    )
    return {
        kind: {
            name: _curve(roc(*update_leakage(phi[0], models, held, every, attack=on)))
            for name, models in (("after", phi[1]), ("retrained", phi[2]))
        }
        for kind, on in (("difference", None), ("lira", attack))
    }


def _classical(
    ensembles: Ensembles,
    keep: np.ndarray,
    forget: np.ndarray,
    features: Ensembles | None,
    fprs: Sequence[float],
    seed: int,
) -> dict[str, dict[float, ClassicalFigures]]:
    attacks: dict[str, list[Ensemble]] = {"threshold": [_MeanOverQueries(phi) for phi in ensembles]}
    joined = ensembles if features is None else features
    if joined[0].shape[2] > 1:
        attacks["logistic"] = list(joined)
    figures = {}
    for name, signals in attacks.items():
        called = [called_members(values, keep, forget, fprs=fprs, seed=seed) for values in signals]
        figures[name] = {fpr: _classical_at(*each) for fpr, *each in zip(fprs, *called, strict=True)}
    return figures


@dataclass(frozen=True)
class _MeanOverQueries:
    """An ensemble's `[M, N, 1]`, float64, read as it is."""

    phi: Ensemble

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.phi.shape[:2], 1)

    def __getitem__(self, model: int) -> np.ndarray:
        return row_of("phi", self.phi, model).mean(axis=1, keepdims=True, dtype=np.float64)


def _classical_at(before: Called, after: Called, retrained: Called) -> ClassicalFigures:
    called = {"before": before, "after": after, "retrained": retrained}
    return ClassicalFigures(
        {name: mia_efficacy(each) for name, each in called.items()},
        {name: psi(each) for name, each in called.items()},
        psi_normalised(before, after, retrained),
        {name: mean_over_clusters(each.retain, 0, 1) for name, each in called.items()},
        {name: mean_over_clusters(each.validation, 0, 1) for name, each in called.items()},
    )


def _score(quality: float, accuracy: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> float:
    """The challenge's final score, NaN without the accuracies that it needs."""
    for group in ("retain", "test"):
        after, retrained = (float(np.mean(values)) for values in accuracy.get(group, (np.nan, np.nan)))
        quality *= after / retrained if retrained else np.nan
    return quality


def _worst(
    ensembles: tuple[np.ndarray, np.ndarray, np.ndarray],
    held: np.ndarray,
    among: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    epsilons: np.ndarray,
    count: int,
) -> list[ExposedExample]:
    exposed, _ = most_and_least_vulnerable(scores, held, threshold, count=count)
    shares = example_tpr(scores, held, threshold)

    def mean_phi(i: int) -> dict[str, float]:
        means = [float(phi[held[:, i], i].mean(dtype=np.float64)) for phi in ensembles]
        return dict(zip(("before", "after", "retrained"), means, strict=True))

    return [ExposedExample(int(among[i]), float(shares[i]), float(epsilons[i]), mean_phi(i)) for i in exposed]
