"""The command line: `lira run | plan | train | score | report | check | unlearn | audit | import | export`."""

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
from typing import Any, TypeVar

import numpy as np
import tyro
from rich.console import Console

from lira.bench import throughput
from lira.cache import keep_compilations
from lira.data.dataset import Dataset
from lira.data.files import read_array
from lira.data.sources import load_dataset
from lira.engine.fill import train
from lira.engine.plan import plan
from lira.exchange.audit import add_arguments, read_audit, write_audit
from lira.exchange.export import export_carlini
from lira.exchange.layouts import LAYOUTS, import_run
from lira.metrics import difference
from lira.reporting import enough, evaluate, page, tables, write
from lira.reporting.checks import check_run
from lira.reporting.published import Comparison, compare
from lira.reporting.unlearning import report_unlearning, verdicts_table
from lira.scoring import pool_of, score
from lira.store.arrays import DIVERGED, DONE
from lira.store.config import Config, ConfigError, absolute, read_config
from lira.store.run import Run
from lira.unlearning.config import UnlearnConfig, is_unlearning, read_unlearning, resolved, with_options
from lira.unlearning.directory import Unlearning
from lira.unlearning.plan import plan_unlearning
from lira.unlearning.protocol import unlearn

__all__ = ["main"]

C = TypeVar("C", Config, UnlearnConfig)

