"""`lira grid`: settings side by side."""

import argparse

from lira.arguments import GridOptions, add_fields, make_parser, parse_options
from lira.commands.choosing import require_attacks
from lira.commands.events import TENSORBOARD, events
from lira.commands.terminal import Terminal, common_parser
from lira.engine.grid import parse_over
from lira.reporting.grid import grid
from lira.reporting.tables import grid_table
from lira.store.config import read_config

__all__ = ["parser_of", "run"]


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Its options, which are tyro's, for shell completion."""
    parser = make_parser(verb, parents=[common_parser()])
    parser.add_argument("--over", metavar="FIELD=V,V", action="append", help="a field and its values")
    parser.add_argument("--apart", action="store_true", help="vary one field at a time")
    parser.add_argument("--tensorboard", action="store_true", help=TENSORBOARD)
    own = {
        "run-dir": "the grid's directory, with a run in it for each setting",
        "attacks": "report these attacks alone",
        "headline": "the attack by which settings are compared",
    }
    add_fields(parser, own)
    return parser


def run(verb: str, argv: list[str], terminal: Terminal) -> int:
    """Complete a grid and report it; return the exit status, 1 where a setting failed."""
    options = parse_options(verb, argv, GridOptions, read_config)
    if options is None:
        return 0
    require_attacks(options.attacks, options.headline)
    progress, over = events(options.run_dir, options.tensorboard), parse_over(options.over)
    with progress as tell:
        found = grid(
            options.run_dir,
            options.config,
            over,
            apart=options.apart,
            attacks=options.attacks or None,
            headline=options.headline or None,
            show_progress=terminal.shows_progress,
            progress=tell,
            planned=lambda plan: terminal.say(f"{options.run_dir}: {plan}"),
            warnings=terminal.shown,
        )
    if terminal.table:
        terminal.show(grid_table(found.figures))
    terminal.say(str(found))
    terminal.files(found.path, ("report.html", "grid.json", "grid.png"))
    terminal.stored(found.path / "grid.json")
    return int(bool(found.failed))
