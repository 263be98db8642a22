"""The opponents of a target: the models of a pool that serve against it, and on which side of an example each stands."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from lira.attacks._pool import (
    Array,
    Leave,
    SignalArray,
    UnfitPoolError,
    blocks,
    check_pool,
    read_where_it_is,
    scoring,
)

__all__ = ["Block", "Group", "Opponents", "Side", "opponents_of"]

# How many IN and OUT models an example keeps; None: all that are left.
Cuts = tuple[int | None, int | None]
UNCUT: Cuts = (None, None)
SIDES: tuple[str, ...] = ("IN", "OUT", "IN or OUT")


class Group(NamedTuple):
    """Targets that share their cuts."""

    rows: np.ndarray  # int [T'], which targets
    cuts: Cuts = UNCUT


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


def _as_it_is(phi: Array) -> Array:
    """No transform."""
    return phi


@dataclass(frozen=True, eq=False)
class Opponents:
    """What serves against each target of a pool once its own models are left out."""

    phi: SignalArray
    """[M, N, Q]"""
    keep: np.ndarray
    """bool [M, N]"""
    target: SignalArray | None
    """[T, N, Q]; None attacks the M models of the pool"""
    leave: Leave
    """"pair" or "one" """
    groups: list[Group]
    fewest: dict[str, int]
    """of "IN", "OUT" and "IN or OUT" models, the fewest that an example has left against any target"""
    total: dict[str, int]
    """of "IN" and "OUT" models, the fewest that all examples together have left against any target"""
    names: tuple[str, str] = ("phi", "target")
    """what errors call the arrays"""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of phi: M, N, Q."""
        M, N, Q = self.phi.shape
        return M, N, Q

    @property
    def num_targets(self) -> int:
        """T, or M without outside targets."""
        return (self.phi if self.target is None else self.target).shape[0]

    def require(self, attack: str, side: str, needed: int, remedy: str) -> None:
        """Raise UnfitPoolError where an example is left fewer than `needed` models of a side; `remedy` works instead."""
        if self.fewest[side] < needed:
            raise UnfitPoolError(
                f"{attack} needs {needed} {side} model{'s' * (needed > 1)} for every example once the target's are left "
                f"out, and an example has {self.fewest[side]}: use {remedy}, or more models"
            )

    def require_any(self, attack: str, side: str, remedy: str) -> None:
        """Raise UnfitPoolError where no example is left a model of a side; `remedy` works instead."""
        if not self.total[side]:
            raise UnfitPoolError(
                f"{attack} needs {side} models once the target's are left out, and there are none: use {remedy}, or "
                f"more models"
            )

    def blocks(
        self,
        group: Group,
        transform: Callable[[Any], Array] = _as_it_is,
        shape: tuple[int, int, int] | None = None,
    ) -> Iterator[tuple[slice, Block]]:
        """Walk over all examples for one group of targets. To be called within `scoring`.

        Args:
            group: one of `groups`.
            transform: of every value. JAX arrays do not leave their device, unless it takes them to the host.
            shape: as which (M, N, Q) the examples are cut into blocks; None: that of phi.
        """
        for examples, fresh in blocks(*(shape or self.shape)):
            values = transform(read_where_it_is(self.phi, examples, self.names[0]))
            inside = self.keep[:, examples]
            if self.target is not None:
                attacked = transform(read_where_it_is(self.target, examples, self.names[1]))
                yield examples, _outside_targets(attacked, values, inside, fresh, group.cuts)
            elif self.leave == "pair":
                yield examples, _without_pairs(values, inside, fresh)
            else:
                yield examples, _without_one(values, inside, fresh, *group)

    def score(
        self,
        scorer: Callable[[Group], Callable[[Block], Array]],
        transform: Callable[[Any], Array] = _as_it_is,
        *,
        shape: tuple[int, int, int] | None = None,
        dtype: DTypeLike = np.float32,
    ) -> np.ndarray:
        """Score all targets in float64, block by block.

        Args:
            scorer: from a group of targets, of whom it may make a pass over the examples first, to what gives the
                scores `[T', n]` of a block.
            transform: as in `blocks`.
            shape: as in `blocks`.
            dtype: of the result.

        Returns:
            `[T, N]`.
        """
        scores = np.empty((self.num_targets, self.keep.shape[1]), dtype)
        with scoring(self.phi, self.target):
            for group in self.groups:
                score = scorer(group)
                walk = self.blocks(group, transform, shape)
                _store(scores, ((group.rows, examples, score(block)) for examples, block in walk))
        return scores


