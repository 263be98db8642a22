"""By what a run knows its data, its memberships and its models' code again."""

import hashlib
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from lira.data.dataset import Dataset
from lira.learning.evaluation import answers_by_average, norm_constants
from lira.learning.models import build_model
from lira.learning.recipe import Recipe
from lira.learning.training import init_model, model_key
from lira.store.config import Config
from lira.versions import versions

__all__ = [
    "evaluation_facts",
    "initial_variables",
    "leaf_norms",
    "membership_fingerprint",
    "package_versions",
]


def initial_variables(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """Model 0's variables before training: they tell whether the model's code is still the same."""
    init = _init_program(build_model(recipe.model, dataset.num_classes), recipe)
    state = init(model_key(recipe.seed, 0), dataset.x[:1])
    return {"params": state.params, **state.statistics}


@lru_cache(maxsize=1)
def _init_program(module: nn.Module, recipe: Recipe):
    """Compiled once for a run that is made and then trained."""
    return jax.jit(partial(init_model, module, recipe, 1))


def evaluation_facts(config: Config, dataset: Dataset) -> dict[str, Any]:
    """How models are evaluated and normalised, for provenance.json."""
    recipe, original = config.recipe, config.queries.convention == "original"
    by_average = answers_by_average(recipe, config.queries)
    module = build_model(recipe.model, dataset.num_classes)
    return {
        "weights": f"moving average, decay {recipe.ema:g}" if by_average else "as trained",
        "statistics": "of each batch of queries"
        if original
        else recipe.statistics
        if by_average
        else "running",
        "norms": norm_constants(module, dataset.x),
    }


def membership_fingerprint(keep: np.ndarray) -> str:
    return hashlib.sha256(f"{keep.shape}".encode() + np.packbits(keep).tobytes()).hexdigest()


def leaf_norms(variables: dict[str, Any]) -> dict[str, list[float]]:
    """Size and norm of each leaf: equal for the same code on any device, up to rounding."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): [
            leaf.size,
            float(np.linalg.norm(np.asarray(leaf))),
        ]
        for path, leaf in leaves
    }


def package_versions() -> dict[str, str]:
    return versions("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "tensorstore")
