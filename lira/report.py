"""What a run found, for people: metrics.json, the log-log ROC figure, a terminal table and a self-contained page.

Figures are *pooled over targets* unless they are named as means over targets. A TPR that is a measured zero, one that
cannot be resolved and one that is undefined are three different things everywhere.
"""

import base64
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullFormatter
from rich import box
from rich.table import Column, Table
from rich.text import Text

from lira.membership import is_paired
from lira.metrics import MIN_CLUSTERS, Estimate, OperatingPoint, Roc, mean_over_targets, roc
from lira.store import write_atomically

__all__ = [
    "FPRS",
    "Curve",
    "evaluate",
    "low_fpr_threshold",
    "most_and_least_vulnerable",
    "plot_examples",
    "plot_roc",
    "table",
    "write_report",
]

FPRS = (1e-5, 1e-4, 1e-3, 1e-2)
# The operating point that headlines, legends and per-example figures quote.
LOW_FPR = "0.001"
CURVE_POINTS = 2000
# Okabe and Ito's palette, which the colour-blind can tell apart; after eight attacks the dashes change.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#4D4D4D", "#E69F00", "#56B4E9", "#8C6D31")
DASHES = ("-", "--", "-.", ":")
IN_COLOR, OUT_COLOR = "#D55E00", "#0072B2"
ROC_SIZE = (6.4, 5.2)
PNG_DPI = 200


@dataclass(frozen=True, eq=False)
class Curve:
    """A pooled ROC curve thinned for drawing: G realised operating points, the first at no false positive."""

    fpr: np.ndarray  # float64 [G], ascending from 0
    tpr: np.ndarray  # float64 [G]
    low: np.ndarray  # float64 [G], the 95 % interval's ends; NaN where there is none
    high: np.ndarray  # float64 [G]
    num_nonmembers: int
    auc: float
    low_fpr_tpr: float  # TPR at 0.1 % FPR; NaN where that is not resolvable

    @property
    def floor(self) -> float:
        """The lowest FPR that can be resolved, 1 / non-members."""
        return 1 / self.num_nonmembers


def evaluate(scores: Mapping[str, np.ndarray], keep: np.ndarray) -> tuple[dict[str, Any], dict[str, Curve]]:
    """Measure every attack, one at a time, so that only one full ROC curve is ever held.

    Args:
        scores: float `[T, N]` by attack, higher = more likely a member.
        keep: bool `[T, N]`, true where the target was trained on the example.

    Returns:
        The content of metrics.json, in which nothing is NaN (null instead), and the curves to draw. An attack whose
        curve is undefined (no members or no non-members at all) has none.

    Raises:
        ValueError: there is no attack, shapes disagree, or a score is NaN.
    """
    if not scores:
        raise ValueError("scores holds no attack: give at least one array [targets, examples] by name")
    keep = np.asarray(keep)
    members = int(keep.sum())
    nonmembers = keep.size - members
    attacks, curves = {}, {}
    for name, values in scores.items():
        curve = roc(values, keep)
        points = [curve.tpr_at(fpr) for fpr in FPRS]
        attacks[name] = {
            **_estimate("auc", curve.auc_interval()),
            **_estimate("balanced_accuracy", curve.balanced_accuracy_interval()),
            "tpr_at_fpr": {f"{point.fpr:g}": _point(point) for point in points},
            "mean_over_targets": _mean_over_targets(values, keep),
        }
        if members and nonmembers:
            low = next(point.tpr for point in points if f"{point.fpr:g}" == LOW_FPR)
            curves[name] = _thin(curve, low)
    metrics = {
        "description": "pooled over targets, except under mean_over_targets; rates are fractions",
        "interval": _interval(keep),
        "num_models": keep.shape[0],
        "num_examples": keep.shape[1],
        "num_members": members,
        "num_nonmembers": nonmembers,
        "attacks": attacks,
    }
    return metrics, curves


