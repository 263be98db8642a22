"""The pool of examples that membership is drawn over: the `Dataset` type and the sources it is loaded from."""

import contextlib
import dataclasses
import difflib
import hashlib
import importlib.util
import io
import json
import logging
import os
import re
import shutil
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

__all__ = ["DataError", "Dataset", "load_dataset"]

_EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_FORMS = {"digits": "digits", "npz": "npz:PATH", "folder": "folder:PATH", "tfds": "tfds:NAME"}
_KEYS = ("x", "y", "x_test", "y_test")
# Part of every cache key: a change of what decoding yields must not meet old entries.
_CACHE_FORMAT = 1


class DataError(ValueError):
    """A data set that cannot be used, in one line: what is wrong, where, and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """The N examples that membership is drawn over, with an optional held-out set.

    Make one with `load_dataset`, or from arrays with `Dataset.from_arrays`, which converts dtypes; here they must
    be right already. The arrays are taken as they are, not copied, and must not change afterwards.

    Attributes:
        x: features `[N, ...]`, uint8 (images `[N, H, W, C]`) or float32, finite.
        y: labels `[N]`, int32, in 0..num_classes - 1, each class at least once.
        num_classes: number of classes, at least 2.
        name: the source that `load_dataset` loads it from, paths made absolute; "memory" for arrays.
        x_test: held-out features `[N_test, ...]`, the dtype and shape of `x`; None without a held-out set.
        y_test: held-out labels `[N_test]`, int32; they need not hold every class.
        data_dir: the second half of the source where `name` starts with `tfds:`.

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

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise DataError(
                f"a data set needs at least 2 classes; got {self.num_classes}: check the labels in y"
            )
        _check_examples(self.x, self.y, self.num_classes, "x", "y")
        _check_every_class(self.y, self.num_classes)
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
    ) -> "Dataset":
        """Make a data set of anything that NumPy reads as arrays.

        Features of dtype uint8 stay, with a channel axis added to `[N, H, W]`; every other number becomes
        float32. Labels, `[N]`, become int32. `num_classes` is one more than the largest label by default.

        Raises:
            DataError: as the class, or labels that are not whole numbers, or features that are not numbers.

        >>> Dataset.from_arrays([[0.5], [1.5], [2.5]], [0, 1, 1]).num_classes
        2
        """
        x, y = _as_features(x, "x"), _as_labels(y, "y")
        if num_classes is None:
            num_classes = int(y.max()) + 1 if y.size else 2
        x_test = None if x_test is None else _as_features(x_test, "x_test")
        y_test = None if y_test is None else _as_labels(y_test, "y_test")
        return cls(x, y, int(num_classes), name, x_test, y_test)

    @property
    def num_examples(self) -> int:
        """N, the size of the pool."""
        return len(self.x)

    @property
    def num_test(self) -> int:
        """Size of the held-out set; 0 without one."""
        return 0 if self.x_test is None else len(self.x_test)

    @property
    def is_image(self) -> bool:
        """Whether the features are images, `[N, H, W, C]`."""
        return self.x.ndim == 4

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hexadecimal of the dtypes, shapes, contents and order of the four arrays; not of the name."""
        digest = hashlib.sha256()
        for key in _KEYS:
            array = getattr(self, key)
            if array is not None:
                digest.update(f"{key} {array.dtype.str} {array.shape};".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def load_dataset(source: str, *, num_examples: int = 0, data_dir: str = "") -> Dataset:
    """Load a data set by name; `$VARIABLES` and `~` in paths expand.

    Args:
        source: one of
            `digits`: scikit-learn's 1,797 digits, uint8 `[1797, 8, 8, 1]`, without a held-out set;
            `npz:PATH`: arrays x, y and optionally x_test, y_test, as `Dataset.from_arrays` takes them;
            `folder:PATH`: images `train/<class>/*` and optionally `test/<class>/*`, all of one size;
            `tfds:NAME[/CONFIG][:VERSION]`: splits `train` and optionally `test` of a tensorflow-datasets data
            set. One that is prepared already is read without TensorFlow; otherwise it is prepared, if possible.
        num_examples: size of a class-balanced subset of the pool, 0 for all of it. No randomness: the first of
            every class, then the second of every class, ... until enough, in their original order. The held-out
            set stays whole.
        data_dir: for `tfds:` only, the directory of prepared data sets; TFDS's own by default.

    Decoded images are kept under `$LIRA_CACHE` (`~/.cache/lira`) until a file of the source changes.

    Raises:
        DataError: the source is unknown, absent, broken or unfit; one line says which and what to do.
    """
    kind, _, place = source.partition(":")
    if data_dir and kind != "tfds":
        raise DataError(f"data_dir is for tfds: sources only, not for {source!r}: leave it out")
    try:
        match kind:
            case "digits" if source == "digits":
                dataset = _load_digits()
            case "npz" if place:
                dataset = _load_npz(_expand(place))
            case "folder" if place:
                dataset = _load_folder(_expand(place))
            case "tfds" if place:
                dataset = _load_tfds(place, _expand(data_dir))
            case _:
                form = _FORMS[difflib.get_close_matches(kind, _FORMS, n=1, cutoff=0)[0]]
                raise DataError(
                    f"unknown data set {source!r}, nearest is {form}: use {', '.join(_FORMS.values())}"
                )
    except OSError as error:
        raise DataError(f"{source} cannot be read ({_one_line(error)}): check the path") from error
    return _balanced_subset(dataset, num_examples) if num_examples else dataset


# ---- checks and conversions ----


def _check_examples(x: np.ndarray, y: np.ndarray, num_classes: int, x_name: str, y_name: str) -> None:
    """Raise DataError unless features and labels are usable by themselves and fit each other."""
    if x.ndim < 2 or y.ndim != 1:
        raise DataError(f"{x_name} must be [N, ...], {y_name} [N]; got {x.shape} and {y.shape}: reshape them")
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
    _check_range(y, num_classes, y_name)


def _check_range(y: np.ndarray, num_classes: int, name: str) -> None:
    if (bad := (y < 0) | (y >= num_classes)).any():
        row = bad.argmax()
        raise DataError(
            f"{name} row {row} holds label {y[row]}, outside 0..{num_classes - 1}: renumber the classes"
        )


def _check_every_class(y: np.ndarray, num_classes: int) -> None:
    present = np.unique(y)
    if len(present) < num_classes:
        gaps = np.flatnonzero(present != np.arange(len(present)))
        missing = gaps[0] if gaps.size else len(present)
        raise DataError(f"class {missing} of 0..{num_classes - 1} has no example in y: renumber the classes")


def _as_features(x: Any, name: str) -> np.ndarray:
    x = np.asarray(x)
    if x.dtype.kind not in "buif":
        raise DataError(f"{name} must hold numbers; got dtype {x.dtype}: encode them, one row an example")
    if x.dtype == np.uint8:
        return x[..., None] if x.ndim == 3 else x
    with np.errstate(over="ignore"):  # What float32 cannot hold becomes infinite, which the checks report.
        return x.astype(np.float32, copy=False)


def _as_labels(y: Any, name: str) -> np.ndarray:
    y = np.asarray(y)
    if y.ndim != 1:
        raise DataError(
            f"{name} must be [N], class numbers; got shape {y.shape}: flatten, or argmax one-hot rows"
        )
    if y.dtype.kind not in "buif":
        raise DataError(f"{name} must hold numbers; got dtype {y.dtype}: map the classes to 0, 1, ...")
    if y.dtype.kind == "f" and not (whole := np.isfinite(y) & (y == np.floor(y))).all():
        row = whole.argmin()
        raise DataError(f"{name} row {row} holds label {y[row]}, not a whole number: use 0, 1, ...")
    _check_range(y, 2**31 - 1, name)
    return y.astype(np.int32, copy=False)


def _balanced_subset(dataset: Dataset, num_examples: int) -> Dataset:
    """The first `num_examples` by (rank within own class, class), in their original order."""
    if not dataset.num_classes <= num_examples <= dataset.num_examples:
        raise DataError(
            f"num_examples must be 0 (all) or {dataset.num_classes}..{dataset.num_examples}, from one for each class "
            f"to all that {dataset.name} has; got {num_examples}"
        )
    y = dataset.y
    by_class = np.argsort(y, kind="stable")
    rank = np.empty(len(y), dtype=np.int64)
    rank[by_class] = np.arange(len(y)) - np.searchsorted(y[by_class], y[by_class])
    chosen = np.sort(np.lexsort((y, rank))[:num_examples])
    return dataclasses.replace(dataset, x=dataset.x[chosen], y=y[chosen])


def _expand(path: str) -> str:
    for plain, braced in re.findall(r"\$(?:(\w+)|\{([^}]*)\})", path):
        if (plain or braced) not in os.environ:
            raise DataError(f"${plain or braced} in {path!r} is not defined: set it or spell the path out")
    return os.path.expanduser(os.path.expandvars(path))


def _one_line(error: BaseException) -> str:
    """The first line of an error, of at most 200 characters: other libraries' messages run to pages."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".: ")


