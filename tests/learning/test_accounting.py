import dataclasses
import itertools
import sys
from typing import Any

import dp_accounting
import numpy as np
import pytest
from scipy import integrate, stats

from lira.epsilon import gaussian_epsilon
from lira.learning.accounting import Guarantee, guarantee, poisson_epsilon
from lira.learning.privacy import Privacy
from lira.learning.recipe import Recipe

DELTA = 1e-5


def proven(recipe, *pool) -> Guarantee:
    found = guarantee(recipe, *pool)
    assert found is not None
    return found


def private(*, batch_size=20, epochs=10, **fields):
    return Recipe(batch_size=batch_size, epochs=epochs, privacy=Privacy(**fields))


# --- The truth -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (0.5, 3), (20.0, 100), (300.0, 50)])
def test_epsilon_of_whole_pools_is_the_gaussian_mechanism_s(noise, steps):
    # Steps that take every member are together one Gaussian mechanism.
    truth = gaussian_epsilon(np.sqrt(steps) / noise, DELTA)
    assert truth <= poisson_epsilon(noise, 1.0, steps, DELTA) + 1e-9
    assert poisson_epsilon(noise, 1.0, steps, DELTA) == pytest.approx(truth, rel=2e-3)


@pytest.mark.parametrize(("noise", "rate"), [(0.7, 0.05), (1.0, 0.3), (4.0, 0.5)])
def test_epsilon_of_one_step_is_the_hockey_stick_integral(noise, rate):
    epsilon = poisson_epsilon(noise, rate, 1, DELTA)

    def without(x):
        return stats.norm.pdf(x, scale=noise)

    def with_it(x):
        return (1 - rate) * without(x) + rate * stats.norm.pdf(x, 1, noise)

    def delta(p, q):
        def excess(x):
            return max(p(x) - np.exp(epsilon) * q(x), 0.0)

        edges = np.linspace(-12 * noise, 1 + 12 * noise, 60)
        return sum(integrate.quad(excess, a, b, limit=200)[0] for a, b in itertools.pairwise(edges))

    # An example that is added and one that is removed.
    assert max(delta(with_it, without), delta(without, with_it)) == pytest.approx(DELTA, rel=0.03)


def test_epsilon_is_below_that_of_renyi_and_not_by_much():
    noise, rate, steps = 2.0, 0.07, 300
    accountant = dp_accounting.rdp.RdpAccountant(np.linspace(2, 64, 63).tolist())
    step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    renyi = accountant.compose(step, steps).get_epsilon(DELTA)
    assert 0.8 * renyi < poisson_epsilon(noise, rate, steps, DELTA) < renyi


def test_epsilon_grows_with_steps_and_rate_and_falls_with_noise_and_delta():
    base = poisson_epsilon(2.0, 0.1, 100, DELTA)
    assert base < poisson_epsilon(2.0, 0.1, 200, DELTA)
    assert base < poisson_epsilon(2.0, 0.2, 100, DELTA)
    assert base > poisson_epsilon(2.5, 0.1, 100, DELTA)
    assert base > poisson_epsilon(2.0, 0.1, 100, 1e-3)


# --- What is proven of a recipe --------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.3, 5.0])
def test_noise_is_the_least_that_gives_epsilon(epsilon):
    found = proven(private(epsilon=epsilon), 200)
    again = proven(private(noise=found.noise), 200)
    less = proven(private(noise=found.noise - 0.002), 200)
    assert again == found
    assert found.epsilon <= epsilon < less.epsilon
    assert found.delta == DELTA


def test_the_rate_is_of_the_pool_and_its_share():
    found = proven(private(noise=1.0), 200)
    assert found.steps == 50
    assert 0.2 < found.rate < 0.2 + 2**-23  # a batch is no smaller than was asked for
    assert found.rate * 2**23 == int(found.rate * 2**23)  # as float32 draws it
    # 0.29 of 200 are 58, and not 57.99.
    other = proven(private(batch_size=29, noise=1.0), 200, 0.29)
    assert (other.steps, other.rate) == (20, 0.5)
    assert proven(private(batch_size=100, noise=1.0), 200).rate == 1
    assert guarantee(Recipe(), 200) is None
    # Training that stops early, on its schedule, is proven for the steps that it takes.
    early = dataclasses.replace(private(noise=1.0), epochs=4, schedule_epochs=10)
    assert proven(early, 200) == proven(private(noise=1.0, epochs=4), 200)


