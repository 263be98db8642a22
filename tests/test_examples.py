"""The notebooks of examples/: kept without outputs, and run from their first cell to their last at the size of a toy."""

import ast
import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest
from matplotlib import pyplot

import lira
from lira import scoring
from lira.attacks.suite import ATTACKS
from lira.reporting import reports

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))
# What is set after the cell of parameters has run; models side by side, and what they need beside the package.
SMALL = {"num_models": 8, "epochs": 2, "execution": lira.Execution(width=4, workers=1, lowering="patches")}
SMALLER = {
    "own_images_and_module": {"num_examples": 200},
    "deployed_model": {"iterations": 3},
    "unlearning": {"size": 40, "methods": ("none", "gradient_ascent")},
}
NEEDS = {"pytorch_models": "torch"}
FEW = ("lira_online", "lira_online_fixed", "lira_offline", "rmia_online", "global_threshold")


def cells(notebook):
    return json.loads(notebook.read_text())["cells"]


def last_value(source, names):
    """Run a cell as a notebook does; the value of its last line, where that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)


def test_there_are_six():
    assert {each.stem for each in NOTEBOOKS} >= {*SMALLER, *NEEDS, "quickstart", "own_table"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda each: each.stem)
def test_notebooks_are_kept_small_and_without_outputs(notebook):
    assert notebook.stat().st_size < 12_000
    assert [each["metadata"].get("tags") for each in cells(notebook)].count(["parameters"]) == 1
    for cell in cells(notebook):
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.pictures
@pytest.mark.filterwarnings("ignore::UserWarning")  # so few models, trained so little
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda each: each.stem)
def test_notebooks_run(notebook, tmp_path, monkeypatch):
    if (needed := NEEDS.get(notebook.stem)) and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{notebook.name} needs {needed}, which is not installed")
    few = {name: ATTACKS[name] for name in FEW}
    for room in (scoring, reports):
        monkeypatch.setattr(room, "ATTACKS", few)
    monkeypatch.chdir(tmp_path)
    pyplot.switch_backend("agg")
    module = types.ModuleType("__main__")  # of the notebook, where its classes are found
    monkeypatch.setitem(sys.modules, "__main__", module)
    given, values = {**SMALL, **SMALLER.get(notebook.stem, {})}, []
    for cell in cells(notebook):
        if cell["cell_type"] != "code":
            continue
        values.append(last_value("".join(cell["source"]), vars(module)))
        if cell["metadata"].get("tags") == ["parameters"]:
            known = {name: value for name, value in given.items() if name in vars(module)}
            assert known.keys() >= SMALLER.get(notebook.stem, {}).keys()
            vars(module).update(known)
    for figure in map(pyplot.figure, pyplot.get_fignums()):
        figure.savefig(tmp_path / f"{figure.number}.png")
    pyplot.close("all")
    pages = [*tmp_path.rglob("report.html")]
    evaluations = [each for each in values if isinstance(each, lira.Evaluation)]
    assert pages or evaluations, "it comes to something"
    for each in evaluations:
        assert each.verdict.finding in each._repr_html_()
