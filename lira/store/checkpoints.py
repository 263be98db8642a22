"""Checkpoints of what a process is in the midst of: under RUN/checkpoints, each with one owner at a time.

A checkpoint is a directory of a name that nobody else gives, with about.json, which tells what it is of, and the arrays as
orbax writes them, in a directory named after how far they are, beside the checksums of its files. Whoever holds its lock may read, replace or remove it; the
lock dies with its owner.
"""

import contextlib
import fcntl
import hashlib
import logging
import math
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np

from lira.store.checkpoint_objects import (
    ABOUT,
    CHECKPOINTS,
    LOCK,
    ObjectCheckpoint,
    new_object_checkpoint,
    unowned_objects,
)
from lira.store.checksums import json_with_checksum, parsed_json
from lira.store.files import ABANDONED, write_atomically
from lira.store.places import Place, new_directory

__all__ = ["ABOUT", "CHECKPOINTS", "Checkpoint", "new_checkpoint", "unowned"]

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
        return max((int(each.stem) for each in self.place.glob("[0-9]*.json")), default=0)

    def save(self, stage: int, arrays: Sequence[np.ndarray]) -> None:
        """Write arrays, whole or not at all, in place of those of another stage."""
        import orbax.checkpoint as ocp

        place, there = self.place / str(stage), str(self.stage)
        # As one array: of many orbax prints a traceback for each that is under way when one fails.
        content = np.concatenate([np.ravel(each).view(np.uint8) for each in arrays])
        try:
            with _quietly(), ocp.PyTreeCheckpointer(use_compression=False) as checkpointer:
                checkpointer.save(place, args=ocp.args.PyTreeSave({"content": content}), force=True)
            kinds = [[str(each.dtype), list(each.shape)] for each in arrays]
            about = {"arrays": kinds, "files": _digests(place)}
            write_atomically(self.place / f"{stage}.json", json_with_checksum(about))
            there = place.name
        finally:
            for each in self.place.iterdir():  # a disk that is full, say, must not stay so
                if each.name not in (there, f"{there}.json", ABOUT, LOCK):
                    shutil.rmtree(each, ignore_errors=True) if each.is_dir() else each.unlink()

    def restore(self) -> list[np.ndarray]:
        """The arrays of `stage`.

        Raises:
            ValueError: they are damaged.
        """
        import orbax.checkpoint as ocp

        place = self.place / str(self.stage)
        about, whole = parsed_json(place.with_suffix(".json").read_bytes())
        if not whole or _digests(place) != about["files"]:
            raise ValueError("files are not as they were written, by their checksums")
        with _quietly(), ocp.PyTreeCheckpointer(use_compression=False) as checkpointer:
            content = checkpointer.restore(place, args=ocp.args.PyTreeRestore())["content"]
        kinds = [(np.dtype(dtype), tuple(shape)) for dtype, shape in about["arrays"]]
        ends = np.cumsum([dtype.itemsize * math.prod(shape) for dtype, shape in kinds])
        parts = np.split(np.asarray(content), ends[:-1])
        return [part.view(dtype).reshape(shape) for part, (dtype, shape) in zip(parts, kinds, strict=True)]

    def release(self) -> None:
        """Let others have it."""
        _disclaim(self.place, self.lock)

    def remove(self) -> None:
        """Remove it, and release it."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.release()


def new_checkpoint(run: Place, about: dict[str, Any]) -> Checkpoint | ObjectCheckpoint:
    """Make one of a run, owned and without arrays.

    Raises:
        RunError: it cannot be written.
    """
    if not isinstance(run, Path):
        return new_object_checkpoint(run, about)
    place = run / CHECKPOINTS / uuid.uuid4().hex
    _claim(place)
    lock = None
    try:
        with new_directory(place) as making:
            # It is held, and stays open, as long as the checkpoint is ours.
            lock = open(making / LOCK, "wb")  # noqa: SIM115
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (making / ABOUT).write_bytes(json_with_checksum(about))
    except BaseException:
        _disclaim(place, lock)
        raise
    return Checkpoint(place, about, lock)


def unowned(run: Place) -> Iterator[Checkpoint | ObjectCheckpoint]:
    """The checkpoints of a run that nobody owned, one after the other: the caller owns each, and is to release it.

    Where about.json is damaged, or was removed a moment ago, `about` is empty. Leftovers of processes that ended as they began
    one are removed.
    """
    if not isinstance(run, Path):
        yield from unowned_objects(run)
        return
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
        # As in `new_checkpoint`.
        lock = open(place / LOCK, "a+b")  # noqa: SIM115
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        _disclaim(place, lock)
        return None
    try:
        about, whole = parsed_json((place / ABOUT).read_bytes())
    except (OSError, ValueError, RecursionError):
        about, whole = {}, False
    return Checkpoint(place, about if whole else {}, lock)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Use orbax, one thread at a time, without the tracebacks that it logs beside what it raises."""

    def is_of_others(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    log = logging.getLogger("absl")
    with _orbax:
        log.addFilter(is_of_others)
        try:
            yield
        finally:
            log.removeFilter(is_of_others)


def _claim(place: Path) -> bool:
    with _claiming:
        free = place not in _ours
        _ours.add(place)
    return free


def _disclaim(place: Path, lock: IO[bytes] | None) -> None:
    if lock:
        lock.close()
    _ours.discard(place)


def _digests(place: Path) -> dict[str, str]:
    """SHA-256 of every file of a directory, by its path there."""
    digests = {}
    for each in sorted(place.rglob("*")):
        if each.is_file():
            with open(each, "rb") as file:
                digests[str(each.relative_to(place))] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
