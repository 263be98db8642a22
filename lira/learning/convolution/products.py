"""Matrix products over channels and over pixels, in the order of axes that XLA is fast at."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lira.learning.convolution.static import Pads

__all__ = ["FEW_OUTPUTS", "channel_product", "custom_backward", "over_pixels", "padded"]
# Dense layers with so many outputs and inputs, such as ten logits of a whole image, go backward as 1x1 convolutions do.
FEW_OUTPUTS = 16

# Of a function with a backward pass of its own, whose first argument is static, or whose first two are.
custom_backward: Any = partial(jax.custom_vjp, nondiff_argnums=(0,))
_two_static: Any = partial(jax.custom_vjp, nondiff_argnums=(0, 1))


@_two_static
def channel_product(precision: Any, on_cpu: bool, x: jax.Array, matrix: jax.Array) -> jax.Array:
    """Channels `[..., C]` times `[C, O]`: `[..., O]`."""
    return jnp.matmul(x, matrix, precision=precision)


def _product_backward(
    precision: Any, on_cpu: bool, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """As JAX would, `gradient [..., O]`, but the matrix's in the order of axes that XLA has a fast product for."""
    x, matrix = saved
    return jnp.matmul(gradient, matrix.T, precision=precision), over_pixels(x, gradient, precision, on_cpu)


channel_product.defvjp(
    lambda precision, on_cpu, *pair: (channel_product(precision, on_cpu, *pair), pair), _product_backward
)


def over_pixels(left: jax.Array, right: jax.Array, precision: Any, on_cpu: bool, turns: int = 1) -> jax.Array:
    """Sum over all axes but the last of the products of `[..., C]` and `[..., O]`: `[C, O]`, in `turns` that are added up."""

    def summed(left: jax.Array, right: jax.Array) -> jax.Array:
        left, right = (a.reshape(turns, -1, a.shape[-1]) for a in (left, right))
        return lax.dot_general(left, right, (((1,), (1,)), ((0,), (0,))), precision=precision).sum(0)

    if left.shape[-1] <= right.shape[-1] or not on_cpu:
        return summed(left, right)
    # On CPU this product is up to 1.5 times as fast with the wider operand on the right, and 10 times for few outputs.
    # Their transposition is spelled out: XLA would make one product of it, the slow one.
    rows = summed(right, left)
    return jnp.stack(list(rows), axis=-1) if len(rows) <= FEW_OUTPUTS else rows.T


def padded(x: jax.Array, pads: Pads) -> jax.Array:
    """Images `[n, H, W, C]` with zeros around them, or cropped."""
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)))
