"""Figures: computed arrays in, artists out; nothing is computed here but where to put ink."""

from collections.abc import Mapping, Sequence
from typing import Literal

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullFormatter

from lira.metrics import Estimate, LearningPoint, OperatingPoint, Roc
from lira.reporting.figures import percent
from lira.reporting.inks import inks
from lira.reporting.measured import AttackFigures, Curve, thinned

__all__ = [
    "ROC_SIZE",
    "example_titles",
    "plot_attack_panels",
    "plot_attacks",
    "plot_examples",
    "plot_learning_curves",
    "plot_roc",
    "style",
    "unstyled",
]

IN_COLOR, OUT_COLOR = "#D55E00", "#0072B2"
ROC_SIZE = (6.4, 5.2)
# What a matplotlibrc asks for is for its owner's figures: LaTeX would choke on the names here.
unstyled = matplotlib.style.context("default", after_reset=False)


def style(ax: Axes, size: float, grid: Literal["both", "x"] = "both") -> None:
    """Give axes what all figures have in common: a faint grid below the ink, and no frame."""
    ax.tick_params(labelsize=size)
    ax.grid(axis=grid, color="0.9", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


@unstyled
def plot_roc(curves: Mapping[str, Roc | Curve] | Roc, ax: Axes | None = None) -> Axes:
    """Draw ROC curves with their 95 % bands on log-log axes, from the resolution floor to 1.

    Curves are steps, because only realised operating points exist. The zone below the floor, where an FPR would mean
    less than one false positive, is shaded.

    Args:
        curves: by attack, from `metrics.roc`, or thinned already; each in the ink that is its own on every page. Or one.
        ax: axes to draw on; None makes a figure of its own (`result.figure`).

    Returns:
        The axes. Lines and bands carry the attack's name as `gid`, the floor's line and zone "floor".
    """
    if ax is None:
        ax = Figure(figsize=ROC_SIZE, layout="constrained").add_subplot()
    if isinstance(curves, Roc):
        curves = {"attack": curves}
    drawn = inks(curves)
    curves = {name: thinned(each) if isinstance(each, Roc) else each for name, each in curves.items()}
    floor = min((curve.floor for curve in curves.values()), default=1e-3)
    left = floor / 1.8
    for name, curve in curves.items():
        color = drawn[name].color
        # Up to the first realised FPR the TPR is that at no false positive; often that FPR is the floor itself.
        start = int(np.searchsorted(curve.fpr, curve.floor * (1 + 1e-12), side="right")) - 1
        x, tpr = np.maximum(curve.fpr[start:], curve.floor), curve.tpr[start:]
        if not np.isnan(curve.low).all():
            # Logarithmic axes cannot take the zeros that a clipped interval ends in.
            low, high = (np.maximum(end[start:], left / 10) for end in (curve.low, curve.high))
            ax.fill_between(x, low, high, step="post", alpha=0.18, linewidth=0, color=color, gid=name)
        quoted = "unresolvable" if np.isnan(curve.low_fpr_tpr) else percent(curve.low_fpr_tpr)
        label = f"{name}  ({curve.auc:.3f}, {quoted})"
        line = ax.plot(x, tpr, drawstyle="steps-post", linewidth=1.6, label=label, color=color, gid=name)[0]
        line.set(linestyle=drawn[name].linestyle)
    ax.plot([left / 10, 1], [left / 10, 1], color="0.45", linewidth=0.9, dashes=(4, 3), gid="chance")
    ax.axvline(floor, color="0.35", linewidth=0.9, linestyle=":", gid="floor")
    ax.axvspan(left / 10, floor, color="0.5", alpha=0.18, linewidth=0, gid="floor")
    ax.annotate(
        f"resolution floor {100 * floor:.3g} %",
        (floor, 1),
        xytext=(0, 4),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        fontsize=8,
        color="0.35",
    )
    ax.set(xscale="log", yscale="log", xlim=(left, 1), ylim=(left, 1))
    ax.set_xlabel("false-positive rate", fontsize=11)
    ax.set_ylabel("true-positive rate", fontsize=11)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(numticks=12))
        axis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axis.set_minor_formatter(NullFormatter())
    style(ax, 9.5)
    if curves:
        legend = ax.legend(
            loc="lower right",
            fontsize=7.5,  # small enough to leave the curves in sight
            title="attack  (AUC, TPR at 0.1 % FPR)",
            title_fontsize=7.5,
        )
        legend.get_frame().set(alpha=0.9, edgecolor="0.85")
        legend.set_alignment("left")
    return ax


