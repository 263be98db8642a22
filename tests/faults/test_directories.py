"""Directories that hold runs and more: whatever they are made with is damaged in every way, and named."""

import dataclasses

import numpy as np
import pytest
from stored_runs import N, at_once, dataset, made

from lira.engine.imitate import Teacher
from lira.reporting.imitation import _open
from lira.reporting.mending import write_target
from lira.store.verify import findings
from lira.unlearning.config import Forget, UnlearnConfig
from lira.unlearning.directory import Unlearning

DAMAGES = {"flipped": lambda content: content[:-1] + bytes([content[-1] ^ 1]), "emptied": lambda _: b""}


def unlearning(path):
    pool = dataclasses.replace(made(path.parent, "pool").config, save_params=True)
    Unlearning.create(path, dataset(), UnlearnConfig(pool, methods=("none",), forget=Forget(size=4)))


def imitation(path):
    run, teacher = (
        made(path.parent, "pool"),
        Teacher(np.zeros((N, 2), np.float32), np.zeros((N, 1), np.float32)),
    )
    _open(path, {"target": "target_0", "answers": "", "num_imitators": 4, "seed": 0}, {}, run.path)
    write_target(path, teacher, np.arange(N) < 5)


PLACES = {
    unlearning: ("config.toml", "forget/zarr.json", "forget/c/0/0"),
    imitation: ("imitation.toml", "target/zarr.json", "target/logits/zarr.json", "target/member/c/0/0"),
}


def broken(path):
    return [each.place for each in findings(path, deep=True) if each.status == "broken"]


@pytest.mark.parametrize("made_by", PLACES)
def test_whatever_a_directory_is_made_with_is_missed(tmp_path, made_by):
    made_by(tmp_path / "there")
    assert broken(tmp_path / "there") == []
    for place in PLACES[made_by]:
        file = tmp_path / "there" / place
        whole = file.read_bytes()
        for how in (*DAMAGES, "deleted"):
            file.unlink() if how == "deleted" else file.write_bytes(DAMAGES[how](whole))
            assert broken(tmp_path / "there") == [place], how
            file.write_bytes(whole)


@pytest.mark.parametrize("made_by", PLACES)
def test_every_changed_byte_of_its_table_is_seen(tmp_path, made_by):
    """All of the line that holds its checksum, and some others."""
    made_by(tmp_path / "there")
    file = tmp_path / "there" / PLACES[made_by][0]
    whole = file.read_bytes()
    first = whole.index(b"\n") + 1
    for position in (*range(first), *range(first, len(whole), 25)):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert broken(tmp_path / "there") == [file.name], position


def test_a_run_may_have_any_name(tmp_path):
    """Side by side with others, as of a grid, it is a run and nothing else."""
    for name in ("forget", "target", "retrained"):
        made(tmp_path / "runs", name)
    assert broken(tmp_path / "runs") == []
    (tmp_path / "runs/target/arrays/phi/zarr.json").unlink()
    assert broken(tmp_path / "runs") == ["target/arrays/phi/zarr.json"]


@pytest.mark.parametrize("made_by", PLACES)
def test_any_number_of_processes_makes_it_at_once(tmp_path, made_by):
    """Those who come second go on with it, as the same command would."""
    made(tmp_path, "pool")
    for attempt in range(4):
        at_once(lambda _, attempt=attempt: made_by(tmp_path / f"there{attempt}"), count=4)
        assert broken(tmp_path / f"there{attempt}") == []
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "pool",
        "there0",
        "there1",
        "there2",
        "there3",
    ]
