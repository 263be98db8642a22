"""An unlearning's configuration file, and the command that reads it."""

import numpy as np
import pytest
import tomli_w
from unlearned_runs import configured, dataset

from lira.cli import main
from lira.unlearning.config import as_table, read_unlearning
from lira.unlearning.directory import Unlearning

SMALL = """\
dataset = "npz:{data}"
num_models = 4
methods = ["none", "finetune"]
[forget]
size = 8
[recipe]
epochs = 2
batch_size = 10
[execution]
width = 4
"""


@pytest.fixture
def config_file(tmp_path, monkeypatch):
    monkeypatch.setenv("LIRA_CACHE", str(tmp_path / "cache"))
    data = dataset()
    np.savez(tmp_path / "data.npz", x=data.x, y=data.y)
    path = tmp_path / "unlearn.toml"
    path.write_text(SMALL.format(data=tmp_path / "data.npz"))
    return path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_one_command_unlearns_and_reports_and_then_only_reports(tmp_path, config_file, capsys):
    place = tmp_path / "u"
    assert run("plan", config_file) == 0
    assert "retrained: 4 of 4 models" in capsys.readouterr().out
    assert run("unlearn", config_file, "--run-dir", place, "--method.finetune.epochs", "2") == 0
    assert "finetune: 4 of 4 models" in capsys.readouterr().out
    unlearning = Unlearning.open(place)
    assert unlearning.config.method["finetune"] == {"epochs": 2, "rate": 0.5}
    assert unlearning.is_complete()
    assert run("unlearn", config_file, "--run-dir", place, "--method.finetune.epochs", "2") == 0
    out = capsys.readouterr().out
    assert "are trained, retrained and unlearned" in out
    assert "finetune" in out
    for name in ("metrics.json", "unlearning.png", "report.html"):
        assert (place / name).exists()
    # What is stored needs no other file.
    assert run("unlearn", place / "config.toml", "--run-dir", place) == 0
    assert run("plan", config_file, "--run-dir", place) == 0
    assert "together: about 0 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("size = 8", "size = 0", "forget.size must be at least 1: the forget set is empty; got 0"),
        ("size = 8", "size = 61", "the forget set is larger than the pool"),
        ("size = 8", "sizes = 8", "unknown key 'forget.sizes': did you mean 'forget.size'"),
        ("size = 8", 'kind = "rare"', "forget.kind must be one of random, class, vulnerable, given"),
        ("size = 8", 'kind = "given"', 'forget.kind = "given" needs forget.path'),
        ("size = 8", 'kind = "given"\npath = "absent.npy"', "absent.npy: there is no such file"),
        ('"finetune"', '"finetun"', "unknown method 'finetun', did you mean 'finetune'"),
        ('"finetune"', '"none"', "methods must be named, each once"),
        ('"finetune"', "3", "'methods' must be a list of strings"),
        (
            "[recipe]",
            "[method.finetune]\nepoch = 2\n[recipe]",
            "unknown option 'epoch': did you mean 'epochs'",
        ),
        ("[recipe]", "[method]\nfinetune = 2\n[recipe]", "'method' must hold tables"),
        ("[recipe]", "[methods]\nx = 2\n[recipe]", "is not valid TOML"),
        ("num_models = 4", 'num_models = 4\nrun = "absent"', "absent: is not a run directory"),
        ("num_models = 4", "num_models = 4\nsave_params = false", "save_params must be true"),
        ("num_models = 4", "num_model = 4", "unknown key 'num_model': did you mean 'num_models'"),
    ],
)
def test_every_mistake_is_one_line_and_status_2(tmp_path, config_file, capsys, old, new, message):
    text = config_file.read_text()
    assert text.count(old) == 1
    config_file.write_text(text.replace(old, new))
    assert run("unlearn", config_file, "--run-dir", tmp_path / "u") == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "u").exists()


def test_written_configuration_reads_back_equal(tmp_path):
    config = configured(method={"finetune": {"epochs": 3, "rate": 0.25}})
    (tmp_path / "c.toml").write_text(tomli_w.dumps(as_table(config)))
    assert read_unlearning(tmp_path / "c.toml") == config
