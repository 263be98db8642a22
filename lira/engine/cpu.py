"""What CPUs alone need: steps as programs of their own, since XLA's convolutions are slow within loops there."""

from collections.abc import Callable
from typing import Any

import jax

__all__ = ["in_loops", "step_by_step"]


def in_loops(lowering: str, platform: str) -> str:
    """The lowering within the bodies of loops: there XLA's own convolution is forty times slower on CPU, so patches."""
    return "patches" if platform == "cpu" and lowering in ("xla", "per_model") else lowering


def step_by_step(
    order: Callable[..., jax.Array],
    one_step: Callable[..., tuple[Any, jax.Array]],
    state: Any,
    keys: jax.Array,
    number: jax.Array | int,
    stop: jax.Array | int,
    x: jax.Array,
    y: jax.Array,
    keep: jax.Array,
    *taught: Any,
) -> tuple[Any, jax.Array]:
    """Epoch `number` as `stop` calls of one compiled step: the state, and mean losses `[m, 1]`.

    Keys `[m]`, x `[N, ...]`, y `[N]` and keep `[m, N]` as `Programs.train` takes them, and what imitators know of a target.
    """
    total: Any = 0.0
    orders = order(keys, number, keep)
    for at in range(int(stop)):
        state, losses = one_step(state, keys, number, at, orders, x, y, *taught)
        total += losses
    return state, (total / stop)[:, None]
