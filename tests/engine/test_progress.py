"""What a training tells while it goes on, against what the run holds afterwards; TensorBoard's files read byte by byte."""

import struct
import sys
import threading

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

import lira
from lira.cli import main
from lira.commands.events import events
from lira.store.config import ConfigError

N, M, EPOCHS, WIDTH = 40, 6, 3, 2
RNG = np.random.default_rng(0)
DATA = lira.Dataset.from_arrays(RNG.normal(size=(N, 5)), np.arange(N) % 2)
RECIPE = lira.Recipe(epochs=EPOCHS, batch_size=8)


def made(path):
    return lira.Run.create(path, DATA, RECIPE, num_models=M, execution=lira.Execution(width=WIDTH, workers=2))


def scalars(directory):
    """(tag, step) and value of each scalar in a directory's events: records of length, checksum, event, checksum."""
    found = {}
    for file in directory.glob("events.*"):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])  # pyright: ignore[reportAttributeAccessIssue]
            found |= {(each.tag, event.step): each.simple_value for each in event.summary.value}
            content = content[16 + length :]
    return found


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A run, what was told of it, in order, and the directory of its events."""
    path, heard, busy = tmp_path_factory.mktemp("runs") / "run", [], threading.Lock()
    run = made(path)

    with lira.tensorboard(path / "events") as write:

        def progress(now):
            assert busy.acquire(blocking=False), "one after the other"
            heard.append(now)
            write(now)
            busy.release()

        lira.train(run, DATA, show_progress=False, progress=progress)
    return run, heard, path / "events"


def test_every_epoch_of_every_stack_is_told_once(told):
    run, heard, _ = told
    epochs = [(tuple(now.models.tolist()), now.epoch) for now in heard if now.loss is not None]
    stacks = {models for models, _ in epochs}
    assert sorted(model for stack in stacks for model in stack) == list(range(M))
    assert sorted(epochs) == sorted((stack, epoch) for stack in stacks for epoch in range(1, EPOCHS + 1))
    last = {tuple(now.models.tolist()): now.loss for now in heard if now.epoch == now.num_epochs == EPOCHS}
    for stack, loss in last.items():
        np.testing.assert_array_equal(loss, run.losses("last_epoch", np.array(stack)))


def test_stored_models_are_told_with_their_accuracies(told):
    run, heard, _ = told
    stored = [now for now in heard if now.accuracies is not None]
    assert sorted(m for now in stored for m in now.models.tolist()) == list(range(M))
    for now in stored:
        for side in ("in", "out"):
            np.testing.assert_array_equal(now.accuracies[side], run.accuracy(side, now.models))
            assert now.metrics[f"accuracy_{side}"] == pytest.approx(run.accuracy(side, now.models).mean())
        assert "accuracy_test" not in now.metrics, "there are no held-out examples"


def test_steps_only_grow_and_end_with_all_epochs_of_all_models(told):
    _, heard, _ = told
    steps = [now.step for now in heard]
    assert steps == sorted(steps)
    assert steps[-1] == M * EPOCHS
    assert heard[-1].done == pytest.approx(M)
    assert all(now.verb == "training" and now.num_models == M and now.seconds >= 0 for now in heard)


def test_what_is_raised_ends_the_training_which_goes_on_next_time(tmp_path):
    run = made(tmp_path / "run")

    def stop(now):
        if now.accuracies is not None:
            raise TimeoutError("enough")

    with pytest.raises(TimeoutError, match="enough"):
        lira.train(run, DATA, show_progress=False, progress=stop)
    before = int((run.done == 1).sum())
    assert 0 < before < M
    heard = []
    lira.train(run, DATA, show_progress=False, progress=heard.append)
    assert (run.done == 1).all()
    assert heard[0].done >= before
    assert heard[-1].step == M * EPOCHS, "as if it had not been interrupted"


def test_tensorboard_holds_what_was_told(told):
    _, heard, directory = told
    overall = scalars(directory / "training")
    for now in heard:
        for name, value in now.metrics.items():
            if [each.step for each in heard].count(now.step) == 1:
                assert overall[name, now.step] == pytest.approx(value)
    stacks = {tuple(now.models.tolist()) for now in heard if now.loss is not None}
    for stack in stacks:
        found = scalars(directory / f"training/models {stack[0]}-{stack[-1]}")
        expected = {
            ("loss_by_epoch", now.epoch): now.loss.mean()
            for now in heard
            if now.loss is not None and tuple(now.models.tolist()) == stack
        }
        assert found == pytest.approx(expected)


def test_the_command_writes_events_into_the_run(tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "mine.npz", x=DATA.x, y=DATA.y)
    flags = [*("run", "--dataset", f"npz:{tmp_path}/mine.npz", "--run-dir", str(tmp_path / "run"))]
    flags += [*("--num-models", "4", "--recipe.epochs", "1", "--recipe.batch-size", "8")]
    flags += [*("--execution.width", "4", "--attacks", "global_threshold", "--tensorboard")]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorboardX", None)
        assert main(flags) == 2
    said = capsys.readouterr().err
    assert 'pip install "lira[tensorboard]"' in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists(), "nothing is written"
    assert main(flags) == 0
    assert ("accuracy_in", 4) in scalars(tmp_path / "run/tensorboard/training")
    assert main(["verify", str(tmp_path / "run")]) == 0
    with pytest.raises(ConfigError, match="on an object store: use "):
        events("s3://bucket/run", wanted=True)
