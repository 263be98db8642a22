"""Anyone's arrays as those of a data set: features and images, labels; and what is wrong with them, in one line."""

import warnings
from typing import Any

import numpy as np

from lira.numbers import as_array, native_floats

__all__ = ["DataError", "as_features", "as_labels", "check_range", "is_lost_in_float32"]

# Channels of images, of which the axis can be told by them.
CHANNELS = (1, 3, 4)
# What a cell of a table of objects may be.
NUMBERS = (bool, int, float, np.number, np.bool_)
# Images of 16 bits whose largest value is below this hold 12 or 13, as of cameras and scanners.
FEW_BITS = 1 << 13


class DataError(ValueError):
    """A data set that cannot be used, in one line: what is wrong, where, and what to do."""


# --- Features ---------------------------------------------------------------------------------------------------------


def as_features(x: Any, name: str) -> np.ndarray:
    """Uint8 images `[N, H, W, C]` or float32 `[N, ...]`, see `Dataset.from_arrays`."""
    x = _as_numbers(x, name)
    _check_layout(x, name)
    if x.dtype.kind in "ui" and x.ndim > 2:
        return _as_pixels(x[..., None] if x.ndim == 3 else x, name)
    if x.ndim == 2 and x.size and x.dtype != np.float32:
        for column in np.flatnonzero(_few_steps(x)):
            if is_lost_in_float32(x[:, column]):
                raise DataError(
                    f"{name} column {column} holds numbers like {x[0, column]:.15g}, whose differences 32 bits do not hold: "
                    f"subtract their mean, or leave it out"
                )
    with np.errstate(over="ignore"):  # What float32 cannot hold becomes infinite, which the checks report.
        return x.astype(np.float32, copy=False)


def _as_numbers(x: Any, name: str) -> np.ndarray:
    """Anything that holds numbers: arrays, tables, tensors, sparse matrices, nested lists."""
    try:
        x = as_array(x.toarray() if hasattr(x, "toarray") else x)
        x = native_floats(x) if x.dtype.kind == "V" and x.dtype.names is None else x  # bfloat16
    except ValueError as error:
        raise DataError(f"{name} has {error}") from error
    if x.dtype == object and x.size and all(isinstance(each, NUMBERS) for each in x.ravel().tolist()):
        return x.astype(np.float64)  # as of a table with columns of truths beside those of numbers
    if x.dtype.kind not in "buif":
        how = "encode words, one row an example; csv: and parquet: do so"
        if x.dtype.kind in "Mm":
            how = f"make numbers of dates and times, as by ({name} - {name}.min()) / np.timedelta64(1, 'D')"
        elif x.dtype.names is not None:
            how = (
                f"make columns of its fields, as by numpy.lib.recfunctions.structured_to_unstructured({name})"
            )
        elif x.dtype.kind == "c":
            how = f"give real and imaginary parts, as by np.stack([{name}.real, {name}.imag], -1)"
        raise DataError(f"{name} must hold numbers; got dtype {x.dtype}: {how}")
    return x


def _check_layout(x: np.ndarray, name: str) -> None:
    """Raise DataError where images are [N, C, H, W]; warn where floats are bytes."""
    if x.ndim != 4:
        return
    _, first, height, width = x.shape
    if first in CHANNELS and width not in (*CHANNELS, 2) and height <= 2 * width <= 4 * height:
        raise DataError(
            f"{name} is [N, {first}, {height}, {width}], which looks like images with their channels first, as PyTorch has them: "
            f"give [N, H, W, C], as by {name}.transpose(0, 2, 3, 1), of a tensor {name}.permute(0, 2, 3, 1)"
        )
    if x.dtype.kind == "f" and x.size and 1 < x.max() <= 255 and x.min() >= 0 and (x == np.floor(x)).all():
        warnings.warn(
            f"{name} holds whole numbers up to {x.max():g} as floats, and floats stay as they are: bytes are scaled to [-1, 1], "
            f"as {name}.astype(np.uint8)",
            stacklevel=4,
        )


