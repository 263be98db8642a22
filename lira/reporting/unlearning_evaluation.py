"""What was measured of an unlearning: every method at every request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lira.forgetting import MethodFigures
from lira.forgetting.measure import ClassicalFigures
from lira.metrics import Estimate, OperatingPoint
from lira.reporting.frames import cells, frame
from lira.reporting.measured import interval_note

if TYPE_CHECKING:
    import pandas

__all__ = ["UnlearningEvaluation", "evaluate_unlearning"]


@dataclass(frozen=True, eq=False, repr=False)
class UnlearningEvaluation:
    """What was measured of every method, of everything forgotten up to each request."""

    interval: str  # what the intervals are
    num_models: int  # of each kind
    num_examples: int
    methods: dict[str, list[MethodFigures]]  # one for each request, in order
    costs: Mapping[str, float]  # relative to retraining, such as 0.05; a method that is not there has none

    def __repr__(self) -> str:
        """The verdict on each method."""
        verdicts = ", ".join(f"{name}: {each.verdict}" for name, each in self.last.items())
        return f"UnlearningEvaluation({self.num_models:,} models, {self.first.num_forgotten:,} forgotten; {verdicts})"

    def __str__(self) -> str:
        """What became of each method, in sentences."""
        return "\n".join(self.sentences)

    def to_frame(self) -> "pandas.DataFrame":
        """The figures after the last request as a pandas table: a row for each method, its name the index.

        Columns: verdict; auc and tpr@FPR of U-LiRA, psi_normalised, shift (of phi, against retrained models),
        forgetting_quality, klom, klom_95, accuracies by what they are measured on, and cost relative to retraining.
        Those with an interval have _low and _high beside them, its ends. NaN is what cannot be measured or resolved.

        Raises:
            ImportError: pandas is not installed.
        """
        rows: dict[str, dict[str, Any]] = {}
        for name, each in self.last.items():
            figures: dict[str, Estimate | OperatingPoint] = {"auc": each.u_lira.auc}
            figures |= {f"tpr@{fpr:g}": point for fpr, point in each.u_lira.tpr_at_fpr.items()}
            figures |= {"psi_normalised": self.classical(each).psi_normalised.estimate}
            figures |= {"shift": each.direction.shift}
            figures |= {f"{group}_accuracy": sides["after"] for group, sides in each.accuracy.items()}
            rows[name] = {"verdict": each.verdict}
            rows[name] |= {
                column: end for key, it in figures.items() for column, end in cells(key, it).items()
            }
            rows[name] |= {
                "forgetting_quality": each.quality,
                "klom": each.klom_mean,
                "klom_95": each.klom_95,
            }
            rows[name] |= {"cost": self.cost(name)}
        return frame(rows, "method", "evaluation.last")

    @property
    def num_requests(self) -> int:
        """Requests, one after the other."""
        return len(next(iter(self.methods.values())))

    @property
    def last(self) -> dict[str, MethodFigures]:
        """Each method after the last request."""
        return {name: requests[-1] for name, requests in self.methods.items()}

    @property
    def first(self) -> MethodFigures:
        """The first method after the last request: what is the same for all is taken from it."""
        return next(iter(self.last.values()))

    def cost(self, name: str) -> float:
        """What a method costs relative to retraining, NaN where that is not known."""
        return self.costs.get(name, np.nan)

    @property
    def doubts(self) -> list[str]:
        """What speaks against the verdicts themselves, a sentence each: a control that came out wrong."""
        doubts, control = [], self.last.get("retrain")
        if not self.first.is_resolved:
            doubts.append(
                f"nothing can be told apart here: the original models, which forgot nothing, are not told from retrained "
                f"ones (U-LiRA's AUC {self.first.untouched.auc.value:.3f}, of exact retraining up to "
                f"{self.first.retrained.auc.high:.3f}), so no method is shown to forget: take more models, more "
                f"forgotten examples, or a recipe that memorises more"
            )
        if control is not None and control.verdict in ("exposed", "over-forgotten"):
            doubts.append(
                f'do not trust these verdicts: "retrain" is exact retraining and is called {control.verdict} (U-LiRA\'s '
                f"AUC {control.u_lira.auc.value:.3f}), which it cannot be; chance alone does so in about one run of "
                f"ten: repeat it with another recipe.seed or more models, and believe of a method only what "
                f"lies clearly beyond retrain's own figures"
            )
        return doubts

    @property
    def sentences(self) -> list[str]:
        """What became of the methods at the last request, for people who know no statistics: the verdict, line by line.

        Counts are U-LiRA's TPR at the lowest FPR that can be resolved, of 100; of what only its AUC tells, the AUC.
        """
        first, last = self.first, self.last
        n, M = first.num_forgotten, self.num_models
        told = [
            f"{M:,} models, each trained on half of {self.num_examples:,} examples, were to forget {n:,} of these: a method has "
            f"worked where its models cannot be told from models that never saw the forgotten examples."
        ]
        if self.doubts and first.is_resolved:
            told.insert(0, "Do not rely on these sentences: a control came out wrong, see the first warning.")
        verdicts = {name: each.verdict for name, each in last.items()}
        counted, compared = self._counted, self._compared
        exposed = [name for name, verdict in verdicts.items() if verdict == "exposed"]
        plain = [name for name in exposed if last[name].shows_in_rate]
        averaged = [name for name in exposed if name not in plain]
        if plain:
            told.append(
                f"Not forgotten by {_explained(plain)}: of 100 forgotten examples an attack still names {counted(plain)}, at "
                f"{_alarms(first.lowest_fpr or 0)}; of a model that never saw them it names {self._never_seen}."
            )
        if averaged:
            told.append(
                f"Not forgotten by {_explained(averaged)}: of a forgotten example and one that the model never saw, the attack picks "
                f"the forgotten one {compared(averaged)} times in 100, where guessing picks 50."
            )
        if over := [name for name, verdict in verdicts.items() if verdict == "over-forgotten"]:
            told.append(
                f"Overdone by {_explained(over)}: models are less sure of the forgotten examples than models that never saw them, "
                f"which gives these away as what is left of them would."
            )
        if alike := [name for name, verdict in verdicts.items() if verdict == "as retrained"]:
            told.append(
                f"Forgotten by {_explained(alike)}, as far as {M:,} models and {n:,} examples can show: nothing tells these models "
                f"from ones that never saw the examples."
            )
        if open_ := [name for name, verdict in verdicts.items() if verdict == "not resolved"]:
            told.append(
                f"Nothing can be said of {_explained(open_)}: here even models that forgot nothing are not told from others."
            )
        return told

    def _counted(self, names: Sequence[str]) -> str:
        """Of 100, how many the attack names after each method: `38 (31 to 45) after none and ...`."""
        fpr = self.first.lowest_fpr or 0
        points = {name: self.last[name].u_lira.tpr_at_fpr[fpr] for name in names}
        return _listed(
            [_interval(Estimate(each.tpr, each.low, each.high), name) for name, each in points.items()]
        )

    def _compared(self, names: Sequence[str]) -> str:
        return _listed([_interval(self.last[name].u_lira.auc, name) for name in names])

    @property
    def _never_seen(self) -> str:
        """What the attack names, of 100, of exact retrainings: the range that holds 95 % of them."""
        each = self.first.retrained.tpr_at_fpr[self.first.lowest_fpr or 0]
        low, high = (f"{100 * end:.0f}" for end in (each.low, each.high))
        return low if low == high else f"{low} to {high}"

    @property
    def headline_psi(self) -> tuple[str, float]:
        """The classical attack and FPR at which psi is shown: the first at which normalised psi is resolved.

        Whether it is depends on the original and retrained models alone, and so is the same for all methods.
        """
        choices = {
            (name, fpr): each for name, by_fpr in self.first.classical.items() for fpr, each in by_fpr.items()
        }
        resolved = (choice for choice, each in choices.items() if each.psi_normalised.is_resolved)
        return next(resolved, next(iter(choices)))

    def classical(self, figures: MethodFigures) -> ClassicalFigures:
        """The classical attack that is shown, of one method at one request."""
        attack, fpr = self.headline_psi
        return figures.classical[attack][fpr]


def evaluate_unlearning(
    methods: Mapping[str, list[MethodFigures]],
    keep: np.ndarray,
    *,
    costs: Mapping[str, float] | None = None,
) -> UnlearningEvaluation:
    """Gather what was measured.

    Args:
        methods: by name, what `forgetting.measure` returns for each request, in order, of everything forgotten so far.
        keep: bool `[M, N]`, what the original models held.
        costs: of each method relative to retraining; a method that is not there has none.

    Raises:
        ValueError: there is no method or no request, or the methods have measured different numbers of them.
    """
    counts = {name: len(requests) for name, requests in methods.items()}
    if not counts or not min(counts.values()):
        raise ValueError("methods holds nothing measured: give each at least one request's figures")
    if len(set(counts.values())) > 1:
        raise ValueError(f"methods must have the same number of requests; got {counts}")
    M, N = keep.shape
    return UnlearningEvaluation(interval_note(keep), M, N, dict(methods), costs or {})


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _explained(names: Sequence[str]) -> str:
    """The methods, the controls with what they are."""
    controls = {"none": "none (which does nothing)", "retrain": "retrain (training anew without them)"}
    return _listed([controls.get(name, name) for name in names])


def _interval(figure: Estimate, name: str) -> str:
    """A share of 100 with its interval, after which method."""
    value, low, high = (f"{100 * end:.0f}" for end in (figure.value, figure.low, figure.high))
    between = "" if np.isnan(figure.low) or low == high else f" ({low} to {high})"
    return f"{value}{between} after {name}"


def _alarms(fpr: float) -> str:
    """A rate of false alarms: of 100, or of as many as make it one."""
    of = 100 if fpr >= 0.01 else round(1 / fpr)
    count = f"{of * fpr:g}"
    return f"{count} false alarm{'s' * (count != '1')} in {of:,}"
