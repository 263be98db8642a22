"""The epsilon of the Gaussian mechanism."""

import numpy as np
import pytest
from scipy import integrate, stats

from lira.epsilon import (
    gaussian_epsilon,
)


@pytest.mark.parametrize("mu", [0.05, 0.5, 1, 3, 6])
@pytest.mark.parametrize("delta", [1e-8, 1e-5, 0.05])
def test_gaussian_epsilon_is_the_hockey_stick_integral(mu, delta):
    found = gaussian_epsilon(mu, delta)
    # Where N(mu, 1) has more than e^found times the density of N(0, 1).
    start = found / mu + mu / 2
    excess = integrate.quad(
        lambda x: stats.norm.pdf(x - mu) - np.exp(found) * stats.norm.pdf(x),
        start,
        start + 40,
        epsabs=1e-16,
    )[0]
    if found > 0:
        assert excess == pytest.approx(delta, rel=1e-4)
    else:
        assert excess <= delta


@pytest.mark.parametrize(
    ("mu", "delta", "message"),
    [(-1, 0.1, "mu must be a finite number from 0; got -1"), (1, 0, r"delta must be in \(0, 1\); got 0")],
)
def test_gaussian_epsilon_names_bad_arguments(mu, delta, message):
    with pytest.raises(ValueError, match=message):
        gaussian_epsilon(mu, delta)
