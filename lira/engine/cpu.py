"""What CPUs alone need: steps and batches as programs of their own, since XLA's convolutions are slow within loops there.

A stack has m models, each asked about n of the N examples.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lira.engine.stacked import batches_of

__all__ = ["block_by_block", "in_loops", "step_by_step"]


def in_loops(lowering: str, platform: str) -> str:
    """The lowering within the bodies of loops: there XLA's own convolution is forty times slower on CPU, so patches."""
    return "patches" if platform == "cpu" and lowering in ("xla", "per_model") else lowering


def step_by_step(
    order: Callable[..., jax.Array],
    one_step: Callable[..., tuple[Any, jax.Array]],
    state: Any,
    indices: jax.Array,
    number: jax.Array | int,
    stop: jax.Array | int,
    x: jax.Array,
    y: jax.Array,
    keep: jax.Array,
) -> tuple[Any, jax.Array]:
    """Epoch `number` as `stop` calls of one compiled step: the state, and mean losses `[m, 1]`.

    Indices `[m]`, x `[N, ...]`, y `[N]` and keep `[m, N]` as `Programs.train` takes them.
    """
    total: Any = 0.0
    orders = order(indices, number, keep)
    for at in range(int(stop)):
        state, losses = one_step(state, indices, number, at, orders, x, y)
        total += losses
    return state, (total / stop)[:, None]


def block_by_block(ask: Callable[..., Any], batch: int, variables: Any, x: jax.Array, y: jax.Array) -> Any:
    """The query sweep over x `[n, ...]` and y `[n]` as one call a batch; its arrays are `[m, n, ...]`."""
    answers = [ask(variables, x[block], y[block]) for block in batches_of(len(y), batch)]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1)[:, : len(y)], *answers)
