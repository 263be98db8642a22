"""A method as a function of one model's stored parameters."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from lira.data.dataset import Dataset
from lira.learning.models import build_model
from lira.learning.recipe import Recipe
from lira.learning.training import init_model, model_key
from lira.unlearners import RETRAIN, apply_method, find_method
from lira.unlearners.problem import Problem
from lira.unlearning.config import UnlearnConfig

__all__ = ["check_methods", "one_model", "traced"]


def one_model(
    method: Callable[..., Any],
    options: Mapping[str, Any],
    config: UnlearnConfig,
    dataset: Dataset,
    requests: np.ndarray,
) -> Callable[..., Any]:
    """A method as a function of one model's stored parameters: `(flat [P], model, request, forget, retain, x, y)`."""
    recipe, module = config.recipe, build_model(config.recipe.model, dataset.num_classes)
    _, unravel = ravel_pytree(
        jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), _shapes(recipe, dataset))
    )
    size = int(requests.sum(axis=1).max())

    def one(flat, model, request, forget, retain, x, y):
        # Not among the keys of the model's training, and the same for all methods.
        key = jax.random.fold_in(jax.random.fold_in(model_key(recipe.seed, model), 2), request)
        problem = Problem(module, recipe, dataset.num_classes, size, unravel(flat), x, y, forget, retain)
        return apply_method(method, options, problem, key)

    return one


def _shapes(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """Shapes of the variables that a trained model answers with."""
    module = build_model(recipe.model, dataset.num_classes)
    state = jax.eval_shape(partial(init_model, module, recipe, 1), model_key(0, 0), dataset.x[:1])
    return {"params": state.params, **state.statistics}


def check_methods(config: UnlearnConfig, dataset: Dataset, requests: np.ndarray, methods) -> None:
    """Raise ValueError, before anything is spent, for a method that cannot be traced."""
    for name in methods:
        if name != RETRAIN:
            traced(name, config, dataset, requests)


def traced(name: str, config: UnlearnConfig, dataset: Dataset, requests: np.ndarray) -> Any:
    """The program of a method for one model, as JAX sees it."""
    parameters = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(_shapes(config.recipe, dataset)))
    one = one_model(find_method(name), config.method.get(name, {}), config, dataset, requests)
    mask = jax.ShapeDtypeStruct((dataset.num_examples,), bool)
    flat = jax.ShapeDtypeStruct((parameters,), jnp.float32)
    try:
        return jax.make_jaxpr(one)(flat, 0, 0, mask, mask, dataset.x, dataset.y)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"method {name!r}: {str(error).splitlines()[0]}") from error
