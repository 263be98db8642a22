"""What nobody means to ask for: each ends in one line with status 2, and leaves nothing half-made."""

import os
import threading

import pytest
from stored_runs import made, write

from lira.cli import main
from lira.membership import imitator_mask, independent_mask, keep_mask
from lira.store.errors import RunError


def refused(capsys, *command):
    """Do a command that is to be refused; the line that it says."""
    assert main([*map(str, command)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("verb", ["train", "score", "check", "verify"])
def test_links_in_a_circle_and_empty_names_are_one_line(tmp_path, monkeypatch, capsys, verb):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    assert "lead nowhere or in a circle: name a directory" in refused(capsys, verb, "loop")
    assert "the name of the directory is empty" in refused(capsys, verb, "")


def test_a_home_that_is_not_there_is_one_line_wherever_it_is_named(tmp_path, capsys):
    for command in (
        ("import", "carlini", "~nobody-of-this-name/x", tmp_path / "run"),
        ("audit", "--phi", "~nobody-of-this-name/x", "--keep", "y", "--out", tmp_path / "run"),
        ("verify", "~nobody-of-this-name/x"),
    ):
        assert "there is no such home directory: spell the path out" in refused(capsys, *command)
    assert not (tmp_path / "run").exists()


PIPES = ("provenance.json", "arrays/phi/zarr.json", "arrays/done/c/2", "arrays/phi/c/1/0/0")


@pytest.mark.parametrize("place", [*PIPES, "arrays/keep/c/1/0", "metrics.json", "attacks.png"])
def test_what_is_no_file_is_named_and_never_waited_for(tmp_path, capsys, place):
    """A FIFO in the place of a file of a run, under every verb that reads it: one line, or a finding."""
    run = made(tmp_path, signals=())
    write(run, *range(6))
    for name in ("metrics.json", "report.html"):
        (run.path / name).write_bytes(b"")
    (run.path / place).unlink(missing_ok=True)
    os.mkfifo(run.path / place)
    commands = [("verify", run.path), ("verify", run.path, "--deep")]
    if place in PIPES:
        commands += [("score", run.path), ("export", "carlini", run.path, tmp_path / "out")]
    for command in commands:
        # Where it is opened all the same, it ends.
        end = threading.Timer(20, lambda: os.close(os.open(run.path / place, os.O_RDWR | os.O_NONBLOCK)))
        end.start()
        try:
            status = main([*map(str, command)])
            said = capsys.readouterr()
        finally:
            alive = end.is_alive()
            end.cancel()
        assert alive, f"it was waited for by {command}"
        assert status == (1 if command[0] == "verify" else 2)
        assert place == "attacks.png" or "is no regular file" in said.out + said.err
        assert command[0] == "verify" or len(said.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_lock_that_is_no_file_is_named(tmp_path):
    run = made(tmp_path)
    for name in (".lock", ".models"):
        (run.path / name).unlink(missing_ok=True)
        os.mkfifo(run.path / name)
    with pytest.raises(RunError, match="is no regular file"), run.lock():
        pass
    with pytest.raises(RunError, match="is no regular file"):
        write(run, 0)


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_all_that_cannot_be_read_is_named(tmp_path, capsys, kind):
    """`verify` stopped at the first chunk that is no file, so that whoever removed it met the next."""
    run = made(tmp_path, signals=())
    write(run, *range(6))
    places = ["arrays/keep/c/1/0", "arrays/phi/c/1/0/0", "arrays/phi/c/4/0/0", "arrays/loss_in/zarr.json"]
    for place in places:
        (run.path / place).unlink()
        (os.mkfifo if kind == "fifo" else os.mkdir)(run.path / place)
    assert main(["verify", str(run.path)]) == 1
    said = capsys.readouterr().out
    assert all(f"{place}: " in said or place in said for place in places)


def test_a_limit_on_a_report_that_is_damaged_is_one_line(tmp_path, capsys):
    run = made(tmp_path)
    write(run, *range(6))
    for content in (b"", b"{", b"[]", b"{}", b"null"):
        (run.path / "metrics.json").write_bytes(content)
        line = refused(capsys, "check", run.path, "--fail-above", "auc=0.6")
        assert line.endswith(f"its report is damaged: lira report {run.path}")


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed: keep_mask(seed, 4, 10),
        lambda seed: independent_mask(seed, 4, 10, 0.5),
        lambda seed: imitator_mask(seed, 0, 4, 10),
    ],
)
def test_a_seed_has_64_bits(draw):
    assert draw(2**64 - 1).shape == (4, 10)
    for seed in (2**64, 10**400):
        with pytest.raises(ValueError, match=r"a seed of memberships must be smaller than 2\^64; got"):
            draw(seed)
