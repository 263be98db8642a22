"""Canaries: which extra examples are planted into a pool, as `[canaries]` says."""

from dataclasses import dataclass
from typing import Literal

from lira.fields import check_fields

__all__ = ["TAKEN", "Canaries", "Kind"]

Kind = Literal["mislabelled", "random", "blank", "own", "vulnerable", "gradient"]
# Kinds that are examples of the data set: these leave the pool, where they would be twins of the canaries.
TAKEN: tuple[Kind, ...] = ("mislabelled", "vulnerable")


@dataclass(frozen=True)
class Canaries:
    """Examples whose membership is a fair coin of its own for each model, and which are reported by themselves."""

    count: int = 1000
    """How many."""
    kind: Kind = "mislabelled"
    """mislabelled: examples of the pool with a wrong label; random: noise; blank: one value everywhere, of each another;
    own: those of a file; vulnerable: the most vulnerable of an earlier run; gradient: no examples, but gradients along one
    weight each, of private training, for lira audit-one."""
    file: str = ""
    """Of own ones: an npz file of arrays x and y."""
    run: str = ""
    """Of vulnerable ones: the directory of a run on the same data, with its report."""
    seed: int = 0
    """What they are drawn by."""

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self, "canaries.")
        if self.count < 1:
            raise ValueError(
                f"canaries.count must be at least 1; got {self.count}: leave [canaries] out for none"
            )
        if self.seed < 0:
            raise ValueError(f"canaries.seed must not be negative; got {self.seed}")
        for name, kind in (("file", "own"), ("run", "vulnerable")):
            if bool(getattr(self, name)) != (self.kind == kind):
                raise ValueError(
                    f'canaries.{name} is needed where canaries.kind = "{kind}", and is left out elsewhere; got '
                    f'{getattr(self, name)!r} of kind "{self.kind}"'
                )