def low_fpr_threshold(attack: Mapping[str, Any]) -> tuple[float, float]:
    """The global operating point at which examples are judged: 0.1 % FPR, else the lowest resolvable one above it.

    Args:
        attack: one attack's entry in the metrics.

    Returns:
        (FPR, threshold). Where no listed FPR is resolvable: 0 and the threshold without a false positive.
    """
    for fpr, point in attack["tpr_at_fpr"].items():
        if float(fpr) >= float(LOW_FPR) and point["status"] == "ok":
            break
    else:
        fpr, point = "0", attack["tpr_at_fpr"][LOW_FPR]
    return float(fpr), np.inf if point["threshold"] is None else point["threshold"]


def most_and_least_vulnerable(
    scores: np.ndarray, keep: np.ndarray, threshold: float, count: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """The examples that are recognised in the largest, and in the smallest, share of the targets that hold them.

    Ties in that share (`metrics.example_tpr`) are broken by the mean score of members less that of non-members.
    Examples that all targets or none hold are left out.

    Args:
        scores: float `[T, N]`.
        keep: bool `[T, N]`.
        threshold: of a global FPR, see `low_fpr_threshold`.
        count: how many of each.

    Returns:
        int `[count]` most vulnerable first, and int `[count]` least vulnerable first; no example is in both.
    """
    held = keep.sum(axis=0)
    usable = np.flatnonzero((held > 0) & (held < len(keep)))
    scores, keep, held = scores[:, usable], keep[:, usable], held[usable]
    tpr = np.sum(keep & (scores >= threshold), axis=0) / held
    with np.errstate(invalid="ignore"):
        inside = np.sum(scores, axis=0, where=keep, dtype=np.float64) / held
        outside = np.sum(scores, axis=0, where=~keep, dtype=np.float64) / (len(keep) - held)
        gap = np.nan_to_num(inside - outside)
    order = usable[np.lexsort((gap, tpr))]
    count = min(count, len(order) // 2)
    return order[::-1][:count], order[:count]


# --- Figures: computed arrays in, artists out -----------------------------------------------------------------------


def plot_roc(curves: Mapping[str, Curve], ax: Axes | None = None) -> Axes:
    """Draw ROC curves with their 95 % bands on log-log axes, from the resolution floor to 1.

    Curves are steps, because only realised operating points exist. The zone below the floor, where an FPR would mean
    less than one false positive, is shaded.

    Args:
        curves: by attack, see `evaluate`.
        ax: axes to draw on; None makes a figure of its own (`result.figure`).

    Returns:
        The axes. Lines and bands carry the attack's name as `gid`, the floor's line and zone "floor".
    """
    if ax is None:
        ax = Figure(figsize=ROC_SIZE, layout="constrained").add_subplot()
    floor = min((curve.floor for curve in curves.values()), default=1e-3)
    left = floor / 1.8
    for index, (name, curve) in enumerate(curves.items()):
        color = COLORS[index % len(COLORS)]
        # Up to the first realised FPR the TPR is that at no false positive; often that FPR is the floor itself.
        start = int(np.searchsorted(curve.fpr, curve.floor * (1 + 1e-12), side="right")) - 1
        x, tpr = np.maximum(curve.fpr[start:], curve.floor), curve.tpr[start:]
        if not np.isnan(curve.low).all():
            # Logarithmic axes cannot take the zeros that a clipped interval ends in.
            low, high = (np.maximum(end[start:], left / 10) for end in (curve.low, curve.high))
            ax.fill_between(x, low, high, step="post", alpha=0.18, linewidth=0, color=color, gid=name)
        quoted = "unresolvable" if np.isnan(curve.low_fpr_tpr) else _percent(curve.low_fpr_tpr)
        label = f"{name}  ({curve.auc:.3f}, {quoted})"
        dashes = DASHES[index // len(COLORS) % len(DASHES)]
        ax.plot(
            x,
            tpr,
            drawstyle="steps-post",
            linewidth=1.6,
            linestyle=dashes,
            label=label,
            color=color,
            gid=name,
        )
    ax.plot([left / 10, 1], [left / 10, 1], color="0.45", linewidth=0.9, dashes=(4, 3), gid="chance")
    ax.axvline(floor, color="0.35", linewidth=0.9, linestyle=":", gid="floor")
    ax.axvspan(left / 10, floor, color="0.5", alpha=0.18, linewidth=0, gid="floor")
    ax.annotate(
        f"resolution floor {floor:.3g}",
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
    ax.tick_params(labelsize=9.5)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(numticks=12))
        axis.set_minor_formatter(NullFormatter())
    ax.grid(which="major", color="0.9", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    if curves:
        legend = ax.legend(
            loc="lower right", fontsize=8.5, title="attack  (AUC, TPR at 0.1 % FPR)", title_fontsize=8.5
        )
        legend.get_frame().set(alpha=0.9, edgecolor="0.85")
        legend.set_alignment("left")
    return ax


def plot_examples(
    phi: np.ndarray, keep: np.ndarray, titles: Sequence[str], images: np.ndarray | None = None
) -> Figure:
    """Draw phi of the most and of the least vulnerable examples over models trained with and without them.

    Args:
        phi: float `[M, k, Q]` (queries are averaged) or `[M, k]`; the first half of the k examples are the most
            vulnerable, drawn in the upper row, the second half the least.
        keep: bool `[M, k]`.
        titles: k of them, in lines of up to some 35 characters.
        images: `[k, H, W]` or `[k, H, W, C]`, uint8 or float of any range, drawn as insets.

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
        _draw_example(ax, phi[:, i], keep[:, i], None if images is None else images[i])
        ax.set_title(titles[i], fontsize=9)
    for row, kind in zip(axes, ("most", "least"), strict=True):
        row[0].set_ylabel(f"{kind} vulnerable\ndensity", fontsize=10)
    figure.supxlabel("logit-scaled confidence phi (mean over queries)", fontsize=10)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(handles[0]), fontsize=9, frameon=False)
    return figure


def _draw_example(ax: Axes, phi: np.ndarray, keep: np.ndarray, image: np.ndarray | None) -> None:
    # Half a standard deviation of the narrower side, so that distant sides keep their shape.
    width = 0.5 * min(phi[keep].std(), phi[~keep].std())
    bins = np.histogram_bin_edges(phi, bins=int(np.clip(np.ptp(phi) / width, 8, 60)) if width > 0 else 8)
    margin = 0.12 * (bins[-1] - bins[0])
    grid = np.linspace(bins[0] - margin, bins[-1] + margin, 300)
    for side, label, color in ((keep, "trained on it", IN_COLOR), (~keep, "not trained on it", OUT_COLOR)):
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


# --- Tables and the page --------------------------------------------------------------------------------------------


def table(metrics: Mapping[str, Any]) -> Table:
    """The pooled metrics as a table for a terminal of 100 columns or more.

    Under each figure stands its 95 % interval. Under an FPR at which fewer than ten false positives are allowed stand
    their number k and the true FPR that such a threshold has on average.
    """
    attacks = metrics["attacks"]
    keys = [f"{fpr:g}" for fpr in FPRS]
    first = next(iter(attacks.values()))
    numbers = [_header(first["tpr_at_fpr"][key], float(key)) for key in keys]
    columns = [Column("attack", overflow="fold")]
    for header in ("AUC", "balanced\naccuracy", *("\n".join(lines) for lines in numbers)):
        columns.append(Column(header, justify="right", no_wrap=True))
    result = Table(
        *columns,
        title=f"Membership inference, pooled over {metrics['num_models']:,} targets",
        title_justify="left",
        caption=Text("\n".join(_footnotes(metrics))),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for name, attack in attacks.items():
        cells = [_cell(*_share(attack, key)) for key in ("auc", "balanced_accuracy")]
        cells += [_cell(*_rate(attack["tpr_at_fpr"][key])) for key in keys]
        result.add_row(Text(name), *cells)
    return result


def write_report(
    path: str | os.PathLike[str],
    *,
    metrics: Mapping[str, Any],
    curves: Mapping[str, Curve],
    examples: Figure | None = None,
    facts: Mapping[str, str] | None = None,
    warnings: Iterable[str] = (),
    title: str = "Membership inference by LiRA",
) -> None:
    """Write metrics.json, roc.png and report.html into a directory, which is made if need be.

    Everything is rendered before the first file is touched, and every file is replaced in one step: what a kill
    leaves behind is old or new, never half. metrics.json comes last, so where it is new all of them are. The page
    embeds its pictures and refers to nothing outside itself.

    Args:
        path: the directory.
        metrics: from `evaluate`.
        curves: from `evaluate`.
        examples: from `plot_examples`.
        facts: what to say about the run, such as data set, recipe, accuracies and versions, in order.
        warnings: shown at the top of the page.
        title: heading of the page.
    """
    content = json.dumps(metrics, indent=2, allow_nan=False).encode()
    figure = Figure(figsize=ROC_SIZE, layout="constrained")
    plot_roc(curves, figure.add_subplot())
    picture = _png(figure)
    page = _page(metrics, picture, examples, dict(facts or {}), list(warnings), title)
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    write_atomically(path / "roc.png", picture)
    write_atomically(path / "report.html", page.encode())
    write_atomically(path / "metrics.json", content)


def _page(
    metrics: Mapping[str, Any],
    picture: bytes,
    examples: Figure | None,
    facts: dict[str, str],
    warnings: list[str],
    title: str,
) -> str:
    """Render the page. Everything that comes from outside is escaped by the template."""
    attacks = metrics["attacks"]
    keys = [f"{fpr:g}" for fpr in FPRS]
    first = next(iter(attacks.values()))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lira", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        metrics=metrics,
        headline=_headline(metrics),
        warnings=warnings,
        facts=facts,
        roc=base64.b64encode(picture).decode(),
        examples=None if examples is None else base64.b64encode(_png(examples)).decode(),
        headers=[_header(first["tpr_at_fpr"][key], float(key)) for key in keys],
        pooled=_rows(attacks, ("auc", "balanced_accuracy")),
        means=_rows({name: attack["mean_over_targets"] for name, attack in attacks.items()}, ("auc",)),
        footnotes=_footnotes(metrics),
        floor=f"{100 / metrics['num_nonmembers']:.3g} %" if metrics["num_nonmembers"] else None,
    )


def _rows(attacks: Mapping[str, Any], shares: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "color": COLORS[index % len(COLORS)],
            "cells": [_share(attack, key) for key in shares]
            + [_rate(attack["tpr_at_fpr"][f"{fpr:g}"]) for fpr in FPRS],
        }
        for index, (name, attack) in enumerate(attacks.items())
    ]


def _headline(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The strongest attack at the lowest listed FPR from 0.1 % up that is resolvable, else by AUC."""
    attacks = metrics["attacks"]
    first = next(iter(attacks.values()))
    for fpr, point in first["tpr_at_fpr"].items():
        if float(fpr) >= float(LOW_FPR) and point["status"] == "ok":
            criterion = f"TPR at {100 * float(fpr):g} % FPR"
            name = max(attacks, key=lambda name: attacks[name]["tpr_at_fpr"][fpr]["tpr"])
            cards = [(criterion, *_rate(attacks[name]["tpr_at_fpr"][fpr]))]
            break
    else:
        criterion, cards = "AUC", []
        name = max(attacks, key=lambda name: attacks[name]["auc"] or 0)
    for label, key in (("AUC", "auc"), ("balanced accuracy", "balanced_accuracy")):
        cards.append((label, *_share(attacks[name], key)))
    return {"attack": name, "criterion": criterion, "cards": cards}


def _header(point: Mapping[str, Any], fpr: float) -> list[str]:
    lines = ["TPR at", f"{100 * fpr:g} % FPR"]
    if 1 <= point["allowed_false_positives"] < 10:
        lines += [f"k = {point['allowed_false_positives']}, true", f"≈ {100 * point['expected_fpr']:#.2g} %"]
    return lines


def _footnotes(metrics: Mapping[str, Any]) -> list[str]:
    attacks = metrics["attacks"]
    points = next(iter(attacks.values()))["tpr_at_fpr"].values()
    notes = [f"Intervals (small figures): {metrics['interval']}."]
    if any(1 <= point["allowed_false_positives"] < 10 for point in points):
        notes.append("k: false positives allowed; true: the FPR that such a threshold has on average.")
    unresolvable = [point for point in points if point["status"] == "unresolvable"]
    if unresolvable:
        at_zero = ", ".join(
            f"{name} {_percent(attack['tpr_at_fpr']['1e-05']['tpr_at_zero_fpr'])}"
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


def _share(figures: Mapping[str, Any], key: str) -> tuple[str, str]:
    """A figure and its interval, as fractions."""
    value, low, high = figures[key], figures[f"{key}_low"], figures[f"{key}_high"]
    if value is None:
        return "undefined", ""
    return f"{value:.3f}", "" if low is None else f"{low:.3f}–{high:.3f}"


def _rate(point: Mapping[str, Any]) -> tuple[str, str]:
    """A TPR and its interval in percent, or the status that stands in its place."""
    if point["status"] != "ok":
        return point["status"], ""
    low, high = point["low"], point["high"]
    digits = _digits(high or 0)
    return _percent(point["tpr"]), "" if low is None else f"{100 * low:.{digits}f}–{100 * high:.{digits}f}"


def _percent(share: float) -> str:
    return f"{100 * share:.{_digits(share)}f} %"


def _digits(share: float) -> int:
    """Decimals of a percentage, so that three figures count and the table stays narrow."""
    return next(
        (digits for bound, digits in ((0.1, 1), (0.01, 2), (1e-4, 3), (1e-9, 4)) if share >= bound), 0
    )


# --- From metrics to plain numbers ----------------------------------------------------------------------------------


def _thin(curve: Roc, low_fpr_tpr: float) -> Curve:
    """The last point at each of some 2,000 log-spaced numbers of false positives, and of none."""
    false = curve.false_positives
    wanted = np.append(0, np.geomspace(1, curve.num_nonmembers, CURVE_POINTS - 1))
    index = np.unique(np.searchsorted(false, wanted * (1 + 1e-12), side="right") - 1)
    fpr = false[index] / curve.num_nonmembers
    tpr, low, high = curve.band(fpr)
    return Curve(fpr, tpr, low, high, curve.num_nonmembers, curve.auc, low_fpr_tpr)


def _point(point: OperatingPoint) -> dict[str, Any]:
    return {
        "tpr": _number(point.tpr),
        "low": _number(point.low),
        "high": _number(point.high),
        "status": point.status,
        "threshold": _number(point.threshold),
        "false_positives": point.false_positives,
        "allowed_false_positives": point.allowed,
        "expected_fpr": _number(point.expected_fpr),
        "distinct_examples": point.distinct_examples,
        "floor": _number(point.floor),
        "tpr_at_zero_fpr": _number(point.tpr_at_zero),
    }


def _mean_over_targets(scores: np.ndarray, keep: np.ndarray) -> dict[str, Any]:
    means: dict[str, Any] = mean_over_targets(scores, keep, list(FPRS))
    # Every target must resolve an FPR before its TPR may be averaged.
    fewest = int(np.min(np.sum(~keep, axis=1)))
    defined = fewest > 0 and bool(keep.any(axis=1).all())
    tprs = {}
    for fpr, estimate in means["tpr_at_fpr"].items():
        status = "undefined" if not defined else "ok" if np.isfinite(estimate.value) else "unresolvable"
        floor = 1 / fewest if fewest else None
        tprs[f"{fpr:g}"] = {**_estimate("tpr", estimate, ""), "status": status, "floor": floor}
    return {**_estimate("auc", means["auc"]), "tpr_at_fpr": tprs}


def _estimate(name: str, estimate: Estimate, prefix: str | None = None) -> dict[str, float | None]:
    prefix = f"{name}_" if prefix is None else prefix
    return {
        name: _number(estimate.value),
        f"{prefix}low": _number(estimate.low),
        f"{prefix}high": _number(estimate.high),
    }


def _number(value: float) -> float | None:
    """JSON knows neither NaN nor infinity."""
    return float(value) if np.isfinite(value) else None


def _interval(keep: np.ndarray) -> str:
    """What the intervals of `metrics.roc` are."""
    units = "complementary pairs of models" if is_paired(keep) else "models"
    clusters = len(keep) // 2 if is_paired(keep) else len(keep)
    if 1 < clusters < MIN_CLUSTERS:
        return f"none, because {clusters} {units} are too few to resample"
    if len(keep) == 1:
        units = "members and non-members of the one target"
    return f"95 %, {units} resampled, conditional on the examples"


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=PNG_DPI)
    return file.getvalue()
