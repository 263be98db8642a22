"""The self-contained page of a report."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from lira.attacks.suite import Pool, missing_signals
from lira.reporting.evaluate import FPRS, strongest_attack
from lira.reporting.plots import (
    COLORS,
    percent,
)
from lira.reporting.published import Comparison
from lira.reporting.tables import footnotes, fpr_header, rate_cells, share_cells

__all__ = ["attacks_left_out", "comparison_cells", "report_page"]


def report_page(
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
        headers=[fpr_header(first["tpr_at_fpr"][key], float(key)) for key in keys],
        pooled=_rows(attacks, drawn, ("auc", "balanced_accuracy")),
        means=_rows({name: attack["mean_over_targets"] for name, attack in attacks.items()}, drawn, ("auc",)),
        footnotes=footnotes(metrics),
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
            *share_cells({"j": j["j"], "j_low": j["low"], "j_high": j["high"]}, "j"),
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
        rows.append((label, *share_cells(named, name), means))
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
        rows.append(("stability", *share_cells(stable, "pearson"), means))
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


def comparison_cells(row: Comparison) -> dict[str, Any]:
    """One published figure and the run's own, as cells."""
    if row.metric in ("auc", "balanced_accuracy"):
        figures = {"value": row.value, "value_low": row.low, "value_high": row.high}
        label, shown, published = (
            row.metric.replace("_", " "),
            share_cells(figures, "value"),
            f"{row.published:.3f}",
        )
    else:
        point = {"status": "ok" if row.value is not None else "unresolvable", "tpr": row.value}
        label, published = f"TPR at {100 * float(row.metric):g} % FPR", percent(row.published)
        shown = rate_cells({**point, "low": row.low, "high": row.high})
    return {**row._asdict(), "label": label.replace("auc", "AUC"), "shown": shown, "published": published}


def _rows(attacks: Mapping[str, Any], drawn: list[str], shares: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "color": COLORS[drawn.index(name)] if name in drawn else "transparent",
            "cells": [share_cells(attack, key) for key in shares]
            + [rate_cells(attack["tpr_at_fpr"][f"{fpr:g}"]) for fpr in FPRS],
        }
        for name, attack in attacks.items()
    ]


def _headline(metrics: Mapping[str, Any]) -> dict[str, Any]:
    attacks = metrics["attacks"]
    name, fpr = strongest_attack(attacks)
    criterion, cards = "AUC", []
    if fpr is not None:
        criterion = f"TPR at {100 * float(fpr):g} % FPR"
        cards = [(criterion, *rate_cells(attacks[name]["tpr_at_fpr"][fpr]))]
    for label, key in (("AUC", "auc"), ("balanced accuracy", "balanced_accuracy")):
        cards.append((label, *share_cells(attacks[name], key)))
    return {"attack": name, "criterion": criterion, "cards": cards}


def embedded(picture: bytes) -> str:
    """A PNG file as a page's `data:image/png;base64,` wants it."""
    return base64.b64encode(picture).decode()


def render_page(template: str, **parts: Any) -> str:
    """Render a template of `templates/`; what comes from outside is escaped, what is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lira.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**parts)
