"""The command line from data to report: stages, shares, mistakes, interrupts."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import SMALL, config, run

from lira import metrics
from lira.attacks.suite import ATTACKS
from lira.data.sources import load_dataset
from lira.store.config import read_config
from lira.store.run import Run

__all__ = ["config"]

# Where a test is not of attacks, these are enough: all of them compile some thirty programs for every number of models.
FEW_ATTACKS = ["--attacks", "lira_online_fixed", "global_threshold"]
pytestmark = pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIRA_CACHE", str(tmp_path / "cache"))


def contents(path: Path):
    """Everything under a directory; the lock is no content."""
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.pictures
def test_one_command_from_data_to_report_and_then_nothing_to_do(tmp_path, config, capsys):
    assert run("run", config, "--run-dir", tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "8 of 8 models to train" in said
    assert "lira_online" in said
    stored = json.loads((tmp_path / "run/metrics.json").read_text())
    opened = Run.open(tmp_path / "run")
    scores = opened.scores("lira_online")
    assert scores is not None
    expected = metrics.roc(scores, opened.keep)
    assert stored["attacks"]["lira_online"]["auc"] == expected.auc
    assert stored["attacks"]["lira_online"]["tpr_at_fpr"]["0.01"]["tpr"] == expected.tpr_at(0.01).tpr
    assert (tmp_path / "run/roc.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (tmp_path / "run/report.html").read_text()

    before = contents(tmp_path / "run")
    assert run("run", config, "--run-dir", tmp_path / "run") == 0
    assert "is complete: 8 models trained, scored and reported; nothing to do" in capsys.readouterr().out
    assert contents(tmp_path / "run") == before


def test_stages_by_themselves_and_growth(tmp_path, config, capsys):
    place = tmp_path / "run"
    few = ["--attacks", "lira_online", "lira_online_fixed", "global_threshold"]
    assert run("run", config, "--run-dir", place, "--num-models", 4, *few) == 0
    assert "lira_online is left out: lira_online needs 2 IN models" in capsys.readouterr().err
    assert run("run", config, "--run-dir", place, "--num-models", 8, *few) == 0
    assert "4 of 8 models to train" in capsys.readouterr().out
    assert run("train", place) == 0
    assert "all 8 models are trained; nothing to train" in capsys.readouterr().out
    assert run("score", place) == 0
    # Digits have no held-out set, and no checkpoints were asked for.
    unread = sum(
        "population_features" in attack.needs or attack.signal == "trajectory" for attack in ATTACKS.values()
    )
    assert f"{len(ATTACKS) - unread} attacks scored for 8 models" in capsys.readouterr().out
    (place / "report.html").unlink()
    assert run("report", place) == 0
    assert (place / "report.html").exists()
    assert run("run", config, "--run-dir", place, "--num-models", 6) == 2
    assert "a run does not shrink to 6" in capsys.readouterr().err


def test_shares_of_a_run_by_name_and_by_the_scheduler(tmp_path, config, capsys, monkeypatch):
    place = tmp_path / "run"
    assert run("run", config, "--run-dir", place, "--share", "1/2", *FEW_ATTACKS) == 0
    said = capsys.readouterr().out
    assert "models 4:8 of 8: 4 of 8 models to train" in said
    assert "4 models are left to other processes; the one that trains the last scores and reports" in said
    assert not (place / "report.html").exists()
    assert run("train", place, "--models", "0:2") == 0
    assert Run.open(place).done.tolist() == [1, 1, 0, 0, 1, 1, 1, 1]
    assert run("train", place, "--models", "0:20") == 2
    assert "--models must be FIRST:STOP within 0:8" in capsys.readouterr().err
    for name, value in (("ID", "1"), ("MIN", "0"), ("COUNT", "4")):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert run("run", config, "--run-dir", place, *FEW_ATTACKS) == 0
    assert "models 2:4 of 8: 2 of 8 models to train" in capsys.readouterr().out
    assert (place / "report.html").exists(), "these were the last"


def test_two_processes_on_one_directory(tmp_path, config):
    """The same command twice, from the making of the directory on: each model is stored once, and both end well."""
    place = tmp_path / "run"
    command = [sys.executable, "-m", "lira", "run", str(config), "--run-dir", str(place), *FEW_ATTACKS]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
    opened = Run.open(place)
    assert opened.done.tolist() == [1] * 8
    assert sum(session["models"] for session in opened.provenance["sessions"]) == 8
    assert (place / "report.html").exists()


def test_run_directory_needs_nothing_else(tmp_path, config, capsys, monkeypatch):
    """The configuration in the run has absolute paths, so the stages work from anywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA", "data.npz")
    config.write_text(SMALL.format(data="$DATA"))
    flags = ["--num-models", 4, "--recipe.epochs", 1, *FEW_ATTACKS]
    assert run("run", "config.toml", "--run-dir", "run", *flags) == 0
    config.unlink()
    monkeypatch.delenv("DATA")
    monkeypatch.chdir("/")
    assert run("train", tmp_path / "run") == 0
    assert Run.open(tmp_path / "run").config.recipe.epochs == 1


