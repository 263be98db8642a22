"""Figures of unlearning: what was measured of every method, at one request and over requests."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lira.reporting.plots import COLORS, DASHES

__all__ = ["VERDICTS", "plot_methods", "plot_requests"]

# What is said of a method, with the colour and the mark that say it.
VERDICTS = {
    "exposed": ("#D55E00", "o"),
    "over-forgotten": ("#8A4FA3", "v"),
    "as retrained": ("#009E73", "s"),
}
RANGE_COLOR = "0.87"
Row = Mapping[str, Any]


def plot_methods(rows: Mapping[str, Row], *, fpr: float | None) -> Figure:
    """Draw U-LiRA's TPR and AUC and the normalised psi of each method, with their intervals, beside retraining's range.

    Args:
        rows: by method, "tpr", "auc" and "psi_n", each {"value", "low", "high"} (None where unknown), "verdict" (a key
            of VERDICTS), and "retrained_tpr" and "retrained_auc", ranges of the same shape.
        fpr: of the TPR; None where none can be resolved, and the panel says so.

    Returns:
        The figure. Marks and intervals carry the method's name as `gid`, ranges "retrained".
    """
    count = len(rows)
    figure = Figure(figsize=(10.5, 1.9 + 0.42 * count), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    titles = (
        f"U-LiRA: TPR at {100 * fpr:g} % FPR" if fpr is not None else "U-LiRA: TPR at low FPR",
        "U-LiRA: AUC",
        "normalised psi",
    )
    for ax, key, title in zip(axes, ("tpr", "auc", "psi_n"), titles, strict=True):
        ax.set_title(title, fontsize=10.5)
        for y, (name, row) in enumerate(rows.items()):
            _mark(ax, y, row[key], row["verdict"], name, "unresolvable" if key == "tpr" else "undefined")
        ax.tick_params(labelsize=9)
        ax.grid(axis="x", color="0.9", linewidth=0.7)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    for ax, key in zip(axes, ("retrained_tpr", "retrained_auc"), strict=False):
        own = next(iter(rows.values()))[key]
        if own["low"] is not None:
            ax.axvspan(own["low"], own["high"], color=RANGE_COLOR, linewidth=0, gid="retrained")
    tpr, auc, psi_n = axes
    if fpr is not None:
        # Linear up to the FPR itself, which guessing reaches, so that a TPR of 0 has its place.
        tpr.set_xscale("symlog", linthresh=fpr)
        tpr.set_xlim(left=0)
        tpr.axvline(fpr, color="0.45", linewidth=0.9, dashes=(4, 3))
        tpr.xaxis.set_major_formatter(_percent)
    else:
        tpr.set_xticks([])
    auc.axvline(0.5, color="0.45", linewidth=0.9, dashes=(4, 3))
    for x in (0, 1):
        psi_n.axvline(x, color="0.45", linewidth=0.9, dashes=(4, 3))
    tpr.set_xlabel("dashed: guessing", fontsize=8.5)
    auc.set_xlabel("dashed: guessing", fontsize=8.5)
    psi_n.set_xlabel("0: as retrained, 1: untouched", fontsize=8.5)
    tpr.set_yticks(range(count), list(rows), fontsize=10)
    tpr.set_ylim(count - 0.5, -0.5)
    handles: list[Any] = [
        Line2D([], [], color=color, marker=marker, linestyle="", label=verdict)
        for verdict, (color, marker) in VERDICTS.items()
        if verdict in {row["verdict"] for row in rows.values()}
    ]
    handles.append(Patch(color=RANGE_COLOR, label="range of exact retraining"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    return figure


def plot_requests(requests: Mapping[str, Sequence[Row]], *, fpr: float | None) -> Figure:
    """Draw the same figures over requests in sequence, one line a method, with its intervals as bands.

    Args:
        requests: by method, a row of `plot_methods` for each request, in order.
        fpr: as there.

    Returns:
        The figure. Lines and bands carry the method's name as `gid`. A figure that is not known leaves a gap.
    """
    figure = Figure(figsize=(10.5, 3.9), layout="constrained")
    axes = figure.subplots(1, 3)
    titles = (
        f"U-LiRA: TPR at {100 * fpr:g} % FPR" if fpr is not None else "U-LiRA: TPR (unresolvable)",
        "U-LiRA: AUC",
        "normalised psi",
    )
    for ax, key, title in zip(axes, ("tpr", "auc", "psi_n"), titles, strict=True):
        ax.set_title(title, fontsize=10.5)
        for index, (name, rows) in enumerate(requests.items()):
            value, low, high = (
                np.array([row[key][end] for row in rows], np.float64) for end in ("value", "low", "high")
            )
            x = np.arange(1, len(rows) + 1)
            color = COLORS[index % len(COLORS)]
            ax.fill_between(x, low, high, color=color, alpha=0.13, linewidth=0, gid=name)
            dashes = DASHES[index // len(COLORS) % len(DASHES)]
            ax.plot(
                x, value, dashes, color=color, marker="o", markersize=4, linewidth=1.5, label=name, gid=name
            )
        ax.set_xlabel("requests so far", fontsize=9.5)
        # All requests, also where a figure is known at one of them only.
        count = len(next(iter(requests.values())))
        ax.set_xlim(1 - 0.05 * count, count + 0.05 * count)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.tick_params(labelsize=9)
        ax.grid(color="0.9", linewidth=0.7)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    tpr, auc, psi_n = axes
    if fpr is not None:
        tpr.set_yscale("symlog", linthresh=fpr)
        tpr.set_ylim(bottom=0)
        tpr.axhline(fpr, color="0.45", linewidth=0.9, dashes=(4, 3))
        tpr.yaxis.set_major_formatter(_percent)
    auc.axhline(0.5, color="0.45", linewidth=0.9, dashes=(4, 3))
    for y in (0, 1):
        psi_n.axhline(y, color="0.45", linewidth=0.9, dashes=(4, 3))
    handles, labels = auc.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), 6), fontsize=9, frameon=False
    )
    return figure


def _percent(share: float, _: int) -> str:
    return f"{100 * share:g} %"


def _mark(ax: Axes, y: int, figure: Row, verdict: str, name: str, missing: str) -> None:
    """One figure with its interval, or the word that stands in its place."""
    color, marker = VERDICTS[verdict]
    if figure["value"] is None:
        ax.text(
            0.03,
            y,
            missing,
            transform=ax.get_yaxis_transform(),
            fontsize=8.5,
            color="0.4",
            style="italic",
            va="center",
        )
        return
    if figure["low"] is not None:
        ax.plot(
            [figure["low"], figure["high"]],
            [y, y],
            color=color,
            linewidth=2.2,
            solid_capstyle="butt",
            gid=name,
        )
    ax.plot([figure["value"]], [y], color=color, marker=marker, markersize=6.5, linestyle="", gid=name)
