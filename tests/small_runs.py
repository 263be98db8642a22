"""A small run to be trained: its data, and what is made of it."""

import numpy as np

from lira.data.dataset import Dataset
from lira.engine.fill import train
from lira.learning.augment import Queries
from lira.learning.recipe import Recipe
from lira.store.config import Execution
from lira.store.run import Run

N = 120
RECIPE = Recipe(epochs=3, batch_size=10, learning_rate=0.05)


def dataset(test=True):
    rng = np.random.default_rng(0)
    y = np.arange(N, dtype=np.int32) % 3
    y_test = np.arange(30, dtype=np.int32) % 3

    def images(labels):
        noise = rng.integers(0, 200, (len(labels), 6, 6, 1))
        return (noise + 20 * labels[:, None, None, None]).astype(np.uint8)

    x, x_test = images(y), images(y_test)
    return Dataset(
        x=x,
        y=y,
        num_classes=3,
        name="memory",
        x_test=x_test if test else None,
        y_test=y_test if test else None,
    )


def made(tmp_path, name="run", **changes):
    # A pinned width: nothing is calibrated but where a test asks for it.
    pinned = {"queries": Queries(mirror=True), "execution": Execution(width=6)}
    arguments = {"recipe": RECIPE, "num_models": 6, **pinned, **changes}
    return Run.create(tmp_path / name, dataset(), arguments.pop("recipe"), **arguments)


def finished(tmp_path, name="run", **changes):
    run = made(tmp_path, name, **changes)
    train(run, dataset(), show_progress=False)
    return run
