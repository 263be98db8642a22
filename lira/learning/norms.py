"""Batch normalisation as few kernels on accelerators: the two sums of each pass are taken together.

Of flax's own (`flax.linen.BatchNorm`) XLA makes twelve kernels a layer and step on a GPU, half of them the second halves
of sums over pixels; of this seven, which read and write a tenth less (experiments/benchmarks/gpu_programs.py).
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.module import Args, InterceptorContext, Kwargs, NextGetter
from jax import lax

__all__ = ["batch_norm", "joint_sums"]

# Of a function with a backward pass of its own, whose last argument is not differentiated.
_custom_backward: Any = partial(jax.custom_vjp, nondiff_argnums=(3,))


@contextlib.contextmanager
def joint_sums(platform: str) -> Iterator[None]:
    """Within it, every plain `nn.BatchNorm` in training takes its sums by `batch_norm`, but on CPU, where XLA needs no help.

    `platform` is what the function runs on, as JAX names it: cpu, gpu or tpu. What is replaced has no forward derivatives.
    Enter it inside the function that is traced.
    """
    if platform == "cpu":
        yield
        return
    with nn.intercept_methods(_replaced):
        yield


def _replaced(call: NextGetter, args: Args, kwargs: Kwargs, context: InterceptorContext) -> Any:
    """What a layer returns, a plain norm's in training by `batch_norm`; an interceptor of flax's."""
    module = context.module
    if context.method_name != "__call__" or not isinstance(module, nn.BatchNorm):
        return call(*args, **kwargs)
    if not _is_plain(module, *args, **kwargs):
        return call(*args, **kwargs)
    variables = module.variables
    scale, bias = (variables["params"][name] for name in ("scale", "bias"))
    y, mean, variance = batch_norm(args[0], scale, bias, module.epsilon)
    for name, value in (("mean", mean), ("var", variance)):
        average = variables["batch_stats"][name]
        module.put_variable("batch_stats", name, module.momentum * average + (1 - module.momentum) * value)
    return y


def _is_plain(module: nn.BatchNorm, *args: Any, **kwargs: Any) -> bool:
    """Whether it is in training, over everything but the last axis of its one argument, in the types that flax chooses."""
    return (
        not module.is_initializing()
        and len(args) == 1
        and not kwargs
        and module.use_running_average is False
        and module.axis in (-1, args[0].ndim - 1)
        and module.use_scale
        and module.use_bias
        and module.use_fast_variance
        and module.force_float32_reductions
        and module.dtype is None
        and module.axis_name is None
    )


@_custom_backward
def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise each channel over a batch, as `flax.linen.BatchNorm` does in training.

    Args:
        x: `[n, ..., C]`.
        scale: `[C]`.
        bias: `[C]`.
        epsilon: added to the variance.

    Returns:
        What is normalised, scaled and shifted, `[n, ..., C]` in the type that the arguments promote to; mean and
        (biased) variance `[C]` in float32 at least, whose gradients are taken for zero.
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    """What `batch_norm` returns, and for the way back x, scale, bias, and the mean and 1 / deviation of each channel `[C]`."""
    wide, count = _wide(x), x.size // x.shape[-1]
    # Each image's sums first, in one kernel that reads x once, and then those of all images in another.
    pixels = tuple(range(1, x.ndim - 1))
    sums = jnp.stack([wide.sum(pixels), (wide * wide).sum(pixels)]).sum(1)
    mean, square = sums / count
    variance = jnp.maximum(0.0, square - mean * mean)
    inverse = lax.rsqrt(variance + epsilon)
    y = (wide - mean) * (inverse * scale) + bias
    return (y.astype(jnp.result_type(x, scale, bias)), mean, variance), (x, scale, bias, mean, inverse)


def _backward(
    epsilon: float, saved: tuple[jax.Array, ...], gradients: tuple[jax.Array, jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of x `[n, ..., C]`, scale and bias `[C]` from those of the result, mean and variance."""
    x, scale, bias, mean, inverse = saved
    gradient, normalised = _wide(gradients[0]), (_wide(x) - mean) * inverse
    # Side by side they are one sum, of which XLA makes anew what it would otherwise write for two kernels to read.
    pair = jnp.stack([gradient, gradient * normalised], axis=-2)
    of_bias, of_scale = pair.sum(tuple(range(x.ndim - 1)))
    count = x.size // x.shape[-1]
    of_x = (inverse * scale) * (gradient - of_bias / count - normalised * (of_scale / count))
    return of_x.astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(bias.dtype)


batch_norm.defvjp(_forward, _backward)


def _wide(x: jax.Array) -> jax.Array:
    """As float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