def test_flags_overlay_the_file(config, capsys):
    assert run("plan", config, "--num-models", 12, "--recipe.epochs", 5, "--execution.width", 3) == 0
    said = capsys.readouterr().out
    assert "12 of 12 models to train, 3,000 images" in said
    assert "3 side by side" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe.epoch", "3"], "--recipe.epoch, 3; did you mean --recipe.epochs?"),
        (["--recipe.epochs", "three"], "Error parsing --recipe.epochs.*'three'"),
        (["--num-models", "7"], "num_models must be even and at least 4.*got 7"),
        (["--recipe.batch-size", "99"], "recipe.batch_size is 99, but a model has only about 50 members"),
        (["--recipe.model", "mpl"], "unknown model 'mpl', did you mean 'mlp'"),
        (["--queries.shift", "5"], "reflect at most 4 pixels of 5 x 5; got 5"),
        (
            ["--recipe.privacy.epsilon", "1e-5"],
            "epsilon is 1e-05, and in 10 steps .*: raise it, or delta, or train for fewer",
        ),
        (
            ["--recipe.privacy.epsilon", "1", "--recipe.privacy.clip", "0"],
            "privacy.clip must be positive; got 0",
        ),
        (["--recipe.privacy.clip", "1"], "recipe.privacy needs epsilon or noise"),
        (
            ["--recipe.privacy.noise", "1", "--recipe.model", "resnet18"],
            "'resnet18': has BatchNorm .*wrn-16-4-gn",
        ),
        (["--dataset", "npz:/nowhere.npz"], "/nowhere.npz"),
        (["--dataset", "digitz"], "unknown data set 'digitz'"),
        (["--dataset", "npz:$NOT_SET_ANYWHERE/x.npz"], r"\$NOT_SET_ANYWHERE"),
    ],
)
def test_bad_flags_are_one_line_status_2_and_nothing_written(tmp_path, config, capsys, arguments, message):
    assert run("run", config, "--run-dir", tmp_path / "run", *arguments) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"lira: error: .*\n", error)
    assert re.search(message, error)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.full((20, 3), np.nan), "y": np.arange(20) % 2}, "x.*NaN|nan"),
        ({"x": np.zeros((20, 3)), "y": np.arange(19) % 2}, "20.*19|19.*20"),
        ({"x": np.zeros((20, 3)), "y": np.arange(20) % 2 - 1}, "-1|negative"),
        ({"x": np.zeros((20, 3)), "y": np.arange(20) % 2 + 0.5}, "0.5|whole"),
        ({"x": np.zeros((20, 3)), "y": np.arange(20) % 2 * 2}, "class 1"),
    ],
)
def test_bad_data_is_one_line_status_2_and_nothing_written(tmp_path, config, capsys, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    assert run("run", config, "--run-dir", tmp_path / "run", "--dataset", f"npz:{tmp_path}/bad.npz") == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"lira: error: .*\n", error)
    assert re.search(message, error)
    assert not (tmp_path / "run").exists()


