"""`import lira`: the verbs of the command line as functions, on a run made in memory."""

import ast
import dataclasses
import importlib
import inspect
import json
import pkgutil
import pydoc
import re
import shutil
import types
import warnings

import numpy as np
import pytest
from documents import figures_of

import lira
from lira import scoring
from lira.attacks.suite import ATTACKS
from lira.cli import main

VERBS = (
    "plan",
    "train",
    "score",
    "evaluate",
    "report",
    "records",
    "check",
    "enough",
    "compare",
    "imitate",
    "unlearn",
    "verify",
    "mend",
    "audit",
)
FEW = ("lira_online", "lira_online_fixed", "global_threshold")
PIXELS = np.random.default_rng(0).integers(0, 256, (80, 4, 4, 1)).astype(np.uint8)
DATA = lira.Dataset.from_arrays(PIXELS, np.arange(80) % 2)

pytestmark = pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")


@pytest.fixture(autouse=True)
def _few_attacks_are_enough(monkeypatch):
    few = {name: ATTACKS[name] for name in FEW}
    monkeypatch.setattr(scoring, "ATTACKS", few)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = lira.Recipe(epochs=2, batch_size=10)
    execution = lira.Execution(width=8)
    path = tmp_path_factory.mktemp("runs") / "run"
    run = lira.Run.create(path, DATA, recipe, num_models=8, execution=execution)
    lira.train(run, DATA, show_progress=False)
    return run


def test_every_verb_is_a_function_whatever_is_imported():
    """Importing a submodule puts it into its package, in the place of a function of that name."""
    for module in pkgutil.walk_packages(lira.__path__, "lira."):
        if module.name not in ("lira.__main__", "lira.bench.torch_loop"):
            importlib.import_module(module.name)
    for verb in VERBS:
        assert inspect.isfunction(getattr(lira, verb)), verb
    modules = {name for name in dir(lira) if isinstance(getattr(lira, name), types.ModuleType)}
    assert modules == {"attacks", "epsilon", "forgetting", "metrics"}


def test_the_version_is_named(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lira {lira.__version__}\n"


def test_a_report_in_python_is_that_of_the_command(run, capsys):
    evaluation = lira.report(run, DATA)
    document = figures_of(run.path / "metrics.json")
    assert evaluation.attacks["lira_online"].auc.value == document["attacks"]["lira_online"]["auc"]
    page = (run.path / "report.html").read_text()
    assert main(["report", str(run.path)]) == 0
    assert "lira_online" in capsys.readouterr().out
    assert figures_of(run.path / "metrics.json") == document
    # The command knows nothing of data that was given in memory, so its page has no pictures of examples.
    assert page.split("data:image")[0] == (run.path / "report.html").read_text().split("data:image")[0]


def test_an_evaluation_writes_scores_alone_and_a_report_is_one_that_is_written(run):
    for each in run.path.glob("scores/*/zarr.json"):
        each.unlink()
    (run.path / "metrics.json").unlink(missing_ok=True)
    before = {each.name for each in run.path.iterdir()}
    evaluation = lira.evaluate(run, DATA)
    assert {each.name for each in run.path.iterdir()} - before <= {"scores"}
    assert not (run.path / "metrics.json").exists()
    lira.report(run, DATA)
    assert figures_of(run.path / "metrics.json")["verdict"]["finding"] == evaluation.verdict.finding
    assert len(evaluation.vulnerable(3)) == 3


def test_the_docstring_names_everything_there_is():
    """What `help(lira)` begins with."""
    said = set(re.findall(r"\w+", lira.__doc__ or ""))
    assert {name for name in dir(lira) if not name.startswith("__")} <= said


def test_help_is_a_page_and_every_name_is_known_to_type_checkers():
    """With an __all__ when it runs it would be every function and class whole, 1,852 lines."""
    page = pydoc.plain(pydoc.render_doc(lira)).splitlines()
    assert len(page) < 100
    assert not hasattr(lira, "__all__")
    (listed,) = [
        ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(inspect.getsource(lira)))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    assert set(listed) - {"__version__"} == {name for name in dir(lira) if not name.startswith("__")}


def test_a_report_builds_its_pool_once(run, monkeypatch):
    pools = []

    def build(*arguments, **options):
        pools.append(arguments)
        return pool_class(*arguments, **options)

    pool_class = scoring.Pool
    monkeypatch.setattr(scoring, "Pool", build)
    for scored in (run.path / "scores").glob("*/zarr.json"):
        scored.unlink()
    assert main(["report", str(run.path)]) == 0
    assert len(pools) == 1


def test_a_report_computes_no_features_to_say_which_attacks_are_missing(run, monkeypatch):
    computed = []
    monkeypatch.setattr(scoring, "_features", lambda *arguments: computed.append(arguments))
    lira.score(run)
    lira.report(run, DATA)
    assert computed == [], "features are for the attacks that read them"


def test_what_is_asked_of_a_run(run, capsys):
    assert [check.name for check in lira.check(run)][:4] == ["models", "copies", "queries", "training"]
    curves = lira.enough(run)
    assert {"lira_online", "lira_online_fixed"} <= curves.keys()
    assert "enough" in json.loads((run.path / "enough.json").read_text())["attacks"]["lira_online"]
    against, differences = lira.compare(run)
    assert {against, *differences} == set(FEW)
    assert against not in differences
    against, differences = lira.compare(run, run)
    assert (against, set(differences)) == (str(run.path), set(FEW))
    assert differences["lira_online"].auc.value == 0


@pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning", "ignore:.*left out")
def test_runs_of_more_and_fewer_models_are_compared_on_what_both_have(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "fewer")
    fewer = dataclasses.replace(lira.Run.open(tmp_path / "fewer"), usable=run.models[2:])
    with pytest.warns(UserWarning, match="compared are the 6 targets of both runs, of 8 and 6"):
        found = lira.compare(run, fewer).by_attack["lira_online_fixed"]
    keep, both = run.keep[2:], run.scores("lira_online_fixed")[2:]
    alone = lira.attacks.lira_online_fixed(fewer.phi, keep)
    expected = lira.metrics.roc(both, keep).auc - lira.metrics.roc(alone, keep).auc
    assert found.auc.value == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="no model is usable in both"):
        lira.compare(
            dataclasses.replace(run, usable=run.models[:4]), dataclasses.replace(fewer, usable=run.models[4:])
        )


def test_an_audit_takes_arrays_or_files(run, tmp_path, capsys):
    phi, keep = np.asarray(run.phi), run.keep
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        evaluation = lira.audit(tmp_path / "arrays", phi=phi, keep=keep)
        np.save(tmp_path / "phi.npy", phi)
        lira.audit(tmp_path / "files", phi=tmp_path / "phi.npy", keep=keep)
    first, second = (figures_of(tmp_path / name / "metrics.json") for name in ("arrays", "files"))
    assert first == second
    assert first["attacks"]["lira_online"]["auc"] == evaluation.attacks["lira_online"].auc.value
    assert f"phi {tmp_path}/phi.npy" in (tmp_path / "files/report.html").read_text()
    with pytest.raises(ValueError, match="an audit needs keep and one of phi, logits, confidences, losses"):
        lira.audit(tmp_path / "none", keep=keep)
    with pytest.raises(ValueError, match=r"keep: must be \[8, 80\].*got shape \(80, 8\): transpose it"):
        lira.audit(tmp_path / "none", phi=phi, keep=keep.T)
    assert not (tmp_path / "none").exists()
