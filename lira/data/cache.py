"""Decoded data sets, kept for the next run under everything that they depend on."""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lira.data.dataset import ARRAYS, READING, Dataset
from lira.data.paths import expand

__all__ = ["cached"]


def cached(name: str, key: list[Any], read: Callable[[], Dataset]) -> Dataset:
    """The data set kept under `key`; read anew, and kept, when there is none or it is damaged.

    What was read by other rules is not met: their version is part of the key.
    """
    directory = Path(expand(os.environ.get("LIRA_CACHE") or "~/.cache/lira"))
    entry = directory / hashlib.sha256(json.dumps([READING, *key]).encode()).hexdigest()[:32]
    dataset = _read_entry(entry, name)
    if dataset is None:
        dataset = read()
        try:
            _write_entry(entry, dataset)
        except OSError as error:
            warnings.warn(
                f"decoded data cannot be kept in {directory} ({error}); set LIRA_CACHE to a writable directory",
                stacklevel=4,
            )
    return dataset


def _read_entry(entry: Path, name: str) -> Dataset | None:
    if not entry.is_dir():
        return None
    try:
        dataset = Dataset.from_arrays(**{path.stem: np.load(path) for path in entry.glob("*.npy")}, name=name)
        # The stored fingerprint tells damage of any kind, at the cost of one that is computed anyway.
        intact = dataset.fingerprint == (entry / "fingerprint").read_text()
    except Exception:  # Whatever damage leads NumPy to.
        return None
    return dataset if intact else None


def _write_entry(entry: Path, dataset: Dataset) -> None:
    """Write beside, then rename: a killed process leaves no entry that looks whole."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=entry.parent) as scratch:
        fresh = Path(scratch, "entry")
        fresh.mkdir()
        for key in ARRAYS:
            if (array := getattr(dataset, key)) is not None:
                np.save(fresh / f"{key}.npy", array)
        (fresh / "fingerprint").write_text(dataset.fingerprint)
        shutil.rmtree(entry, ignore_errors=True)  # a damaged one
        fresh.rename(entry)