@unstyled
def plot_attacks(
    figures: Mapping[str, OperatingPoint | Estimate],
    ax: Axes | None = None,
    *,
    headline: str = "",
    label: str = "AUC",
) -> Axes:
    """Draw a figure of every attack with its 95 % interval, the largest on top.

    Args:
        figures: by attack, operating points at one FPR (from `Roc.tpr_at`; none that is unresolvable), drawn on a
            logarithmic axis; or estimates, such as `Roc.auc_interval` gives.
        ax: axes to draw on; None makes a figure of its own (`result.figure`).
        headline: the attack whose name is printed in bold.
        label: what estimates are of; at AUC and balanced accuracy chance is drawn, too.

    Returns:
        The axes. The values' line has the `gid` "figures", the intervals' "intervals", chance "chance".

    Raises:
        ValueError: there is no figure, or one that is NaN.
    """
    values = {name: _ends(each) for name, each in figures.items()}
    unknown = [name for name, (value, _, _) in values.items() if np.isnan(value)]
    if unknown or not values:
        raise ValueError(f"each attack needs a figure to be drawn; {', '.join(unknown) or 'none'} has none")
    names = sorted(values, key=lambda name: values[name][0])
    if ax is None:
        ax = Figure(figsize=(5.6, _height(names)), layout="constrained").add_subplot()
    first = figures[names[0]]
    fpr = first.fpr if isinstance(first, OperatingPoint) else None
    _draw_rows(ax, np.array([values[name] for name in names]).T, fpr, label)
    _name_rows(ax, names, headline)
    return ax


@unstyled
def plot_attack_panels(attacks: Mapping[str, AttackFigures], fpr: float, headline: str = "") -> Figure:
    """Draw every attack's TPR at one FPR and beside it its AUC, with their 95 % intervals; the strongest on top.

    Args:
        attacks: what was measured, by name.
        fpr: a key of their `tpr_at`, resolved by all of them.
        headline: the attack whose name is printed in bold.
    """
    names = sorted(attacks, key=lambda name: attacks[name].tpr_at[fpr].tpr)
    figure = Figure(figsize=(8.4, _height(names)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _draw_rows(left, np.array([_ends(attacks[name].tpr_at[fpr]) for name in names]).T, fpr)
    _draw_rows(right, np.array([_ends(attacks[name].auc) for name in names]).T)
    _name_rows(left, names, headline)
    return figure


def _height(names: Sequence[str]) -> float:
    """Of a figure with a row for each attack, in inches."""
    return 1.2 + 0.26 * len(names)


def _ends(figure: OperatingPoint | Estimate) -> tuple[float, float, float]:
    """The figure, of an operating point its TPR, and its interval's ends."""
    value = figure.tpr if isinstance(figure, OperatingPoint) else figure.value
    return value, figure.low, figure.high


def _draw_rows(ax: Axes, points: np.ndarray, fpr: float | None = None, label: str = "AUC") -> None:
    """Draw points and their intervals, float64 [3, attacks], from below; with `fpr` they are TPRs at it."""
    rows, chance = np.arange(points.shape[1]), {"AUC": 0.5, "balanced accuracy": 0.5}.get(label)
    zero = np.zeros(len(rows), bool)
    if fpr is not None:
        zero = points[0] == 0
        label, chance = f"TPR at {100 * fpr:g} % FPR", fpr
        # Logarithmic axes cannot take a measured zero: it stands at the left edge, with its number.
        edge = np.min(points[0], where=points[0] > 0, initial=fpr) / 3
        end = 1.3 * np.nanmax([fpr, *points[0], *points[2]])
        ax.set(xscale="log", xlim=(edge, end))
        # Where powers of ten would be one or two ticks, those between are named as well.
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if end < 30 * edge else (1,), numticks=12))
        ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        ax.xaxis.set_minor_formatter(NullFormatter())
        points = np.maximum(points, edge)
    values, low, high = points
    known = ~np.isnan(low)
    bars = ax.hlines(rows[known], low[known], high[known], color=OUT_COLOR, linewidth=2.2, alpha=0.45)
    bars.set_gid("intervals")
    ax.plot(values, rows, "o", color=OUT_COLOR, markersize=4.5, gid="figures", clip_on=False)
    for row in np.flatnonzero(zero):
        ax.annotate(
            "0", (values[row], row), xytext=(7, 0), textcoords="offset points", fontsize=8, va="center"
        )
    style(ax, 9, grid="x")
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.set_xlabel(label, fontsize=10)
    if chance is not None:
        ax.axvline(chance, color="0.35", linewidth=0.9, linestyle=":", gid="chance")


