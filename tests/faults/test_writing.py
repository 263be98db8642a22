"""A place that cannot be written: one line that names it, before anything is computed, and nothing half-made."""

import errno
import os
import re
import resource
import tempfile
from contextlib import contextmanager

import numpy as np
import pytest
from stored_runs import made, write

from lira import scoring
from lira.cli import main
from lira.faults import is_out_of_memory
from lira.reporting import enough as enoughs
from lira.store.errors import RunError
from lira.store.files import require_writable, write_atomically
from lira.store.places import new_directory, replacing
from lira.store.zarr import write_array


@contextmanager
def files_of_at_most(size):
    """The system refuses larger ones with an error, as it does on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_chunk_that_cannot_be_written_names_its_array_and_leaves_nothing(tmp_path):
    with files_of_at_most(2000), pytest.raises(RunError, match=r"/a: cannot be written: File too large$"):
        write_array(tmp_path / "a", np.zeros((40, 1 << 20), np.float32), {})
    assert list(tmp_path.iterdir()) == []
    run = made(tmp_path)
    with files_of_at_most(2), pytest.raises(RunError, match=r"/run: cannot be written: File too large$"):
        write(run, 0)
    assert not run.done.any()


def test_what_was_there_stays_whole_until_what_replaces_it_is(tmp_path):
    write_array(tmp_path / "a", np.ones((4, 10), np.float32), {})
    with files_of_at_most(2), pytest.raises(RunError), replacing(tmp_path / "a") as making:
        write_array(making, np.zeros((4, 10), np.float32), {})
    assert len(list(tmp_path.glob("a/c/*/*"))) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_is_told_with_the_name_that_a_file_is_to_have(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    said = f"{tmp_path}/run/own.toml: cannot be written: No space left on device: make room, and give the command again"
    with (
        pytest.raises(RunError, match=f"^{re.escape(said)}$"),
        new_directory(tmp_path / "run") as making,
        new_directory(making) as inner,
    ):
        write_atomically(inner / "own.toml", b"x")
    assert list(tmp_path.iterdir()) == []
    # TensorStore has the word that devices have for their memory.
    assert not is_out_of_memory(
        ValueError("RESOURCE_EXHAUSTED: Error writing local file: No space left on device")
    )


def test_what_cannot_be_read_is_not_said_to_be_what_cannot_be_written(tmp_path, capsys):
    run = made(tmp_path)
    write(run, *range(6))
    chunk = run.path / "arrays/phi/c/0/0/0"
    chunk.unlink()
    os.symlink(chunk, chunk)
    assert main(["export", "carlini", str(run.path), str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lira: error: {run.path}/arrays/phi: cannot be read: ")
    assert not (tmp_path / "out").exists()


def test_every_verb_that_writes_is_refused_before_it_computes(tmp_path, monkeypatch, capsys):
    run = made(tmp_path)
    write(run, 0, 1, 2, 3)
    before = sorted(tmp_path.rglob("*"))

    def read_only(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def computed(*_, **__):
        raise AssertionError("something was computed")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    monkeypatch.setattr(scoring, "attack_pool", computed)
    for name in ("phi", "keep"):
        np.save(tmp_path / f"{name}.npy", np.zeros(3))
    files = ["--phi", f"{tmp_path}/phi.npy", "--keep", f"{tmp_path}/keep.npy"]
    before += [tmp_path / "keep.npy", tmp_path / "phi.npy"]
    for command, place in (
        (["score", run.path], run.path),
        (["report", run.path], run.path),
        (["records", run.path], run.path),
        (["compare", run.path], run.path),
        (["audit", *files, "--out", tmp_path / "audit"], tmp_path / "audit"),
        (["import", "carlini", tmp_path, tmp_path / "a/import"], tmp_path / "a/import"),
        (["bench", "--out", tmp_path / "bench.json"], tmp_path),
    ):
        assert main([*map(str, command)]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"lira: error: {place}: cannot be written")
        assert error.endswith("Read-only file system")
    assert sorted(tmp_path.rglob("*")) == sorted(before)


def test_what_is_enough_is_told_of_a_run_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    run = made(tmp_path)
    write(run, *range(6))

    def refused(*_):
        raise RunError("RUN: cannot be written: Read-only file system")

    monkeypatch.setattr(enoughs, "write_curves", refused)
    monkeypatch.setattr(enoughs, "curves_of", lambda pool, fpr: {})
    assert main(["enough", str(run.path), "--json"]) == 0
    said = capsys.readouterr()
    assert "warning: what is enough is not stored: RUN: cannot be written" in said.err
    assert '"attacks": {}' in said.out


def test_a_place_may_be_deep_within_what_is_not_there_yet(tmp_path):
    require_writable(tmp_path / "a/b/c")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file/run: cannot be written: Not a directory"):
        require_writable(tmp_path / "file/run")
