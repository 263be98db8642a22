"""One array in every way that it can be held: what is computed of it must not tell them apart."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

__all__ = ["SINGLE", "read_only", "strided"]


def strided(values: np.ndarray) -> np.ndarray:
    wide = np.full((*values.shape[:-1], 2 * values.shape[-1]), 1, values.dtype)
    wide[..., ::2] = values
    return wide[..., ::2]


def read_only(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values.flags.writeable = False
    return values


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
}
