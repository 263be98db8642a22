"""Arrays on disk and on object stores: Zarr v3 that any reader opens."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from lira.store.claims import Claim
from lira.store.errors import RunError
from lira.store.files import content_of, is_no_file
from lira.store.objects import DAMAGE, StoreError, reason_of, unreadable
from lira.store.places import Place, kvstore_of, replacing

__all__ = [
    "BLOCK",
    "CHECKSUM",
    "StoredSignal",
    "create_array",
    "metadata_of",
    "open_array",
    "opened_array",
    "opening_array",
    "read_rows",
    "read_store",
    "write_array",
    "write_group",
    "write_rows",
    "written",
]

# Examples in a chunk: whole models are written, blocks of examples are read.
BLOCK = 8192
# Bytes of a chunk, at most, of what is written whole, as scores are: few objects, and a single row still reads little.
WHOLE = 1 << 22
# Rows of such chunks that are written at once.
AT_ONCE = 16
# The attribute of an array that tells whether its zarr.json is as it was written.
CHECKSUM = "checksum"


@dataclass(eq=False, repr=False)
class StoredSignal:
    """A stored array `[m, N, ...]` of some models, and of all or some examples, read in blocks of these: `signal[:, a:b]`.

    The last chunk of examples that was read is kept, so that small steps through it read it once; threads may read it at
    the same time.
    """

    store: ts.TensorStore
    rows: np.ndarray  # int [m]
    where: str
    examples: np.ndarray | None = None  # int [N], ascending; None: all
    _cached: tuple[int, np.ndarray] | None = None
    _looked: bool = False  # whether its files are known to be such

    def __repr__(self) -> str:
        """What it is, and how it is read."""
        return f"StoredSignal({list(self.shape)} in {self.where}; signal[:, a:b] or numpy.asarray(signal) reads it)"

    @property
    def shape(self) -> tuple[int, ...]:
        """`(m, N, ...)`."""
        _, N, *rest = self.store.shape
        return (len(self.rows), N if self.examples is None else len(self.examples), *rest)

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """Read `signal[models, examples]`, both slices."""
        models, examples = index
        start, stop, step = examples.indices(self.shape[1])
        if step < 1:
            raise IndexError(f"{self.where}: examples are read in ascending order; got {examples}")
        stop = max(start, stop)
        chunk = start // BLOCK
        begin, end = chunk * BLOCK, min((chunk + 1) * BLOCK, self.shape[1])
        if step != 1 or stop > end:
            return self._read(start, stop)[models, ::step]
        cached = self._cached  # another thread may keep another meanwhile
        if cached is None or cached[0] != chunk:
            self._cached = cached = None  # of a large pool as large as the next
            self._cached = cached = (chunk, self._read(begin, end))
        part = cached[1][models, start - begin : stop - begin]
        # A view of a few examples would hold all of their chunk for as long as they are held.
        return part if part.shape == cached[1].shape else part.copy()

    def take_models(self, rows: np.ndarray) -> "StoredSignal":
        """Some of these models, int `[k]`, which alone are then read."""
        return StoredSignal(self.store, self.rows[rows], self.where, self.examples)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """The whole array, in memory."""
        return self._read(0, self.shape[1]).astype(dtype or np.float32, copy=False)

    def _read(self, start: int, stop: int) -> np.ndarray:
        if not self._looked:
            _require_files(self.store)
            self._looked = True
        if self.examples is None:
            return _values(self.store[self.rows, start:stop], self.where)
        return _values(self.store.oindex[self.rows, self.examples[start:stop]], self.where)


def write_array(place: Place, values: np.ndarray, attributes: dict[str, Any]) -> None:
    """Write an array `[rows, N]`, float32, float64 or bool, as Zarr, whole or not at all, in place of what is there."""
    with replacing(place) as making:
        _fill(making, values, attributes)


def write_group(place: Place, arrays: Mapping[str, np.ndarray], attributes: dict[str, Any]) -> None:
    """Write arrays `[rows, N]`, float32, float64 or bool, as one Zarr group, whole or not at all, in place of what is there."""
    with replacing(place) as making:
        making.mkdir()
        for name, values in arrays.items():
            _fill(making / name, values, {})
        group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        (making / "zarr.json").write_text(json.dumps(group))


def _fill(place: Path, values: np.ndarray, attributes: dict[str, Any]) -> None:
    dtype = str(values.dtype) if values.dtype in (bool, np.float64) else "float32"
    (rows, examples), most = values.shape, WHOLE // np.dtype(dtype).itemsize
    chunk = (max(1, min(rows, most // examples)), min(examples, most))
    store = create_array(place, values.shape, dtype, chunk, attributes)
    # Some at a time, whole chunks each: TensorStore copies what it has to write.
    step = AT_ONCE * chunk[0]
    for part in (slice(first, min(first + step, rows)) for first in range(0, rows, step)):
        written(store[part].write(values[part]), str(place))


def write_rows(
    place: Place,
    stores: Mapping[str, ts.TensorStore],
    index: int,
    rows: Mapping[str, np.ndarray],
    claim: Claim | None,
) -> None:
    """Write row `index` of arrays below a place, by name, at once; on an object store under a claim, see `Claim.write_all`."""
    if claim is None or isinstance(place, Path):
        for name, write in [(name, stores[name][index].write(row)) for name, row in rows.items()]:
            written(write, f"{place}/{name}")
    else:
        chunks = ((name, _chunks(stores[name], index, row)) for name, row in rows.items())
        claim.write_all((place / name / key, chunk) for name, each in chunks for key, chunk in each.items())


def _chunks(store: ts.TensorStore, index: int, row: np.ndarray) -> dict[str, bytes]:
    """The objects that hold one row of an array, by name below its place."""
    context, memory = ts.Context(), {"driver": "memory"}
    spec = {**OPTIONS, "kvstore": memory, "metadata": store.spec().to_json()["metadata"]}
    ts.open(spec, create=True, context=context).result()[index].write(row).result()
    objects = ts.KvStore.open(memory, context=context).result()
    return {key.decode(): objects[key] for key in objects.list().result() if key != b"zarr.json"}


def read_rows(place: Place, rows: np.ndarray, attributes: dict[str, Any]) -> np.ndarray | None:
    """Rows of an array that `write_array` wrote with these attributes; None where it is absent, damaged or has others.

    Attributes that it has not, of an earlier version, are not known. It is derived from others, so that it can be made
    again. Another process may be replacing it.
    """

    def has_them() -> bool:
        try:
            stored = json.loads(content_of(place / "zarr.json"))["attributes"]
            return all(stored.get(name, value) == value for name, value in attributes.items())
        except StoreError:
            raise
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return False

    if not has_them():
        return None
    try:
        values = read_store(open_array(place)[rows], str(place))
    except StoreError:
        raise
    except (OSError, ValueError, IndexError):
        return None
    return values if has_them() else None


def read_store(store: ts.TensorStore, where: str) -> np.ndarray:
    """An array, or a part of one, in memory.

    Raises:
        RunError: it is damaged.
        UnreadableError: it cannot be read.
    """
    _require_files(store)
    return _values(store, where)


def _values(store: ts.TensorStore, where: str) -> np.ndarray:
    """`read_store` of files that are known to be such."""
    if 0 in store.shape:  # TensorStore would ask for a chunk all the same
        return np.empty(store.shape, store.dtype.numpy_dtype)
    try:
        return np.asarray(store.read().result())
    except ValueError as error:
        reason = reason_of(error)
        if not reason.startswith(DAMAGE):
            raise unreadable(where, f"cannot be read: {reason}") from error
        raise RunError(
            f"{where}: is damaged: {reason}; lira run makes it again, and where it cannot, restore it from a copy"
        ) from error


def _require_files(store: ts.TensorStore) -> None:
    """Raise UnreadableFileError where something of an array is no file: to read a FIFO might never end."""
    assert store.kvstore is not None  # as of every array on disk
    spec = store.kvstore.spec().to_json()
    if spec["driver"] == "file" and (found := _no_file(spec["path"], store.ndim + 1)):
        raise unreadable(found, "is no regular file; remove it")


def _no_file(directory: str, depth: int) -> str | None:
    """The first that is neither file nor directory, so many directories deep."""
    try:
        entries = list(os.scandir(directory))
    except OSError:  # reading says what there is to say
        return None
    for entry in entries:
        if os.path.isdir(entry.path):  # where a link leads to itself `entry.is_dir` raises
            if depth and (found := _no_file(entry.path, depth - 1)):
                return found
        elif is_no_file(entry.path):
            return entry.path
    return None


# Chunks equal to the fill value are stored too, and a missing one is an error: damage is seen.
OPTIONS = {"driver": "zarr3", "store_data_equal_to_fill_value": True, "fill_missing_data_reads": False}


def open_array(place: Place, *, fill_missing: bool = False) -> ts.TensorStore:
    """An array that is there.

    Raises:
        ValueError: it is not there, is no array, or what is known of it is not as it was written.
        UnreadableError: it cannot be read.
    """
    return opened_array(place, opening_array(place, fill_missing=fill_missing))


def opening_array(place: Place, *, fill_missing: bool = False) -> "ts.Future[ts.TensorStore]":
    """`open_array` without waiting: see `opened_array`."""
    if isinstance(place, Path) and is_no_file(there := place / "zarr.json"):
        raise unreadable(there, "is no regular file; remove it")
    spec = {**OPTIONS, "kvstore": kvstore_of(place), "fill_missing_data_reads": fill_missing}
    return ts.open(spec, open=True)


def opened_array(place: Place, opening: "ts.Future[ts.TensorStore]") -> ts.TensorStore:
    """What `opening_array` opens, with the errors of `open_array`."""
    try:
        store = opening.result()
    except ValueError as error:
        reason = reason_of(error)
        if not reason.startswith(DAMAGE):
            raise unreadable(place, f"cannot be read: {reason}") from error
        raise
    metadata = metadata_of(store)
    checksum = _checksum(metadata)
    if metadata["attributes"].get(CHECKSUM, checksum) != checksum:
        raise ValueError("zarr.json is not as it was written, by its checksum")
    return store


def metadata_of(store: ts.TensorStore) -> dict[str, Any]:
    """What an array's zarr.json says, as TensorStore understands it."""
    metadata = store.spec().to_json()["metadata"]
    return {**metadata, "attributes": metadata.get("attributes", {})}


def written(writing: "ts.Future[Any] | ts.WriteFutures", where: str) -> None:
    """Wait for what is being written.

    Raises:
        StoreError: it could not be; on a file system with the number that the system gives its reason.
    """
    try:
        writing.result()
    except ValueError as error:
        if number := re.search(r"os_error_code='(\d+)'", str(error)):
            raise StoreError(int(number[1]), os.strerror(int(number[1])), where) from error
        raise StoreError(f"{where}: cannot be written: {reason_of(error)}") from error


def create_array(
    place: Place, shape: tuple[int, ...], dtype: str, chunk: tuple[int, ...], attributes: dict[str, Any]
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
    spec = {"driver": "zarr3", "kvstore": kvstore_of(place), "metadata": metadata}
    written(ts.open(spec, create=True), str(place))
    return open_array(place)


def _checksum(metadata: dict[str, Any]) -> str:
    """Of what an array's zarr.json says, but for its number of rows, which grows."""
    attributes = {name: value for name, value in metadata["attributes"].items() if name != CHECKSUM}
    fields = [metadata[name] for name in ("data_type", "chunk_grid", "codecs", "fill_value")]
    content = json.dumps([metadata["shape"][1:], *fields, attributes], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
