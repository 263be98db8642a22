"""Where data sets come from, by name: digits, npz files, image folders and tensorflow-datasets."""

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
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from lira.data import ARRAYS, DataError, Dataset

__all__ = ["load_dataset"]

_EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_FORMS = {"digits": "digits", "npz": "npz:PATH", "folder": "folder:PATH", "tfds": "tfds:NAME"}
# Part of every cache key: a change of what decoding yields must not meet old entries.
_CACHE_FORMAT = 1


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
            if unknown := sorted(set(archive.files) - set(ARRAYS)):
                raise DataError(f"{path} holds {', '.join(unknown)}: the valid names are {', '.join(ARRAYS)}")
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
        for key in ARRAYS:
            if (array := getattr(dataset, key)) is not None:
                np.save(fresh / f"{key}.npy", array)
        (fresh / "fingerprint").write_text(dataset.fingerprint)
        shutil.rmtree(entry, ignore_errors=True)  # a damaged one
        fresh.rename(entry)
