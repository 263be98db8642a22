"""What the attacks share: checking a pool of shadow models, and walking over it in blocks of examples."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from lira.membership import is_paired

__all__ = [
    "FewModelsError",
    "FewModelsWarning",
    "FlooredVarianceWarning",
    "SignalArray",
    "blocks",
    "check_pool",
    "read_block",
]

# Elements of [M, n, Q] that one compiled step works on: 32 MiB in float64.
BLOCK_ELEMENTS = 1 << 22


class FewModelsError(ValueError):
    """An attack needs more models of the pool than there are; the message names a variant that works."""


class FewModelsWarning(UserWarning):
    """Per-example variances come from so few shadow models that the fixed-variance attack is the better one."""


class FlooredVarianceWarning(UserWarning):
    """Some variances were too small to divide by and were raised to a floor."""


class SignalArray(Protocol):
    """Anything that slices to numbers along its example axis: a NumPy array, a lazy `Run.phi`, a Zarr array."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, index: tuple[slice, slice], /) -> object: ...


def check_pool(
    phi: SignalArray, keep: np.ndarray, target: SignalArray | None, leave: str
) -> tuple[int, int, int]:
    """Check the shapes of an attack's arguments and that `leave` fits the pool; return (M, N, Q)."""
    if len(phi.shape) != 3:
        raise ValueError(f"phi must be [models, examples, queries]; got shape {tuple(phi.shape)}")
    M, N, Q = phi.shape
    if keep.dtype != bool or keep.shape != (M, N):
        raise ValueError(
            f"keep must be bool of shape {(M, N)} like phi; got {keep.dtype} of shape {keep.shape}"
        )
    if N == 0 or Q == 0:
        raise ValueError(f"phi holds no examples or no queries: its shape is {tuple(phi.shape)}")
    if target is not None and (len(target.shape) != 3 or tuple(target.shape[1:]) != (N, Q)):
        raise ValueError(f"target must be [targets, {N}, {Q}] like phi; got shape {tuple(target.shape)}")
    if leave not in ("pair", "one"):
        raise ValueError(f'leave must be "pair" or "one"; got {leave!r}')
    if target is None and leave == "pair" and not is_paired(keep):
        raise ValueError(
            'leave="pair" needs rows in complementary pairs, keep[2p + 1] = ~keep[2p]; '
            'for a pool of another design pass leave="one"'
        )
    return M, N, Q


def blocks(M: int, N: int, Q: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Cut N examples into equal blocks, so that one compilation serves all of them.

    Yields:
        The block's slice, and a bool array that is false for the examples that an earlier block already held: the
        last block is moved left to have the size of the others.
    """
    size = BLOCK_ELEMENTS // max(M * Q, 1)
    size = min(N, 1 << max(6, min(13, size.bit_length() - 1)))
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
