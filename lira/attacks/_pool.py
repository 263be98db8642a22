"""What the attacks share: checking a pool, which models are used against whom, on what device, and reading in blocks."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol

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
    "device_for",
    "group_targets",
    "need_models",
    "read_block",
    "read_sides",
    "scoring",
    "sided_blocks",
    "store",
]

# Elements of [M, n, Q] that one compiled step works on. What it makes of them in float64, 2 MiB an array, stays in a
# CPU's cache: three times as fast as 32 MiB. Accelerators have fewer and longer steps, of so many times the elements.
BLOCK_ELEMENTS = 1 << 18
ACCELERATOR_FACTOR = 16
# Arrays of fewer elements are scored on the CPU although there is an accelerator. LiRA online takes 26 ns an element on
# two CPU cores and 4 on an H100 that the array is copied to: with 16 cores the two dozen attacks together win less than
# 0.1 us an element there, and compiling their thirty programs for it takes a minute.
ACCELERATOR_ELEMENTS = 1 << 28


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


# --- On what device -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def scoring(*signals: SignalArray | None) -> Iterator[None]:
    """What is compiled within is float64 and runs on the device that suits these arrays, see `device_for`."""
    with jax.enable_x64(True), jax.default_device(device_for(*signals)):
        yield


def device_for(*signals: SignalArray | None) -> Any:
    """Where arrays are scored: where they are, else where the user said, else by their size.

    Small ones are scored on the CPU, whatever else there is: see ACCELERATOR_ELEMENTS.
    """
    given = [signal for signal in signals if signal is not None]
    for signal in given:
        if isinstance(signal, jax.Array):
            return min(signal.devices(), key=lambda device: device.id)
    chosen = getattr(jax.config, "jax_default_device", None)
    if chosen is not None:
        return jax.local_devices(backend=chosen)[0] if isinstance(chosen, str) else chosen
    default = jax.local_devices()[0]
    if default.platform == "cpu" or sum(math.prod(s.shape) for s in given) >= ACCELERATOR_ELEMENTS:
        return default
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names accelerators alone
        return default


def _on_accelerator() -> bool:
    """Whether what is compiled here and now runs on an accelerator; outside of `scoring` nothing is."""
    device = getattr(jax.config, "jax_default_device", None)
    return device is not None and getattr(device, "platform", device) != "cpu"


# --- Blocks of examples ---------------------------------------------------------------------------------------------


def blocks(M: int, N: int, Q: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Cut N examples into equal blocks, so that one compilation serves all of them; larger ones on accelerators.

    Yields:
        The block's slice, and a bool array that is false for the examples that an earlier block already held: the
        last block is moved left to have the size of the others.
    """
    factor = ACCELERATOR_FACTOR if _on_accelerator() else 1
    size = factor * BLOCK_ELEMENTS // max(M * Q, 1)
    size = min(N, 1 << max(4, min(13, size.bit_length() - 1)))
    for start in range(0, N, size):
        begin = min(start, N - size)
        yield slice(begin, begin + size), np.arange(begin, begin + size) >= start


def read_block(signal: SignalArray, examples: slice, name: str) -> np.ndarray:
    """Read `signal[:, examples]`; raise ValueError at the first value that is not finite."""
    block = np.asarray(signal[:, examples])
    if not np.isfinite(block).all():
        raise _not_finite(block, examples, name)
    return block


def _read_where_it_is(signal: SignalArray, examples: slice, name: str) -> np.ndarray | jax.Array:
    """`read_block`, but a block of a JAX array stays on its device: one truth value comes back."""
    if not isinstance(signal, jax.Array):
        return read_block(signal, examples, name)
    block, finite = _cut(signal, examples.start, size=examples.stop - examples.start)
    if not finite:
        raise _not_finite(np.asarray(block), examples, name)
    return block


@partial(jax.jit, static_argnames="size")
def _cut(signal, start, *, size):
    block = jax.lax.dynamic_slice_in_dim(signal, start, size, axis=1)
    return block, jnp.isfinite(block).all()


def _not_finite(block: np.ndarray, examples: slice, name: str) -> ValueError:
    model, example, query = np.argwhere(~np.isfinite(block))[0]
    return ValueError(
        f"{name}[{model}, {examples.start + example}, {query}] is {block[model, example, query]}: "
        f"leave that model and its mate out of the pool"
    )


def store(scores: np.ndarray, computed: Iterable[tuple[Any, slice, jax.Array]]) -> None:
    """Write `scores[rows, examples]` block by block, one behind: a device computes the next while the host writes."""
    waiting = None
    for rows, examples, values in computed:
        if waiting is not None:
            scores[waiting[0], waiting[1]] = waiting[2]
        waiting = rows, examples, values
    if waiting is not None:
        scores[waiting[0], waiting[1]] = waiting[2]


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
    transform: Callable[[Any], np.ndarray | jax.Array] = lambda phi: phi,
    names: tuple[str, str] = ("phi", "target"),
) -> Block:
    """Read one block of examples, every value `transform`ed, and part the pool into its IN and OUT sides.

    Errors call the arrays by their `names`. To be called within `scoring`. JAX arrays do not leave their device, unless
    `transform` takes them to the host.
    """
    values, inside = transform(_read_where_it_is(phi, examples, names[0])), keep[:, examples]
    if target is not None:
        attacked = transform(_read_where_it_is(target, examples, names[1]))
        return _outside_targets(attacked, values, inside, group.cuts)
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
    transform: Callable[[Any], np.ndarray | jax.Array],
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
