"""What SIGINT and SIGTERM do to the command: it ends with one line and status 130 or 143, whatever it is at.

A model is done once it is stored, so nothing that is done is lost with a process that ends at once. Threads are given
PATIENCE seconds to come to the end of an epoch and to write their stacks; the interpreter's own end is not waited for,
since it crashes where XLA's threads still compile.
"""

import _thread
import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

__all__ = ["SENTENCES", "Terminated", "end", "end_at_once", "stop_at_once", "stop_gracefully"]

# Seconds from a signal to the end, where threads are in the midst of something that they cannot leave. People would rather
# not wait; schedulers kill 30 s after their warning (SLURM's KillWait, Kubernetes' terminationGracePeriodSeconds).
PATIENCE = {signal.SIGINT: 10.0, signal.SIGTERM: 25.0}
_KEPT = "finished models are kept, and the same command goes on from there"
SENTENCES = {
    signal.SIGINT: f"lira: interrupted: {_KEPT}",
    signal.SIGTERM: f"lira: terminated: {_KEPT}",
}
# Progress bars hide it.
_SHOW_CURSOR = b"\x1b[?25h"
_received: list[int] = []


class Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler's warning."""


def stop_at_once() -> None:
    """Have a signal end the process, as long as nothing but imports goes on."""
    _handle(lambda number, _: end_at_once(number))


def stop_gracefully() -> None:
    """Have a signal raise KeyboardInterrupt or Terminated, once; a second signal, or PATIENCE, ends the process."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    # Python's handlers wait for the main thread, and that may be within a compilation of minutes.
    _thread.start_new_thread(_watch, (reading,))
    sys.unraisablehook = _unraisable
    _handle(_raise)


def end(status: int) -> NoReturn:
    """End the process with that status, or that of a signal that somebody swallowed."""
    for number in SENTENCES:
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # nobody reads it, and nobody is to try again
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if _received and status < 128:
        end_at_once(_received[0])
    if status > 128:
        os._exit(status)
    sys.exit(status)


def end_at_once(number: int) -> NoReturn:
    """Say which signal it was, and end with its status."""
    with contextlib.suppress(OSError):
        shown = _SHOW_CURSOR if os.isatty(2) else b""
        os.write(2, shown + f"{SENTENCES[signal.Signals(number)]}\n".encode())
    os._exit(128 + number)


def _handle(handler: Callable[[int, FrameType | None], object]) -> None:
    for number in SENTENCES:
        # A shell's background jobs ignore SIGINT, and go on doing so.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    if _received:
        end_at_once(number)
    _received.append(number)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _watch(reading: int) -> None:
    while (number := os.read(reading, 1)[0]) not in tuple(SENTENCES):
        pass
    time.sleep(PATIENCE[signal.Signals(number)])
    end_at_once(number)


def _unraisable(what: "sys.UnraisableHookArgs") -> None:
    """A signal that met a destructor or a callback, out of which no exception comes, is no less a signal."""
    if _received and issubclass(what.exc_type, KeyboardInterrupt):
        end_at_once(_received[0])
    sys.__unraisablehook__(what)


def _is_the_command() -> bool:
    """Whether this process is `lira` or `python -m lira`, and not another program that imports the package."""
    name = os.path.basename(next(iter(getattr(sys, "argv", [])), ""))
    return name == "lira" or (name == "-m" and ("-m", "lira") in itertools.pairwise(sys.orig_argv))


# The package's first import: the others take seconds.
if _is_the_command():
    stop_at_once()
