"""One array in every way that it can be held: what is computed of it must not tell them apart."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

__all__ = ["SINGLE", "Tensor", "read_only", "strided"]


def strided(values: np.ndarray) -> np.ndarray:
    wide = np.full((*values.shape[:-1], 2 * values.shape[-1]), 1, values.dtype)
    wide[..., ::2] = values
    return wide[..., ::2]


def read_only(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values.flags.writeable = False
    return values


class Tensor:
    """As PyTorch's, which gives its values to NumPy only once it is let go of gradients and its device, and never bfloat16."""

    def __init__(self, values: np.ndarray, kind: str = "float32", held: tuple[str, ...] = ()) -> None:
        self._values, self._held = values, held
        self.dtype = f"torch.{kind}"
        self.shape, self.ndim = values.shape, values.ndim

    def _without(self, *steps: str) -> "Tensor":
        held = tuple(each for each in self._held if each not in steps)
        return Tensor(self._values, self.dtype.removeprefix("torch."), held)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> "Tensor":
        return Tensor(self._values[index], self.dtype.removeprefix("torch."), self._held)

    def detach(self) -> "Tensor":
        return self._without("gradient")

    def cpu(self) -> "Tensor":
        return self._without("device")

    def to_dense(self) -> "Tensor":
        return self

    def resolve_conj(self) -> "Tensor":
        return self

    def resolve_neg(self) -> "Tensor":
        return self._without("negation")

    def is_floating_point(self) -> bool:
        return self._values.dtype.kind == "f"

    def float(self) -> "Tensor":
        return Tensor(self._values.astype(np.float32), "float32", self._held)

    def numpy(self) -> np.ndarray:
        if self._held:
            raise RuntimeError(f"Can't call numpy() on Tensor that has {self._held[0]}")
        if self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self._values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.numpy() if dtype is None else self.numpy().astype(dtype)


# Of float32 that half precision holds: all become float32 again.
SINGLE: dict[str, Callable[[np.ndarray], Any]] = {
    "byte-swapped": lambda values: values.astype(">f4"),
    "half": lambda values: values.astype(np.float16),
    "byte-swapped half": lambda values: values.astype(">f2"),
    "strided": strided,
    "reversed": lambda values: values[::-1].copy()[::-1],
    "Fortran-ordered": np.asfortranarray,
    "read-only": read_only,
    "jax": jnp.asarray,
    "jax half": lambda values: jnp.asarray(values, jnp.float16),
    "jax bfloat16": lambda values: jnp.asarray(values, jnp.bfloat16),
    "tensor on a device": lambda values: Tensor(values, "float32", ("gradient", "device", "negation")),
    "tensor of bfloat16": lambda values: Tensor(
        values.astype(ml_dtypes.bfloat16).astype("f4"), "bfloat16", ("gradient",)
    ),
}
