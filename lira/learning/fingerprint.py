"""By what a model's code is known again: its variables before training, and how it is evaluated and normalised."""

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

from lira.learning.augment import Queries
from lira.learning.evaluation import answers_by_average, norm_constants
from lira.learning.forward import Array
from lira.learning.learner import Learner
from lira.learning.recipe import Recipe
from lira.learning.training import init_model

__all__ = ["changed_model", "evaluation_facts", "initial_norms", "outdated_evaluation"]


def initial_norms(learner: Learner, x: Array) -> dict[str, list[float]]:
    """Size and norm of each leaf of model 0 before training, by path; `x [N, ...]`.

    Equal for the same code on any device, up to rounding.
    """
    state = _init_program(learner)(learner.key(0), x[:1])
    leaves = jax.tree_util.tree_leaves_with_path({"params": state.params, **state.statistics})
    name = partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): [leaf.size, float(np.linalg.norm(np.asarray(leaf)))] for path, leaf in leaves}


@lru_cache(maxsize=1)
def _init_program(learner: Learner) -> Any:
    """Compiled once for a run that is made and then trained."""
    return jax.jit(partial(init_model, learner))


def evaluation_facts(learner: Learner, queries: Queries, x: Array) -> dict[str, Any]:
    """How models are evaluated and normalised, for provenance.json; `x [N, ...]`."""
    recipe = learner.recipe
    by_average = answers_by_average(recipe, queries)
    statistics = recipe.statistics if by_average else "running"
    return {
        "weights": f"moving average, decay {recipe.ema:g}" if by_average else "as trained",
        "statistics": "of each batch of queries" if queries.convention == "original" else statistics,
        "norms": norm_constants(learner.module, x),
    }


def outdated_evaluation(provenance: Mapping[str, Any], recipe: Recipe) -> str:
    """What is wrong with models that an earlier version evaluated, for people; empty where nothing is.

    They were asked by the average of their weights, with norms' statistics of the last steps' weights.
    """
    leaves = provenance["fingerprints"].get("initial_parameters", {})
    has_statistics = any(not leaf.startswith("params/") for leaf in leaves)
    if "evaluation" in provenance or not (recipe.ema and has_statistics):
        return ""
    return (
        "its models were evaluated by an earlier version, averaged weights with norm statistics that were not averaged "
        "with them, and may be far worse than those that were trained: train the pool anew"
    )


def changed_model(provenance: Mapping[str, Any], learner: Learner, queries: Queries, x: Array) -> str:
    """What differs between the models that a provenance.json is of and those of today's code; empty where nothing does."""
    recorded = provenance["fingerprints"].get("initial_parameters", {})
    change = _changed_parameter(recorded, initial_norms(learner, x))
    if change or "evaluation" not in provenance:
        return change
    now = evaluation_facts(learner, queries, x)
    return _changed_norm(provenance["evaluation"]["norms"], now["norms"])


def _changed_parameter(recorded: Mapping[str, list[float]], now: Mapping[str, list[float]]) -> str:
    """What differs between two `initial_norms`, for people; empty where nothing does."""
    for leaf in sorted(recorded.keys() | now.keys()):
        if leaf not in recorded or leaf not in now or not np.allclose(recorded[leaf], now[leaf], rtol=1e-5):
            return f"the initial parameter {leaf} is another"
    return ""


def _changed_norm(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between the norms of two `evaluation_facts`, for people; empty where nothing does."""
    for layer in sorted(recorded.keys() | now.keys()):
        if recorded.get(layer) != now.get(layer):
            return f"norm {layer} is {recorded.get(layer)} there and {now.get(layer)} here"
    return ""
