"""`lira init` and `lira completion`: what one needs first."""

import argparse
import importlib
from operator import attrgetter
from pathlib import Path
from typing import Any

import shtab
import tomli_w

from lira.arguments import leaves, make_parser, parse_all
from lira.commands import COMMANDS
from lira.commands.terminal import Terminal, common_parser
from lira.store.config import Config, ConfigError
from lira.store.files import write_atomically

__all__ = ["config_text", "parser_of", "run"]


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The options of these commands."""
    parser = make_parser(verb, parents=[common_parser()])
    if verb == "init":
        parser.add_argument("file", metavar="FILE.toml", nargs="?", default="lira.toml", help="%(default)s")
        parser.add_argument("--dataset", default=Config.dataset, help="the data set in it (%(default)s)")
    else:
        parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="the shell that is to complete")
    return parser


def run(verb: str, argv: list[str], terminal: Terminal) -> int:
    """Run one of these commands; return the exit status."""
    arguments = parse_all(parser_of(verb), argv)
    if verb == "completion":
        print(shtab.complete(_every_command(), arguments.shell))
        return 0
    place = Path(arguments.file)
    if place.exists():
        raise ConfigError(f"{place}: is there already; name another file")
    write_atomically(place, config_text(arguments.dataset).encode())
    terminal.say(
        f"{place}: edit it; then lira plan {place}, and lira run {place} --run-dir runs/{place.stem}"
    )
    return 0


def config_text(dataset: str = Config.dataset) -> str:
    """A configuration with every field at its default, and what it is above it; tables that are not there by default as comments."""
    lines, table, off = ["# A configuration of lira; every field may be left out."], "", ""
    for name, default, what in leaves(Config):
        section, _, key = name.rpartition(".")
        if section != table:
            off = "# " if attrgetter(section)(Config()) is None else ""
            lines += ["", f"{off}[{section}]"]
            table = section
        value = dataset if name == "dataset" else default
        # On one line: tomli_w breaks lists.
        shown = f"[{', '.join(map(_as_toml, value))}]" if isinstance(value, tuple) else _as_toml(value)
        lines += [f"# {what}", f"{off}{key} = {shown}"]
    return "\n".join(lines) + "\n"


def _as_toml(value: Any) -> str:
    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()


def _every_command() -> argparse.ArgumentParser:
    """One parser of all commands, for the shell."""
    parser = argparse.ArgumentParser(prog="lira")
    parser.add_argument("--version", action="store_true")
    verbs = parser.add_subparsers()
    for verb, command in COMMANDS.items():
        module = importlib.import_module(f"lira.commands.{command.module}")
        verbs.add_parser(verb, help=command.what, parents=[module.parser_of(verb)], add_help=False)
    return parser
