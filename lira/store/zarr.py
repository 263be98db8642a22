"""Arrays on disk: Zarr v3 that any reader opens, directories and files that appear whole or not at all."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

__all__ = [
    "BLOCK",
    "CHECKSUM",
    "RunError",
    "StoredSignal",
    "TakenError",
    "WaitingWarning",
    "create_array",
    "directory_at",
    "is_free",
    "locked",
    "locked_model",
    "metadata_of",
    "new_directory",
    "open_array",
    "read_rows",
    "read_store",
    "write_array",
    "write_atomically",
    "write_group",
    "writing",
]

# Examples in a chunk: whole models are written, blocks of examples are read.
BLOCK = 8192
# Seconds to wait for another process that holds a directory, and until people are told.
PATIENCE, SILENCE = 60.0, 1.0
# Seconds after which nobody is at work any more on a file that was to be renamed.
ABANDONED = 3600.0
# The attribute of an array that tells whether its zarr.json is as it was written.
CHECKSUM = "checksum"
_models = threading.Lock()


class RunError(ValueError):
    """A run directory that cannot be used as asked; the message says what, where and what to do."""


class TakenError(RunError):
    """A directory that is there already, maybe since a moment ago."""


class WaitingWarning(UserWarning):
    """Another process is writing the directory."""


@dataclass(eq=False)
class StoredSignal:
    """A stored array `[m, N, ...]` of some models, and of all or some examples, read in blocks of these: `signal[:, a:b]`.

    The last chunk of examples that was read is kept, so that small steps through it read it once.
    """

    store: ts.TensorStore
    rows: np.ndarray  # int [m]
    where: str
    examples: np.ndarray | None = None  # int [N], ascending; None: all
    _cached: tuple[int, np.ndarray] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """`(m, N, ...)`."""
        _, N, *rest = self.store.shape
        return (len(self.rows), N if self.examples is None else len(self.examples), *rest)

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """Read `signal[models, examples]`, both slices."""
        models, examples = index
        start, stop, step = examples.indices(self.shape[1])
        chunk = start // BLOCK
        begin, end = chunk * BLOCK, min((chunk + 1) * BLOCK, self.shape[1])
        if step != 1 or stop > end:
            return self._read(start, stop)[models, ::step]
        if self._cached is None or self._cached[0] != chunk:
            self._cached = (chunk, self._read(begin, end))
        return self._cached[1][models, start - begin : max(stop, start) - begin]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """The whole array, in memory."""
        return self._read(0, self.shape[1]).astype(dtype or np.float32, copy=False)

    def _read(self, start: int, stop: int) -> np.ndarray:
        if self.examples is None:
            return read_store(self.store[self.rows, start:stop], self.where)
        return read_store(self.store.oindex[self.rows, self.examples[start:stop]], self.where)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: under another name, synced, then renamed."""
    making = _nobody_elses(path)
    try:
        with open(making, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(making, path)
    finally:
        making.unlink(missing_ok=True)


def _nobody_elses(path: Path) -> Path:
    """A hidden name beside `path` for what is to take its place; what others left there long ago is removed.

    Other processes may be at the same place, on other machines too.
    """
    name = f".{path.name}."
    for left in path.parent.glob(f"{glob.escape(name)}*.making"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    return path.parent / f"{name}{uuid.uuid4().hex}.making"


def directory_at(path: str | os.PathLike[str]) -> Path:
    """A directory that a user names, spelt in the one way that all else relies on: absolute, without `~`, `..` or links.

    Raises:
        RunError: there is no such home, or no array can be kept under such a name.
    """
    named = os.fspath(path)
    try:
        place = Path(named).expanduser().absolute()
    except RuntimeError as error:
        raise RunError(f"{named}: there is no such home directory: spell the path out") from error
    if ".." in place.parts or place.is_symlink():
        place = place.resolve()
    if "\\" in str(place) or not str(place).isprintable():
        raise RunError(
            f"{named!r}: arrays cannot be kept under a name with a backslash or what is no text; rename it"
        )
    return place


def is_free(path: Path) -> bool:
    """Whether a directory can be made there: there is nothing, or an empty directory."""
    if not path.exists():
        return True
    return path.is_dir() and all(_is_making(each.name) for each in path.iterdir())


def _is_making(name: str) -> bool:
    return name.startswith(".") and name.endswith(".making")


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Fill a directory beside its place and rename it at the end: it appears whole or not at all, and once.

    A mount point, or the current directory, cannot be replaced: the entries are renamed into it one after the other,
    directories first, which no other process can then put there, and config.toml last. A kill between two renames leaves
    a directory that is refused.

    Raises:
        TakenError: `path` exists and is not an empty directory, now or by the end.
        RunError: it cannot be written.
    """
    taken = TakenError(f"{path}: exists already; name a new or empty directory")
    if not is_free(path):
        raise taken
    with writing(path):
        stays = path.exists() and (path.is_mount() or path.samefile(os.curdir))
        path.parent.mkdir(parents=True, exist_ok=True)
        making = _nobody_elses(path / "new" if stays else path)
        making.mkdir()
        try:
            yield making
            if stays:
                for each in sorted(making.iterdir(), key=_comes_late):
                    os.rename(each, path / each.name)
            else:
                os.rename(making, path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise taken from error
            raise
        finally:
            shutil.rmtree(making, ignore_errors=True)


def _comes_late(entry: Path) -> tuple[bool, bool]:
    return not entry.is_dir(), entry.name == "config.toml"


def write_array(place: Path, values: np.ndarray, attributes: dict[str, Any]) -> None:
    """Write an array `[rows, N]`, float32, float64 or bool, as Zarr, whole or not at all, in place of what is there."""
    with _replacing(place) as making:
        _fill(making, values, attributes)


def write_group(place: Path, arrays: Mapping[str, np.ndarray], attributes: dict[str, Any]) -> None:
    """Write arrays `[rows, N]`, float32, float64 or bool, as one Zarr group, whole or not at all, in place of what is there."""
    with _replacing(place) as making:
        making.mkdir()
        for name, values in arrays.items():
            _fill(making / name, values, {})
        group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        (making / "zarr.json").write_text(json.dumps(group))


@contextlib.contextmanager
def _replacing(place: Path) -> Iterator[Path]:
    """Where to make what then takes the place of `place`."""
    with writing(place):
        making = _nobody_elses(place)
        try:
            yield making
            shutil.rmtree(place, ignore_errors=True)
            os.rename(making, place)
        finally:
            shutil.rmtree(making, ignore_errors=True)


def _fill(place: Path, values: np.ndarray, attributes: dict[str, Any]) -> None:
    dtype = str(values.dtype) if values.dtype in (bool, np.float64) else "float32"
    store = create_array(place, values.shape, dtype, (1, min(BLOCK, values.shape[1])), attributes)
    store.write(values).result()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write into one line that names the run."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a run directory for writing, against other processes; the lock dies with its owner.

    Raises:
        RunError: another process holds it for more than a minute, or nothing can be written there.

    Warns:
        WaitingWarning: another process holds it.
    """
    with writing(directory), open(directory / ".lock", "w") as file:
        began, told = time.monotonic(), False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                waited = time.monotonic() - began
                if waited > PATIENCE:
                    raise RunError(
                        f"{directory}: another process has been writing this run for {PATIENCE:.0f} s; wait for it or "
                        f"stop it"
                    ) from error
            if waited > SILENCE and not told:
                told = True
                warnings.warn(
                    f"{directory}: another process is writing this run: waiting for it",
                    WaitingWarning,
                    stacklevel=3,
                )
            time.sleep(0.05)
        yield


@contextlib.contextmanager
def locked_model(directory: Path, model: int) -> Iterator[None]:
    """Hold one model of a run for writing, against other processes and threads; the lock dies with its owner."""
    # A byte a model of one file. Threads of a process have such locks in common, so they take turns.
    with _models, writing(directory), open(directory / ".models", "ab") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 1, model)
        yield


def read_rows(place: Path, rows: np.ndarray, attributes: dict[str, Any]) -> np.ndarray | None:
    """Rows of an array that `write_array` wrote with these attributes; None where it is absent, damaged or has others.

    Attributes that it has not, of an earlier version, are not known. It is derived from others, so that it can be made again. Another process may be replacing it.
    """

    def has_them() -> bool:
        try:
            stored = json.loads((place / "zarr.json").read_text())["attributes"]
            return all(stored.get(name, value) == value for name, value in attributes.items())
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return False

    if not has_them():
        return None
    try:
        values = read_store(open_array(place)[rows], str(place))
    except (OSError, ValueError, IndexError):
        return None
    return values if has_them() else None


def read_store(store: ts.TensorStore, where: str) -> np.ndarray:
    if 0 in store.shape:  # TensorStore would ask for a chunk all the same
        return np.empty(store.shape, store.dtype.numpy_dtype)
    try:
        return np.asarray(store.read().result())
    except ValueError as error:
        reason = str(error).split(" [", 1)[0].splitlines()[0]
        raise RunError(
            f"{where}: is damaged: {reason}; lira run makes it again, and where it cannot, restore it from a copy"
        ) from error


def open_array(place: Path, *, fill_missing: bool = False) -> ts.TensorStore:
    """Open an array.

    Raises:
        ValueError: it is not there, is no array, or what is known of it is not as it was written.
    """
    store = ts.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(place)},
            # Chunks equal to the fill value are stored too, and a missing one is an error: damage is seen.
            "store_data_equal_to_fill_value": True,
            "fill_missing_data_reads": fill_missing,
        },
        open=True,
    ).result()
    metadata = metadata_of(store)
    checksum = _checksum(metadata)
    if metadata["attributes"].get(CHECKSUM, checksum) != checksum:
        raise ValueError("zarr.json is not as it was written, by its checksum")
    return store


