"""What DP-SGD proves of a recipe: epsilon by privacy loss distributions, for the sampling that training really does.

Each step takes each member by a coin of its own, of one fixed probability (`noised.poisson_batch`), clips gradients one by
one, and adds Gaussian noise to their sum. Two memberships are neighbours where they differ by one example, that is added
or removed: what an attack asks of a model. All steps are accounted for, so that whatever is released of them is covered:
models before the end of training, averages of weights, answers. Choosing a recipe by what earlier ones gave is not.

`dp_accounting` comes with the extra `lira[privacy]`.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from lira.learning.recipe import Recipe, steps_per_epoch

__all__ = ["Guarantee", "guarantee", "poisson_epsilon"]

ADJACENCY = "add or remove one example"
ACCOUNTANT = "privacy loss distributions of Poisson-sampled Gaussians (dp_accounting)"
# Losses are rounded up to whole multiples of this, in units of 1 / noise.
INTERVAL = 1e-3
# Noise is derived from epsilon in thousandths, rounded up, up to this.
MAX_NOISE = 1e3
# Of delta, what batches that are cut off at their largest size may take.
TRUNCATION_SHARE = 0.01
# Uniform numbers in float32 are multiples of this.
UNIFORM_STEP = 2.0**-23


@dataclass(frozen=True)
class Guarantee:
    """That a training is (epsilon, delta)-private, and by what."""

    epsilon: float  # inf where there is no noise
    delta: float
    noise: float  # standard deviation of the noise on the sum of clipped gradients, in units of clip
    clip: float
    steps: int  # of the whole training
    rate: float  # the probability that a step takes a member
    max_batch: int  # examples of a step beyond these are dropped
    adjacency: str = ADJACENCY
    accountant: str = ACCOUNTANT

    def doubt(self, members: float) -> str:
        """What is to be said of its delta for trainings on so many members, for people; empty where nothing is."""
        if self.delta * members < 1:
            return ""
        return (
            f"delta {self.delta:g} is not below 1 / {members:,.0f}, one in all members: a training that gave away one of "
            f"them whole might have such a delta, so lower recipe.privacy.delta"
        )

    def __str__(self) -> str:
        """Show what is proven, and by what."""
        proven = f"epsilon {self.epsilon:.4g} at delta {self.delta:g} ({self.adjacency})"
        if math.isinf(self.epsilon):
            proven = "nothing, as there is no noise"
        return (
            f"{proven}: noise {self.noise:.4g} x clip {self.clip:g}, {self.steps:,} steps that take each member with "
            f"probability {self.rate:.4g}"
        )


def guarantee(recipe: Recipe, num_examples: int, share: float = 0.5) -> Guarantee | None:
    """What is proven of every model of a recipe, trained on a share of a pool, whatever its members; None without privacy.

    A pure function of its arguments: no model's data or number of members goes into it.

    Raises:
        ValueError: no noise gives the recipe's epsilon, or `dp_accounting` is missing.
    """
    privacy = recipe.privacy
    if privacy is None:
        return None
    steps = steps_per_epoch(num_examples, recipe.batch_size, share) * recipe.epochs
    members = num_examples * Fraction(str(share))
    # What float32 makes of it: a uniform number is below the rate with this probability.
    rate = math.ceil(min(Fraction(1), recipe.batch_size / members) / Fraction(UNIFORM_STEP)) * UNIFORM_STEP
    noise, delta = privacy.noise, (1 - TRUNCATION_SHARE) * privacy.delta
    if 0 < privacy.epsilon < math.inf:
        noise = _noise_for(privacy.epsilon, rate, steps, delta)
    epsilon = poisson_epsilon(noise, rate, steps, delta) if noise else math.inf
    if noise and math.isinf(epsilon):
        raise ValueError(
            f"recipe.privacy.noise is {noise:g}, and in {steps:,} steps no epsilon at all is proven at delta {privacy.delta:g}: "
            f"raise either"
        )
    return Guarantee(
        epsilon=epsilon,
        delta=privacy.delta,
        noise=noise,
        clip=privacy.clip,
        steps=steps,
        rate=rate,
        max_batch=_max_batch(num_examples, rate, steps, epsilon, privacy.delta),
    )


@lru_cache(maxsize=256)
def poisson_epsilon(noise: float, rate: float, steps: int, delta: float) -> float:
    """Epsilon at `delta` of `steps` sums of Gaussian noise, to each of which an example adds at most 1 with probability `rate`.

    An upper bound, tight to about 1e-3 (Koskela et al. 2020, Doroshenko et al. 2022).

    Args:
        noise: standard deviation of each sum's.
        rate: in (0, 1].
        steps: how many sums.
        delta: in (0, 1).

    Raises:
        ValueError: `dp_accounting` is missing.
    """
    accounting = _dp_accounting()
    accountant = accounting.pld.PLDAccountant(
        accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=INTERVAL / noise
    )
    step = accounting.PoissonSampledDpEvent(rate, accounting.GaussianDpEvent(noise))
    return float(accountant.compose(step, steps).get_epsilon(delta))


@lru_cache(maxsize=64)
def _noise_for(epsilon: float, rate: float, steps: int, delta: float) -> float:
    """The least noise, in thousandths, by which `poisson_epsilon` is at most `epsilon`."""
    from scipy import optimize  # slow to import, and needed here alone

    def excess(log_noise: float) -> float:
        return poisson_epsilon(2**log_noise, rate, steps, delta) - epsilon

    low = high = 0.0
    while excess(high) > 0 and 2**high < MAX_NOISE:
        low, high = high, high + 1
    while excess(low) <= 0:
        low, high = low - 1, low
    if excess(high) > 0:
        raise ValueError(
            f"recipe.privacy.epsilon is {epsilon:g}, and in {steps:,} steps that take each member with probability {rate:.3g} "
            f"it would take noise of more than {MAX_NOISE:,.0f} times the clip at delta {delta / (1 - TRUNCATION_SHARE):.3g}: raise "
            f"it, or delta, or train for fewer epochs"
        )
    root = optimize.root_scalar(excess, bracket=(low, high), xtol=1e-4).root
    thousandths = math.ceil(1000 * 2**root)
    while poisson_epsilon(thousandths / 1000, rate, steps, delta) > epsilon:
        thousandths += 1
    return thousandths / 1000


def _max_batch(num_examples: int, rate: float, steps: int, epsilon: float, delta: float) -> int:
    """So many examples that hardly ever a step takes more, even of a model that holds all of the pool.

    Where t is the probability that any step does, batches that are cut off are another mechanism with probability t at
    most, and (epsilon, delta') becomes (epsilon, delta' + (1 + e^epsilon) t): here within TRUNCATION_SHARE of delta.
    """
    from scipy import stats  # slow to import, and needed here alone

    finite = 0.0 if math.isinf(epsilon) else epsilon
    each = TRUNCATION_SHARE * delta / (1 + math.exp(min(finite, 600.0))) / steps
    # `binom.isf` does not reach so far into the tail.
    return int(np.argmax(stats.binom.sf(np.arange(num_examples + 1), num_examples, rate) <= each))


def _dp_accounting() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise ValueError('recipe.privacy needs jax_privacy: pip install "lira[privacy]"') from error
    return dp_accounting