# ---- digits and npz ----


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits  # slow to import, and needed by this source alone

    x, y = load_digits(return_X_y=True)
    # Grey levels 0..16 spread over 0..240: exact, and in the range that images have.
    return Dataset.from_arrays((x * 15).astype(np.uint8).reshape(-1, 8, 8, 1), y, name="digits")


def _load_npz(path: str) -> Dataset:
    try:
        with open(path, "rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            if unknown := sorted(set(archive.files) - set(_KEYS)):
                raise DataError(f"{path} holds {', '.join(unknown)}: the valid names are {', '.join(_KEYS)}")
            if missing := [key for key in ("x", "y") if key not in archive.files]:
                raise DataError(f"{path} lacks {' and '.join(missing)}: use np.savez(PATH, x=..., y=...)")
            arrays = {key: archive[key] for key in archive.files}
    except DataError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read as an .npz file ({_one_line(error)}): save it with np.savez(PATH, x=..., y=...)"
        ) from error
    return Dataset.from_arrays(**arrays, name=f"npz:{os.path.abspath(path)}")


# ---- image folders ----


class _File(NamedTuple):
    """One image: its path below the folder, its class, and what tells that it has changed."""

    name: str
    label: int
    size: int
    mtime_ns: int


def _load_folder(path: str) -> Dataset:
    root = Path(os.path.abspath(path))
    if not (root / "train").is_dir():
        raise DataError(f"{root} has no directory train: expected are train/<class>/* and test/<class>/*")
    classes = _visible(root / "train")
    if not classes:
        raise DataError(f"{root / 'train'} has no class directories: expected are train/<class>/*")
    train, test = _list_images(root, "train", classes), []
    if empty := set(range(len(classes))) - {file.label for file in train}:
        raise DataError(
            f"{root / 'train' / classes[min(empty)]} has no image: add some or remove it; images end in {' '.join(_EXTENSIONS)}"
        )
    if (root / "test").is_dir():
        test = _list_images(root, "test", classes)
    name = f"folder:{root}"
    return _cached(name, ["folder", str(root), train, test], lambda: _read_folder(root, train, test, name))


