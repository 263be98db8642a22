import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from lira import metrics
from lira.attacks.suite import ATTACKS
from lira.cli import main
from lira.data.sources import load_dataset
from lira.store.config import read_config
from lira.store.run import Run

SMALL = """\
dataset = "npz:{data}"
num_models = 8
[recipe]
epochs = 2
batch_size = 10
learning_rate = 0.05
[execution]
width = 8
"""

# What processes of their own are asked for, which compile everything anew.
FEW_ATTACKS = ["--attacks", "lira_online_fixed", "global_threshold"]

pytestmark = pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIRA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def config(tmp_path):
    """A configuration of 100 tiny images, half of which are noise that only memory can label."""
    rng = np.random.default_rng(0)
    y = np.arange(100) % 2
    x = rng.integers(0, 256, (100, 5, 5, 1)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    path = tmp_path / "config.toml"
    path.write_text(SMALL.format(data=tmp_path / "data.npz"))
    return path


def run(*arguments):
    return main([str(argument) for argument in arguments])


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
    assert run("run", config, "--run-dir", place, "--num-models", 4) == 0
    assert "lira_online is left out: lira_online needs 2 IN models" in capsys.readouterr().err
    assert run("run", config, "--run-dir", place, "--num-models", 8) == 0
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
    assert run("run", config, "--run-dir", place, "--share", "1/2") == 0
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
    assert run("run", config, "--run-dir", place) == 0
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
    assert run("run", "config.toml", "--run-dir", "run", "--num-models", 4, "--recipe.epochs", 1) == 0
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
            "epsilon is 1e-05, and in 10 steps .*: raise it, or train for fewer",
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
    assert run("run", config, "--run-dir", place, "--num-models", 4) == 0
    np.savez(tmp_path / "data.npz", x=np.zeros((100, 5, 5, 1), np.uint8), y=np.arange(100) % 2)
    capsys.readouterr()
    assert run("run", config, "--run-dir", place, "--num-models", 4) == 2
    assert "is a run of other data" in capsys.readouterr().err
    (place / "arrays/phi/c/2/0/0/0").write_bytes(b"") if (place / "arrays/phi/c/2/0/0/0").exists() else (
        place / "arrays/phi/c/2/0/0"
    ).write_bytes(b"")
    for scored in (place / "scores").iterdir():
        (scored / "zarr.json").unlink()
    assert run("report", place) == 2
    assert "arrays/phi: is damaged" in capsys.readouterr().err


def test_check_says_what_is_wrong_by_its_status(tmp_path, config, capsys):
    place = tmp_path / "run"
    assert run("run", config, "--run-dir", place, "--recipe.epochs", 30) == 0
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


def test_runs_of_other_code_come_and_go(tmp_path, config, capsys):
    place = tmp_path / "run"
    assert run("run", config, "--run-dir", place, "--recipe.epochs", 30) == 0
    assert run("export", "carlini", place, tmp_path / "carlini") == 0
    assert "8 models; no x_train.npy" in capsys.readouterr().out
    assert run("import", "carlini", tmp_path / "carlini", tmp_path / "back", "--independent") == 0
    assert "8 models, 100 examples, 1 queries; next: lira report" in capsys.readouterr().out
    assert run("report", tmp_path / "back") == 0
    theirs, ours = (
        json.loads((each / "metrics.json").read_text())["attacks"] for each in (tmp_path / "back", place)
    )
    # The export has no entropies and no images, which those that are not there read, and the shadow classifiers where
    # they can.
    assert set(ours) - set(theirs) == {
        *("entropy_threshold", "modified_entropy_threshold", "pmia_neighbours_fixed")
    }
    same = [name for name in theirs if not name.startswith("shadow")]
    assert {name: theirs[name] for name in same} == {name: ours[name] for name in same}
    page = (tmp_path / "back/report.html").read_text()
    assert "scores/0000000030.npy (carlini)" in page
    assert "recipe of imported models is not known" in page
    assert "<dt>memberships drawn by independent coins</dt><dd>declared</dd>" in page
    capsys.readouterr()
    assert run("train", tmp_path / "back") == 2
    assert re.fullmatch(
        r"lira: error: .*has no recipe: it can be scored and reported, .*\n", capsys.readouterr().err
    )
    assert run("run", config, "--run-dir", tmp_path / "back") == 2
    assert "was imported from" in capsys.readouterr().err
    assert run("check", tmp_path / "back") == 0


def test_labels_come_from_a_file_where_a_layout_has_none(tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels, keep = np.arange(60) % 3, np.argsort(rng.uniform(size=(6, 60)), axis=0) < 3
    for m in range(6):
        (tmp_path / f"port/{m}").mkdir(parents=True)
        logits = rng.normal(size=(60, 1, 3)) + 3 * (labels[:, None, None] == np.arange(3)) * (
            1 + keep[m, :, None, None]
        )
        np.save(tmp_path / f"port/{m}/logits.npy", logits)
        np.save(tmp_path / f"port/{m}/keep.npy", keep[m])
    (tmp_path / "labels.csv").write_text("\n".join(map(str, labels)))
    arguments = ["import", "pytorch", tmp_path / "port", tmp_path / "run"]
    assert run(*arguments) == 2
    assert "logits need labels" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert run(*arguments, "--labels", tmp_path / "labels.csv") == 0
    np.testing.assert_array_equal(Run.open(tmp_path / "run").labels, labels)


def test_bad_import_export_and_check_are_one_line_and_status_2(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments, message in [
        (["import", "karlini", tmp_path, tmp_path / "run"], "invalid choice: 'karlini'"),
        (["import", "carlini", tmp_path / "absent", tmp_path / "run"], "absent: is not a directory"),
        (["import", "carlini", tmp_path, tmp_path / "run"], "holds no directory experiment-{i}_{n}"),
        (
            ["import", "privacy-meter", tmp_path, tmp_path / "run"],
            "models/memberships.npy: there is no such file",
        ),
        (["import", "carlini", tmp_path], "required: RUN"),
        (["export", "carlini", tmp_path / "empty", tmp_path / "out"], "is not a run directory"),
        (["export", "pytorch", tmp_path, tmp_path / "out"], "invalid choice: 'pytorch'"),
        (["check", tmp_path / "empty"], "is not a run directory"),
        (["check", tmp_path, "--fast"], "unknown argument '--fast'"),
        (["report", tmp_path, "--fast"], "unknown argument '--fast'"),
    ]:
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert re.fullmatch(r"lira: error: .*\n", error)
        assert message in error
    assert [each.name for each in tmp_path.iterdir()] == ["empty"]


def test_data_given_in_memory_is_named(tmp_path, capsys):
    import lira

    rng = np.random.default_rng(0)
    data = lira.Dataset.from_arrays(rng.normal(size=(60, 4)), np.arange(60) % 2)
    made = lira.Run.create(tmp_path / "run", data, lira.Recipe(epochs=1, batch_size=10), num_models=4)
    assert run("train", made.path) == 2
    assert "Run.open" in capsys.readouterr().err
    lira.train(lira.Run.open(made.path, dataset=data), data, show_progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run("report", made.path) == 0


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
    # Interrupt once the first model is done.
    for _ in range(600):
        if list((tmp_path / "run/arrays/done/c").glob("*")):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: finished models are kept" in error
    assert "Traceback" not in error
    done = Run.open(tmp_path / "run").done
    assert 0 < done.sum() < 8
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
    assert Run.open(tmp_path / "run").done.tolist() == [1] * 8


def test_help_is_help(capsys, config):
    assert run() == 0
    assert "lira run [CONFIG.toml] --run-dir RUN" in capsys.readouterr().out
    assert run("run", config, "--help") == 0
    assert "--recipe.epochs" in capsys.readouterr().out
