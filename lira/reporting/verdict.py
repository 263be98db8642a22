"""The verdict: what an evaluation comes to, in sentences that need no statistics."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lira.metrics import OperatingPoint
from lira.reporting.figures import known, per_thousand, percent
from lira.reporting.measured import Measured, lowest_resolved, strongest_attack
from lira.reporting.published import PUBLISHED, published_of

__all__ = ["Verdict", "as_verdict", "verdict"]

GUESSING, MORE = "guessing", "more than guessing"
LESS, AMONG, ABOVE = "less than published", "as published", "more than published"


@dataclass(frozen=True)
class Verdict:
    """What an evaluation comes to. Figures are pooled over targets; of 1,000 members where sentences count."""

    attack: str
    """the headline attack, declared before any score was seen"""
    fpr: float | None
    """at which `tpr` is, a fraction; None where no listed rate up to 1 % can be resolved"""
    tpr: float | None
    low: float | None
    """the 95 % interval's ends, None without one"""
    high: float | None
    level: str
    """guessing, more than guessing (nothing is published at that rate), less than published, as published, more than
    published; empty where nothing can be measured"""
    strongest: str
    """the attack that turned out strongest"""
    num_attacks: int
    """of how many"""
    subject: str
    """which models and data, and their accuracy"""
    finding: str
    """how many members are named, and how many by guessing"""
    certainty: str
    """how sure that is"""
    comparison: str
    """whether that is much"""
    best: str
    """what the strongest attack gives, picked after all were seen; empty where there is one attack"""
    failed: tuple[str, ...] = ()
    """a sentence for each failed check: with any, figures are not to be believed"""
    warnings: tuple[str, ...] = ()
    """everything else that makes figures weaker, or other than they look"""

    @property
    def sentences(self) -> tuple[str, ...]:
        """The verdict, line by line."""
        doubt = (
            f"Do not rely on these figures: {'; '.join(self.failed)}." if self.failed else "",
            self.subject,
            f"{self.finding} {self.certainty}".strip(),
            self.comparison,
            self.best,
        )
        return tuple(filter(None, doubt))

    def __str__(self) -> str:
        """The sentences, and how many warnings there are."""
        count = len(self.warnings)
        warned = [f"{count} warning{'s' * (count > 1)}, see its warnings."] if count else []
        return "\n".join([*self.sentences, *warned])


def verdict(evaluation: Measured) -> Verdict:
    """What an evaluation comes to: of the headline attack, at the lowest rate from 0.1 % up that can be resolved."""
    attacks, name = evaluation.attacks, evaluation.headline
    point = lowest_resolved(attacks[name])
    strongest, _ = strongest_attack(attacks)
    level, comparison = _compared(evaluation, point)
    finding, certainty = _found(evaluation, point)
    tpr, low, high = (None,) * 3 if point is None else map(known, (point.tpr, point.low, point.high))
    failed = [f"{name}: {sentence}" for name, status, sentence in evaluation.checks if status == "fail"]
    doubtful = [f"{name}: {sentence}" for name, status, sentence in evaluation.checks if status == "warn"]
    return Verdict(
        attack=name,
        fpr=None if point is None else point.fpr,
        tpr=tpr,
        low=low,
        high=high,
        level=level,
        strongest=strongest,
        num_attacks=len(attacks),
        subject=_subject(evaluation),
        finding=finding,
        certainty=certainty,
        comparison=comparison,
        best=_best(evaluation, strongest, point),
        failed=tuple(failed),
        warnings=tuple(dict.fromkeys([*doubtful, *evaluation.warnings])),
    )


def as_verdict(document: dict[str, Any]) -> Verdict:
    """The verdict of a metrics.json.

    Raises:
        KeyError, TypeError: there is none in it, or one of another version.
    """
    fields: dict[str, Any] = document["verdict"]
    lists: dict[str, Any] = {name: tuple(fields[name]) for name in ("failed", "warnings")}
    return Verdict(**{**fields, **lists})


# --- Its sentences --------------------------------------------------------------------------------------------------


def _subject(evaluation: Measured) -> str:
    subject, targets = evaluation.subject, evaluation.num_models
    name = subject.model.replace(":", ".").rpartition(".")[2]  # of a dotted path its class
    models = f"{targets:,} {f'{name} ' if name else ''}model{'s' * (targets > 1)}"
    kind, _, place = subject.dataset.partition(":")
    data = place or ("" if kind == "memory" else kind)  # arrays have no name
    if kind in ("folder", "npz", "csv", "parquet", "hf"):
        data = place.partition(",")[0].rpartition("/")[2]  # without the options of a table
    examples = f"{data + ', ' if data else ''}{_trained_on(evaluation)}"
    by = f", attacked with {subject.num_models:,} others" if subject.outside else ""
    accuracies = {
        "its members (what it was trained on)": subject.accuracy_in,
        "the other examples": subject.accuracy_out,
        "held-out ones": subject.accuracy_test,
    }
    rights = [f"{percent(value)} of {of}" for of, value in accuracies.items() if not np.isnan(value)]
    says = "accuracy not known"
    if rights:
        says = f"{'it' if targets == 1 else 'a model'} gets {', '.join(rights[:-1])}{' and ' * (len(rights) > 1)}{rights[-1]} right"
    return f"{models} trained on {examples}{by}; {says}."


