"""Where directories of runs are: on file systems and on object stores, written whole or not at all, by one process at a time.

A file appears by renaming, a directory too, and a lock dies with its owner. On object stores, where there is neither, a
directory is made elsewhere and its objects are written under a claim, config.toml last; see `lira.store.claims`.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lira.store.claims import Claim, claimant, stands_in
from lira.store.errors import RunError, TakenError, WaitingWarning
from lira.store.files import Place, discard, lock_file, nobody_elses, require_writable, writing
from lira.store.objects import ObjectPlace, is_url

__all__ = [
    "Place",
    "directory_at",
    "is_free",
    "kvstore_of",
    "locked",
    "locked_model",
    "new_directory",
    "replacing",
    "require_new",
]

Held = TypeVar("Held")

# Seconds to wait for another process that holds a directory, and until people are told.
PATIENCE, SILENCE = 60.0, 1.0
# Seconds between two looks, at a lock and at a claim.
LOOK, LOOK_AFAR = 0.05, 0.5
# In a directory whose entries, all of them, are being renamed into another.
MOVING = ".moving"
# Objects that are written at once.
AT_ONCE = 256
_models = threading.Lock()


# --- Names -----------------------------------------------------------------------------------------------------------


def directory_at(path: str | os.PathLike[str]) -> Place:
    """A directory that a user names, spelt in the one way that all else relies on: absolute, without `~`, `..` or links.

    Raises:
        RunError: it is empty, there is no such home, links lead in a circle, or no array can be kept under such a name.
    """
    named = os.fspath(path)
    if not named:  # as of a shell's variable that is not set
        raise RunError("the name of the directory is empty: name one, or . for this one")
    if is_url(named):
        return ObjectPlace.of(named)
    try:
        place = Path(named).expanduser().absolute()
    except RuntimeError as error:
        raise RunError(f"{named}: there is no such home directory: spell the path out") from error
    if ".." in place.parts or place.is_symlink():
        try:
            place = place.resolve()
        except (RuntimeError, OSError) as error:
            raise RunError(
                f"{place}: its symbolic links lead nowhere or in a circle: name a directory"
            ) from error
    # TensorStore's own locks end in .__lock.
    reserved = any(part.endswith(".__lock") for part in place.parts)
    if reserved or "\\" in str(place) or not str(place).isprintable():
        raise RunError(
            f"{named!r}: arrays cannot be kept under a name that ends in .__lock, or with a backslash, or what is no text; "
            f"rename it"
        )
    return place


def kvstore_of(place: Place) -> dict[str, Any]:
    """TensorStore's specification of a place."""
    return place.spec() if isinstance(place, ObjectPlace) else {"driver": "file", "path": str(place)}


# --- Directories -----------------------------------------------------------------------------------------------------


def is_free(path: Place) -> bool:
    """Whether a directory can be made there: there is nothing, an empty directory, or what a killed process left of one.

    What such a process had begun to move into a directory that stays is moved there first.
    """
    if isinstance(path, ObjectPlace):
        return not (path / "config.toml").is_file() and (_is_half_made(path) or not path.exists())
    if not path.exists():
        return True
    if not path.is_dir():
        return False
    _finish_move(path)
    return _is_empty(path)


def require_new(path: Place) -> None:
    """Raise TakenError where something is, and RunError where nothing can be written, before anything is read for it."""
    if not is_free(path):
        raise _taken(path)
    require_writable(path)


def _is_empty(path: Path) -> bool:
    """Whether a directory holds nothing but what may still become one, and its lock."""
    return all(
        each.name == ".lock" or (each.name.startswith(".") and each.name.endswith(".making"))
        for each in path.iterdir()
    )


