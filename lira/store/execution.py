"""How stacks of models are executed, as `[execution]` says."""

import math
from dataclasses import dataclass
from typing import Literal

from lira.fields import check_fields
from lira.learning.convolution import Lowering

__all__ = ["Execution"]


@dataclass(frozen=True)
class Execution:
    """How stacks are executed. It does not change what a model becomes."""

    width: int = 0
    """Models in a stack, trained side by side; 0 takes the fastest by measurement."""
    lowering: Literal["auto", Lowering] = "auto"
    """How convolutions are computed: xla, per_model, patches, winograd, mixed, or auto for the fastest by measurement."""
    devices: tuple[int, ...] = ()
    """Devices of the machine to train on, by index from 0 on; all of them by default."""
    workers: int = 0
    """Stacks that each device trains at the same time; 0 is one, or a CPU's share of the cores."""
    checkpoint_minutes: float = 10.0
    """Minutes after which stacks in training are written to disk, to go on from there if the process is ended; 0 is never."""

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self, "execution.")
        for name in ("width", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"execution.{name} must be 0 (automatic) or more; got {getattr(self, name)}")
        if not 0 <= self.checkpoint_minutes < math.inf:
            raise ValueError(
                f"execution.checkpoint_minutes must be 0 (never) or more; got {self.checkpoint_minutes}"
            )
        if min(self.devices, default=0) < 0 or len(set(self.devices)) < len(self.devices):
            raise ValueError(
                f"execution.devices must be different indices from 0 on; got {list(self.devices)}"
            )
