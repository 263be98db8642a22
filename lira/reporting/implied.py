"""What one attack's scores imply beyond its ROC curve: information, precision, transfer, stability, epsilon.

Plain numbers for metrics.json: null stands where a figure is undefined or has no interval.
"""

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from lira.epsilon import target_epsilons
from lira.metrics import (
    MIN_CLUSTERS,
    UndefinedMetricWarning,
    bayes_error_bound,
    fixed_threshold,
    information_bound,
    mutual_information,
    ppv,
    roc,
    stability,
    youden,
)
from lira.metrics.curve import BYTES_A_SCORE
from lira.metrics.document import estimate_entry, number
from lira.parallel import side_by_side

__all__ = ["leakage"]

PRIORS = (0.5, 0.1, 0.01)
DELTA = 1e-5
CONFIDENCE = 0.95


def leakage(scores: np.ndarray, keep: np.ndarray, *, fpr: float = 1e-3) -> dict[str, Any]:
    """What the scores of one attack imply, for a pool in which every model is a target.

    Args:
        scores: float `[T, N]`, higher = more likely a member, made with each target's pair left out.
        keep: bool `[T, N]`.
        fpr: of the operating points, a fraction.

    Returns:
        - youden_j, held out, with the `optimistic` maximum over thresholds of the same scores;
        - information_at_least (bits) and bayes_error_at_most, bounds that hold for the held-out J;
        - mutual_information, an estimate from binned scores;
        - ppv: by prior, at the pooled operating point's expected FPR;
        - fixed_threshold: chosen on the other models alone, with the FPR and TPR that it realises (means over targets);
        - stability of the examples' vulnerability between halves of the targets;
        - epsilon: a lower bound on that of the training, at 95 %, from the one-run bounds of all targets; null without
          `jax_privacy`.

    Raises:
        ValueError: shapes disagree, or a score is NaN.
    """
    scores, keep = np.asarray(scores), np.asarray(keep)
    with warnings.catch_warnings():
        # An undefined figure is null here.
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        curve = roc(scores, keep)
        point, clusters = curve.tpr_at(fpr), curve.num_clusters
        del curve  # of a large pool half a gigabyte
        parts: dict[str, Callable[[], Any]] = {
            "youden": lambda: youden(scores, keep),
            "information": lambda: mutual_information(scores, keep),
        }
        if clusters >= 2 and point.status == "ok":
            parts["fixed"] = lambda: fixed_threshold(scores, keep, fpr)
            if clusters >= 2 * MIN_CLUSTERS:
                parts["stability"] = lambda: stability(scores, keep, fpr=fpr)
        if clusters >= 2 and importlib.util.find_spec("jax_privacy"):
            parts["epsilon"] = lambda: _epsilon(scores, keep)
        figures = side_by_side(lambda part: part(), parts.values(), bytes_each=BYTES_A_SCORE * scores.size)
        by_name = dict(zip(parts, figures, strict=True))
        found = by_name["youden"]
        implied: dict[str, Any] = {
            "fpr": fpr,
            "youden_j": {**estimate_entry("j", found.j, ""), "optimistic": number(found.optimistic)},
            "information_at_least": estimate_entry("bits", information_bound(found.j), ""),
            "bayes_error_at_most": estimate_entry("error", bayes_error_bound(found.j), ""),
            "mutual_information": estimate_entry("bits", by_name["information"].bits, ""),
            "ppv": {
                f"{prior:g}": number(float(ppv(point.tpr, point.expected_fpr, prior)))
                for prior in PRIORS
                if point.status == "ok"
            },
            "fixed_threshold": None,
            "stability": None,
            "epsilon": by_name.get("epsilon"),
        }
    fixed, between = by_name.get("fixed"), by_name.get("stability")
    # Undefined where the other models have too few non-members for one false positive.
    if fixed is not None and np.isfinite(fixed.mean_fpr.value):
        implied["fixed_threshold"] = {
            **estimate_entry("fpr", fixed.mean_fpr),
            **estimate_entry("tpr", fixed.mean_tpr),
            "largest_fpr": float(np.max(fixed.target_fpr)),
        }
    if between is not None:
        implied["stability"] = {
            **estimate_entry("pearson", between.pearson),
            **estimate_entry("spearman", between.spearman),
        }
    return implied


def _epsilon(scores: np.ndarray, keep: np.ndarray) -> dict[str, Any]:
    """The median of the targets' bounds: all bound one epsilon, that of the training.

    If each is too large with probability a, half of them are with probability 2 a at most (Markov), however dependent
    they are.
    """
    each = target_epsilons(scores, keep, delta=DELTA, confidence=1 - (1 - CONFIDENCE) / 2)
    return {"delta": DELTA, "method": "one_run", "confidence": CONFIDENCE, "at_least": float(np.median(each))}