def _visible(directory: Path) -> list[str]:
    """The names of the directories in `directory`, sorted, without hidden ones."""
    return sorted(entry.name for entry in os.scandir(directory) if entry.is_dir() and entry.name[0] != ".")


def _list_images(root: Path, split: str, classes: list[str]) -> list[_File]:
    """The images of one split, by class name and file name; hidden files and other extensions are left out."""
    files = []
    for name in _visible(root / split):
        if name not in classes:
            raise DataError(f"{root / split / name} is not a class of train/: rename or remove it")
        for entry in sorted(os.scandir(root / split / name), key=lambda entry: entry.name):
            if entry.name[0] != "." and entry.name.lower().endswith(_EXTENSIONS):
                stat = entry.stat()
                files.append(
                    _File(f"{split}/{name}/{entry.name}", classes.index(name), stat.st_size, stat.st_mtime_ns)
                )
    return files


def _read_folder(root: Path, train: list[_File], test: list[_File], name: str) -> Dataset:
    pixels = _decode_images([root / file.name for file in train + test])
    labels = np.array([file.label for file in train + test], dtype=np.int32)
    parts = {"x": pixels[: len(train)], "y": labels[: len(train)]}
    if test:
        parts |= {"x_test": pixels[len(train) :], "y_test": labels[len(train) :]}
    return Dataset.from_arrays(**parts, name=name)


