"""What the attacks share: checking a pool, saying which models are used against whom, and reading it in blocks."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lira.membership import is_paired

__all__ = [
    "Block",
    "FewModelsError",
    "FewModelsWarning",
    "FlooredVarianceWarning",
    "Group",
    "Side",
    "SignalArray",
    "blocks",
    "check_pool",
    "check_population",
    "group_targets",
    "need_models",
    "read_block",
    "read_sides",
    "sided_blocks",
]

# Elements of [M, n, Q] that one compiled step works on. What it makes of them in float64, 2 MiB an array, stays in a
# CPU's cache: three times as fast as 32 MiB. Accelerators have fewer and longer steps, of so many times the elements.
BLOCK_ELEMENTS = 1 << 18
ACCELERATOR_FACTOR = 16


class FewModelsError(ValueError):
    """An attack needs more models of the pool than there are; the message names a variant that works."""


class FewModelsWarning(UserWarning):
    """Per-example variances come from so few shadow models that the fixed-variance attack is the better one."""


class FlooredVarianceWarning(UserWarning):
    """Some variances were too small to divide by and were raised to a floor."""


class SignalArray(Protocol):
    """Anything that slices to numbers along its example axis: a NumPy array, a lazy `Run.phi`, a Zarr array.

    Slices are of some hundred examples in ascending order: what decompresses large chunks should keep the last one, as
    `Run.phi` does.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, index: tuple[slice, slice], /) -> object: ...


def check_pool(
    phi: SignalArray,
    keep: np.ndarray,
    target: SignalArray | None,
    leave: str,
    name: str = "phi",
    last: str = "queries",
) -> tuple[int, int, int]:
    """Check the shapes of an attack's arguments and that `leave` fits the pool; return (M, N, Q).

    `name` and `last` are what the signal and its last axis are called where an attack takes another than phi.
    """
    if len(phi.shape) != 3:
        raise ValueError(f"{name} must be [models, examples, {last}]; got shape {tuple(phi.shape)}")
    M, N, Q = phi.shape
    if keep.dtype != bool or keep.shape != (M, N):
        raise ValueError(
            f"keep must be bool of shape {(M, N)} like {name}; got {keep.dtype} of shape {keep.shape}"
        )
    if N == 0 or Q == 0:
        raise ValueError(f"{name} holds no examples or no {last}: its shape is {tuple(phi.shape)}")
    if target is not None and (len(target.shape) != 3 or tuple(target.shape[1:]) != (N, Q)):
        raise ValueError(f"target must be [targets, {N}, {Q}] like {name}; got shape {tuple(target.shape)}")
    if leave not in ("pair", "one"):
        raise ValueError(f'leave must be "pair" or "one"; got {leave!r}')
    if target is None and leave == "pair" and not is_paired(keep):
        raise ValueError(
            'leave="pair" needs rows in complementary pairs, keep[2p + 1] = ~keep[2p]; '
            'for a pool of another design pass leave="one"'
        )
    return M, N, Q


def check_population(
    population: SignalArray | None,
    target_population: SignalArray | None,
    shape: tuple[int, int, int],
    target: SignalArray | None,
) -> None:
    """Check what an attack is told of its population; without one, the pool must hold other examples than x."""
    M, N, Q = shape
    if target is None and target_population is not None:
        raise ValueError("target_population is for outside targets: pass target too, or only population")
    expected = {"population": (population, M, "models")}
    if target is not None:
        expected["target_population"] = (target_population, target.shape[0], "targets")
    for name, (array, rows, what) in expected.items():
        if array is None:
            continue
        size = tuple(array.shape)
        if len(size) != 3 or size[0] != rows or size[2] != Q or size[1] == 0:
            raise ValueError(f"{name} must be [{rows} {what}, points, {Q} queries]; got shape {size}")
    if population is None and target_population is None and N == 1:
        raise ValueError(
            "the population is the pool less x itself, and the pool has one example: pass population"
        )


