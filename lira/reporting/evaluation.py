"""An evaluation as Python and notebooks have it: its figures, and what is made of them."""

import html
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from lira.attacks.suite import ATTACKS, Attack, Pool, missing_signals, pool_p_values
from lira.attacks.thin import left_out
from lira.engine.trained import Check
from lira.learning.accounting import Guarantee
from lira.metrics import Estimate, OperatingPoint
from lira.reporting.frames import cells, frame
from lira.reporting.measured import Measured, Subject, calibrate, lowest_resolved, measure
from lira.reporting.plots import ROC_SIZE, plot_attacks, plot_examples, plot_roc, unstyled
from lira.reporting.records import ExampleRecord, Records, records_of
from lira.reporting.verdict import Verdict, verdict
from lira.reporting.write import ShownExamples, drawn_curves, shown_examples, stored_scores, write_report
from lira.store.checksums import checksum_of
from lira.store.places import Place, directory_at

if TYPE_CHECKING:
    import pandas

__all__ = ["Evaluation", "evaluate_pool"]


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Measured):
    """What was measured of every attack on the same targets, what it comes to, and every example by itself.

    `print(evaluation)` gives the verdict in plain words; `attacks` holds every figure with its interval.
    """

    records: Records | None = None
    """every example by itself; None where that was not asked"""
    shown: ShownExamples | None = None
    """what the most and the least vulnerable examples are drawn from; None without models on both sides of one"""
    facts: Mapping[str, str] = field(default_factory=dict)
    """what the page says about the pool, in order"""

    @property
    def verdict(self) -> Verdict:
        """What it comes to, in sentences that need no statistics: `print(evaluation.verdict)`."""
        return verdict(self)

    def to_frame(self) -> "pandas.DataFrame":
        """The pooled figures as a pandas table: a row for each attack, its name the index.

        Columns are fractions: auc, balanced_accuracy, tpr@0.001 and so on, each with _low and _high, the ends of its
        95 % interval; mean_auc is the mean over targets. NaN is what cannot be measured.

        Raises:
            ImportError: pandas is not installed.
        """
        rows = {}
        for name, attack in self.attacks.items():
            figures = {"auc": attack.auc, "balanced_accuracy": attack.balanced_accuracy}
            figures |= {f"tpr@{fpr:g}": point for fpr, point in attack.tpr_at.items()}
            figures["mean_auc"] = attack.mean_auc
            rows[name] = {
                column: end for key, each in figures.items() for column, end in cells(key, each).items()
            }
        return frame(rows, "attack", "evaluation.attacks")

    def plot_roc(self, ax: Axes | None = None, *, attacks: Collection[str] | None = None) -> Axes:
        """Draw ROC curves on logarithmic axes, see `plots.plot_roc`.

        Args:
            ax: axes to draw on; None takes a new figure of pyplot, which notebooks show.
            attacks: names of those to draw; None: as many of the strongest as there are colours, the headline's among them.

        Raises:
            ValueError: there is no such attack, or none with a curve.
        """
        curves = (
            self.curves if attacks is None else {name: self.curves[name] for name in _known(self, attacks)}
        )
        if not curves:
            raise ValueError("no attack has a curve: there are no members, or no non-members")
        drawn = drawn_curves(curves, self.headline) if attacks is None else curves
        return plot_roc(drawn, _new_axes(*ROC_SIZE) if ax is None else ax)

    def plot_attacks(self, ax: Axes | None = None, *, attacks: Collection[str] | None = None) -> Axes:
        """Draw every attack's TPR at the lowest FPR from 0.1 % up that is resolved, else its AUC: see `plots.plot_attacks`.

        Args:
            ax: axes to draw on; None takes a new figure of pyplot, which notebooks show.
            attacks: names of those to draw; None: all.

        Raises:
            ValueError: there is no such attack, or nothing can be measured.
        """
        chosen = {name: self.attacks[name] for name in _known(self, attacks)}
        point = lowest_resolved(self.attacks[self.headline])
        figures: dict[str, OperatingPoint | Estimate] = {
            name: each.auc if point is None else each.tpr_at[point.fpr] for name, each in chosen.items()
        }
        ax = _new_axes(5.6, 1.2 + 0.26 * len(figures)) if ax is None else ax
        return plot_attacks(figures, ax, headline=self.headline)

    def vulnerable(self, count: int = 10) -> list[ExampleRecord]:
        """The examples that rank highest by the headline attack; `pandas.DataFrame(evaluation.vulnerable(10))` is a table.

        Raises:
            ValueError: examples were not ranked.
        """
        if self.records is None:
            raise ValueError("the examples of this evaluation were not ranked by themselves")
        return self.records.most_vulnerable(count)

    def report(self, path: str | os.PathLike[str]) -> Place:
        """Write report.html, metrics.json, pictures and records into a directory, which is made if need be.

        Returns:
            The page.
        """
        arrays, known = stored_scores(path, self.attacks), {}
        if arrays:
            digest = checksum_of(json.dumps(arrays).encode())[:12]
            known["scores"] = f"fingerprint {digest}; metrics.json has that of each"
        write_report(
            path,
            self,
            examples=None if self.shown is None else plot_examples(*self.shown),
            records=self.records,
            arrays=arrays,
            facts={**self.facts, **known},
        )
        return directory_at(path) / "report.html"

    def __str__(self) -> str:
        """The verdict and how many warnings there are."""
        return str(self.verdict)

    def __repr__(self) -> str:
        """What was attacked by what, and what the headline attack comes to."""
        attack = self.attacks[self.headline]
        point = lowest_resolved(attack)
        found = f"AUC {attack.auc}" + ("" if point is None else f", TPR {point} at {point.fpr:g} FPR")
        return (
            f"Evaluation({self.num_models:,} model{'s' * (self.num_models != 1)}, {self.num_examples:,} examples, {len(self.attacks)} attacks; "
            f"{self.headline}: {found})"
        )

    def _repr_html_(self) -> str:
        """The verdict as a notebook shows it."""
        found = self.verdict
        lines = [f"<p>{html.escape(sentence)}</p>" for sentence in found.sentences]
        if doubts := [*found.failed, *found.warnings]:
            items = "".join(f"<li>{html.escape(each)}</li>" for each in doubts)
            count = f"{len(doubts)} warning{'s' * (len(doubts) > 1)}"
            lines.append(f"<details><summary>{count}</summary><ul>{items}</ul></details>")
        return "".join(lines)


