"""Stacks that are ended in the midst of their training go on bit for bit."""

import dataclasses
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from cut_off_runs import AT, HERE, NEVER, OFTEN, RECIPE, assert_same, cut_off, finished, made, place_of
from small_runs import dataset

from lira.engine import checkpoints as checkpoints_module
from lira.engine.checkpoints import Begun, Checkpoints, Kept
from lira.engine.fill import train
from lira.engine.plan import plan
from lira.engine.workers import Queue
from lira.stopping import Terminated
from lira.store import checkpoints as stored
from lira.store.config import Execution


def test_a_stack_goes_on_from_where_it_was_cut_off(begun, uninterrupted):
    assert place_of(begun).joinpath(str(AT)).is_dir()
    assert finished(begun) == {3: AT}
    assert_same(uninterrupted, begun)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from cut_off_runs import cut_off
from small_runs import dataset
from lira.store.run import Run
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


def test_a_checkpoint_is_written_every_so_many_minutes(tmp_path, monkeypatch):
    run, clock, written = made(tmp_path / "run"), [0.0], []
    monkeypatch.setattr(checkpoints_module, "now", lambda: clock[0])
    monkeypatch.setattr(stored.Checkpoint, "save", lambda self, stage, arrays: written.append(stage))
    with Checkpoints(run, 10.0) as checkpoints, checkpoints.of(HERE, np.arange(3), np.zeros(3)) as kept:
        for epoch in range(60):
            clock[0] = 60.0 * epoch * 3
            kept.keep_if_due(Begun(epoch, np.zeros(3), [jnp.asarray(np.zeros((3, epoch)))], {}))
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
