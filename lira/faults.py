"""Whose an error is: of the input or the machine, of a user's own code, or of lira itself; and whether memory ran out."""

import dis
import os
import platform
import site
import sys
import sysconfig
import traceback
from pathlib import Path
from types import TracebackType
from typing import Literal

from lira.versions import versions

__all__ = ["Whose", "is_out_of_memory", "report_of", "whose"]

Whose = Literal["input", "own code", "lira"]

_LIRA = os.path.join(str(Path(__file__).absolute().parent), "")
_LIBRARIES = tuple(
    os.path.join(path, "")
    for path in {
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
    }
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the host's memory or a device's ran out."""
    # TensorStore has the same word for a disk that is full, stores for haste.
    if isinstance(error, ValueError | OSError):
        return False
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def whose(error: Exception) -> Whose:
    """Whose mistake an error tells of.

    "input": the machine or its files refused (OSError), or a line of lira raised it by a `raise` statement, as it does with
    a message of its own for every mistake that it knows. What is raised within NumPy, JAX or the interpreter was not
    foreseen, however like a user's mistake it reads: it is of the last line that belongs to no library, a module of the
    user's ("own code") or lira.
    """
    if isinstance(error, OSError):
        return "input"
    frames = _frames(error.__traceback__)
    last = frames[-1] if frames else None
    if isinstance(error, ValueError | ImportError) and last is not None and _is_raised_by_lira(last):
        return "input"
    places = (frame.tb_frame.f_code.co_filename for frame in reversed(frames))
    blamed = next((place for place in places if not _is_library(place)), _LIRA)
    return "lira" if blamed.startswith(_LIRA) else "own code"


def report_of(error: Exception, of: Whose) -> str:
    """The traceback, and after it one line that says whose fault it is and what to do."""
    lines = "".join(traceback.format_exception(error))
    what = " ".join(f"{type(error).__name__}: {error}".split())
    if of == "own code":
        frames = traceback.extract_tb(error.__traceback__)
        frame = next(frame for frame in reversed(frames) if not _is_library(frame.filename))
        place = f"{Path(frame.filename).name}, line {frame.lineno}"
        return f"{lines}lira: error: code of your own failed, {place}: {what}"
    found = versions("jax", "numpy", "flax")
    found["python"] = platform.python_version()
    used = ", ".join(f"{name} {number}" for name, number in found.items())
    return (
        f"{lines}lira: error: a fault of lira, not of your input: {what}. What is done is kept. Please report it with the "
        f"lines above, the command ({' '.join(['lira', *sys.argv[1:]])}) and the versions ({used}); CONTRIBUTING says where"
    )


def _frames(tb: TracebackType | None) -> list[TracebackType]:
    frames = []
    while tb is not None:
        frames.append(tb)
        tb = tb.tb_next
    return frames


def _is_raised_by_lira(frame: TracebackType) -> bool:
    """Whether the innermost frame is lira's and stands at a `raise`; C code that fails has no frame of its own."""
    code = frame.tb_frame.f_code
    return code.co_filename.startswith(_LIRA) and dis.opname[code.co_code[frame.tb_lasti]] == "RAISE_VARARGS"


def _is_library(place: str) -> bool:
    """Whether a file is of Python or of an installed package, lira's apart; so is what has no file."""
    return not place.startswith(_LIRA) and (place.startswith(_LIBRARIES) or place.startswith("<"))
