"""What the documentation shows runs: the doctests of every module, and the README's Python."""

import doctest
import importlib
import pkgutil
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lira
from lira.learning.learner import model_key
from lira.learning.models import build_model
from lira.unlearners import find_method, method_options

README = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
MODULES = [
    each.name
    for each in pkgutil.walk_packages(lira.__path__, "lira.")
    if each.name not in ("lira.__main__", "lira.bench.torch_loop")  # the one runs, the other needs an extra
]


def snippet(start: str) -> str:
    """The README's one block of Python that begins so."""
    found = [text for text in SNIPPETS if text.startswith(start)]
    assert len(found) == 1, start
    return found[0]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    assert not doctest.testmod(importlib.import_module(name)).failed


def test_every_snippet_is_run_here():
    assert len(SNIPPETS) == 5


@pytest.mark.parametrize("start", ["# an estimator", "# a function that trains"])
def test_readme_of_other_frameworks(start, tmp_path, monkeypatch):
    """As they stand but for a smaller pool and fewer attacks, in this process."""
    if "trains" in start:
        pytest.importorskip("torch")
    small = 'num_models=4, workers=1, show_progress=False, attacks=("global_threshold", "lira_online_fixed")'
    text = snippet(start)
    assert text.count("num_models=64") == 1
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(text.replace("num_models=64", small).replace("range(60)", "range(2)"), names)
    assert names["evaluation"].subject.accuracy_in > 0.5
    assert next(tmp_path.glob("runs/*/report.html"))


@pytest.mark.pictures
def test_readme_in_python(tmp_path, monkeypatch, capsys):
    """As it stands but for a smaller pool, of a pinned width so that nothing is calibrated."""
    text = snippet("import lira\n")
    for large, small in (
        ("epochs=50", "epochs=2"),
        ("num_models=128", "num_models=20, execution=lira.Execution(width=10)"),
    ):
        assert text.count(large) == 1
        text = text.replace(large, small)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(text, names)
    assert names["scores"].shape == (20, 1797)
    assert f"] {names['roc'].auc}\n" in capsys.readouterr().out


def test_readme_model_and_method(tmp_path, monkeypatch):
    for name, start in (("my_models", "# my_models.py"), ("my_methods", "# my_methods.py")):
        (tmp_path / f"{name}.py").write_text(snippet(start))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    module = build_model("my_models.Net", 10)
    variables = module.init(model_key(0, 0), np.zeros((1, 8, 8, 1)), False)
    logits: Any = module.apply(variables, np.zeros((2, 8, 8, 1)), False)
    assert logits.shape == (2, 10)
    assert method_options("my_methods.soften", {"epochs": 3}) == {"epochs": 3, "rate": 0.1}
    assert find_method("my_methods.soften").__name__ == "soften"
