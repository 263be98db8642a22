"""Checkpoints of what a process is in the midst of: under RUN/checkpoints, each with one owner at a time.

A checkpoint is a directory of a name that nobody else gives, with about.json, which tells what it is of, and the arrays as
orbax writes them, in a directory named after how far they are. Whoever holds its lock may read, replace or remove it; the
lock dies with its owner.
"""

import contextlib
import fcntl
import hashlib
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np

from lira.store.checksums import json_with_checksum, parsed_json
from lira.store.zarr import ABANDONED, new_directory

__all__ = ["CHECKPOINTS", "Checkpoint", "new_checkpoint", "unowned"]

CHECKPOINTS = "checkpoints"
# orbax numbers its operations process-wide, and those of two threads wait for each other: until they fail, after 300 s.
_orbax = Lock()
# Places that threads of this process own: on network file systems locks are between processes alone.
_ours: set[Path] = set()
_claiming = Lock()


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One that this process owns, until `release`."""

    place: Path
    about: dict[str, Any]
    """what it is of"""
    lock: IO[bytes]

    @property
    def stage(self) -> int:
        """How far what was saved is; 0 where nothing was, or not to its end."""
        return max((int(each.name) for each in self.place.iterdir() if each.name.isdigit()), default=0)

    def save(self, stage: int, arrays: Sequence[np.ndarray]) -> None:
        """Write arrays, whole or not at all, in place of those of another stage."""
        import orbax.checkpoint as ocp

        # Its own checksums are of its indices, not of what the arrays hold.
        tree = {"arrays": list(arrays), "sha256": _digest(arrays)}
        with _orbax, contextlib.closing(ocp.PyTreeCheckpointer(use_compression=False)) as checkpointer:
            checkpointer.save(self.place / str(stage), args=ocp.args.PyTreeSave(tree), force=True)
        for each in self.place.iterdir():
            if each.is_dir() and each.name != str(stage):
                shutil.rmtree(each, ignore_errors=True)

    def restore(self) -> list[np.ndarray]:
        """The arrays of `stage`.

        Raises:
            Exception: whatever orbax and TensorStore raise of what is damaged.
        """
        import orbax.checkpoint as ocp

        with _orbax, contextlib.closing(ocp.PyTreeCheckpointer(use_compression=False)) as checkpointer:
            tree = checkpointer.restore(self.place / str(self.stage), args=ocp.args.PyTreeRestore())
        arrays = [np.asarray(each) for each in tree["arrays"]]
        if not np.array_equal(tree["sha256"], _digest(arrays)):
            raise ValueError("it is not as it was written, by its checksum")
        return arrays

    def release(self) -> None:
        """Let others have it."""
        _disclaim(self.place, self.lock)

    def remove(self) -> None:
        """Remove it, and release it."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.release()


def new_checkpoint(run: Path, about: dict[str, Any]) -> Checkpoint:
    """Make one of a run, owned and without arrays.

    Raises:
        RunError: it cannot be written.
    """
    place = run / CHECKPOINTS / uuid.uuid4().hex
    _claim(place)
    lock = None
    try:
        with new_directory(place) as making:
            lock = open(making / ".lock", "wb")  # noqa: SIM115
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (making / "about.json").write_bytes(json_with_checksum(about))
    except BaseException:
        _disclaim(place, lock)
        raise
    return Checkpoint(place, about, lock)


def unowned(run: Path) -> Iterator[Checkpoint]:
    """The checkpoints of a run that nobody owned, one after the other: the caller owns each, and is to release it.

    Where about.json is damaged, `about` is empty. Leftovers of processes that ended as they began one are removed.
    """
    try:
        places = sorted((run / CHECKPOINTS).iterdir())
    except OSError:
        return
    for place in places:
        if place.name.startswith("."):
            with contextlib.suppress(OSError):
                if time.time() - place.stat().st_mtime > ABANDONED:
                    shutil.rmtree(place)
        elif checkpoint := _owned(place):
            yield checkpoint


def _owned(place: Path) -> Checkpoint | None:
    """A checkpoint, if nobody else owns it."""
    if not _claim(place):
        return None
    lock = None
    try:
        lock = open(place / ".lock", "r+b")  # noqa: SIM115
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        content = (place / "about.json").read_bytes()  # not there: it was removed a moment ago
    except OSError:
        _disclaim(place, lock)
        return None
    try:
        about, whole = parsed_json(content)
    except (ValueError, RecursionError):
        about, whole = {}, False
    return Checkpoint(place, about if whole else {}, lock)


def _claim(place: Path) -> bool:
    with _claiming:
        free = place not in _ours
        _ours.add(place)
    return free


def _disclaim(place: Path, lock: IO[bytes] | None) -> None:
    if lock:
        lock.close()
    _ours.discard(place)


def _digest(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """SHA-256 of arrays, with their shapes and types, uint8 `[32]`."""
    digest = hashlib.sha256()
    for each in arrays:
        digest.update(f"{each.dtype}{each.shape}".encode())
        digest.update(np.ascontiguousarray(each).reshape(-1).view(np.uint8))
    return np.frombuffer(digest.digest(), np.uint8)
