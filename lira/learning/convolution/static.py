"""What is static of a convolution, and the types that its lowerings share."""

from dataclasses import dataclass
from typing import Any

__all__ = ["NUMBERS", "Convolution", "Pads", "Strides"]

NUMBERS = ("NHWC", "HWIO", "NHWC")  # JAX's names of the axes of images, kernels and results
Strides = tuple[int, int]  # along rows and columns
Pads = tuple[tuple[int, int], tuple[int, int]]  # zeros (above, below) and (to the left, to the right)


@dataclass(frozen=True)
class Convolution:
    """A convolution of images x `[n, H, W, C]` by a kernel `[h, w, C, O]`, whose result is `[n, H', W', O]`.

    Hashable: functions with a backward pass of their own take it as their static argument.
    """

    lowering: str
    platform: str  # as JAX names it: cpu, gpu or tpu
    strides: Strides
    pads: Pads  # negative ones crop
    precision: Any  # of the products, see `jax.lax.Precision`

    @property
    def on_cpu(self) -> bool:
        return self.platform == "cpu"
