"""Where data sets come from: digits, archives, tables, image folders, tensorflow-datasets, HuggingFace, by one name."""

import dataclasses
import difflib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from lira.data.dataset import ARRAYS, DataError, Dataset
from lira.data.folder import load_folder
from lira.data.huggingface import load_hub
from lira.data.paths import expand, one_line
from lira.data.tables import load_table
from lira.data.tfds import load_tfds

__all__ = ["load_archive", "load_dataset"]
# What an archive may hold besides its arrays.
NAMES = ("class_names", "files")
_FORMS = {
    "digits": "digits",
    "npz": "npz:PATH",
    "csv": "csv:PATH",
    "parquet": "parquet:PATH",
    "folder": "folder:PATH",
    "tfds": "tfds:NAME",
    "hf": "hf:NAME",
}


def load_dataset(source: str, *, num_examples: int = 0, data_dir: str = "", reread: bool = False) -> Dataset:
    """Load a data set by name; `$VARIABLES` and `~` in paths expand.

    Args:
        source: one of
            `digits`: scikit-learn's 1,797 digits, uint8 `[1797, 8, 8, 1]`, without a held-out set;
            `npz:PATH`: arrays x, y and optionally x_test, y_test, as `Dataset.from_arrays` takes them, and words class_names, files;
            `csv:PATH[,label=NAME][,standardise]...`, `parquet:PATH...`: a table with named columns, see `lira.data.tables`;
            `folder:PATH`: images `train/<class>/*` and optionally `test/<class>/*`, all of one size;
            `tfds:NAME[/CONFIG][:VERSION]`: splits `train` and optionally `test` of a tensorflow-datasets data
            set. One that is prepared already is read without TensorFlow; otherwise it is prepared, if possible;
            `hf:NAME[,config=NAME][,split=NAME]...`: a data set of HuggingFace, see `lira.data.huggingface`.
        num_examples: size of a class-balanced subset of the pool, 0 for all of it. No randomness: the first of
            every class, then the second of every class, ... until enough, in their original order. The held-out
            set stays whole.
        data_dir: for `tfds:` only, the directory of prepared data sets; TFDS's own by default.
        reread: whether a file has changed its bytes alone tell, and not its size, times and inode; `lira run` asks for
            it where it makes a directory.

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
                dataset = _load_npz(expand(place))
            case "csv" | "parquet" if place:
                dataset = load_table(source)
            case "hf" if place:
                dataset = load_hub(source)
            case "folder" if place:
                dataset = load_folder(expand(place), reread=reread)
            case "tfds" if place:
                dataset = load_tfds(place, expand(data_dir), reread=reread)
            case _:
                form = _FORMS[difflib.get_close_matches(kind, _FORMS, n=1, cutoff=0)[0]]
                raise DataError(
                    f"unknown data set {source!r}, nearest is {form}: use {', '.join(_FORMS.values())}"
                )
    except OSError as error:
        raise DataError(f"{source} cannot be read ({one_line(error)}): check the path") from error
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
    files = tuple(dataset.files[i] for i in chosen) if dataset.files else ()
    return dataclasses.replace(dataset, x=dataset.x[chosen], y=y[chosen], files=files)


# ---- digits and npz ----


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits  # slow to import, and needed by this source alone

    x, y = load_digits(return_X_y=True)
    # Grey levels 0..16 spread over 0..240: exact, and in the range that images have.
    return Dataset.from_arrays(
        (x * 15).astype(np.uint8).reshape(-1, 8, 8, 1), y, name="digits", class_names="0123456789"
    )


def _load_npz(path: str) -> Dataset:
    arrays: dict[str, Any] = load_archive(path, (*ARRAYS, *NAMES))
    for key in NAMES:
        if key in arrays and (arrays[key].dtype.kind != "U" or arrays[key].ndim != 1):
            raise DataError(
                f"{path}: {key} must be words, [{'classes' if key == 'class_names' else 'examples'}]; "
                f"got {arrays[key].dtype} of shape {arrays[key].shape}: use np.array([...], dtype=str)"
            )
        arrays[key] = arrays[key].tolist() if key in arrays else ()
    return Dataset.from_arrays(**arrays, name=f"npz:{os.path.abspath(path)}")


def load_archive(path: str, names: Sequence[str] = ARRAYS) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name, x and y among them.

    Raises:
        DataError: it is none, or holds other arrays than those of such names.
        OSError: it cannot be read.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise DataError(f"{path} cannot be read as an .npz file (it is no regular file): name another")
    try:
        with open(path, "rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            if unknown := sorted(set(archive.files) - set(names)):
                raise DataError(f"{path} holds {', '.join(unknown)}: the valid names are {', '.join(names)}")
            if missing := [key for key in ("x", "y") if key not in archive.files]:
                raise DataError(f"{path} lacks {' and '.join(missing)}: use np.savez(PATH, x=..., y=...)")
            return {key: archive[key] for key in archive.files}
    except DataError:
        raise
    except (
        Exception
    ) as error:  # Whatever a broken header, compression or encryption leads NumPy and zipfile to.
        raise DataError(
            f"{path} cannot be read as an .npz file ({one_line(error)}): save it with np.savez(PATH, x=..., y=...)"
        ) from error
