"""One model that is to forget: linear or with a norm, and its gradient written out."""

from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lira.learning.recipe import Recipe
from lira.unlearners.problem import Problem

N, C = 24, 3
rng = np.random.default_rng(0)
X = rng.normal(size=(N, 4))
Y = rng.integers(0, C, N).astype(np.int32)
FORGET = np.arange(N) < 6
RETAIN = np.arange(N) >= 14
# Batches of ten are all that is retained, and a request of twelve has all six that are held in one batch.
RECIPE = Recipe(batch_size=10, learning_rate=0.2, momentum=0.9)
KEY = jax.random.key(3)


class Linear(nn.Module):
    num_classes: int = C

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


class Normed(nn.Module):
    """The dense layer that is called last is neither the first nor the last by name."""

    num_classes: int = C

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(5, name="b")(x)
        x = nn.Dense(6, name="c")(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="a")(x))
        return nn.Dense(self.num_classes, name="ab")(nn.relu(x))


@cache
def initial(module: Any):
    """The variables of a key and an example, in one program."""
    return jax.jit(partial(module.init, train=False))


def problem_of(module=None, *, recipe=RECIPE, size=12, forget=FORGET, retain=RETAIN, seed=0, dtype=float):
    """A model with random weights. In float64 where that is on."""
    module = Linear() if module is None else module
    x = jnp.asarray(X, dtype)
    # Flax makes its modules hashable; its stubs do not know.
    variables: Any = initial(module)(jax.random.key(seed), x[:1])  # pyright: ignore[reportArgumentType]
    noise = iter(jax.random.split(jax.random.key(seed + 50), 100))
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, dtype) + 0.3 * jax.random.uniform(next(noise), leaf.shape, dtype),
        variables,
    )
    return Problem(
        module, recipe, C, size, dict(variables), x, jnp.asarray(Y), jnp.asarray(forget), jnp.asarray(retain)
    )


def weights(variables):
    layer = variables["params"]["Dense_0"]
    return np.vstack([layer["kernel"], layer["bias"][None]])


def softmax(logits):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def gradient(W, mask, logit_gradient):
    """Of the mean over the examples `mask` of a loss whose gradient by the logits is given, [5, C]."""
    inputs = np.hstack([X, np.ones((N, 1))])[mask]
    return inputs.T @ logit_gradient(inputs @ W, mask) / mask.sum()


def of_cross_entropy(W, mask, labels=Y):
    return gradient(W, mask, lambda logits, m: softmax(logits) - np.eye(C)[labels[m]])


LR = RECIPE.learning_rate
