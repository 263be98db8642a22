"""A source tree that is not installed: the package as a copy on the path, and no distribution that says what it is."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import lira


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Run Python where a copy of the package and its dependencies can be imported, and the installed one cannot."""
    tree, packages = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("packages")
    shutil.copytree(Path(lira.__file__).parent, tree / "lira", ignore=shutil.ignore_patterns("__pycache__"))
    for place in (Path(each) for each in sys.path if each.endswith("-packages")):
        for entry in place.iterdir():
            if not entry.name.startswith(("lira", "__editable__")) and not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    environment = {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{packages}"}

    def run(*arguments):
        # Without `site` nothing is on the path but that and the standard library.
        command = [sys.executable, "-S", "-W", "error", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tree)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_nothing_says_that_it_is_installed(python):
    """What the tests below rest on."""
    where, found = python(
        "-c",
        "import lira, importlib.metadata as m\n"
        "print(lira.__file__)\n"
        "print([d.name for d in m.distributions() if d.name == 'lira'])",
    ).splitlines()
    assert where.startswith(python("-c", "import os; print(os.getcwd())").strip())
    assert found == "[]"


def test_a_run_is_made_and_reported(python, tmp_path):
    """From the first model to the page, whose templates are files beside the code."""
    flags = ["--run-dir", str(tmp_path / "run"), "--num-models", "4", "--recipe.epochs", "1"]
    flags += ["--num-examples", "100", "--recipe.batch-size", "10", "--execution.width", "4"]
    flags += [
        "--attacks",
        "lira_online_fixed",
        "global_threshold",
    ]  # processes of their own compile everything anew
    (tmp_path / "config.toml").write_text('dataset = "digits"\n')
    said = python("-m", "lira", "run", str(tmp_path / "config.toml"), *flags)
    assert "report.html" in said
    provenance = json.loads((tmp_path / "run/provenance.json").read_text())
    assert provenance["versions"]["lira"] == lira.__version__
    assert provenance["versions"]["numpy"] == version("numpy")
    assert f"lira {lira.__version__}" in (tmp_path / "run/report.html").read_text()


def test_the_command_ends_as_the_installed_one_does(python):
    assert "lira run [CONFIG.toml]" in python("-m", "lira", "--help")


def test_percent_is_written_in_one_way():
    """97.3 %, as everywhere in the project, and not Python's 97.3%."""
    for path in sorted(Path(lira.__file__).parent.rglob("*.py")):
        assert not re.search(r":\.\d%\}", path.read_text()), path
