"""What commands print, and for whom: five lines for people, JSON for programs, nothing wider than the terminal."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tomllib
import warnings

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from metrics_schema import SCHEMA
from rich.console import Console
from rich.table import Column

from lira import cli
from lira.arguments import GridOptions, RunOptions, UnlearnOptions, leaves
from lira.cli import main
from lira.commands import COMMANDS
from lira.commands.starting import config_text
from lira.commands.terminal import common_parser, make_terminal
from lira.reporting.tables import fitted, make_table
from lira.store.config import Config, read_config
from lira.store.errors import WaitingWarning

ATTACKS = ("--attacks", "lira_online_fixed", "global_threshold")

pytestmark = pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run that was made without a configuration file."""
    path = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    np.savez(path / "mine.npz", x=rng.normal(size=(300, 4)).astype(np.float32), y=np.arange(300) % 2)
    flags = ("--num-models", 8, "--recipe.epochs", 2, "--recipe.batch-size", 10, "--execution.width", 8)
    assert run("run", "--dataset", f"npz:{path}/mine.npz", "--run-dir", path / "run", *flags, *ATTACKS) == 0
    return path / "run"


def test_a_run_needs_no_file_and_goes_on_by_its_directory_alone(place, capsys):
    assert read_config(place / "config.toml").num_models == 8
    assert run("run", "--run-dir", place, *ATTACKS) == 0
    first, *verdict, page = capsys.readouterr().out.splitlines()
    assert "nothing to do" in first
    assert verdict[0].startswith("8 mlp models trained on mine.npz, half of 300 examples each; a model gets ")
    assert any(line.startswith("Of 1,000 members lira_online_fixed names ") for line in verdict)
    assert len(verdict) + 1 <= 6  # one of them would be that a check failed
    assert page.startswith(f"{place}/report.html")
    assert run("run", "--run-dir", place.parent / "new") == 2
    assert "name a configuration file, or a data set by --dataset" in capsys.readouterr().err
    assert run("run", "--dataset", "digits") == 2
    assert "--run-dir is needed" in capsys.readouterr().err


def test_json_is_all_that_is_printed_and_quiet_prints_nothing(place, capsys):
    for verb in (("run", "--run-dir", place, *ATTACKS), ("report", place, *ATTACKS)):
        assert run(*verb, "--json") == 0
        document = json.loads(capsys.readouterr().out)
        Draft202012Validator(SCHEMA).validate(document)
        assert list(document["attacks"]) == document["selected"] == list(ATTACKS[1:])
        assert run(*verb, "--quiet") == 0
        assert capsys.readouterr().out == ""
    for verb in ("score", "check"):
        assert run(verb, place, "--json", *(ATTACKS if verb == "score" else ())) in (0, 1)
        json.loads(capsys.readouterr().out)


def test_a_limit_decides_the_status(place, capsys):
    assert run("check", place, "--json") in (0, 1)
    others = any(check["status"] == "fail" for check in json.loads(capsys.readouterr().out))
    assert run("check", place, "--fail-above", "tpr@0.01=1", "auc=1") == others
    said = capsys.readouterr().out
    assert said.count("ok    limit: lira_online_fixed's") == 2
    assert run("check", place, "--fail-above", "auc=0.1") == 1
    assert "fail  limit: lira_online_fixed's AUC is 0." in capsys.readouterr().out
    assert run("check", place, "--fail-above", "auc") == 2


def test_the_headline_is_settable_and_attacks_are_named(place, capsys):
    assert run("report", place, *ATTACKS, "--headline", "global_threshold", "--table") == 0
    said = capsys.readouterr().out
    assert "members global_threshold names" in said
    assert "pooled over 8 targets" in said
    assert run("report", place, *ATTACKS, "--headline", "base") == 2
    assert "--headline base is not among --attacks" in capsys.readouterr().err
    for command in (("report", place), ("run", "--run-dir", place)):
        for option in ("--attacks", "--headline"):
            assert run(*command, option, "rmia") == 2
            said = capsys.readouterr().err
            assert "there is no attack 'rmia'; did you mean 'rmia_online' or 'rmia_offline'" in said
            assert run(*command, option, "globalthreshold") == 2
            assert "did you mean 'global_threshold'?" in capsys.readouterr().err


def test_a_headline_that_is_not_among_the_attacks_is_refused_before_training(tmp_path, capsys):
    command = ("run", "--dataset", "digits", "--run-dir", str(tmp_path / "run"))
    assert run(*command, "--attacks", "base", "--headline", "attack_r") == 2
    assert "--headline attack_r is not among --attacks base: add it there" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_takes_several_values_and_is_given_twice_loses_none(place, capsys):
    assert run("check", place, "--fail-above", "auc=0.1", "--fail-above", "balanced_accuracy=1") == 1
    said = capsys.readouterr().out
    assert re.search(r"fail  limit: \w+'s AUC", said)
    assert re.search(r"ok    limit: \w+'s balanced accuracy", said)
    assert run("score", place, "--attacks", "base", "--attacks", "attack_r", "--json") == 0
    assert json.loads(capsys.readouterr().out)["attacks"] == ["base", "attack_r"]
    assert run("run", "--run-dir", place, "--attacks", "base", "--attacks", "attack_r") == 2
    assert "--attacks is given twice: name all of them after one" in capsys.readouterr().err


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_needs_no_file_and_describes_every_option(verb, capsys):
    with contextlib.suppress(SystemExit):  # argparse's
        assert run(verb, "--help") == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for option in ("--table", "--quiet", "--json", "--log-level"):
        assert option in text
    if verb in ("run", "plan", "unlearn"):
        for option in ("--run-dir", "--recipe.model", "cnn-small", "--execution.width"):
            assert option in text


