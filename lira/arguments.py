"""What stands on the command line: parsers of arguments, and flags that overlay a configuration file."""

import argparse
import ast
import contextlib
import copy
import dataclasses
import inspect
import io
import itertools
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, TypeVar

import tyro

from lira.fields import table_of
from lira.store.config import Config, ConfigError, build
from lira.store.places import directory_at
from lira.unlearning.config import UnlearnConfig

__all__ = [
    "ONE_RUN",
    "GridOptions",
    "OneRunOptions",
    "Options",
    "RunOptions",
    "UnlearnOptions",
    "add_fields",
    "flag_value",
    "leaves",
    "make_parser",
    "parse_all",
    "parse_known",
    "parse_options",
]


@dataclasses.dataclass(frozen=True)
class Options:
    """Of commands that read a configuration: where it is, and where the run is."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG.toml")] = ""
    """The configuration; without one that of the run that is there, or the defaults with --dataset. Flags overlay it."""
    run_dir: str = ""
    """The run's directory: a new or empty one, or one to go on with."""
    table: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print whole tables, not the verdict alone."""
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print nothing but warnings and errors."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print figures as JSON, and nothing else."""
    log_level: str = "warning"
    """What stands on stderr: debug, info, warning or error."""
    tensorboard: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write TensorBoard's events of the training into the run's directory, below tensorboard/."""


@dataclasses.dataclass(frozen=True)
class RunOptions(Options):
    """Of `lira run` and `lira plan`."""

    models: str = ""
    """Train these alone, FIRST:STOP, as of 0:64."""
    share: str = ""
    """Train this share alone, INDEX/COUNT counted from 0, as of 3/16."""
    attacks: tuple[str, ...] = ()
    """Report these attacks alone."""
    headline: str = ""
    """The attack that leads the report; empty: by the number of models, see the page."""
    config: Annotated[Config, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Config)


@dataclasses.dataclass(frozen=True)
class GridOptions(Options):
    """Of `lira grid`."""

    over: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A field of recipe or queries and its values, FIELD=VALUE,VALUE,...; several of them: every combination."""
    apart: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Vary one field at a time, beside the configuration as it stands, in place of every combination."""
    attacks: tuple[str, ...] = ()
    """Report these attacks alone."""
    headline: str = ""
    """The attack by which settings are compared; empty: by the number of models."""
    config: Annotated[Config, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Config)


@dataclasses.dataclass(frozen=True)
class UnlearnOptions(Options):
    """Of `lira unlearn`."""

    config: Annotated[UnlearnConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: UnlearnConfig(Config(save_params=True))
    )


# What a configuration of an audit of one training has where it says nothing else.
ONE_RUN = {"num_models": 1, "membership": {"design": "all"}, "canaries": {}}


@dataclasses.dataclass(frozen=True)
class OneRunOptions(Options):
    """Of `lira audit-one`."""

    delta: float = 0.0
    """Of the bounds; 0 takes the recipe's, or 1e-5."""
    confidence: float = 0.95
    """Of each bound by itself."""
    config: Annotated[Config, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: build(Config, ONE_RUN, "")
    )


Given = TypeVar("Given", RunOptions, GridOptions, UnlearnOptions, OneRunOptions)


def make_parser(verb: str, **options: Any) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"lira {verb}", exit_on_error=False, **options)


