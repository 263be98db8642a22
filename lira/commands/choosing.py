"""Which attacks a command runs, and which of them leads."""

import argparse
from collections.abc import Collection

from lira.attacks.suite import ATTACKS, select_attacks

__all__ = ["add_attacks", "add_headline", "require_attacks"]


def add_attacks(parser: argparse.ArgumentParser) -> None:
    """Give a parser `--attacks`; given twice it is of all that are named."""
    parser.add_argument(
        "--attacks",
        nargs="+",
        action="extend",
        type=_attack,
        choices=list(ATTACKS),
        metavar="A",
        help="these attacks alone",
    )


def add_headline(parser: argparse.ArgumentParser) -> None:
    """Give a parser `--headline`."""
    parser.add_argument(
        "--headline",
        type=_attack,
        choices=list(ATTACKS),
        metavar="A",
        help="the attack that leads; by the number of models where it is not given",
    )


def require_attacks(attacks: Collection[str], headline: str | None) -> None:
    """Raise ValueError where there are no such attacks, or the headline is left out by the attacks that are chosen.

    Args:
        attacks: by name; none: all.
        headline: by name; None or empty: none is chosen.
    """
    select_attacks([*attacks, *filter(None, [headline])])
    if attacks and headline and headline not in attacks:
        raise ValueError(f"--headline {headline} is not among --attacks {' '.join(attacks)}: add it there")


def _attack(name: str) -> str:
    """A name, for argparse, whose own message names all thirty."""
    try:
        select_attacks([name])
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name
