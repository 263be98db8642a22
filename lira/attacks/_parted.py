"""A block of examples as an attack sees it: on the device, each side's models, and what every target takes from them.

What a target removes takes as much memory as phi, for each side.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lira.attacks._pool import Array

__all__ = ["UNCUT", "Block", "Cuts", "Side", "drop_draws", "outside_targets", "without_one", "without_pairs"]

# How many IN and OUT models an example keeps, traced where compiled; None: all that are left.
Cuts = tuple[Any, Any]
UNCUT: Cuts = (None, None)
# Of the draws that say which models an example goes without.
SEED = 0


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


@partial(jax.jit, static_argnames="in_row_order")
def outside_targets(
    attacked: Array,
    values: Array,
    inside: Array,
    fresh: Array,
    examples: Array,
    cuts: Cuts,
    *,
    in_row_order: bool,
) -> Block:
    """No target removes anything."""
    nothing = jnp.zeros((1, *values.shape[1:]), values.dtype), jnp.zeros((1, values.shape[1]), bool)
    masks = [
        mask if cut is None else _keep_some(mask, examples, cut, in_row_order)
        for mask, cut in zip((inside, ~inside), cuts, strict=True)
    ]
    return Block(attacked, values, fresh, *(Side(mask, *nothing) for mask in masks))


@jax.jit
def without_pairs(values: Array, inside: Array, fresh: Array) -> Block:
    """Each pair has one model on each side: `removed` is the value of that one, for target and mate alike."""
    mates = values.reshape(-1, 2, *values.shape[1:])[:, ::-1].reshape(values.shape)
    always = jnp.ones(inside.shape, bool)
    sides = (Side(mask, jnp.where(mask[..., None], values, mates), always) for mask in (inside, ~inside))
    return Block(values, values, fresh, *sides)


@partial(jax.jit, static_argnames="in_row_order")
def without_one(
    values: Array,
    inside: Array,
    fresh: Array,
    examples: Array,
    rows: Array,
    cuts: Cuts,
    *,
    in_row_order: bool,
) -> Block:
    """Each of the targets `rows` is left out alone."""
    sides, draws = [], None if cuts[0] is None or in_row_order else drop_draws(rows, examples)
    for index, (mask, cut) in enumerate(zip((inside, ~inside), cuts, strict=True)):
        if cut is None:
            sides.append(Side(mask, values[rows], mask[rows]))
        else:
            kept = _keep_some(mask, examples, cut + 1, in_row_order)
            rank = cut if draws is None else draws[..., index] % (cut + 1).astype(jnp.uint32)
            sides.append(_drop_one(values, kept, rows, cut, rank))
    return Block(values[rows], values, fresh, *sides)


def _keep_some(mask: Array, examples: Array, most: Array, in_row_order: bool) -> Array:
    """At most so many models of a side, `[M, n]`: the first, or some that are drawn for each example."""
    if in_row_order:
        return mask & (jnp.cumsum(mask, axis=0) <= most)

    M = len(mask)

    def draw(example: Array) -> Array:
        key = jax.random.fold_in(jax.random.split(jax.random.key(SEED))[0], example // M)
        # Through M examples in a row each model takes every place once, so that luck evens out.
        return (jnp.argsort(jax.random.bits(key, (M,), jnp.uint32)) + example) % M

    def keep_some(mask: Array, examples: Array) -> Array:
        order = jnp.where(mask, jax.vmap(draw, out_axes=1)(examples), M)
        return mask & (most > 0) & (order <= jnp.sort(order, axis=0)[most - 1])

    # In exactly balanced pools there is nothing to sort.
    enough = jnp.all(jnp.sum(mask, axis=0) <= most)
    return jax.lax.cond(enough, lambda mask, _: mask, keep_some, mask, examples)


def drop_draws(rows: Array, examples: Array) -> Array:
    """Random numbers for the IN and the OUT side, uint32 `[T, n, 2]`, a function of target and example alone.

    Each is uniform, and the targets' are one after another: for an example all ranks are dropped equally often, and what
    dropping a model of its own temper gives away of one target is evened out by others.
    """

    def draw(example: Array) -> Array:
        key = jax.random.split(jax.random.key(SEED))[1]
        return jax.random.bits(jax.random.fold_in(key, example), (2,), jnp.uint32) >> 1

    return jax.vmap(draw)(examples) + jnp.asarray(rows, jnp.uint32)[:, None, None]


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