def _name_rows(ax: Axes, names: Sequence[str], headline: str) -> None:
    ax.set_yticks(range(len(names)), names)
    for label, name in zip(ax.get_yticklabels(), names, strict=True):
        label.set_fontweight("bold" if name == headline else "normal")


@unstyled
def plot_learning_curves(curves: Mapping[str, Sequence[LearningPoint]], fpr: float) -> Figure:
    """Draw TPR at one FPR against the number of shadow models: a panel an attack, with 95 % intervals."""
    columns = min(4, max(len(curves), 1))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(2.5 * columns + 0.6, 1.9 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for ax in axes.flat[len(curves) :]:
        ax.set_axis_off()
    for ax, (name, points) in zip(axes.flat, curves.items(), strict=False):
        ax.set_title(name, fontsize=8.5)
        shown = [point for point in points if point.tpr.status == "ok"]
        if not shown:
            ax.text(0.5, 0.5, points[-1].tpr.status, transform=ax.transAxes, ha="center", fontsize=8.5)
            continue
        sizes = [point.num_models for point in shown]
        values, low, high = (
            np.array([getattr(point.tpr, end) for point in shown]) for end in ("tpr", "low", "high")
        )
        ax.fill_between(sizes, low, high, color=OUT_COLOR, alpha=0.2, linewidth=0, gid=name)
        ax.plot(sizes, values, "o-", color=OUT_COLOR, markersize=3.5, linewidth=1.4, gid=name)
        ax.axhline(fpr, color="0.35", linewidth=0.9, linestyle=":", gid="chance")
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda size, _: f"{size:g}")
        style(ax, 8)
    figure.supxlabel("models in the pool", fontsize=9.5)
    figure.supylabel(f"TPR at {100 * fpr:g} % FPR", fontsize=9.5)
    return figure


