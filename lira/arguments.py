"""What stands on the command line: the arguments of a verb, and flags that overlay a configuration file."""

import argparse
import contextlib
import io
import itertools
import re
from typing import Any, TypeVar

import tyro

from lira.exchange.confidences import KINDS
from lira.store.config import Config, ConfigError
from lira.unlearning.config import UnlearnConfig

__all__ = [
    "INDEPENDENT",
    "USAGE",
    "add_audit_files",
    "add_share",
    "flag_value",
    "make_parser",
    "parse_all",
    "parse_config",
    "with_flags",
]

USAGE = """\
usage: lira run CONFIG.toml --run-dir RUN [--num-models 256] [--recipe.epochs 50] ...
                                  train what is missing, score, report; run it again to resume
       lira plan CONFIG.toml [--run-dir RUN] [flags]
                                  models, time, memory and disk, before anything is spent
       lira train | score | report RUN
                                  the stages by themselves
       lira run | train ... [--models 0:64 | --share 3/16]
                                  a share of the models, for many processes on one directory; tasks of a SLURM array or
                                  an indexed Kubernetes Job know theirs
       lira records RUN [--fpr 0.001]
                                  every example by itself: records.csv, a row each, with names, figures and rank
       lira enough RUN            how many shadow models are enough, for every attack
       lira compare RUN [RUN]     differences between attacks, or between runs, with paired intervals
       lira check RUN             is it safe to believe the figures? status 1 where it is not
       lira verify RUN [--deep]   is it whole? names what is broken, status 1 where something is; lira run makes it again
       lira imitate RUN (--target T | --logits F --member F) [--methods imia glira_kl] [--num-imitators 10] [--out DIR]
                                  attack one model by models that imitate it, beside LiRA; run it again to resume
       lira unlearn CONFIG.toml --run-dir UNLEARN [--num-models 128] [--forget.size 100] ...
                                  train, unlearn, retrain what is missing, measure, report; run it again to resume
       lira audit (--phi | --logits | --confidences | --losses) F --keep F [--labels F]
                  [--target F --member F] [--population F] [--independent] --out DIR
                                  every attack on anyone's confidences: npy, npz, Zarr or CSV
       lira bench [--models mlp,cnn,cnn-fast,resnet18,wrn-28-2] [--out FILE.json]
                                  how fast this machine trains, beside the alternatives
       lira import carlini | pytorch | privacy-meter DIR RUN [--labels F] [--independent]
       lira export carlini RUN DIR
                                  runs of other code, and for other code
       lira run CONFIG.toml --help
                                  every flag
       lira --version"""

C = TypeVar("C", Config, UnlearnConfig)
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

INDEPENDENT = (
    "declare that each membership was drawn by a coin of its own, all of one probability: no epsilon is claimed without, "
    "and models that are no pairs are left out with others, until all examples have equal counts"
)


def make_parser(verb: str, **options: Any) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"lira {verb}", exit_on_error=False, **options)


def parse_config(verb: str, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The configuration and the directory, which a plan can do without; and the flags that overlay the configuration."""
    parser = make_parser(verb, add_help=False, allow_abbrev=False)
    parser.add_argument("config", metavar="CONFIG.toml")
    parser.add_argument("--run-dir", required=verb != "plan" and "--help" not in argv)
    if verb != "unlearn":
        add_share(parser)
    return _parse(parser, argv)


def add_share(parser: argparse.ArgumentParser) -> None:
    """What tells a process its models, where many train one run."""
    parser.add_argument("--models", default="", metavar="FIRST:STOP", help="train these alone, as of 0:64")
    parser.add_argument(
        "--share",
        default="",
        metavar="INDEX/COUNT",
        help="train this share alone, counted from 0, as of 3/16",
    )


def _parse(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
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
    arguments, unknown = _parse(parser, argv)
    if unknown:
        raise ConfigError(f"{parser.prog}: unknown argument {unknown[0]!r}; see {parser.prog} --help")
    return arguments


def with_flags(config: C, flags: list[str], prog: str) -> C | None:
    """Overlay the flags, one for every field; None if help was asked for. Tyro's box of an error becomes one line."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        try:
            return tyro.cli(
                type(config), default=config, args=flags, prog=prog, description="Flags overlay CONFIG.toml."
            )
        except SystemExit as stop:
            if stop.code == 0:
                return None
            raise ConfigError(_unboxed(stderr.getvalue())) from stop


def flag_value(flags: list[str], name: str) -> str:
    """What a flag is followed by; empty where it is not there."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(name, dest="value", default="")
    return parser.parse_known_args(flags)[0].value


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


def add_audit_files(parser: argparse.ArgumentParser) -> None:
    """The files of an audit, what is declared of them, and where the report goes."""
    values = parser.add_mutually_exclusive_group(required=True)
    for kind in KINDS:
        values.add_argument(f"--{kind}", metavar="F", help=AUDIT_FILES[kind])
    for name, shape in AUDIT_FILES.items():
        if name not in KINDS:
            parser.add_argument(f"--{name}", metavar="F", required=name == "keep", help=shape)
    parser.add_argument("--independent", action="store_true", help=INDEPENDENT)
    parser.add_argument("--out", metavar="DIR", required=True, help="a new or empty directory for the report")