def _trained_on(evaluation: Measured) -> str:
    """How many of the examples a model has seen, where all of them were asked about."""
    targets, asked = evaluation.num_models, evaluation.num_examples
    total = evaluation.subject.num_examples or asked
    each = evaluation.num_members / targets
    if total != asked or each == asked:
        return f"{total:,} examples"
    if targets == 1:
        return f"{each:,.0f} of {total:,} examples"
    return f"{'half' if abs(each / asked - 0.5) < 0.02 else f'about {each:,.0f}'} of {total:,} examples each"


def _found(evaluation: Measured, point: OperatingPoint | None) -> tuple[str, str]:
    """How many members are named, and how sure that is."""
    attack = evaluation.attacks[evaluation.headline]
    if point is None:
        if np.isnan(attack.auc.value):
            return "Nothing can be measured: there are no members, or no non-members.", ""
        low, high = attack.auc.low, attack.auc.high
        found = (
            f"With {evaluation.num_nonmembers:,} non-members no rate of false alarms up to 1 % can be measured. Of a member "
            f"and a non-member {evaluation.headline} picks the member {100 * attack.auc.value:.0f} times in 100; guessing 50."
        )
        return found, _sure(evaluation, f"{100 * low:.0f}", f"{100 * high:.0f}", np.isnan(low))
    alarms = f"{1000 * point.fpr:g} false alarm{'s' * (point.fpr > 1e-3)} in 1,000 non-members"
    found = (
        f"Of 1,000 members {evaluation.headline} names {per_thousand(point.tpr)}, at {alarms}; guessing names "
        f"{1000 * point.fpr:g}."
    )
    sure = _sure(evaluation, per_thousand(point.low), per_thousand(point.high), np.isnan(point.low))
    if point.allowed < 10:
        sure += (
            f" Only {point.allowed} false alarm{'s are' if point.allowed > 1 else ' is'} behind that rate, which is some "
            f"{100 * point.expected_fpr:.2g} % in truth."
        )
    return found, sure


def _sure(evaluation: Measured, low: str, high: str, unknown: bool) -> str:
    if unknown:
        return f"How sure that is cannot be said: {evaluation.interval.removeprefix('none, because ')}."
    return f"The 95 % interval is {low} to {high}; other shadow models or examples would move it, too."


def _compared(evaluation: Measured, point: OperatingPoint | None) -> tuple[str, str]:
    """The level, and whether that is much beside published runs of the same attack at the same rate."""
    name = evaluation.headline
    if point is None:
        auc = evaluation.attacks[name].auc
        if np.isnan(auc.value):
            return "", ""
        guessed = (auc.value if np.isnan(auc.low) else auc.low) <= 0.5
        return (
            (GUESSING, "That is no more than guessing.") if guessed else (MORE, "That is more than guessing.")
        )
    if (point.tpr if np.isnan(point.low) else point.low) <= point.fpr:
        return GUESSING, f"That is no more than guessing may give.{_elsewhere(evaluation)}"
    metric = f"{point.fpr:g}"
    rows = sorted(
        (row for row in PUBLISHED if row.attack == name and metric in row.figures),
        key=lambda row: row.figures[metric],
    )
    if not rows:
        return MORE, "That is more than guessing. At this rate no published run of this attack is known here."
    least, most = rows[0].figures[metric], rows[-1].figures[metric]
    ends = [
        f"{per_thousand(row.figures[metric])} ({row.model} on {row.dataset}, {row.models} models)"
        for row in (rows[:1] if len(rows) == 1 else (rows[0], rows[-1]))
    ]
    level = LESS if point.tpr < least else ABOVE if point.tpr > most else AMONG
    words = {LESS: "less than any of them", ABOVE: "more than any of them", AMONG: "among them"}[level]
    same = ""
    for row in published_of(evaluation):
        if (row.attack, row.metric) == (name, metric):
            same += f" Published of the same data, model and number of models: {per_thousand(row.published)} ({row.source})."
    return level, f"Published runs of this attack name {' to '.join(ends)}: this is {words}.{same}"


def _elsewhere(evaluation: Measured) -> str:
    """What an attack tells that names no members at so few false alarms, where its AUC is beyond guessing."""
    auc = evaluation.attacks[evaluation.headline].auc
    if not auc.low > 0.5:
        return ""
    value, low, high = (f"{100 * each:.1f}" for each in (auc.value, auc.low, auc.high))
    return (
        f" With more false alarms it tells something: of a member and a non-member it picks the member {value} times in 100 "
        f"({low} to {high}), where guessing picks 50."
    )


def _best(evaluation: Measured, strongest: str, point: OperatingPoint | None) -> str:
    attacks = evaluation.attacks
    if len(attacks) == 1:
        return ""
    if strongest == evaluation.headline:
        return f"None of the {len(attacks)} attacks that were run is stronger."
    best = attacks[strongest]
    figure = (
        f"{100 * best.auc.value:.0f} in 100" if point is None else per_thousand(best.tpr_at[point.fpr].tpr)
    )
    return f"The strongest of {len(attacks)} attacks, picked after all results were seen, is {strongest}: {figure}."