def opponents_of(
    phi: SignalArray, keep: np.ndarray, target: SignalArray | None, leave: Leave, *, cut: bool = False
) -> Opponents:
    """Check a pool, and group its targets by what is left of it against them.

    Leaving one target out of an exactly balanced design would leak its membership through the counts, so each side
    is cut to its smallest count over all examples, once the target is left out. Whether that lowers the smallest
    count depends on the target, hence up to four groups. `cut=True` cuts pools of other designs, too; complementary
    pairs have equal counts by themselves.

    Raises:
        ValueError: as `check_pool`.
    """
    keep = np.asarray(keep)
    M, N, _ = check_pool(phi, keep, target, leave)
    every = np.arange(M if target is None else target.shape[0])
    counts = np.stack([keep.sum(axis=0), M - keep.sum(axis=0)])  # [2, N]
    fewest, total, either = counts.min(axis=1), counts.sum(axis=1), M
    groups = [Group(every)]
    if target is not None:
        if cut:
            groups = [Group(every, tuple(fewest))]
    elif leave == "pair":
        fewest, total, either = fewest - 1, total - N, M - 2
    else:
        # [M, 2]: does leaving model t out take one from an example that has the fewest?
        lowers = np.stack(
            [keep[:, counts[0] == fewest[0]].any(axis=1), (~keep[:, counts[1] == fewest[1]]).any(axis=1)], 1
        )
        if cut or (counts == counts[:, :1]).all():
            kinds = np.unique(lowers, axis=0)
            groups = [
                Group(np.flatnonzero((lowers == kind).all(axis=1)), tuple(fewest - kind)) for kind in kinds
            ]
        held = keep.sum(axis=1)
        fewest, total, either = (
            (fewest - lowers).min(axis=0),
            total - [held.max(), N - held.min()],
            M - 1,
        )
    if groups[0].cuts != UNCUT:
        total, either = fewest * N, fewest.sum()
    by_side = dict(zip(SIDES, map(int, (*fewest, either)), strict=True))
    totals = dict(zip(SIDES[:2], map(int, total), strict=True))
    return Opponents(phi, keep, target, leave, groups, by_side, totals)


def _store(scores: np.ndarray, computed: Iterable[tuple[np.ndarray, slice, Array]]) -> None:
    """Write `scores[rows, examples]` block by block, one behind: a device computes the next while the host writes."""
    waiting = None
    for rows, examples, values in computed:
        if waiting is not None:
            scores[waiting[0], waiting[1]] = waiting[2]
        waiting = rows, examples, values
    if waiting is not None:
        scores[waiting[0], waiting[1]] = waiting[2]


# --- Parted on the device: what a target removes takes as much memory as phi, for each side -------------------------


@jax.jit
def _outside_targets(attacked: Array, values: Array, inside: Array, fresh: Array, cuts: Cuts) -> Block:
    """No target removes anything."""
    nothing = jnp.zeros((1, *values.shape[1:]), values.dtype), jnp.zeros((1, values.shape[1]), bool)
    masks = [
        mask if cut is None else mask & (jnp.cumsum(mask, axis=0) <= cut)
        for mask, cut in zip((inside, ~inside), cuts, strict=True)
    ]
    return Block(attacked, values, fresh, *(Side(mask, *nothing) for mask in masks))


@jax.jit
def _without_pairs(values: Array, inside: Array, fresh: Array) -> Block:
    """Each pair has one model on each side: `removed` is the value of that one, for target and mate alike."""
    mates = values.reshape(-1, 2, *values.shape[1:])[:, ::-1].reshape(values.shape)
    always = jnp.ones(inside.shape, bool)
    sides = (Side(mask, jnp.where(mask[..., None], values, mates), always) for mask in (inside, ~inside))
    return Block(values, values, fresh, *sides)


@jax.jit
def _without_one(values: Array, inside: Array, fresh: Array, rows: Array, cuts: Cuts) -> Block:
    """Each of the targets `rows` is left out alone."""
    sides = (
        Side(mask, values[rows], mask[rows]) if cut is None else _cut_one(values, mask, rows, cut)
        for mask, cut in zip((inside, ~inside), cuts, strict=True)
    )
    return Block(values[rows], values, fresh, *sides)


def _cut_one(values: Array, mask: Array, rows: Array, cut: int) -> Side:
    """Leave one target out of a side and keep the first `cut` of the rest, in model order.

    These are the first cut + 1 less one: the target where it is among them, else the last of them.
    """
    rank = jnp.cumsum(mask, axis=0)
    mask = mask & (rank <= cut + 1)
    last = mask & (rank == cut + 1)
    is_target = mask[rows]
    last_value = jnp.where(last[..., None], values, 0).sum(axis=0)
    removed = jnp.where(is_target[..., None], values[rows], last_value)
    return Side(mask, removed, is_target | last.any(axis=0))
