"""The nearest others of every row of a matrix, exactly, by products of tiles.

Distances are symmetric: each tile of them serves its rows and its columns, which halves the work. Tiles are of float32, and
what its rounding cannot tell apart is decided in float64.
"""

from threading import Lock

import jax
import jax.numpy as jnp
import numpy as np

from lira.attacks._pool import Array, host
from lira.parallel import side_by_side

__all__ = ["nearest_others"]

# Rows of a tile, a power of two: 4 MiB of distances, which a CPU's cache holds.
TILE = 1024
# Neighbours held beyond those that are asked for: among them are the true ones, whatever float32 rounds.
SPARE = 14
# An infinite distance, of nobody.
FARTHEST = np.uint64(0x7F800000) << np.uint64(32)
OTHERS = np.uint64(0xFFFFFFFF)


def nearest_others(rows: np.ndarray, number: int) -> np.ndarray:
    """The `number` nearest other rows of each row, by Euclidean distance.

    Args:
        rows: float32 `[N, F]`, N above `number`.
        number: of neighbours.

    Returns:
        int `[N, number]`, in no order. Of more than 14 others that float32 cannot tell from the last, any may stand.
    """
    N, F = rows.shape
    padded = np.zeros((-(-N // TILE) * TILE, F), np.float32)  # one program for all tiles
    padded[:N] = rows
    half = np.full((len(padded), 1), np.inf, np.float32)  # what pads is far from everything
    half[:N, 0] = 0.5 * np.einsum("nf,nf->n", rows, rows, dtype=np.float64)
    one = np.ones_like(half)
    # Half of each squared distance is one product: |x|^2 / 2 - x y + |y|^2 / 2.
    left, right = np.hstack([padded, half, one]), np.hstack([-padded, one, half])
    lists = [_Lists(start, min(number + SPARE, N - 1)) for start in range(0, N, TILE)]

    def compare(tile: tuple[int, int]) -> None:
        these, those = (lists[at] for at in tile)
        distances = np.asarray(_product(left[these.span], right[those.span]))
        if these is those:
            distances = np.where(np.eye(TILE, dtype=bool), np.float32(np.inf), distances)
            these.begin(distances)
        at, other = _below(distances, these.limit[:, None])
        these.offer(at, other + those.span.start, distances[at, other])
        if these is not those:
            other, at = _below(distances, those.limit)
            those.offer(at, other + these.span.start, distances[other, at])

    # A block's own tile first: it tells how near is near enough. Then every block in turn, so that none waits for another.
    blocks = len(lists)
    side_by_side(compare, [(at, at) for at in range(blocks)])
    side_by_side(compare, [(at, at + away) for away in range(1, blocks) for at in range(blocks - away)])
    nearest = np.empty((N, number), np.int64)

    def choose(block: _Lists) -> None:
        here = slice(block.span.start, min(block.span.stop, N))
        distances, others = (each[: here.stop - here.start] for each in block.merged())
        nearest[here] = _chosen(rows, half[:, 0], here, distances, others, number)

    side_by_side(choose, lists)
    return nearest


def _product(left: np.ndarray, right: np.ndarray) -> jax.Array:
    """`left @ right.T` on the CPU. By XLA, whose threads take turns with ours; those of a BLAS would wait for each other."""
    with jax.default_device(host()):
        return _times_transposed(left, right)


@jax.jit
def _times_transposed(left: Array, right: Array) -> jax.Array:
    return jnp.matmul(left, jnp.asarray(right).T, precision="highest")


def _below(distances: np.ndarray, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of what is below its limit; of a flat array that is fifteen times as fast as of a matrix."""
    return np.divmod(np.flatnonzero(distances < limit), distances.shape[1])


class _Lists:
    """The nearest that a block of rows has met so far, and what waits to be sorted in among them.

    Each is one number, a distance's bits before those of whose it is: of floats that are not negative the bits are ordered
    as they are.
    """

    def __init__(self, start: int, held: int) -> None:
        self.span, self.held = slice(start, start + TILE), held
        self.near = np.full((TILE, held), FARTHEST, np.uint64)
        self.limit = np.full(TILE, np.inf, np.float32)  # what is not below it is not among the nearest
        self.waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self.lock = Lock()

    def begin(self, distances: np.ndarray) -> None:
        """Set the limits for the first tile, `[TILE, TILE]`, so that no more of it than need be waits."""
        last = min(self.held, TILE) - 1
        self.limit = np.nextafter(np.partition(distances, last, axis=1)[:, last], np.float32(np.inf))

    def offer(self, at: np.ndarray, others: np.ndarray, distances: np.ndarray) -> None:
        """Take `others`, at some distances of the rows `at` of the block."""
        bits = np.maximum(distances, 0).view(np.uint32).astype(np.uint64)
        found = at.astype(np.uint16), bits << 32 | others.astype(np.uint64)
        with self.lock:
            self.waiting.append(found)
            if sum(len(each) for each, _ in self.waiting) >= self.held * TILE:
                self.merge()

    def merge(self) -> None:
        """Sort in what waits."""
        at, found = (np.concatenate(each) for each in zip(*self.waiting, strict=True))
        self.waiting = []
        order = np.argsort(at, kind="stable")
        counts = np.bincount(at, minlength=TILE)
        place = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)
        near = np.full((TILE, self.held + counts.max(initial=0)), FARTHEST, np.uint64)
        near[:, : self.held] = self.near
        near[at[order], self.held + place] = found[order]
        near.partition(self.held - 1, axis=1)
        self.near = near[:, : self.held].copy()
        self.limit = _distances(self.near.max(axis=1))

    def merged(self) -> tuple[np.ndarray, np.ndarray]:
        """Half squared distances and numbers of the nearest, `[TILE, held]`, nearest first."""
        if self.waiting:
            self.merge()
        near = np.sort(self.near, axis=1)
        return _distances(near), (near & OTHERS).astype(np.int64)


def _distances(near: np.ndarray) -> np.ndarray:
    """The distances of what `_Lists` holds."""
    return (near >> 32).astype(np.uint32).view(np.float32)


def _chosen(
    rows: np.ndarray, half: np.ndarray, here: slice, distances: np.ndarray, others: np.ndarray, number: int
) -> np.ndarray:
    """The nearest of the rows `here` among those held, `[n, number]`: in float64 where float32 may be wrong."""
    chosen = others[:, :number].copy()
    if others.shape[1] == number:
        return chosen
    # A product of F terms of float32, in any order of summation, is off by F + 2 roundings of what is summed at most.
    sizes = 2 * (half[here] + half[others].max(axis=1))
    unsure = distances[:, number] - distances[:, number - 1] <= 2 * (rows.shape[1] + 2) * 2.0**-24 * sizes
    for at in np.flatnonzero(unsure):
        away = rows[others[at]].astype(np.float64) - rows[here.start + at]
        order = np.argsort(np.einsum("nf,nf->n", away, away), kind="stable")
        chosen[at] = others[at, order[:number]]
    return chosen
