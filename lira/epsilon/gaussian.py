"""The Gaussian mechanism: its epsilon by mu, and a lower bound on mu from scores."""

import numpy as np
from scipy import special

__all__ = ["gaussian_epsilon", "lower_mu"]


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon at `delta` of a mechanism whose trade-off curve is that of N(0, 1) against N(mu, 1).

    Solves `delta = Phi(-eps / mu + mu / 2) - e^eps Phi(-eps / mu - mu / 2)` (Dong et al. 2019, arXiv 1905.02383,
    Corollary 2.13); 0 where delta alone suffices.

    Raises:
        ValueError: mu is negative or not finite, or delta is not in (0, 1).

    >>> round(gaussian_epsilon(mu=1, delta=1e-5), 3)
    4.377
    """
    from scipy import optimize  # slow to import, and needed here alone

    if not 0 <= mu < np.inf:
        raise ValueError(f"mu must be a finite number from 0; got {mu}")
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1); got {delta}")
    if mu == 0 or 2 * special.ndtr(mu / 2) - 1 <= delta:
        return 0.0

    def excess(epsilon: float) -> float:
        # In logarithms: both terms are tiny where delta is.
        larger = special.log_ndtr(-epsilon / mu + mu / 2)
        smaller = epsilon + special.log_ndtr(-epsilon / mu - mu / 2)
        return larger + np.log(-np.expm1(min(smaller - larger, -1e-300))) - np.log(delta)

    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(optimize.root_scalar(excess, bracket=(0.0, high), xtol=1e-9).root)


def lower_mu(
    inside: np.ndarray, outside: np.ndarray, a: float, thresholds: np.ndarray | None, seed: int
) -> float:
    """Lower bound on mu at level `a` from scores `[n]` and `[m]`: at the best of some thresholds, which share the level.

    Without thresholds at one that a random half chose for the other half; 0 where a side of one score has no such half.
    """
    if thresholds is None and min(len(inside), len(outside)) < 2:
        return 0.0
    if thresholds is None:
        rng = np.random.default_rng(seed)
        inside, outside = rng.permutation(inside), rng.permutation(outside)
        cut = len(inside) // 2, len(outside) // 2
        tried = np.union1d(inside[: cut[0]], outside[: cut[1]])
        best = np.argmax(_mus(inside[: cut[0]], outside[: cut[1]], a, tried))
        thresholds = tried[best : best + 1]
        inside, outside = inside[cut[0] :], outside[cut[1] :]
    return max(0.0, float(_mus(inside, outside, a / len(thresholds), thresholds).max()))


def _mus(inside: np.ndarray, outside: np.ndarray, a: float, thresholds: np.ndarray) -> np.ndarray:
    """Phi^-1(1 - FPR_up) - Phi^-1(FNR_up) at each threshold, each rate's upper bound at level a / 2."""
    missed = np.searchsorted(np.sort(inside), thresholds, side="left")
    false = len(outside) - np.searchsorted(np.sort(outside), thresholds, side="left")
    ends = []
    for count, total in ((missed, len(inside)), (false, len(outside))):
        # Clopper and Pearson's bound is 1 where all of them were.
        beta = special.betaincinv(count + 1, np.maximum(total - count, 1), 1 - a / 2)
        ends.append(special.ndtri(np.where(count < total, beta, 1.0)))
    return -ends[1] - ends[0]
