"""Published test accuracies of models trained on half of a pool, by data set, model and recipe."""

import re
from typing import Any, NamedTuple

from lira.learning.recipe import Recipe

__all__ = ["PAPER", "POOL_SIZES", "Accuracy", "published_accuracy", "words_of"]


class Accuracy(NamedTuple):
    """A published range of test accuracies of models trained on half of a pool, as fractions."""

    source: str
    dataset: str
    model: str
    low: float
    high: float
    recipe: dict[str, Any]  # fields of `Recipe` that it was reached with
    differs: tuple[str, ...] = ()  # what another recipe has in their place


POOL_SIZES = {"cifar10": 50_000, "cifar100": 50_000}
PAPER = "Carlini et al. 2022"


PAPER_RECIPE = {
    "epochs": 100,
    "batch_size": 256,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "momentum": 0.9,
    "schedule": "cos7pi16",
    "weight_decay": 5e-4,
    "flip": True,
    "crop_pad": 4,
}
ACCURACIES = (
    Accuracy(PAPER, "cifar10", "wrn-28-2", 0.90, 0.92, PAPER_RECIPE),
    Accuracy(PAPER, "cifar100", "wrn-28-2", 0.60, 0.60, PAPER_RECIPE),
)


def published_accuracy(dataset: str, num_examples: int, recipe: Recipe) -> Accuracy | None:
    """The test accuracy published of this data set, pool and model, and how its recipe differs from `recipe`."""
    for known in ACCURACIES:
        pool = known.model, POOL_SIZES[known.dataset]
        if known.dataset in words_of(dataset) and (recipe.model, num_examples) == pool:
            differs = (
                f"{name} {getattr(recipe, name)} in place of {value}"
                for name, value in known.recipe.items()
                if getattr(recipe, name) != value
            )
            return known._replace(differs=tuple(differs))
    return None


def words_of(dataset: str) -> set[str]:
    """The words of a source: `tfds:cifar10` and `folder:/data/CIFAR-10` both hold cifar10."""
    return {re.sub(r"[^a-z0-9]", "", part.lower()) for part in re.split(r"[:/]", dataset)}
