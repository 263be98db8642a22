"""The self-contained page of a report."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from lira.metrics import Estimate
from lira.reporting.evaluate import Evaluation, strongest_attack
from lira.reporting.figures import Cell, percent, rate, share
from lira.reporting.implied import CONFIDENCE, DELTA, Leakage
from lira.reporting.plots import COLORS
from lira.reporting.published import Comparison
from lira.reporting.tables import footnotes, fpr_header

__all__ = ["embedded", "named_values", "render_page", "report_page"]


def report_page(
    evaluation: Evaluation,
    pictures: Mapping[str, bytes],
    drawn: Sequence[str],
    *,
    published: Sequence[Comparison] = (),
    **parts: Any,
) -> str:
    """Render the page. Everything that comes from outside is escaped by the template."""
    attacks = evaluation.attacks
    pooled = {
        name: [share(each.auc), share(each.balanced_accuracy), *map(rate, each.tpr_at.values())]
        for name, each in attacks.items()
    }
    means = {
        name: [share(each.mean_auc)]
        + [rate(mean.tpr, missing=mean.status) for mean in each.mean_tpr_at.values()]
        for name, each in attacks.items()
    }
    colors = {name: COLORS[drawn.index(name)] if name in drawn else "transparent" for name in attacks}
    first = next(iter(attacks.values()))
    return render_page(
        "report.html.j2",
        metrics=evaluation,
        headline=_headline(evaluation),
        implied=[] if evaluation.strongest is None else _implied(evaluation.strongest[1]),
        pictures={name: embedded(content) for name, content in pictures.items()},
        drawn=drawn,
        headers=[fpr_header(point) for point in first.tpr_at.values()],
        pooled=pooled,
        means=means,
        colors=colors,
        footnotes=footnotes(evaluation),
        floor=f"{100 / evaluation.num_nonmembers:.3g} %" if evaluation.num_nonmembers else None,
        published=[_comparison_row(each) for each in published],
        **parts,
    )


def _implied(implied: Leakage) -> list[tuple[str, str, str, str]]:
    """What the strongest attack implies: figure, value, interval, and what it means."""
    at = f"{100 * implied.fpr:g} % FPR"
    optimistic, fixed = implied.youden.optimistic, implied.fixed
    best = (
        f"TPR less FPR at the best threshold, which the other half of the targets chose; chosen on the same scores it "
        f"would read {optimistic:.3f}"
    )
    fano = "bits a score tells about membership, by Fano's inequality from J"
    rows = [
        ("Youden's J", share(implied.youden.j), "" if np.isnan(optimistic) else best),
        ("information, at least", share(implied.information), fano),
        ("information, estimated", share(implied.mutual_information), "bits, from binned scores"),
        (
            "Bayes error, at most",
            share(implied.bayes_error),
            "of the best attack there is, members and non-members alike",
        ),
    ]
    for prior, value in implied.ppv.items():
        means = f"of those called members at {at}, where one in {1 / prior:g} is one"
        rows.append(("true members", rate(Estimate(value, np.nan, np.nan)), means))
    if fixed is not None:
        means = f"mean over targets, where the threshold for {at} was fixed on the other models alone"
        rows.append(("TPR, threshold fixed before", rate(fixed.mean_tpr), means))
        largest = percent(float(np.max(fixed.target_fpr)))
        means = f"what that threshold realises; up to {largest} on a single target"
        rows.append(("FPR, threshold fixed before", rate(fixed.mean_fpr), means))
    if implied.stability is not None:
        means = "correlation of the examples' vulnerability between two halves of the targets"
        rows.append(("stability", share(implied.stability.pearson), means))
    if implied.epsilon is not None:
        means = (
            f"of the training, at delta {DELTA:g} and {100 * CONFIDENCE:g} %, from the one-run bounds of all targets; it "
            f"holds where membership was drawn by fair coins"
        )
        rows.append(("epsilon, at least", Cell(f"{implied.epsilon:.2f}"), means))
    return [(label, *cell, means) for label, cell, means in rows]


def _comparison_row(row: Comparison) -> dict[str, Any]:
    """One published figure and the run's own, as cells."""
    if row.metric in ("auc", "balanced_accuracy"):
        label = row.metric.replace("_", " ").replace("auc", "AUC")
        shown, published = share(row.measured), f"{row.published:.3f}"
    else:
        label, published = f"TPR at {100 * float(row.metric):g} % FPR", percent(row.published)
        shown = rate(row.measured, missing="unresolvable")
    return {**row._asdict(), "label": label, "shown": shown, "published": published}


def _headline(evaluation: Evaluation) -> dict[str, Any]:
    name, fpr = strongest_attack(evaluation.attacks)
    attack, criterion, cards = evaluation.attacks[name], "AUC", []
    if fpr is not None:
        criterion = f"TPR at {100 * fpr:g} % FPR"
        cards = [(criterion, *rate(attack.tpr_at[fpr]))]
    cards += [("AUC", *share(attack.auc)), ("balanced accuracy", *share(attack.balanced_accuracy))]
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


def named_values(values: Mapping[str, Any]) -> str:
    """A fact for a page: names and their values."""
    return ", ".join(f"{name} {value}" for name, value in values.items())
