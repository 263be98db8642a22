"""Arrays in anyone's files: npy, npz, Zarr and CSV, told apart by name; nothing is ever unpickled."""

import csv
import dataclasses
import math
import os
import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorstore as ts

from lira.data.delimited import SEPARATORS
from lira.data.paths import one_line

__all__ = ["FileError", "Rows", "read_array"]


# Files of numbers as text.
_TEXT = (".csv", ".tsv", ".txt")
# What to do with files of other kinds.
_HINTS = {
    ".pt": "np.save(FILE, torch.load(...).float().numpy(force=True))",
    ".pth": "np.save(FILE, torch.load(...).float().numpy(force=True))",
    ".pkl": "np.save(FILE, np.asarray(pickle.load(...)))",
    ".pickle": "np.save(FILE, np.asarray(pickle.load(...)))",
    ".parquet": "np.save(FILE, pandas.read_parquet(...).to_numpy())",
    ".xlsx": "np.save(FILE, pandas.read_excel(...).to_numpy())",
    ".json": "np.save(FILE, np.array(json.load(...)))",
    ".h5": "np.save(FILE, h5py.File(...)[NAME])",
    ".mat": "np.save(FILE, scipy.io.loadmat(...)[NAME])",
}
# TensorStore's words for a chunk that is not there.
_MISSING = re.compile(r"(chunk \{.*) is missing")


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
    `*.npz` is read whole: its one array, or the one named by `FILE.npz:NAME`. `*.csv`, `*.tsv` and `*.txt` are read whole:
    cells apart by commas, semicolons, tabs, bars or blanks, a line a row, an optional header, numbers or true/false, quoted or not; a single column is one-dimensional. A header is a
    first line that holds a word, or pandas' 0,1,2,... of three columns or more; the column of pandas' index is left out.

    Raises:
        FileError: the file is missing, broken, of another kind, or does not hold exactly one array of numbers.
    """
    try:
        path, name = Path(place).expanduser(), ""
    except RuntimeError as error:
        raise FileError(f"{place}: there is no such home directory: spell the path out") from error
    if not path.exists() and ".npz:" in str(path):
        file, _, name = str(path).rpartition(":")
        path = Path(file)
    if not path.exists():
        raise FileError(f"{path}: there is no such file")
    if not (path.is_file() or path.is_dir()):
        raise FileError(f"{path}: is no regular file")
    try:
        array = _open(path, name)
    except FileError:
        raise
    except (
        Exception
    ) as error:  # whatever a broken header, compression or encryption leads NumPy and zipfile to
        if "Python objects" in str(error) or "allow_pickle" in str(error):
            raise FileError(
                f"{path}: cannot be read: it holds objects of Python, as of rows of different lengths: save one array of numbers"
            ) from error
        raise FileError(f"{path}: cannot be read: {one_line(error).split(' [', 1)[0]}") from error
    if (
        array.dtype.kind in "US"
        and np.isin(words := np.char.lower(np.asarray(array)), ("true", "false")).all()
    ):
        array = words == "true"
    if array.dtype.kind not in "buif":
        raise FileError(
            f"{place}: must hold numbers; its dtype is {array.dtype}: save numbers, or true and false, as by np.save(FILE, a == ...)"
        )
    if 0 in array.shape:
        raise FileError(f"{place}: is empty: its shape is {tuple(array.shape)}")
    return array


@dataclasses.dataclass(frozen=True, eq=False)
class _Zarr:
    """A Zarr array, read as it is indexed; TensorStore ends the process where memory does not suffice."""

    path: Path
    store: ts.TensorStore

    @property
    def shape(self) -> tuple[int, ...]:
        return self.store.shape

    @property
    def dtype(self) -> np.dtype:
        return self.store.dtype.numpy_dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._read(self.store[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._read(self.store).astype(dtype or self.dtype, copy=False)

    def _read(self, part: ts.TensorStore) -> np.ndarray:
        # Chunks are decoded whole.
        for shape in (part.shape, self.store.chunk_layout.read_chunk.shape or ()):
            if (needed := math.prod(n or 1 for n in shape) * self.dtype.itemsize) > _memory():
                raise FileError(
                    f"{self.path}: says that {list(shape)} of {self.dtype} are to be read at once, {needed / 1e9:,.0f} GB: "
                    f"more than this machine's memory"
                )
        try:
            return np.asarray(part.read().result())
        except ValueError as error:
            if missing := _MISSING.search(str(error)):
                raise FileError(
                    f"{self.path}: {missing[1]} is missing. Lost, or left out as nothing but the fill value "
                    f"(zarr's write_empty_chunks=False): the two look alike, so restore it, or write the array with "
                    f"write_empty_chunks=True"
                ) from error
            raise FileError(f"{self.path}: cannot be read: {one_line(error).split(' [', 1)[0]}") from error


def _memory() -> int:
    """Bytes of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _open(path: Path, name: str) -> np.ndarray | _Zarr:
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
    if path.suffix in _TEXT:
        return _read_csv(path)
    for marker, driver in (("zarr.json", "zarr3"), (".zarray", "zarr")):
        if (path / marker).is_file():
            # TensorStore takes no "..". Lost chunks must not be read as zeros.
            kvstore = {"driver": "file", "path": str(path.resolve())}
            spec = {"driver": driver, "kvstore": kvstore, "fill_missing_data_reads": False}
            return _Zarr(path, ts.open(spec, open=True).result())
    hint = f": {_HINTS[path.suffix]} makes one of it" if path.suffix in _HINTS else ""
    raise FileError(f"{path}: is neither *.npy, *.npz, *.csv nor a Zarr array{hint}")


