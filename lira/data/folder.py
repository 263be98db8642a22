"""Image folders, a directory a class, decoded on all cores."""

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lira.data.cache import cached, what_changes
from lira.data.dataset import DataError, Dataset
from lira.data.paths import one_line

__all__ = ["load_folder"]

_EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


# ---- image folders ----


class _File(NamedTuple):
    """One image: its path below the folder, its class, and what tells that it has changed."""

    name: str
    label: int
    changes: tuple[int, ...]


def load_folder(path: str, *, reread: bool = False) -> Dataset:
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
    dataset = cached(
        name,
        ["folder", str(root), train, test],
        [root / file.name for file in train + test],
        lambda: _read_folder(root, train, test, name),
        reread=reread,
    )
    files = tuple(file.name for file in train)
    return dataclasses.replace(dataset, class_names=tuple(classes), files=files)


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
                if not entry.is_file():
                    raise DataError(f"{root / split / name / entry.name} is no regular file: remove it")
                place = f"{split}/{name}/{entry.name}"
                files.append(_File(place, classes.index(name), what_changes(stat)))
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
            f"{path} cannot be read as an image ({one_line(error)}): replace or remove it"
        ) from error
    if mode[0] in "IF":  # Pillow would clip these, not scale them.
        raise DataError(
            f"{path} has more than 8 bits a channel (mode {mode}): convert it, or pass arrays by npz:"
        )
    return pixels.reshape(*pixels.shape[:2], -1)
