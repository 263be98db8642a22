"""Canaries of kind "gradient": in place of an example, a direction of its own in the space of a model's weights.

The Dirac canaries of Nasr et al. 2023 (arXiv 2302.07956) and of the white-box audits of Steinke et al. 2023 (arXiv
2305.08846). A canary's loss is linear in one weight and very steep, so that its gradient, clipped as every example's is,
lies along that weight and is as long as the clip. Members by coins, they are taken by a step as all members are, go
through the same clipping, sum and noise, and take places that accounting covers. What the noised sums of all steps have
along a canary's weight is its score: whoever sees every step can do no better with one number, by one weight each.
"""

import math
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from lira.data.canaries import Canaries
from lira.learning.recipe import Recipe

__all__ = ["check_gradient_canaries", "linear_loss", "read_along", "weights_of"]

# How much longer a canary's gradient is than it may count: what is not clipped is then seen at once.
LENGTH = 1000.0


def check_gradient_canaries(canaries: Canaries | None, recipe: Recipe) -> None:
    """Raise ValueError where canaries are gradients, and a recipe does not clip any."""
    if canaries is None or canaries.kind != "gradient":
        return
    if recipe.privacy is None:
        raise ValueError(
            'canaries.kind = "gradient" is read from the sums of private training: add [recipe.privacy] (epsilon = inf is '
            "without noise), or take another kind"
        )
    if math.isinf(recipe.privacy.clip):
        raise ValueError(
            'canaries.kind = "gradient" is as long as recipe.privacy.clip, which is inf: lower it, or take another kind'
        )


def linear_loss(params: Any, weight: jax.Array, clip: float) -> jax.Array:
    """A canary's loss, float `[]`: always 0, with a gradient of LENGTH times `clip` along the weight of that number."""
    value = LENGTH * clip * ravel_pytree(params)[0][weight]
    return value - jax.lax.stop_gradient(value)


def read_along(canaries: Canaries, gradient: Any) -> jax.Array:
    """What a gradient, a tree like the model's weights, has along each canary's: float `[count]`."""
    vector = ravel_pytree(gradient)[0]
    return vector[weights_of(canaries, vector.size)]


@lru_cache(maxsize=8)
def weights_of(canaries: Canaries, size: int) -> np.ndarray:
    """The weight of each canary, of `size` in the order of the tree: int32 `[count]`, all different, drawn by `canaries.seed`."""
    # A stream that NumPy guarantees not to change, of a purpose that planting has no use for.
    raw = np.random.Philox(key=np.array([canaries.seed, 3], dtype=np.uint64)).random_raw(size)
    return np.argsort(raw, kind="stable")[: canaries.count].astype(np.int32)
