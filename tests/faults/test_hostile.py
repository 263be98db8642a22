"""What nobody means to ask for: each ends in one line with status 2, and leaves nothing half-made."""

import os
import threading

import pytest
from stored_runs import made, write

from lira.cli import main
from lira.membership import imitator_mask, independent_mask, keep_mask


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


@pytest.mark.parametrize("place", ["provenance.json", "metrics.json", "attacks.png", "arrays/phi/c/1/0/0"])
def test_what_is_no_regular_file_is_told_and_not_waited_for(tmp_path, capsys, place):
    run = made(tmp_path, signals=())
    write(run, *range(6))
    for name in ("metrics.json", "report.html"):
        (run.path / name).write_bytes(b"")
    (run.path / place).unlink(missing_ok=True)
    os.mkfifo(run.path / place)
    # Where it is opened all the same, it ends.
    end = threading.Timer(20, lambda: os.close(os.open(run.path / place, os.O_RDWR | os.O_NONBLOCK)))
    end.start()
    try:
        status = main(["verify", str(run.path)])
        said = capsys.readouterr()
    finally:
        alive = end.is_alive()
        end.cancel()
    assert alive, "it was waited for"
    assert status in (1, 2)
    assert place == "attacks.png" or "is no regular file" in said.out + said.err


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
