"""What the attacks share: checking a pool, on what device it is scored, and reading it in blocks."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from lira.membership import is_paired, pair_rows
from lira.metrics._shared import require_bool
from lira.numbers import as_array, native_floats, require_unmasked
from lira.parallel import side_by_side
from lira.signals import Array, SignalArray

__all__ = [
    "FEW_MODELS",
    "MANY_MODELS",
    "Array",
    "FewModelsWarning",
    "FlooredVarianceWarning",
    "SignalArray",
    "ThinPoolError",
    "UnfitPoolError",
    "advice_on_few",
    "blocks",
    "check_pool",
    "check_population",
    "device_for",
    "each_block",
    "host",
    "read_block",
    "read_where_it_is",
    "require_arrays",
    "require_numbers",
    "scoring",
]

# Elements of [M, n, Q] that one compiled step works on. What it makes of them in float64, 2 MiB an array, stays in a
# CPU's cache: three times as fast as 32 MiB. Accelerators have fewer and longer steps, of so many times the elements.
BLOCK_ELEMENTS = 1 << 18
ACCELERATOR_FACTOR = 16
# Arrays of fewer elements are scored on the CPU although there is an accelerator. LiRA online takes 26 ns an element on
# two CPU cores and 4 on an H100 that the array is copied to: with 16 cores the two dozen attacks together win less than
# 0.1 us an element there, and compiling their thirty programs for it takes a minute.
ACCELERATOR_ELEMENTS = 1 << 28

# What is left out of a pool with a target of its own: its pair; itself alone, and others at random until all examples
# have equal counts; or itself alone, because memberships are independent coins.
Leave = Literal["pair", "one", "independent"]


class UnfitPoolError(ValueError):
    """An attack cannot run on this pool, for want of models, examples or what it reads; the message names what can."""


class ThinPoolError(UnfitPoolError):
    """Some examples have fewer than `needed` models of a `side`, "IN" or "OUT", or by the design may well have."""

    def __init__(self, message: str, side: str, needed: int):
        super().__init__(message)
        self.side, self.needed = side, needed


# From so many models of a pool on a variance for each example is better than one for all (Carlini et al. 2022, VI-C).
MANY_MODELS = 64
# Models on a side below which it is far worse, and said to be.
FEW_MODELS = 8


def advice_on_few(fewest: int) -> str:
    """What is wrong with a variance for each example of `fewest` models, for people: the same words everywhere."""
    return (
        f"a variance for each example is of {fewest} models a side: below {MANY_MODELS} models in the pool one variance for "
        f"all examples (the _fixed attacks) is better, and more models find more"
    )


class FewModelsWarning(UserWarning):
    """Per-example variances come from so few shadow models that the fixed-variance attack is the better one."""


class FlooredVarianceWarning(UserWarning):
    """Some variances were too small to divide by and were raised to a floor."""


def check_pool(
    phi: SignalArray,
    keep: np.ndarray,
    target: SignalArray | None,
    leave: Leave,
    name: str = "phi",
    last: str = "queries",
) -> tuple[int, int, int]:
    """Check the shapes of an attack's arguments and that `leave` fits the pool; return (M, N, Q).

    `name` and `last` are what the signal and its last axis are called where an attack takes another than phi.
    """
    require_unmasked({"keep": keep})
    keep = as_array(keep)
    require_arrays({name: phi, "target": target})
    if len(phi.shape) != 3:
        one = f": of one query {name}[:, :, None]" if len(phi.shape) == 2 and last == "queries" else ""
        raise ValueError(f"{name} must be [models, examples, {last}]; got shape {tuple(phi.shape)}{one}")
    M, N, Q = phi.shape
    require_bool(keep, (M, N), name)
    if N == 0 or Q == 0:
        raise ValueError(f"{name} holds no examples or no {last}: its shape is {tuple(phi.shape)}")
    if target is not None and (len(target.shape) != 3 or tuple(target.shape[1:]) != (N, Q)):
        raise ValueError(f"target must be [targets, {N}, {Q}] like {name}; got shape {tuple(target.shape)}")
    if leave not in get_args(Leave):
        raise ValueError(f'leave must be "pair", "one" or "independent"; got {leave!r}')
    if target is None:
        _check_design(keep, leave)
    return M, N, Q


def require_arrays(arguments: Mapping[str, object]) -> None:
    """Raise ValueError where one is a list or the like, whose shape nobody knows before it is read, or is masked."""
    require_unmasked(arguments)
    for name, array in arguments.items():
        if array is not None and not hasattr(array, "shape"):
            raise ValueError(
                f"{name} must be an array; got {type(array).__name__}: np.asarray({name}) makes one"
            )


def _check_design(keep: np.ndarray, leave: Leave) -> None:
    """Raise ValueError where a target's mate would stay in the pool, or there are no pairs to leave out."""
    if leave == "pair" and not is_paired(keep):
        raise ValueError(
            'leave="pair" needs rows in complementary pairs, keep[2p + 1] = ~keep[2p]; '
            'for a pool of another design pass leave="one"'
        )
    telling = keep[keep.any(axis=1) & ~keep.all(axis=1)]
    if leave != "pair" and len(telling) and len(pair_rows(telling)) == len(telling):
        raise ValueError(
            f"leave={leave!r} leaves a target's mate in the pool, and it gives the target's memberships away: rows are "
            f'complementary pairs; order those of keep and phi by lira.membership.pair_rows(keep), and pass leave="pair"'
        )


