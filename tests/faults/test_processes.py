"""Many processes at one run directory, and how its place may be spelt."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from stored_runs import RECIPE, M, N, at_once, dataset, made, rows, write

from lira.membership import keep_mask
from lira.store import places
from lira.store.errors import RunError, WaitingWarning
from lira.store.files import write_atomically
from lira.store.run import Run
from lira.store.verify import findings


def test_one_attempt_writes_all_arrays_of_a_model(tmp_path):
    run = made(tmp_path)
    for model in range(M):
        wrote = at_once(lambda i, model=model: run.write_model(model, rows(10 + i), diverged=False))
        assert sum(wrote) == 1
        attempt = 10 + wrote.index(True)
        for name, row in rows(attempt).items():
            np.testing.assert_array_equal(run.arrays.read(name, np.array([model]))[0], row)


def test_any_number_of_processes_makes_one_directory(tmp_path):
    for attempt in range(5):
        runs = at_once(lambda i, attempt=attempt: made(tmp_path, f"run{attempt}"))
        assert all(run.config == runs[0].config for run in runs)
        assert (Run.open(runs[0].path, dataset()).done == 0).all()
        assert sorted(os.listdir(tmp_path)) == [f"run{i}" for i in range(attempt + 1)], (
            "nothing is left beside it"
        )


@pytest.mark.parametrize(
    "name", ["../out", "x/../y", "../link", "../link/deep", ".", "a b", "a%b?c#d", "[a]*"]
)
def test_a_run_is_found_again_however_its_place_is_spelt(tmp_path, monkeypatch, name):
    (tmp_path / "here").mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "here")
    run = Run.create(name, dataset(), RECIPE, num_models=M)
    write(run, *range(M))
    assert np.asarray(Run.open(name).phi).shape == (M, N, 1)
    assert (run.path / "config.toml").exists()
    assert Path.cwd() == tmp_path / "here", "nobody's directory was replaced"
    assert Path("../here").samefile(".")
    assert [p for p in tmp_path.rglob("*.making")] == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("~nobody-of-this-name/run", "there is no such home directory"),
        ("a\\b", "with a backslash"),
        ("na\udce9me", "what is no text"),
        ("a\nb", "what is no text"),
        ("run.__lock", r"ends in \.__lock"),  # TensorStore takes these for locks of its own
        ("a.__lock/run", r"ends in \.__lock"),
    ],
)
def test_places_that_cannot_hold_arrays_are_refused_before_anything_is_done(
    tmp_path, monkeypatch, name, message
):
    monkeypatch.chdir(tmp_path)
    for use in (lambda: Run.create(name, dataset(), RECIPE, num_models=M), lambda: Run.open(name)):
        with pytest.raises(RunError, match=message):
            use()
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("is_mount", [False, True])
def test_an_empty_directory_takes_one_run_of_many_starts(tmp_path, monkeypatch, is_mount):
    (tmp_path / "run").mkdir()
    if is_mount:  # cannot be replaced, as a rename would do
        monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "run")
        made(tmp_path)
    at_once(lambda i: made(tmp_path))
    assert (Run.open(tmp_path / "run", dataset()).done == 0).all()
    there = sorted({*os.listdir(tmp_path / "run")} - {".lock"})
    assert there == ["arrays", "config.toml", "provenance.json", "scores"]


class KilledError(BaseException):
    """As kill -9 would end a process, but for what `finally` does."""


@pytest.mark.parametrize("moved", range(4))
def test_a_kill_between_two_renames_into_a_mount_point_leaves_what_is_gone_on_with(
    tmp_path, monkeypatch, moved
):
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "run")
    rename, renamed = os.rename, []

    def killed(source, target):
        if Path(target).parent == tmp_path / "run":
            if len(renamed) == moved:
                raise KilledError
            renamed.append(target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KilledError):
        made(tmp_path)
    monkeypatch.setattr(os, "rename", rename)
    assert len(renamed) == moved
    assert not (tmp_path / "run/config.toml").exists()
    at_once(lambda i: made(tmp_path))
    there = sorted({*os.listdir(tmp_path / "run")} - {".lock"})
    assert there == ["arrays", "config.toml", "provenance.json", "scores"]
    run = Run.open(tmp_path / "run", dataset())
    np.testing.assert_array_equal(run.memberships(np.arange(M)), keep_mask(0, M, N))
    assert not list(findings(run.path, dataset=dataset(), deep=True))


def test_runs_grow_by_several_processes_at_once(tmp_path):
    sizes = [8, 10, 12, 12, 10, 8, 12, 12]
    made(tmp_path)

    def grow(i):
        with contextlib.suppress(RunError):  # others were faster, and a run does not shrink
            made(tmp_path, num_models=sizes[i])

    at_once(grow)
    run = Run.open(tmp_path / "run", dataset())
    assert run.config.num_models == 12
    np.testing.assert_array_equal(run.memberships(np.arange(12)), keep_mask(0, 12, N))
    assert (run.done == 0).all()


def test_sessions_of_all_processes_are_kept(tmp_path):
    run = made(tmp_path)
    at_once(lambda i: Run.open(run.path).add_session({"models": i}))
    assert sorted(session["models"] for session in Run.open(run.path).provenance["sessions"]) == list(
        range(8)
    )


def test_second_writer_waits_and_a_dead_one_is_not_in_the_way(tmp_path, monkeypatch):
    run = made(tmp_path)
    hold = f"import time; from lira.store.run import Run\nwith Run.open({str(run.path)!r}).lock():\n    print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        monkeypatch.setattr(places, "PATIENCE", 1.5)
        with (
            pytest.warns(WaitingWarning, match="another process is writing this run: waiting for it"),
            pytest.raises(RunError, match=r"another process has been writing this run for 2 s"),
            run.lock(),
        ):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    time.sleep(0.05)
    with run.lock():
        pass


def test_scores_are_of_the_models_that_were_there_when_scoring_began(tmp_path):
    run = made(tmp_path)
    write(run, 0, 1, 2, 3)
    then = run.as_it_stands()
    write(run, 4, 5)
    assert then.models.tolist() == [0, 1, 2, 3]
    assert then.keep.shape[0] == then.phi.shape[0] == 4
    then.write_scores("lira_online", np.zeros((4, N), np.float32), then.fingerprint())
    assert run.scores("lira_online") is None
    assert then.scores("lira_online") is not None


def test_what_was_left_half_made_is_removed_in_the_end(tmp_path):
    for name in (".file.abc.making", ".run.abc.making"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".file.def.making").write_bytes(b"of another process, still at work")
    write_atomically(tmp_path / "file", b"new")
    made(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".file.def.making", "file", "run"]