USAGE = """\
usage: lira run CONFIG.toml --run-dir RUN [--num-models 256] [--recipe.epochs 50] ...
                                  train what is missing, score, report; run it again to resume
       lira plan CONFIG.toml [--run-dir RUN] [flags]
                                  models, time, memory and disk, before anything is spent
       lira train | score | report RUN
                                  the stages by themselves
       lira enough RUN            how many shadow models are enough, for every attack
       lira compare RUN [RUN]     differences between attacks, or between runs, with paired intervals
       lira check RUN             is it safe to believe the figures? status 1 where it is not
       lira unlearn CONFIG.toml --run-dir UNLEARN [--num-models 128] [--forget.size 100] ...
                                  train, unlearn, retrain what is missing, measure, report; run it again to resume
       lira audit (--phi | --logits | --confidences | --losses) F --keep F [--labels F]
                  [--target F --member F] [--population F] --out DIR
                                  every attack on anyone's confidences: npy, npz, Zarr or CSV
       lira bench [--models mlp,cnn,cnn-fast,resnet18,wrn-28-2] [--out FILE.json]
                                  how fast this machine trains, beside the alternatives
       lira import carlini | pytorch | privacy-meter DIR RUN [--labels F]
       lira export carlini RUN DIR
                                  runs of other code, and for other code
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
    keep_compilations()
    if verb in ("-h", "--help"):
        print(USAGE)
        return 0
    if verb == "unlearn":
        return _unlearn_or_plan(verb, rest, said, console)
    if verb in ("run", "plan"):
        return _run_or_plan(verb, rest, said, console)
    if verb in ("train", "score", "report", "check", "enough"):
        return _stage(verb, rest, said, console)
    if verb == "compare":
        return _compare(rest, console)
    if verb == "audit":
        return _audit(rest, said, console)
    if verb in ("import", "export"):
        return _exchange(verb, rest, console)
    if verb == "bench":
        parser = argparse.ArgumentParser(prog="lira bench", exit_on_error=False)
        throughput.add_arguments(parser)
        throughput.run(**vars(_parse_all(parser, rest)), console=console)
        return 0
    raise ConfigError(
        f"unknown command {verb!r}: the commands are run, plan, train, score, report, check, enough, compare, unlearn, "
        f"audit, bench, import and export"
    )


def _stage(verb: str, argv: list[str], said: list[str], console: Console) -> int:
    parser = argparse.ArgumentParser(prog=f"lira {verb}", exit_on_error=False)
    parser.add_argument("run", metavar="RUN", help="a run directory")
    run = Run.open(_parse_all(parser, argv).run)
    if verb == "check":
        checks = check_run(run)
        for check in checks:
            console.print(f"{check.status:4}  {check.name}: {check.sentence}", markup=False, highlight=False)
        return int(any(check.status == "fail" for check in checks))
    if verb == "enough":
        curves = enough.curves_of(pool_of(run), fpr=float(evaluate.LOW_FPR))
        enough.write_curves(run.path, curves, float(evaluate.LOW_FPR))
        Console(width=max(console.width, 120), soft_wrap=True).print(
            enough.table(curves, float(evaluate.LOW_FPR))
        )
        console.print(f"{run.path}/enough.json\n{run.path}/enough.png")
        return 0
    if verb == "train":
        _train(run, _dataset_of(run), console)
    else:
        dataset = _dataset_if_there(run)
        scores = score(run, dataset)
        console.print(f"{run.path}: {len(scores)} attacks scored for {len(run.models)} models")
        if verb == "report":
            _report(run, scores, dataset, said, console)
    return 0


def _compare(argv: list[str], console: Console) -> int:
    """Each attack less the strongest of the same run, or each attack of one run less the same of another."""
    parser = argparse.ArgumentParser(prog="lira compare", exit_on_error=False)
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("other", metavar="RUN", nargs="?", help="another run of the same memberships")
    arguments = _parse_all(parser, argv)
    run = Run.open(arguments.run)
    keep, ours = run.keep, score(run)
    if arguments.other is None:
        against, _ = evaluate.strongest_attack(evaluate.evaluate(ours, keep)[0]["attacks"])
        theirs, keep_b = dict.fromkeys(ours, ours[against]), keep
        title = f"{run.path}: each attack less {against}"
    else:
        other = Run.open(arguments.other)
        theirs, keep_b = score(other), other.keep
        title = f"{run.path} less {other.path}"
    rows = {
        name: difference(scores, theirs[name], keep, keep_b=keep_b, fpr=float(evaluate.LOW_FPR))
        for name, scores in ours.items()
        if name in theirs and scores is not theirs[name]
    }
    console.print(tables.differences_table(rows, title))
    return 0


def _audit(argv: list[str], said: list[str], console: Console) -> int:
    parser = argparse.ArgumentParser(prog="lira audit", exit_on_error=False)
    add_arguments(parser)
    files = vars(_parse_all(parser, argv))
    out = Path(files.pop("out")).expanduser().absolute()
    named = ", ".join(f"{name.replace('_', '-')} {file}" for name, file in files.items() if file)
    metrics = write_audit(read_audit(files), out, facts={"files": named}, said=said)
    _show(metrics, out, console)
    return 0


def _exchange(verb: str, argv: list[str], console: Console) -> int:
    parser = argparse.ArgumentParser(prog=f"lira {verb}", exit_on_error=False)
    if verb == "export":
        parser.add_argument("layout", metavar="carlini", choices=["carlini"])
        parser.add_argument("run", metavar="RUN", help="a run directory")
        parser.add_argument("place", metavar="DIR", help="a new or empty directory")
        arguments = _parse_all(parser, argv)
        run = Run.open(arguments.run)
        missing = export_carlini(run, arguments.place)
        console.print(f"{arguments.place}: {len(run.models)} models; {'; '.join(missing)}", markup=False)
        return 0
    parser.add_argument("layout", metavar=" | ".join(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("place", metavar="DIR", help="what other code left behind")
    parser.add_argument("run", metavar="RUN", help="a new or empty directory")
    parser.add_argument("--labels", metavar="F", help="[N], where the layout holds none and has logits")
    arguments = _parse_all(parser, argv)
    labels = None if arguments.labels is None else np.asarray(read_array(arguments.labels))
    run = import_run(arguments.layout, arguments.place, arguments.run, labels=labels)
    M, N, Q = run.phi.shape
    console.print(
        f"{run.path}: {M} models, {N:,} examples, {Q} queries; next: lira report {run.path}", markup=False
    )
    return 0


def _run_or_plan(verb: str, argv: list[str], said: list[str], console: Console) -> int:
    place, flags = _parse_place(verb, argv)
    if verb == "plan" and is_unlearning(place.config):
        return _unlearn_or_plan(verb, argv, said, console)
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
    _report(run, score(run, dataset), dataset, said, console)
    return 0


def _unlearn_or_plan(verb: str, argv: list[str], said: list[str], console: Console) -> int:
    place, flags = _parse_place(verb, argv)
    config = with_options(read_unlearning(place.config, _flag_value(flags, "--run")))
    config = _with_flags(config, flags, f"lira {verb} CONFIG.toml --run-dir UNLEARN")
    if config is None:
        return 0
    config = resolved(config)
    pool = config.pool
    dataset = load_dataset(pool.dataset, num_examples=pool.num_examples, data_dir=pool.data_dir)
    if verb == "plan":
        exists = place.run_dir and (Path(place.run_dir) / "config.toml").exists()
        console.print(
            str(plan_unlearning(config, dataset, Unlearning.open(place.run_dir) if exists else None))
        )
        return 0
    unlearning = Unlearning.create(place.run_dir, dataset, config)
    if unlearning.is_complete():
        console.print(f"{unlearning.path}: all models are trained, retrained and unlearned")
    else:
        console.print(f"{unlearning.path}:\n{plan_unlearning(config, dataset, unlearning)}")
        unlearn(unlearning, dataset)
    metrics = report_unlearning(unlearning, dataset, warnings=said)
    Console(width=max(console.width, 132), soft_wrap=True).print(verdicts_table(metrics))
    for name in ("metrics.json", "unlearning.png", "report.html"):
        console.print(str(unlearning.path / name))
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
    """Write metrics.json, the pictures and report.html, and print the table."""
    keep = run.keep
    metrics, curves = evaluate.evaluate(scores, keep)
    metrics = {**metrics, "models": run.models.tolist()}
    first = next(iter(scores))
    images = dataset.x if dataset is not None and dataset.is_image else None
    write.write_report(
        run.path,
        metrics=metrics,
        curves=curves,
        examples=write.example_figure(
            run.phi, keep, scores[first], metrics["attacks"][first], run.labels, images
        ),
        facts={**_facts(run), **page.attacks_left_out(pool_of(run, dataset))},
        warnings=said,
        checks=check_run(run),
        published=_published(run, metrics),
    )
    _show(metrics, run.path, console)


def _show(metrics: dict[str, Any], path: Path, console: Console) -> None:
    # A narrower terminal wraps the table; cutting it would lose the attacks' names.
    Console(width=max(console.width, 100), soft_wrap=True).print(tables.table(metrics))
    for name in ("metrics.json", "roc.png", "attacks.png", "report.html"):
        console.print(str(path / name))


def _published(run: Run, metrics: dict[str, Any]) -> list[Comparison]:
    if run.is_imported:  # data set and model are not known by name
        return []
    M, N, Q = run.phi.shape
    config = run.config
    return compare(
        metrics, dataset=config.dataset, num_examples=N, model=config.recipe.model, models=M, queries=Q
    )


def _facts(run: Run) -> dict[str, str]:
    """What the page says about the run."""
    config, done = run.config, run.done
    _, N, Q = run.phi.shape
    facts = {
        "data set": f"{config.dataset}, {N:,} examples",
        "shadow models": f"{len(run.models)} attacked; {np.sum(done == DONE)} done and {np.sum(done == DIVERGED)} "
        f"diverged of {config.num_models} requested",
    }
    for side in ("in", "out", "test"):
        values = run.accuracy(side)
        if len(values) and not np.isnan(values).all():
            facts[f"accuracy {side}"] = f"{values.mean():.2%} (models' standard deviation {values.std():.2%})"
    if run.is_imported:
        source = run.provenance["source"]
        facts["source"] = f"{source['path']}, {source['file']} ({source['layout']})"
        facts["queries"] = f"{Q}"
    else:
        queries = config.queries
        facts["queries"] = f"{Q} (mirror {queries.mirror}, shift {queries.shift})"
        recipe = dataclasses.asdict(config.recipe)
        facts["recipe"] = ", ".join(f"{key} {value}" for key, value in recipe.items())
        facts["training"] = "; ".join(
            f"{s['models']} models in {s['seconds']:.0f} s on {s['device']}"
            for s in run.provenance["sessions"]
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
    if run.is_imported:
        raise ConfigError(
            f"{run.path}: was imported from {run.provenance['source']['path']} and has no recipe: it can be scored and "
            f"reported, not trained"
        )
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


def _parse_place(verb: str, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The configuration and the directory, which a plan can do without; and the flags that overlay the configuration."""
    parser = argparse.ArgumentParser(
        prog=f"lira {verb}", add_help=False, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("config", metavar="CONFIG.toml")
    parser.add_argument("--run-dir", required=verb != "plan" and "--help" not in argv)
    return _parse(parser, argv)


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


def _parse_all(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parse arguments, all of which must be known."""
    arguments, unknown = _parse(parser, argv)
    if unknown:
        raise ConfigError(f"{parser.prog}: unknown argument {unknown[0]!r}; see {parser.prog} --help")
    return arguments


def _with_flags(config: C, flags: list[str], prog: str) -> C | None:
    """Overlay the flags, one for every field; None if help was asked for. Tyro's box of an error becomes one line."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            return tyro.cli(
                type(config), default=config, args=flags, prog=prog, description="Flags overlay CONFIG.toml."
            )
        except SystemExit as stop:
            if stop.code == 0:
                return None
            raise ConfigError(_unboxed(said.getvalue())) from stop


def _flag_value(flags: list[str], name: str) -> str:
    """What a flag is followed by; empty where it is not there."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(name, dest="value", default="")
    return parser.parse_known_args(flags)[0].value


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
