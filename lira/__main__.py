"""`python -m lira`: the command `lira` of a source tree that is not installed."""

import sys

from lira.cli import main

if __name__ == "__main__":
    sys.exit(main())