def parse_known(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse known arguments; a mistake is a ConfigError of one line, not argparse's usage page."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{parser.prog}: {error}") from error
    except SystemExit as error:
        if error.code == 0:
            raise
        raise ConfigError(stderr.getvalue().strip().splitlines()[-1]) from error


def parse_all(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parse arguments, all of which must be known."""
    arguments, unknown = parse_known(parser, argv)
    if unknown:
        raise ConfigError(f"{parser.prog}: unknown argument {unknown[0]!r}; see {parser.prog} --help")
    return arguments


def flag_value(flags: list[str], name: str) -> str:
    """What a flag is followed by; empty where it is not there."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(name, dest="value", default="")
    return parser.parse_known_args(flags)[0].value


# --- A configuration and the flags over it ----------------------------------------------------------------------------


def parse_options(
    verb: str, argv: list[str], make: Callable[[], Given], read: Callable[[str], Any]
) -> Given | None:
    """The options of a command with a configuration, from the file that is named and the flags over it.

    Args:
        verb: the command.
        argv: what follows it.
        make: its options.
        read: what reads a configuration file.

    Returns:
        None where help was asked for, and printed.

    Raises:
        ConfigError: there is no configuration, or a flag does not fit.
    """
    file, helps = _config_file(argv), bool({"-h", "--help"} & set(argv))
    run_dir, base = flag_value(argv, "--run-dir"), make()
    there = directory_at(run_dir) / "config.toml" if run_dir else None
    named = file or (str(there) if there and there.exists() else "")
    if named:
        base = dataclasses.replace(base, config=read(named))
    elif not helps and not any(re.match(r"--dataset(=|$)", word) for word in argv):
        raise ConfigError(
            f"lira {verb}: name a configuration file, or a data set by --dataset; lira init writes a file"
        )
    for name in ("--attacks", "--methods", "--signals"):
        if sum(word == name or word.startswith(f"{name}=") for word in argv) > 1:
            raise ConfigError(f"lira {verb}: {name} is given twice: name all of them after one")
    options = _with_flags(base, argv, f"lira {verb}")
    if options is not None and options.file != file:
        raise ConfigError(
            f"lira {verb}: the configuration file comes first, before the flags: {options.file!r}"
        )
    if options is not None and not options.run_dir and verb != "plan":
        raise ConfigError(f"lira {verb}: --run-dir is needed, the run's directory")
    return options


def _config_file(argv: list[str]) -> str:
    """The configuration file among the arguments: the first one, or one that is called so; empty where there is none."""
    first = argv[0] if argv and not argv[0].startswith("-") else ""
    before = ["", *argv]
    named = (
        word
        for word, previous in zip(argv, before, strict=False)
        if word.endswith(".toml") and (not previous.startswith("--") or "=" in previous)
    )
    after_run_dir = (
        argv[i + 2]
        for i, word in enumerate(argv[:-2])
        if word == "--run-dir" and not argv[i + 2].startswith("-")
    )
    return first or next(named, "") or next(after_run_dir, "")


def _with_flags(options: Given, flags: list[str], prog: str) -> Given | None:
    """Overlay the flags, one for every field; None if help was asked for. Tyro's box of an error becomes one line."""
    options = dataclasses.replace(options, config=_with_tables(options.config, flags))
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        try:
            # A table that is not there has no flags, and is no subcommand.
            config = (tyro.conf.AvoidSubcommands,)
            return tyro.cli(
                type(options), default=options, args=flags, prog=prog, description="", config=config
            )
        except SystemExit as stop:
            if stop.code == 0:
                return None
            raise ConfigError(_unboxed(stderr.getvalue())) from stop


def _with_tables(config: Any, flags: list[str], prefix: str = "--") -> Any:
    """The configuration with those tables in it, at their defaults, that it may lack and a flag is of; for help with all.

    What they and the configuration come to is unchecked until the flags are laid over them.
    """
    config = copy.copy(config)
    for each in dataclasses.fields(config):
        value, name = getattr(config, each.name), f"{prefix}{each.name.replace('_', '-')}."
        if dataclasses.is_dataclass(value):
            # The fields of `pool` stand beside the others.
            value = _with_tables(value, flags, prefix if each.name == "pool" else name)
        elif value is None and any(flag.startswith(name) or flag in ("-h", "--help") for flag in flags):
            value = object.__new__(table := table_of(each.type))
            for field in dataclasses.fields(table):
                object.__setattr__(value, field.name, field.default)
        object.__setattr__(config, each.name, value)
    return config


def _unboxed(box: str) -> str:
    """The message in tyro's box, drawn in Unicode or ASCII: what stands above the first rule, and what was meant."""
    lines = [line.strip("│|+╭╮╰╯ ") for line in box.splitlines()[1:]]
    content = list(itertools.dropwhile(_is_rule, lines))
    message = " ".join(itertools.takewhile(lambda line: not _is_rule(line), content))
    meant = []
    if "Perhaps you meant:" in content:
        meant = [line.split()[0] for line in content if re.match(r"--\w", line)]
    return message + (f"; did you mean {meant[0]}?" if meant else "")


def _is_rule(line: str) -> bool:
    return set(line) <= set("─-")


def leaves(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """The fields of a configuration that are no tables, those of its tables too: name, default, what it is."""
    docs = _docstrings(cls)
    for each in dataclasses.fields(cls):
        default = each.default if each.default is not dataclasses.MISSING else None
        if (table := table_of(each.type)) is not None:
            yield from leaves(table, f"{prefix}{each.name}.")
        else:
            yield f"{prefix}{each.name}", default, docs.get(each.name, "")


def add_fields(parser: argparse.ArgumentParser, own: Mapping[str, str], *more: tuple[str, Any, str]) -> None:
    """The options of a command with a configuration, which tyro parses, as shell completion offers them.

    Args:
        parser: of the command; it gets the file and a flag for every field.
        own: the command's own options, and what they are.
        more: fields beside those of a run's configuration, as of `leaves`.
    """
    parser.add_argument("file", metavar="CONFIG.toml", nargs="?", help="the configuration")
    for name, what in (*own.items(), *((name, what) for name, _, what in (*leaves(Config), *more))):
        parser.add_argument(f"--{name.replace('_', '-')}", help=what.replace("%", "%%"))


def _docstrings(cls: type) -> dict[str, str]:
    """What stands below each field of a dataclass."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in itertools.pairwise(tree.body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found
