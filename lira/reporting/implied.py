"""What one attack's scores imply beyond its ROC curve: information, precision, transfer, stability, epsilon."""

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lira.epsilon import pool_epsilon
from lira.learning.accounting import Guarantee
from lira.metrics import (
    MIN_CLUSTERS,
    Estimate,
    FixedThreshold,
    Stability,
    UndefinedMetricWarning,
    Youden,
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
from lira.numbers import as_array
from lira.parallel import give_memory_back, side_by_side

__all__ = ["DELTA", "Leakage", "leakage", "pool_epsilon", "why_no_epsilon"]

PRIORS = (0.5, 0.1, 0.01)
DELTA = 1e-5
CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Leakage:
    """What the scores of one attack imply, for a pool in which every model is a target."""

    fpr: float  # of the operating points, a fraction
    youden: Youden  # held out, with the `optimistic` maximum over thresholds of the same scores
    information: Estimate  # at least so many bits, a bound that holds for the held-out J
    bayes_error: Estimate  # at most, as well
    mutual_information: Estimate  # bits, estimated from binned scores
    ppv: dict[
        float, float
    ]  # by prior, at the pooled operating point's expected FPR; empty where that is unresolvable
    fixed: FixedThreshold | None  # chosen on the other models alone
    stability: Stability | None  # of the examples' vulnerability between halves of the targets
    epsilon: float | None
    """A lower bound on that of the training, from the one-run bounds of all targets; None where none is claimed."""
    no_epsilon: str | None
    """Why none is claimed; None where one is."""
    proven: Guarantee | None = None
    """What is proven of the training; the bound is at its delta."""
    delta: float = DELTA
    confidence: float = CONFIDENCE


def leakage(
    scores: np.ndarray,
    keep: np.ndarray,
    *,
    fpr: float = 1e-3,
    independent: bool = False,
    proven: Guarantee | None = None,
) -> Leakage:
    """Work out what the scores of one attack imply.

    Args:
        scores: float `[T, N]`, higher = more likely a member, made with each target's pair left out.
        keep: bool `[T, N]`.
        fpr: of the operating points, a fraction.
        independent: whether it is known, or was declared, that the memberships are independent coins of one
            probability, see `Pool.independent`: no epsilon is claimed otherwise.
        proven: of every model, where that is known.

    Raises:
        ValueError: shapes disagree, or a score is NaN.
    """
    scores, keep = as_array(scores), as_array(keep)
    delta = DELTA if proven is None else proven.delta
    with warnings.catch_warnings():
        # An undefined figure is NaN or None here.
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        curve = roc(scores, keep)
        point, clusters = curve.tpr_at(fpr), curve.num_clusters
        del curve  # of a large pool a quarter of a gigabyte
        give_memory_back()
        parts: dict[str, Callable[[], Any]] = {
            "youden": lambda: youden(scores, keep),
            "information": lambda: mutual_information(scores, keep),
        }
        if clusters >= 2 and point.status == "ok":
            parts["fixed"] = lambda: fixed_threshold(scores, keep, fpr)
            if clusters >= 2 * MIN_CLUSTERS:
                parts["stability"] = lambda: stability(scores, keep, fpr=fpr)
        no_epsilon = why_no_epsilon(independent)
        if no_epsilon is None:
            parts["epsilon"] = lambda: pool_epsilon(
                scores, keep, independent=True, delta=delta, confidence=CONFIDENCE
            )
        figures = side_by_side(lambda part: part(), parts.values(), bytes_each=BYTES_A_SCORE * scores.size)
    by_name = dict(zip(parts, figures, strict=True))
    fixed, bound = by_name.get("fixed"), by_name.get("epsilon")
    if fixed is not None and not np.isfinite(fixed.mean_fpr.value):
        fixed = None  # the other models have too few non-members for one false positive
    j = by_name["youden"].j
    return Leakage(
        fpr,
        by_name["youden"],
        information_bound(j),
        bayes_error_bound(j),
        by_name["information"].bits,
        {prior: float(ppv(point.tpr, point.expected_fpr, prior)) for prior in PRIORS}
        if point.status == "ok"
        else {},
        fixed,
        by_name.get("stability"),
        bound and bound.epsilon,
        no_epsilon,
        proven,
        delta,
    )


def why_no_epsilon(independent: bool) -> str | None:
    """Why no epsilon is claimed; None where one may be."""
    if not independent:
        return (
            "one-run bounds hold where each membership was drawn by a coin of its own, all of one probability, which "
            "is neither known nor was declared of this pool: memberships that look like it may be balanced or chosen"
        )
    if importlib.util.find_spec("jax_privacy") is None:
        return 'the bounds need jax_privacy: pip install "lira[privacy]"'
    return None