def check_population(
    population: SignalArray | None,
    target_population: SignalArray | None,
    shape: tuple[int, int, int],
    target: SignalArray | None,
) -> None:
    """Check what an attack is told of its population; without one, the pool must hold other examples than x."""
    M, N, Q = shape
    require_arrays({"population": population, "target_population": target_population})
    if target is None and target_population is not None:
        raise ValueError("target_population is for outside targets: pass target too, or only population")
    expected = {"population": (population, M, "models")}
    if target is not None:
        expected["target_population"] = (target_population, target.shape[0], "targets")
    for name, (array, rows, what) in expected.items():
        if array is None:
            continue
        size = tuple(array.shape)
        if len(size) != 3 or size[0] != rows or size[2] != Q:
            raise ValueError(f"{name} must be [{rows} {what}, points, {Q} queries]; got shape {size}")
        if not size[1]:
            raise UnfitPoolError(
                f"{name} must be [{rows} {what}, points, {Q} queries] with at least one point; got shape {size}: leave it "
                f"out, or use global_threshold, which needs none"
            )
    if population is None and target_population is None and N == 1:
        raise UnfitPoolError(
            "the population is the pool less x itself, and the pool has one example: pass population, or use "
            "global_threshold, which needs none"
        )


def require_numbers(scores: np.ndarray) -> np.ndarray:
    """The scores; ValueError where one is NaN, which would be taken for that of an example that is left out."""
    if np.isnan(scores.min(initial=0)):  # NaN where any is, in a fifth of the time
        raise ValueError("a score is NaN although phi is finite: phi is too large for float64 arithmetic")
    return scores


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
    return host()


def host() -> Any:
    """The CPU, or where JAX_PLATFORMS names accelerators alone the first of those."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


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


def each_block(work: Callable[[slice], None], M: int, N: int, Q: int) -> None:
    """Call `work` with every block of examples, on all cores: for what NumPy computes, which takes one."""
    side_by_side(lambda part: work(part[0]), list(blocks(M, N, Q)))


def read_block(signal: SignalArray, examples: slice, name: str) -> np.ndarray:
    """Read `signal[:, examples]` as `native_floats`; raise ValueError at the first value that is not finite."""
    block = native_floats(signal[:, examples])
    if not np.isfinite(block).all():
        raise _not_finite(block, examples, name)
    return block


def read_where_it_is(signal: SignalArray, examples: slice, name: str) -> Array:
    """`read_block`, but a block of a JAX array stays on its device: one truth value comes back."""
    if not isinstance(signal, jax.Array):
        return read_block(signal, examples, name)
    block, finite = _cut(signal, examples.start, size=examples.stop - examples.start)
    if not finite:
        raise _not_finite(np.asarray(block), examples, name)
    return block


@partial(jax.jit, static_argnames="size")
def _cut(signal: jax.Array, start: int, *, size: int) -> tuple[jax.Array, jax.Array]:
    """`signal[:, start : start + size]` in the dtype of `native_floats`, and whether all of it is finite."""
    block = jax.lax.dynamic_slice_in_dim(signal, start, size, axis=1)
    block = block.astype(jnp.float32 if np.can_cast(block.dtype, np.float32) else jnp.float64)
    return block, jnp.isfinite(block).all()


def _not_finite(block: np.ndarray, examples: slice, name: str) -> ValueError:
    model, example, query = np.argwhere(~np.isfinite(block))[0]
    return ValueError(
        f"{name}[{model}, {examples.start + example}, {query}] is {block[model, example, query]}: "
        f"leave that model and its mate out of the pool"
    )
