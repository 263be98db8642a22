"""`lira verify`, and what `lira run` says that it mended."""

import argparse
from collections.abc import Sequence

from lira.arguments import make_parser, parse_all
from lira.commands.terminal import Terminal, common_parser
from lira.engine.verify import in_lines, runs_in, verify
from lira.store.data import dataset_if_run
from lira.store.places import Place, directory_at

__all__ = ["parser_of", "run", "say_mended"]


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The options of `lira verify`."""
    parser = make_parser(verb, parents=[common_parser()])
    parser.add_argument(
        "run", metavar="RUN", help="a directory of a run, an unlearning, an imitation, an audit or a grid"
    )
    parser.add_argument("--deep", action="store_true", help="read every chunk, and train one model again")
    return parser


def run(verb: str, argv: list[str], terminal: Terminal) -> int:
    """Look at a directory; return the exit status."""
    arguments = parse_all(parser_of(verb), argv)
    path = directory_at(arguments.run)
    dataset = next(filter(None, map(dataset_if_run, runs_in(path) or [path])), None)
    found = verify(path, dataset, deep=arguments.deep)
    for line in in_lines(path, found):
        terminal.say(line)
    terminal.document([each._asdict() for each in found])
    return int(any(each.status == "broken" for each in found))


def say_mended(sentences: Sequence[str], path: Place, terminal: Terminal) -> None:
    """A line for each thing that was broken."""
    for sentence in sentences:
        terminal.say(f"{path}: {sentence}")
