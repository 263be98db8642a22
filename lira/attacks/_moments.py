"""Moments of the IN and OUT sides without what each target leaves out, in float64 under jit."""

import functools
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from lira.attacks._opponents import Block, Side
from lira.attacks._pool import Array

__all__ = ["PooledSums", "Walk", "float64", "moments", "pooled_sums", "side_sums"]

Tree = TypeVar("Tree")
Walk = Iterable[tuple[slice, Block]]


class PooledSums(NamedTuple):
    """Sums over all examples and queries of one side, float64 `[T]`: one for each target, or `[1]` for outside ones."""

    models: np.ndarray
    within: np.ndarray  # squared deviations from each example's mean
    total: np.ndarray
    squares: np.ndarray


def float64(arrays: Tree) -> Tree:
    """Widen every array but masks."""
    return jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype != bool else a, arrays)


def moments(values: Array, side: Side) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Count `[T, n, 1]`, mean and sum of squared deviations `[T, n, Q]` of a side without what each target removes."""
    mask = side.mask[..., None]
    count = jnp.sum(mask, axis=0)
    mean = jnp.sum(jnp.where(mask, values, 0.0), axis=0) / jnp.maximum(count, 1)
    squares = jnp.sum(jnp.where(mask, jnp.square(values - mean), 0.0), axis=0)
    removes = side.removes[..., None]
    rest = count - removes
    deviation = jnp.where(removes, side.removed - mean, 0.0)
    # mean' = mean - d / (c - 1),  squares' = squares - d^2 c / (c - 1)
    left = squares - jnp.square(deviation) * (count / jnp.maximum(rest, 1))
    # Below float64's cancellation error nothing is left but rounding.
    left = jnp.where(left > 1e-13 * squares, left, 0.0)
    return rest, mean - deviation / jnp.maximum(rest, 1), left


def side_sums(walk: Walk, sums: Callable[[Block, Side], Tree]) -> list[Tree]:
    """What `sums` gives of the IN and of the OUT side of each block, added up over the blocks."""
    parts = ([sums(block, side) for side in (block.inside, block.outside)] for _, block in walk)
    return functools.reduce(partial(jax.tree.map, jnp.add), parts)


def pooled_sums(walk: Walk) -> list[PooledSums]:
    """Sum the moments of the IN and of the OUT side over all blocks of a pool."""
    return [PooledSums(*np.asarray(sums)) for sums in side_sums(walk, _sums)]


@jax.jit
def _sums(block: Block, side: Side) -> jax.Array:
    """The sums of a block's fresh examples, `[4, T]`."""
    values, side = float64((block.values, side))
    count, mean, squares = moments(values, side)
    count = jnp.broadcast_to(count, mean.shape)
    fresh = block.fresh[:, None]
    return jnp.stack(
        [
            jnp.sum(jnp.where(fresh, part, 0.0), axis=(1, 2))
            for part in (count, squares, count * mean, squares + count * jnp.square(mean))
        ]
    )
