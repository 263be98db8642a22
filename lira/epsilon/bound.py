"""What a lower bound on epsilon is, and what each kind assumes."""

from dataclasses import dataclass

import numpy as np

__all__ = ["ASSUMES", "EpsilonBound", "auditing", "level_of"]

TRIALS = (
    "every score comes from a training of its own (independent trials): phi of one example over the models of a pool "
    "may, scores of many examples of one model may not"
)
ONE_RUN = (
    "every example was a member by a coin of its own, of one probability, and no score used the coins: the examples of "
    "one model may, whose membership was drawn so and whose pair was left out"
)
GAUSSIAN = "the whole trade-off curve is a Gaussian mechanism's, which one threshold cannot show"
ASSUMES = {
    "clopper_pearson": TRIALS,
    "one_run": ONE_RUN,
    "one_run_fdp": f"{ONE_RUN}; and {GAUSSIAN}",
    "gdp": f"{TRIALS}; and {GAUSSIAN}",
}


@dataclass(frozen=True)
class EpsilonBound:
    """A lower bound on epsilon: with probability `confidence` the true one is not below it, if `assumes` holds."""

    method: str  # "clopper_pearson", "one_run", "one_run_fdp" or "gdp"
    epsilon: float
    delta: float
    confidence: float
    assumes: str

    @classmethod
    def of(cls, method: str, epsilon: float, delta: float, confidence: float) -> "EpsilonBound":
        """With what its method assumes."""
        return cls(method, float(epsilon), delta, confidence, ASSUMES[method])

    def __str__(self) -> str:
        """Show `epsilon >= 1.99 at delta 1e-05 (95 %, gdp), if every score ...`."""
        return (
            f"epsilon >= {self.epsilon:.3g} at delta {self.delta:g} ({100 * self.confidence:g} %, {self.method}), "
            f"if {self.assumes}"
        )


def level_of(delta: float, confidence: float, chosen_from: int) -> float:
    """The probability with which one of the bounds may be too large, where `chosen_from` of them share what is left.

    Raises:
        ValueError: an argument is out of range.
    """
    if not 0 <= delta < 1:
        raise ValueError(f"delta must be in [0, 1); got {delta}")
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence must be between 0.5 and 1, such as 0.95; got {confidence}")
    if chosen_from != np.floor(chosen_from) or chosen_from < 1:
        raise ValueError(
            f"chosen_from must be the number of bounds that the largest is taken of, from 1; got {chosen_from}"
        )
    return (1 - confidence) / chosen_from


def auditing():
    """The module of `jax_privacy`, an extra."""
    try:
        from jax_privacy import auditing
    except ImportError as error:
        raise ImportError('epsilon bounds need jax_privacy: pip install "lira[privacy]"') from error
    return auditing
