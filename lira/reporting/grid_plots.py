"""The picture of a grid: utility against leakage, and against the measured and the proven epsilon."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lira.metrics import Estimate
from lira.reporting.grid_figures import GridFigures, SettingFigures
from lira.reporting.inks import COLORS
from lira.reporting.plots import style, unstyled

__all__ = ["accuracy_label", "plot_grid"]

FRONT_COLOR, OTHER_COLOR, PROVEN_COLOR = COLORS[0], COLORS[4], COLORS[1]


def accuracy_label(grid: GridFigures) -> str:
    """What the accuracies of a grid are on, for people."""
    return "test accuracy" if grid.side == "test" else "accuracy on examples not trained on"


@unstyled
def plot_grid(grid: GridFigures) -> Figure:
    """Draw each setting's accuracy against its TPR at low FPR, and beside it against its epsilon, measured and proven.

    Horizontal bars are standard deviations over models, vertical ones 95 % intervals. Settings on the front are filled and
    joined. Lower bounds are upright triangles; where a setting has a finite proof, a line joins the proven epsilons.

    Returns:
        The figure. Points carry the setting's name as `gid`, the front "front", the proven epsilons "proven".
    """
    bounded = any(each.epsilon is not None for each in grid.settings.values())
    figure = Figure(figsize=(11 if bounded else 6.4, 5.4), layout="constrained")
    axes = figure.subplots(1, 2 if bounded else 1, squeeze=False)[0]
    _draw_leakage(axes[0], grid)
    if bounded:
        _draw_epsilon(axes[1], grid)
    for ax in axes:
        ax.set_xlabel(f"{accuracy_label(grid)} (bars: models' standard deviation)", fontsize=9.5)
        ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
        style(ax, 9)
        ax.margins(x=0.12, y=0.12)
    return figure


def _draw_leakage(ax: Axes, grid: GridFigures) -> None:
    """The TPR at low FPR, or where that cannot be resolved the AUC, over accuracy."""
    points = {name: _leakage(each) for name, each in grid.settings.items()}
    front = sorted(grid.front, key=lambda name: grid.settings[name].accuracy)
    if len(front) > 1:
        xy = [(grid.settings[name].accuracy, points[name].value) for name in front]
        ax.plot(*zip(*xy, strict=True), color=FRONT_COLOR, linewidth=1.2, alpha=0.5, gid="front", zorder=1)
    for name, each in grid.settings.items():
        _draw_point(ax, name, each, points[name], "o", filled=name in grid.front)
    guessing = 0.5 if grid.fpr is None else grid.fpr
    ax.axhline(guessing, color="0.45", linewidth=0.9, dashes=(4, 3), gid="chance")
    ax.annotate(
        "guessing",
        (1, guessing),
        (-2, 3),
        ("axes fraction", "data"),
        "offset points",
        ha="right",
        fontsize=8,
        color="0.35",
    )
    if grid.fpr is not None:
        ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    label = "AUC" if grid.fpr is None else f"TPR at {100 * grid.fpr:g} % FPR"
    ax.set_ylabel(f"{label} of {grid.attack}", fontsize=10)
    ax.set_title("Utility against leakage (right and down is better)", fontsize=10)
    _name_points(ax, [(name, each.accuracy, points[name].value) for name, each in grid.settings.items()])


def _draw_epsilon(ax: Axes, grid: GridFigures) -> None:
    """Lower bounds and proven epsilons, over accuracy."""
    proofs = [
        (each.accuracy, each.proven.epsilon)
        for each in grid.settings.values()
        if each.proven is not None and np.isfinite(each.proven.epsilon)
    ]
    if proofs:
        ax.plot(
            *zip(*sorted(proofs), strict=True), "_-", color=PROVEN_COLOR, markersize=13, markeredgewidth=2, linewidth=1.4,
            gid="proven", label="proven: at most",
        )  # fmt: skip
    marks = []
    for name, each in grid.settings.items():
        if each.epsilon is None:
            continue
        value = Estimate(each.epsilon, np.nan, np.nan)
        _draw_point(ax, name, each, value, "^", filled=name in grid.front)
        marks.append((name, each.accuracy, each.epsilon))
    ax.plot(
        [],
        [],
        "^",
        color=FRONT_COLOR,
        linestyle="none",
        label="measured: at least (all hold together with 95 %)",
    )
    # Linear up to 1, so that bounds of 0 have their place.
    ax.set_yscale("symlog", linthresh=1)
    ax.set_ylim(bottom=-0.12)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    deltas = {each.delta for each in grid.settings.values()}
    delta = f" at delta {next(iter(deltas)):g}" if len(deltas) == 1 else ""
    ax.set_ylabel(f"epsilon{delta}", fontsize=10)
    ax.set_title("Measured and proven epsilon", fontsize=10)
    ax.legend(loc="upper left", fontsize=8, framealpha=0.9)
    _name_points(ax, marks)


def _leakage(figures: SettingFigures) -> Estimate:
    """What the front is of, with its interval."""
    point = figures.tpr
    return figures.auc if point is None else Estimate(point.tpr, point.low, point.high)


def _draw_point(
    ax: Axes, name: str, figures: SettingFigures, y: Estimate, mark: str, *, filled: bool
) -> None:
    color, x = FRONT_COLOR if filled else OTHER_COLOR, figures.accuracy
    if np.isfinite(figures.spread):
        ax.plot(
            [x - figures.spread, x + figures.spread], [y.value] * 2, color=color, alpha=0.35, linewidth=1.2
        )
    if np.isfinite(y.low):
        ax.plot([x, x], [y.low, y.high], color=color, alpha=0.45, linewidth=2)
    ax.plot(
        x, y.value, mark, color=color, markerfacecolor=color if filled else "white", markersize=7, gid=name
    )


def _name_points(ax: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Write each setting's name beside its point, on alternate sides where points stand close."""
    ordered = sorted(points, key=lambda point: (point[1], point[2]))
    for number, (name, x, y) in enumerate(ordered):
        above = number % 2 == 0
        ax.annotate(
            name,
            (x, y),
            (5, 6 if above else -6),
            textcoords="offset points",
            va="bottom" if above else "top",
            fontsize=8,
        )
