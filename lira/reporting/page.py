"""The self-contained page of a report."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from lira.metrics import Estimate
from lira.reporting.evaluate import DISCOVERY_RATE, Evaluation, strongest_attack
from lira.reporting.figures import percent, rate, share
from lira.reporting.plots import COLORS
from lira.reporting.records import INTERVAL, Records
from lira.reporting.tables import footnotes, fpr_header

__all__ = ["embedded", "named_values", "render_page", "report_page"]

# At which rates pooled and calibrated TPRs stand side by side.
CALIBRATED_FPRS = (1e-3, 1e-2)
# Examples that the page lists by name.
SHOWN = 20


def report_page(
    evaluation: Evaluation,
    pictures: Mapping[str, bytes],
    drawn: Sequence[str],
    *,
    records: Records | None = None,
    **parts: Any,
) -> str:
    """Render the page. Everything that comes from outside is escaped by the template."""
    attacks = evaluation.attacks
    first = next(iter(attacks.values()))
    return render_page(
        "report.html.j2",
        metrics=evaluation,
        headline=_headline(evaluation),
        records=records,
        vulnerable=None if records is None else _vulnerable(records),
        interval_of_records=INTERVAL,
        pictures={name: embedded(content) for name, content in pictures.items()},
        drawn=drawn,
        headers=[fpr_header(point) for point in first.tpr_at.values()],
        colors={name: COLORS[drawn.index(name)] if name in drawn else "transparent" for name in attacks},
        footnotes=footnotes(evaluation),
        calibrated_fprs=CALIBRATED_FPRS,
        discovery_rate=f"{100 * DISCOVERY_RATE:g} %",
        floor=f"{100 / evaluation.num_nonmembers:.3g} %" if evaluation.num_nonmembers else None,
        **parts,
    )


def _headline(evaluation: Evaluation) -> dict[str, Any]:
    name, fpr = strongest_attack(evaluation.attacks)
    attack, criterion, cards = evaluation.attacks[name], "AUC", []
    if fpr is not None:
        criterion = f"TPR at {100 * fpr:g} % FPR"
        cards = [(criterion, *rate(attack.tpr_at[fpr]))]
    cards += [("AUC", *share(attack.auc)), ("balanced accuracy", *share(attack.balanced_accuracy))]
    return {"attack": name, "criterion": criterion, "cards": cards}


def _vulnerable(records: Records) -> list[dict[str, Any]]:
    """The SHOWN examples that rank highest, each with its names and figures; ties at the end in the order of examples."""
    ranks = records.ranks
    order = np.argsort(ranks, kind="stable")[: min(SHOWN, int(np.sum(~np.isnan(ranks))))]
    attack, rows = records.attacks[records.headline], []
    for example in order.tolist():
        row = {
            "rank": int(ranks[example]),
            "index": records.index_of(example),
            "class": records.class_of(example),
        }
        row |= {"file": records.file_of(example), "halves": int(records.in_top_halves[example])}
        if attack.fpr is None:
            rates = attack.rates
            ends = (float(each[example]) for each in (rates.tpr, rates.low, rates.high))
            row |= {
                "figure": rate(Estimate(*ends)),
                "models": f"{rates.found[example]} of {rates.held[example]}",
            }
        else:
            nonmembers = int(np.sum(~records.member))
            row |= {"member": bool(records.member[0, example])}
            row |= {"models": f"{round(float(attack.fpr[example]) * nonmembers):,} of {nonmembers:,}"}
        rows.append(row)
    return rows


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
    environment.globals.update(percent=percent, rate=rate, share=share)
    return environment.get_template(template).render(**parts)


def named_values(values: Mapping[str, Any]) -> str:
    """A fact for a page: names and their values."""
    return ", ".join(f"{name} {value}" for name, value in values.items())