def evaluate_pool(
    pool: Pool,
    scores: Mapping[str, np.ndarray],
    member: np.ndarray,
    *,
    subject: Subject,
    checks: Iterable[Check] = (),
    attacks: Mapping[str, Attack] = ATTACKS,
    headline: str | None = None,
    models: Sequence[int] | None = None,
    run_models: Sequence[int] | None = None,
    known: Mapping[str, Any] | None = None,
    images: np.ndarray | None = None,
    selected: Collection[str] | None = None,
    facts: Mapping[str, str] | None = None,
    warnings: Iterable[str] = (),
    proven: Guarantee | None = None,
) -> Evaluation:
    """Measure every attack on any pool, and every example by itself.

    Args:
        pool: what is attacked, and with what.
        scores: float `[T, N]` by attack, read when they are asked for.
        member: bool `[T, N]`, what each target was trained on.
        subject: what was attacked.
        checks: what was looked at.
        attacks: those that were asked for.
        headline: the attack that leads; None: see `measured.headline_attack`.
        models: index of each target.
        run_models: indices of all models of the run.
        known: labels, names and indices of the examples, for `records_of`.
        images: `[N, H, W, C]`, drawn as insets.
        selected: names of the attacks that were asked for; None: all.
        facts: what to say about the pool on its page, in order.
        warnings: for the top of the page; read last, so that they may grow until then.
        proven: of every model, where their training was private.

    Raises:
        ValueError: as `measured.measure`.
    """
    indices = None if models is None else sorted(models)
    # In this order, so that little is held when a large curve is.
    checks = tuple(checks)
    measured = measure(
        scores,
        member,
        indices,
        independent=pool.independent,
        headline=headline,
        num_shadows=len(pool.keep),
        proven=proven,
    )
    calibrated, p_value = calibrate(pool_p_values(pool, attacks), member)
    records = records_of(
        scores.items(), member, p_value=p_value, headline=measured.headline, models=models, **(known or {})
    )
    shown = None
    if pool.target is None:
        first, phi = measured.headline, pool.signals["phi"]
        shown = shown_examples(
            phi, pool.keep, scores[first], measured.attacks[first], records.title_of, images
        )
    facts = dict(facts or {})
    if missing := missing_signals(pool):
        facts["attacks left out"] = ", ".join(f"{name} (no {signal})" for name, signal in missing.items())
    without = {name: each.left_out for name, each in measured.attacks.items()}
    if sentences := left_out(without, member.shape[1]):
        facts["examples left out"] = "; ".join(sentences)
    fields = {
        **vars(measured),
        "calibrated": calibrated,
        "pool": None if run_models is None else list(run_models),
        "subject": subject,
        "checks": checks,
        "warnings": tuple(warnings),
        "selected": None if selected is None else tuple(selected),
    }
    return Evaluation(**fields, records=records, shown=shown, facts=facts)


# --- Parts -----------------------------------------------------------------------------------------------------------


def _known(evaluation: Measured, attacks: Collection[str] | None) -> list[str]:
    names = list(evaluation.attacks if attacks is None else attacks)
    for name in names:
        if name not in evaluation.attacks:
            raise ValueError(f"there is no attack {name!r} among {', '.join(evaluation.attacks)}")
    return names


@unstyled
def _new_axes(width: float, height: float) -> Axes:
    """Of a figure of pyplot, so that a notebook shows it."""
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]
