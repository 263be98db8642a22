"""The one kernel of every curve: members and non-members at and above each threshold, and what is read off the counts.

Thresholds descend. A point of a curve is how many non-members (false positives) and members (true positives) reach a
threshold; the first point is (0, 0), the last lets everything through.
"""

import numpy as np
from numpy.typing import ArrayLike

__all__ = [
    "allowed_false_positives",
    "area",
    "count_points",
    "descending",
    "last_within",
    "ratio",
    "tie_ends",
]


def count_points(scores: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positives at each distinct score, int64 `[K]` each, of float scores and bool `member` of one shape.

    >>> count_points(np.array([0.9, 0.3, 0.3]), np.array([True, False, True]))
    (array([0, 0, 1]), array([0, 1, 2]))
    """
    ordered, held = descending(scores, member.astype(np.uint32))
    ends = tie_ends(ordered)
    true = np.append(0, np.cumsum(held, dtype=np.int64))[ends]
    return ends - true, true


def area(false: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Area under curves of counts or rates `[..., K]`, `[...]`; a tie counts one half. NaN without either side.

    Of counts twice the area, in units of one member times one non-member, is a whole number, and exact.
    """
    twice = np.vecdot(np.diff(false), true[..., 1:] + true[..., :-1])
    return ratio(twice, 2 * true[..., -1] * false[..., -1])


def last_within(false: np.ndarray, allowed: ArrayLike) -> np.ndarray:
    """Index of the last point with at most so many false positives (or such a rate), int `[...]` like `allowed`."""
    return np.searchsorted(false, allowed, side="right") - 1


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
    # Adding 0 makes -0 the 0 that it ties with.
    keys = _flip((scores + np.float32(0)).view(np.uint32)).astype(np.uint64).ravel()
    keys <<= np.uint64(32)
    keys |= cells.ravel()
    keys.sort()
    cells = keys.astype(np.uint32)  # the lower half
    keys >>= np.uint64(32)
    return _flip(keys.astype(np.uint32)).view(np.float32), cells


def _flip(bits: np.ndarray) -> np.ndarray:
    """Float32 bits as whole numbers in descending order of the float, and back: all but the sign of a positive one."""
    return bits ^ (((bits >> np.uint32(31)) - np.uint32(1)) & np.uint32(0x7FFFFFFF))


def tie_ends(ordered: np.ndarray) -> np.ndarray:
    """How many of sorted scores reach each distinct one, the last of its ties included, int `[K]`, from 0 on."""
    return np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, [len(ordered)]])
