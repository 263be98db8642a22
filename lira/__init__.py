"""LiRA at scale: shadow models trained in stacks, likelihood-ratio scores, ROC curves at low false-positive rates.

The way of the data: dataset, keep mask, stack of models, signals, scores, ROC curve, report.

    import lira
    dataset = lira.load_dataset("digits")
    run = lira.Run.create("runs/digits", dataset, lira.Recipe(model="mlp", epochs=50), num_models=128)
    lira.train(run, dataset)                # resumable
    evaluation = lira.evaluate(run, dataset)
    print(evaluation)                       # the verdict, in plain words
    evaluation.to_frame()                   # every attack's figures, as a pandas table
    evaluation.plot_roc()                   # or on axes of your own: plot_roc(ax)
    evaluation.vulnerable(10)               # the examples most at risk
    evaluation.report("reports/digits")     # the page, its pictures, metrics.json, records.csv

What there is; `help(lira.train)` says more of each:

    data and models     load_dataset, Dataset, Recipe, Queries, Membership, keep_mask
    a run of models     Run, Config, Execution, plan, train, Progress, tensorboard, verify, mend
    what is found       evaluate, Evaluation, report, score, records, check, enough, compare, grid, Grid
    other models        audit_estimator, audit_training, audit (anyone's confidences), import_run, export_carlini,
                        imitate, Imitation
    canaries            Canaries, plant, audit_one (one training), audit_canaries (anyone's), audit_step
    unlearning          Unlearning, UnlearnConfig, Forget, plan_unlearning, unlearn, report_unlearning
    on plain arrays     attacks, metrics, epsilon, forgetting, plot_roc, plot_attacks

Import by name, `from lira import Recipe, train`: what there is is imported when it is asked for, and a star knows of none of
it. The verbs of the command line are functions here. No module beside this one may bear the name of one: importing it would
put the module in the function's place.
"""

from lira import stopping as stopping  # first: it takes the signals of the command

# isort: split
import importlib
from typing import TYPE_CHECKING, Any

from lira.versions import __version__

if TYPE_CHECKING:  # at run time each is imported when it is first asked for: jax alone takes a second
    from lira import attacks, epsilon, forgetting, metrics
    from lira.data.canaries import Canaries
    from lira.data.dataset import Dataset
    from lira.data.planting import plant
    from lira.data.sources import load_dataset
    from lira.engine.fill import train
    from lira.engine.plan import plan
    from lira.engine.progress import Progress
    from lira.engine.step_audit import audit_step
    from lira.engine.tensorboard import tensorboard
    from lira.engine.verify import verify
    from lira.exchange.audit import audit
    from lira.exchange.estimators import audit_estimator, audit_training
    from lira.exchange.export import export_carlini
    from lira.exchange.layouts import import_run
    from lira.learning.augment import Queries
    from lira.learning.imitation import Imitation
    from lira.learning.recipe import Recipe
    from lira.membership import Membership, keep_mask
    from lira.reporting.checks import check_run as check
    from lira.reporting.enough import enough
    from lira.reporting.evaluation import Evaluation
    from lira.reporting.grid import Grid, grid
    from lira.reporting.imitation import imitate
    from lira.reporting.mending import mend
    from lira.reporting.one_run import audit_canaries, audit_one
    from lira.reporting.plots import plot_attacks, plot_roc
    from lira.reporting.reports import compare, evaluate, records, report
    from lira.reporting.unlearning import report_unlearning
    from lira.scoring import score
    from lira.store.config import Config, Execution
    from lira.store.run import Run
    from lira.unlearning.config import Forget, UnlearnConfig
    from lira.unlearning.directory import Unlearning
    from lira.unlearning.plan import plan_unlearning
    from lira.unlearning.protocol import unlearn

    # To type checkers alone: where modules have it, help(lira) prints every function whole, 1,800 lines.
    __all__ = [
        "Canaries",
        "Config",
        "Dataset",
        "Evaluation",
        "Execution",
        "Forget",
        "Grid",
        "Imitation",
        "Membership",
        "Progress",
        "Queries",
        "Recipe",
        "Run",
        "UnlearnConfig",
        "Unlearning",
        "__version__",
        "attacks",
        "audit",
        "audit_canaries",
        "audit_estimator",
        "audit_one",
        "audit_step",
        "audit_training",
        "check",
        "compare",
        "enough",
        "epsilon",
        "evaluate",
        "export_carlini",
        "forgetting",
        "grid",
        "imitate",
        "import_run",
        "keep_mask",
        "load_dataset",
        "mend",
        "metrics",
        "plan",
        "plan_unlearning",
        "plant",
        "plot_attacks",
        "plot_roc",
        "records",
        "report",
        "report_unlearning",
        "score",
        "tensorboard",
        "train",
        "unlearn",
        "verify",
    ]

# Where each name is, and what it is called there; modules are themselves.
_WHERE = {
    "Canaries": "lira.data.canaries",
    "Config": "lira.store.config",
    "Dataset": "lira.data.dataset",
    "Evaluation": "lira.reporting.evaluation",
    "Execution": "lira.store.config",
    "Forget": "lira.unlearning.config",
    "Grid": "lira.reporting.grid",
    "Imitation": "lira.learning.imitation",
    "Membership": "lira.membership",
    "Progress": "lira.engine.progress",
    "Queries": "lira.learning.augment",
    "Recipe": "lira.learning.recipe",
    "Run": "lira.store.run",
    "UnlearnConfig": "lira.unlearning.config",
    "Unlearning": "lira.unlearning.directory",
    "attacks": "lira.attacks",
    "audit": "lira.exchange.audit",
    "audit_canaries": "lira.reporting.one_run",
    "audit_estimator": "lira.exchange.estimators",
    "audit_one": "lira.reporting.one_run",
    "audit_step": "lira.engine.step_audit",
    "audit_training": "lira.exchange.estimators",
    "check": "lira.reporting.checks:check_run",
    "compare": "lira.reporting.reports",
    "enough": "lira.reporting.enough",
    "epsilon": "lira.epsilon",
    "evaluate": "lira.reporting.reports",
    "export_carlini": "lira.exchange.export",
    "forgetting": "lira.forgetting",
    "grid": "lira.reporting.grid",
    "imitate": "lira.reporting.imitation",
    "import_run": "lira.exchange.layouts",
    "keep_mask": "lira.membership",
    "load_dataset": "lira.data.sources",
    "mend": "lira.reporting.mending",
    "metrics": "lira.metrics",
    "plan": "lira.engine.plan",
    "plan_unlearning": "lira.unlearning.plan",
    "plant": "lira.data.planting",
    "plot_attacks": "lira.reporting.plots",
    "plot_roc": "lira.reporting.plots",
    "records": "lira.reporting.reports",
    "report": "lira.reporting.reports",
    "report_unlearning": "lira.reporting.unlearning",
    "score": "lira.scoring",
    "tensorboard": "lira.engine.tensorboard",
    "train": "lira.engine.fill",
    "unlearn": "lira.unlearning.protocol",
    "verify": "lira.engine.verify",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, once."""
    if name not in _WHERE:
        raise AttributeError(f"module 'lira' has no attribute {name!r}")
    place, _, theirs = _WHERE[name].partition(":")
    module = importlib.import_module(place)
    value = module if place == f"lira.{name}" else getattr(module, theirs or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """What there is, imported or not, without what this module itself uses."""
    return sorted({*_WHERE, *(name for name in globals() if name.startswith("__"))})