def _read_csv(path: Path) -> np.ndarray:
    with open(path, encoding="utf-8-sig", newline="") as file:
        first_line = file.readline()
        # Commas beside any of the others are decimal ones.
        separator = next((each for each in SEPARATORS[::-1] if each in first_line), ",")
        if path.suffix == ".txt" and not any(each in first_line for each in SEPARATORS):
            separator = " "  # as np.savetxt writes
        file.seek(0)
        lines = csv.reader(file, delimiter=separator)
        first, second = ([cell.strip() for cell in next(lines, [])] for _ in range(2))
    if not any(first):
        raise FileError(f"{path}: is empty, or begins with an empty line")
    numbers = [str(column) for column in range(len(first))]
    # The index that pandas writes has no name, or this one after another reading.
    indexed = len(first) > 1 and (
        first[0] == "Unnamed: 0" or (not first[0] and (first[1:] == numbers[:-1] or _has_word(first)))
    )
    # Two columns 0,1 may be memberships; of a single line there is nothing that it could be the header of.
    header = indexed or _has_word(first) or (first == numbers and len(first) > 2 and any(second))
    options = {
        "delimiter": None if separator == " " else separator,
        "skiprows": int(header),
        "ndmin": 2,
        "encoding": "utf-8-sig",
        "quotechar": '"',
    }
    try:
        table = np.loadtxt(path, **options)[:, int(indexed) :]
    except ValueError:
        table = _of_words(np.loadtxt(path, dtype=str, **options), path, header, indexed)
    return table[:, 0] if table.shape[1] == 1 else table


def _of_words(cells: np.ndarray, path: Path, header: bool, indexed: bool) -> np.ndarray:
    """A table whose cells are not all numbers: true or false, or numbers beside pandas' index."""
    words = np.char.lower(np.char.strip(cells[:, int(indexed) :]))
    for word in words.ravel()[:1].tolist():
        if "," in word:
            raise FileError(
                f"{path}: holds {word!r}: write numbers with a point, 0.5, as by to_csv(FILE, decimal='.')"
            )
    if (blank := words == "").any():
        row, column = np.argwhere(blank)[0] + 1
        raise FileError(
            f"{path}: the cell in row {row}{' below the header' * header}, column {column + indexed} is blank: fill it in"
        )
    return words == "true" if np.isin(words, ("true", "false")).all() else words.astype(np.float64)


def _has_word(cells: list[str]) -> bool:
    return not all(_is_number(cell) for cell in cells if cell)


def _is_number(cell: str) -> bool:
    cell = cell.strip()
    if cell.lower() in ("true", "false"):
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return True
