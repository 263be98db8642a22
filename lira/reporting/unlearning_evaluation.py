"""What was measured of an unlearning: every method at every request."""

from collections.abc import Mapping
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
