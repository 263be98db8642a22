"""Figures of unlearning: what was measured of every method, at one request and over requests."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lira.forgetting import MethodFigures
from lira.forgetting.measure import ClassicalFigures
from lira.metrics import Estimate
from lira.reporting.inks import inks
from lira.reporting.plots import style, unstyled

__all__ = ["VERDICTS", "MethodRow", "method_row", "plot_methods", "plot_requests"]

# What is said of a method, with the colour and the mark that say it.
VERDICTS = {
    "exposed": ("#D55E00", "o"),
    "over-forgotten": ("#8A4FA3", "v"),
    "as retrained": ("#009E73", "s"),
    "not resolved": ("0.45", "D"),
}
RANGE_COLOR = "0.87"
GUESSING: dict[str, Any] = {"color": "0.45", "linewidth": 0.9, "dashes": (4, 3)}
PANELS = ("tpr", "auc", "psi_n")
UNKNOWN = Estimate(float("nan"), float("nan"), float("nan"))


class MethodRow(NamedTuple):
    """What the figures draw of one method at one request; NaN where it is unknown."""

    verdict: str  # a key of VERDICTS
    tpr: Estimate
    auc: Estimate
    psi_n: Estimate
    retrained_tpr: Estimate  # the range of exact retraining
    retrained_auc: Estimate


def method_row(figures: MethodFigures, fpr: float | None, classical: ClassicalFigures) -> MethodRow:
    """What is drawn of a method: U-LiRA's TPR at `fpr`, its AUC, and the normalised psi of a classical attack."""
    reference, tpr, retrained_tpr = figures.retrained, UNKNOWN, UNKNOWN
    if fpr is not None:
        point = figures.u_lira.tpr_at_fpr[fpr]
        tpr, retrained_tpr = Estimate(point.tpr, point.low, point.high), reference.tpr_at_fpr[fpr]
    psi_n = classical.psi_normalised.estimate
    return MethodRow(figures.verdict, tpr, figures.u_lira.auc, psi_n, retrained_tpr, reference.auc)


@unstyled
def plot_methods(rows: Mapping[str, MethodRow], *, fpr: float | None) -> Figure:
    """Draw U-LiRA's TPR and AUC and the normalised psi of each method, with their intervals, beside retraining's range.

    Args:
        rows: by method.
        fpr: of the TPR; None where none can be resolved, and the panel says so.

    Returns:
        The figure. Marks and intervals carry the method's name as `gid`, ranges "retrained".
    """
    count, first = len(rows), next(iter(rows.values()))
    figure = Figure(figsize=(10.5, 1.9 + 0.42 * count), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    tpr, auc, psi_n = axes
    for ax, key in zip(axes, PANELS, strict=True):
        for y, (name, row) in enumerate(rows.items()):
            missing = "not resolved" if key == "psi_n" else "unresolvable"
            _mark(ax, y, getattr(row, key), row.verdict, name, missing)
        style(ax, 9, grid="x")
    for ax, reference in ((tpr, first.retrained_tpr), (auc, first.retrained_auc)):
        if not np.isnan(reference.low):
            ax.axvspan(reference.low, reference.high, color=RANGE_COLOR, linewidth=0, gid="retrained")
    if fpr is not None:
        # Linear up to the FPR itself, which guessing reaches, so that a TPR of 0 has its place.
        tpr.set_xscale("symlog", linthresh=fpr)
        tpr.set_xlim(left=0)
        tpr.xaxis.set_major_formatter(_percent)
    else:
        tpr.set_xticks([])
    _dress(axes, fpr, "U-LiRA: TPR at low FPR", lambda ax, x: ax.axvline(x, **GUESSING))
    tpr.set_xlabel("dashed: guessing", fontsize=8.5)
    auc.set_xlabel("dashed: guessing", fontsize=8.5)
    psi_n.set_xlabel("0: as retrained, 1: untouched", fontsize=8.5)
    tpr.set_yticks(range(count), list(rows), fontsize=10)
    tpr.set_ylim(count - 0.5, -0.5)
    handles: list[Any] = [
        Line2D([], [], color=color, marker=marker, linestyle="", label=verdict)
        for verdict, (color, marker) in VERDICTS.items()
        if verdict in {row.verdict for row in rows.values()}
    ]
    handles.append(Patch(color=RANGE_COLOR, label="range of exact retraining"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    return figure


@unstyled
def plot_requests(requests: Mapping[str, Sequence[MethodRow]], *, fpr: float | None) -> Figure:
    """Draw the same figures over requests in sequence, one line a method, with its intervals as bands.

    Args:
        requests: by method, a row of `plot_methods` for each request, in order.
        fpr: as there.

    Returns:
        The figure. Lines and bands carry the method's name as `gid`. A figure that is not known leaves a gap.
    """
    figure = Figure(figsize=(10.5, 3.9), layout="constrained")
    axes = figure.subplots(1, 3)
    drawn = inks(requests)
    for ax, key in zip(axes, PANELS, strict=True):
        for name, rows in requests.items():
            value, low, high = np.array([dataclasses.astuple(getattr(row, key)) for row in rows]).T
            x = np.arange(1, len(rows) + 1)
            color = drawn[name].color
            ax.fill_between(x, low, high, color=color, alpha=0.13, linewidth=0, gid=name)
            line = ax.plot(
                x, value, color=color, marker="o", markersize=4, linewidth=1.5, label=name, gid=name
            )[0]
            line.set(linestyle=drawn[name].linestyle)
        ax.set_xlabel("requests so far", fontsize=9.5)
        # All requests, also where a figure is known at one of them only.
        count = len(next(iter(requests.values())))
        ax.set_xlim(1 - 0.05 * count, count + 0.05 * count)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        style(ax, 9)
    tpr, auc, _ = axes
    if fpr is not None:
        tpr.set_yscale("symlog", linthresh=fpr)
        tpr.set_ylim(bottom=0)
        tpr.yaxis.set_major_formatter(_percent)
    _dress(axes, fpr, "U-LiRA: TPR (unresolvable)", lambda ax, y: ax.axhline(y, **GUESSING))
    handles, labels = auc.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), 6), fontsize=9, frameon=False
    )
    return figure


def _dress(
    axes: Sequence[Axes], fpr: float | None, unresolved: str, line: Callable[[Axes, float], Any]
) -> None:
    """Titles, and lines at what guessing reaches (of psi: retrained and untouched models)."""
    titles = (
        f"U-LiRA: TPR at {100 * fpr:g} % FPR" if fpr is not None else unresolved,
        "U-LiRA: AUC",
        "normalised psi",
    )
    marks = ([] if fpr is None else [fpr], [0.5], [0, 1])
    for ax, title, values in zip(axes, titles, marks, strict=True):
        ax.set_title(title, fontsize=10.5)
        for value in values:
            line(ax, value)


def _percent(share: float, _: int) -> str:
    return f"{100 * share:g} %"


def _mark(ax: Axes, y: int, figure: Estimate, verdict: str, name: str, missing: str) -> None:
    """One figure with its interval, or the word that stands in its place."""
    color, marker = VERDICTS[verdict]
    if np.isnan(figure.value):
        style: dict[str, Any] = {"fontsize": 8.5, "color": "0.4", "style": "italic", "va": "center"}
        ax.text(0.03, y, missing, transform=ax.get_yaxis_transform(), **style)
        return
    if not np.isnan(figure.low):
        ends = [figure.low, figure.high]
        ax.plot(ends, [y, y], color=color, linewidth=2.2, solid_capstyle="butt", gid=name)
    ax.plot([figure.value], [y], color=color, marker=marker, markersize=6.5, linestyle="", gid=name)
