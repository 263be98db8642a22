"""Checkpoints on object stores: as in `lira.store.checkpoints`, under a claim in place of a lock.

An object is seen whole or not at all, so that arrays are written as they are, in parts under a name that nobody else gives,
and last the document that names the parts with their checksums. A claim whose owner was killed is free once it was not renewed
for `claims.EXPIRY` seconds, which whoever wants to go on waits for: see `await_the_dead`.
"""

import contextlib
import hashlib
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lira.store import claims
from lira.store.checksums import json_with_checksum, parsed_json
from lira.store.claims import Claim, claimant
from lira.store.errors import RunError, WaitingWarning
from lira.store.objects import ObjectPlace

__all__ = ["ObjectCheckpoint", "await_the_dead", "new_object_checkpoint", "unowned_objects"]

CHECKPOINTS, ABOUT, LOCK = "checkpoints", "about.json", ".lock"
# Bytes of an object, at most.
PART = 1 << 26
# Seconds between two looks at the claims of others.
LOOK = 0.5
# Who tries to take each, from the first look on: a claim is free only after it was watched. None is watched by two threads.
_watched: dict[ObjectPlace, Callable[[], Claim | None]] = {}
_ours: set[ObjectPlace] = set()
_claiming = threading.Lock()


@dataclass(frozen=True, eq=False)
class ObjectCheckpoint:
    """One that this process owns, until `release`."""

    place: ObjectPlace
    about: dict[str, Any]
    """what it is of"""
    claim: Claim

    @property
    def stage(self) -> int:
        """How far what was saved is; 0 where nothing was."""
        return max((int(name) for name in self._documents()), default=0)

    def _documents(self) -> list[str]:
        names = (key.removesuffix(".json") for key in self.place.below() if key.endswith(".json"))
        return [name for name in names if name.isdecimal()]

    def save(self, stage: int, arrays: Sequence[np.ndarray]) -> None:
        """Write arrays, whole or not at all, in place of those of another stage.

        Raises:
            RunError: another process has taken the checkpoint over.
            StoreError: they cannot be written.
        """
        name, files = f"{stage}-{uuid.uuid4().hex}", {}
        content = np.concatenate([np.ravel(each).view(np.uint8) for each in arrays])
        kinds = [[str(each.dtype), list(each.shape)] for each in arrays]
        document = f"{stage}.json"
        try:
            for first in range(0, max(len(content), 1), PART):
                part = content[first : first + PART].tobytes()
                file = f"{name}/{first // PART}"
                (self.place / file).write_bytes(part)
                files[file] = hashlib.sha256(part).hexdigest()
            self.claim.renew()
            (self.place / document).write_bytes(json_with_checksum({"arrays": kinds, "files": files}))
        except BaseException:
            self._remove(set(files) | {f"{name}/{len(files)}"})
            raise
        self._remove({key for key in self.place.below() if key not in (document, *files, ABOUT, LOCK)})

    def restore(self) -> list[np.ndarray]:
        """The arrays of `stage`.

        Raises:
            ValueError: they are damaged.
        """
        about, whole = parsed_json((self.place / f"{self.stage}.json").read_bytes())
        if not whole:
            raise ValueError("files are not as they were written, by their checksums")
        parts = []
        for file, digest in about["files"].items():
            found, _ = (self.place / file).read()
            if found is None or hashlib.sha256(found).hexdigest() != digest:
                raise ValueError(f"{file} is not as it was written, by its checksum")
            parts.append(found)
        content, arrays, at = np.frombuffer(b"".join(parts), np.uint8), [], 0
        for dtype, shape in about["arrays"]:
            size = np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))
            arrays.append(content[at : at + size].view(dtype).reshape(shape))
            at += size
        return arrays

    def release(self) -> None:
        """Let others have it; where that fails, its claim expires."""
        with contextlib.suppress(OSError, RunError):
            self.claim.give_back()
        _ours.discard(self.place)

    def remove(self) -> None:
        """Remove it, and release it; where that fails, the next one does."""
        with contextlib.suppress(OSError, RunError):
            self.claim.renew()
            self._remove({key for key in self.place.below() if key != LOCK})
            self.claim.remove()
        _ours.discard(self.place)

    def _remove(self, keys: set[str]) -> None:
        for each, removed in [(self.place / key, (self.place / key).write(None)) for key in keys]:
            each.written(removed)


def new_object_checkpoint(run: ObjectPlace, about: dict[str, Any]) -> ObjectCheckpoint:
    """Make one of a run, owned and without arrays.

    Raises:
        StoreError: it cannot be written.
    """
    place = run / CHECKPOINTS / uuid.uuid4().hex
    claim = _taken(place)
    assert claim is not None  # nobody else gives this name
    (place / ABOUT).write_bytes(json_with_checksum(about))
    return ObjectCheckpoint(place, about, claim)


def unowned_objects(run: ObjectPlace) -> Iterator[ObjectCheckpoint]:
    """The checkpoints of a run that nobody owned, one after the other: the caller owns each, and is to release it.

    Where about.json is damaged or missing, `about` is empty.
    """
    for place in (run / CHECKPOINTS).iterdir():
        if claim := _taken(place):
            try:
                about, whole = parsed_json((place / ABOUT).read_bytes())
            except (FileNotFoundError, ValueError, RecursionError):
                about, whole = {}, False
            yield ObjectCheckpoint(place, about if whole else {}, claim)


def await_the_dead(run: ObjectPlace) -> None:
    """Watch the claims of a run's checkpoints until each is free, or its owner was seen to renew it.

    Warns:
        WaitingWarning: that takes more than a moment.
    """
    watching = {place: claims.stands_in(place / LOCK) for place in (run / CHECKPOINTS).iterdir()}
    began, told = time.monotonic(), False
    while watching:
        for place, before in list(watching.items()):
            if claim := _taken(place):
                ObjectCheckpoint(place, {}, claim).release()
                del watching[place]
            elif claims.stands_in(place / LOCK) != before or place in _ours:
                del watching[place]
        if watching and not told and time.monotonic() - began > 2 * claims.RENEWAL:
            told = True
            warnings.warn(
                f"{run}: waiting for up to {claims.EXPIRY:.0f} s to see whether another process is still at a stack of it",
                WaitingWarning,
                stacklevel=3,
            )
        if watching:
            time.sleep(min(LOOK, claims.EXPIRY / 4))


def _taken(place: ObjectPlace) -> Claim | None:
    """The claim of a checkpoint, if nobody else has it."""
    with _claiming:
        if place in _ours:
            return None
        _ours.add(place)
    claim = None
    try:
        claim = _watched.setdefault(place, claimant(place / LOCK))()
    finally:
        if claim is None:
            _ours.discard(place)
    return claim
