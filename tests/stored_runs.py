"""A small run without training: its data, and models whose arrays are known."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lira.data.dataset import Dataset
from lira.learning.recipe import Recipe
from lira.store.run import Run

N, M = 40, 6
RECIPE = Recipe(epochs=1, batch_size=8)


def dataset(seed=0, test=True, **changes):
    rng = np.random.default_rng(seed)
    arrays = {
        "x": rng.normal(size=(N, 5)).astype(np.float32),
        "y": np.arange(N, dtype=np.int32) % 2,
        "x_test": rng.normal(size=(7, 5)).astype(np.float32) if test else None,
        "y_test": np.arange(7, dtype=np.int32) % 2 if test else None,
    }
    return Dataset(**{**arrays, "num_classes": 2, "name": "memory", **changes})


def made(tmp_path, name="run", **changes):
    return Run.create(tmp_path / name, dataset(), RECIPE, **{"num_models": M, **changes})


def rows(index, queries=1):
    """Arrays of a model, recognisable by its index."""
    return {
        "phi": np.full((N, queries), index, np.float32),
        "phi_test": np.full((7, queries), index + 0.5, np.float32),
        "accuracy_in": np.float32(index / 10),
        "accuracy_out": np.float32(0),
        "accuracy_test": np.float32(np.nan),
    }


def write(run, *indices, diverged=False):
    for index in indices:
        run.write_model(index, rows(index), diverged=diverged)


def at_once(function, count=8):
    """Call `function(i)` in that many threads at the same instant; their results."""
    barrier = threading.Barrier(count)

    def call(i):
        barrier.wait()
        return function(i)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(call, range(count)))
