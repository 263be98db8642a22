"""Figures as plain numbers for JSON, which knows neither NaN nor infinity: null in their place."""

from typing import Any

import numpy as np

from lira.metrics._shared import Estimate
from lira.metrics.curve import OperatingPoint

__all__ = ["estimate_entry", "number", "point_entry"]


def number(value: float) -> float | None:
    """A finite number, or None."""
    return float(value) if np.isfinite(value) else None


def estimate_entry(name: str, estimate: Estimate, prefix: str | None = None) -> dict[str, float | None]:
    """`{name: value, name_low: ..., name_high: ...}`, or with another `prefix` than `name_` to low and high."""
    prefix = f"{name}_" if prefix is None else prefix
    return {
        name: number(estimate.value),
        f"{prefix}low": number(estimate.low),
        f"{prefix}high": number(estimate.high),
    }


def point_entry(point: OperatingPoint) -> dict[str, Any]:
    """What a TPR at an FPR is, and how far it can be trusted."""
    return {
        "tpr": number(point.tpr),
        "low": number(point.low),
        "high": number(point.high),
        "status": point.status,
        "threshold": number(point.threshold),
        "false_positives": point.false_positives,
        "allowed_false_positives": point.allowed,
        "expected_fpr": number(point.expected_fpr),
        "distinct_examples": point.distinct_examples,
        "floor": number(point.floor),
        "tpr_at_zero_fpr": number(point.tpr_at_zero),
    }
