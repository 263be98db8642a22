"""`lira audit-one`: one training, or a few, audited by canaries."""

import argparse

from lira.arguments import ONE_RUN, OneRunOptions, add_fields, leaves, make_parser, parse_options
from lira.commands.terminal import Terminal, common_parser
from lira.commands.whole import say_mended
from lira.reporting.one_run import DOCUMENT, PAGE, audit_one, checked_delta
from lira.store.config import Config, absolute, build, read_table
from lira.store.data import load_configured
from lira.store.mend import mend
from lira.store.places import directory_at
from lira.store.run import Run

__all__ = ["parser_of", "run"]


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The options of the command; they are tyro's, and stand here for shell completion."""
    parser = make_parser(verb, parents=[common_parser()])
    options = [leaf for cls in OneRunOptions.__mro__[:-1] for leaf in leaves(cls)]
    add_fields(
        parser, {name: what for name, _, what in options if name in ("run_dir", "delta", "confidence")}
    )
    return parser


def run(verb: str, argv: list[str], terminal: Terminal) -> int:
    """Train what is missing, audit, write the page; return the exit status."""
    options = parse_options(verb, argv, OneRunOptions, _read)
    if options is None:
        return 0
    config, path = absolute(options.config), directory_at(options.run_dir)
    privacy = config.recipe.privacy
    # Before anything is written, not after the training.
    delta = checked_delta(options.delta or None, options.confidence, privacy and privacy.delta)
    dataset = load_configured(config)
    if (path / "config.toml").exists():
        say_mended(mend(options.run_dir, dataset), path, terminal)
    run = Run.from_config(options.run_dir, dataset, config)
    audit = audit_one(
        run,
        dataset,
        delta=delta,
        confidence=options.confidence,
        show_progress=terminal.shows_progress,
        warnings=terminal.shown,
    )
    for sentence in audit.sentences:
        terminal.say(sentence)
    terminal.files(run.path, (PAGE,))
    terminal.stored(run.path / DOCUMENT)
    return 0


def _read(path: str) -> Config:
    """A configuration file in which what makes such an audit may be left out.

    One of a pool will do: its `num_models` are shadow models, of which such an audit needs none.
    """
    table = read_table(path)
    if table.get("membership", {}).get("design") != ONE_RUN["membership"]["design"]:
        table.pop("num_models", None)
    table["membership"] = {**ONE_RUN["membership"], **table.get("membership", {})}
    return build(Config, {**ONE_RUN, **table}, path)
