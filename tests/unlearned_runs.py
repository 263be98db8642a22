"""A small unlearning: its data, a linear model, methods whose effect can be counted."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lira.data.dataset import Dataset
from lira.learning.recipe import Recipe
from lira.store.config import Config, Execution
from lira.unlearning.config import Forget, UnlearnConfig
from lira.unlearning.directory import Unlearning
from lira.unlearning.protocol import unlearn

N, M, K = 60, 4, 2
RECIPE = Recipe(model="unlearned_runs.Net", epochs=2, batch_size=10, learning_rate=0.05)


class Net(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


def dataset(test=True):
    rng = np.random.default_rng(0)
    y = np.arange(N, dtype=np.int32) % 3
    return Dataset(
        x=rng.normal(size=(N, 4)).astype(np.float32),
        y=y,
        num_classes=3,
        name="memory",
        x_test=rng.normal(size=(9, 4)).astype(np.float32) if test else None,
        y_test=y[:9] if test else None,
    )


def configured(**changes):
    execution = Execution(width=2, workers=1)
    pool = Config(dataset="memory", num_models=M, save_params=True, recipe=RECIPE, execution=execution)
    names = [field.name for field in dataclasses.fields(Config)]
    pool = dataclasses.replace(pool, **{name: changes.pop(name) for name in names if name in changes})
    values = {
        "methods": ("none", "unlearned_runs.nudge"),
        "forget": Forget(size=6, requests=K),
    }
    return UnlearnConfig(pool, **{**values, **changes})


def nudge(problem, key, *, by=1.0):
    """Adds to the bias: what was done to a model can be counted."""
    layer = problem.variables["params"]["Dense_0"]
    return {"params": {"Dense_0": {**layer, "bias": layer["bias"] + by}}}


def unlucky(problem, key, *, share=1.0):
    """NaN for a share of the models."""
    bad = jax.random.uniform(key) < share
    return jax.tree.map(lambda leaf: jnp.where(bad, jnp.nan, leaf), problem.variables)


def finished(place, **changes):
    unlearning = Unlearning.create(place, dataset(), configured(**changes))
    unlearn(unlearning, dataset(), show_progress=False)
    return unlearning


def shapeless(problem, key):
    return problem.variables["params"]
