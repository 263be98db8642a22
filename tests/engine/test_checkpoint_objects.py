"""Stacks of runs on object stores, and of an unlearning's models, go on from where their training was ended."""

import numpy as np
import pytest
from object_store import BUCKET, bucket
from small_runs import dataset

from lira.engine.checkpoints import Checkpoints, CheckpointWarning, Kept
from lira.engine.fill import train
from lira.learning.recipe import Recipe
from lira.store import checkpoint_objects as stored
from lira.store import claims
from lira.store.config import Config, Execution
from lira.store.objects import ObjectPlace
from lira.store.run import Run
from lira.unlearning.config import Forget, UnlearnConfig
from lira.unlearning.directory import Unlearning
from lira.unlearning.protocol import unlearn

__all__ = ["bucket"]

RECIPE = Recipe(model="mlp", epochs=4, batch_size=10, learning_rate=0.05)
EVERY_EPOCH = Execution(width=4, workers=1, checkpoint_minutes=1e-9)
AT = 3  # epochs that are over when a stack is cut off


def made(place):
    return Run.create(place, dataset(), RECIPE, num_models=4, signals=(), execution=EVERY_EPOCH)


class CutOffError(Exception):
    """What ends a training here."""


def cut_off(work, call):
    """Do it until the `call`-th stack, from 0, is so far and kept."""
    seen, kept = [], Kept.keep_if_due

    def keep_if_due(self, begun):
        kept(self, begun)
        if self._writing:
            self._writing.result()
        if begun.epochs == AT:
            seen.append(self)
            if len(seen) > call:
                raise CutOffError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kept, "keep_if_due", keep_if_due)
        with pytest.raises(CutOffError):
            work()


def begun_at(work):
    """Do it; the epochs that each stack went on after."""
    epochs, restored = [], Kept.restored

    def noting(self, *arguments):
        begun = restored(self, *arguments)
        epochs.append(begun.epochs)
        return begun

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kept, "restored", noting)
        work()
    return epochs


def train_all(run):
    train(run, dataset(), show_progress=False)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = made(tmp_path_factory.mktemp("whole") / "run")
    train_all(run)
    return np.asarray(run.phi)


def objects_of(run, what):
    return [key for key in ObjectPlace.of(f"{run.path}/checkpoints").below() if what in key]


def test_a_stack_of_a_run_on_an_object_store_goes_on(bucket, uninterrupted, monkeypatch):
    monkeypatch.setattr(stored, "PART", 30000)
    run = made(f"{BUCKET}/run")
    cut_off(lambda: train_all(run), 0)
    assert not run.done.any()
    assert len(objects_of(run, f"/{AT}-")) > 2, "in parts"
    assert begun_at(lambda: train_all(run)) == [AT]
    np.testing.assert_array_equal(np.asarray(run.phi), uninterrupted)
    assert objects_of(run, "") == []


def test_an_owner_that_is_dead_is_waited_for_and_one_that_lives_is_not_disturbed(
    bucket, uninterrupted, monkeypatch
):
    monkeypatch.setattr(claims, "RENEWAL", 0.2)
    monkeypatch.setattr(claims, "EXPIRY", 3.0)
    run = made(f"{BUCKET}/run")
    cut_off(lambda: train_all(run), 0)
    (mine,) = stored.unowned_objects(ObjectPlace.of(str(run.path)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "_ours", set())  # as another process sees it
        patch.setattr(stored, "_watched", {})
        with Checkpoints(run, 10.0) as others:
            assert others.execution(np.arange(4)) is None
        mine.claim._over.set()  # killed: neither renewed nor given back
        with pytest.warns(stored.WaitingWarning, match="to see whether another process is still at a stack"):
            assert begun_at(lambda: train_all(run)) == [AT]
    np.testing.assert_array_equal(np.asarray(run.phi), uninterrupted)


@pytest.mark.parametrize("what", ["part", "document"])
def test_what_is_damaged_there_is_never_gone_on_from(bucket, uninterrupted, what):
    run = made(f"{BUCKET}/run")
    cut_off(lambda: train_all(run), 0)
    (key,) = objects_of(run, f"/{AT}-" if what == "part" else f"/{AT}.json")
    place = ObjectPlace.of(f"{run.path}/checkpoints/{key}")
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    place.write_bytes(content)
    with pytest.warns(CheckpointWarning, match="is damaged, and models 0, 1, 2, 3 begin anew"):
        assert begun_at(lambda: train_all(run)) == [0]
    np.testing.assert_array_equal(np.asarray(run.phi), uninterrupted)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_models_of_an_unlearning_go_on_before_and_after_it(tmp_path):
    pool = Config(dataset="memory", num_models=4, recipe=RECIPE, execution=EVERY_EPOCH, save_params=True)
    config = UnlearnConfig(pool, methods=("none",), forget=Forget(size=4))
    there, whole = (Unlearning.create(tmp_path / name, dataset(), config) for name in ("there", "whole"))

    def work():
        unlearn(there, dataset(), show_progress=False)

    cut_off(work, 0)
    assert (there.path / "before/checkpoints").exists()
    cut_off(work, 1)  # the first is that of the models before, which goes on from there
    assert there.before.done.all()
    assert (there.path / "retrained/checkpoints").exists()
    assert begun_at(work) == [AT]
    unlearn(whole, dataset(), show_progress=False)
    for name in ("before", "retrained"):
        np.testing.assert_array_equal(getattr(there, name).phi, getattr(whole, name).phi)
    assert not list(tmp_path.glob("there/*/checkpoints"))
