"""What a run found, for people: metrics.json, the log-log ROC figure, a terminal table and a self-contained page.

Figures are *pooled over targets* unless they are named as means over targets. A TPR that is a measured zero, one that
cannot be resolved and one that is undefined are three different things everywhere.
"""

import base64
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Column, Table
from rich.text import Text

from lira.arrays import write_atomically
from lira.attacks import SignalArray
from lira.membership import is_paired
from lira.metrics import MIN_CLUSTERS, Estimate, OperatingPoint, Roc, example_tpr, mean_over_targets, roc
from lira.plots import COLORS, ROC_SIZE, Curve, decimals, percent, plot_examples, plot_roc
from lira.published import Comparison

__all__ = [
    "FPRS",
    "Curve",
    "evaluate",
    "example_figure",
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
PNG_DPI = 200


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
    if not len(usable):
        return usable, usable
    scores, keep, held = scores[:, usable], keep[:, usable], held[usable]
    tpr = example_tpr(scores, keep, threshold)
    with np.errstate(invalid="ignore"):
        inside = np.sum(scores, axis=0, where=keep, dtype=np.float64) / held
        outside = np.sum(scores, axis=0, where=~keep, dtype=np.float64) / (len(keep) - held)
        gap = np.nan_to_num(inside - outside)
    order = usable[np.lexsort((gap, tpr))]
    count = min(count, len(order) // 2)
    return order[::-1][:count], order[:count]


def example_figure(
    phi: SignalArray,
    keep: np.ndarray,
    scores: np.ndarray,
    attack: Mapping[str, Any],
    labels: np.ndarray | None = None,
    images: np.ndarray | None = None,
) -> Figure | None:
    """Draw the examples most and least at risk by an attack: see `plot_examples`.

    Args:
        phi: float `[M, N, Q]`, anything that slices along N.
        keep: bool `[M, N]`.
        scores: float `[M, N]`, the attack's.
        attack: its entry in the metrics.
        labels: int `[N]`, for the titles; -1 where it is not known.
        images: `[N, H, W, C]`, drawn as insets.

    Returns:
        The figure; None where no example has models on both sides, or there is only one.
    """
    _, threshold = low_fpr_threshold(attack)
    shown = np.concatenate(most_and_least_vulnerable(scores, keep, threshold))
    if not len(shown):
        return None
    values = np.stack([np.asarray(phi[:, i : i + 1])[:, 0] for i in shown], axis=1)
    titles = [
        f"example {i}" + (f", class {labels[i]}" if labels is not None and labels[i] >= 0 else "")
        for i in shown
    ]
    return plot_examples(values, keep[:, shown], titles, None if images is None else images[shown])


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
    checks: Iterable[tuple[str, str, str]] = (),
    published: Iterable[Comparison] = (),
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
        checks: name, status ("ok", "warn" or "fail") and a sentence of each, see `check.Check`; failed ones stand among
            the warnings too.
        published: from `published.compare`.
        title: heading of the page.
    """
    content = json.dumps(metrics, indent=2, allow_nan=False).encode()
    figure = Figure(figsize=ROC_SIZE, layout="constrained")
    plot_roc(curves, figure.add_subplot())
    picture = _png(figure)
    checks = list(checks)
    failed = [f"check failed: {name}: {sentence}" for name, status, sentence in checks if status == "fail"]
    page = _page(
        metrics,
        picture,
        examples,
        facts=dict(facts or {}),
        warnings=[*failed, *warnings],
        checks=checks,
        published=[_compared(each) for each in published],
        title=title,
    )
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    write_atomically(path / "roc.png", picture)
    write_atomically(path / "report.html", page.encode())
    write_atomically(path / "metrics.json", content)


def _page(
    metrics: Mapping[str, Any],
    picture: bytes,
    examples: Figure | None,
    **parts: Any,
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
        metrics=metrics,
        headline=_headline(metrics),
        roc=base64.b64encode(picture).decode(),
        examples=None if examples is None else base64.b64encode(_png(examples)).decode(),
        headers=[_header(first["tpr_at_fpr"][key], float(key)) for key in keys],
        pooled=_rows(attacks, ("auc", "balanced_accuracy")),
        means=_rows({name: attack["mean_over_targets"] for name, attack in attacks.items()}, ("auc",)),
        footnotes=_footnotes(metrics),
        floor=f"{100 / metrics['num_nonmembers']:.3g} %" if metrics["num_nonmembers"] else None,
        **parts,
    )


def _compared(row: Comparison) -> dict[str, Any]:
    """One published figure and the run's own, as cells."""
    if row.metric in ("auc", "balanced_accuracy"):
        figures = {"value": row.value, "value_low": row.low, "value_high": row.high}
        label, shown, published = (
            row.metric.replace("_", " "),
            _share(figures, "value"),
            f"{row.published:.3f}",
        )
    else:
        point = {"status": "ok" if row.value is not None else "unresolvable", "tpr": row.value}
        label, published = f"TPR at {100 * float(row.metric):g} % FPR", percent(row.published)
        shown = _rate({**point, "low": row.low, "high": row.high})
    return {**row._asdict(), "label": label.replace("auc", "AUC"), "shown": shown, "published": published}


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
    digits = decimals(high or 0)
    return percent(point["tpr"]), "" if low is None else f"{100 * low:.{digits}f}–{100 * high:.{digits}f}"


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
