"""The query sweep: a stack's answers about all examples, a batch at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from lira.engine.cpu import in_loops
from lira.engine.stacked import batches_of, compiled_once, stacked
from lira.learning.augment import ORIGINAL_BATCH, Queries
from lira.learning.evaluation import query
from lira.learning.learner import Learner

__all__ = ["sweep_program"]


def sweep_program(
    learner: Learner,
    lowering: str,
    variables: Any,
    x: jax.ShapeDtypeStruct,
    y: jax.ShapeDtypeStruct,
    room: int | None,
    queries: Queries,
    signals: tuple[str, ...],
) -> Callable[..., Any]:
    """The program `(variables, x [n, ...], y [n]) -> answers [m, n, ...]`, see `Programs.sweep`.

    Args:
        learner: how the models are trained.
        lowering: of their convolutions.
        variables: shapes of a stack's.
        x: shape of the examples to ask about.
        y: that of their labels.
        room: bytes that the training step works with, None where the compiler does not tell.
        queries: about each example.
        signals: beside phi.
    """
    platform = learner.platform
    looped = in_loops(lowering, platform)

    def ask(variables: Any, x: jax.Array, y: jax.Array) -> Any:
        return query(learner.module, queries, signals, variables, x, y)

    if queries.convention == "original":
        # Its batches are part of the convention, so the last one is not filled up.
        stacked_ask = stacked(looped, platform, ask, 0, None, None)
        return partial(_by_calls, compiled_once(stacked_ask), ORIGINAL_BATCH, wraps=False)
    stacked_ask = stacked(lowering, platform, ask, 0, None, None)
    batch = max(1, learner.recipe.batch_size // len(queries.views))
    # Not so on CPU: what a training batch needs stays in the cache there, and larger ones were up to 30 % slower.
    if room is not None and platform != "cpu":
        batch = _sweep_batch(stacked_ask, variables, x, y, batch, room)
    if looped != lowering:
        return partial(_by_calls, compiled_once(stacked_ask), batch, wraps=True)

    @jax.named_scope("sweep")
    def sweep(variables: Any, x: jax.Array, y: jax.Array) -> Any:
        answers = jax.lax.map(lambda block: ask(variables, x[block], y[block]), batches_of(len(y), batch))
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[: len(y)], answers)

    return compiled_once(stacked(lowering, platform, sweep, 0, None, None))


def _sweep_batch(
    ask: Any, variables: Any, x: jax.ShapeDtypeStruct, y: jax.ShapeDtypeStruct, batch: int, room: int
) -> int:
    """Examples to ask about at a time: `batch`, or as many as fit in the bytes that a training step works with."""
    few = (jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype) for a in (x, y))
    each = ask.lower(variables, *few).compile().memory_analysis().temp_size_in_bytes / batch
    return min(max(batch, int(room / max(each, 1))), y.shape[0])


def _by_calls(
    ask: Callable[..., Any], batch: int, variables: Any, x: jax.Array, y: jax.Array, *, wraps: bool
) -> Any:
    """The sweep over x `[n, ...]` and y `[n]` as one call a batch of consecutive examples.

    The last batch wraps, so that all are of one shape, or is what remains.
    """
    n = len(y)
    parts = batches_of(n, batch) if wraps else [slice(at, at + batch) for at in range(0, n, batch)]
    answers = [jax.tree.map(np.asarray, ask(variables, x[part], y[part])) for part in parts]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=1)[:, :n], *answers)
