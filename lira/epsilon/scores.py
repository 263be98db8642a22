"""Epsilon from scores of members and of non-members, by methods that assume different things."""

from collections.abc import Sequence

import numpy as np

from lira.epsilon.bound import EpsilonBound, auditing, level_of
from lira.epsilon.gaussian import gaussian_epsilon, lower_mu
from lira.epsilon.one_run import METHODS, best_guesses
from lira.numbers import as_array

__all__ = ["epsilon_bounds"]


def epsilon_bounds(
    in_scores: np.ndarray,
    out_scores: np.ndarray,
    *,
    delta: float,
    confidence: float = 0.95,
    threshold: float | Sequence[float] | None = None,
    chosen_from: int = 1,
    independent: bool = False,
    seed: int = 0,
) -> dict[str, EpsilonBound]:
    """Lower bounds on epsilon from scores of members and of non-members, by four methods with different assumptions.

    - "clopper_pearson" (Nasr et al. 2021, arXiv 2101.04535, section IV): the larger of
      `ln((TPR_low - delta) / FPR_up)` and `ln((TNR_low - delta) / FNR_up)`.
    - "one_run" (Steinke et al. 2023, arXiv 2305.08846, Theorem 5.2), less what the coin of membership itself explains,
      see `coin_limit`. Without a threshold the guesses are those of `canary_epsilons`, with one they are of members only.
    - "one_run_fdp" (Mahloujifar et al. 2024, arXiv 2410.22235), with the Gaussian mechanism's f and such a coin.
    - "gdp" (Nasr et al. 2023, arXiv 2302.07956): `mu = Phi^-1(1 - FPR_up) - Phi^-1(FNR_up)`, then `gaussian_epsilon`.

    Which of them applies is for the caller to know, see `EpsilonBound.assumes`. For one example n of a pool, whose
    models are independent trainings: `epsilon_bounds(phi[keep[:, n], n, 0], phi[~keep[:, n], n, 0], ...)`. For all
    examples of one target: `target_epsilons`.

    Args:
        in_scores: float `[n]`, higher = more likely a member. +-inf are ordered.
        out_scores: float `[m]`.
        delta: in [0, 1). With 0 only "clopper_pearson" is given: the others need delta > 0.
        confidence: in (0.5, 1), of each bound by itself.
        threshold: called a member from here on; chosen without these scores. Of several the best is taken, and they
            share the level. None chooses one on a random half of the scores and measures on the other half.
        chosen_from: of how many such bounds (of attacks, examples or methods) the largest is taken; they share what
            `confidence` leaves, so that the largest holds at it too.
        independent: whether each example's membership is known to have been drawn by a coin of its own, all of one
            probability, which need not be known. Scores cannot show it (a balanced design looks like fair coins), so
            without it the one-run bounds are not given.
        seed: of that split.

    Returns:
        By method; 0 where nothing can be claimed.

    Raises:
        ValueError: a side has fewer than two scores or a NaN, or an argument is out of range.
        ImportError: `jax_privacy` is missing.
    """
    library = auditing()
    sides = []
    for name, values in (("in_scores", in_scores), ("out_scores", out_scores)):
        side = np.asarray(as_array(values), np.float64)
        if side.ndim != 1 or len(side) < 2 or np.isnan(side).any():
            raise ValueError(f"{name} must be at least two numbers [n] without NaN; got shape {side.shape}")
        sides.append(side)
    a = level_of(delta, confidence, chosen_from)
    inside, outside, thresholds = _ranked(sides[0], sides[1], threshold)
    auditor = library.CanaryScoreAuditor(inside, outside)
    strategies = [library.Split(seed=seed)]
    if thresholds is not None:
        strategies = [library.Explicit(each) for each in thresholds.tolist()]
    found: dict[str, float] = {
        "clopper_pearson": max(
            auditor.epsilon_clopper_pearson(
                a / len(strategies), delta, one_sided=False, threshold_strategy=each
            )
            for each in strategies
        )
    }
    if delta > 0:
        if independent:
            scores, member = (
                np.concatenate([inside, outside]),
                np.arange(inside.size + outside.size) < inside.size,
            )
            for method in METHODS:
                found[method] = best_guesses(scores, member, a, delta, method, thresholds=thresholds)
        found["gdp"] = gaussian_epsilon(lower_mu(inside, outside, a, thresholds, seed), delta)
    return {method: EpsilonBound.of(method, each, delta, confidence) for method, each in found.items()}


def _ranked(
    inside: np.ndarray, outside: np.ndarray, threshold: float | Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Ranks in place of scores, and where among them the thresholds lie: the order is all that a bound looks at.

    `jax_privacy` takes infinite scores for thresholds that nobody reaches.
    """
    distinct, ranks = np.unique(np.concatenate([inside, outside]), return_inverse=True)
    ranks, thresholds = ranks.astype(np.float64), None
    if threshold is not None:
        given = np.atleast_1d(np.asarray(threshold, np.float64))
        if given.ndim != 1 or not given.size or np.isnan(given).any():
            raise ValueError(f"threshold must be a number, or several without NaN; got {threshold}")
        ends = [np.searchsorted(distinct, given, side) for side in ("left", "right")]
        thresholds = (ends[0] + ends[1] - 1) / 2
    return ranks[: len(inside)], ranks[len(inside) :], thresholds
