"""A block of examples as an attack sees it: on the device, each side's models, and what every target takes from them.

What a target removes takes as much memory as phi, for each side.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lira.attacks._pool import Array

__all__ = [
    "UNCUT",
    "Block",
    "Cuts",
    "Side",
    "drop_lots",
    "outside_targets",
    "without_one",
    "without_pairs",
]

# How many IN and OUT models an example keeps, traced where compiled; None: all that are left.
Cuts = tuple[Any, Any]
UNCUT: Cuts = (None, None)


class Side(NamedTuple):
    """One side (IN or OUT) of a block: its members in the whole pool, and what each target removes from them."""

    mask: Array  # bool [M, n]
    removed: Array  # float [T, n, Q], the one value taken out for a target
    removes: Array  # bool [T, n], whether one is taken out at all


class Block(NamedTuple):
    """One block of examples as an attack sees it."""

    attacked: Array  # float [T, n, Q]
    values: Array  # float [M, n, Q]
    fresh: Array  # bool [n], false for the examples that an earlier block already held
    inside: Side
    outside: Side


def outside_targets(
    attacked: Array,
    values: Array,
    inside: np.ndarray,
    fresh: np.ndarray,
    examples: np.ndarray,
    cuts: Cuts,
    *,
    in_row_order: bool,
) -> Block:
    """No target removes anything."""
    nothing = np.zeros((1, *values.shape[1:]), values.dtype), np.zeros((1, values.shape[1]), bool)
    kept = _kept(inside, examples, cuts, 0, in_row_order)
    block = Block(attacked, values, fresh, *(Side(mask, *nothing) for mask in kept))
    return jax.tree.map(jnp.asarray, block)


@jax.jit
def without_pairs(values: Array, inside: Array, fresh: Array) -> Block:
    """Each pair has one model on each side: `removed` is the value of that one, for target and mate alike."""
    mates = values.reshape(-1, 2, *values.shape[1:])[:, ::-1].reshape(values.shape)
    always = jnp.ones(inside.shape, bool)
    sides = (Side(mask, jnp.where(mask[..., None], values, mates), always) for mask in (inside, ~inside))
    return Block(values, values, fresh, *sides)


def without_one(
    values: Array,
    inside: np.ndarray,
    fresh: np.ndarray,
    examples: np.ndarray,
    rows: np.ndarray,
    cuts: Cuts,
    *,
    in_row_order: bool,
) -> Block:
    """Each of the targets `rows` is left out alone."""
    kept = _kept(inside, examples, cuts, 1, in_row_order)
    lots = None if cuts == UNCUT or in_row_order else drop_lots(examples)
    return _without_one(values, kept, fresh, rows, cuts, lots)


@jax.jit
def _without_one(
    values: Array, kept: list[Array], fresh: Array, rows: Array, cuts: Cuts, lots: Array | None
) -> Block:
    """`lots` are those of `drop_lots`; None drops the last that is kept."""
    sides = []
    for index, (mask, cut) in enumerate(zip(kept, cuts, strict=True)):
        if cut is None:
            sides.append(Side(mask, values[rows], mask[rows]))
        else:
            rank = cut
            if lots is not None:
                # An example's targets are one after another, so that all ranks are dropped equally often: what dropping a
                # model of its own temper gives away of one target is evened out by others.
                rank = (lots[:, index] + rows.astype(jnp.uint32)[:, None]) % (cut + 1).astype(jnp.uint32)
            sides.append(_drop_one(values, mask, rows, cut, rank))
    return Block(values[rows], values, fresh, *sides)


# --- What is drawn, on the host: compiled it would be the longest of an attack's programs --------------------------------


def _kept(
    inside: np.ndarray, examples: np.ndarray, cuts: Cuts, beside: int, in_row_order: bool
) -> list[np.ndarray]:
    """The IN and the OUT models that are kept, bool `[M, n]` each: as many as the cuts say, and `beside`."""
    return [
        mask if cut is None else _keep_some(mask, examples, int(cut) + beside, in_row_order)
        for mask, cut in zip((inside, ~inside), cuts, strict=True)
    ]


def _keep_some(mask: np.ndarray, examples: np.ndarray, most: int, in_row_order: bool) -> np.ndarray:
    """At most so many models of a side, `[M, n]`: the first, or some that are drawn for each example."""
    if in_row_order:
        return mask & (np.cumsum(mask, axis=0) <= most)
    many = np.flatnonzero(mask.sum(axis=0) > most)
    if not len(many):  # as in exactly balanced pools
        return mask
    order = np.where(mask[:, many], _orders(len(mask), examples[many]), len(mask))
    some = mask.copy()
    some[:, many] &= (most > 0) & (order <= np.sort(order, axis=0)[most - 1])
    return some


def _orders(M: int, examples: np.ndarray) -> np.ndarray:
    """For each example an order of M models, int64 `[M, n]`.

    Through M examples in a row each model takes every place once, so that luck evens out.
    """
    turns, turn = np.unique(examples // np.uint32(M), return_inverse=True)
    high, low = _threefry(_threefry(_KEPT, turns[:, None]), np.arange(M, dtype=np.uint32))
    order = np.argsort(high ^ low, axis=1, kind="stable")
    return (order[turn] + examples[:, None]).T % M


def drop_lots(examples: np.ndarray) -> np.ndarray:
    """The rank that the first target goes without of the IN and of the OUT side, modulo their counts: uint32 `[n, 2]`, < 2^31."""
    keys = _threefry(_DROPPED, examples.astype(np.uint32)[:, None])
    high, low = _threefry(keys, np.arange(2, dtype=np.uint32))
    return (high ^ low) >> np.uint32(1)


def _threefry(key: tuple[Any, Any], count: np.ndarray) -> tuple[Any, Any]:
    """Threefry-2x32 of 20 rounds (Salmon et al. 2011), the generator of JAX, of the counters (0, count).

    All are uint32 and broadcast. A pair of words, which is also `jax.random.fold_in(key, count)`, and XORed what
    `jax.random.bits` gives at that place.
    """
    keys = (*key, key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    high, low = keys[0], count + keys[1]
    for turn in range(5):
        for bits in ((13, 15, 26, 6), (17, 29, 16, 24))[turn % 2]:
            high = high + low
            low = high ^ ((low << np.uint32(bits)) | (low >> np.uint32(32 - bits)))
        high = high + keys[(turn + 1) % 3]
        low = low + keys[(turn + 2) % 3] + np.uint32(turn + 1)
    return high, low


_ZERO = np.zeros(1, np.uint32)
# Keys of which models an example keeps, and of which each target goes without: jax.random.split(jax.random.key(0)).
_KEPT, _DROPPED = zip(*_threefry((_ZERO, _ZERO), np.arange(2, dtype=np.uint32)), strict=True)


# --- What is left out, compiled ---------------------------------------------------------------------------------------


def _drop_one(values: Array, kept: Array, rows: Array, cut: Array, rank: Array) -> Side:
    """Leave one target out of a side, or where it is not among the `cut` + 1 that are kept the one of that rank.

    Args:
        values: `[M, n, Q]`.
        kept: bool `[M, n]`; `cut` of an example where leaving the target out takes none from it.
        rows: int `[T]`, the targets.
        cut: how many are to be left.
        rank: int `[T, n]` or one for all, from 0 to `cut`.
    """
    count = jnp.cumsum(kept, axis=0)
    rank = jnp.broadcast_to(rank, (len(rows), kept.shape[1])).astype(count.dtype)
    at = jax.vmap(lambda count, rank: jnp.searchsorted(count, rank + 1), (1, 1), 1)(count, rank)
    drawn = jnp.take_along_axis(values, jnp.minimum(at, len(kept) - 1)[..., None], axis=0)
    is_target = kept[rows]
    removed = jnp.where(is_target[..., None], values[rows], drawn)
    return Side(kept, removed, is_target | (count[-1] > cut))