def test_every_option_is_described():
    for make in (RunOptions, GridOptions, UnlearnOptions):
        own = [leaf for cls in make.__mro__[:-1] for leaf in leaves(cls)]
        docs = {name: what for name, _, what in own if what}
        assert {name for name, _, _ in own} - docs.keys() <= {"config", "config.pool"}, make
    for verb, command in COMMANDS.items():
        module = __import__(f"lira.commands.{command.module}", fromlist=["parser_of"])
        if verb not in ("run", "plan", "unlearn", "bench"):
            assert all(action.help for action in module.parser_of(verb)._actions), verb


def test_init_writes_the_defaults_with_every_field_explained(tmp_path, capsys):
    assert run("init", tmp_path / "a.toml", "--dataset", "npz:mine.npz") == 0
    assert read_config(tmp_path / "a.toml") == Config(dataset="npz:mine.npz")
    assert tomllib.loads(config_text())["recipe"]["model"] == "mlp"
    lines = config_text().splitlines()
    # Those of a table that is not there by default are comments.
    keys = [i for i, line in enumerate(lines) if re.fullmatch(r"(# )?\w+ = .+", line)]
    assert len(keys) == len(list(leaves(Config)))
    assert all(lines[i - 1].startswith("# ") for i in keys)
    assert run("init", tmp_path / "a.toml") == 2
    assert "is there already" in capsys.readouterr().err


def test_bash_completes_commands_and_options(tmp_path, capsys):
    assert run("completion", "bash") == 0
    (tmp_path / "lira").write_text(capsys.readouterr().out)

    def completed(*words):
        script = f"source {tmp_path}/lira; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
        script += '$(complete -p lira | sed "s/.*-F \\([^ ]*\\) .*/\\1/"); printf "%s\\n" "${COMPREPLY[@]}"'
        found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        return found.stdout.split()

    assert set(completed("lira", "re")) == {"report", "records"}
    assert completed("lira", "run", "--recipe.ep") == ["--recipe.epochs"]
    assert completed("lira", "check", "RUN", "--fail") == ["--fail-above"]


@pytest.mark.parametrize("width", [60, 80, 100])
def test_tables_are_never_wider_than_the_terminal(width):
    table = make_table(
        "[red]runs[/red]/a", "attack", *(Column(f"column {i}", no_wrap=True) for i in range(9))
    )
    table.add_row("lira_online_multivariate", *["0.611–0.613"] * 9)
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(fitted(table, console, spare=range(1, 9)))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "lira_online_multivariate" in text
    assert "…" not in text
    assert "[red]runs[/red]/a" in text, "a name is no markup"
    assert "For want of room without column 0" in " ".join(text.split())
    assert "column 8" in text


def test_a_stream_that_knows_no_unicode_still_gets_its_figures(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    terminal = make_terminal(common_parser().parse_args([]))
    table = make_table("Ü", "a", "b")
    table.add_row("x", "0.1–0.2 ≈")
    terminal.show(table)
    terminal.say("runs/[bold]mine[/bold]/…")
    sys.stdout.flush()
    said = raw.getvalue().decode("ascii")
    assert "0.1-0.2 ~" in said
    assert "runs/[bold]mine[/bold]/..." in said


def test_a_notebooks_back_end_is_not_the_commands(tmp_path):
    environment = {**os.environ, "MPLBACKEND": "none_such", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "lira", "report", str(tmp_path)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.count("\n") == 1
    assert "is not a run directory" in found.stderr


def test_help_imports_nothing_that_takes_time():
    code = "import sys, lira.cli; lira.cli.main(['--help']); sys.exit(bool({'jax', 'numpy', 'tyro', 'rich'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_training_begins_without_the_statistics_that_attacks_alone_may_need():
    """They were a third of the seconds before `lira train` begins."""
    code = "import sys, lira.commands.training; sys.exit(bool({'sklearn', 'pandas', 'scipy.stats'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_pages_keep_what_is_not_of_a_moment(capsys):
    shown = []
    with cli._warnings_in_one_line(shown, silent=False):
        warnings.warn("another process is writing", WaitingWarning, stacklevel=1)
        warnings.warn("the tail is lost", UserWarning, stacklevel=1)
    assert shown == ["the tail is lost"]
    assert capsys.readouterr().err.splitlines() == [
        "lira: warning: another process is writing",
        "lira: warning: the tail is lost",
    ]
