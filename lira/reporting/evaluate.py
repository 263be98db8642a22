"""From scores to the content of metrics.json and to curves."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lira.membership import is_paired
from lira.metrics import MIN_CLUSTERS, Roc, mean_over_targets, roc
from lira.metrics.curve import BYTES_A_SCORE
from lira.metrics.document import estimate_entry, point_entry
from lira.parallel import side_by_side
from lira.reporting.implied import leakage
from lira.reporting.plots import Curve

__all__ = ["FPRS", "evaluate", "low_fpr_threshold", "strongest_attack"]

FPRS = (1e-5, 1e-4, 1e-3, 1e-2)
# The operating point that headlines, legends and per-example figures quote.
LOW_FPR = "0.001"
CURVE_POINTS = 2000


def evaluate(scores: Mapping[str, np.ndarray], keep: np.ndarray) -> tuple[dict[str, Any], dict[str, Curve]]:
    """Measure every attack, those of different cores side by side: one full ROC curve is held for each.

    Args:
        scores: float `[T, N]` by attack, higher = more likely a member.
        keep: bool `[T, N]`, true where the target was trained on the example.

    Returns:
        The content of metrics.json, in which nothing is NaN (null instead), and the curves to draw. An attack whose
        curve is undefined (no members or no non-members at all) has none.

    Raises:
        ValueError: there is no attack, shapes disagree, or a score is NaN.
    """
    if not scores:
        raise ValueError("scores holds no attack: give at least one array [targets, examples] by name")
    keep = np.asarray(keep)
    members = int(keep.sum())
    nonmembers = keep.size - members
    measured = side_by_side(
        lambda values: _measure(values, keep), scores.values(), bytes_each=BYTES_A_SCORE * keep.size
    )
    attacks = {name: entry for name, (entry, _) in zip(scores, measured, strict=True)}
    curves = {name: curve for name, (_, curve) in zip(scores, measured, strict=True) if curve is not None}
    strongest = None
    if members and nonmembers:
        name, _ = strongest_attack(attacks)
        strongest = {"attack": name, **leakage(scores[name], keep)}
    metrics = {
        "description": "pooled over targets, except under mean_over_targets; rates are fractions",
        "interval": interval_note(keep),
        "num_models": keep.shape[0],
        "num_examples": keep.shape[1],
        "num_members": members,
        "num_nonmembers": nonmembers,
        "attacks": attacks,
        "strongest": strongest,
    }
    return metrics, curves


def _measure(scores: np.ndarray, keep: np.ndarray) -> tuple[dict[str, Any], Curve | None]:
    """One attack's entry in metrics.json, and its curve to draw if it is defined."""
    curve = roc(scores, keep)
    points = [curve.tpr_at(fpr) for fpr in FPRS]
    entry = {
        **estimate_entry("auc", curve.auc_interval()),
        **estimate_entry("balanced_accuracy", curve.balanced_accuracy_interval()),
        "tpr_at_fpr": {f"{point.fpr:g}": point_entry(point) for point in points},
        "mean_over_targets": _mean_over_targets(scores, keep),
    }
    if not (curve.num_members and curve.num_nonmembers):
        return entry, None
    low = next(point.tpr for point in points if f"{point.fpr:g}" == LOW_FPR)
    return entry, _thin(curve, low)


def low_fpr_threshold(attack: Mapping[str, Any]) -> tuple[float, float]:
    """The global operating point at which examples are judged: 0.1 % FPR, else the lowest resolvable one above it.

    Args:
        attack: one attack's entry in the metrics.

    Returns:
        (FPR, threshold). Where no listed FPR is resolvable: 0 and the threshold without a false positive.
    """
    for fpr, point in attack["tpr_at_fpr"].items():
        if float(fpr) >= float(LOW_FPR) and point["status"] == "ok":
            break
    else:
        fpr, point = "0", attack["tpr_at_fpr"][LOW_FPR]
    return float(fpr), np.inf if point["threshold"] is None else point["threshold"]


def strongest_attack(attacks: Mapping[str, Any]) -> tuple[str, str | None]:
    """The strongest attack at the lowest listed FPR from 0.1 % up that is resolvable, and that FPR; else by AUC."""
    first = next(iter(attacks.values()))
    for fpr, point in first["tpr_at_fpr"].items():
        if float(fpr) >= float(LOW_FPR) and point["status"] == "ok":
            return max(attacks, key=lambda name: attacks[name]["tpr_at_fpr"][fpr]["tpr"]), fpr
    return max(attacks, key=lambda name: attacks[name]["auc"] or 0), None


# --- From metrics to plain numbers ----------------------------------------------------------------------------------


def _thin(curve: Roc, low_fpr_tpr: float) -> Curve:
    """The last point at each of some 2,000 log-spaced numbers of false positives, and of none."""
    false = curve.false_positives
    wanted = np.append(0, np.geomspace(1, curve.num_nonmembers, CURVE_POINTS - 1))
    index = np.unique(np.searchsorted(false, wanted * (1 + 1e-12), side="right") - 1)
    fpr = false[index] / curve.num_nonmembers
    tpr, low, high = curve.band(fpr)
    return Curve(fpr, tpr, low, high, curve.num_nonmembers, curve.auc, low_fpr_tpr)


def _mean_over_targets(scores: np.ndarray, keep: np.ndarray) -> dict[str, Any]:
    means: dict[str, Any] = mean_over_targets(scores, keep, list(FPRS))
    # Every target must resolve an FPR before its TPR may be averaged.
    fewest = int(np.min(np.sum(~keep, axis=1)))
    defined = fewest > 0 and bool(keep.any(axis=1).all())
    tprs = {}
    for fpr, estimate in means["tpr_at_fpr"].items():
        status = "undefined" if not defined else "ok" if np.isfinite(estimate.value) else "unresolvable"
        floor = 1 / fewest if fewest else None
        tprs[f"{fpr:g}"] = {**estimate_entry("tpr", estimate, ""), "status": status, "floor": floor}
    return {**estimate_entry("auc", means["auc"]), "tpr_at_fpr": tprs}


def interval_note(keep: np.ndarray) -> str:
    """What the intervals of `metrics.roc` are."""
    units = "complementary pairs of models" if is_paired(keep) else "models"
    clusters = len(keep) // 2 if is_paired(keep) else len(keep)
    if 1 < clusters < MIN_CLUSTERS:
        return f"none, because {clusters} {units} are too few to resample"
    if len(keep) == 1:
        units = "members and non-members of the one target"
    return f"95 %, {units} resampled, conditional on the examples"
