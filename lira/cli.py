"""The command line: `lira run | plan | train | score | report | records | check | imitate | unlearn | audit | import | export`."""

import contextlib
import dataclasses
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from lira.arguments import (
    INDEPENDENT,
    USAGE,
    add_audit_files,
    add_share,
    flag_value,
    make_parser,
    parse_all,
    parse_config,
    with_flags,
)
from lira.bench import throughput
from lira.cache import keep_compilations
from lira.data.dataset import Dataset
from lira.data.files import read_array
from lira.data.sources import load_dataset
from lira.engine.fill import train
from lira.engine.plan import plan
from lira.engine.share import models_in_words, models_of_process
from lira.exchange.audit import audit
from lira.exchange.export import export_carlini
from lira.exchange.layouts import LAYOUTS, import_run
from lira.learning.imitation import Imitation
from lira.reporting.checks import check_run
from lira.reporting.enough import RULE, enough
from lira.reporting.evaluate import LOW_FPR, Evaluation
from lira.reporting.imitation import METHODS, imitate
from lira.reporting.reports import compare, is_reported, records, report
from lira.reporting.tables import attacks_table, differences_table, learning_table
from lira.reporting.unlearning import report_unlearning
from lira.reporting.unlearning_tables import verdicts_table
from lira.scoring import score
from lira.stopping import SENTENCES, Terminated
from lira.store.config import ConfigError, absolute, read_config
from lira.store.places import Place, directory_at
from lira.store.run import Run
from lira.unlearning.config import is_unlearning, read_unlearning, resolved, with_options
from lira.unlearning.directory import Unlearning
from lira.unlearning.plan import plan_unlearning
from lira.unlearning.protocol import unlearn
from lira.versions import __version__

__all__ = ["main"]

# What `lira records` leaves behind, and every report.
RECORDS = ("records.csv", "records.json", "records")
# Fields of `Imitation` that are flags.
IMIA_OPTIONS = ("warmup", "weight", "temperature")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status.

    0, 2 for bad input (one line on stderr), 130 when interrupted, 143 when terminated; 1 where `check` fails, and where
    nobody reads what is printed.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    # A file or a pipe has no width: wide enough there for the table.
    console = Console() if sys.stdout.isatty() else Console(width=120, soft_wrap=True)
    try:
        with _warnings_in_one_line() as shown:
            status = _dispatch(argv, shown, console)
            sys.stdout.flush()
            return status
    except BrokenPipeError:
        # As rich does, so that the interpreter has nothing to flush at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    # Every error of the user's making is a ValueError or OSError with a message of its own.
    except (ValueError, OSError) as error:
        return _error(str(error))
    except MemoryError as error:
        return _error(f"out of memory: {error}")
    except RuntimeError as error:
        if "Unable to initialize backend" not in str(error):
            raise
        named = os.environ.get("JAX_PLATFORMS", "")
        return _error(f"JAX finds no device, and JAX_PLATFORMS is {named!r}: unset it, or name cpu: {error}")
    except KeyboardInterrupt as stop:
        number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        print(SENTENCES[number], file=sys.stderr)
        return 128 + number


