"""The opponents of a target: the models of a pool that serve against it, and on which side of an example each stands."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike
from scipy import special

from lira.attacks._parted import UNCUT, Block, Cuts, outside_targets, without_one, without_pairs
from lira.attacks._pool import (
    Array,
    Leave,
    SignalArray,
    ThinPoolError,
    UnfitPoolError,
    blocks,
    check_pool,
    read_where_it_is,
    require_numbers,
    scoring,
)
from lira.membership import have_independent_counts, related_rows
from lira.numbers import as_array

__all__ = ["Group", "Opponents", "check_relations", "opponents_of"]

# How many examples may be expected to have too few models for an attack by a design of independent coins.
UNLIKELY = 0.05
SIDES: tuple[str, ...] = ("IN", "OUT", "IN or OUT")


class Group(NamedTuple):
    """Targets that share their cuts."""

    rows: np.ndarray  # int [T'], which targets
    cuts: Cuts = UNCUT


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
    """what is left out with a target"""
    in_row_order: bool
    """whether the first models of a side are kept, as the authors' code does, or random ones"""
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
        """Raise ThinPoolError where an example is left fewer than `needed` models of a side; `remedy` works instead."""
        if self.fewest[side] < needed:
            raise ThinPoolError(
                f"{attack} needs {needed} {side} model{'s' * (needed > 1)} for every example once the target's are left "
                f"out, and an example has {self.fewest[side]}: use {remedy}, or more models",
                side,
                needed,
            )
        if self.target is None and self.leave == "independent" and side in SIDES[:2]:
            self._require_by_design(attack, side, needed, remedy)

    def _require_by_design(self, attack: str, side: str, needed: int, remedy: str) -> None:
        """Raise ThinPoolError where independent coins could well have left an example fewer models.

        That they have not says something of them: an example whose other models are just enough is a member, since it
        would have refused the pool if it were none. So the pool is refused by its design and not by its counts.
        """
        M, N, _ = self.shape
        rate = self.keep.mean() if side == "IN" else 1 - self.keep.mean()
        expected = N * special.bdtr(needed - 1, M - 1, rate)
        if self.groups[0].cuts == UNCUT and expected > UNLIKELY:
            raise ThinPoolError(
                f"{attack} needs {needed} {side} model{'s' * (needed > 1)} for every example, and of {M} models with "
                f"independent memberships {expected:.2g} of {N:,} examples have fewer on average; that none has here would "
                f"give memberships away: use {remedy}, or more models",
                side,
                needed,
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
            numbers = np.arange(examples.start, examples.stop, dtype=np.uint32)
            in_row_order = self.in_row_order
            if self.target is not None:
                attacked = transform(read_where_it_is(self.target, examples, self.names[1]))
                block = outside_targets(
                    attacked, values, inside, fresh, numbers, group.cuts, in_row_order=in_row_order
                )
            elif self.leave == "pair":
                block = without_pairs(values, inside, fresh)
            else:
                block = without_one(
                    values, inside, fresh, numbers, group.rows, group.cuts, in_row_order=in_row_order
                )
            yield examples, block

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

        Raises:
            ValueError: a score is NaN, for phi is too large.
        """
        scores = np.empty((self.num_targets, self.keep.shape[1]), dtype)
        with scoring(self.phi, self.target):
            for group in self.groups:
                score = scorer(group)
                walk = self.blocks(group, transform, shape)
                _store(scores, ((group.rows, examples, score(block)) for examples, block in walk))
        return require_numbers(scores)


def opponents_of(
    phi: SignalArray,
    keep: np.ndarray,
    target: SignalArray | None,
    leave: Leave,
    *,
    in_row_order: bool = False,
) -> Opponents:
    """Check a pool, and group its targets by what is left of it against them.

    Where memberships are not independent coins, what remains of a pool without the target gives its membership away:
    through the number of IN models, and through who is among them. So each side is cut to its smallest count over all
    examples, once the target is left out, and a random model is dropped for each target and example, drawn without a look
    at memberships. Complementary pairs have equal counts by themselves.

    `leave="one"` always cuts, `leave="independent"` and outside targets where counts do not spread as those of
    independent coins do. `in_row_order=True` cuts as the authors' code does, always, to the first models of a side and to
    the smallest count of each target, hence up to four groups: in pools that are not pairs this leaks.

    Raises:
        ValueError: as `check_pool`.
        UnfitPoolError: two models give each other's memberships away.

    Warns:
        UserWarning: counts are not those of independent coins, which `leave="independent"` says they are.
    """
    M, N, _ = check_pool(phi, keep, target, leave)
    keep = as_array(keep)
    every = np.arange(M if target is None else target.shape[0])
    paired = target is None and leave == "pair"
    inside = np.full(N, M // 2) if paired else keep.sum(axis=0)
    counts = np.stack([inside, M - inside])  # [2, N]
    cut = in_row_order or _needs_cut(keep, target is not None, leave)
    fewest, total, either = counts.min(axis=1), counts.sum(axis=1), M
    groups = [Group(every)]
    if target is not None:
        if cut:
            groups = [Group(every, tuple(fewest))]
    elif paired:
        fewest, total, either = fewest - 1, total - N, M - 2
    else:
        check_relations(keep)
        # [M, 2]: does leaving model t out take one from an example that has the fewest?
        lowers = np.stack(
            [keep[:, counts[0] == fewest[0]].any(axis=1), (~keep[:, counts[1] == fewest[1]]).any(axis=1)], 1
        )
        held, least = keep.sum(axis=1), (fewest - lowers).min(axis=0)
        if in_row_order:
            kinds = np.unique(lowers, axis=0)
            groups = [
                Group(np.flatnonzero((lowers == kind).all(axis=1)), tuple(fewest - kind)) for kind in kinds
            ]
        elif cut:
            groups = [Group(every, tuple(least))]
        fewest, total, either = least, total - [held.max(), N - held.min()], M - 1
    if groups[0].cuts != UNCUT:
        total, either = fewest * N, fewest.sum()
    by_side = dict(zip(SIDES, map(int, (*fewest, either)), strict=True))
    totals = dict(zip(SIDES[:2], map(int, total), strict=True))
    return Opponents(phi, keep, target, leave, in_row_order, groups, by_side, totals)


def _needs_cut(keep: np.ndarray, outside: bool, leave: Leave) -> bool:
    """Whether counts of IN and OUT models would give memberships away; of an outside target, too, that was one of them."""
    if not outside and leave != "independent":
        return leave == "one"
    if have_independent_counts(keep):
        return False
    if outside:
        counts = keep.sum(axis=0)
        return bool((counts != counts[0]).any())
    warnings.warn(
        "counts of IN models do not spread as those of independent coins do: each side is cut to its smallest count, as "
        'leave="one" does',
        stacklevel=4,
    )
    return True


def check_relations(keep: np.ndarray) -> None:
    """Raise UnfitPoolError where a model's memberships follow from another's."""
    related = related_rows(keep)
    if related is not None:
        raise UnfitPoolError(
            f"models {related[0]} and {related[1]} give each other's memberships away, which are much more alike, or "
            f"opposite, than those of other models: leave one of the two out of the pool, or use global_threshold, which "
            f"needs no shadow models"
        )


def _store(scores: np.ndarray, computed: Iterable[tuple[np.ndarray, slice, Array]]) -> None:
    """Write `scores[rows, examples]` block by block, one behind: a device computes the next while the host writes."""
    waiting = None
    for rows, examples, values in computed:
        if waiting is not None:
            scores[waiting[0], waiting[1]] = waiting[2]
        waiting = rows, examples, values
    if waiting is not None:
        scores[waiting[0], waiting[1]] = waiting[2]
