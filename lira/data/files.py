"""Arrays in anyone's files: npy, npz, Zarr and CSV, told apart by name; nothing is ever unpickled."""

import os
import zipfile
from pathlib import Path
from typing import Protocol

import numpy as np
import tensorstore as ts

__all__ = ["FileError", "Rows", "read_array"]


class FileError(ValueError):
    """A file that holds no usable array; the message names it."""


class Rows(Protocol):
    """An array that is read row by row: `np.asarray(array[i])`. A NumPy array, a memory map, a Zarr array."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, index: int, /) -> object: ...


def read_array(place: str | os.PathLike[str]) -> Rows:
    """Open the array of numbers that a file holds.

    `*.npy` is mapped and a Zarr directory (version 2 or 3) opened, so both are read row by row as they are used.
    `*.npz` is read whole: its one array, or the one named by `FILE.npz:NAME`. `*.csv` is read whole: commas, a line a
    row, an optional header, numbers or true/false; a single column is one-dimensional.

    Raises:
        FileError: the file is missing, broken, of another kind, or does not hold exactly one array of numbers.
    """
    path, name = Path(place).expanduser(), ""
    if not path.exists() and ".npz:" in str(path):
        file, _, name = str(path).rpartition(":")
        path = Path(file)
    if not path.exists():
        raise FileError(f"{path}: there is no such file")
    try:
        array = _open(path, name)
    except FileError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise FileError(f"{path}: cannot be read: {str(error).splitlines()[0].split(' [', 1)[0]}") from error
    dtype = array.dtype if isinstance(array, np.ndarray) else array.dtype.numpy_dtype
    if dtype.kind not in "buif":
        raise FileError(f"{place}: must hold numbers; its dtype is {dtype}")
    if 0 in array.shape:
        raise FileError(f"{place}: is empty: its shape is {tuple(array.shape)}")
    return array


def _open(path: Path, name: str) -> np.ndarray | ts.TensorStore:
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            if not name and len(archive.files) != 1:
                raise FileError(
                    f"{path}: holds {', '.join(archive.files)}: name one, {path}:{archive.files[0]}"
                )
            if name and name not in archive.files:
                raise FileError(f"{path}: holds no array {name!r}, but {', '.join(archive.files)}")
            return archive[name or archive.files[0]]
    if path.suffix == ".csv":
        return _read_csv(path)
    for marker, driver in (("zarr.json", "zarr3"), (".zarray", "zarr")):
        if (path / marker).exists():
            spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(path)}}
            return ts.open(spec, open=True).result()
    raise FileError(f"{path}: is neither *.npy, *.npz, *.csv nor a Zarr array")


def _read_csv(path: Path) -> np.ndarray:
    with open(path, encoding="utf-8-sig") as file:
        first = file.readline()
    if not first.strip():
        raise FileError(f"{path}: is empty, or begins with an empty line")
    header = not all(_is_number(cell) for cell in first.split(","))
    options = {"delimiter": ",", "skiprows": int(header), "ndmin": 2, "encoding": "utf-8-sig"}
    try:
        table = np.loadtxt(path, **options)
    except ValueError:
        words = np.char.lower(np.char.strip(np.loadtxt(path, dtype=str, **options)))
        if not np.isin(words, ("true", "false")).all():
            raise
        table = words == "true"
    return table[:, 0] if table.shape[1] == 1 else table


def _is_number(cell: str) -> bool:
    cell = cell.strip()
    if cell.lower() in ("true", "false"):
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return True
