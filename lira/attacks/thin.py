"""Pools of which some examples have too few models on a side for an attack: they are left out, for all targets alike.

In designs of independent coins, and wherever models are lost, an example may be left two IN models where the others have
seven. An attack that cannot do with so few goes without these examples. Which they are follows from the counts of the whole
pool, c IN models of M, so that the targets of an example are all scored or none: to leave it out for some targets alone, by
what is left of c without each, would tell by the gaps which of them hold it.

What is left is no longer a pool of independent coins: of an example that just has enough, a target without which it has
fewer is a member. So it is attacked as any other design is, with equal counts for all examples and targets (`leave="one"`
and its random drops, see `opponents_of`): given c, which models are IN and OUT of an example is a random choice, and what a
target sees of it, a subset of fixed sizes of the other models, has the same distribution whether it is a member or not.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from lira.numbers import as_array
from lira.signals import SignalArray

__all__ = ["Columns", "have_enough", "left_out"]

# How many examples are named of those that are left out.
NAMED = 10


@dataclass(frozen=True, eq=False)
class Columns:
    """Some examples of a signal, read when they are asked for."""

    signal: SignalArray
    examples: np.ndarray  # int [n], ascending

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.signal.shape[0], len(self.examples), *self.signal.shape[2:])

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        models, examples = index
        chosen = self.examples[examples]
        if not len(chosen):
            return as_array(self.signal[models, 0:0])
        first = int(chosen[0])
        return as_array(self.signal[models, first : int(chosen[-1]) + 1])[:, chosen - first]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """All of it."""
        return np.asarray(as_array(self.signal), dtype)[:, self.examples]


def have_enough(keep: np.ndarray, needed: Mapping[str, int], *, outside: bool) -> np.ndarray:
    """Which examples have enough models of each side against every target, bool `[N]`.

    Args:
        keep: bool `[M, N]`.
        needed: of "IN" and "OUT" models.
        outside: whether targets are none of these models; else one of each side is counted off, for all targets alike.
    """
    inside = keep.sum(axis=0)
    counts = {"IN": inside, "OUT": len(keep) - inside}
    enough = [counts[side] - (not outside) >= least for side, least in needed.items()]
    return np.logical_and.reduce(enough)


def left_out(without: Mapping[str, np.ndarray], num_examples: int) -> list[str]:
    """What is said of examples that attacks leave out, a sentence for the attacks that leave out the same.

    Args:
        without: by attack the examples without a score, int, ascending.
        num_examples: N.
    """
    attacks: dict[tuple[int, ...], list[str]] = {}
    for name, examples in without.items():
        if len(examples):
            attacks.setdefault(tuple(examples.tolist()), []).append(name)
    return [
        f"{', '.join(names)}: {len(which):,} of {num_examples:,} examples are left out, of which too few models are IN or OUT "
        f"(number {', '.join(map(str, which[:NAMED]))}{', ...' if len(which) > NAMED else ''})"
        for which, names in attacks.items()
    ]
