"""The picture of a grid: utility against leakage, and against the measured and the proven epsilon."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lira.metrics import Estimate
from lira.reporting.grid_figures import GridFigures, SettingFigures
from lira.reporting.inks import COLORS
from lira.reporting.plots import style, unstyled

__all__ = ["accuracy_label", "fields_varied", "panels", "plot_grid", "spread"]

FRONT_COLOR, OTHER_COLOR, PROVEN_COLOR = COLORS[0], COLORS[4], COLORS[1]
# Where epsilon's axis has its marks; it is linear up to 1, so that a bound of 0 has its place.
EPSILON_TICKS = (0, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)


def accuracy_label(grid: GridFigures) -> str:
    """What the accuracies of a grid are on, for people."""
    return "test accuracy" if grid.side == "test" else "accuracy on non-members"


def fields_varied(grid: GridFigures) -> list[str]:
    """The fields by whose values all settings differ, without their tables; empty where not all vary the same ones."""
    first, *others = (list(each.values) for each in grid.settings.values())
    return [field.rpartition(".")[2] for field in first] if all(each == first for each in others) else []


def panels(grid: GridFigures) -> list[str]:
    """Which panels a grid's picture has: leakage, and where lower bounds are claimed, epsilon."""
    return ["leakage"] if grid.no_epsilon else ["leakage", "epsilon"]


@unstyled
def plot_grid(grid: GridFigures, which: Sequence[str] | None = None) -> Figure:
    """Draw each setting's accuracy against its TPR at low FPR, and beside it against its epsilon, measured and proven.

    Horizontal bars are standard deviations over models, vertical ones 95 % intervals. Settings on the front are filled and
    joined. Lower bounds are upright triangles; a line joins the proven epsilons that are finite.

    Args:
        grid: what was measured.
        which: of `panels`; None: all.

    Returns:
        The figure. Points carry the setting's name as `gid`, the front "front", the proven epsilons "proven".
    """
    which = panels(grid) if which is None else which
    figure = Figure(figsize=(5.6 * len(which), 5.2), layout="constrained")
    for ax, panel in zip(figure.subplots(1, len(which), squeeze=False)[0], which, strict=True):
        {"leakage": _draw_leakage, "epsilon": _draw_epsilon}[panel](ax, grid)
        ax.set_xlabel(accuracy_label(grid), fontsize=10)
        ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
        style(ax, 9)
    return figure


# From more points on one side their names stand in a column.
CROWD = 6


def _draw_leakage(ax: Axes, grid: GridFigures) -> None:
    """The TPR at low FPR, or where that cannot be resolved the AUC, over accuracy."""
    points = {name: _leakage(each) for name, each in grid.settings.items()}
    front = sorted(grid.front, key=lambda name: grid.settings[name].accuracy)
    if len(front) > 1:
        x, y = [grid.settings[name].accuracy for name in front], [points[name].value for name in front]
        ax.plot(x, y, color=FRONT_COLOR, linewidth=1.2, alpha=0.5, gid="front", zorder=1)
    for name, each in grid.settings.items():
        _draw_point(ax, name, each, points[name], "o", filled=name in grid.front)
    ax.margins(x=0.1, y=0.1)
    guessing = 0.5 if grid.fpr is None else grid.fpr
    ax.axhline(guessing, color="0.45", linewidth=0.9, dashes=(4, 3), gid="chance")
    ax.annotate(
        "guessing",
        (1, guessing),
        (-2, -3),
        ("axes fraction", "data"),
        "offset points",
        ha="right",
        va="top",
        fontsize=8,
        color="0.35",
    )
    if grid.fpr is not None:
        ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
        ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    label = "AUC" if grid.fpr is None else f"TPR at {100 * grid.fpr:g} % FPR"
    ax.set_ylabel(f"{label} of {grid.attack}", fontsize=10)
    ax.set_title("Utility against leakage: right and down is better", fontsize=10)
    _name_points(
        ax, grid, {name: (each.accuracy, points[name].value) for name, each in grid.settings.items()}
    )


