"""Is a step of private training as private as it says? Canary gradients in unused directions, read from the noised sum.

A canary is an example whose gradient is as long as nobody's and lies in a direction of its own (the Dirac canary of Nasr
et al. 2023, arXiv 2302.07956): whoever adds or leaves out one example can do no more to a step. Clipped to `clip` one by
one, under noise of `noise * clip`, its presence is told as N(0, 1) is from N(1 / noise, 1), and no better.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lira.epsilon import EpsilonBound, epsilon_bounds, gaussian_epsilon
from lira.learning.learner import seed_key

__all__ = ["StepAudit", "audit_step"]

# How much longer a canary's gradient is than it may count, and examples beside it.
LENGTH, OTHERS = 1000.0, 8
# The directions of the canary and of the other examples, and some where there is nothing but noise.
CANARY, OTHER, DIRECTIONS = 0, 1, 8

# Half way of the canary's part, 0 or 1; and of that less the others', which is -1 or 1 of a batch that is clipped as one.
THRESHOLDS = (0.5, 0.0)

# (loss_of, key, params, examples, absent) -> the noised sum of the examples' clipped gradients, a tree like params.
NoisedSum = Callable[[Callable[..., jax.Array], jax.Array, Any, tuple[jax.Array, ...], jax.Array], Any]


@dataclass(frozen=True, eq=False)
class StepAudit:
    """What canary gradients show of a step that claims to be private."""

    bound: EpsilonBound
    """on epsilon of one step, from below; of the Gaussian mechanism that the step claims to be"""
    claimed: float
    """epsilon of one step with such noise at the same delta, the canary taken with certainty"""
    member: np.ndarray  # bool [trials], whether the canary was there
    scores: (
        np.ndarray
    )  # float64 [2, trials], what was read: along the canary, and along it less along the others

    @property
    def holds(self) -> bool:
        """Whether the claim is not contradicted."""
        return self.bound.epsilon <= self.claimed


def audit_step(
    noised_sum: NoisedSum,
    *,
    clip: float,
    noise: float,
    trials: int = 2000,
    delta: float = 1e-5,
    confidence: float = 0.95,
    seed: int = 0,
) -> StepAudit:
    """Audit one step of DP-SGD, as a function, by a canary gradient that is there or not by a fair coin in each trial.

    Two things are read of the sum: what lies along the canary, which shows noise that is missing, and that less what
    lies along the others, which shows clipping that is not of single examples: where the canary takes room from the
    others, it is told by their absence too. The larger of both bounds is given, at their shared level.

    Args:
        noised_sum: the step, called under `vmap` and `jit` as `(loss_of, key, params, examples, absent)`; where
            `absent [batch]` is true there is no example. Losses are linear in params, a vector.
        clip: the norm that it claims to clip to.
        noise: the standard deviation of the noise that it claims to add, in units of clip.
        trials: independent calls.
        delta: of both epsilons.
        confidence: of the bound.
        seed: of coins and noise.

    Returns:
        A bound above what is claimed shows a broken step, with the given confidence; one below it proves nothing.

    Raises:
        ImportError: `jax_privacy` is missing.
    """
    member = np.random.default_rng(seed).random(trials) < 0.5
    directions = jnp.zeros((1 + OTHERS, DIRECTIONS)).at[0, CANARY].set(LENGTH * clip).at[1:, OTHER].set(clip)

    def loss_of(params: jax.Array, direction: jax.Array) -> jax.Array:
        return params @ direction

    def trial(key: jax.Array, there: jax.Array) -> jax.Array:
        absent = jnp.zeros(1 + OTHERS, bool).at[0].set(~there)
        return noised_sum(loss_of, key, jnp.zeros(DIRECTIONS), (directions,), absent)

    keys = jax.random.split(seed_key(seed), trials)
    sums = np.asarray(jax.jit(jax.vmap(trial))(keys, jnp.asarray(member)), np.float64) / clip
    scores = np.stack([sums[:, CANARY], sums[:, CANARY] - sums[:, OTHER]])
    bounds = [
        epsilon_bounds(
            each[member],
            each[~member],
            delta=delta,
            confidence=confidence,
            threshold=threshold,
            chosen_from=len(scores),
        )["gdp"]
        for each, threshold in zip(scores, THRESHOLDS, strict=True)
    ]
    claimed = gaussian_epsilon(1 / noise, delta)
    return StepAudit(max(bounds, key=lambda bound: bound.epsilon), claimed, member, scores)
