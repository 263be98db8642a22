"""Moments and medians of the IN and OUT sides without what each target leaves out, in float64 under jit."""

import functools
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from lira.attacks._parted import Block, Side
from lira.attacks._pool import Array

__all__ = [
    "SD_FLOOR",
    "PooledSums",
    "Walk",
    "float64",
    "median",
    "middle",
    "moments",
    "pooled_sums",
    "side_sums",
]

Tree = TypeVar("Tree")
Walk = Iterable[tuple[slice, Block]]
# A spread below this, relative to 1 + |mean|, is the rounding of float32 phi and not a property of the models.
SD_FLOOR = 2.0**-20


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


def middle(values: Array, mask: Array) -> np.ndarray:
    """What the median of a side becomes with none or one value removed, `[5, n, Q]`.

    [0] is the median of all c values. With one removed it is the mean of the elements (c - 2) // 2 and
    (c - 1) // 2 of the rest: [1] and [3] are those elements of all values, sorted, [2] and [4] their successors,
    which take their place where the removed value is not above them.
    """
    ordered = np.sort(np.where(mask[..., None], values, np.inf).transpose(1, 2, 0), axis=-1)  # [n, Q, M]
    count = mask.sum(axis=0)[:, None, None]
    low, high = (count - 2) // 2, (count - 1) // 2
    index = np.concatenate([high, count // 2, low, low + 1, high, high + 1], axis=-1)
    index = np.broadcast_to(np.clip(index, 0, len(values) - 1), (*ordered.shape[:2], 6))
    picks = np.take_along_axis(ordered, index, axis=-1).transpose(2, 0, 1).astype(np.float64)
    return np.concatenate([picks[:2].mean(axis=0, keepdims=True), picks[2:]])


def median(side: Side, middle: Array) -> jax.Array:
    """The median of a side without what each target removes, `[T, n, Q]`; `middle` is what that function found."""
    everything, low, after_low, high, after_high = middle
    without = 0.5 * (
        jnp.where(side.removed > low, low, after_low) + jnp.where(side.removed > high, high, after_high)
    )
    return jnp.where(side.removes[..., None], without, everything)


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
