"""`python -m lira`, and the command `lira`."""

import os
import signal
import sys

from lira import stopping

__all__ = ["main"]


def main() -> None:
    """Run the command that the command line names, and end the process."""
    stopping.stop_at_once()
    for name in ("stdout", "stderr"):
        # It was closed, and the next file to be opened would take its place; what stands for it stays open to the end.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    # A notebook's back end, which a shell command of a cell inherits, is for that notebook alone.
    os.environ.pop("MPLBACKEND", None)
    from lira.cli import load
    from lira.cli import main as run

    load(sys.argv[1:])
    try:
        stopping.stop_gracefully()
        status = run()
    except KeyboardInterrupt as stop:  # in the midst of the last words
        stopping.end_at_once(signal.SIGTERM if isinstance(stop, stopping.Terminated) else signal.SIGINT)
    except SystemExit as stop:  # a page of help
        status = stop.code if isinstance(stop.code, int) else 0
    stopping.end(status)


if __name__ == "__main__":
    main()
