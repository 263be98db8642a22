"""What the machine reaches: matrix products, copies, and the multiply-adds of a program."""

import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.module import Args, InterceptorContext, Kwargs, NextGetter

from lira.learning.forward import as_input, fresh_variables
from lira.learning.recipe import Precision

__all__ = ["copy_rate", "flop_per_image", "matmul_rate", "multiply_adds", "on_cpu", "seconds_of"]


# --- What the machine can do, and what a model asks of it ------------------------------------------------------------


def multiply_adds(module: nn.Module, x: np.ndarray) -> list[int]:
    """Multiply-adds of one image's forward pass, layer by layer: the convolutions and dense layers of a flax module.

    Args:
        module: called with `(x, train)`.
        x: one example, `[1, ...]`.
    """
    layers: list[int] = []

    def count(call: NextGetter, args: Args, kwargs: Kwargs, context: InterceptorContext) -> Any:
        result = call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(context.module, nn.Conv | nn.Dense):
            kernel = context.module.get_variable("params", "kernel")
            layers.append(int(np.prod(kernel.shape)) * int(np.prod(result.shape[1:-1])))
        return result

    def forward() -> Any:
        with nn.intercept_methods(count):
            return fresh_variables(module, jax.random.key(0), as_input(x, jnp.float32))

    jax.eval_shape(forward)
    return layers


def flop_per_image(module: nn.Module, x: np.ndarray) -> int:
    """Of training: forward, weight gradients and input gradients, the first layer's input gradient excepted."""
    layers = multiply_adds(module, x)
    return 2 * (3 * sum(layers) - layers[0])


def on_cpu() -> bool:
    """Whether the machine that is measured computes on its CPU."""
    return jax.default_backend() == "cpu"


@cache
def matmul_rate(precision: Precision) -> float:
    """FLOP/s of the best of several square matrix products, measured once a process."""
    sizes = (512, 1024, 2048) if on_cpu() else (4096, 8192, 16384)
    product = jax.jit(jnp.matmul)
    rates = []
    for size in sizes:
        a = jnp.ones((size, size), precision)
        rates += [2 * size**3 / seconds_of(partial(product, a, a)) for _ in range(10)]
    return max(rates)


@cache
def copy_rate() -> float:
    """Bytes a second, read and written, of copying an array larger than any cache, measured once a process."""
    a = jnp.ones(1 << (26 if on_cpu() else 29), jnp.float32)
    # Eight times there and back in one program, so that making room for the result counts little.
    copy = jax.jit(lambda a: jax.lax.fori_loop(0, 8, lambda i, a: a + 1.0, a), donate_argnums=0)
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        a = copy(a).block_until_ready()
        taken.append(time.perf_counter() - began)
    return 8 * 2 * a.nbytes / min(taken)


def seconds_of(function: Callable[[], Any]) -> float:
    jax.block_until_ready(function())
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began
