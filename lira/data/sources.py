"""Where data sets come from: digits, archives, tables, image folders, tensorflow-datasets, HuggingFace, by one name."""

import dataclasses
import difflib
import os
import re
import warnings
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
# What others call the arrays of an archive, in small letters and without train or test.
USUAL = {
    "x": ("x", "data", "features", "images", "inputs"),
    "y": ("y", "label", "labels", "target", "targets"),
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
    if not isinstance(source, str):
        raise DataError(
            f"a data set is named by a string, such as npz:PATH; got {source!r}: arrays are lira.Dataset.from_arrays(x, y)"
        )
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
                raise DataError(
                    f"unknown data set {source!r}, nearest is {_nearest_form(source)}: use {', '.join(_FORMS.values())}"
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
    """The arrays of an .npz file by name, x and y among them; also where they are called X_train, labels, test_images.

    Raises:
        DataError: it is none, or holds two arrays of one such name.
        OSError: it cannot be read.

    Warns:
        UserWarning: naming arrays that are none of these.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise DataError(f"{path} cannot be read as an .npz file (it is no regular file): name another")
    try:
        with open(path, "rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            found = _found(path, archive.files, names)
            return {name: _array(path, archive, theirs) for name, theirs in found.items()}
    except DataError:
        raise
    except (
        Exception
    ) as error:  # Whatever a broken header, compression or encryption leads NumPy and zipfile to.
        raise DataError(
            f"{path} cannot be read as an .npz file ({one_line(error)}): save it with np.savez(PATH, x=..., y=...)"
        ) from error


def _found(path: str, there: list[str], names: Sequence[str]) -> dict[str, str]:
    """What an archive calls each of its arrays that are taken."""
    found: dict[str, str] = {}
    for theirs in there:
        name = theirs if theirs in names else _plain(theirs)
        if name not in names:
            continue
        if name in found:
            raise DataError(
                f"{path} holds both {found[name]} and {theirs}, which are {name}: leave one out; the names are "
                f"{', '.join(names)}"
            )
        found[name] = theirs
    if missing := [name for name in ("x", "y") if name not in found]:
        raise DataError(
            f"{path} lacks {' and '.join(missing)}, and holds {', '.join(there) or 'nothing'}: use np.savez(PATH, x=..., y=...)"
        )
    if others := sorted(set(there) - set(found.values())):
        warnings.warn(f"{path}: left out {', '.join(others)}: the names are {', '.join(names)}", stacklevel=4)
    return found


def _plain(name: str) -> str:
    """What an array of a usual name is: x_test of test_images; nothing of others."""
    words = re.split(r"[\W_]+", name.lower())
    parts = [word for word in words if word in ("train", "test")]
    kinds = [kind for word in words for kind, known in USUAL.items() if word in known]
    if len(parts) > 1 or len(kinds) != 1 or len(words) != len(parts) + 1:
        return ""
    return f"{kinds[0]}_test" if parts == ["test"] else kinds[0]


def _array(path: str, archive: Any, name: str) -> np.ndarray:
    try:
        return archive[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise DataError(
            f"{path}: {name} holds objects of Python, which are not read: save numbers, as by {name}.astype(float), or words, as "
            f"by {name}.astype(str)"
        ) from error


def _nearest_form(source: str) -> str:
    """What an unknown source may be meant as."""
    suffix = os.path.splitext(source)[1].lower().lstrip(".")
    if suffix in ("npz", "csv", "parquet"):
        return f"{suffix}:{source}"
    if os.path.isdir(source):
        return f"folder:{source}"
    if source.lower().replace("-", "") in (
        "cifar10",
        "cifar100",
        "mnist",
        "fashionmnist",
        "svhn",
        "imagenet",
    ):
        return f"tfds:{source} or hf:{source}"
    return _FORMS[difflib.get_close_matches(source.partition(":")[0], _FORMS, n=1, cutoff=0)[0]]
