"""What signals and closed pipes do to the command: in processes of their own, each with the interpreter's whole start."""

import os
import signal
import subprocess
import sys
import time

import pytest

from lira import stopping

LIRA = [sys.executable, "-m", "lira"]
SMALL = 'dataset = "digits"\nnum_models = 4\n[recipe]\nmodel = "cnn"\nepochs = 200\nbatch_size = 50\n'


def begun(tmp_path, *arguments, **environment):
    environment = {**os.environ, "LIRA_CACHE": str(tmp_path / "cache"), **environment}
    command = [*LIRA, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    ("number", "moment"), [("SIGINT", "imports"), ("SIGINT", "calibration"), ("SIGTERM", "calibration")]
)
def test_a_signal_ends_the_command_with_its_line_and_status(tmp_path, number, moment):
    number = signal.Signals[number]
    (tmp_path / "config.toml").write_text(SMALL)
    process = begun(tmp_path, "run", tmp_path / "config.toml", "--run-dir", tmp_path / "run")
    if moment == "imports":
        time.sleep(0.4)
    while moment != "imports" and not (tmp_path / "run/config.toml").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number, error
    assert error.splitlines() == [stopping.SENTENCES[number]]


def test_a_warning_of_the_end_keeps_stacks_in_training(tmp_path):
    (tmp_path / "config.toml").write_text(
        'dataset = "digits"\nnum_models = 4\n[recipe]\nepochs = 100000\n[execution]\nwidth = 2\nworkers = 1\n'
    )
    process = begun(tmp_path, "run", tmp_path / "config.toml", "--run-dir", tmp_path / "run",
                    "--execution.checkpoint-minutes", "1e-9")  # fmt: skip
    checkpoints, written = tmp_path / "run/checkpoints", "*/[0-9]*.json"
    while not list(checkpoints.glob(written)) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143, error
    (line,) = error.splitlines()
    sentence, _, kept = line.rpartition("; ")
    assert sentence == stopping.SENTENCES[signal.SIGTERM]
    stacks = len(list(checkpoints.glob(written)))
    assert kept == f"{2 * stacks} models in training go on from the checkpoint just written"
    assert stacks > 0


def test_who_no_longer_listens_is_not_told(tmp_path):
    process = begun(tmp_path, "--help")
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert (process.wait(timeout=60), process.stderr.read()) == (1, "")
    process.stderr.close()


def test_only_the_command_takes_signals():
    """A program that imports the package keeps its handlers, and KeyboardInterrupt."""
    code = "import signal; import lira; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_platform_that_is_not_there_is_one_line(tmp_path):
    (tmp_path / "config.toml").write_text(SMALL)
    _, error = begun(tmp_path, "plan", tmp_path / "config.toml", JAX_PLATFORMS="abacus").communicate()
    assert error.count("\n") == 1
    assert "lira: error: JAX finds no device, and JAX_PLATFORMS is 'abacus'" in error