def _as_pixels(x: np.ndarray, name: str) -> np.ndarray:
    """Images of whole numbers, `[N, H, W, C]`: 16 bits as float32 in [-1, 1], all others as uint8."""
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind == "u" and x.dtype.itemsize == 2:
        if x.size and 255 < x.max() < FEW_BITS:
            warnings.warn(
                f"{name} reaches {x.max():,} of the 65,535 that 16 bits hold, as images of 12 bits do, and is scaled to "
                f"[-1, {x.max() / 32767.5 - 1:.2f}]: multiply it, as by {65535 // int(x.max())}",
                stacklevel=5,
            )
        return x.astype(np.float32) / np.float32(32767.5) - 1
    if (outside := ((x < 0) | (x > 255)).reshape(len(x), -1)).any():
        row = int(outside.any(axis=1).argmax())
        value = x.reshape(len(x), -1)[row][outside[row]][0]
        raise DataError(
            f"{name} row {row} holds {value}, and images of {x.dtype} are bytes, 0 to 255: give 16 bits as uint16, or "
            f"scale them to floats in [-1, 1]"
        )
    return x.astype(np.uint8)


def is_lost_in_float32(values: np.ndarray) -> bool:
    """Whether numbers `[N]` differ, and float32 holds fewer than 16 steps between the least and the largest, but not them."""
    if not _few_steps(values):
        return False
    return bool((values.astype(np.float32).astype(np.float64) != values).any())


def _few_steps(values: np.ndarray) -> Any:
    """The same of each column, but for whether float32 holds the numbers themselves."""
    low, high = values.min(axis=0), values.max(axis=0)
    largest = np.maximum(np.abs(low.astype(np.float64)), np.abs(high.astype(np.float64)))
    with np.errstate(over="ignore", invalid="ignore"):
        steps = (high - low if values.dtype != bool else high ^ low) / np.spacing(largest.astype(np.float32))
        return (low != high) & (steps < 16)


# --- Labels -----------------------------------------------------------------------------------------------------------


def as_labels(y: Any, name: str, names: tuple[str, ...] = ()) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class numbers, int32 `[N]`, and the classes' names: those given, or of words, where y holds such, in their order.

    Args:
        y: numbers or words `[N]` or `[N, 1]`, or one-hot rows `[N, C]`.
        name: for messages.
        names: of the classes that are known.
    """
    y = as_array(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    elif y.ndim == 2 and y.dtype.kind in "buif" and np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all():
        y = y.argmax(axis=1)
    if y.ndim != 1:
        raise DataError(
            f"{name} must be [N], class numbers; got shape {y.shape}: flatten, or argmax one-hot rows"
        )
    if y.dtype.kind == "S" or (y.dtype == object and y.size and all(isinstance(each, bytes) for each in y)):
        y = np.array([each.decode("utf-8", "backslashreplace") for each in y.tolist()])
    if y.dtype.kind in "OUST" and y.size and all(isinstance(each, str) for each in y.tolist()):
        return _of_words(y.astype(str), name, names)
    if y.dtype.kind not in "buif":
        raise DataError(
            f"{name} must hold numbers or words; got dtype {y.dtype}: map the classes to 0, 1, ..."
        )
    if y.dtype.kind == "f" and not (whole := np.isfinite(y) & (y == np.floor(y))).all():
        row = whole.argmin()
        raise DataError(f"{name} row {row} holds label {y[row]}, not a whole number: use 0, 1, ...")
    check_range(y, 2**31 - 1, name)
    return y.astype(np.int32, copy=False), names


def _of_words(words: np.ndarray, name: str, names: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    known = names or tuple(np.unique(words).tolist())
    places = {word: place for place, word in enumerate(known)}
    if new := [row for row, word in enumerate(words.tolist()) if word not in places]:
        raise DataError(
            f"{name} row {new[0]} holds {str(words[new[0]])!r}, which is none of the classes {', '.join(known[:10])}"
        )
    return np.array([places[word] for word in words.tolist()], np.int32), known


def check_range(y: np.ndarray, num_classes: int, name: str) -> None:
    if (bad := (y < 0) | (y >= num_classes)).any():
        row = bad.argmax()
        raise DataError(
            f"{name} row {row} holds label {y[row]}, outside 0..{num_classes - 1}: renumber the classes, as by "
            f"{name} = np.unique({name}, return_inverse=True)[1]"
        )
