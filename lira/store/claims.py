"""Claims, which stand in for locks on object stores: an object that says whose a place is, renewed as long as it is held.

A claim is taken, renewed and given back by conditional writes, so that it is one process's at a time. Its owner is gone when
it was not renewed for EXPIRY seconds by the clock of whoever waits; no clocks are compared. An owner that was only stopped for
so long notices at its next renewal and gives up. What it had begun to write cannot mix with what its successor writes: under a
claim, objects are written where there is nothing, or in place of what was read *before* the claim was renewed. S3 tells objects
apart by their contents alone, so that a successor that finds what it would write itself leaves nothing that shows it was there:
whoever wrote over an object looks once more whether it holds the claim, and puts back what it found where it does not.
"""

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from lira.store.errors import RunError
from lira.store.objects import NOTHING, ObjectPlace

__all__ = ["Claim", "claimant", "stands_in"]

# Seconds without renewal after which an owner is taken to be gone, and between renewals.
EXPIRY, RENEWAL = 30.0, 5.0


class Claim:
    """A claim that is held; `found` is what stood in it before, `says` what is to stand in it beside its owner."""

    def __init__(self, place: ObjectPlace, owner: str, found: dict[str, Any], says: dict[str, Any]) -> None:
        """Not held yet: see `claimant`."""
        self.place, self.found, self.says = place, found, says
        self._owner, self._renewed = owner, 0
        self._generation, self._lock, self._over = b"", threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def take(self, generation: bytes) -> bool:
        """Take what was free, or whose owner is gone, and hold it from then on; whether nobody was faster."""
        if not self._write(generation):
            return False
        self._thread.start()
        return True

    def renew(self) -> None:
        """Make sure that it is held.

        Raises:
            RunError: another process has taken it over.
        """
        with self._lock:
            self._renewed += 1
            if not self._write(self._generation):
                self._over.set()
                raise RunError(
                    f"{self.place}: this process stood still for more than {EXPIRY:.0f} s, and another has taken its work "
                    f"over; start it again if it is still needed"
                )

    def write_all(self, objects: Iterable[tuple[ObjectPlace, bytes]]) -> None:
        """Write objects, all at once, so that none is of another holder of this claim.

        Raises:
            RunError: another process has taken it over.
            StoreError: one could not be written.
        """
        writes = [(place, content, place.write(content, NOTHING)) for place, content in objects]
        for place, content, write in writes:
            if not place.written(write):
                self._replace(place, content)

    def give_back(self) -> None:
        """Let others take it.

        Raises:
            RunError: one has.
        """
        self._end()
        self._owner = ""
        self.renew()

    def remove(self) -> None:
        """Leave nothing of it, where nobody needs it any more."""
        self._end()
        self.place.unlink()

    def _end(self) -> None:
        self._over.set()
        self._thread.join()

    def _replace(self, place: ObjectPlace, content: bytes) -> None:
        """Write over what an earlier holder left."""
        while True:
            there, generation = place.read()
            if there == content:
                return
            self.renew()
            if written := place.written(place.write(content, generation)):
                break
        try:
            self.renew()
        except RunError:
            place.written(place.write(there, written))
            raise

    def _write(self, expected: bytes) -> bool:
        content = json.dumps({"owner": self._owner, "renewed": self._renewed, **self.says}).encode()
        generation = self.place.written(self.place.write(content, expected))
        if not generation:
            # Refused; or written, and its answer lost, so that it was written a second time.
            there, generation = self.place.read()
            if there != content:
                return False
        self._generation = generation
        return True

    def _keep(self) -> None:
        while not self._over.wait(RENEWAL):
            # A store that fails for a moment is asked again; whoever lost the claim is told at its own next renewal.
            with contextlib.suppress(OSError, RunError):
                self.renew()


def claimant(place: ObjectPlace, **says: Any) -> Callable[[], Claim | None]:
    """What tries to take a claim: to be called again and again, until it returns the claim, held.

    Args:
        place: of the claim.
        **says: what it says beside its owner.
    """
    owner, seen, since = uuid.uuid4().hex, b"", 0.0

    def attempt() -> Claim | None:
        nonlocal seen, since
        content, generation = place.read()
        found = _parsed(content)
        if generation != seen:
            seen, since = generation, time.monotonic()
        if found.get("owner") and time.monotonic() - since < EXPIRY:
            return None
        claim = Claim(place, owner, found, dict(says))
        return claim if claim.take(generation) else None

    return attempt


def stands_in(place: ObjectPlace) -> dict[str, Any]:
    """What a claim says, whoever holds it; nothing where there is none."""
    return _parsed(place.read()[0])


def _parsed(content: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(content or b"{}")
    except ValueError:
        found = {"owner": "unknown"}
    return found if isinstance(found, dict) else {"owner": "unknown"}
