"""Examples that stand in a data set more than once: an example that a model was not trained on is trained on by its copy.

So do held-out examples that are copies of the pool's.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["Copies", "CopiesWarning", "as_copies", "copies_of"]


class CopiesWarning(UserWarning):
    """Examples, of the pool or held out, are copies of others, and memberships do not part them."""


@dataclasses.dataclass(frozen=True)
class Copies:
    """How many examples equal an earlier one, and how many held-out ones equal one of the pool."""

    count: int
    total: int
    """of how many examples"""
    first: tuple[int, int] | None
    """the first copy and what it is of; None where there is none"""
    relabelled: int
    """of how many the label is another"""
    held_out: int = 0
    held_out_total: int = 0
    """of how many held-out examples"""
    first_held_out: tuple[int, int] | None = None
    """the first held-out copy, and the example of the pool that it is of"""

    @property
    def any(self) -> bool:
        """Whether there is a copy of either kind."""
        return self.count + self.held_out > 0

    def sentence(self) -> str:
        """What that means for an audit, and what to do; the examples' numbers are rows from 0."""
        parts = []
        if self.first is not None:
            other = f", {self.relabelled:,} with another label" if self.relabelled else ""
            parts.append(
                f"{_counted(self.count, self.total, 'examples')} of an earlier one ({_numbered(self.first)}{other}): a model "
                f"that was not trained on such an example may have learnt it from its copy, which then counts as a false alarm, "
                f"so that these figures are rather too low"
            )
        if self.first_held_out is not None:
            parts.append(
                f"{_counted(self.held_out, self.held_out_total, 'held-out examples')} of one of the pool "
                f"({_numbered(self.first_held_out)}): models were trained on it, so that accuracy on held-out "
                f"examples is rather too high, and attacks that take these for non-members are rather too weak"
            )
        return f"{'; '.join(parts)}; leave the copies out of the data"


def copies_of(x: np.ndarray, y: np.ndarray | None = None, x_test: np.ndarray | None = None) -> Copies:
    """Count the rows that equal an earlier one, bit by bit, in about the time that it takes to read them.

    Args:
        x: `[N, ...]`, of any dtype.
        y: `[N]`, their labels.
        x_test: `[N_test, ...]`, held-out rows of the same dtype, which are compared with those of x.

    >>> copies_of(np.array([[1, 2], [3, 4], [1, 2], [1, 2]]), np.array([0, 1, 0, 1])).sentence()[:44]
    '2 of 4 examples are copies of an earlier one'
    >>> copies_of(np.array([[1, 2], [3, 4]]), x_test=np.array([[5, 6], [3, 4]])).first_held_out
    (1, 1)
    """
    rows, hashes = _hashed(x)
    known, earliest, group = np.unique(hashes, return_index=True, return_inverse=True)
    original = earliest[group]
    copies = _equal(rows, rows, np.where(original == np.arange(len(rows)), -1, original))
    relabelled = 0 if y is None else sum(bool(y[i] != y[j]) for i, j in copies.items())
    found = Copies(len(copies), len(rows), next(iter(copies.items()), None), relabelled)
    if x_test is None:
        return found
    others, hashes = _hashed(x_test)
    place = np.searchsorted(known, hashes).clip(max=len(known) - 1)
    candidates = np.where(known[place] == hashes, earliest[place], -1)
    held_out = _equal(others, rows, candidates)
    return dataclasses.replace(
        found,
        held_out=len(held_out),
        held_out_total=len(others),
        first_held_out=next(iter(held_out.items()), None),
    )


def _hashed(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows `[n, values]`, each in one piece, and a hash of each, int64 `[n]`."""
    rows = np.ascontiguousarray(x).reshape(len(x), -1)
    # Python's hash of bytes is keyed anew in every process, and of 64 bits: that two rows share it by chance is no matter,
    # for those that do are looked at.
    return rows, np.fromiter((hash(row.tobytes()) for row in rows), np.int64, len(rows))


def _equal(rows: np.ndarray, others: np.ndarray, candidates: np.ndarray) -> dict[int, int]:
    """Of each row that equals its candidate among the others (below 0: it has none) the candidate, by the row."""
    return {
        i: j for i, j in enumerate(candidates.tolist()) if j >= 0 and rows[i].tobytes() == others[j].tobytes()
    }


def _counted(count: int, total: int, what: str) -> str:
    return f"{count:,} of {total:,} {what} {'are copies' if count > 1 else 'is a copy'}"


def _numbered(first: tuple[int, int]) -> str:
    return f"first {first[0]:,} of {first[1]:,}, counted from 0"


def as_copies(record: Mapping[str, Any] | None) -> Copies | None:
    """What a run has kept of its copies; None of a run that kept nothing."""
    if not record:
        return None
    first, held_out = (record.get(name) for name in ("first", "first_held_out"))  # lists, of JSON
    return Copies(
        count=record["count"],
        total=record["total"],
        first=first and (first[0], first[1]),
        relabelled=record["relabelled"],
        # Earlier versions did not look at these.
        held_out=record.get("held_out", 0),
        held_out_total=record.get("held_out_total", 0),
        first_held_out=held_out and (held_out[0], held_out[1]),
    )
