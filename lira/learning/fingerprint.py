"""By what a model's code is known again: its variables before training, and how it is evaluated and normalised."""

import warnings
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lira.learning.augment import Queries
from lira.learning.evaluation import answers_by_average, norm_constants
from lira.learning.forward import Array, apply_module, as_input
from lira.learning.jaxprs import digest
from lira.learning.learner import Learner
from lira.learning.recipe import Recipe
from lira.learning.training import init_model
from lira.versions import versions

__all__ = [
    "UncheckedWarning",
    "changed_model",
    "evaluation_facts",
    "initial_norms",
    "module_digest",
    "other_versions",
    "outdated_evaluation",
]

# Those that decide what a jaxpr looks like.
_TRACED_BY = ("jax", "flax")


class UncheckedWarning(UserWarning):
    """Whether code has changed since it was recorded cannot be known."""


def initial_norms(learner: Learner, x: Array) -> dict[str, list[float]]:
    """Size and norm of each leaf of model 0 before training, by path; `x [N, ...]`.

    Equal for the same code on any device, up to rounding.
    """
    state = _init_program(learner)(learner.key(0), x[:1])
    leaves = jax.tree_util.tree_leaves_with_path({"params": state.params, **state.statistics})
    name = partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): [leaf.size, float(np.linalg.norm(np.asarray(leaf)))] for path, leaf in leaves}


def module_digest(learner: Learner, x: Array) -> str:
    """Of what a learner's module computes of two examples like `x [N, ...]`, in evaluation, in training and backward.

    Of the module alone, with convolutions as they are: equal on all devices, whatever lowering trains it.
    """
    return _module_digest(learner, x.shape[1:], str(x.dtype))


@lru_cache(maxsize=8)
def _module_digest(learner: Learner, shape: tuple[int, ...], dtype: str) -> str:
    """Traced once for a run that is made and then trained."""
    two = jax.ShapeDtypeStruct((2, *shape), dtype)
    shapes = jax.eval_shape(partial(init_model, learner), learner.key(0), two)
    variables, key = {"params": shapes.params, **shapes.statistics}, learner.key(0)
    inputs = jax.eval_shape(partial(as_input, dtype=jnp.float32), two)

    def evaluated(variables: Any, inputs: jax.Array) -> Any:
        return apply_module(learner.module, variables, inputs, None)[0]

    def trained(variables: Any, inputs: jax.Array, key: jax.Array) -> Any:
        def of(params: Any) -> Any:
            return apply_module(learner.module, {**variables, "params": params}, inputs, key)

        logits, backward, updated = jax.vjp(of, variables["params"], has_aux=True)
        return logits, updated, backward(jax.tree.map(jnp.ones_like, logits))

    traced = jax.make_jaxpr(evaluated)(variables, inputs), jax.make_jaxpr(trained)(variables, inputs, key)
    return " ".join(map(digest, traced))


def other_versions(provenance: Mapping[str, Any]) -> str:
    """Which packages that decide what a jaxpr looks like have other versions than when a run began; empty where none has."""
    now = versions(*_TRACED_BY)
    names = [name for name in now if provenance["versions"].get(name) != now[name]]
    return ", ".join(
        f"{name} {provenance['versions'].get(name)} there and {now[name]} here" for name in names
    )


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
    """What differs between the models that a provenance.json is of and those of today's code; empty where nothing does.

    Warns:
        UncheckedWarning: the run began with other versions, or one that recorded less.
    """
    fingerprints = provenance["fingerprints"]
    if change := _changed_parameter(fingerprints.get("initial_parameters", {}), initial_norms(learner, x)):
        return change
    if "evaluation" in provenance:
        now = evaluation_facts(learner, queries, x)
        if change := _changed_norm(provenance["evaluation"]["norms"], now["norms"]):
            return change
    unchecked = other_versions(provenance)
    if "module" not in fingerprints:
        unchecked = "the run began with a version that did not record it"
    if unchecked:
        warnings.warn(
            f"whether the code of model {learner.recipe.model} has changed since the run began is not checked: {unchecked}",
            UncheckedWarning,
            stacklevel=3,
        )
    elif fingerprints["module"] != module_digest(learner, x):
        return "what it computes of the same parameters is another (its code, or a setting of JAX)"
    return ""


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