def _decode_images(paths: list[Path]) -> np.ndarray:
    """Decode images of one size to uint8 `[N, H, W, C]`: C = 1 if all are grayscale, else 3."""
    height, width = _decode_image(paths[0]).shape[:2]
    pixels = np.empty((len(paths), height, width, 3), dtype=np.uint8)

    def decode_block(start: int) -> bool:
        all_gray = True
        for row in range(start, min(start + 256, len(paths))):
            image = _decode_image(paths[row])
            if image.shape[:2] != (height, width):
                raise DataError(
                    f"images differ in size: {paths[0]} is {width} x {height} and {paths[row]} is "
                    f"{image.shape[1]} x {image.shape[0]}: resize or crop them to one size"
                )
            all_gray &= image.shape[2] == 1
            pixels[row] = image
        return all_gray

    # Pillow lets go of the interpreter's lock while it decodes; blocks keep the cost of a task small.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        gray = all(list(pool.map(decode_block, range(0, len(paths), 256))))
    return pixels[..., :1].copy() if gray else pixels


def _decode_image(path: Path) -> np.ndarray:
    """Decode one image to uint8 `[H, W, 1]` (modes 1 and L) or `[H, W, 3]`."""
    try:
        with Image.open(path) as image:
            mode = image.mode
            pixels = np.asarray(image.convert("L" if mode in ("1", "L") else "RGB"))
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to.
        raise DataError(
            f"{path} cannot be read as an image ({_one_line(error)}): replace or remove it"
        ) from error
    if mode[0] in "IF":  # Pillow would clip these, not scale them.
        raise DataError(
            f"{path} has more than 8 bits a channel (mode {mode}): convert it, or pass arrays by npz:"
        )
    return pixels.reshape(*pixels.shape[:2], -1)


# ---- tensorflow-datasets ----


