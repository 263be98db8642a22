"""A method as a function of one model's stored parameters."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from lira.data.dataset import Dataset
from lira.learning.learner import Learner
from lira.learning.training import variable_shapes
from lira.unlearners import RETRAIN, apply_method, find_method
from lira.unlearners.problem import Problem, Variables
from lira.unlearning.config import UnlearnConfig

__all__ = ["check_methods", "one_model", "traced"]


def one_model(name: str, config: UnlearnConfig, dataset: Dataset, requests: np.ndarray) -> Callable[..., Any]:
    """A method as a function of one model's stored parameters: `(flat [P], model, request, x, y, forget, retain)`."""
    method, options = find_method(name), config.method.get(name, {})
    learner = Learner.of(config.pool.recipe, dataset)
    shapes = variable_shapes(learner, dataset.x)
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))
    size = int(requests.sum(axis=1).max())

    def one(
        flat: jax.Array, model: jax.Array, request: jax.Array, *arrays: jax.Array
    ) -> tuple[Variables, jax.Array]:
        # Not among the keys of the model's training, and the same for all methods.
        key = jax.random.fold_in(jax.random.fold_in(learner.key(model), 2), request)
        static = learner.module, learner.recipe, dataset.num_classes, size
        problem = Problem(*static, unravel(flat), *arrays)
        return apply_method(method, options, problem, key)

    return one


def check_methods(
    config: UnlearnConfig, dataset: Dataset, requests: np.ndarray, methods: Iterable[str]
) -> None:
    """Raise ValueError, before anything is spent, for a method that cannot be traced."""
    for name in methods:
        if name != RETRAIN:
            traced(name, config, dataset, requests)


def traced(name: str, config: UnlearnConfig, dataset: Dataset, requests: np.ndarray) -> Any:
    """The program of a method for one model, as JAX sees it."""
    shapes = variable_shapes(Learner.of(config.pool.recipe, dataset), dataset.x)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    one = one_model(name, config, dataset, requests)
    mask = jax.ShapeDtypeStruct((dataset.num_examples,), bool)
    flat = jax.ShapeDtypeStruct((parameters,), jnp.float32)
    try:
        return jax.make_jaxpr(one)(flat, 0, 0, dataset.x, dataset.y, mask, mask)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"method {name!r}: {str(error).splitlines()[0]}") from error
