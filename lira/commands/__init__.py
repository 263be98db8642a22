"""The commands of `lira`, by name. A command's module is imported when it runs, and has two functions:

parser_of(verb) -> argparse.ArgumentParser      its options, for parsing, help and shell completion
run(verb, argv, terminal) -> int                the exit status
"""

from typing import NamedTuple

__all__ = ["COMMANDS", "USAGE", "Command"]


class Command(NamedTuple):
    """Where a command is, how it is called, and what it does."""

    module: str
    usage: str
    what: str


COMMANDS = {
    "init": Command(
        "starting", "[FILE.toml] [--dataset D]", "write a configuration with every field explained"
    ),
    "run": Command(
        "training",
        "[CONFIG.toml] --run-dir RUN [--dataset D] [--num-models 256] [--recipe.epochs 50] ...",
        "train what is missing, score, report; run it again to resume",
    ),
    "plan": Command(
        "training",
        "[CONFIG.toml] [--run-dir RUN] ...",
        "models, time, memory and disk, before anything is spent",
    ),
    "train": Command(
        "training",
        "RUN [--models 0:64 | --share 3/16]",
        "the models alone, or a share of them, for many processes",
    ),
    "score": Command("results", "RUN [--attacks A B]", "every attack on what is trained"),
    "report": Command(
        "results", "RUN [--attacks A B] [--headline A]", "the verdict, the page, metrics.json and records"
    ),
    "records": Command(
        "results", "RUN [--fpr 0.001]", "every example by itself: records.csv, with names and rank"
    ),
    "check": Command(
        "results",
        "RUN [--fail-above tpr@0.001=0.02]",
        "may the figures be believed, and are they low enough? status 1 where not",
    ),
    "verify": Command(
        "whole",
        "RUN [--deep]",
        "is it whole? names what is broken, status 1 where something is; lira run makes it again",
    ),
    "enough": Command("results", "RUN", "how many shadow models are enough, for every attack"),
    "compare": Command(
        "results", "RUN [RUN]", "differences between attacks, or between runs, with intervals"
    ),
    "grid": Command(
        "grid",
        "CONFIG.toml --run-dir GRID --over recipe.weight_decay=0,5e-4 [--over ...]",
        "settings side by side on the same memberships: utility against leakage",
    ),
    "imitate": Command(
        "foreign", "RUN (--target T | --logits F --member F)", "attack one model by models that imitate it"
    ),
    "unlearn": Command(
        "unlearning",
        "CONFIG.toml --run-dir UNLEARN [--forget.size 100] ...",
        "train, unlearn, retrain what is missing, measure, report",
    ),
    "audit": Command(
        "foreign",
        "(--phi | --logits | --confidences | --losses) F --keep F --out DIR, or --canaries F --coins F --out DIR",
        "every attack on anyone's confidences: npy, npz, Zarr or CSV; or a bound on epsilon from canaries",
    ),
    "audit-one": Command(
        "auditing_one",
        "CONFIG.toml --run-dir RUN [--canaries.count 1000] [--num-models 1] ...",
        "train one model with canaries, and bound its epsilon from below",
    ),
    "import": Command("foreign", "carlini | pytorch | privacy-meter DIR RUN", "a run of other code"),
    "export": Command("foreign", "carlini RUN DIR", "a run for other code"),
    "bench": Command(
        "benching", "[--models mlp,cnn]", "how fast this machine trains, beside the alternatives"
    ),
    "completion": Command(
        "starting", "bash | zsh | tcsh", "print what makes a shell complete commands and options"
    ),
}

_LINES = "\n".join(
    f"  lira {name} {command.usage}\n        {command.what}" for name, command in COMMANDS.items()
)
USAGE = f"""\
usage: lira COMMAND ...

{_LINES}

  lira COMMAND --help
        every option of a command
  lira --version

Options of every command:
  --table             print whole tables, not the verdict alone
  --quiet             print nothing but warnings and errors
  --json              print figures as JSON, and nothing else
  --log-level LEVEL   what stands on stderr: debug, info, warning (the default) or error"""
