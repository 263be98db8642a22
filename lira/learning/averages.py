"""Moving averages of floating-point variables; the others pass as they are."""

import jax
import jax.numpy as jnp

__all__ = ["is_float", "moved_toward", "zero_average"]


def zero_average(leaf: jax.Array) -> jax.Array:
    """Zeros of the leaf's shape, where it is of floating point in float32 at least."""
    wide = jnp.promote_types(leaf.dtype, jnp.float32) if is_float(leaf) else leaf.dtype
    return jnp.zeros(leaf.shape, wide)


def moved_toward(decay: float, average: jax.Array, now: jax.Array) -> jax.Array:
    """The average after one more value, all of one shape."""
    return decay * average + (1 - decay) * now if is_float(now) else now


def is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
