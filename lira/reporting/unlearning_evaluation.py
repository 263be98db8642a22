"""What was measured of an unlearning: every method at every request."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lira.forgetting import MethodFigures
from lira.forgetting.measure import ClassicalFigures
from lira.reporting.measured import interval_note

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
    def headline_psi(self) -> tuple[str, float]:
        """The classical attack and FPR at which psi is shown: the first at which normalised psi is defined.

        Whether it is depends on the original and retrained models alone, and so is the same for all methods.
        """
        choices = {
            (name, fpr): each for name, by_fpr in self.first.classical.items() for fpr, each in by_fpr.items()
        }
        defined = (choice for choice, each in choices.items() if each.psi_normalised.is_defined)
        return next(defined, next(iter(choices)))

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