def test_bad_commands_and_places(tmp_path, config, capsys):
    for arguments, message in [
        (["rum"], "unknown command 'rum'"),
        (["run", config], "--run-dir"),
        (
            ["run", tmp_path / "no.toml", "--run-dir", tmp_path / "run"],
            "no.toml: cannot be read: No such file",
        ),
        (["run", config, "--run-dir", "/proc/run"], "/proc/run: cannot be written"),
        (["train", tmp_path], "is not a run directory"),
        (["report", tmp_path / "absent"], "is not a run directory"),
        (["train"], "required: RUN"),
    ]:
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert re.fullmatch(r"lira: error: .*\n", error)
        assert message in error
    config.write_text("num_models = [")
    assert run("run", config, "--run-dir", tmp_path / "run") == 2
    assert "is not valid TOML" in capsys.readouterr().err


def test_run_of_other_data_and_damaged_run_are_refused(tmp_path, config, capsys):
    place = tmp_path / "run"
    assert run("run", config, "--run-dir", place, "--num-models", 4, *FEW_ATTACKS) == 0
    np.savez(tmp_path / "data.npz", x=np.zeros((100, 5, 5, 1), np.uint8), y=np.arange(100) % 2)
    capsys.readouterr()
    assert run("run", config, "--run-dir", place, "--num-models", 4, *FEW_ATTACKS) == 2
    assert "is a run of other data" in capsys.readouterr().err
    (place / "arrays/phi/c/2/0/0").write_bytes(b"")
    for scored in (place / "scores").iterdir():
        (scored / "zarr.json").unlink()
    assert run("report", place) == 2
    assert "arrays/phi: is damaged" in capsys.readouterr().err


def test_check_says_what_is_wrong_by_its_status(tmp_path, config, capsys):
    place = tmp_path / "run"
    assert run("run", config, "--run-dir", place, "--recipe.epochs", 30, *FEW_ATTACKS) == 0
    page = (place / "report.html").read_text()
    capsys.readouterr()
    assert run("check", place) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok    data: npz:")
    assert lines[1] == "ok    models: all 8 models are there"
    assert re.match(r"ok    shuffled memberships: lira_online on shuffled memberships: AUC 0\.\d", lines[-1])
    assert all(re.match(r"(ok  |warn)  [\w ]+: ", line) for line in lines)
    assert "all 8 models are there" in page
    # A run that wants more models than it has.
    grown = dataclasses.replace(Run.open(place).config, num_models=10)
    Run.from_config(place, load_dataset(grown.dataset), grown)
    assert run("check", place) == 1
    assert "fail  models: 8 of 10 models are there" in capsys.readouterr().out


def test_check_fails_where_the_data_have_changed_in_place(tmp_path, config, capsys):
    data, place = load_dataset(f"npz:{tmp_path / 'data.npz'}"), tmp_path / "run"
    Run.from_config(place, data, read_config(config))
    assert run("check", place) == 1  # no model is there
    assert "ok    data: npz:" in capsys.readouterr().out
    np.savez(tmp_path / "data.npz", x=data.x[::-1], y=data.y)
    assert run("check", place) == 1
    assert re.search(r"fail  data: .* is a run of other data: npz:", capsys.readouterr().out)
    (tmp_path / "data.npz").unlink()
    assert run("check", place) == 1
    assert "warn  data: cannot be compared" in capsys.readouterr().out


def test_ctrl_c_leaves_a_run_that_resumes(tmp_path, config):
    environment = {**os.environ, "LIRA_CACHE": str(tmp_path / "cache"), "PYTHONUNBUFFERED": "1"}
    command = [
        sys.executable,
        "-c",
        "import sys; from lira.cli import main; sys.exit(main())",
        "run",
        str(config),
    ]
    command += ["--run-dir", str(tmp_path / "run"), "--recipe.epochs", "150", "--execution.width", "1"]
    command += FEW_ATTACKS
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    # Interrupt once the first model is done, however long it takes to get there.
    while process.poll() is None and not list((tmp_path / "run/arrays/done/c").glob("*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "interrupted: finished models are kept" in error
    assert "Traceback" not in error
    done = Run.open(tmp_path / "run").done
    assert 0 < done.sum() < 8
    assert run(*command[3:]) == 0
    assert Run.open(tmp_path / "run").done.tolist() == [1] * 8


def test_help_is_help(capsys, config):
    assert run() == 0
    assert "lira run [CONFIG.toml] --run-dir RUN" in capsys.readouterr().out
    assert run("run", config, "--help") == 0
    assert "--recipe.epochs" in capsys.readouterr().out
