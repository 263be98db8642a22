"""The command line: which command it names, what becomes of its warnings and errors, and its exit status."""

import contextlib
import difflib
import importlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType

from lira.commands import COMMANDS, USAGE
from lira.stopping import SENTENCES, Terminated
from lira.versions import __version__

__all__ = ["load", "main"]


def load(argv: Sequence[str]) -> None:
    """Import what the command needs that the arguments name; nothing where they name none."""
    if len(argv) and argv[0] in COMMANDS:
        _module(argv[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status.

    0, 2 for bad input (one line on stderr) or code of the user's that fails, 70 where lira itself does (both after the
    traceback), 130 when interrupted, 143 when terminated; 1 where `check` fails, and where nobody reads what is printed.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _dispatch(argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # As rich does, so that the interpreter has nothing to flush at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _failed(error)
    except KeyboardInterrupt as stop:
        number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        print("; ".join([SENTENCES[number], *getattr(stop, "__notes__", [])]), file=sys.stderr)
        return 128 + number


def _failed(error: Exception) -> int:
    """Say what went wrong; return the exit status."""
    from lira.faults import is_out_of_memory, report_of, whose

    if is_out_of_memory(error):
        return _error(f"out of memory: {error}")
    if "Unable to initialize backend" in str(error):
        named = os.environ.get("JAX_PLATFORMS", "")
        return _error(f"JAX finds no device, and JAX_PLATFORMS is {named!r}: unset it, or name cpu: {error}")
    of = whose(error)
    if of == "input":
        return _error(str(error))
    print(report_of(error, of), file=sys.stderr)
    return 2 if of == "own code" else os.EX_SOFTWARE


def _error(message: str) -> int:
    print(f"lira: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _module(verb: str) -> ModuleType:
    return importlib.import_module(f"lira.commands.{COMMANDS[verb].module}")


def _dispatch(argv: list[str]) -> int:
    verb, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if verb in ("-h", "--help", "help", "--version"):
        print(f"lira {__version__}" if verb == "--version" else USAGE)
        return 0
    if verb not in COMMANDS:
        close = difflib.get_close_matches(verb, COMMANDS, n=1)
        meant = f"did you mean {close[0]!r}? T" if close else "t"
        raise ValueError(f"unknown command {verb!r}: {meant}he commands are {', '.join(COMMANDS)}")
    module = _module(verb)
    # Where they are not needed they cost the start of `lira --help` two seconds.
    from lira.arguments import parse_known
    from lira.cache import keep_compilations
    from lira.commands.terminal import common_parser, make_terminal

    keep_compilations()
    common, rest = parse_known(common_parser(), rest)
    terminal = make_terminal(common)
    logging.basicConfig(level=common.log_level.upper())
    with _warnings_in_one_line(terminal.shown, silent=common.log_level == "error"):
        return module.run(verb, rest, terminal)


@contextlib.contextmanager
def _warnings_in_one_line(shown: list[str], *, silent: bool) -> Iterator[None]:
    """Print each warning as one line, and collect for the report what no check of it says and what is not of a moment."""
    from lira.attacks import FewModelsWarning
    from lira.data.copies import CopiesWarning
    from lira.engine.fill import DivergedWarning, FirstModelsWarning
    from lira.store.errors import WaitingWarning

    not_for_pages = (CopiesWarning, FewModelsWarning, FirstModelsWarning, DivergedWarning, WaitingWarning)

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if not issubclass(category, not_for_pages):
            shown.append(str(message))
        if not silent:
            print(f"lira: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        yield
