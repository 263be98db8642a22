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
from lira.leakage import leakage
from lira.membership import is_paired
from lira.metrics import MIN_CLUSTERS, Difference, Roc, mean_over_targets, most_and_least_vulnerable, roc
from lira.metrics.curve import BYTES_A_SCORE
from lira.metrics.document import estimate_entry, point_entry
from lira.parallel import side_by_side
from lira.plots import COLORS, ROC_SIZE, Curve, decimals, percent, plot_attacks, plot_examples, plot_roc
from lira.published import Comparison
from lira.suite import Pool, missing_signals

__all__ = [
    "FPRS",
    "Curve",
    "attacks_left_out",
    "differences_table",
    "evaluate",
    "example_figure",
    "low_fpr_threshold",
    "most_and_least_vulnerable",
    "plot_examples",
    "plot_roc",
    "png",
    "strongest_attack",
    "table",
    "write_report",
]

FPRS = (1e-5, 1e-4, 1e-3, 1e-2)
# The operating point that headlines, legends and per-example figures quote.
LOW_FPR = "0.001"
# Drawn always, because LiRA must beat it.
BASELINE = "global_threshold"
CURVE_POINTS = 2000
PNG_DPI = 200


def evaluate(scores: Mapping[str, np.ndarray], keep: np.ndarray) -> tuple[dict[str, Any], dict[str, Curve]]:
    """Measure every attack, those of different cores side by side: one full ROC curve is held for each.

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
    measured = side_by_side(
        lambda values: _measure(values, keep), scores.values(), bytes_each=BYTES_A_SCORE * keep.size
    )
    attacks = {name: entry for name, (entry, _) in zip(scores, measured, strict=True)}
    curves = {name: curve for name, (_, curve) in zip(scores, measured, strict=True) if curve is not None}
    strongest = None
    if members and nonmembers:
        name, _ = strongest_attack(attacks)
        strongest = {"attack": name, **leakage(scores[name], keep)}
    metrics = {
        "description": "pooled over targets, except under mean_over_targets; rates are fractions",
        "interval": interval_note(keep),
        "num_models": keep.shape[0],
        "num_examples": keep.shape[1],
        "num_members": members,
        "num_nonmembers": nonmembers,
        "attacks": attacks,
        "strongest": strongest,
    }
    return metrics, curves


def _measure(scores: np.ndarray, keep: np.ndarray) -> tuple[dict[str, Any], Curve | None]:
    """One attack's entry in metrics.json, and its curve to draw if it is defined."""
    curve = roc(scores, keep)
    points = [curve.tpr_at(fpr) for fpr in FPRS]
    entry = {
        **estimate_entry("auc", curve.auc_interval()),
        **estimate_entry("balanced_accuracy", curve.balanced_accuracy_interval()),
        "tpr_at_fpr": {f"{point.fpr:g}": point_entry(point) for point in points},
        "mean_over_targets": _mean_over_targets(scores, keep),
    }
    if not (curve.num_members and curve.num_nonmembers):
        return entry, None
    low = next(point.tpr for point in points if f"{point.fpr:g}" == LOW_FPR)
    return entry, _thin(curve, low)


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
    """Write metrics.json, roc.png, attacks.png and report.html into a directory, which is made if need be.

    roc.png has the curves of the strongest attacks, attacks.png the figures of all; the latter needs two attacks.

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
    drawn = _drawn(curves)
    figure = Figure(figsize=ROC_SIZE, layout="constrained")
    plot_roc(drawn, figure.add_subplot())
    pictures = {"roc": png(figure)}
    _, resolved = strongest_attack(metrics["attacks"])
    if len(metrics["attacks"]) > 1 and resolved is not None:
        pictures["attacks"] = png(plot_attacks(metrics["attacks"], resolved))
    if examples is not None:
        pictures["examples"] = png(examples)
    checks = list(checks)
    failed = [f"check failed: {name}: {sentence}" for name, status, sentence in checks if status == "fail"]
    page = _page(
        metrics,
        pictures,
        list(drawn),
        facts=dict(facts or {}),
        warnings=[*failed, *warnings],
        checks=checks,
        published=[_compared(each) for each in published],
        title=title,
    )
    files = {f"{name}.png": pictures[name] for name in ("roc", "attacks") if name in pictures}
    write_files(path, {**files, "report.html": page.encode(), "metrics.json": content})


def _page(
    metrics: Mapping[str, Any],
    pictures: Mapping[str, bytes],
    drawn: list[str],
    **parts: Any,
) -> str:
    """Render the page. Everything that comes from outside is escaped by the template."""
    attacks = metrics["attacks"]
    keys = [f"{fpr:g}" for fpr in FPRS]
    first = next(iter(attacks.values()))
    return render_page(
        "report.html.j2",
        metrics=metrics,
        headline=_headline(metrics),
        strongest=metrics.get("strongest"),
        implied=_implied(metrics.get("strongest")),
        pictures={name: embedded(content) for name, content in pictures.items()},
        drawn=drawn,
        headers=[_header(first["tpr_at_fpr"][key], float(key)) for key in keys],
        pooled=_rows(attacks, drawn, ("auc", "balanced_accuracy")),
        means=_rows({name: attack["mean_over_targets"] for name, attack in attacks.items()}, drawn, ("auc",)),
        footnotes=_footnotes(metrics),
        floor=f"{100 / metrics['num_nonmembers']:.3g} %" if metrics["num_nonmembers"] else None,
        **parts,
    )


def _implied(strongest: Mapping[str, Any] | None) -> list[tuple[str, str, str, str]]:
    """What the strongest attack implies: figure, value, interval, and what it means."""
    if strongest is None:
        return []
    at = f"{100 * strongest['fpr']:g} % FPR"
    j, fixed, stable = strongest["youden_j"], strongest["fixed_threshold"], strongest["stability"]
    rows = [
        (
            "Youden's J",
            *_share({"j": j["j"], "j_low": j["low"], "j_high": j["high"]}, "j"),
            f"TPR less FPR at the best threshold, which the other half of the targets chose; chosen on the same "
            f"scores it would read {j['optimistic']:.3f}"
            if j["optimistic"] is not None
            else "",
        )
    ]
    for key, name, label, means in (
        (
            "information_at_least",
            "bits",
            "information, at least",
            "bits a score tells about membership, by Fano's inequality from J",
        ),
        ("mutual_information", "bits", "information, estimated", "bits, from binned scores"),
        (
            "bayes_error_at_most",
            "error",
            "Bayes error, at most",
            "of the best attack there is, members and non-members alike",
        ),
    ):
        entry = strongest[key]
        named = {name: entry[name], f"{name}_low": entry["low"], f"{name}_high": entry["high"]}
        rows.append((label, *_share(named, name), means))
    for prior, value in strongest["ppv"].items():
        if value is not None:
            means = f"of those called members at {at}, where one in {1 / float(prior):g} is one"
            rows.append(("true members", percent(value), "", means))
    if fixed is not None:
        for name, means in (
            ("tpr", f"mean over targets, where the threshold for {at} was fixed on the other models alone"),
            (
                "fpr",
                f"what that threshold realises; up to {percent(fixed['largest_fpr'])} on a single target",
            ),
        ):
            point = {
                "status": "ok",
                "tpr": fixed[name],
                "low": fixed[f"{name}_low"],
                "high": fixed[f"{name}_high"],
            }
            rows.append((f"{name.upper()}, threshold fixed before", *rate_cells(point), means))
    if stable is not None:
        means = "correlation of the examples' vulnerability between two halves of the targets"
        rows.append(("stability", *_share(stable, "pearson"), means))
    if strongest["epsilon"] is not None:
        epsilon = strongest["epsilon"]
        means = (
            f"of the training, at delta {epsilon['delta']:g} and {100 * epsilon['confidence']:g} %, from the one-run "
            f"bounds of all targets; it holds where membership was drawn by fair coins"
        )
        rows.append(("epsilon, at least", f"{epsilon['at_least']:.2f}", "", means))
    return rows


def attacks_left_out(pool: Pool) -> dict[str, str]:
    """A fact for the page: the attacks that read what the pool does not hold; nothing where there is none."""
    missing = missing_signals(pool)
    if not missing:
        return {}
    return {"attacks left out": ", ".join(f"{name} (no {what})" for name, what in missing.items())}


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
        shown = rate_cells({**point, "low": row.low, "high": row.high})
    return {**row._asdict(), "label": label.replace("auc", "AUC"), "shown": shown, "published": published}


def _drawn(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """The curves for one picture, as many as there are colours: the strongest, and the global threshold to beat."""
    ranked = sorted(
        curves, key=lambda name: (name == BASELINE, np.nan_to_num(curves[name].low_fpr_tpr), curves[name].auc)
    )
    chosen = ranked[-len(COLORS) :]
    return {name: curve for name, curve in curves.items() if name in chosen}


def _rows(attacks: Mapping[str, Any], drawn: list[str], shares: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "color": COLORS[drawn.index(name)] if name in drawn else "transparent",
            "cells": [_share(attack, key) for key in shares]
            + [rate_cells(attack["tpr_at_fpr"][f"{fpr:g}"]) for fpr in FPRS],
        }
        for name, attack in attacks.items()
    ]


def strongest_attack(attacks: Mapping[str, Any]) -> tuple[str, str | None]:
    """The strongest attack at the lowest listed FPR from 0.1 % up that is resolvable, and that FPR; else by AUC."""
    first = next(iter(attacks.values()))
    for fpr, point in first["tpr_at_fpr"].items():
        if float(fpr) >= float(LOW_FPR) and point["status"] == "ok":
            return max(attacks, key=lambda name: attacks[name]["tpr_at_fpr"][fpr]["tpr"]), fpr
    return max(attacks, key=lambda name: attacks[name]["auc"] or 0), None


def _headline(metrics: Mapping[str, Any]) -> dict[str, Any]:
    attacks = metrics["attacks"]
    name, fpr = strongest_attack(attacks)
    criterion, cards = "AUC", []
    if fpr is not None:
        criterion = f"TPR at {100 * float(fpr):g} % FPR"
        cards = [(criterion, *rate_cells(attacks[name]["tpr_at_fpr"][fpr]))]
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


def rate_cells(point: Mapping[str, Any]) -> tuple[str, str]:
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


def _mean_over_targets(scores: np.ndarray, keep: np.ndarray) -> dict[str, Any]:
    means: dict[str, Any] = mean_over_targets(scores, keep, list(FPRS))
    # Every target must resolve an FPR before its TPR may be averaged.
    fewest = int(np.min(np.sum(~keep, axis=1)))
    defined = fewest > 0 and bool(keep.any(axis=1).all())
    tprs = {}
    for fpr, estimate in means["tpr_at_fpr"].items():
        status = "undefined" if not defined else "ok" if np.isfinite(estimate.value) else "unresolvable"
        floor = 1 / fewest if fewest else None
        tprs[f"{fpr:g}"] = {**estimate_entry("tpr", estimate, ""), "status": status, "floor": floor}
    return {**estimate_entry("auc", means["auc"]), "tpr_at_fpr": tprs}


def interval_note(keep: np.ndarray) -> str:
    """What the intervals of `metrics.roc` are."""
    units = "complementary pairs of models" if is_paired(keep) else "models"
    clusters = len(keep) // 2 if is_paired(keep) else len(keep)
    if 1 < clusters < MIN_CLUSTERS:
        return f"none, because {clusters} {units} are too few to resample"
    if len(keep) == 1:
        units = "members and non-members of the one target"
    return f"95 %, {units} resampled, conditional on the examples"


# --- What every report is made of -----------------------------------------------------------------------------------


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=PNG_DPI)
    return file.getvalue()


def embedded(picture: bytes) -> str:
    """A PNG file as a page's `data:image/png;base64,` wants it."""
    return base64.b64encode(picture).decode()


def render_page(template: str, **parts: Any) -> str:
    """Render a template beside this module; what comes from outside is escaped, what is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lira", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**parts)


def write_files(path: str | os.PathLike[str], contents: Mapping[str, bytes]) -> None:
    """Replace files of a directory, made if need be, in their order, each in one step: where the last is new, all are."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_atomically(path / name, content)
