"""Image folders, a directory a class, decoded on all cores."""

import dataclasses
import os
import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from lira.data.cache import cached, what_changes
from lira.data.dataset import DataError, Dataset
from lira.data.paths import one_line

__all__ = ["load_folder"]

_EXTENSIONS = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Directories that nobody made: of archives packed by macOS, of Synology's servers.
_OF_ARCHIVES = ("__MACOSX", "@eaDir")
# Formats of which one file may hold several images; a camera's MPO holds a preview behind the photo.
_OF_FRAMES = ("GIF", "PNG", "TIFF", "WEBP")


# ---- image folders ----


class _File(NamedTuple):
    """One image: its path below the folder, its class, and what tells that it has changed."""

    name: str
    label: int
    changes: tuple[int, ...]


def load_folder(path: str, *, reread: bool = False) -> Dataset:
    root = Path(os.path.abspath(path))
    if not (root / "train").is_dir():
        raise DataError(f"{root} has no directory train: {_what_to_move(root)}")
    classes = _visible(root / "train")
    if not classes:
        raise DataError(f"{root / 'train'} has no class directories: expected are train/<class>/*")
    train, left_out = _list_images(root, "train", classes)
    test = []
    if empty := set(range(len(classes))) - {file.label for file in train}:
        place = root / "train" / classes[min(empty)]
        there = _counted(_kind(entry) for entry in os.scandir(place) if entry.name[0] != ".")
        raise DataError(
            f"{place} has no image{f', but {there}' if there else ''}: add some, convert them, as by ImageMagick's mogrify "
            f"-format png FILES, or remove it; images end in {' '.join(_EXTENSIONS)}"
        )
    if len(classes) < 2:
        raise DataError(
            f"{root / 'train'} has the directory of one class, {classes[0]}, and a data set needs at least 2 classes"
        )
    beside = [name for name in _visible(root) if name not in ("train", "test")]
    if others := [name for name in beside if set(classes) & set(_visible(root / name))]:
        warnings.warn(
            f"{root}: left out {', '.join(others)}: examples are in train, and those held out in test",
            stacklevel=3,
        )
    if (root / "test").is_dir():
        test, more = _list_images(root, "test", classes)
        left_out += more
    if left_out:
        warnings.warn(
            f"{root}: left out {_counted(left_out)}, taken {_counted(_extension(file.name) for file in train + test)}: "
            f"images end in {' '.join(_EXTENSIONS)}",
            stacklevel=3,
        )
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


def _what_to_move(root: Path) -> str:
    """What is expected in a folder without train, by what is there."""
    there = _visible(root) if root.is_dir() else []
    expected = "expected are train/<class>/* and test/<class>/*"
    if "train" in [name.lower() for name in there]:
        return f"{expected}, in small letters"
    if there and "test" not in there:
        return f"{expected}; if {', '.join(there[:3])}{' ...' * (len(there) > 3)} are its classes, move them into {root / 'train'}"
    return expected


def _visible(directory: Path) -> list[str]:
    """The names of the directories in `directory`, sorted, without hidden ones and what archives and servers add."""
    names = (entry.name for entry in os.scandir(directory) if entry.is_dir())
    return sorted(name for name in names if name[0] != "." and name not in _OF_ARCHIVES)


def _list_images(root: Path, split: str, classes: list[str]) -> tuple[list[_File], list[str]]:
    """The images of one split, by class name and file name, and the extensions of what is left out; without hidden files."""
    files = []
    loose = (_extension(each.name) for each in os.scandir(root / split) if each.is_file())
    left_out = [f"{extension} beside the classes" for extension in loose if extension in _EXTENSIONS]
    for name in _visible(root / split):
        if name not in classes:
            raise DataError(f"{root / split / name} is not a class of train/: rename or remove it")
        for entry in sorted(os.scandir(root / split / name), key=lambda entry: entry.name):
            if entry.name[0] == ".":
                continue
            if _extension(entry.name) not in _EXTENSIONS:
                left_out.append(_kind(entry))
                continue
            stat = entry.stat()
            if not entry.is_file():
                raise DataError(f"{root / split / name / entry.name} is no regular file: remove it")
            place = f"{split}/{name}/{entry.name}"
            files.append(_File(place, classes.index(name), what_changes(stat)))
    return files, left_out


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "no extension"


def _kind(entry: os.DirEntry[str]) -> str:
    return "directory" if entry.is_dir() else _extension(entry.name)


def _counted(extensions: Iterable[str]) -> str:
    """`5 .gif, 1 .txt`, the most first."""
    return ", ".join(f"{count:,} {extension}" for extension, count in Counter(extensions).most_common())


