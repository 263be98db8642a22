"""Data sets of HuggingFace, from the hub or from disk: images, arrays, or tables with named columns.

    hf:PLACE[,OPTION...]      a directory of `save_to_disk` or of data files, or a name of the hub

    config=NAME, split=NAME     which part of it; the split "train" by default
    test=NAME                   the held-out split; "test" by default, where there is one

and those of tables (`lira.data.tables`): label, features, drop, categorical, standardise.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from lira.data.dataset import DataError, Dataset
from lira.data.paths import expand, one_line
from lira.data.tables import LABELS, NESTED, Choice, TableSource, parse_source, table_dataset

__all__ = ["absolute_hub_source", "load_hub"]

OPTIONS = ("config", "split", "test")
# How images are decoded, by Pillow's mode; others would be clipped, or lose what is transparent.
MODES = {"1": "L", "L": "L", "RGB": "RGB", "P": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}


def absolute_hub_source(source: str) -> str:
    """The source with `$VARIABLES` and `~` expanded, and the path made absolute where it is one of this machine."""
    parsed = parse_source(source, OPTIONS)
    place = expand(parsed.place)
    return str(dataclasses.replace(parsed, place=os.path.abspath(place) if os.path.exists(place) else place))


def load_hub(source: str) -> Dataset:
    """Load an hf: source.

    Raises:
        DataError: `datasets` is not installed, there is no such data set, split or column, or an example is unfit.
    """
    name = absolute_hub_source(source)
    parsed = parse_source(name, OPTIONS)
    splits = _splits(parsed)
    first = parsed.others.get(
        "split", "train" if "train" in splits or len(splits) > 1 else next(iter(splits))
    )
    held_out = parsed.others.get("test", "test" if "test" in splits and first != "test" else "")
    chosen = [each for each in (first, held_out) if each]
    for each in chosen:
        if each not in splits:
            raise DataError(
                f"{name} has no split {each!r}, but {', '.join(splits)}: name one as split= or test="
            )
    parts = [splits[each] for each in chosen]
    files = [f"hf:{parsed.place} {each}" for each in chosen]
    label = parsed.choice.label or next((each for each in LABELS if each in parts[0].features), "")
    choice = dataclasses.replace(parsed.choice, label=label)
    dataset = _examples(parts, files, choice, name)
    names = getattr(parts[0].features.get(label), "names", None)
    if names:
        present = np.unique(_column(parts[0], label))
        dataset = dataclasses.replace(dataset, class_names=tuple(names[int(each)] for each in present))
    return dataset


def _splits(parsed: TableSource) -> dict[str, Any]:
    """All splits by name; of a data set that has none, one."""
    try:
        import datasets
    except ImportError as error:
        raise DataError('hf: needs datasets: pip install "lira[hf]"') from error
    place = Path(parsed.place)
    found: Any
    try:
        if any((place / each).is_file() for each in ("state.json", "dataset_dict.json")):
            found = datasets.load_from_disk(parsed.place)
        else:
            found = datasets.load_dataset(parsed.place, parsed.others.get("config"))
    except Exception as error:  # of the network, of the hub, or of whatever reads the files
        raise DataError(
            f"hf:{parsed.place} cannot be loaded ({type(error).__name__}: {one_line(error)}): check the name, or save it "
            f"with save_to_disk and name the directory"
        ) from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _examples(parts: list[Any], files: list[str], choice: Choice, name: str) -> Dataset:
    """Images where there is a column of them, arrays where that is the one feature, else a table."""
    kinds = parts[0].features
    chosen = [
        each
        for each in kinds
        if each in (choice.features or kinds) and each not in (*choice.drop, choice.label)
    ]
    images = [each for each in chosen if type(kinds[each]).__name__ == "Image"]
    arrays = [each for each in chosen if _is_nested(kinds[each])]
    whole = images or (arrays if len(chosen) == 1 else [])
    if len(images) > 1:
        raise DataError(f"{files[0]} has images in {', '.join(images)}: name one as features=NAME")
    tables = []
    for part in parts:
        columns = [each for each in part.features if each not in chosen or not whole]
        tables.append({each: _column(part, each) for each in columns})
    if not whole:
        return table_dataset(tables, files, choice, name, first_row=0)
    # The labels alone make a table; its feature, their position, is not looked at.
    rows = [
        {choice.label: table.get(choice.label), "x": np.arange(len(part))}
        for table, part in zip(tables, parts, strict=True)
    ]
    if not choice.label or choice.label not in kinds:
        raise DataError(
            f"{files[0]} has no column {choice.label or ', '.join(LABELS)!r}: name the label's as label=NAME of {', '.join(kinds)}"
        )
    labels = table_dataset(rows, files, Choice(label=choice.label), name, first_row=0)
    read = _images if images else _stacked
    x = [read(part, whole[0], file) for part, file in zip(parts, files, strict=True)]
    held_out = {"x_test": x[1], "y_test": labels.y_test} if len(x) > 1 else {}
    return Dataset.from_arrays(
        x[0], labels.y, name=name, num_classes=labels.num_classes, class_names=labels.class_names, **held_out
    )


def _is_nested(kind: Any) -> bool:
    return type(kind).__name__ not in ("Value", "ClassLabel", "Image")


def _column(part: Any, name: str) -> np.ndarray:
    """One column `[N]`: numbers or words."""
    kind = part.features[name]
    if _is_nested(kind) or type(kind).__name__ == "Image":
        return np.full(len(part), NESTED)
    return np.asarray(part.select_columns([name]).with_format("numpy")[:][name])


def _stacked(part: Any, name: str, file: str) -> np.ndarray:
    """Arrays of one shape, `[N, ...]`."""
    rows = part.select_columns([name]).with_format("numpy")[:][name]
    arrays = [np.asarray(each) for each in rows]
    for row, each in enumerate(arrays):
        if each.shape != arrays[0].shape or each.dtype == object:
            raise DataError(
                f"{file} row {row}, column {name!r} has shape {each.shape}, and row 0 {arrays[0].shape}: give all one shape"
            )
    return np.stack(arrays)


def _images(part: Any, name: str, file: str) -> np.ndarray:
    """Images of one size, uint8 `[N, H, W, C]`: C = 1 where all are grayscale, else 3."""
    pixels = []
    for row, example in enumerate(part.select_columns([name])):
        image = example[name]
        where = f"{file} row {row}, column {name!r}"
        if image is None:
            raise DataError(f"{where} is empty: leave the row out")
        if image.mode not in MODES or "transparency" in image.info:
            raise DataError(
                f"{where} has mode {image.mode}, more than 8 bits a channel or transparent: flatten or convert it first"
            )
        each = np.asarray(image.convert(MODES[image.mode]))
        pixels.append(each if each.ndim == 3 else each[..., None])
        if each.shape[:2] != pixels[0].shape[:2]:
            first, here = ("x".join(map(str, size.shape[1::-1])) for size in (pixels[0], each))
            raise DataError(f"{where} is {here} pixels, and row 0 {first}: resize or crop them to one size")
    widest = max(each.shape[2] for each in pixels)
    return np.stack([np.broadcast_to(each, (*each.shape[:2], widest)) for each in pixels])
