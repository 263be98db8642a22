"""Whatever holds numbers, as NumPy has it: tensors of PyTorch among them, on any device and of any precision."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

__all__ = ["as_array", "native_floats", "require_unmasked"]


def as_array(values: Any) -> np.ndarray:
    """An array of anything that holds numbers, without a copy where it is one already.

    Args:
        values: of NumPy or JAX, or read lazily; tensors of PyTorch that require gradients, are on a device, sparse,
            negated or conjugated by a flag, or of bfloat16, which stays what JAX has it as; lists of such tensors of one
            shape; tables, numbers, nested lists.

    Raises:
        ValueError: some values are masked, or rows have different lengths.
    """
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ValueError("masked values, of which nothing is known: fill them in, as by filled(0)")
    if isinstance(values, list | tuple) and any(hasattr(each, "detach") for each in values):
        return np.stack([as_array(each) for each in values])
    if hasattr(values, "detach"):
        tensor: Any = values
        tensor = tensor.detach().cpu()
        for resolved in ("to_dense", "resolve_conj", "resolve_neg"):
            tensor = getattr(tensor, resolved)()
        name = str(tensor.dtype).rpartition(".")[2]
        if tensor.is_floating_point() and hasattr(ml_dtypes, name):  # bfloat16, float8_e5m2: NumPy has none
            return tensor.float().numpy().astype(getattr(ml_dtypes, name))
        return tensor.numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        if "inhomogeneous" in str(error):
            raise ValueError("rows of different lengths: give each example as many numbers") from error
        raise


def require_unmasked(arrays: Mapping[str, object]) -> None:
    """Raise ValueError by name where arrays, lazy ones too, have masked elements: what stands under them is no value."""
    for name, array in arrays.items():
        if np.ma.is_masked(array):
            raise ValueError(f"{name} holds masked elements: leave out the models or examples that have some")


def native_floats(values: object) -> np.ndarray:
    """Numbers of any kind as floats of this machine: float32 or float64 in its byte order, rows next to each other.

    Compiled programs read other byte orders as if they were this one, half precision rounds what is computed of it,
    unsigned integers wrap around, and sums depend on the order in memory. So whatever comes in from outside passes here.

    Args:
        values: booleans, integers or floats, held as `as_array` knows; what is such an array already is not copied.

    Returns:
        float32 where that holds every value of the dtype (float16, bfloat16, integers of up to 16 bits), else float64.

    Raises:
        ValueError: the values are no real numbers.
    """
    array = as_array(values)
    # bfloat16 is of kind "V" to NumPy.
    if array.dtype.kind not in "biufV" or array.dtype.names is not None:
        raise ValueError(f"values must be real numbers; got an array of {array.dtype}")
    return np.asarray(array, np.float32 if np.can_cast(array.dtype, np.float32) else np.float64, order="C")