def _read_folder(root: Path, train: list[_File], test: list[_File], name: str) -> Dataset:
    pixels = _decode_images([root / file.name for file in train + test])
    labels = np.array([file.label for file in train + test], dtype=np.int32)
    parts = {"x": pixels[: len(train)], "y": labels[: len(train)]}
    if test:
        parts |= {"x_test": pixels[len(train) :], "y_test": labels[len(train) :]}
    return Dataset.from_arrays(**parts, name=name)


def _decode_images(paths: list[Path]) -> np.ndarray:
    """Decode images of one size to `[N, H, W, C]`: C = 1 if all are grayscale, else 3; uint8, or uint16 if all have 16 bits."""
    first = _decode_image(paths[0])
    height, width = first.shape[:2]
    deep = first.dtype == np.uint16
    pixels = np.empty((len(paths), height, width, 1 if deep else 3), first.dtype)

    def decode_block(start: int) -> bool:
        all_gray = True
        for row in range(start, min(start + 256, len(paths))):
            image = _decode_image(paths[row])
            if image.shape[:2] != (height, width):
                raise DataError(
                    f"images differ in size: {paths[0]} is {width} x {height} and {paths[row]} is "
                    f"{image.shape[1]} x {image.shape[0]}: resize or crop them to one size"
                )
            if image.dtype != first.dtype:
                one, other = paths[row], paths[0]
                one, other = (other, one) if deep else (one, other)
                raise DataError(f"{one} has 16 bits a channel and {other} 8: convert them to one depth")
            all_gray &= image.shape[2] == 1
            pixels[row] = image
        return all_gray

    # Pillow lets go of the interpreter's lock while it decodes; blocks keep the cost of a task small.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        gray = all(list(pool.map(decode_block, range(0, len(paths), 256))))
    return pixels[..., :1].copy() if gray and not deep else pixels


def _decode_image(path: Path) -> np.ndarray:
    """Decode one image as it is shown: grayscale to uint8 or uint16 `[H, W, 1]`, colours to uint8 `[H, W, 3]`, upright.

    Opaque alpha is dropped.
    """
    try:
        with Image.open(path) as image:
            mode, frames = image.mode, getattr(image, "n_frames", 1) if image.format in _OF_FRAMES else 1
            # Pillow opens a PGM of 16 bits as if it had 32.
            if deep := mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
                ImageOps.exif_transpose(image, in_place=True)
                pixels = np.asarray(image).astype(np.uint16)
            elif _has_deep_colours(image):
                pixels = None
            else:
                # Cameras and phones store how they were held, and not the image turned.
                ImageOps.exif_transpose(image, in_place=True)
                pixels = np.asarray(image.convert("L" if mode in ("1", "L", "LA") else "RGB"))
            # What is transparent has a colour beneath, black more often than not, that nobody sees.
            if pixels is None:
                opaque = True
            elif deep:
                opaque = image.info.get("transparency", -1) not in pixels
            else:
                opaque = not image.has_transparency_data or _is_opaque(image)
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to.
        raise DataError(
            f"{path} cannot be read as an image ({one_line(error)}): replace or remove it"
        ) from error
    if frames > 1:
        raise DataError(
            f"{path} holds {frames} images, of which the first would be read: give each a file of its own, or the first alone"
        )
    if pixels is None:
        raise DataError(
            f"{path} has colours of 16 bits a channel, of which 8 would be read: convert it to 8, as by ImageMagick's mogrify "
            f"-depth 8 FILES, or pass arrays of uint16 by npz:"
        )
    if not opaque:
        raise DataError(
            f"{path} has transparent pixels, and what is behind them is not known: flatten it, as by ImageMagick's "
            f"mogrify -background white -alpha remove -alpha off FILES"
        )
    if mode[0] in "IF" and not deep:  # Pillow would clip these, not scale them.
        raise DataError(
            f"{path} has 32 bits a channel (mode {mode}): convert it to 8 or 16, or pass arrays by npz:"
        )
    return pixels.reshape(*pixels.shape[:2], -1)


def _has_deep_colours(image: Image.Image) -> bool:
    """Whether Pillow, whose colours have 8 bits, would drop half of them: by what it is about to decode, before it does."""
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any(isinstance(each, str) and ";16" in each for each in arguments):
            return True
        if image.format == "PPM" and len(arguments) == 2 and arguments[1] > 255:  # (mode, largest value)
            return True
    return False


def _is_opaque(image: Image.Image) -> bool:
    return image.convert("RGBA").getchannel("A").getextrema()[0] == 255
