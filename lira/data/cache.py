"""Decoded data sets, kept for the next run under everything that they depend on."""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lira.data.dataset import ARRAYS, READING, Dataset
from lira.data.paths import expand

__all__ = ["cached", "what_changes"]
# Of an entry: the fingerprint of its data set, and the digest of the files that this was decoded of.
_FINGERPRINT, _SOURCE = "fingerprint", "source"


# ---- cache of decoded data ----


def what_changes(stat: os.stat_result) -> tuple[int, int, int, int]:
    """What tells that a file is another, without reading it: its size, both of its times, and its inode.

    A user can set size and modification time back, and copies keep both; the time of the last change nobody sets.
    """
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def cached(
    name: str, key: list[Any], files: Sequence[Path], read: Callable[[], Dataset], *, reread: bool
) -> Dataset:
    """The data set kept under `key`; read anew, and kept, when there is none or it is damaged.

    What was read by other rules is not met: their version is part of the key.

    Args:
        name: of the data set.
        key: all that decoding depends on, `what_changes` of each file among it.
        files: what it is decoded from.
        read: decodes it.
        reread: read every file, and take what is kept only where it was decoded of the same bytes.
    """
    directory = Path(expand(os.environ.get("LIRA_CACHE") or "~/.cache/lira"))
    entry = directory / hashlib.sha256(json.dumps([READING, *key]).encode()).hexdigest()[:32]
    dataset = _read_entry(entry, name, _digest(files) if reread else None)
    if dataset is None:
        source = _digest(files)  # before: of a file that changes meanwhile this is not the digest
        dataset = read()
        try:
            _write_entry(entry, dataset, source)
        except OSError as error:
            warnings.warn(
                f"decoded data cannot be kept in {directory} ({error}); set LIRA_CACHE to a writable directory",
                stacklevel=4,
            )
    return dataset


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 of the bytes of files, each by itself and then together."""

    def one(file: Path) -> bytes:
        with open(file, "rb") as content:
            return hashlib.file_digest(content, "sha256").digest()

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return hashlib.sha256(b"".join(pool.map(one, files))).hexdigest()


def _read_entry(entry: Path, name: str, source: str | None) -> Dataset | None:
    if not entry.is_dir():
        return None
    try:
        if source is not None and (entry / _SOURCE).read_text() != source:
            return None
        dataset = Dataset.from_arrays(**{path.stem: np.load(path) for path in entry.glob("*.npy")}, name=name)
        # The stored fingerprint tells damage of any kind, at the cost of one that is computed anyway.
        intact = dataset.fingerprint == (entry / _FINGERPRINT).read_text()
    except Exception:  # Whatever damage leads NumPy to.
        return None
    return dataset if intact else None


def _write_entry(entry: Path, dataset: Dataset, source: str) -> None:
    """Write beside, then rename: a killed process leaves no entry that looks whole."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=entry.parent) as scratch:
        fresh = Path(scratch, "entry")
        fresh.mkdir()
        for key in ARRAYS:
            if (array := getattr(dataset, key)) is not None:
                np.save(fresh / f"{key}.npy", array)
        (fresh / _FINGERPRINT).write_text(dataset.fingerprint)
        (fresh / _SOURCE).write_text(source)
        shutil.rmtree(entry, ignore_errors=True)  # a damaged one, or of other bytes
        fresh.rename(entry)