def metadata_of(store: ts.TensorStore) -> dict[str, Any]:
    """What an array's zarr.json says, as TensorStore understands it."""
    metadata = store.spec().to_json()["metadata"]
    return {**metadata, "attributes": metadata.get("attributes", {})}


def create_array(
    place: Path, shape: tuple[int, ...], dtype: str, chunk: tuple[int, ...], attributes: dict[str, Any]
) -> ts.TensorStore:
    """Make an array, whose zarr.json has a checksum of itself; chunks that are there already are its own."""
    one_byte = np.dtype(dtype).itemsize == 1
    metadata: dict[str, Any] = {
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "codecs": [
            {"name": "bytes", **({} if one_byte else {"configuration": {"endian": "little"}})},
            {"name": "crc32c"},
        ],
        "fill_value": {"bool": False, "float32": "NaN", "float64": 0.0}.get(dtype, 0),
        "attributes": attributes,
    }
    metadata["attributes"] = {**attributes, CHECKSUM: _checksum(metadata)}
    ts.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(place)},
            "metadata": metadata,
        },
        create=True,
    ).result()
    return open_array(place)


def _checksum(metadata: dict[str, Any]) -> str:
    """Of what an array's zarr.json says, but for its number of rows, which grows."""
    attributes = {name: value for name, value in metadata["attributes"].items() if name != CHECKSUM}
    fields = [metadata[name] for name in ("data_type", "chunk_grid", "codecs", "fill_value")]
    content = json.dumps([metadata["shape"][1:], *fields, attributes], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
