"""Everything that is measured of one unlearning method at one request, as one document."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lira.attacks import lira_online_fixed
from lira.forgetting._check import check_ensembles, joined_pool
from lira.forgetting.attacks import FPRS, Attack, lira_after, u_lira, update_leakage
from lira.forgetting.chance import RetrainedValues, retrained_values
from lira.forgetting.classical import Called, called_members, mia_efficacy, psi, psi_normalised
from lira.forgetting.ensembles import example_epsilons, forgetting_quality, klom, largest_epsilon
from lira.metrics import Estimate, Roc, example_tpr, mean_over_clusters, most_and_least_vulnerable, roc
from lira.metrics.document import estimate_entry, number, point_entry

__all__ = ["Direction", "direction", "exposure_threshold", "measure"]

Ensembles = tuple[np.ndarray, np.ndarray, np.ndarray]  # before, after and retrained, float [M, N, Q] each
# Of unlearned and of retrained models, float [M] each, by what it is measured on.
Accuracies = Mapping[str, tuple[np.ndarray, np.ndarray]]


class Direction(NamedTuple):
    """On which side of the retrained models the unlearned ones stand, over the forgotten examples that they held."""

    shift: Estimate  # mean of phi(unlearned) - phi(retrained), the same model and example
    auc: Estimate  # of phi itself, unlearned against never held: 1 above, 0 below

    @property
    def over_forgotten(self) -> bool:
        """Below: the shift's whole interval is negative, and the AUC, which outliers do not move, agrees."""
        return bool(self.shift.high < 0 and self.auc.value < 0.5)


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
    check_ensembles(keep, forget, after=after, retrained=retrained)
    pool, held = joined_pool(after, retrained, keep, forget)
    apart = (after[:, forget].astype(np.float64) - retrained[:, forget]).mean(axis=2)
    # A pair holds every forgotten example once.
    by_pair = np.where(held, apart, 0.0).reshape(len(keep) // 2, -1).sum(axis=1) / held.shape[1]
    curve = roc(pool.mean(axis=2, dtype=np.float64), held)
    return Direction(mean_over_clusters(by_pair), curve.auc_interval())


def exposure_threshold(curve: Roc) -> tuple[float, float]:
    """The operating point at which examples count as found: the lowest of FPRS that can be resolved.

    Returns:
        (FPR, threshold). Where none can be: 0 and the threshold without a false positive.
    """
    points = [curve.tpr_at(fpr) for fpr in FPRS]
    resolved = next((point for point in points if point.status == "ok"), None)
    return (resolved.fpr, resolved.threshold) if resolved else (0.0, points[0].threshold)


def measure(
    before: np.ndarray,
    after: np.ndarray,
    retrained: np.ndarray,
    keep: np.ndarray,
    forget: np.ndarray,
    *,
    previous: np.ndarray | None = None,
    latest: np.ndarray | None = None,
    features: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    accuracy: Accuracies | None = None,
    attack: Attack = lira_online_fixed,
    fprs: Sequence[float] = (0.1, 0.5),
    delta: float = 1e-5,
    chance: RetrainedValues | None = None,
    worst: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure one method at one request; what each figure is, its own function says.

    After several requests `forget` is everything forgotten so far and `before` the original models, so that the
    figures say whether earlier requests stay forgotten. Only update leakage looks at the latest request by itself.

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
        chance: of `retrained_values`, which is the same for all methods of a request; None: computed here.
        worst: how many of the most exposed examples are named.
        seed: of the halves that the classical attacks are fitted on.

    Returns:
        A document for JSON, in which nothing is NaN (null instead). A figure with an interval is {"value", "low",
        "high"}. Beside "after" stands "retrained", the retrained models' own value: for `u_lira`, `epsilon` and `klom` the
        range of `retrained_values`, elsewhere the figure with the retrained models in place of the unlearned ones.

        - `u_lira`, `lira` (before and after), `update_leakage` (by `difference` and `lira`): curves, {"auc",
          "tpr_at_fpr": {"0.001": ...}}.
        - `classical`: by attack ("threshold", and "logistic" where there are several features), then by FPR:
          `mia_efficacy`, `psi` and the realised `tpr` and `fpr` before, after and retrained, and `psi_normalised`
          with its `status` ("ok" or "undefined") and `over_forgotten`.
        - `epsilon`: share of `infinite` ones and `forgetting_quality`; `largest_finite` is what so many models can
          show. `score` multiplies the quality by the ratios of retain and test accuracy, null without these.
        - `klom`: `mean` and `percentile_95` over examples.
        - `direction`: `shift`, `auc` and `over_forgotten`; exact retraining has 0 and 1/2.
        - `accuracy`: as given, means over models.
        - `worst`: the examples that U-LiRA finds in most of the models that held them, at `worst_fpr`. They are
          picked by that share, so it is high by choice for the few at the top.

    Raises:
        ValueError: an argument is out of range, shapes disagree, rows are not paired, the forget set is empty or leaves
            nothing else, a value is not finite, or what the attack raises.
    """
    previous = before if previous is None else previous
    latest = forget if latest is None else latest
    M, _, _ = check_ensembles(keep, forget, before=before, after=after, retrained=retrained)
    check_ensembles(keep, latest, previous=previous, after=after)
    ensembles = (before, after, retrained)
    ensembles = (before, after, retrained)
    scores, held = u_lira(after, retrained, keep, forget, attack=attack)
    curve = roc(scores, held)
    worst_fpr, threshold = exposure_threshold(curve)
    epsilons = example_epsilons(after, retrained, keep, forget, delta=delta)
    divergence = klom(after, retrained, keep, forget)
    chance = chance or retrained_values(retrained, keep, forget, attack=attack, delta=delta, seed=seed)
    return {
        "num_models": M,
        "num_forgotten": int(forget.sum()),
        "attack": getattr(attack, "__name__", str(attack)),
        "u_lira": {"after": _curve(curve), "retrained": _chance_curve(chance)},
        "lira": {
            "before": _curve(roc(*lira_after(before, keep, forget, attack=attack))),
            "after": _curve(roc(*lira_after(after, keep, forget, attack=attack))),
        },
        "classical": _classical(ensembles, keep, forget, features, fprs, seed),
        "epsilon": _epsilon_entry(epsilons, chance, accuracy or {}, M, delta),
        "klom": {
            name: {"after": float(value), "retrained": _figure(retraining)}
            for name, value, retraining in (
                ("mean", divergence.mean(), chance.klom_mean),
                ("percentile_95", np.quantile(divergence, 0.95), chance.klom_95),
            )
        },
        "update_leakage": {
            kind: {
                name: _curve(roc(*update_leakage(previous, models, keep, latest, attack=on)))
                for name, models in (("after", after), ("retrained", retrained))
            }
            for kind, on in (("difference", None), ("lira", attack))
        },
        "direction": _direction_entry(direction(after, retrained, keep, forget)),
        "accuracy": {group: _accuracy_entry(*pair) for group, pair in (accuracy or {}).items()},
        "worst_fpr": worst_fpr,
        "worst": _worst(ensembles, keep, forget, scores, threshold, epsilons, worst),
    }


# --- Parts of the document ------------------------------------------------------------------------------------------


def _figure(estimate: Estimate) -> dict[str, float | None]:
    return estimate_entry("value", estimate, "")


def _curve(curve: Roc) -> dict[str, Any]:
    return {
        "auc": _figure(curve.auc_interval()),
        "tpr_at_fpr": {f"{fpr:g}": point_entry(curve.tpr_at(fpr)) for fpr in FPRS},
    }


def _chance_curve(chance: RetrainedValues) -> dict[str, Any]:
    return {
        "auc": _figure(chance.auc),
        "tpr_at_fpr": {f"{fpr:g}": estimate_entry("tpr", tpr, "") for fpr, tpr in chance.tpr_at_fpr.items()},
    }


def _accuracy_entry(after: np.ndarray, retrained: np.ndarray) -> dict[str, Any]:
    return {
        name: _figure(mean_over_clusters(values.reshape(-1, 2).mean(axis=1), 0, 1))
        for name, values in (("after", after), ("retrained", retrained))
    }


def _direction_entry(side: Direction) -> dict[str, Any]:
    return {
        "shift": _figure(side.shift),
        "auc": _figure(side.auc),
        "over_forgotten": side.over_forgotten,
    }


def _epsilon_entry(
    epsilons: np.ndarray, chance: RetrainedValues, accuracy: Accuracies, num_models: int, delta: float
) -> dict[str, Any]:
    quality = forgetting_quality(epsilons)
    return {
        "delta": delta,
        "largest_finite": largest_epsilon(num_models, delta=delta),
        "infinite": {"after": float(np.mean(np.isinf(epsilons))), "retrained": _figure(chance.infinite)},
        "forgetting_quality": {"after": quality, "retrained": _figure(chance.quality)},
        "score": _score(quality, accuracy),
    }


def _classical(
    ensembles: Ensembles,
    keep: np.ndarray,
    forget: np.ndarray,
    features: Ensembles | None,
    fprs: Sequence[float],
    seed: int,
) -> dict[str, Any]:
    attacks = {"threshold": tuple(phi.mean(axis=2, keepdims=True, dtype=np.float64) for phi in ensembles)}
    joined = ensembles if features is None else features
    if joined[0].shape[2] > 1:
        attacks["logistic"] = joined
    figures = {}
    for name, signals in attacks.items():
        called = [called_members(values, keep, forget, fprs=fprs, seed=seed) for values in signals]
        figures[name] = {f"{fpr:g}": _psi_entry(*each) for fpr, *each in zip(fprs, *called, strict=True)}
    return figures


def _psi_entry(before: Called, after: Called, retrained: Called) -> dict[str, Any]:
    normalised = psi_normalised(before, after, retrained)
    called = {"before": before, "after": after, "retrained": retrained}
    return {
        "mia_efficacy": {name: _figure(mia_efficacy(each)) for name, each in called.items()},
        "psi": {name: _figure(psi(each)) for name, each in called.items()},
        "psi_normalised": {
            **_figure(normalised.estimate),
            "status": "ok" if normalised.is_defined else "undefined",
            "denominator": _figure(normalised.denominator),
            "over_forgotten": normalised.over_forgotten,
        },
        "tpr": {name: _figure(mean_over_clusters(each.retain, 0, 1)) for name, each in called.items()},
        "fpr": {name: _figure(mean_over_clusters(each.validation, 0, 1)) for name, each in called.items()},
    }


def _score(quality: float, accuracy: Accuracies) -> float | None:
    """The challenge's final score, None without the accuracies that it needs."""
    for group in ("retain", "test"):
        if group not in accuracy:
            return None
        after, retrained = (float(np.mean(values)) for values in accuracy[group])
        quality *= after / retrained if retrained else np.nan
    return number(quality)


def _worst(
    ensembles: Ensembles,
    keep: np.ndarray,
    forget: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    epsilons: np.ndarray,
    count: int,
) -> list[dict[str, Any]]:
    held, among = keep[:, forget], np.flatnonzero(forget)
    exposed, _ = most_and_least_vulnerable(scores, held, threshold, count=count)
    shares = example_tpr(scores, held, threshold)
    return [
        {
            "example": int(among[i]),
            "found": float(shares[i]),
            "epsilon": number(float(epsilons[i])),
            "epsilon_infinite": bool(np.isinf(epsilons[i])),
            # Of the models that held it.
            "phi": {
                name: float(values[held[:, i], among[i]].mean(dtype=np.float64))
                for name, values in zip(("before", "after", "retrained"), ensembles, strict=True)
            },
        }
        for i in exposed
    ]