def _load_tfds(place: str, data_dir: str) -> Dataset:
    with _quiet():
        builder = _find_tfds(place, data_dir)
    root = Path(os.path.abspath(builder.data_path))
    stats = [(path.name, path.stat()) for path in sorted(root.iterdir())]
    listing = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    dataset = _cached(f"tfds:{place}", ["tfds", str(root), listing], lambda: _read_tfds(builder, place))
    return dataclasses.replace(dataset, data_dir=data_dir and os.path.abspath(data_dir))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS's prints, log lines and its dependencies' warnings from the user; progress bars stay."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _find_tfds(place: str, data_dir: str) -> Any:
    """The builder of a prepared data set, found by its files alone; prepared first where there are none."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.read_only_builder import builder_from_files

    looked_in = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        return builder_from_files(place, data_dir=data_dir or None)
    except tfds.core.DatasetNotFoundError:
        pass  # not prepared yet
    except Exception as error:
        raise DataError(f"tfds:{place} cannot be opened in {looked_in} ({_one_line(error)})") from error
    try:
        builder = tfds.builder(place, data_dir=data_dir or None, file_format="array_record")
        # The stock builders reach their files through TensorFlow, and would notice only after the download.
        stock = type(builder).__module__.startswith("tensorflow_datasets.")
        if stock and importlib.util.find_spec("tensorflow") is None:
            raise ModuleNotFoundError("TensorFlow is not installed")
        builder.download_and_prepare()
        return builder
    except Exception as error:
        raise DataError(
            f"tfds:{place} is not prepared in {looked_in} and cannot be prepared here ({_one_line(error)}): "
            f'pip install "lira[tensorflow]" and try again with network access, or prepare it on another machine with '
            f"tfds.builder({place!r}, file_format='array_record').download_and_prepare() and pass that data_dir"
        ) from error


def _read_tfds(builder: Any, place: str) -> Dataset:
    """Read the splits train and test (if any) of a prepared builder, in stored order."""
    splits, features = builder.info.splits, builder.info.features
    keys = builder.info.supervised_keys or ("image", "label")
    if "train" not in splits:
        raise DataError(f"tfds:{place} has no split train, only {', '.join(splits)}: pass its arrays by npz:")
    if len(keys) != 2 or not all(key in features for key in keys):
        raise DataError(
            f"tfds:{place} has neither supervised_keys nor features image and label, only "
            f"{', '.join(sorted(features))}: pass its arrays by npz:"
        )
    try:
        with _quiet():
            x, y = _read_split(builder, "train", *keys)
            x_test, y_test = _read_split(builder, "test", *keys) if "test" in splits else (None, None)
    except Exception as error:
        raise DataError(
            f"tfds:{place} cannot be read from {builder.data_path} ({_one_line(error)}): prepare it again"
        ) from error
    num_classes = getattr(features[keys[1]], "num_classes", None)
    return Dataset.from_arrays(
        x, y, x_test=x_test, y_test=y_test, name=f"tfds:{place}", num_classes=num_classes
    )


def _read_split(builder: Any, split: str, x_key: str, y_key: str) -> tuple[np.ndarray, np.ndarray]:
    count = builder.info.splits[split].num_examples
    x, labels = np.empty(0), []
    for row, example in enumerate(_examples(builder, split)):
        value = np.asarray(example[x_key])
        if row == 0:
            x = np.empty((count, *value.shape), dtype=value.dtype)
        if value.shape != x.shape[1:]:
            raise ValueError(f"{split} examples 0 and {row} differ in shape: {x.shape[1:]} and {value.shape}")
        x[row] = value
        labels.append(example[y_key])
    if len(labels) != count:
        raise ValueError(f"split {split} holds {len(labels)} examples in place of {count}")
    return x, np.array(labels)


def _examples(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    """The decoded examples of a split; TFDS would read TFRecord files, its default, by TensorFlow alone."""
    formats = {each.value for each in builder.info.available_file_formats()}
    if formats != {"tfrecord"}:
        yield from builder.as_data_source(split)
        return
    for path in builder.info.splits[split].filepaths:
        # A record is its length (8 bytes), a checksum (4), the data, another checksum (4).
        data, start = path.read_bytes(), 0
        while start < len(data):
            stop = start + 12 + struct.unpack_from("<Q", data, start)[0]
            yield builder.info.features.deserialize_example_np(data[start + 12 : stop])
            start = stop + 4


# ---- cache of decoded data ----


def _cached(name: str, key: list[Any], read: Callable[[], Dataset]) -> Dataset:
    """The data set kept under `key`; read anew, and kept, when there is none or it is damaged."""
    directory = Path(_expand(os.environ.get("LIRA_CACHE") or "~/.cache/lira"))
    entry = directory / hashlib.sha256(json.dumps([_CACHE_FORMAT, *key]).encode()).hexdigest()[:32]
    dataset = _read_entry(entry, name)
    if dataset is None:
        dataset = read()
        try:
            _write_entry(entry, dataset)
        except OSError as error:
            warnings.warn(
                f"decoded data cannot be kept in {directory} ({error}); set LIRA_CACHE to a writable directory",
                stacklevel=4,
            )
    return dataset


def _read_entry(entry: Path, name: str) -> Dataset | None:
    if not entry.is_dir():
        return None
    try:
        dataset = Dataset.from_arrays(**{path.stem: np.load(path) for path in entry.glob("*.npy")}, name=name)
        # The stored fingerprint tells damage of any kind, at the cost of one that is computed anyway.
        intact = dataset.fingerprint == (entry / "fingerprint").read_text()
    except Exception:  # Whatever damage leads NumPy to.
        return None
    return dataset if intact else None


def _write_entry(entry: Path, dataset: Dataset) -> None:
    """Write beside, then rename: a killed process leaves no entry that looks whole."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=entry.parent) as scratch:
        fresh = Path(scratch, "entry")
        fresh.mkdir()
        for key in _KEYS:
            if (array := getattr(dataset, key)) is not None:
                np.save(fresh / f"{key}.npy", array)
        (fresh / "fingerprint").write_text(dataset.fingerprint)
        shutil.rmtree(entry, ignore_errors=True)  # a damaged one
        fresh.rename(entry)
