"""`lira bench`."""

import argparse

from lira.arguments import make_parser, parse_all
from lira.bench import throughput
from lira.commands.terminal import Terminal, common_parser, own

__all__ = ["parser_of", "run"]


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Its options."""
    parser = make_parser(verb, parents=[common_parser()])
    throughput.add_arguments(parser)
    return parser


def run(verb: str, argv: list[str], terminal: Terminal) -> int:
    """Run it; return the exit status."""
    result = throughput.run(**own(parse_all(parser_of(verb), argv)))
    terminal.show(throughput.table(result))
    terminal.document(result)
    return 0
