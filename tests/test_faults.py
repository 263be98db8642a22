"""Errors of the input are one line with status 2; others are faults of lira, or of a user's own module, and are told as such."""

from pathlib import Path

import numpy as np
import pytest

from lira.cli import main
from lira.commands import training
from lira.faults import whose
from lira.membership import keep_mask


def told(monkeypatch, capsys, run):
    """Status and stderr where `lira plan` does this."""
    monkeypatch.setattr(training, "run", lambda verb, argv, terminal: run())
    status = main(["plan"])
    return status, capsys.readouterr().err


def numpy_refuses():
    return np.zeros(2) + np.zeros(3)


@pytest.mark.parametrize(
    "fault",
    [
        numpy_refuses,  # C code, which has no frame of its own
        lambda: int("x"),
        lambda: np.concatenate([]),
        lambda: {}["missing"],
        lambda: 1 / 0,
        lambda: np.linalg.inv(np.zeros((2, 2))),  # raised by a library's line of Python
    ],
)
def test_what_a_library_raises_is_no_message_for_users(monkeypatch, capsys, fault):
    """As if the function were lira's: with its file name, since lira's own lines raise nothing unforeseen on demand."""
    import lira

    code = fault.__code__.replace(co_filename=str(Path(lira.__file__).parent / "somewhere.py"))
    monkeypatch.setattr(fault, "__code__", code)
    status, error = told(monkeypatch, capsys, fault)
    assert status == 70
    assert error.startswith("Traceback (most recent call last)")
    last = error.splitlines()[-1]
    assert last.startswith("lira: error: a fault of lira, not of your input: ")
    for part in ("Please report it", "lira 0.", "jax ", "python "):
        assert part in last


def test_what_lira_raises_itself_is_one_line(monkeypatch, capsys):
    status, error = told(monkeypatch, capsys, lambda: keep_mask(0, 3, 4))
    assert status == 2
    assert error.startswith("lira: error: ")
    assert error.count("\n") == 1
    status, error = told(monkeypatch, capsys, lambda: Path("/nowhere/at/all").read_text())
    assert (status, error.count("\n")) == (2, 1)
    assert "/nowhere/at/all" in error


def test_a_module_of_ones_own_is_named_with_its_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "own_net.py").write_text(
        "import numpy as np\n\n\ndef net():\n    np.zeros(2) + np.zeros(3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import own_net  # pyright: ignore[reportMissingImports]

    status, error = told(monkeypatch, capsys, own_net.net)
    assert status == 2
    assert error.splitlines()[-1].startswith(
        "lira: error: code of your own failed, own_net.py, line 5: ValueError: operands"
    )
    assert "a fault of lira" not in error


def test_an_error_without_a_traceback_is_a_fault():
    assert whose(ValueError("made, never raised")) == "lira"


def test_memory_that_runs_out_is_no_fault(monkeypatch, capsys):
    def exhausted():
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory allocating 1 byte")

    status, error = told(monkeypatch, capsys, exhausted)
    assert (status, error.count("\n")) == (2, 1)
    assert error.startswith("lira: error: out of memory")
