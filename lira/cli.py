"""The command line: `lira run | plan | train | score | report`."""

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console

from lira import report
from lira.config import Config, ConfigError, absolute, read_config
from lira.data import Dataset
from lira.engine import plan, score, train
from lira.sources import load_dataset
from lira.store import DIVERGED, DONE, Run

__all__ = ["main"]

USAGE = """\
usage: lira run CONFIG.toml --run-dir RUN [--num-models 256] [--recipe.epochs 50] ...
                                  train what is missing, score, report; run it again to resume
       lira plan CONFIG.toml [--run-dir RUN] [flags]
                                  models, time, memory and disk, before anything is spent
       lira train | score | report RUN
                                  the stages by themselves
       lira run CONFIG.toml --help
                                  every flag"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0, 2 for bad input (one line on stderr), 130 when interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # A file or a pipe has no width: wide enough there for the table.
    console = Console() if sys.stdout.isatty() else Console(width=120, soft_wrap=True)
    try:
        with _warnings_in_one_line() as said:
            return _dispatch(argv, said, console)
    # Every error of the user's making is a ValueError or OSError with a message of its own.
    except (ValueError, OSError) as error:
        print(f"lira: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "lira: interrupted: finished models are kept, and the same command goes on from there",
            file=sys.stderr,
        )
        return 130


def _dispatch(argv: list[str], said: list[str], console: Console) -> int:
    verb, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if verb in ("-h", "--help"):
        print(USAGE)
        return 0
    if verb in ("run", "plan"):
        return _run_or_plan(verb, rest, said, console)
    if verb in ("train", "score", "report"):
        parser = argparse.ArgumentParser(prog=f"lira {verb}", exit_on_error=False)
        parser.add_argument("run", metavar="RUN", help="a run directory")
        run = Run.open(_parse(parser, rest)[0].run)
        if verb == "train":
            _train(run, _dataset_of(run), console)
        else:
            scores = score(run)
            console.print(f"{run.path}: {len(scores)} attacks scored for {len(run.models)} models")
            if verb == "report":
                _report(run, scores, _dataset_if_there(run), said, console)
        return 0
    raise ConfigError(f"unknown command {verb!r}: the commands are run, plan, train, score and report")


def _run_or_plan(verb: str, argv: list[str], said: list[str], console: Console) -> int:
    parser = argparse.ArgumentParser(prog=f"lira {verb}", add_help=False, exit_on_error=False)
    parser.add_argument("config", metavar="CONFIG.toml")
    parser.add_argument("--run-dir", required=verb == "run" and "--help" not in argv)
    place, flags = _parse(parser, argv)
    config = _with_flags(read_config(place.config), flags, f"lira {verb} CONFIG.toml --run-dir RUN")
    if config is None:
        return 0
    config = absolute(config)
    dataset = load_dataset(config.dataset, num_examples=config.num_examples, data_dir=config.data_dir)
    if verb == "plan":
        exists = place.run_dir and (Path(place.run_dir) / "config.toml").exists()
        console.print(str(plan(config, dataset, Run.open(place.run_dir, dataset) if exists else None)))
        return 0
    run = Run.from_config(place.run_dir, dataset, config)
    if not (run.done == 0).any() and _is_reported(run):
        console.print(
            f"{run.path}: is complete: {config.num_models} models trained, scored and reported; nothing to do"
        )
        return 0
    _train(run, dataset, console)
    _report(run, score(run), dataset, said, console)
    return 0


def _train(run: Run, dataset: Dataset, console: Console) -> None:
    if (run.done == 0).any():
        console.print(f"{run.path}: {plan(run.config, dataset, run)}")
        train(run, dataset)
        console.print(f"trained in {run.provenance['sessions'][-1]['seconds']:.1f} s")
    else:
        console.print(f"{run.path}: all {run.config.num_models} models are trained; nothing to train")


def _report(
    run: Run, scores: dict[str, np.ndarray], dataset: Dataset | None, said: list[str], console: Console
) -> None:
    """Write metrics.json, roc.png and report.html, and print the table."""
    keep = run.keep
    metrics, curves = report.evaluate(scores, keep)
    metrics = {**metrics, "models": run.models.tolist()}
    report.write_report(
        run.path,
        metrics=metrics,
        curves=curves,
        examples=_examples(run, scores, keep, metrics, dataset),
        facts=_facts(run),
        warnings=said,
    )
    # A narrower terminal wraps the table; cutting it would lose the attacks' names.
    Console(width=max(console.width, 100), soft_wrap=True).print(report.table(metrics))
    for name in ("metrics.json", "roc.png", "report.html"):
        console.print(str(run.path / name))


def _examples(run: Run, scores, keep, metrics, dataset: Dataset | None):
    """The in/out histograms of the examples most and least at risk by the first attack."""
    name, values = next(iter(scores.items()))
    _, threshold = report.low_fpr_threshold(metrics["attacks"][name])
    most, least = report.most_and_least_vulnerable(values, keep, threshold)
    shown = np.concatenate([most, least])
    phi = np.stack([run.phi[:, i : i + 1][:, 0] for i in shown], axis=1)
    labels = run.labels
    titles = [f"example {i}, class {labels[i]}" for i in shown]
    images = dataset.x[shown] if dataset is not None and dataset.is_image else None
    return report.plot_examples(phi, keep[:, shown], titles, images)


def _facts(run: Run) -> dict[str, str]:
    """What the page says about the run."""
    config, recipe = run.config, run.config.recipe
    done = run.done
    N = run.phi.shape[1]
    accuracies = {side: run.accuracy(side) for side in ("in", "out", "test")}
    sessions = run.provenance["sessions"]
    facts = {
        "data set": f"{config.dataset}, {N:,} examples",
        "shadow models": f"{len(run.models)} attacked; {np.sum(done == DONE)} done and {np.sum(done == DIVERGED)} "
        f"diverged of {config.num_models} requested",
    }
    for side, values in accuracies.items():
        if len(values) and not np.isnan(values).all():
            facts[f"accuracy {side}"] = f"{values.mean():.2%} (models' standard deviation {values.std():.2%})"
    facts["queries"] = (
        f"{len(config.queries.views)} (mirror {config.queries.mirror}, shift {config.queries.shift})"
    )
    facts["recipe"] = ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(recipe).items())
    facts["training"] = "; ".join(
        f"{s['models']} models in {s['seconds']:.0f} s on {s['device']}" for s in sessions
    )
    facts["versions"] = ", ".join(f"{name} {number}" for name, number in run.provenance["versions"].items())
    return facts


def _is_reported(run: Run) -> bool:
    """Whether the report on disk is of the models that are there now."""
    try:
        models = json.loads((run.path / "metrics.json").read_text())["models"]
    except (OSError, ValueError, KeyError):
        return False
    return models == run.models.tolist() and all(
        (run.path / name).exists() for name in ("roc.png", "report.html")
    )


def _dataset_of(run: Run) -> Dataset:
    config = run.config
    if config.dataset == "memory":
        raise ConfigError(
            f"{run.path}: its data set was given in memory; go on in Python with "
            f"lira.train(lira.Run.open({str(run.path)!r}, dataset=...), dataset)"
        )
    return load_dataset(config.dataset, num_examples=config.num_examples, data_dir=config.data_dir)


def _dataset_if_there(run: Run) -> Dataset | None:
    """The data set for its pictures; a report can do without them."""
    try:
        return _dataset_of(run)
    except ValueError:
        return None


def _parse(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse known arguments; a mistake is a ConfigError of one line, not argparse's usage page."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{parser.prog}: {error}") from error
    except SystemExit as error:
        if error.code == 0:
            raise
        raise ConfigError(said.getvalue().strip().splitlines()[-1]) from error


def _with_flags(config: Config, flags: list[str], prog: str) -> Config | None:
    """Overlay the flags, one for every field; None if help was asked for. Tyro's box of an error becomes one line."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            return tyro.cli(
                Config, default=config, args=flags, prog=prog, description="Flags overlay CONFIG.toml."
            )
        except SystemExit as stop:
            if stop.code == 0:
                return None
            raise ConfigError(_unboxed(said.getvalue())) from stop


def _unboxed(box: str) -> str:
    """The message in tyro's box, drawn in Unicode or ASCII: what stands above the first rule, and what was meant."""
    lines = [line.strip("│|+╭╮╰╯ ") for line in box.splitlines()[1:]]
    told = list(itertools.dropwhile(_is_rule, lines))
    message = " ".join(itertools.takewhile(lambda line: not _is_rule(line), told))
    meant = (
        [line.split()[0] for line in told if re.match(r"--\w", line)] if "Perhaps you meant:" in told else []
    )
    return message + (f"; did you mean {meant[0]}?" if meant else "")


def _is_rule(line: str) -> bool:
    return set(line) <= set("─-")


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[list[str]]:
    """Print each warning as one line, and collect them for the report."""
    said: list[str] = []

    def show(message, category, filename, lineno, file=None, line=None):
        said.append(str(message))
        print(f"lira: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        yield said
