"""Runs whose stacks are ended in the midst of their training, and how they go on."""

from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import numpy as np
import pytest
from small_runs import dataset

from lira.engine.checkpoints import Kept
from lira.engine.fill import train
from lira.learning.recipe import Recipe
from lira.store.config import Execution
from lira.store.run import Run

# Batch statistics, averages and momentum are all state that a checkpoint must hold.
RECIPE = Recipe(model="cut_off_runs.Normed", epochs=5, batch_size=10, learning_rate=0.05, ema=0.5)
OFTEN, NEVER = 1e-9, 0.0
AT = 3  # epochs that are over when it is cut off
SIGNALS = ("phi@0.4", "phi@0.8")  # a look before that, and one after


class Normed(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8)(x.reshape(len(x), -1))
        return nn.Dense(self.num_classes)(nn.relu(nn.BatchNorm(use_running_average=not train)(x)))


def made(place, minutes=OFTEN, recipe=RECIPE, **execution):
    pinned = Execution(**{"width": 3, "workers": 1, "checkpoint_minutes": minutes, **execution})
    return Run.create(place, dataset(), recipe, num_models=6, signals=SIGNALS, execution=pinned)


def fail():
    raise RuntimeError("cut off")


def cut_off(run, model=3, attempt=0, how=fail):
    """Train a run until the stack that begins with a model is so far and kept; then `how()`."""

    def keep_if_due(self, begun):
        kept(self, begun)
        if self._writing:
            self._writing.result()
        about = self.about
        if (about["models"][0], about["attempts"][0], begun.epochs) == (model, attempt, AT):
            how()

    kept = Kept.keep_if_due
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kept, "keep_if_due", keep_if_due)
        with pytest.raises(RuntimeError, match="cut off"):
            train(run, dataset(), show_progress=False)


def finished(run):
    """Train the rest; by first model, the epochs after which stacks went on."""
    from_epoch, restored = {}, Kept.restored

    def noting(self, *arguments):
        begun = restored(self, *arguments)
        from_epoch[self.about["models"][0]] = begun.epochs
        return begun

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kept, "restored", noting)
        train(run, dataset(), show_progress=False)
    return from_epoch


def assert_same(run, other):
    """To the last bit."""
    for name in ("phi", "phi_test", *SIGNALS):
        np.testing.assert_array_equal(
            np.asarray(run.signal(name)), np.asarray(other.signal(name)), strict=True
        )
    for kind in ("in", "last_epoch"):
        np.testing.assert_array_equal(run.losses(kind), other.losses(kind))
    for side in ("in", "out", "test", "raw_in"):
        np.testing.assert_array_equal(run.accuracy(side), other.accuracy(side))
    assert not (other.path / "checkpoints").exists()


def place_of(run):
    (place,) = (each for each in (run.path / "checkpoints").iterdir() if not each.name.startswith("."))
    return place


HERE: Any = SimpleNamespace(width=3, lowering="patches", epochs=1)
