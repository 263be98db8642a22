"""Functions of one model, jitted for a stack of them."""

from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Any

import jax
import jax.numpy as jnp

from lira.learning import convolution
from lira.learning.norms import joint_sums

__all__ = ["compiled_once", "made_when_called", "models_in", "stacked"]


def stacked(
    lowering: str, platform: str, function: Callable[..., Any], *axes: int | None, **options: Any
) -> Any:
    """A function of one model, jitted for a stack of them on a platform, with every convolution in it by a lowering.

    Args:
        lowering: of `convolution.LOWERINGS`.
        platform: as JAX names it: cpu, gpu or tpu.
        function: of one model.
        axes: of its arguments: 0 where each model has one of its own, None where all share one.
        options: of `jax.jit`.
    """

    def lowered(*arguments: Any) -> Any:
        with convolution.lowering(lowering, platform), joint_sums(platform):
            return (_alone if models_in(axes, arguments) == 1 else jax.vmap)(function, axes)(*arguments)

    return jax.jit(lowered, **options)


def models_in(axes: tuple[int | None, ...], arguments: tuple[Any, ...]) -> int:
    """Models in a stack of which these are the arguments."""
    of_models = [a for a, axis in zip(arguments, axes, strict=True) if axis == 0]
    return len(jax.tree.leaves(of_models)[0])


def _alone(function: Callable[..., Any], axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """As `vmap`, for a stack of one: XLA makes slower matrix products of those with an axis of one model."""

    def call(*arguments: Any) -> Any:
        one = [
            jax.tree.map(lambda leaf: leaf[0], a) if axis == 0 else a
            for a, axis in zip(arguments, axes, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], function(*one))

    return call


def compiled_once(function: Any) -> Callable[..., Any]:
    """A jitted function that threads which call it at the same time compile once for each shape of the last argument."""
    compiled, lock = {}, Lock()

    def call(*arguments: Any) -> Any:
        shape = arguments[-1].shape
        with lock:
            if shape not in compiled:
                compiled[shape] = function.lower(*arguments).compile()
        return compiled[shape](*arguments)

    return call


def made_when_called(make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """The function that `make()` gives, made when it is first called: calibration has no use for a sweep."""
    lock = Lock()
    once = cache(make)

    def call(*arguments: Any) -> Any:
        with lock:
            function = once()
        return function(*arguments)

    return call


def batches_of(n: int, batch: int) -> jax.Array:
    """Indices of n examples in whole batches, int `[batches, batch]`; the last one wraps."""
    return jnp.arange(-(-n // batch) * batch).reshape(-1, batch) % n
