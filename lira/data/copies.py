"""Examples that stand in a data set more than once: an example that a model was not trained on is trained on by its copy."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["Copies", "CopiesWarning", "as_copies", "copies_of"]


class CopiesWarning(UserWarning):
    """Examples are copies of others, and memberships do not part them."""


@dataclasses.dataclass(frozen=True)
class Copies:
    """How many examples equal an earlier one."""

    count: int
    total: int
    """of how many examples"""
    first: tuple[int, int] | None
    """the first copy and what it is of; None where there is none"""
    relabelled: int
    """of how many the label is another"""

    def sentence(self) -> str:
        """What that means for an audit, and what to do; the example's numbers are rows from 0."""
        assert self.first is not None
        copy, of = self.first
        other = f", {self.relabelled:,} with another label" if self.relabelled else ""
        some = f"{self.count:,} of {self.total:,} examples {'are copies' if self.count > 1 else 'is a copy'} of an earlier one"
        return (
            f"{some} (first {copy:,} of {of:,}, counted from 0{other}): a model that was not trained on such an example may "
            f"have learnt it from its copy, which then counts as a false alarm, so that these figures are rather too low; leave "
            f"the copies out of the data"
        )


def copies_of(x: np.ndarray, y: np.ndarray | None = None) -> Copies:
    """Count the rows that equal an earlier one, bit by bit, in about the time that it takes to read them.

    Args:
        x: `[N, ...]`, of any dtype.
        y: `[N]`, their labels.

    >>> copies_of(np.array([[1, 2], [3, 4], [1, 2], [1, 2]]), np.array([0, 1, 0, 1]))
    Copies(count=2, total=4, first=(2, 0), relabelled=1)
    """
    rows = np.ascontiguousarray(x).reshape(len(x), -1)
    # Python's hash of bytes is keyed anew in every process, and of 64 bits: that two rows share it by chance is no matter,
    # for those that do are looked at.
    hashes = np.fromiter((hash(row.tobytes()) for row in rows), np.int64, len(rows))
    _, earliest, group = np.unique(hashes, return_index=True, return_inverse=True)
    original = earliest[group]
    copies = [
        i for i in np.flatnonzero(original != np.arange(len(rows))).tolist() if _same(rows, i, original)
    ]
    relabelled = 0 if y is None else int((y[copies] != y[original[copies]]).sum())
    first = (copies[0], int(original[copies[0]])) if copies else None
    return Copies(len(copies), len(rows), first, relabelled)


def _same(rows: np.ndarray, i: int, original: np.ndarray) -> bool:
    return rows[i].tobytes() == rows[original[i]].tobytes()


def as_copies(record: Mapping[str, Any] | None) -> Copies | None:
    """What a run has kept of its copies; None of a run that kept nothing."""
    if not record:
        return None
    first = record["first"]
    return Copies(record["count"], record["total"], first and (first[0], first[1]), record["relabelled"])