@contextlib.contextmanager
def new_directory(path: Place) -> Iterator[Path]:
    """Fill a directory beside its place and rename it at the end: it appears whole or not at all, and once.

    A mount point, or the current directory, cannot be replaced: the entries are renamed into it one after the other while
    it is held, config.toml last. After a kill between two renames the next process that looks goes on with them, see
    `is_free`. On an object store objects are written in that order, and what a kill leaves is replaced.

    Raises:
        TakenError: `path` exists and is not an empty directory, now or by the end.
        RunError: it cannot be written.
    """
    require_new(path)
    with writing(path):
        if isinstance(path, ObjectPlace):
            with tempfile.TemporaryDirectory(prefix="lira-") as making:
                yield Path(making)
                _put_directory(Path(making), path)
            return
        stays = path.exists() and (path.is_mount() or path.samefile(os.curdir))
        path.parent.mkdir(parents=True, exist_ok=True)
        making = nobody_elses(path / "new" if stays else path)
        making.mkdir()
        try:
            yield making
            if stays:
                _move_into(path, making)
            else:
                os.rename(making, path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise _taken(path) from error
            raise
        finally:
            if not (making / MOVING).exists():
                discard(making)


def _move_into(path: Path, making: Path) -> None:
    """Move what is made, whole, into a directory that stays."""
    with locked(path):
        if not _is_empty(path):
            raise _taken(path)
        (making / MOVING).touch()
        _move(path, making)


def _finish_move(path: Path) -> None:
    """Go on with what a killed process had begun to move."""
    for making in path.glob(".new.*.making"):
        if (making / MOVING).exists():
            with writing(path), locked(path):
                if (making / MOVING).exists():  # not finished by another meanwhile
                    _move(path, making)


def _move(path: Path, making: Path) -> None:
    entries = [each for each in making.iterdir() if each.name != MOVING]
    for each in sorted(entries, key=_comes_late):
        os.rename(each, path / each.name)
    shutil.rmtree(making)


def _taken(path: Place) -> TakenError:
    return TakenError(f"{path}: exists already; name a new or empty directory")


def _comes_late(entry: Path) -> tuple[bool, bool]:
    return not entry.is_dir(), entry.name == "config.toml"


@contextlib.contextmanager
def replacing(place: Place) -> Iterator[Path]:
    """Where to make a directory that then takes the place of `place`, whatever is there.

    On an object store zarr.json is removed first and written last: without it there is no array.
    """
    with writing(place):
        if isinstance(place, ObjectPlace):
            with tempfile.TemporaryDirectory(prefix="lira-") as root:
                making = Path(root) / "made"
                yield making
                _put_array(making, place)
            return
        making = nobody_elses(place)
        try:
            yield making
            there = nobody_elses(place)
            with contextlib.suppress(FileNotFoundError):
                os.rename(place, there)  # whole, whatever may not be removed of it
            os.rename(making, place)
            shutil.rmtree(there, ignore_errors=True)
        finally:
            discard(making)


# --- Directories on object stores ------------------------------------------------------------------------------------


def _is_half_made(path: ObjectPlace) -> bool:
    """Whether a process is making the directory, or was killed while it did."""
    return bool(stands_in(path / ".lock").get("making"))


def _put_directory(made: Path, path: ObjectPlace) -> None:
    """Write a directory under a claim that says what is going on."""
    with _claimed(path, making=True) as claim:
        if claim.found.get("making", True) is False or (path / "config.toml").is_file():
            claim.says["making"] = False
            raise _taken(path)
        _remove([path / key for key in path.below() if key != ".lock"])
        files = sorted(_files(made), key=lambda file: (len(file.parts) == 1, file.name == "config.toml"))
        early, late = files[:-1], files[-1:]
        for first in range(0, len(early), AT_ONCE):
            some = early[first : first + AT_ONCE]
            claim.write_all((path / file, (made / file).read_bytes()) for file in some)
        claim.renew()
        claim.write_all((path / file, (made / file).read_bytes()) for file in late)
        claim.says["making"] = False


def _remove(objects: Sequence[ObjectPlace]) -> None:
    for each, removed in [(each, each.write(None)) for each in objects]:
        each.written(removed)


def _put_array(made: Path, place: ObjectPlace) -> None:
    """Write an array or group in place of what is there."""
    files = sorted(_files(made), key=lambda file: file.as_posix() == "zarr.json")
    (place / "zarr.json").unlink()
    _remove([place / key for key in set(place.below()) - {file.as_posix() for file in files}])
    early, late = files[:-1], files[-1:]
    for first in (*range(0, len(early), AT_ONCE), None):
        some = late if first is None else early[first : first + AT_ONCE]
        writes = [(place / file, (place / file).write((made / file).read_bytes())) for file in some]
        for each, write in writes:
            each.written(write)


def _files(made: Path) -> list[Path]:
    return sorted(file.relative_to(made) for file in made.rglob("*") if file.is_file())


# --- Locks -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(directory: Place) -> Iterator[None]:
    """Hold a run directory for writing, against other processes; the lock dies with its owner.

    Raises:
        RunError: another process holds it for more than a minute, or nothing can be written there.

    Warns:
        WaitingWarning: another process holds it.
    """
    if isinstance(directory, ObjectPlace):
        with writing(directory), _claimed(directory):
            yield
        return
    with writing(directory), lock_file(directory / ".lock") as file:

        def attempt() -> bool:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            return False

        _wait(directory, attempt, LOOK)
        yield


@contextlib.contextmanager
def _claimed(directory: ObjectPlace, **says: Any) -> Iterator[Claim]:
    """Hold the claim of a directory: see `locked`."""
    claim = _wait(directory, claimant(directory / ".lock", **says), LOOK_AFAR)
    with _given_back(claim):
        yield claim
    claim.give_back()


def _wait(directory: Place, attempt: Callable[[], Held | None], look: float) -> Held:
    """Try until something comes of it, for as long as PATIENCE lasts."""
    began, told = time.monotonic(), False
    while not (held := attempt()):
        waited = time.monotonic() - began
        if waited > PATIENCE:
            raise RunError(
                f"{directory}: another process has been writing this run for {PATIENCE:.0f} s; wait for it or stop it"
            )
        if waited > SILENCE and not told:
            told = True
            warnings.warn(
                f"{directory}: another process is writing this run: waiting for it",
                WaitingWarning,
                stacklevel=4,
            )
        time.sleep(look)
    return held


@contextlib.contextmanager
def locked_model(directory: Place, model: int) -> Iterator[Claim | None]:
    """Hold one model of a run for writing, against other processes and threads; the lock dies with its owner.

    Yields:
        On an object store the claim, under which its arrays must be written.
    """
    if isinstance(directory, ObjectPlace):
        attempt = claimant(directory / ".claims" / str(model))
        with writing(directory):
            while not (claim := attempt()):
                time.sleep(LOOK_AFAR)
            with _given_back(claim):
                yield claim
            claim.remove()
        return
    # A byte a model of one file. Threads of a process have such locks in common, so they take turns.
    with _models, writing(directory), lock_file(directory / ".models") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 1, model)
        yield None


@contextlib.contextmanager
def _given_back(claim: Claim) -> Iterator[None]:
    """Give a claim back where something fails; where that fails too, it expires."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError, RunError):
            claim.give_back()
        raise
