"""Files of runs, whole or not at all, and what is said where one cannot be written."""

import contextlib
import errno
import glob
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lira.store.errors import RunError
from lira.store.objects import ObjectPlace, UnreadableError

__all__ = [
    "ABANDONED",
    "Place",
    "content_of",
    "discard",
    "is_no_file",
    "lock_file",
    "nobody_elses",
    "require_writable",
    "write_atomically",
    "writing",
]

Place = Path | ObjectPlace
# Seconds after which nobody is at work any more on a file that was to be renamed.
ABANDONED = 3600.0
# What `nobody_elses` calls a file.
MAKING = re.compile(r"\.(?P<name>[^/]+)\.[0-9a-f]{32}\.making(?=/|$)")


def write_atomically(path: Place, content: bytes) -> None:
    """Write a file whole or not at all: under another name, synced, then renamed.

    Raises:
        RunError: it cannot be written.
    """
    if isinstance(path, ObjectPlace):
        return path.write_bytes(content)
    making = nobody_elses(path)
    with writing(path):
        try:
            with open(making, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(making, path)
        finally:
            making.unlink(missing_ok=True)


def require_writable(place: Place, why: str = "") -> None:
    """Raise RunError where a directory cannot be written, or made, before what is to stand there is computed.

    `why` says what it is wanted for, as of "for the scores of lira_online". Object stores are not asked: they bill it.
    """
    if isinstance(place, Path):
        there = next(each for each in (place, *place.parents) if each.exists())
        with writing(place, why), tempfile.TemporaryFile(dir=there):
            pass


def nobody_elses(path: Path) -> Path:
    """A hidden name beside `path` for what is to take its place; what others left there long ago is removed.

    Other processes may be at the same place, on other machines too.
    """
    name = f".{path.name}."
    for left in path.parent.glob(f"{glob.escape(name)}*.making"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    return path.parent / f"{name}{uuid.uuid4().hex}.making"


def is_no_file(path: str | Path) -> bool:
    """Whether something stands there, and it is no regular file: to open a FIFO might never end."""
    return os.path.exists(path) and not os.path.isfile(path)


def content_of(path: Place) -> bytes:
    """The content of a file; OSError where it cannot be read, or is no regular file."""
    if isinstance(path, Path) and is_no_file(path):
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return path.read_bytes()


def lock_file(path: Path) -> IO[bytes]:
    """A file to lock, made where it is not there; OSError as of `content_of`."""
    if is_no_file(path):
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return open(path, "ab")


@contextlib.contextmanager
def writing(path: Place, why: str = "") -> Iterator[None]:
    """Turn a failed write into one line that names the place, by the name that it is to have, and what to do if it is full."""
    try:
        yield
    except UnreadableError:  # of something else, that was to be copied there
        raise
    except OSError as error:
        place = str(path)
        while MAKING.search(place):  # one within another
            place = MAKING.sub(r"\g<name>", place)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise RunError(
            f"{place}: cannot be written{why and f' {why}'}: {error.strerror or error}"
            f"{': make room, and give the command again' if full else ''}"
        ) from error


def discard(making: Path) -> None:
    """Remove what was to become a directory, where it did not.

    TensorStore, which failed to write a chunk, may be at others of the array for a moment, and make directories for them.
    """
    if making.exists():
        for _ in range(4):
            shutil.rmtree(making, ignore_errors=True)
            time.sleep(0.05)
