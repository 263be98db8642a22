"""The one kernel of every curve: members and non-members at and above each threshold, and what is read off the counts.

Thresholds descend. A point of a curve is how many non-members (false positives) and members (true positives) reach a
threshold; the first point is (0, 0), the last lets everything through.
"""

import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

__all__ = [
    "allowed_false_positives",
    "area",
    "count_points",
    "count_type",
    "descending",
    "largest_gap",
    "last_within",
    "last_within_each",
    "ratio",
    "tie_ends",
]

# Points that are worked on at a time: of a large pool's curve each array more is half a gigabyte.
BLOCK = 1 << 20
# So many points of every curve are found sooner in all curves at once.
FEW_POINTS = 16


def count_points(scores: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positives at each distinct score, int64 `[K]` each, of float scores and bool `member` of one shape.

    >>> count_points(np.array([0.9, 0.3, 0.3]), np.array([True, False, True]))
    (array([0, 0, 1]), array([0, 1, 2]))
    """
    ordered, held = descending(scores, member.astype(np.uint32))
    ends = tie_ends(ordered)
    true = np.append(0, np.cumsum(held, dtype=np.int64))[ends]
    return ends - true, true


def count_type(most: int) -> type[np.signedinteger]:
    """Of counts of up to `most`: int32 where that holds them, half the memory."""
    return np.int32 if most < 1 << 31 else np.int64


def area(false: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Area under curves of counts or rates `[..., K]`, `[...]`; a tie counts one half. NaN without either side.

    Of counts twice the area, in units of one member times one non-member, is a whole number, and exact.
    """
    twice = 0
    for part in _blocks(false.shape[-1], overlap=1):
        x, y = _wide(false[..., part]), _wide(true[..., part])
        twice = twice + np.vecdot(np.diff(x), y[..., 1:] + y[..., :-1])
    return ratio(twice, 2 * _wide(true[..., -1]) * false[..., -1])


def largest_gap(false: np.ndarray, true: np.ndarray) -> int:
    """Index of the first point of a curve, counts `[K]`, at which TPR - FPR is largest, which whole numbers tell apart."""
    members, others = int(true[-1]), int(false[-1])
    best, largest = 0, -1
    for part in _blocks(len(false)):
        gaps = _wide(true[part]) * others - _wide(false[part]) * members
        at = int(np.argmax(gaps))
        if gaps[at] > largest:
            best, largest = part.start + at, int(gaps[at])
    return best


def _blocks(count: int, overlap: int = 0) -> Iterator[slice]:
    """Slices of up to BLOCK points that follow one another, each with so many of the next."""
    return (slice(at, at + BLOCK + overlap) for at in range(0, max(count - overlap, 1), BLOCK))


def _wide(values: np.ndarray) -> np.ndarray:
    """Counts of a type whose products do not overflow; rates as they are."""
    return values.astype(np.int64) if values.dtype.kind == "i" else values


def last_within(false: np.ndarray, allowed: ArrayLike) -> np.ndarray:
    """Index of the last point with at most so many false positives (or such a rate), int `[...]` like `allowed`."""
    if false.dtype.kind == "i":  # of one type: NumPy would convert all points of the curve
        allowed = np.minimum(np.floor(allowed), np.iinfo(false.dtype).max).astype(false.dtype)
    return np.searchsorted(false, allowed, side="right") - 1


def last_within_each(rates: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """`last_within` for each of many curves: of float rates `[B, K]` at `allowed [F]`, int `[B, F]`.

    A few points are looked for in all curves at once, by halves; many in one curve after the other, which stay in a cache.
    """
    B, K = rates.shape
    if len(allowed) > FEW_POINTS:
        return np.stack([last_within(each, allowed) for each in rates])
    first, flat = K * np.arange(B)[:, None], rates.ravel()
    within = np.zeros((B, len(allowed)), np.int64)  # points that are known to be
    for step in (1 << shift for shift in reversed(range(K.bit_length()))):
        further = within + step
        reached = flat[first + np.minimum(further, K) - 1] <= allowed
        within = np.where((further <= K) & reached, further, within)
    return within - 1


def allowed_false_positives(fpr: ArrayLike, nonmembers: ArrayLike) -> np.ndarray:
    """floor(fpr * n), where 0.07 * 100 counts as 7 although it is 7.000000000000001 or 6.999999999999999."""
    return np.floor(np.multiply(fpr, nonmembers) * (1 + 1e-12)).astype(np.int64)


def ratio(count: ArrayLike, total: ArrayLike) -> np.ndarray:
    """Count / total, NaN where total is 0."""
    total = np.asarray(total, np.float64)
    return np.divide(count, np.where(total == 0, np.nan, total))


def descending(scores: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All scores from the highest to the lowest, and what stands beside each in `cells`, uint32 like scores."""
    if scores.dtype != np.float32:
        order = np.argsort(scores, axis=None)[::-1]
        return scores.ravel()[order], cells.ravel()[order]
    # Sorted as whole numbers, the score above its cell: several times as fast as an argsort and what it would gather.
    keys = np.empty(scores.size, np.uint64)
    halves = keys.view(np.uint32).reshape(-1, 2)
    low, high = (0, 1) if sys.byteorder == "little" else (1, 0)
    halves[:, low] = cells.ravel()
    # Adding 0 makes -0 the 0 that it ties with.
    halves[:, high] = _flip((scores.ravel() + np.float32(0)).view(np.uint32))
    keys.sort()
    return _flip(halves[:, high]).view(np.float32), halves[:, low].copy()


def _flip(bits: np.ndarray) -> np.ndarray:
    """Float32 bits as whole numbers in descending order of the float, and back: all but the sign of a positive one."""
    flips = bits >> np.uint32(31)
    flips -= np.uint32(1)
    flips &= np.uint32(0x7FFFFFFF)
    flips ^= bits
    return flips


def tie_ends(ordered: np.ndarray) -> np.ndarray:
    """How many of sorted scores reach each distinct one, the last of its ties included, int `[K]`, from 0 on."""
    last = np.empty(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=last[:-1])
    last[-1] = True
    ends = np.zeros(1 + np.count_nonzero(last), count_type(len(ordered)))
    at = 1
    for part in _blocks(len(ordered)):
        found = np.flatnonzero(last[part])
        ends[at : at + len(found)] = found + (part.start + 1)
        at += len(found)
    return ends
