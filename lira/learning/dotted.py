"""Users' own code by its dotted path, importable from the current directory."""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["import_dotted"]


def import_dotted(name: str, kind: str, known: Sequence[str], wanted: str) -> Any:
    """What the dotted path `name` leads to; the current directory is importable.

    Raises:
        ValueError: it is no path, and none of the `known` names of this `kind`; or it leads nowhere.
    """
    module, _, attribute = name.replace(":", ".").rpartition(".")
    if not module:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"unknown {kind} {name!r}{hint}; use {', '.join(known)} or the dotted path of {wanted}"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's code does
        what = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{kind} {name!r}: cannot import {module!r}: {what}") from error
    try:
        return getattr(imported, attribute)
    except AttributeError as error:
        raise ValueError(f"{kind} {name!r}: {module!r} has no {attribute!r}") from error
