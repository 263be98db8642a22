"""Figures as people read them, in a terminal's tables and in the page's cells."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich import box
from rich.table import Column, Table
from rich.text import Text

from lira.metrics import Difference
from lira.reporting.evaluate import FPRS
from lira.reporting.plots import decimals, percent

__all__ = ["differences_table", "footnotes", "fpr_header", "rate_cells", "share_cells", "table"]


# --- Tables and the page --------------------------------------------------------------------------------------------


def table(metrics: Mapping[str, Any]) -> Table:
    """The pooled metrics as a table for a terminal of 100 columns or more.

    Under each figure stands its 95 % interval. Under an FPR at which fewer than ten false positives are allowed stand
    their number k and the true FPR that such a threshold has on average.
    """
    attacks = metrics["attacks"]
    keys = [f"{fpr:g}" for fpr in FPRS]
    first = next(iter(attacks.values()))
    numbers = [fpr_header(first["tpr_at_fpr"][key], float(key)) for key in keys]
    columns = [Column("attack", overflow="fold")]
    for header in ("AUC", "balanced\naccuracy", *("\n".join(lines) for lines in numbers)):
        columns.append(Column(header, justify="right", no_wrap=True))
    result = Table(
        *columns,
        title=f"Membership inference, pooled over {metrics['num_models']:,} targets",
        title_justify="left",
        caption=Text("\n".join(footnotes(metrics))),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for name, attack in attacks.items():
        cells = [_cell(*share_cells(attack, key)) for key in ("auc", "balanced_accuracy")]
        cells += [_cell(*rate_cells(attack["tpr_at_fpr"][key])) for key in keys]
        result.add_row(Text(name), *cells)
    return result


def differences_table(differences: Mapping[str, Difference], title: str) -> Table:
    """Paired differences by attack as a table for a terminal."""
    first = next(iter(differences.values()), None)
    tpr = "TPR" if first is None else f"TPR at {100 * first.fpr:g} % FPR"
    result = Table(
        "attack",
        Column(f"{tpr}, percentage points", justify="right"),
        Column("AUC", justify="right"),
        title=title,
        title_justify="left",
        caption=Text("Differences with their 95 % intervals, from the same resamples for both."),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name, each in differences.items():
        cells = []
        for estimate, scale, digits in ((each.tpr, 100, 2), (each.auc, 1, 4)):
            value, low, high = (scale * end for end in (estimate.value, estimate.low, estimate.high))
            interval = "" if np.isnan(low) else f" [{low:+.{digits}f}, {high:+.{digits}f}]"
            cells.append("unresolvable" if np.isnan(value) else f"{value:+.{digits}f}{interval}")
        result.add_row(Text(name), *map(Text, cells))
    return result


def fpr_header(point: Mapping[str, Any], fpr: float) -> list[str]:
    lines = ["TPR at", f"{100 * fpr:g} % FPR"]
    if 1 <= point["allowed_false_positives"] < 10:
        lines += [f"k = {point['allowed_false_positives']}, true", f"≈ {100 * point['expected_fpr']:#.2g} %"]
    return lines


def footnotes(metrics: Mapping[str, Any]) -> list[str]:
    attacks = metrics["attacks"]
    points = next(iter(attacks.values()))["tpr_at_fpr"].values()
    notes = [f"Intervals (small figures): {metrics['interval']}."]
    if any(1 <= point["allowed_false_positives"] < 10 for point in points):
        notes.append("k: false positives allowed; true: the FPR that such a threshold has on average.")
    unresolvable = [point for point in points if point["status"] == "unresolvable"]
    if unresolvable:
        at_zero = ", ".join(
            f"{name} {percent(attack['tpr_at_fpr']['1e-05']['tpr_at_zero_fpr'])}"
            for name, attack in attacks.items()
        )
        notes.append(
            f"unresolvable: less than one false positive among {metrics['num_nonmembers']:,} non-members (floor "
            f"{100 * unresolvable[0]['floor']:.3g} %). TPR at 0 false positives: {at_zero}."
        )
    return notes


def _cell(value: str, interval: str) -> Text:
    text = Text(value)
    if interval:
        text.append("\n" + interval, style="dim")
    return text


def share_cells(figures: Mapping[str, Any], key: str) -> tuple[str, str]:
    """A figure and its interval, as fractions."""
    value, low, high = figures[key], figures[f"{key}_low"], figures[f"{key}_high"]
    if value is None:
        return "undefined", ""
    return f"{value:.3f}", "" if low is None else f"{low:.3f}–{high:.3f}"


def rate_cells(point: Mapping[str, Any]) -> tuple[str, str]:
    """A TPR and its interval in percent, or the status that stands in its place."""
    if point["status"] != "ok":
        return point["status"], ""
    low, high = point["low"], point["high"]
    digits = decimals(high or 0)
    return percent(point["tpr"]), "" if low is None else f"{100 * low:.{digits}f}–{100 * high:.{digits}f}"
