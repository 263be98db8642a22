"""A mechanism whose epsilon is known, and Clopper and Pearson's bound by its definition."""

import numpy as np
from scipy import stats

DELTA = 1e-5
METHODS = ["clopper_pearson", "one_run", "one_run_fdp", "gdp"]


def gaussian_trials(seed, mu, m, coin=0.5):
    """The Gaussian mechanism, one score a trial: N(mu, 1) for members, who are drawn by coins, else N(0, 1)."""
    rng = np.random.default_rng(seed)
    member = rng.random(m) < coin
    scores = rng.normal(size=m) + mu * member
    return scores[member], scores[~member]


def upper(count, total, a):
    """Clopper and Pearson's bound by its definition: the rate at which so few are seen with probability a."""
    low, high = count / total, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if stats.binom.cdf(count, total, middle) > a else (low, middle)
    return high if count < total else 1.0
