"""Figures as people read them: a value and its 95 % interval, each as text."""

import math
from typing import NamedTuple

import numpy as np

from lira.metrics import Estimate, OperatingPoint

__all__ = ["Cell", "known", "meaning_of_epsilon", "per_thousand", "percent", "rate", "share", "signed"]


class Cell(NamedTuple):
    """A figure in a table: its value, or the word that stands in its place, and its interval, empty without one."""

    value: str
    interval: str = ""


def share(
    figure: Estimate | float, digits: int = 3, *, between: str = "–", missing: str = "undefined"
) -> Cell:
    """A figure and its interval as plain numbers; a dash `between` the ends is only for what is never negative."""
    figure = _estimate(figure)
    if np.isnan(figure.value):
        return Cell(missing)
    interval = f"{figure.low:.{digits}f}{between}{figure.high:.{digits}f}"
    return Cell(f"{figure.value:.{digits}f}", "" if np.isnan(figure.low) else interval)


def rate(
    figure: Estimate | OperatingPoint | float, *, missing: str = "undefined", digits: int | None = None
) -> Cell:
    """A share and its interval in percent.

    Args:
        figure: fractions; of an operating point the TPR. A plain number has no interval.
        missing: stands in the place of NaN; an operating point's status does so by itself.
        digits: decimals of the interval's ends; None takes as many as the upper end has as a figure of its own.
    """
    missing = figure.status if isinstance(figure, OperatingPoint) else missing
    figure = _estimate(figure)
    if np.isnan(figure.value):
        return Cell(missing)
    if np.isnan(figure.low):
        return Cell(percent(figure.value))
    digits = _decimals(figure.high) if digits is None else digits
    return Cell(percent(figure.value), f"{100 * figure.low:.{digits}f}–{100 * figure.high:.{digits}f}")


def signed(figure: Estimate, digits: int, *, scale: float = 1) -> str:
    """A difference with its sign, times `scale`, and its interval in brackets; "unresolvable" for NaN."""
    value, low, high = (scale * end for end in (figure.value, figure.low, figure.high))
    interval = "" if np.isnan(low) else f" [{low:+.{digits}f}, {high:+.{digits}f}]"
    return "unresolvable" if np.isnan(value) else f"{value:+.{digits}f}{interval}"


def meaning_of_epsilon(epsilon: float) -> str:
    """What a lower bound above 0 says of one example, to people who do not think in epsilons."""
    right = 100 / (1 + math.exp(-epsilon))
    return (
        f"With an epsilon of {epsilon:.2f} a guess whether one example was trained on may be right in {right:.1f} of 100 "
        f"cases, where a coin is in 50."
    )


def percent(share: float) -> str:
    """A fraction in percent, with three figures."""
    return f"{100 * share:.{_decimals(share)}f} %"


def per_thousand(share: float) -> str:
    """A fraction as a count of 1,000, for sentences: below 10 with one decimal."""
    count = 1000 * share
    return f"{count:.1f}" if 0 < count < 9.95 else f"{count:,.0f}"


def known(value: float) -> float | None:
    """A number as JSON can hold it: None for NaN and infinity."""
    return float(value) if np.isfinite(value) else None


def _estimate(figure: Estimate | OperatingPoint | float) -> Estimate:
    """A figure with its interval, of an operating point that of the TPR; a plain number has none."""
    if isinstance(figure, OperatingPoint):
        return Estimate(figure.tpr, figure.low, figure.high)
    return figure if isinstance(figure, Estimate) else Estimate(figure, np.nan, np.nan)


def _decimals(share: float) -> int:
    """Decimals of a percentage, so that three figures count and the table stays narrow."""
    return next(
        (digits for bound, digits in ((0.1, 1), (0.01, 2), (1e-4, 3), (1e-9, 4)) if share >= bound), 0
    )
