"""Averages over the reference models that are left against each target, for all targets at once.

What a target removes cannot simply be subtracted from a sum over the whole pool: where the removed value is nearly
all of the sum, nothing but rounding would be left. So the largest value of each side stands apart from the sum of the
others. A target that removes the largest leaves exactly that sum, and any other leaves the largest in place, which
bounds the cancellation: the relative error is at most about M^2 roundings (1e-11 for 256 models), whatever the values.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lira.attacks._parted import Block, Side
from lira.attacks._pool import Array

__all__ = ["count", "log_confidence", "log_mean", "log_sum", "losses", "over_queries", "total"]

# So many queries are summed up in less time one by one than as one axis.
FEW_QUERIES = 4


@jax.jit
def log_confidence(phi: Array) -> jax.Array:
    """Logarithms of p = sigmoid(phi), float64; to be called within `scoring`."""
    return -jax.nn.softplus(-phi.astype(jnp.float64))


def losses(phi: Array) -> np.ndarray:
    """Cross-entropy losses -log p, their mean over queries, float64 `[M, n, 1]`; equal phi have equal losses."""
    # Not compiled: vector and scalar code of one compiled loop may round differently, which would break ties.
    return np.logaddexp(0.0, -np.asarray(phi, np.float64)).mean(axis=2, keepdims=True)


def over_queries(values: Array) -> jax.Array:
    """Mean over the last axis, `[T, n]`.

    Few queries are summed up slice by slice: XLA fuses a short reduction with all that it is of, in scalar code that takes
    several times as long. The sum is the same to the last bit.
    """
    queries = values.shape[-1]
    if queries > FEW_QUERIES:
        return jnp.mean(values, axis=-1)
    return functools.reduce(jnp.add, [jnp.asarray(values[..., query]) for query in range(queries)]) / queries


def count(side: Side) -> jax.Array:
    """How many models of a side are left, `[T, n, 1]`."""
    return (jnp.sum(side.mask, axis=0) - side.removes)[..., None]


def total(values: Array, side: Side) -> jax.Array:
    """Sum of values >= 0 over a side without what each target removes, `[T, n, Q]`."""
    largest, _, rest = _apart(values, side.mask, 0.0)
    others = jnp.sum(rest, axis=0)
    removed = jnp.where(side.removes[..., None], side.removed, 0.0)
    return jnp.where(removed == largest, others, largest + (others - removed))


def log_sum(values: Array, side: Side) -> jax.Array:
    """Logarithm of the sum of exp(values) over a side without what each target removes, `[T, n, Q]`.

    -inf where nothing is left.
    """
    largest, second, rest = _apart(values, side.mask, -jnp.inf)
    # Both are -inf where a side has fewer models; any finite unit serves there.
    unit = jnp.where(jnp.isfinite(second), second, 0.0)
    others = jnp.sum(jnp.exp(rest - unit), axis=0)
    removed = jnp.where(side.removes[..., None], side.removed, -jnp.inf)
    share = (others - jnp.exp(removed - unit)) * jnp.exp(
        second - jnp.where(jnp.isfinite(largest), largest, 0.0)
    )
    return jnp.where(removed == largest, jnp.log(others) + unit, jnp.log1p(share) + largest)


def _apart(values: Array, mask: Array, absent: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The largest and second largest of a side, `[n, Q]`, and all values but the largest; `absent` for the others."""
    rest = jnp.where(mask[..., None], values, absent)
    largest, models = jnp.max(rest, axis=0), jnp.arange(len(values))[:, None, None]
    # The argmax, in a quarter of its time.
    first = jnp.min(jnp.where(rest == largest, models, len(values)), axis=0)
    rest = jnp.where(models == first, absent, rest)
    return largest, jnp.max(rest, axis=0), rest


def log_mean(block: Block, over: str) -> jax.Array:
    """Logarithm of the mean of exp(block.values) over what is left, `[T, n, Q]`.

    Args:
        block: values are logarithms.
        over: "out", the OUT models; "both", IN and OUT models with half the weight each, however many they are;
            "all", every model with the same weight.
    """
    outside, left = log_sum(block.values, block.outside), count(block.outside)
    if over == "out":
        return outside - jnp.log(left)
    inside, left_in = log_sum(block.values, block.inside), count(block.inside)
    if over == "all":
        return jnp.logaddexp(inside, outside) - jnp.log(left_in + left)
    return jnp.logaddexp(inside - jnp.log(left_in), outside - jnp.log(left)) - jnp.log(2.0)
