"""Places that users name, and what went wrong there, for messages."""

import os
import re

from lira.data.dataset import DataError

__all__ = ["expand", "one_line"]


def expand(path: str) -> str:
    for plain, braced in re.findall(r"\$(?:(\w+)|\{([^}]*)\})", path):
        if (plain or braced) not in os.environ:
            raise DataError(f"${plain or braced} in {path!r} is not defined: set it or spell the path out")
    place = os.path.expanduser(os.path.expandvars(path))
    if place.startswith("~"):
        raise DataError(f"{path!r}: there is no such home directory: spell the path out, or write ./~")
    return place


def one_line(error: BaseException) -> str:
    """The first line of an error, of at most 200 characters: other libraries' messages run to pages."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".: ")