def _draw_epsilon(ax: Axes, grid: GridFigures) -> None:
    """Lower bounds and proven epsilons, over accuracy."""
    marks, proofs = {}, []
    for name, each in grid.settings.items():
        if each.epsilon is not None:
            value = Estimate(each.epsilon.alone, np.nan, np.nan)
            _draw_point(ax, name, each, value, "^", filled=name in grid.front)
            marks[name] = each.accuracy, each.epsilon.alone
        if each.proven is not None and np.isfinite(each.proven.epsilon):
            proofs.append((each.accuracy, each.proven.epsilon))
    if proofs:
        x, y = np.array(sorted(proofs)).T
        ax.plot(x, y, "_-", color=PROVEN_COLOR, markersize=12, markeredgewidth=2, linewidth=1.4, gid="proven")
        ax.plot([], [], "_-", color=PROVEN_COLOR, label="proven: at most")
    ax.plot([], [], "^", color=FRONT_COLOR, label="measured: at least (95 % each)")
    highest = max([1.0, *(y for _, y in marks.values()), *(y for _, y in proofs)])
    ax.set_yscale("symlog", linthresh=1, linscale=1.2, base=2)
    ax.set_yticks([tick for tick in EPSILON_TICKS if tick <= 2 * highest], minor=False)
    ax.set_yticks([], minor=True)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_ylim(-0.12, 1.9 * highest)  # the legend stands above all points
    ax.margins(x=0.1)
    deltas = {each.delta for each in grid.settings.values()}
    ax.set_ylabel(f"epsilon{f' at delta {deltas.pop():g}' if len(deltas) == 1 else ''}", fontsize=10)
    ax.set_title("Measured and proven epsilon" if proofs else "Measured epsilon", fontsize=10)
    ax.legend(loc="upper left", fontsize=8, framealpha=0.9, ncols=2)
    _name_points(ax, grid, marks)


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


def _name_points(ax: Axes, grid: GridFigures, points: dict[str, tuple[float, float]]) -> None:
    """Write each setting's values, or its name, beside its point, towards the middle; a line leads where it had to move."""
    middle, alike = np.mean(ax.get_xlim()), bool(fields_varied(grid))
    for left in (False, True):
        names = sorted(
            (name for name, (x, _) in points.items() if (x > middle) == left),
            key=lambda name: points[name][1],
        )
        if not names:
            continue
        places = ax.transAxes.inverted().transform(ax.transData.transform([points[name] for name in names]))
        if len(names) > CROWD:  # in one column, beside all points and their bars
            places[:, 0] = max(places[:, 0].min() - 0.1, 0.3) if left else min(places[:, 0].max() + 0.1, 0.7)
        # The few on the other side make room for a column.
        leftward = left != (len(names) <= CROWD < len(points) - len(names))
        for name, (x, _), y in zip(names, places, spread(places[:, 1] + 0.028), strict=True):
            ax.annotate(
                ", ".join(part.partition("=")[2] for part in name.split(", ")) if alike else name,
                points[name],
                (x - 0.03 if leftward else x + 0.03, y),
                textcoords="axes fraction",
                ha="right" if leftward else "left",
                va="center",
                fontsize=8.5,
                bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.6},
                arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
            ).set_in_layout(False)


def spread(heights: np.ndarray, gap: float = 0.037) -> np.ndarray:
    """Ascending heights of labels in an axes, moved as a whole and apart until they are `gap` from each other, within it."""
    count = np.arange(len(heights))
    apart = np.maximum.accumulate(heights - gap * count) + gap * count
    apart -= np.mean(apart - heights)
    inside = np.maximum(apart, 0.03 + gap * count)
    return np.minimum(inside, 0.93 - gap * count[::-1])
