"""`lira unlearn`, and `lira plan` of one."""

import argparse
import warnings

from lira.arguments import UnlearnOptions, add_fields, flag_value, leaves, make_parser, parse_options
from lira.commands.events import TENSORBOARD, events
from lira.commands.terminal import Terminal, common_parser
from lira.commands.whole import say_mended
from lira.data.sources import load_dataset
from lira.reporting.unlearning import report_unlearning
from lira.reporting.unlearning_tables import verdicts_table
from lira.store.config import Config
from lira.store.places import directory_at
from lira.unlearning.config import PROVEN, Forget, UnlearnConfig, read_unlearning, resolved, with_options
from lira.unlearning.directory import Unlearning
from lira.unlearning.mend import mend_unlearning
from lira.unlearning.plan import plan_unlearning
from lira.unlearning.protocol import unlearn

__all__ = ["parser_of", "plan_or_unlearn", "run"]


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Its options, which are tyro's, for shell completion."""
    parser = make_parser(verb, parents=[common_parser()])
    parser.add_argument("--tensorboard", action="store_true", help=TENSORBOARD)
    add_fields(parser, dict.fromkeys(("run-dir", "run", "methods"), ""), *leaves(Forget, "forget."))
    return parser


def run(verb: str, argv: list[str], terminal: Terminal) -> int:
    """Run it; return the exit status."""
    return plan_or_unlearn(verb, argv, terminal)


def plan_or_unlearn(verb: str, argv: list[str], terminal: Terminal) -> int:
    """Plan an unlearning, or complete and report it."""
    # Flags make of a public pool a private one, of which other methods are the default.
    methods = PROVEN if any(word.startswith("--recipe.privacy.") for word in argv) else ()

    def read(path: str):
        return with_options(read_unlearning(path, flag_value(argv, "--run"), methods))

    def make() -> UnlearnOptions:
        return UnlearnOptions(config=UnlearnConfig(Config(save_params=True), methods=methods))

    options = parse_options(verb, argv, make, read)
    if options is None:
        return 0
    progress = events(options.run_dir, options.tensorboard)
    config = resolved(options.config)
    pool = config.pool
    exists = bool(options.run_dir) and (directory_at(options.run_dir) / "config.toml").exists()
    dataset = load_dataset(
        pool.dataset,
        num_examples=pool.num_examples,
        data_dir=pool.data_dir,
        reread=verb != "plan" and not exists,
    )
    if verb == "plan":
        unlearning = Unlearning.open(options.run_dir) if exists else None
        terminal.say(str(plan_unlearning(config, dataset, unlearning)))
        return 0
    if exists:
        said = mend_unlearning(options.run_dir, dataset)
        say_mended(said, directory_at(options.run_dir), terminal)
    unlearning = Unlearning.create(options.run_dir, dataset, config)
    if unlearning.is_complete():
        terminal.say(f"{unlearning.path}: all models are trained, retrained and unlearned")
    else:
        terminal.say(f"{unlearning.path}:\n{plan_unlearning(config, dataset, unlearning)}")
        with progress as tell:
            unlearn(unlearning, dataset, show_progress=terminal.shows_progress, progress=tell)
    evaluation = report_unlearning(unlearning, dataset, warnings=terminal.shown)
    if terminal.table:
        terminal.show(verdicts_table(evaluation), spare=(7, 3, 5, 4, 6, 1))
    for doubt in evaluation.doubts:
        warnings.warn(doubt, stacklevel=1)
    for sentence in evaluation.sentences:
        terminal.say(sentence)
    terminal.say(str(unlearning.path / "report.html"))
    terminal.stored(unlearning.path / "metrics.json")
    return 0
