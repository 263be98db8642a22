"""The self-contained page of a report."""

import base64
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from lira.metrics import Estimate
from lira.reporting.figures import meaning_of_epsilon, percent, rate, share
from lira.reporting.glossary import GLOSSARY, WHICH
from lira.reporting.inks import inks
from lira.reporting.measured import DISCOVERY_RATE, Measured, lowest_resolved
from lira.reporting.published import published_of
from lira.reporting.records import INTERVAL, Records
from lira.reporting.tables import footnotes, fpr_header
from lira.reporting.verdict import verdict
from lira.versions import __version__

__all__ = ["embedded", "named_values", "render_page", "report_page"]

# At which rates pooled and calibrated TPRs stand side by side.
CALIBRATED_FPRS = (1e-3, 1e-2)
# Examples that the page lists by name.
SHOWN = 20


def report_page(
    evaluation: Measured,
    pictures: Mapping[str, bytes],
    drawn: Sequence[str],
    *,
    records: Records | None = None,
    facts: Mapping[str, str],
    title: str,
) -> str:
    """Render the page. Everything that comes from outside is escaped by the template."""
    attacks = evaluation.attacks
    published = published_of(evaluation)
    return render_page(
        "report.html.j2",
        title=title,
        metrics=evaluation,
        single=evaluation.num_models == 1,
        verdict=verdict(evaluation),
        cards=_cards(evaluation),
        threat=threat_model(evaluation),
        contents=_contents(evaluation, pictures, records, bool(published)),
        records=records,
        vulnerable=None if records is None else _vulnerable(records),
        interval_of_records=INTERVAL,
        pictures={name: embedded(content) for name, content in pictures.items()},
        drawn=drawn,
        headers=[fpr_header(point) for point in next(iter(attacks.values())).tpr_at.values()],
        inks=inks(attacks),
        footnotes=footnotes(evaluation),
        calibrated_fprs=CALIBRATED_FPRS,
        discovery_rate=f"{100 * DISCOVERY_RATE:g} %",
        floor=f"{100 / evaluation.num_nonmembers:.3g} %" if evaluation.num_nonmembers else None,
        published=published,
        glossary={name: GLOSSARY[name] for name in attacks if name in GLOSSARY},
        which=WHICH,
        facts=facts,
    )


def threat_model(evaluation: Measured) -> str:
    """Who attacks, with what, and what is asked, for people."""
    subject, targets = evaluation.subject, evaluation.num_models
    queries = f" and {subject.queries - 1} shifted or mirrored copies of it" if subject.queries > 1 else ""
    asked = (
        f"The attacker has an example and its label, sees how sure the attacked model is of that label for the example"
        f"{queries}, and is to tell whether the model was trained on it."
    )
    if not subject.outside:
        pair = (
            "the model trained on the complementary half is left out, too"
            if subject.design == "pairs"
            else ""
        )
        by = f"each of the {targets:,} models is attacked with the others{f' ({pair})' * bool(pair)}"
    else:
        by = f"{subject.num_models:,} models of its own, for {targets:,} attacked model{'s' * (targets > 1)}"
    return (
        f"{asked} What trained and untrained models say of the example the attacker learns from models of the same kind, "
        f"trained on data whose membership is known: {by}. An attacker with less (no labels, other data, few models) finds "
        f"less; the attacker never sees the attacked model's training data, nor its weights."
    )


def _cards(evaluation: Measured) -> list[tuple[str, str, str]]:
    """Of the headline attack: label, figure and interval."""
    attack, cards = evaluation.attacks[evaluation.headline], list[tuple[str, str, str]]()
    point = lowest_resolved(attack)
    if point is not None:
        cell = rate(point)
        cards.append((f"TPR at {100 * point.fpr:g} % FPR", cell.value, cell.interval))
    for label, cell in (("AUC", share(attack.auc)), ("balanced accuracy", rate(attack.balanced_accuracy))):
        cards.append((label, cell.value, cell.interval))
    return cards


def _contents(
    evaluation: Measured, pictures: Mapping[str, bytes], records: Records | None, published: bool
) -> dict[str, str]:
    """The headings of the sections that the page has, by their anchors, in order."""
    single = evaluation.num_models == 1
    most = "The examples with the highest scores" if single else "The most vulnerable examples"
    sections = {
        "threat": ("What was attacked, and how", True),
        "checks": ("Checks", bool(evaluation.checks)),
        "roc": ("ROC curves", True),
        "attacks": ("Every attack", "attacks" in pictures),
        "figures": ("Figures of every attack" if single else "Pooled over targets", True),
        "calibrated": ("Calibrated, example by example", bool(evaluation.calibrated)),
        "implied": ("What the headline attack implies", evaluation.implied is not None),
        "canaries": ("Canaries", evaluation.canaries is not None),
        "examples": ("Most and least vulnerable examples", "examples" in pictures),
        "vulnerable": (most, records is not None),
        "published": ("Did I reproduce it?", published),
        "means": ("Mean over targets", not single),
        "glossary": ("The attacks, and which one to report", True),
        "reading": ("How to read the numbers", True),
        "run": ("The run", True),
    }
    return {anchor: title for anchor, (title, there) in sections.items() if there}


def _vulnerable(records: Records) -> list[dict[str, Any]]:
    """The rows of the table of the SHOWN examples that rank highest."""
    nonmembers, rows = int(np.sum(~records.member)), []
    for each in records.most_vulnerable(SHOWN):
        row = {"rank": each.rank, "index": each.index, "class": each.class_name, "file": each.file}
        if each.member is None:
            row |= {"models": f"{each.found} of {each.held}", "halves": each.in_top_halves}
            row |= {"figure": rate(Estimate(each.tpr, each.low, each.high))}
        else:
            row |= {"models": f"{round(each.fpr * nonmembers):,} of {nonmembers:,}", "member": each.member}
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
    environment.globals.update(percent=percent, rate=rate, share=share, meaning_of_epsilon=meaning_of_epsilon)
    made = f"{datetime.datetime.now(datetime.UTC).date().isoformat()}, lira {__version__}"
    return environment.get_template(template).render(made=made, **parts)


def named_values(values: Mapping[str, Any]) -> str:
    """A fact for a page: names and their values."""
    return ", ".join(f"{name} {value}" for name, value in values.items())
