"""Stacks that are ended in the midst of their training go on bit for bit; what cannot be gone on from is named and left."""

import dataclasses
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import dataset

from lira.engine import checkpoints as checkpoints_module
from lira.engine.checkpoints import Begun, Checkpoints, CheckpointWarning, Kept
from lira.engine.fill import train
from lira.engine.plan import plan
from lira.engine.workers import Queue
from lira.learning.recipe import Recipe
from lira.stopping import Terminated
from lira.store import checkpoints as stored
from lira.store.checksums import json_with_checksum
from lira.store.config import Execution
from lira.store.run import Run

# Batch statistics, averages and momentum are all state that a checkpoint must hold.
RECIPE = Recipe(
    model="tests.engine.test_checkpoints.Normed", epochs=5, batch_size=10, learning_rate=0.05, ema=0.5
)
OFTEN, NEVER = 1e-9, 0.0
AT = 3  # epochs that are over when it is cut off
SIGNALS = ("phi@0.4", "phi@0.8")  # a look before that, and one after


def __getattr__(name):
    """The module of RECIPE, which the child process imports too."""
    if name != "Normed":
        raise AttributeError(name)
    import flax.linen as nn

    class Normed(nn.Module):
        num_classes: int

        @nn.compact
        def __call__(self, x, train):
            x = nn.Dense(8)(x.reshape(len(x), -1))
            return nn.Dense(self.num_classes)(nn.relu(nn.BatchNorm(use_running_average=not train)(x)))

    globals()["Normed"] = Normed
    return Normed


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


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = made(tmp_path_factory.mktemp("whole") / "run", NEVER)
    train(run, dataset(), show_progress=False)
    return run


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run whose models 0 to 2 are done, and 3 to 5 were cut off."""
    run = made(tmp_path_factory.mktemp("cut") / "run")
    cut_off(run)
    assert run.done.tolist() == [1, 1, 1, 0, 0, 0]
    return run


@pytest.fixture
def begun(original, tmp_path):
    shutil.copytree(original.path, tmp_path / "run")
    return Run.open(tmp_path / "run", dataset())


def place_of(run):
    (place,) = (each for each in (run.path / "checkpoints").iterdir() if not each.name.startswith("."))
    return place


# --- Bit for bit -----------------------------------------------------------------------------------------------------


def test_a_stack_goes_on_from_where_it_was_cut_off(begun, uninterrupted):
    assert place_of(begun).joinpath(str(AT)).is_dir()
    assert finished(begun) == {3: AT}
    assert_same(uninterrupted, begun)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from tests.engine.test_checkpoints import Run, cut_off, dataset
cut_off(Run.open(sys.argv[1], dataset()), 0, how=lambda: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_process_that_is_killed_in_mid_stack_loses_nothing_but_minutes(tmp_path, uninterrupted):
    run = made(tmp_path / "run")
    command = [sys.executable, "-W", "ignore", "-c", KILLED, run.path, str(Path(__file__).parents[1])]
    child = subprocess.run(command, check=False)
    assert child.returncode == -signal.SIGKILL
    assert not run.done.any()
    assert finished(run) == {0: AT, 3: 0}
    assert_same(uninterrupted, run)


def test_an_interrupt_keeps_stacks_as_they_are(tmp_path, uninterrupted, monkeypatch):
    """Without waiting for the ten minutes; it comes in the main thread, while workers train."""
    run, begun, stopped = made(tmp_path / "run", 10.0), threading.Event(), threading.Event()
    keep_if_due = Kept.keep_if_due

    def waiting(self, begun_):
        keep_if_due(self, begun_)
        if begun_.epochs == 2:
            begun.set()
            stopped.wait(10)

    def interrupting(futures):
        begun.wait(60)
        threading.Timer(0.1, stopped.set).start()
        raise Terminated

    with monkeypatch.context() as patch:
        patch.setattr(Kept, "keep_if_due", waiting)
        patch.setattr("lira.engine.workers.as_completed", interrupting)
        with pytest.raises(KeyboardInterrupt) as stop:
            train(run, dataset(), show_progress=False)
    assert stop.value.__notes__ == ["3 models in training go on from the checkpoint just written"]
    assert finished(run) == {0: AT, 3: 0}
    assert_same(uninterrupted, run)


def test_a_model_that_is_tried_again_goes_on_as_that_attempt(tmp_path):
    recipe = dataclasses.replace(RECIPE, model="tests.engine.test_fill.Fragile", ema=0.0, seed=13)
    whole = made(tmp_path / "whole", NEVER, recipe)
    train(whole, dataset(), show_progress=False)
    again = int(np.flatnonzero(whole.attempts(np.arange(6)))[0])
    run = made(tmp_path / "run", recipe=recipe)
    cut_off(run, again, attempt=1)
    assert run.done[again] == 0
    assert finished(run)[again] == AT
    np.testing.assert_array_equal(run.attempts(np.arange(6)), whole.attempts(np.arange(6)))
    np.testing.assert_array_equal(np.asarray(run.phi), np.asarray(whole.phi))


def test_the_last_stacks_keep_their_width(begun, uninterrupted):
    """Shared out among more workers, three models would be stacks of two, and the checkpoint of no use."""
    run = made(begun.path, workers=2)
    assert plan(run.config, dataset(), run).width == 3
    assert finished(run) == {3: AT}
    assert run.provenance["sessions"][-1]["width"] == 3
    assert_same(uninterrupted, run)


# --- What is not gone on from ----------------------------------------------------------------------------------------

HERE: Any = SimpleNamespace(width=3, lowering="patches", epochs=1)


def changed(run, **changes):
    """Let a checkpoint be of something else; of tables some fields."""
    (checkpoint,) = stored.unowned(run.path)
    about = checkpoint.about

    def merged(old, new):
        if not isinstance(old, dict):
            return new
        return old | {name: merged(old.get(name), value) for name, value in new.items()}

    (checkpoint.place / "about.json").write_bytes(json_with_checksum(merged(about, changes)))
    checkpoint.release()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"versions": {"jax": "0.1"}}, "versions.jax is '0.1' there and '"),
        ({"width": 4}, "width is 4 there and 3 here"),
        ({"lowering": "winograd"}, "lowering is 'winograd' there and 'patches' here"),
        ({"device": "NVIDIA H100"}, "device is 'NVIDIA H100' there and '"),
        (
            {"configuration": {"recipe": {"learning_rate": 0.1}}},
            "configuration.recipe.learning_rate is 0.1 there and 0.05 here",
        ),
        ({"dataset": "0"}, "dataset is '0' there and '"),
        ({"XLA_FLAGS": "--x"}, "XLA_FLAGS is '--x' there and '"),
        ({"also": {"teacher": "0"}}, "also.teacher is '0' there and None here"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_by_name(begun, changes, named):
    changed(begun, **changes)
    with pytest.warns(CheckpointWarning) as caught:
        assert Checkpoints(begun, OFTEN).begun(np.arange(6), HERE) == []
    (warning,) = map(str, (each.message for each in caught))
    assert (
        f"{place_of(begun)}: models 3, 4, 5 do not go on from this checkpoint and begin anew: {named}"
        in warning
    )
    assert "\n" not in warning
    with Checkpoints(begun, OFTEN).of(HERE, np.arange(3, 6), np.zeros(3, int)) as kept:
        assert kept.restored("fresh", {}) == Begun(0, "fresh", [], {})


def test_stacks_that_are_refused_begin_anew(begun, uninterrupted):
    changed(begun, versions={"jax": "0.1"})
    with pytest.warns(CheckpointWarning, match=r"versions\.jax"):
        assert finished(begun) == {3: 0}
    assert_same(uninterrupted, begun)


def test_another_attempt_is_another_stack(begun):
    with Checkpoints(begun, OFTEN).of(HERE, np.arange(3, 6), np.array([0, 1, 0])) as kept:
        assert kept.restored("fresh", {}).epochs == 0
    assert [each[1].tolist() for each in Checkpoints(begun, OFTEN).begun(np.arange(6), HERE)] == [[0, 0, 0]]


def test_a_pinned_width_stands(begun):
    missing = np.arange(3, 6)
    for width, lowering, expected in (
        (0, "auto", ("patches", 3)),
        (3, "patches", ("patches", 3)),
        (2, "auto", None),
        (0, "xla", None),
    ):
        run = made(begun.path, width=width, lowering=lowering)
        assert Checkpoints(run, OFTEN).execution(missing) == expected


def test_models_of_others_are_left_to_them(begun):
    """A process whose share is a part of the stack does not train the rest of it."""
    assert Checkpoints(begun, OFTEN).begun(np.arange(4), HERE) == []


@pytest.mark.parametrize("fault", ["flipped", "truncated", "deleted"])
def test_a_damaged_checkpoint_is_never_gone_on_from(original, fault, tmp_path):
    """Whatever file it is: what is restored is what was written, or the stack begins anew."""
    files = [each.relative_to(original.path) for each in place_of(original).rglob("*") if each.is_file()]
    intact = 0
    (checkpoint,) = stored.unowned(original.path)
    written = checkpoint.restore()
    checkpoint.release()
    assert len(files) > 6
    for number, file in enumerate(sorted(files)):
        shutil.copytree(
            place_of(original), tmp_path / str(number) / place_of(original).relative_to(original.path)
        )
        run = dataclasses.replace(original, path=tmp_path / str(number))
        broken = run.path / file
        content = bytearray(broken.read_bytes())
        if fault == "deleted":
            broken.unlink()
        elif content:
            content[len(content) // 2] ^= 1
            broken.write_bytes(content if fault == "flipped" else content[: len(content) // 2])
        for checkpoint in stored.unowned(run.path):
            if checkpoint.about and checkpoint.stage:
                try:
                    for array, before in zip(checkpoint.restore(), written, strict=True):
                        np.testing.assert_array_equal(array, before, strict=True)
                    intact += 1
                except ValueError:
                    pass
            checkpoint.release()
    assert intact == 1, "the lock does not matter"


def test_a_run_whose_checkpoint_is_damaged_completes_with_a_warning(begun, uninterrupted):
    largest = max(place_of(begun).rglob("*"), key=lambda each: each.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.warns(CheckpointWarning, match="is damaged, and models 3, 4, 5 begin anew: "):
        assert finished(begun) == {3: 0}
    assert_same(uninterrupted, begun)


def test_a_checkpoint_that_does_not_tell_what_it_is_of_is_removed_with_a_warning(begun, uninterrupted):
    (place_of(begun) / "about.json").write_text("{}")
    with pytest.warns(
        CheckpointWarning, match=r"its models begin anew: about\.json is not as it was written"
    ):
        assert finished(begun) == {3: 0}
    assert_same(uninterrupted, begun)


def test_a_full_disk_fails_nothing(tmp_path, uninterrupted, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stored.Checkpoint, "save", full)
    run = made(tmp_path / "run")
    with pytest.warns(CheckpointWarning, match="the checkpoint cannot be written: .*No space left on device"):
        train(run, dataset(), show_progress=False)
    assert_same(uninterrupted, run)


# --- One owner at a time ---------------------------------------------------------------------------------------------


def test_a_checkpoint_has_one_owner(begun):
    """Another thread; then another process."""
    stack, attempts = np.arange(3, 6), np.zeros(3, int)
    with Checkpoints(begun, OFTEN).of(HERE, stack, attempts) as first:
        assert first.checkpoint is not None
        assert first.checkpoint.stage == AT
        with Checkpoints(begun, OFTEN).of(HERE, stack, attempts) as second:
            assert second.checkpoint is None
        Checkpoints(begun, OFTEN).tidy()
    lock = place_of(begun) / ".lock"
    hold = "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, 2); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold, lock], stdin=-1, stdout=-1) as holder:
        assert holder.stdin
        assert holder.stdout
        holder.stdout.readline()
        assert list(stored.unowned(begun.path)) == []
        holder.stdin.close()
    (checkpoint,) = stored.unowned(begun.path)
    checkpoint.release()


def test_of_two_attempts_the_furthest_is_gone_on_with_and_both_are_removed(begun, uninterrupted):
    earlier = shutil.copytree(place_of(begun), place_of(begun).with_name("0"))
    for suffix in ("", ".json"):
        (earlier / f"{AT}{suffix}").rename(earlier / f"2{suffix}")
    assert finished(begun) == {3: AT}
    assert_same(uninterrupted, begun)


def test_stacks_that_are_begun_come_first_and_whole():
    done = {1, 4, 5}
    queue = Queue(
        np.arange(9),
        lambda stack: np.array([m for m in stack if m not in done], int),
        [np.array(each) for each in ([2, 6], [4, 5], [3, 7, 8])],
    )
    assert len(queue) == 9
    assert [queue.take(2).tolist() for _ in range(4)] == [[2, 6], [3, 7], [8, 0], []]


# --- When ------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_written_every_so_many_minutes(tmp_path, monkeypatch):
    run, clock, written = made(tmp_path / "run"), [0.0], []
    monkeypatch.setattr(checkpoints_module, "now", lambda: clock[0])
    monkeypatch.setattr(stored.Checkpoint, "save", lambda self, stage, arrays: written.append(stage))
    with Checkpoints(run, 10.0) as checkpoints, checkpoints.of(HERE, np.arange(3), np.zeros(3)) as kept:
        for epoch in range(60):
            clock[0] = 60.0 * epoch * 3
            kept.keep_if_due(Begun(epoch, np.zeros(3), [jnp.zeros((3, epoch))], {}))
            if kept._writing:
                kept._writing.result()
    assert written == list(range(4, 60, 4)), "of three minutes each, the first after ten"


def test_short_trainings_and_zero_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints_module, "new_checkpoint", pytest.fail)
    run = made(tmp_path / "run", Execution().checkpoint_minutes)
    train(run, dataset(), show_progress=False)
    with Checkpoints(run, NEVER).of(HERE, np.arange(3), np.zeros(3)) as kept:
        kept.keep_if_due(Begun(3, None, [], {}))
        kept.keep_at_last(Begun(3, None, [], {}))


def test_plan_counts_the_bytes_of_checkpoints(tmp_path):
    run = made(tmp_path / "run")
    counted = plan(run.config, dataset()).bytes_of_checkpoints
    inputs, hidden, classes = 36, 8, 3
    params = (inputs + 1) * hidden + 2 * hidden + (hidden + 1) * classes
    # Momentum, the last weights and the average; running statistics and theirs; steps of the model and of the optimizer.
    each = 4 * (3 * params + 2 * 2 * hidden + 2)
    assert counted == 2 * 3 * each
    assert "for checkpoints" in str(plan(run.config, dataset()))
    assert plan(made(tmp_path / "rarely", 10.0).config, dataset()).bytes_of_checkpoints == 0


def test_what_was_begun_and_left_long_ago_is_removed(begun):
    making = begun.path / "checkpoints" / ".1.making"
    making.mkdir()
    assert len([each.release() for each in stored.unowned(begun.path)]) == 1
    assert making.exists()
    with pytest.MonkeyPatch.context() as patch:
        later = time.time() + 2 * stored.ABANDONED
        patch.setattr(time, "time", lambda: later)
        assert len([each.release() for each in stored.unowned(begun.path)]) == 1
    assert not making.exists()
