"""What is not gone on from: a checkpoint of something else, or damaged, is named and left, and its stack begins anew."""

import dataclasses
import shutil

import numpy as np
import pytest
from cut_off_runs import HERE, OFTEN, assert_same, finished, made, place_of
from small_runs import dataset

from lira.engine.checkpoints import Begun, Checkpoints, CheckpointWarning
from lira.engine.fill import train
from lira.store import checkpoints as stored
from lira.store.checksums import json_with_checksum


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
