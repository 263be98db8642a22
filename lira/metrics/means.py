"""Means over clusters, and ratios of two such means, with 95 % intervals."""

import numpy as np
from scipy import special

from lira.metrics._shared import MIN_CLUSTERS, Estimate, cluster_margin

__all__ = ["mean_over_clusters", "ratio_of_means"]


def mean_over_clusters(values: np.ndarray, lowest: float = -np.inf, highest: float = np.inf) -> Estimate:
    """The mean of one value a cluster, float `[P]`, with Student's t interval clipped to the range it can take."""
    return Estimate.around(float(np.mean(values)), cluster_margin(values), lowest, highest)


def ratio_of_means(numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
    """The ratio of two means over the same clusters, with Fieller's interval (1954, J. R. Stat. Soc. B 16).

    The interval holds every ratio r for which the mean of `numerators - r * denominators` does not differ from 0, so
    what the two have in common cancels: a ratio of 1 between equal values has an interval of no width. It is bounded
    only where the denominator's own interval does not hold 0.

    Args:
        numerators: float `[P]`, one value a cluster.
        denominators: float `[P]`, of the same clusters.

    Returns:
        All NaN where the denominator's mean is 0; no interval where it is unbounded, or with too few clusters.

    >>> str(ratio_of_means(np.array([2.0, 4.0, 6.0, 8.0]), np.array([1.0, 2.0, 3.0, 4.0])))
    '2 [2, 2]'
    """
    n, d = float(np.mean(numerators)), float(np.mean(denominators))
    if d == 0:
        return Estimate(np.nan, np.nan, np.nan)
    P = len(numerators)
    if P < MIN_CLUSTERS:
        return Estimate(n / d, np.nan, np.nan)
    (nn, nd), (_, dd) = special.stdtrit(P - 1, 0.975) ** 2 * np.cov(numerators, denominators) / P
    # The ends are the roots of (n - r d)^2 = nn - 2 r nd + r^2 dd.
    a, b, c = d * d - dd, n * d - nd, n * n - nn
    if a <= 0:
        return Estimate(n / d, np.nan, np.nan)
    half = np.sqrt(max(b * b - a * c, 0.0))
    return Estimate(n / d, float((b - half) / a), float((b + half) / a))
