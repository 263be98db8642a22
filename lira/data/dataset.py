"""The pool of examples that membership is drawn over: the `Dataset` type and what it demands of its arrays."""

import dataclasses
import difflib
import hashlib
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from lira.data.arrays import DataError, as_features, as_labels, check_range
from lira.data.canaries import TAKEN, Canaries

__all__ = ["ARRAYS", "READING", "DataError", "Dataset"]

ARRAYS = ("x", "y", "x_test", "y_test")
# Version of the rules by which files and arrays become examples: one more whenever the same source would give others.
# Part of every cache key, and kept with every run. 2: opaque alpha is dropped, bytes are images alone, whole numbers of
# images are bytes or 16 bits (1: transparent pixels became black, tables of bytes were scaled, such images were not).
# 3: colours of 16 bits a channel are refused (2: their lower 8 bits were dropped). 4: images are turned as their EXIF says.
READING = 4


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """The N examples that membership is drawn over, with an optional held-out set.

    Make one with `load_dataset`, or from arrays with `Dataset.from_arrays`, which converts dtypes; here they must
    be right already. The arrays are taken as they are, not copied, and must not change afterwards.

    Attributes:
        x: features `[N, ...]`, uint8 (images `[N, H, W, C]` alone) or float32, finite.
        y: labels `[N]`, int32, in 0..num_classes - 1, each class at least once.
        num_classes: number of classes, at least 2.
        name: the source that `load_dataset` loads it from, paths made absolute; "memory" for arrays.
        x_test: held-out features `[N_test, ...]`, the dtype and shape of `x`; None without a held-out set.
        y_test: held-out labels `[N_test]`, int32; they need not hold every class.
        data_dir: the second half of the source where `name` starts with `tfds:`.
        class_names: the name of each class, in the order of the labels; empty where they are not known.
        files: the file that each example of `x` comes from; empty where they are not known. Neither names nor files
            are part of the fingerprint.
        canaries: what the last examples are, see `planting.plant`; None without any.

    Raises:
        DataError: an array breaks a requirement; the message names the array and its first bad row.
    """

    x: np.ndarray
    y: np.ndarray
    num_classes: int
    name: str
    x_test: np.ndarray | None = None
    y_test: np.ndarray | None = None
    data_dir: str = ""
    class_names: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    canaries: Canaries | None = None

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise DataError(
                f"a data set needs at least 2 classes; got {self.num_classes}: check the labels in y"
            )
        _check_examples(self.x, self.y, self.num_classes, "x", "y")
        _check_every_class(self.y, self.num_classes)
        _check_names(self.class_names, self.num_classes, "class_names", "class")
        _check_names(self.files, len(self.x), "files", "example")
        if (self.x_test is None) != (self.y_test is None):
            given, missing = ("x_test", "y_test") if self.y_test is None else ("y_test", "x_test")
            raise DataError(f"{given} is given without {missing}: give both or neither")
        if self.x_test is not None and self.y_test is not None:
            _check_examples(self.x_test, self.y_test, self.num_classes, "x_test", "y_test")
            ours, theirs = (
                f"{a.dtype} [N, {', '.join(map(str, a.shape[1:]))}]" for a in (self.x_test, self.x)
            )
            if ours != theirs:
                raise DataError(f"x_test is {ours} but x is {theirs}: give both the same dtype and shape")

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any,
        *,
        x_test: Any = None,
        y_test: Any = None,
        name: str = "memory",
        num_classes: Any = None,
        class_names: Iterable[str] = (),
        files: Iterable[str] = (),
    ) -> "Dataset":
        """Make a data set of anything that NumPy reads as arrays.

        Rows of features, `[N, F]`, become float32 as they are, whatever their dtype, and so do floats and booleans of
        any shape. Whole numbers of three axes and more are images, with a channel axis added to `[N, H, W]`: uint8 stay,
        uint16 become float32 in [-1, 1], and others must lie in 0 to 255 and become uint8. Labels, `[N]`, `[N, 1]` or
        one-hot `[N, C]`, become int32; words become the numbers of their classes, in the order of their names, or of
        `class_names`. `num_classes` is one more than the largest label by default.

        Raises:
            DataError: as the class, or labels that are not whole numbers, features that are not numbers, that float32
                cannot tell apart, or images whose channels come first, or of whole numbers outside 0 to 255.

        Warns:
            UserWarning: images of floats that look like bytes, or of 16 bits that hold 13 or fewer.

        >>> Dataset.from_arrays([[0.5], [1.5], [2.5]], [0, 1, 1]).num_classes
        2
        """
        x, (y, names) = as_features(x, "x"), as_labels(y, "y", tuple(class_names))
        if num_classes is None:
            num_classes = int(y.max()) + 1 if y.size else 2
        x_test = None if x_test is None else as_features(x_test, "x_test")
        y_test, words = (None, ()) if y_test is None else as_labels(y_test, "y_test", names)
        if words and not names:  # whose order knows nothing of the numbers in y
            raise DataError("y_test holds words, and y numbers: give class_names, or the same kind in both")
        return cls(
            x,
            y,
            int(num_classes),
            name,
            x_test,
            y_test,
            class_names=names,
            files=tuple(files),
        )

    def __repr__(self) -> str:
        """Name, shapes and classes."""
        test = f"{self.num_test:,} held out" if self.num_test else "none held out"
        return f"Dataset({self.name!r}: x {self.x.dtype} {list(self.x.shape)}, {self.num_classes} classes, {test})"

    @property
    def num_examples(self) -> int:
        """N, the size of the pool."""
        return len(self.x)

    @property
    def num_canaries(self) -> int:
        """How many of the examples, the last ones, are canaries."""
        return 0 if self.canaries is None else self.canaries.count

    @property
    def num_loaded(self) -> int:
        """Examples that there were before canaries were planted among them."""
        extra = self.canaries is not None and self.canaries.kind not in TAKEN
        return self.num_examples - self.num_canaries * extra

    @property
    def num_test(self) -> int:
        """Size of the held-out set; 0 without one."""
        return 0 if self.x_test is None else len(self.x_test)

    @property
    def is_image(self) -> bool:
        """Whether the features are images, `[N, H, W, C]`."""
        return self.x.ndim == 4

    def label_of(self, label: str | int) -> int:
        """The number of a class by its name, or by its number where no class has a number for a name.

        Raises:
            DataError: there is no such class.
        """
        name = str(label)
        if name in self.class_names:
            return self.class_names.index(name)
        if _is_number(name) and not any(map(_is_number, self.class_names)) and int(name) < self.num_classes:
            return int(name)
        known = f"the classes are 0..{self.num_classes - 1}"
        if self.class_names:
            (near,) = difflib.get_close_matches(name, self.class_names, n=1, cutoff=0)
            known = (
                f"nearest is {near} of {', '.join(self.class_names[:20])}{', ...' * (self.num_classes > 20)}"
            )
        raise DataError(f"{self.name} has no class {name!r}: {known}")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hexadecimal of the dtypes, shapes, contents and order of the four arrays; not of the name."""
        digest = hashlib.sha256()
        for key in ARRAYS:
            array = getattr(self, key)
            if array is not None:
                digest.update(f"{key} {array.dtype.str} {array.shape};".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


# --- Checks and conversions ----------------------------------------------------------------------------------------


def _check_examples(x: np.ndarray, y: np.ndarray, num_classes: int, x_name: str, y_name: str) -> None:
    """Raise DataError unless features and labels are usable by themselves and fit each other."""
    if x.ndim < 2 or y.ndim != 1:
        how = f"of one feature give {x_name}[:, None]" if x.ndim == y.ndim == 1 else "reshape them"
        raise DataError(f"{x_name} must be [N, ...], {y_name} [N]; got {x.shape} and {y.shape}: {how}")
    if len(x) != len(y):
        raise DataError(f"{x_name} has {len(x)} rows but {y_name} has {len(y)}: give each example a label")
    if x.size == 0:
        raise DataError(f"{x_name} is empty, shape {x.shape}: give examples, or leave it out")
    if x.dtype not in (np.uint8, np.float32) or y.dtype != np.int32:
        raise DataError(
            f"{x_name} must be uint8 or float32 and {y_name} int32; got {x.dtype} and {y.dtype}: "
            f"use Dataset.from_arrays, which converts them"
        )
    if x.dtype == np.float32 and not (finite := np.isfinite(x).reshape(len(x), -1).all(axis=1)).all():
        raise DataError(
            f"{x_name} row {finite.argmin()} holds NaN or infinity (as float32): fill it in or drop it"
        )
    if x.dtype == np.uint8 and x.ndim < 4:
        raise DataError(
            f"{x_name} is uint8 of shape {x.shape}, and bytes are images [N, H, W, C]: use Dataset.from_arrays, which "
            f"converts rows of features to float32"
        )
    check_range(y, num_classes, y_name)


def _check_every_class(y: np.ndarray, num_classes: int) -> None:
    present = np.unique(y)
    if len(present) < num_classes:
        gaps = np.flatnonzero(present != np.arange(len(present)))
        missing = gaps[0] if gaps.size else len(present)
        raise DataError(
            f"class {missing} of 0..{num_classes - 1} has no example in y: renumber the classes, as by "
            f"y = np.unique(y, return_inverse=True)[1]"
        )


def _check_names(names: tuple[str, ...], count: int, name: str, each: str) -> None:
    if names and len(names) != count:
        raise DataError(f"{name} holds {len(names)} names for {count}: give one for each {each}, or none")


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()
