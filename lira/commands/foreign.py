"""`lira audit`, `import`, `export` and `imitate`: other people's models, and models that imitate one."""

import argparse
import dataclasses
from typing import Any

import numpy as np

from lira.arguments import make_parser, parse_all
from lira.commands.choosing import add_attacks, add_headline, require_attacks
from lira.commands.terminal import Terminal, common_parser, own
from lira.data.files import read_array
from lira.exchange.audit import audit
from lira.exchange.confidences import KINDS
from lira.exchange.export import export_carlini
from lira.exchange.layouts import LAYOUTS, import_run
from lira.learning.imitation import Imitation
from lira.reporting.imitation import METHODS, imitate
from lira.reporting.one_run import CONFIDENCE, DELTA, DOCUMENT, PAGE, audit_canaries
from lira.reporting.tables import attacks_table
from lira.store.config import ConfigError
from lira.store.data import dataset_of
from lira.store.places import Place, directory_at, new_directory, require_new
from lira.store.run import Run

__all__ = ["parser_of", "run"]

# Fields of `Imitation` that are flags.
IMIA_OPTIONS = ("warmup", "weight", "temperature")
# What `lira imitate` trains where no method is named.
IMITATED = ["imia", "glira_kl"]
# The files of an audit, and the shapes of their arrays.
AUDIT_FILES = {
    "phi": "logit-scaled confidences [M, N] or [M, N, Q]",
    "logits": "[M, N, C] or [M, N, Q, C]; [M, N] or [M, N, Q, 1] for one logit of a binary classifier",
    "confidences": "of the label [M, N] or [M, N, Q]; with --labels whole vectors [M, N, C] or [M, N, Q, C]",
    "losses": "cross-entropy in nats [M, N] or [M, N, Q]",
    "keep": "[M, N], which model was trained on which example",
    "labels": "[N], needed for logits",
    "target": "the same values of the attacked model [N, ...], or of T of them",
    "member": "[N] or [T, N], what the target was trained on",
    "population": "the pool's values of points that none was trained on",
    "target-population": "the target's values of the same points",
    "population-labels": "their labels, needed for logits",
}
CANARY_FILES = {
    "canaries": "scores of one training's canaries [m], or of T trainings [T, m]; higher = more likely a member",
    "coins": "[m] or [T, m], which canary the training saw: 1 or 0",
}
OF_CANARIES = (*CANARY_FILES, "fair", "delta", "confidence")
FAIR = "declare that the coins of the canaries are fair: otherwise they cost a part of the bound"
INDEPENDENT = (
    "declare that each membership was drawn by a coin of its own, all of one probability: no epsilon is claimed without, "
    "and models that are no pairs are left out with others, until all examples have equal counts"
)
# Of values that look as if they were in another order, or turned round.
TRUST_ORDER = (
    "declare that values, labels and memberships are of the same examples in the same order: what looks otherwise is then "
    "a warning, and no longer refused"
)


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The options of these commands."""
    parser = make_parser(verb, parents=[common_parser()])
    {"audit": _add_audit, "imitate": _add_imitate, "import": _add_import, "export": _add_export}[verb](parser)
    return parser


def run(verb: str, argv: list[str], terminal: Terminal) -> int:
    """Run one of these commands; return the exit status."""
    arguments = parse_all(parser_of(verb), argv)
    {"audit": _audit, "imitate": _imitate, "import": _import, "export": _export}[verb](arguments, terminal)
    return 0


# --- Audits -----------------------------------------------------------------------------------------------------------


def _add_audit(parser: argparse.ArgumentParser) -> None:
    values = parser.add_mutually_exclusive_group(required=True)
    for kind in (*KINDS, "canaries"):
        values.add_argument(f"--{kind}", metavar="F", help={**AUDIT_FILES, **CANARY_FILES}[kind])
    for name, shape in {**AUDIT_FILES, **CANARY_FILES}.items():
        if name not in (*KINDS, "canaries"):
            parser.add_argument(f"--{name}", metavar="F", help=shape)
    parser.add_argument("--fair", action="store_true", help=FAIR)
    parser.add_argument("--delta", type=float, help=f"of the bounds by canaries ({DELTA:g})")
    parser.add_argument("--confidence", type=float, help=f"of each of them ({CONFIDENCE:g})")
    parser.add_argument("--independent", action="store_true", help=INDEPENDENT)
    parser.add_argument("--trust-order", action="store_true", help=TRUST_ORDER)
    add_attacks(parser)
    add_headline(parser)
    parser.add_argument("--out", metavar="DIR", required=True, help="a new or empty directory for the run")


def _audit(arguments: argparse.Namespace, terminal: Terminal) -> None:
    given = {
        name: value for name, value in own(arguments).items() if value is not None and value is not False
    }
    out, of_canaries = directory_at(given.pop("out")), "canaries" in given
    for name in given:
        if (name in OF_CANARIES) != of_canaries:
            which = "not for --canaries" if of_canaries else "for --canaries only"
            raise ConfigError(f"lira audit: --{name.replace('_', '-')} is {which}")
    if (needed := "coins" if of_canaries else "keep") not in given:
        raise ConfigError(f"lira audit: the following arguments are required: --{needed}")
    require_attacks(given.get("attacks", ()), given.get("headline"))
    if of_canaries:
        _audit_canaries(given, out, terminal)
        return
    terminal.result(out, audit(out, **given, warnings=terminal.shown))


def _audit_canaries(given: dict[str, Any], out: Place, terminal: Terminal) -> None:
    if "coins" not in given:
        raise ConfigError(
            "lira audit: --canaries is given without --coins: it needs to know which were members"
        )
    require_new(out)
    files = given.pop("canaries"), given.pop("coins")
    scores, coins = (np.asarray(read_array(file)) for file in files)
    if scores.shape != coins.shape or not np.isin(coins, (0, 1)).all():
        raise ConfigError(
            f"{files[1]}: must hold 0 and 1, or true and false, of shape {scores.shape} as {files[0]}; got {coins.dtype} "
            f"of shape {coins.shape}"
        )
    facts = {"scores": files[0], "coins in": files[1]}
    found = audit_canaries(scores, coins, facts=facts, warnings=terminal.shown, **given)
    with new_directory(out) as making:
        found.report(making)
    for sentence in found.sentences:
        terminal.say(sentence)
    terminal.files(out, (PAGE,))
    terminal.stored(out / DOCUMENT)


# --- Imitations -------------------------------------------------------------------------------------------------------


def _add_imitate(parser: argparse.ArgumentParser) -> None:
    default = Imitation()
    parser.add_argument("run", metavar="RUN", help="a run directory, whose recipe imitators are trained by")
    attacked = parser.add_mutually_exclusive_group(required=True)
    attacked.add_argument("--target", type=int, metavar="T", help="the number of a model of the run")
    attacked.add_argument(
        "--logits", metavar="F", help="of another model [N, C], or [N, Q, C] of the queries"
    )
    parser.add_argument("--member", metavar="F", help="[N], what that model was trained on")
    parser.add_argument(
        "--methods", nargs="+", action="extend", help=f"{', '.join(METHODS)}; {' '.join(IMITATED)} by default"
    )
    parser.add_argument("--num-imitators", type=int, default=10, help="of each method, even (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the imitators' memberships")
    for name in IMIA_OPTIONS:
        help_text = f"of imia, see lira.Imitation ({getattr(default, name):g})"
        parser.add_argument(f"--{name}", type=float, help=help_text)
    parser.add_argument("--out", metavar="DIR", help="a directory; RUN/imitations/... by default")


def _imitate(arguments: argparse.Namespace, terminal: Terminal) -> None:
    run = Run.open(arguments.run)
    default = Imitation()
    given = {name: value for name in IMIA_OPTIONS if (value := getattr(arguments, name)) is not None}
    methods = arguments.methods or IMITATED
    if given and "imia" not in methods:
        raise ConfigError(f"lira imitate: --{next(iter(given))} is of imia, which is not among the methods")
    imia = dataclasses.replace(default, **given)
    pivots = dataclasses.replace(METHODS["imia_pivots"], warmup=imia.warmup)  # from its end on they differ
    forms = {**METHODS, "imia": imia, "imia_pivots": pivots}
    arrays: dict[str, Any] = {
        name: None if (file := getattr(arguments, name)) is None else np.asarray(read_array(file))
        for name in ("logits", "member")
    }
    found = imitate(
        run,
        dataset_of(run),
        target=arguments.target,
        methods={name: forms.get(name, default) for name in methods},
        num_imitators=arguments.num_imitators,
        seed=arguments.seed,
        out=arguments.out,
        show_progress=terminal.shows_progress,
        **arrays,
    )
    terminal.show(attacks_table(found.evaluation), spare=(3, 4, 2, 1, 6))
    distances = ", ".join(f"{name} {each:.2f}" for name, each in found.distances.items() if each is not None)
    terminal.say(
        f"root mean square of phi minus the target's, of models that were not trained on the example: {distances}"
    )
    terminal.files(found.path, ("metrics.json", "scores"))
    terminal.stored(found.path / "metrics.json")


# --- Other codes' directories -----------------------------------------------------------------------------------------


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "layout", metavar=" | ".join(LAYOUTS), choices=list(LAYOUTS), help="whose files they are"
    )
    parser.add_argument("directory", metavar="DIR", help="what other code left behind")
    parser.add_argument("run", metavar="RUN", help="a new or empty directory")
    parser.add_argument("--labels", metavar="F", help="[N], where the layout holds none and has logits")
    parser.add_argument("--independent", action="store_true", help=INDEPENDENT)
    parser.add_argument("--trust-order", action="store_true", help=TRUST_ORDER)


def _import(arguments: argparse.Namespace, terminal: Terminal) -> None:
    labels = None if arguments.labels is None else np.asarray(read_array(arguments.labels))
    run = import_run(
        arguments.layout,
        arguments.directory,
        arguments.run,
        labels=labels,
        independent=arguments.independent,
        trust_order=arguments.trust_order,
    )
    M, N, Q = run.phi.shape
    terminal.say(f"{run.path}: {M} models, {N:,} examples, {Q} queries; next: lira report {run.path}")
    terminal.document({"run": str(run.path), "models": M, "examples": N, "queries": Q})


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("layout", metavar="carlini", choices=["carlini"], help="for whose code")
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("directory", metavar="DIR", help="a new or empty directory")


def _export(arguments: argparse.Namespace, terminal: Terminal) -> None:
    run = Run.open(arguments.run)
    missing = export_carlini(run, arguments.directory)
    terminal.say(f"{arguments.directory}: {len(run.models)} models; {'; '.join(missing)}")
    terminal.document({"directory": arguments.directory, "models": len(run.models), "missing": list(missing)})
