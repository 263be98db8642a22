"""A method as a function of one model's stored parameters."""

from collections.abc import Callable, Iterable, Mapping
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


def one_model(
    method: Callable[..., Any],
    options: Mapping[str, Any],
    config: UnlearnConfig,
    dataset: Dataset,
    requests: np.ndarray,
) -> Callable[..., Any]:
    """A method as a function of one model's stored parameters: `(flat [P], model, request, forget, retain, x, y)`."""
    learner = Learner.of(config.pool.recipe, dataset)
    shapes = variable_shapes(learner, dataset.x)
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))
    size = int(requests.sum(axis=1).max())

    def one(
        flat: jax.Array,
        model: jax.Array,
        request: jax.Array,
        forget: jax.Array,
        retain: jax.Array,
        x: jax.Array,
        y: jax.Array,
    ) -> tuple[Variables, jax.Array]:
        # Not among the keys of the model's training, and the same for all methods.
        key = jax.random.fold_in(jax.random.fold_in(learner.key(model), 2), request)
        problem = Problem(
            learner.module, learner.recipe, dataset.num_classes, size, unravel(flat), x, y, forget, retain
        )
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
    one = one_model(find_method(name), config.method.get(name, {}), config, dataset, requests)
    mask = jax.ShapeDtypeStruct((dataset.num_examples,), bool)
    flat = jax.ShapeDtypeStruct((parameters,), jnp.float32)
    try:
        return jax.make_jaxpr(one)(flat, 0, 0, mask, mask, dataset.x, dataset.y)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"method {name!r}: {str(error).splitlines()[0]}") from error
