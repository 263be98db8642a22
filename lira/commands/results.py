"""`lira score`, `report`, `records`, `check`, `enough` and `compare`: what is asked of a run."""

import argparse
import json

from lira.arguments import make_parser, parse_all
from lira.attacks.suite import select_attacks
from lira.commands.choosing import add_attacks, add_headline, require_attacks
from lira.commands.terminal import Terminal, common_parser
from lira.commands.whole import say_mended
from lira.engine.trained import Check
from lira.reporting.checks import check_run
from lira.reporting.document import differences_document, learning_document
from lira.reporting.enough import RULE, enough
from lira.reporting.gate import gate
from lira.reporting.measured import LOW_FPR
from lira.reporting.reports import compare, records, report, reported
from lira.reporting.tables import differences_table, learning_table
from lira.scoring import score
from lira.store.config import IMPORTED, ConfigError, read_directory
from lira.store.data import dataset_if_there, dataset_of
from lira.store.errors import RunError
from lira.store.files import content_of
from lira.store.mend import mend
from lira.store.places import Place, directory_at
from lira.store.run import Run
from lira.store.verify_derived import document_findings

__all__ = ["parser_of", "run"]

# What `lira records` leaves behind, and every report.
RECORDS = ("records.csv", "records.json", "records")


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The options of these commands."""
    parser = make_parser(verb, parents=[common_parser()])
    parser.add_argument("run", metavar="RUN", help="a run directory")
    if verb == "compare":
        parser.add_argument("other", metavar="RUN", nargs="?", help="another run of the same memberships")
    if verb == "records":
        parser.add_argument(
            "--fpr", type=float, default=LOW_FPR, help="false-positive rate, a fraction (%(default)s)"
        )
    if verb in ("score", "report"):
        add_attacks(parser)
    if verb == "report":
        add_headline(parser)
    if verb == "check":
        parser.add_argument(
            "--fail-above",
            nargs="+",
            action="extend",
            default=[],
            metavar="FIGURE=LIMIT",
            help="status 1 where a reported figure is higher: tpr@0.001=0.02, auc=0.6 or balanced_accuracy=0.55 of the "
            "headline attack, ATTACK:auc=0.6 of another; fractions",
        )
    return parser


def run(verb: str, argv: list[str], terminal: Terminal) -> int:
    """Run one of these commands; return the exit status."""
    arguments = parse_all(parser_of(verb), argv)
    if verb in ("score", "report"):
        _mend_imported(directory_at(arguments.run), terminal)
    opened = Run.open(arguments.run)
    if verb == "check":
        return _check(opened, arguments.fail_above, terminal)
    if verb == "enough":
        curves = enough(opened)
        terminal.show(learning_table(curves, LOW_FPR, RULE), spare=range(1, 12))
        terminal.files(
            opened.path, [name for name in ("enough.json", "enough.png") if (opened.path / name).exists()]
        )
        terminal.document(learning_document(RULE, curves, LOW_FPR))
    elif verb == "compare":
        other = None if arguments.other is None else Run.open(arguments.other)
        against, differences = compare(opened, other)
        title = f"{opened.path} minus {against}" if other else f"{opened.path}: each attack minus {against}"
        terminal.show(differences_table(differences, title))
        terminal.document({"against": against, "attacks": differences_document(differences)})
    elif verb == "records":
        found = records(opened, dataset_if_there(opened), fpr=arguments.fpr)
        at = f"{100 * found.fpr:g} % FPR" if found.fpr else "no false positive"
        terminal.say(
            f"{opened.path}: {found.num_examples:,} examples ranked by {found.headline} at {at}, beside "
            f"{len(found.attacks)} attacks"
        )
        terminal.files(opened.path, RECORDS)
        terminal.stored(opened.path / "records.json")
    elif verb == "score":
        chosen = None if arguments.attacks is None else select_attacks(arguments.attacks)
        scored = score(opened, dataset_if_there(opened), attacks=chosen)
        terminal.say(f"{opened.path}: {len(scored)} attacks scored for {len(opened.targets)} models")
        terminal.document({"attacks": list(scored), "models": opened.targets.tolist()})
    else:
        require_attacks(arguments.attacks or (), arguments.headline)
        chosen = {"attacks": arguments.attacks, "headline": arguments.headline}
        evaluation = report(opened, dataset_if_there(opened), warnings=terminal.shown, **chosen)
        terminal.result(opened.path, evaluation)
    return 0


def _mend_imported(path: Place, terminal: Terminal) -> None:
    """Make imported models whole, which no `lira run` begins with."""
    if read_directory(path)[0].dataset == IMPORTED:
        say_mended(mend(path), path, terminal)


def _check_data(run: Run) -> list[Check]:
    """Whether the data set is still what the models were trained on; nothing where only its owner has it."""
    if run.is_foreign or run.config.dataset == "memory":
        return []
    try:
        run.require_same_data(dataset_of(run))
    except RunError as error:
        return [Check("data", "fail", str(error))]
    except ValueError as error:
        return [Check("data", "warn", f"cannot be compared with what the models were trained on: {error}")]
    return [Check("data", "ok", f"{run.config.dataset} is as the models were trained on it")]


def _check(run: Run, limits: list[str], terminal: Terminal) -> int:
    checks = [*_check_data(run), *check_run(run)]
    if limits:
        if not (run.path / "metrics.json").exists():
            raise ConfigError(
                f"{run.path}: is not reported yet, so there is no figure to judge: lira report {run.path}"
            )
        if any(document_findings(run.path, names=("metrics.json",))):
            raise ConfigError(f"{run.path}: its report is damaged: lira report {run.path}")
        document = json.loads(content_of(run.path / "metrics.json"))
        if reported(run, document.get("selected")) is None:
            raise ConfigError(
                f"{run.path}: its report is of other models than are there now: lira report {run.path}"
            )
        checks += gate(document, limits)
    for check in checks:
        terminal.say(f"{check.status:4}  {check.name}: {check.sentence}")
    terminal.document([check._asdict() for check in checks])
    return int(any(check.status == "fail" for check in checks))