def _error(message: str) -> int:
    print(f"lira: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _dispatch(argv: list[str], shown: list[str], console: Console) -> int:
    """Run one command; `shown` grows by the text of every warning."""
    verb, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if verb in ("-h", "--help", "--version"):
        print(f"lira {__version__}" if verb == "--version" else USAGE)
        return 0
    keep_compilations()
    if verb == "unlearn":
        return _unlearn_or_plan(verb, rest, shown, console)
    if verb in ("run", "plan"):
        return _run_or_plan(verb, rest, shown, console)
    if verb in ("train", "score", "report", "records", "check", "enough"):
        return _stage(verb, rest, shown, console)
    if verb == "compare":
        return _compare(rest, console)
    if verb == "imitate":
        return _imitate(rest, console)
    if verb == "audit":
        return _audit(rest, shown, console)
    if verb in ("import", "export"):
        return _exchange(verb, rest, console)
    if verb == "bench":
        parser = make_parser(verb)
        throughput.add_arguments(parser)
        throughput.run(**vars(parse_all(parser, rest)), console=console)
        return 0
    raise ConfigError(
        f"unknown command {verb!r}: the commands are run, plan, train, score, report, records, check, enough, compare, "
        f"imitate, unlearn, audit, bench, import and export"
    )


def _stage(verb: str, argv: list[str], shown: list[str], console: Console) -> int:
    parser = make_parser(verb)
    parser.add_argument("run", metavar="RUN", help="a run directory")
    if verb == "train":
        add_share(parser)
    if verb == "records":
        parser.add_argument(
            "--fpr", type=float, default=LOW_FPR, help="false-positive rate, a fraction (%(default)s)"
        )
    arguments = parse_all(parser, argv)
    run = Run.open(arguments.run)
    if verb == "check":
        checks = check_run(run)
        for check in checks:
            console.print(f"{check.status:4}  {check.name}: {check.sentence}", markup=False, highlight=False)
        return int(any(check.status == "fail" for check in checks))
    if verb == "enough":
        _print_table(learning_table(enough(run), LOW_FPR, RULE), console, 120)
        _print_files(run.path, ("enough.json", "enough.png"), console)
    elif verb == "train":
        among = models_of_process(run.config.num_models, arguments.models, arguments.share)
        _train(run, _dataset_of(run), console, among)
    elif verb == "records":
        found = records(run, _dataset_if_there(run), fpr=arguments.fpr)
        at = f"{100 * found.fpr:g} % FPR" if found.fpr else "no false positive"
        console.print(
            f"{run.path}: {found.num_examples:,} examples ranked by {found.headline} at {at}, beside "
            f"{len(found.attacks)} attacks"
        )
        _print_files(run.path, RECORDS, console)
    else:
        dataset = _dataset_if_there(run)
        evaluation = report(run, dataset, warnings=shown) if verb == "report" else None
        scored = evaluation.attacks if evaluation else score(run, dataset)
        console.print(f"{run.path}: {len(scored)} attacks scored for {len(run.targets)} models")
        if evaluation:
            _print_report(evaluation, run.path, console)
    return 0


def _compare(argv: list[str], console: Console) -> int:
    parser = make_parser("compare")
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("other", metavar="RUN", nargs="?", help="another run of the same memberships")
    arguments = parse_all(parser, argv)
    run = Run.open(arguments.run)
    other = None if arguments.other is None else Run.open(arguments.other)
    against, differences = compare(run, other)
    title = f"{run.path} less {against}" if other else f"{run.path}: each attack less {against}"
    console.print(differences_table(differences, title))
    return 0


def _imitate(argv: list[str], console: Console) -> int:
    parser, default = make_parser("imitate"), Imitation()
    parser.add_argument("run", metavar="RUN", help="a run directory, whose recipe imitators are trained by")
    attacked = parser.add_mutually_exclusive_group(required=True)
    attacked.add_argument("--target", type=int, metavar="T", help="the number of a model of the run")
    attacked.add_argument(
        "--logits", metavar="F", help="of another model [N, C], or [N, Q, C] of the queries"
    )
    parser.add_argument("--member", metavar="F", help="[N], what that model was trained on")
    parser.add_argument("--methods", nargs="+", default=["imia", "glira_kl"], help=", ".join(METHODS))
    parser.add_argument("--num-imitators", type=int, default=10, help="of each method, even (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the imitators' memberships")
    for name in IMIA_OPTIONS:
        help_text = f"of imia, see lira.Imitation ({getattr(default, name):g})"
        parser.add_argument(f"--{name}", type=float, help=help_text)
    parser.add_argument("--out", metavar="DIR", help="a directory; RUN/imitations/... by default")
    arguments = vars(parse_all(parser, argv))
    run = Run.open(arguments.pop("run"))
    given = {name: value for name in IMIA_OPTIONS if (value := arguments.pop(name)) is not None}
    if given and "imia" not in arguments["methods"]:
        raise ConfigError(f"lira imitate: --{next(iter(given))} is of imia, which is not among the methods")
    forms = {**METHODS, "imia": dataclasses.replace(default, **given)}
    arguments["methods"] = {name: forms.get(name, default) for name in arguments["methods"]}
    for name in ("logits", "member"):
        arguments[name] = None if arguments[name] is None else np.asarray(read_array(arguments[name]))
    found = imitate(run, _dataset_of(run), **arguments)
    _print_table(attacks_table(found.evaluation), console, 100)
    distances = ", ".join(f"{name} {each:.2f}" for name, each in found.distances.items() if each is not None)
    console.print(
        f"root mean square of phi less the target's, of models that were not trained on the example: {distances}"
    )
    _print_files(found.path, ("metrics.json", "scores"), console)
    return 0


def _audit(argv: list[str], shown: list[str], console: Console) -> int:
    parser = make_parser("audit")
    add_audit_files(parser)
    files = vars(parse_all(parser, argv))
    out = directory_at(files.pop("out"))
    _print_report(audit(out, **files, warnings=shown), out, console)
    return 0


def _exchange(verb: str, argv: list[str], console: Console) -> int:
    parser = make_parser(verb)
    if verb == "export":
        parser.add_argument("layout", metavar="carlini", choices=["carlini"])
        parser.add_argument("run", metavar="RUN", help="a run directory")
        parser.add_argument("directory", metavar="DIR", help="a new or empty directory")
        arguments = parse_all(parser, argv)
        run = Run.open(arguments.run)
        missing = export_carlini(run, arguments.directory)
        console.print(f"{arguments.directory}: {len(run.models)} models; {'; '.join(missing)}", markup=False)
        return 0
    parser.add_argument("layout", metavar=" | ".join(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("directory", metavar="DIR", help="what other code left behind")
    parser.add_argument("run", metavar="RUN", help="a new or empty directory")
    parser.add_argument("--labels", metavar="F", help="[N], where the layout holds none and has logits")
    parser.add_argument("--independent", action="store_true", help=INDEPENDENT)
    arguments = parse_all(parser, argv)
    labels = None if arguments.labels is None else np.asarray(read_array(arguments.labels))
    run = import_run(
        arguments.layout, arguments.directory, arguments.run, labels=labels, independent=arguments.independent
    )
    M, N, Q = run.phi.shape
    console.print(
        f"{run.path}: {M} models, {N:,} examples, {Q} queries; next: lira report {run.path}", markup=False
    )
    return 0


def _run_or_plan(verb: str, argv: list[str], shown: list[str], console: Console) -> int:
    arguments, flags = parse_config(verb, argv)
    if verb == "plan" and is_unlearning(arguments.config):
        return _unlearn_or_plan(verb, argv, shown, console)
    config = with_flags(read_config(arguments.config), flags, f"lira {verb} CONFIG.toml --run-dir RUN")
    if config is None:
        return 0
    config = absolute(config)
    among = models_of_process(config.num_models, arguments.models, arguments.share)
    dataset = load_dataset(config.dataset, num_examples=config.num_examples, data_dir=config.data_dir)
    if verb == "plan":
        run = Run.open(arguments.run_dir, dataset) if _exists(arguments.run_dir) else None
        console.print(str(plan(config, dataset, run, among)))
        return 0
    run = Run.from_config(arguments.run_dir, dataset, config)
    if not (run.done == 0).any() and is_reported(run):
        complete = f"is complete: {config.num_models} models trained, scored and reported; nothing to do"
        console.print(f"{run.path}: {complete}")
        return 0
    _train(run, dataset, console, among)
    if missing := int((run.done == 0).sum()):
        console.print(
            f"{run.path}: {missing} models are left to other processes; the one that trains the last scores and reports"
        )
        return 0
    _print_report(report(run, dataset, warnings=shown), run.path, console)
    return 0


def _unlearn_or_plan(verb: str, argv: list[str], shown: list[str], console: Console) -> int:
    arguments, flags = parse_config(verb, argv)
    config = with_options(read_unlearning(arguments.config, flag_value(flags, "--run")))
    config = with_flags(config, flags, f"lira {verb} CONFIG.toml --run-dir UNLEARN")
    if config is None:
        return 0
    config = resolved(config)
    pool = config.pool
    dataset = load_dataset(pool.dataset, num_examples=pool.num_examples, data_dir=pool.data_dir)
    if verb == "plan":
        unlearning = Unlearning.open(arguments.run_dir) if _exists(arguments.run_dir) else None
        console.print(str(plan_unlearning(config, dataset, unlearning)))
        return 0
    unlearning = Unlearning.create(arguments.run_dir, dataset, config)
    if unlearning.is_complete():
        console.print(f"{unlearning.path}: all models are trained, retrained and unlearned")
    else:
        console.print(f"{unlearning.path}:\n{plan_unlearning(config, dataset, unlearning)}")
        unlearn(unlearning, dataset)
    evaluation = report_unlearning(unlearning, dataset, warnings=shown)
    _print_table(verdicts_table(evaluation), console, 132)
    _print_files(unlearning.path, ("metrics.json", "unlearning.png", "report.html"), console)
    return 0


def _train(run: Run, dataset: Dataset, console: Console, among: np.ndarray) -> None:
    """Train those of the models `among` that are missing."""
    which = models_in_words(among, run.config.num_models)
    if (run.done[among] == 0).any():
        console.print(f"{run.path}: {f'{which}: ' if which else ''}{plan(run.config, dataset, run, among)}")
        began = time.monotonic()
        train(run, dataset, among=among)
        console.print(f"trained in {time.monotonic() - began:.1f} s")
    else:
        which = which or f"all {run.config.num_models} models"
        console.print(f"{run.path}: {which} are trained; nothing to train")


def _print_report(evaluation: Evaluation, path: Place, console: Console) -> None:
    _print_table(attacks_table(evaluation), console, 100)
    _print_files(path, ("metrics.json", "roc.png", "attacks.png", "report.html", *RECORDS), console)


def _print_table(table: Table, console: Console, width: int) -> None:
    """Print a table that needs a width: a narrower terminal wraps it; cutting it would lose the attacks' names."""
    Console(width=max(console.width, width), soft_wrap=True).print(table)


def _print_files(path: Place, names: Sequence[str], console: Console) -> None:
    for name in names:
        console.print(str(path / name))


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
    """The data set for its pictures and names; a report can do without them."""
    try:
        dataset = _dataset_of(run)
    except ValueError:
        return None
    if dataset.fingerprint != run.provenance["fingerprints"]["dataset"]:
        warnings.warn(
            f"{run.path}: goes without {dataset.name}, which is not as it was trained on", stacklevel=2
        )
        return None
    return dataset


def _exists(run_dir: str | None) -> bool:
    return run_dir is not None and (directory_at(run_dir) / "config.toml").is_file()


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[list[str]]:
    """Print each warning as one line, and collect them for the report."""
    shown: list[str] = []

    def show(message: Warning | str, *_: object, **__: object) -> None:
        shown.append(str(message))
        print(f"lira: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        yield shown
