"""What CPUs alone need: steps and batches as programs of their own, since XLA's convolutions are slow within loops there."""

import jax
import jax.numpy as jnp

from lira.engine.stacked import batches_of

__all__ = ["block_by_block", "slow_in_loops", "step_by_step"]


def slow_in_loops(how: str) -> bool:
    """In the body of a loop XLA's own convolution is forty times slower on CPU."""
    return how in ("xla", "per_model") and jax.default_backend() == "cpu"


def step_by_step(order, one_step, state, indices, number, stop, x, y, keep):
    """An epoch as `stop` calls of one compiled step."""
    orders, total = order(indices, number, keep), 0.0
    for at in range(int(stop)):
        state, losses = one_step(state, indices, number, at, orders, x, y)
        total += losses
    return state, (total / stop)[:, None]


def block_by_block(ask, batch: int, variables, x, y):
    """The query sweep as one call a batch."""
    answers = [ask(variables, x[block], y[block]) for block in batches_of(len(y), batch)]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1)[:, : len(y)], *answers)