def blocks(M: int, N: int, Q: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Cut N examples into equal blocks, so that one compilation serves all of them.

    Yields:
        The block's slice, and a bool array that is false for the examples that an earlier block already held: the
        last block is moved left to have the size of the others.
    """
    factor = 1 if jax.default_backend() == "cpu" else ACCELERATOR_FACTOR
    size = factor * BLOCK_ELEMENTS // max(M * Q, 1)
    size = min(N, 1 << max(4, min(13, size.bit_length() - 1)))
    for start in range(0, N, size):
        begin = min(start, N - size)
        yield slice(begin, begin + size), np.arange(begin, begin + size) >= start


def read_block(signal: SignalArray, examples: slice, name: str) -> np.ndarray:
    """Read `signal[:, examples]`; raise ValueError at the first value that is not finite."""
    block = np.asarray(signal[:, examples])
    finite = np.isfinite(block)
    if not finite.all():
        model, example, query = np.argwhere(~finite)[0]
        raise ValueError(
            f"{name}[{model}, {examples.start + example}, {query}] is {block[model, example, query]}: "
            f"leave that model and its mate out of the pool"
        )
    return block


# --- Which models stand on which side once a target's own are left out ----------------------------------------------


class Group(NamedTuple):
    """Targets that share their cuts."""

    rows: np.ndarray  # int [T'], which targets
    # How many IN and OUT models an example keeps; None: all that are left.
    cuts: tuple[int | None, int | None]


class Side(NamedTuple):
    """One side (IN or OUT) of a block: its members in the whole pool, and what each target removes from them."""

    mask: np.ndarray | jax.Array  # bool [M, n]
    removed: np.ndarray | jax.Array  # float [T, n, Q], the one value taken out for a target
    removes: np.ndarray | jax.Array  # bool [T, n], whether one is taken out at all


class Block(NamedTuple):
    """One block of examples as an attack sees it."""

    attacked: np.ndarray | jax.Array  # float [T, n, Q]
    values: np.ndarray | jax.Array  # float [M, n, Q]
    inside: Side
    outside: Side


def group_targets(
    keep: np.ndarray, target: SignalArray | None, leave: str, *, cut: bool = False
) -> tuple[list[Group], np.ndarray]:
    """Group targets by what is left of the pool against them.

    Leaving one target out of an exactly balanced design would leak its membership through the counts, so each side
    is cut to its smallest count over all examples, once the target is left out. Whether that lowers the smallest
    count depends on the target, hence up to four groups. `cut=True` cuts pools of other designs, too; complementary
    pairs have equal counts by themselves.

    Returns:
        The groups, and the fewest IN and OUT models that an example has left against any target, int `[2]`.
    """
    M = len(keep)
    counts = np.stack([keep.sum(axis=0), M - keep.sum(axis=0)])  # [2, N]
    least = counts.min(axis=1)
    if target is not None:
        return [Group(np.arange(target.shape[0]), tuple(least) if cut else (None, None))], least
    every = np.arange(M)
    if leave == "pair":
        return [Group(every, (None, None))], least - 1
    # [M, 2]: does leaving model t out take one from an example that has the fewest?
    lowers = np.stack(
        [keep[:, counts[0] == least[0]].any(axis=1), (~keep[:, counts[1] == least[1]]).any(axis=1)], 1
    )
    fewest = (least - lowers).min(axis=0)
    balanced = (counts == counts[:, :1]).all()
    if not (cut or balanced):
        return [Group(every, (None, None))], fewest
    kinds = np.unique(lowers, axis=0)
    return [
        Group(np.flatnonzero((lowers == kind).all(axis=1)), tuple(least - kind)) for kind in kinds
    ], fewest


def read_sides(
    phi: SignalArray,
    keep: np.ndarray,
    target: SignalArray | None,
    leave: str,
    group: Group,
    examples: slice,
    transform: Callable[[np.ndarray], np.ndarray] = lambda phi: phi,
    names: tuple[str, str] = ("phi", "target"),
) -> Block:
    """Read one block of examples, every value `transform`ed, and part the pool into its IN and OUT sides.

    Errors call the arrays by their `names`. To be called with float64 enabled.
    """
    values, inside = transform(read_block(phi, examples, names[0])), keep[:, examples]
    if target is not None:
        return _outside_targets(transform(read_block(target, examples, names[1])), values, inside, group.cuts)
    if leave == "pair":
        return _without_pairs(values, inside)
    return _without_one(values, inside, group.rows, group.cuts)


# Parted on the device: what a target removes takes as much memory as phi, for each side.


@jax.jit
def _outside_targets(attacked, values, inside, cuts) -> Block:
    """No target removes anything."""
    nothing = jnp.zeros((1, *values.shape[1:]), values.dtype), jnp.zeros((1, values.shape[1]), bool)
    masks = [
        mask if cut is None else mask & (jnp.cumsum(mask, axis=0) <= cut)
        for mask, cut in zip((inside, ~inside), cuts, strict=True)
    ]
    return Block(attacked, values, *(Side(mask, *nothing) for mask in masks))


@jax.jit
def _without_pairs(values, inside) -> Block:
    """Each pair has one model on each side: `removed` is the value of that one, for target and mate alike."""
    mates = values.reshape(-1, 2, *values.shape[1:])[:, ::-1].reshape(values.shape)
    always = jnp.ones(inside.shape, bool)
    sides = (Side(mask, jnp.where(mask[..., None], values, mates), always) for mask in (inside, ~inside))
    return Block(values, values, *sides)


@jax.jit
def _without_one(values, inside, rows, cuts) -> Block:
    sides = (
        Side(mask, values[rows], mask[rows]) if cut is None else _cut_one(values, mask, rows, cut)
        for mask, cut in zip((inside, ~inside), cuts, strict=True)
    )
    return Block(values[rows], values, *sides)


def _cut_one(values, mask, rows, cut) -> Side:
    """Leave one target out of a side and keep the first `cut` of the rest, in model order.

    These are the first cut + 1 less one: the target where it is among them, else the last of them.
    """
    rank = jnp.cumsum(mask, axis=0)
    mask = mask & (rank <= cut + 1)
    last = mask & (rank == cut + 1)
    own = mask[rows]
    last_value = jnp.where(last[..., None], values, 0).sum(axis=0)
    removed = jnp.where(own[..., None], values[rows], last_value)
    return Side(mask, removed, own | last.any(axis=0))


def sided_blocks(
    phi: SignalArray,
    keep: np.ndarray,
    target: SignalArray | None,
    leave: str,
    groups: list[Group],
    transform: Callable[[np.ndarray], np.ndarray],
    names: tuple[str, str] = ("phi", "target"),
) -> Iterator[tuple[np.ndarray, slice, np.ndarray, Block]]:
    """Walk over all examples for each group of targets: which targets, which examples, which are fresh, their block."""
    M, N, Q = phi.shape
    for group in groups:
        for examples, fresh in blocks(M, N, Q):
            block = read_sides(phi, keep, target, leave, group, examples, transform, names)
            yield group.rows, examples, fresh, block


def need_models(name: str, fewest: np.ndarray, **remedies: str) -> None:
    """Raise FewModelsError where an example is left without a model on a side.

    `remedies` names what works instead, for each side needed.
    """
    for side, remedy in remedies.items():
        if fewest[("IN", "OUT").index(side)] < 1:
            raise FewModelsError(
                f"{name} needs 1 {side} model for every example once the target's are left out, and an example has "
                f"0: use {remedy}, or more models"
            )
