"""Forgetting by noise in the directions of the Fisher information."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from lira.unlearners.problem import Batch, Problem, Variables, fold_steps

__all__ = ["fisher"]


def fisher(
    problem: Problem, key: jax.Array, *, epochs: int = 1, noise: float = 0.03, floor: float = 1e-3
) -> Variables:
    """Noise where the retained examples do not determine a weight (Golatkar et al. 2020, arXiv 1911.04933, section 5).

    Its standard deviation is `noise (F / mean F + floor)^(-1/4)`, F the diagonal of their Fisher information.

    Args:
        problem: the model and what it is to forget.
        key: of batches, labels, signs and noise.
        epochs: passes over the retained examples to estimate F.
        noise: standard deviation for a weight of average information.
        floor: what no information counts as, relative to the average.
    """
    if noise < 0 or floor <= 0:
        raise ValueError(f"noise must not be negative and floor be positive; got {noise} and {floor}")
    noise_key, key = jax.random.split(key)
    information = fisher_information(problem, key, epochs)
    mean = ravel_pytree(information)[0].mean()
    leaves, structure = jax.tree.flatten(information)
    keys = jax.tree.unflatten(structure, list(jax.random.split(noise_key, len(leaves))))

    def noisy(weight: jax.Array, F: jax.Array, its_key: jax.Array) -> jax.Array:
        deviation = noise * (F / jnp.maximum(mean, jnp.finfo(mean.dtype).tiny) + floor) ** -0.25
        return weight + deviation * jax.random.normal(its_key, weight.shape, weight.dtype)

    return {
        **problem.variables,
        "params": jax.tree.map(noisy, problem.variables["params"], information, keys),
    }


def fisher_information(problem: Problem, key: jax.Array, epochs: int) -> Any:
    """The diagonal of the Fisher information, a mean over the retained examples, in the structure of the parameters.

    Estimated without bias by one gradient a batch: labels are drawn uniformly and weighted by their probability, and
    random signs make the examples' gradients uncorrelated.
    """
    params = problem.variables["params"]

    def visit(total: Any, forget: Batch, retain: Batch, step_key: jax.Array) -> Any:
        label_key, sign_key = jax.random.split(step_key)
        labels = jax.random.randint(label_key, retain.y.shape, 0, problem.num_classes)
        signs = jax.random.rademacher(sign_key, retain.y.shape, jnp.float32)

        def signed(params: Any) -> jax.Array:
            logits, _ = problem.ask({**problem.variables, "params": params}, retain.x)
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
            weights = jnp.sqrt(problem.num_classes * jnp.exp(jax.lax.stop_gradient(chosen)))
            return jnp.sum(signs * weights * chosen)

        return jax.tree.map(lambda t, g: t + g * g, total, jax.grad(signed)(params))

    total = fold_steps(
        problem, key, visit, jax.tree.map(jnp.zeros_like, params), over="retain", epochs=epochs
    )
    steps, batch = problem.steps("retain")
    return jax.tree.map(lambda t: t / (epochs * steps * batch), total)
