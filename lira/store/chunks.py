"""The files that an array is kept in: one a chunk, of a size that is known, with the CRC-32C of the rest as its last four bytes.

So four bytes of each file tell whether it is there and of the right size, and together they are a fingerprint of the
array. Whether each checksum is that of its file, only reading the file tells.
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorstore as ts

from lira.store.files import is_no_file
from lira.store.objects import DAMAGE, UnreadableError, UnreadableFileError, reason_of, unreadable
from lira.store.places import Place
from lira.store.zarr import metadata_of, open_array

__all__ = ["chunk_faults", "chunk_keys", "chunk_shape", "fingerprint", "has_checksums", "stored_fingerprint"]

# Reads that are asked for at once.
ASKED = 4096


def has_checksums(store: ts.TensorStore) -> bool:
    """Whether an array's chunks are as they are written here: uncompressed, with a CRC-32C each."""
    return [each["name"] for each in metadata_of(store)["codecs"]] == ["bytes", "crc32c"]


def chunk_shape(store: ts.TensorStore) -> tuple[int, ...]:
    """The shape of an array's chunks, also of those that its end cuts."""
    return tuple(metadata_of(store)["chunk_grid"]["configuration"]["chunk_shape"])


def chunk_keys(store: ts.TensorStore, rows: Iterable[int] | None = None) -> list[str]:
    """The files of an array, below its directory, such as c/3/0; those of some rows, which are in chunks of their own."""
    counts = [-(-n // size) for n, size in zip(store.shape, chunk_shape(store), strict=True)]
    first = range(counts[0]) if rows is None else rows
    rest = [range(count) for count in counts[1:]]
    return ["/".join(["c", *map(str, index)]) for index in itertools.product(first, *rest)]


def chunk_faults(store: ts.TensorStore, keys: Sequence[str]) -> dict[str, str]:
    """By file what is wrong with it, as far as its size tells: "is missing", "is not of N bytes", or that it cannot be read.

    Of arrays without checksums, whose files are of any size, only what is no file.
    """
    faults = {key: "is no regular file" for key in _no_files(store, keys)}
    keys = [key for key in keys if key not in faults] if has_checksums(store) else []
    for key, end in zip(keys, _ends(store, keys), strict=True):
        if isinstance(end, UnreadableFileError):
            faults[key] = str(end).removeprefix(f"{_place(store)}/{key}: ")
        elif isinstance(end, UnreadableError):
            raise end
        elif end is None:
            faults[key] = "is missing"
        elif len(end) != 4:
            faults[key] = f"is not of {_size(store):,} bytes"
    return faults


def fingerprint(parts: Mapping[str, tuple[ts.TensorStore, Iterable[int] | None]]) -> str:
    """Of arrays by name, or of some rows of them, by the checksums of their chunks; empty where one is not whole.

    Arrays without checksums are told apart by their shapes alone.
    """
    whole = hashlib.sha256()
    for name, (store, rows) in parts.items():
        whole.update(f"{name} {store.dtype.name} {store.shape[1:]}".encode())
        if not has_checksums(store):
            continue
        keys = chunk_keys(store, rows)
        for key in _no_files(store, keys):
            raise unreadable(f"{_place(store)}/{key}", "is no regular file; remove it")
        for end in _ends(store, keys):
            if isinstance(end, UnreadableError):
                raise end
            if end is None or len(end) != 4:
                return ""
            whole.update(end)
    return whole.hexdigest()


def stored_fingerprint(directory: Place, place: str) -> str:
    """The `fingerprint` of a whole array at a place in a directory.

    Raises:
        ValueError: it cannot be opened.
    """
    return fingerprint({place: (open_array(directory / place), None)})


def _size(store: ts.TensorStore) -> int:
    return math.prod(chunk_shape(store)) * np.dtype(store.dtype.numpy_dtype).itemsize + 4


def _place(store: ts.TensorStore) -> str:
    """Where an array is."""
    assert store.kvstore is not None  # as of every array on disk
    return store.kvstore.url.removeprefix("file://").rstrip("/")


def _no_files(store: ts.TensorStore, keys: Iterable[str]) -> Iterator[str]:
    """What stands in the place of a file of a file system and is none: a FIFO might never end."""
    assert store.kvstore is not None
    spec = store.kvstore.spec().to_json()
    if spec["driver"] == "file":
        places = ((key, Path(spec["path"]) / key) for key in keys)
        yield from (key for key, place in places if is_no_file(place))


def _ends(store: ts.TensorStore, keys: Sequence[str]) -> Iterator[bytes | UnreadableError | None]:
    """What each file holds from the place of its checksum on; None where it is missing, nothing where it is shorter."""
    begin, kvstore = slice(_size(store) - 4, None), store.kvstore
    assert kvstore is not None
    for first in range(0, len(keys), ASKED):
        part = keys[first : first + ASKED]
        for key, reading in [(key, kvstore.read(key, byte_range=begin)) for key in part]:
            try:
                found = reading.result()
            except ValueError as error:
                reason = reason_of(error)
                if reason.startswith(DAMAGE):
                    yield b""  # the range is beyond its end
                else:
                    yield unreadable(f"{_place(store)}/{key}", f"cannot be read: {reason}")
            else:
                yield found.value if found.state == "value" else None