@unstyled
def plot_examples(
    phi: np.ndarray,
    keep: np.ndarray,
    titles: Sequence[str],
    images: np.ndarray | None = None,
    *,
    sides: tuple[str, str] = ("trained on it", "not trained on it"),
    rows: tuple[str, str] = ("most vulnerable", "least vulnerable"),
) -> Figure:
    """Draw phi of the most and of the least vulnerable examples over models trained with and without them.

    Args:
        phi: float `[M, k, Q]` (queries are averaged) or `[M, k]`; the first half of the k examples are the most
            vulnerable, drawn in the upper row, the second half the least.
        keep: bool `[M, k]`.
        titles: k of them, in lines of up to some 35 characters.
        images: `[k, H, W]` or `[k, H, W, C]`, uint8 or float of any range, drawn as insets.
        sides: what the models are called for which `keep` is true, and false.
        rows: what the examples of the upper and of the lower row are called.

    Raises:
        ValueError: k is odd or 0, the arguments disagree about it, or all models or none hold an example.
    """
    phi = phi.mean(axis=2, dtype=np.float64) if phi.ndim == 3 else phi
    k = phi.shape[1]
    if k == 0 or k % 2:
        raise ValueError(f"as many most as least vulnerable examples are drawn; got {k} examples in all")
    if keep.shape != phi.shape or len(titles) != k or (images is not None and len(images) != k):
        raise ValueError(
            f"keep must be of shape {phi.shape} with {k} titles and images; got {keep.shape} with {len(titles)} "
            f"titles and {'no' if images is None else len(images)} images"
        )
    if keep.all(axis=0).any() or not keep.any(axis=0).all():
        raise ValueError(
            "an example is drawn by models trained with and without it; one of them lacks a side"
        )
    columns = k // 2
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(max(3.2 * columns, 4), 5.6), layout=layout)
    axes = figure.subplots(2, columns, squeeze=False)
    for i, ax in enumerate(axes.flat):
        _draw_example(ax, phi[:, i], keep[:, i], sides, None if images is None else images[i])
        ax.set_title(titles[i], fontsize=9)
    for row, kind in zip(axes, rows, strict=True):
        row[0].set_ylabel(f"{kind}\ndensity", fontsize=10)
    figure.supxlabel("logit-scaled confidence phi (mean over queries)", fontsize=10)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(handles[0]), fontsize=9, frameon=False)
    return figure


def example_titles(
    examples: np.ndarray, labels: np.ndarray | None, class_names: Sequence[str] = ()
) -> list[str]:
    """Titles for `plot_examples`: the examples' numbers, and their classes where these are known (not -1)."""
    if labels is None:
        return [f"example {i}" for i in examples]
    named = [class_names[label] if class_names else str(label) for label in labels[examples].tolist()]
    return [
        f"example {i}{f', class {name}' * bool(labels[i] >= 0)}"
        for i, name in zip(examples, named, strict=True)
    ]


def _draw_example(
    ax: Axes, phi: np.ndarray, keep: np.ndarray, sides: tuple[str, str], image: np.ndarray | None
) -> None:
    # Half a standard deviation of the narrower side, so that distant sides keep their shape.
    width = 0.5 * min(phi[keep].std(), phi[~keep].std())
    bins = np.histogram_bin_edges(phi, bins=int(np.clip(np.ptp(phi) / width, 8, 60)) if width > 0 else 8)
    margin = 0.12 * (bins[-1] - bins[0])
    grid = np.linspace(bins[0] - margin, bins[-1] + margin, 300)
    for side, label, color in ((keep, sides[0], IN_COLOR), (~keep, sides[1], OUT_COLOR)):
        values = phi[side]
        ax.hist(values, bins=list(bins), density=True, color=color, alpha=0.35, label=f"{label} (histogram)")
        mean, sd = values.mean(), values.std()
        if sd > 0:
            density = np.exp(-0.5 * ((grid - mean) / sd) ** 2) / (sd * np.sqrt(2 * np.pi))
            ax.plot(grid, density, color=color, linewidth=1.5, label="fitted Gaussian")
    ax.set_xlim(grid[0], grid[-1])
    ax.tick_params(labelsize=8.5)
    ax.spines[["top", "right"]].set_visible(False)
    if image is not None:
        # Room above the histograms, so that the picture hides none of them.
        ax.set_ylim(top=1.6 * ax.get_ylim()[1])
        inset = ax.inset_axes((0.02, 0.67, 0.3, 0.32))
        pixels = image if image.dtype == np.uint8 else (image - image.min()) / max(np.ptp(image), 1e-12)
        pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
        inset.imshow(pixels, cmap="gray" if pixels.ndim == 2 else None, interpolation="nearest")
        inset.set_anchor("NW")
        inset.set_axis_off()