def test_without_noise_nothing_is_proven():
    found = proven(private(epsilon=np.inf, clip=np.inf), 200)
    assert found.epsilon == np.inf
    assert found.noise == 0
    assert "nothing, as there is no noise" in str(found)


def test_batches_that_are_cut_off_take_no_more_of_delta_than_they_may():
    """By the accountant of truncated sampling (arXiv 2508.15089), for a model that holds the whole pool."""
    found = proven(private(batch_size=10, epochs=3, noise=1.0), 400)
    assert found.max_batch < 100

    def truncated(size):
        event = dp_accounting.TruncatedSubsampledGaussianDpEvent(400, found.rate, size, found.noise)
        accountant = dp_accounting.pld.PLDAccountant(value_discretization_interval=1e-3)
        return accountant.compose(event, found.steps).get_epsilon(DELTA)

    assert truncated(found.max_batch) <= found.epsilon
    assert truncated(30) > found.epsilon  # which would not do
    # The probability that any step is cut off, and what it adds to delta.
    cut = found.steps * stats.binom.sf(found.max_batch, 400, found.rate)
    assert (1 + np.exp(found.epsilon)) * cut <= 0.01 * DELTA
    assert (1 + np.exp(found.epsilon)) * found.steps * stats.binom.sf(
        found.max_batch - 1, 400, found.rate
    ) > (0.01 * DELTA)


def test_what_cannot_be_proven_is_refused():
    with pytest.raises(
        ValueError, match=r"epsilon is 0.0001, and in 50 steps .* raise it, or delta, or train"
    ):
        proven(private(epsilon=1e-4), 200)
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "needs epsilon or noise, and not both"),
        ({"epsilon": 1.0, "noise": 1.0}, "needs epsilon or noise, and not both"),
        ({"epsilon": 1.0, "clip": 0.0}, "clip must be positive; got 0"),
        ({"epsilon": 1.0, "clip": -1.0}, "clip must be positive; got -1"),
        ({"epsilon": 1.0, "clip": np.nan}, "clip must be positive; got nan"),
        ({"epsilon": 1.0, "clip": 1e-40}, "clip must lie between 1e-15 and 1e\\+15, .* got 1e-40"),
        ({"epsilon": np.inf, "clip": 1e300}, "clip must lie between .* got 1e\\+300: inf clips nothing"),
        ({"epsilon": 1.0, "clip": np.inf}, "clip is inf, and nothing is proven"),
        ({"epsilon": -1.0}, "epsilon must be positive"),
        ({"epsilon": np.nan}, "epsilon must be positive"),
        ({"epsilon": 1000.0}, "epsilon must be positive and at most 100"),
        ({"noise": -1.0}, "noise must be positive"),
        ({"noise": np.inf}, "noise must be positive"),
        ({"noise": 0.04}, "noise must be at least 0.05, for less hides nothing; got 0.04"),
        ({"noise": 1.0, "delta": 0.0}, "delta must be between 0 and 1"),
        ({"noise": 1.0, "multiplicity": 0}, "multiplicity must be at least 1"),
    )
    for fields, message in refused:
        with pytest.raises(ValueError, match=message):
            Privacy(**fields)


def test_a_delta_that_accounting_cannot_reach_is_refused_whatever_was_given():
    """Tails are cut off there, and what is left proves no epsilon: not what training without noise is."""
    with pytest.raises(
        ValueError, match=r"noise is 1, and in 50 steps no epsilon at all is proven at delta 1e-30"
    ):
        proven(private(noise=1.0, delta=1e-30), 200)
    with pytest.raises(ValueError, match=r"at delta 1e-30: raise it, or delta, or train for fewer epochs"):
        proven(private(epsilon=1.0, delta=1e-30), 200)


def test_a_delta_of_one_in_all_members_is_doubted():
    assert not proven(private(noise=1.0, delta=1e-3), 200).doubt(100)
    assert "delta 0.01 is not below 1 / 100" in proven(private(noise=1.0, delta=1e-2), 200).doubt(100)


def test_a_missing_extra_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ValueError, match=r'pip install "lira\[privacy\]"'):
        proven(private(noise=1.2345), 200)
    assert guarantee(dataclasses.replace(private(noise=1.0), privacy=None), 200) is None
