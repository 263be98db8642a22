"""`lira run`, `plan` and `train`."""

import argparse
import time
from collections.abc import Callable

import numpy as np

from lira.arguments import RunOptions, add_fields, make_parser, parse_all, parse_options
from lira.commands.choosing import require_attacks
from lira.commands.events import TENSORBOARD, events
from lira.commands.terminal import Terminal, common_parser
from lira.commands.unlearning import plan_or_unlearn
from lira.commands.whole import say_mended
from lira.data.dataset import Dataset
from lira.engine.fill import train
from lira.engine.plan import plan
from lira.engine.progress import Progress
from lira.engine.share import models_in_words, models_of_process
from lira.reporting.reports import report, reported
from lira.store.config import absolute, read_config, read_directory
from lira.store.data import dataset_of, load_configured
from lira.store.mend import mend
from lira.store.places import directory_at
from lira.store.run import Run
from lira.unlearning.config import is_unlearning

__all__ = ["parser_of", "run"]


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The options of these commands; those of `run` and `plan` are tyro's, and stand here for shell completion."""
    parser = make_parser(verb, parents=[common_parser()])
    if verb == "train":
        parser.add_argument("run", metavar="RUN", help="a run directory")
        parser.add_argument(
            "--models", default="", metavar="FIRST:STOP", help="train these alone, as of 0:64"
        )
        parser.add_argument(
            "--share", default="", metavar="INDEX/COUNT", help="train this share alone, from 0, as of 3/16"
        )
        parser.add_argument("--tensorboard", action="store_true", help=TENSORBOARD)
        return parser
    names = ["run-dir", "models", "share", "attacks", "headline"]
    parser.add_argument("--tensorboard", action="store_true", help=TENSORBOARD)
    add_fields(parser, dict.fromkeys(names, ""))
    return parser


def run(verb: str, argv: list[str], terminal: Terminal) -> int:
    """Run one of these commands; return the exit status."""
    if verb == "train":
        return _train_run(argv, terminal)
    if verb == "plan" and argv and not argv[0].startswith("-") and is_unlearning(argv[0]):
        return plan_or_unlearn(verb, argv, terminal)
    options = parse_options(verb, argv, RunOptions, read_config)
    if options is None:
        return 0
    progress = events(options.run_dir, options.tensorboard)
    require_attacks(options.attacks, options.headline)
    config = absolute(options.config)
    among = models_of_process(config.num_models, options.models, options.share)
    exists = bool(options.run_dir) and (directory_at(options.run_dir) / "config.toml").exists()
    dataset = load_configured(config, reread=verb == "run" and not exists)
    if verb == "plan":
        found = plan(config, dataset, Run.open(options.run_dir, dataset) if exists else None, among)
        terminal.say(str(found))
        terminal.document(vars(found))
        return 0
    if exists:
        shared = len(among) < config.num_models
        mended = mend(options.run_dir, dataset, among=among if shared else None)
        say_mended(mended, directory_at(options.run_dir), terminal)
    run = Run.from_config(options.run_dir, dataset, config)
    what = {"attacks": options.attacks or None, "headline": options.headline or None}
    if not (run.done == 0).any() and (document := reported(run, **what)):
        terminal.say(
            f"{run.path}: is complete: {config.num_models} models trained, scored and reported; nothing to do"
        )
        terminal.repeated(run.path, document)
        return 0
    with progress as tell:
        _train(run, dataset, terminal, among, tell)
    if missing := int((run.done == 0).sum()):
        terminal.say(
            f"{run.path}: {missing} models are left to other processes; the one that trains the last scores and reports"
        )
        return 0
    terminal.result(run.path, report(run, dataset, warnings=terminal.shown, **what))
    return 0


def _train_run(argv: list[str], terminal: Terminal) -> int:
    arguments = parse_all(parser_of("train"), argv)
    path = directory_at(arguments.run)
    there = Run(path, *read_directory(path))  # an array of it may be broken
    among = models_of_process(there.config.num_models, arguments.models, arguments.share)
    dataset = dataset_of(there)
    say_mended(mend(path, dataset, among=among), path, terminal)
    run = Run.open(path)
    with events(arguments.run, arguments.tensorboard) as tell:
        _train(run, dataset, terminal, among, tell)
    terminal.document({"models": run.config.num_models, "done": run.done.tolist()})
    return 0


def _train(
    run: Run,
    dataset: Dataset,
    terminal: Terminal,
    among: np.ndarray,
    tell: Callable[[Progress], None] | None,
) -> None:
    """Train those of the models `among` that are missing."""
    which = models_in_words(among, run.config.num_models)
    if (run.done[among] == 0).any():
        terminal.say(f"{run.path}: {f'{which}: ' if which else ''}{plan(run.config, dataset, run, among)}")
        began = time.monotonic()
        train(run, dataset, among=among, show_progress=terminal.shows_progress, progress=tell)
        terminal.say(f"trained in {time.monotonic() - began:.1f} s")
    else:
        which = which or f"all {run.config.num_models} models"
        terminal.say(f"{run.path}: {which} are trained; nothing to train")
