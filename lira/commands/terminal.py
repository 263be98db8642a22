"""What commands print: for people, or as JSON; never wider than the terminal, and never as markup."""

import argparse
import codecs
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from lira.reporting.measured import Measured
from lira.reporting.tables import attacks_table, fitted
from lira.reporting.verdict import Verdict, as_verdict, verdict
from lira.store.places import Place

__all__ = ["Terminal", "common_parser", "make_terminal", "own"]

# What a stream that knows no Unicode shows in the place of these; of others a question mark.
PLAIN = {"–": "-", "…": "...", "≈": "~", "×": "x", "→": "->"}


@dataclass(frozen=True)
class Terminal:
    """Where a command prints, and how much of it."""

    console: Console
    table: bool = False
    quiet: bool = False
    json: bool = False
    shown: list[str] = field(default_factory=list)  # warnings so far, for pages

    @property
    def shows_progress(self) -> bool:
        """Whether bars are drawn."""
        return not (self.quiet or self.json)

    def say(self, text: str) -> None:
        """Print for people."""
        if self.shows_progress:
            self.console.print(text, markup=False, highlight=False)

    def show(self, table: Table, spare: Sequence[int] = ()) -> None:
        """Print a table, without those of its `spare` columns that do not fit, the first first."""
        if self.shows_progress:
            self.console.print(fitted(table, self.console, spare))

    def document(self, document: Any) -> None:
        """Print JSON, where that was asked for."""
        if self.json:
            print(json.dumps(document, indent=2, allow_nan=False))

    def stored(self, file: Place) -> None:
        """Print a JSON file, where JSON was asked for."""
        if self.json:
            print(file.read_text())

    def files(self, path: Place, names: Sequence[str]) -> None:
        """Say where files are."""
        for name in names:
            self.say(str(path / name))

    def result(self, path: Place, evaluation: Measured) -> None:
        """What an evaluation comes to, and where its page is; with --table every figure before."""
        if self.table:
            self.show(attacks_table(evaluation), spare=(3, 4, 2, 1, 6))
        self.verdict(path, verdict(evaluation), "report.html")
        self.stored(path / "metrics.json")

    def repeated(self, path: Place, document: Mapping[str, Any]) -> None:
        """The verdict of a metrics.json that is there already."""
        self.verdict(path, as_verdict(dict(document)), "report.html")
        self.stored(path / "metrics.json")

    def verdict(self, path: Place, found: Verdict, page: str) -> None:
        """The verdict's lines, and where everything else is."""
        for sentence in found.sentences:
            self.say(sentence)
        count = len(found.warnings) + len(found.failed)
        warned = f", which opens with {count} warning{'s' * (count > 1)}" if count else ""
        self.say(f"{path / page}{warned}")


def make_terminal(common: argparse.Namespace) -> Terminal:
    """The terminal, or the file or pipe in its place."""
    codecs.register_error("lira", _plain)
    for stream in (sys.stdout, sys.stderr):
        if not (stream.encoding or "utf-8").lower().replace("-", "").startswith("utf"):
            stream.reconfigure(errors="lira")  # pyright: ignore[reportAttributeAccessIssue]
    # A file or a pipe has no width, and nothing is to be wrapped in it; tables take what they need.
    console = Console() if sys.stdout.isatty() else Console(width=160, soft_wrap=True)
    return Terminal(console, common.table, common.quiet, common.json)


def common_parser() -> argparse.ArgumentParser:
    """The options of every command."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--table", action="store_true", help="print whole tables, not the verdict alone")
    parser.add_argument("--quiet", action="store_true", help="print nothing but warnings and errors")
    parser.add_argument("--json", action="store_true", help="print figures as JSON, and nothing else")
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="warning",
        help="what stands on stderr (%(default)s)",
    )
    return parser


def own(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments that are a command's own."""
    common = vars(common_parser().parse_args([]))
    return {name: value for name, value in vars(arguments).items() if name not in common}


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(PLAIN.get(each, "?") for each in error.object[error.start : error.end]), error.end
