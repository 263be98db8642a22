"""LiRA at scale: shadow models trained in stacks, likelihood-ratio scores, ROC curves at low false-positive rates.

The way of the data: dataset, keep mask, stack of models, signals, scores, ROC curve, report.

    import lira
    dataset = lira.load_dataset("digits")
    run = lira.Run.create("runs/digits", dataset, lira.Recipe(model="mlp", epochs=50), num_models=128)
    lira.train(run, dataset)
    scores = lira.attacks.lira_online(run.phi, run.keep)
    print(lira.metrics.roc(scores, run.keep).tpr_at(1e-3))
"""

from lira import attacks, forgetting, metrics
from lira.data.dataset import Dataset
from lira.data.sources import load_dataset
from lira.engine.fill import train
from lira.engine.plan import plan
from lira.learning.augment import Queries
from lira.learning.recipe import Recipe
from lira.membership import keep_mask
from lira.scoring import score
from lira.store.config import Config, Execution
from lira.store.run import Run
from lira.versions import __version__

__all__ = [
    "Config",
    "Dataset",
    "Execution",
    "Queries",
    "Recipe",
    "Run",
    "__version__",
    "attacks",
    "forgetting",
    "keep_mask",
    "load_dataset",
    "metrics",
    "plan",
    "score",
    "train",
]
