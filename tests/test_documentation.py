"""What the documentation shows runs: the doctests of every module, the Python of README and docs/, commands, configurations.

Links and anchors point at what is there. The site itself is built by `make docs`, strictly.
"""

import doctest
import importlib
import pkgutil
import re
import shlex
import sys
import tempfile
import tomllib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lira
from lira.commands import COMMANDS
from lira.learning.learner import model_key
from lira.learning.models import build_model
from lira.store.config import read_config
from lira.unlearners import find_method, method_options

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += [path for path in sorted((ROOT / "experiments").rglob("*.md")) if path not in PAGES]
# In docs/ these are links, so that the site holds them.
LINKED = ("examples", "experiments")
TEXTS = {path: path.read_text() for path in PAGES}


def blocks(*languages: str) -> list[tuple[str, str]]:
    """Every fenced block of these languages: its page, and its text."""
    pattern = re.compile(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [
        (str(path.relative_to(ROOT)), text) for path, page in TEXTS.items() for text in pattern.findall(page)
    ]


SNIPPETS = [text for _, text in blocks("python")]
MODULES = [
    each.name
    for each in pkgutil.walk_packages(lira.__path__, "lira.")
    if each.name not in ("lira.__main__", "lira.bench.torch_loop")  # the one runs, the other needs an extra
]


def snippet(start: str) -> str:
    """The one block of Python that begins so."""
    found = [text for text in SNIPPETS if text.startswith(start)]
    assert len(found) == 1, start
    return found[0]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    assert not doctest.testmod(importlib.import_module(name)).failed


def test_every_snippet_is_run_here():
    assert len(SNIPPETS) == 5


@pytest.mark.parametrize("start", ["# an estimator", "# a function that trains"])
def test_other_frameworks(start, tmp_path, monkeypatch):
    """As they stand but for a smaller pool and fewer attacks, in this process."""
    if "trains" in start:
        pytest.importorskip("torch")
    small = 'num_models=4, workers=1, show_progress=False, attacks=("global_threshold", "lira_online_fixed")'
    text = snippet(start)
    assert text.count("num_models=64") == 1
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    text = text.replace("num_models=64", small).replace("range(60)", "range(2)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(text, names)
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


def commands(text: str) -> list[list[str]]:
    """The lines of a shell block that call lira: their words, without comments and what is left open by brackets."""
    lines = [line.removeprefix("$ ") for line in text.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if line.startswith(("lira ", "$ lira "))]
    return [[word.strip("[]()") for word in each] for each in words]


def options_of(verb: str) -> set[str]:
    """Every option of a command, as its help describes them."""
    module = importlib.import_module(f"lira.commands.{COMMANDS[verb].module}")
    actions = module.parser_of(verb)._actions
    return {option for action in actions for option in action.option_strings}


def test_commands_and_their_options_are_there():
    seen = 0
    for page, text in blocks("sh", "console"):
        for _, *words in commands(text):
            verbs = words[: 1 + 2 * words.count("|")][::2]  # train | score | report RUN
            for verb in verbs:
                assert verb in COMMANDS or verb.startswith("--"), (page, words)
                flags = {word.split("=")[0].rstrip(",") for word in words if word.startswith("--")}
                if verb in COMMANDS and len(verbs) == 1:
                    assert flags <= options_of(verb) | {"--help"}, (page, words)
                seen += 1
    assert seen > 30


def test_configurations_are_read():
    """Whole ones by the reader itself, tables by their fields."""
    found = blocks("toml")
    assert len(found) >= 3
    for page, text in found:
        table = tomllib.loads(text)
        if "dataset" in table:
            path = ROOT / page
            assert read_config_text(text).num_models == 256, path
        for name, fields in (
            ("recipe", lira.Recipe),
            ("queries", lira.Queries),
            ("membership", lira.Membership),
        ):
            given = {key for key in table.get(name, {}) if key != "privacy"}
            assert given <= fields.__dataclass_fields__.keys(), (page, name, given)


def read_config_text(text: str) -> lira.Config:
    """A configuration as `lira run` reads it from a file."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "config.toml"
        path.write_text(text)
        return read_config(str(path))


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown and GitHub make them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = [
        re.sub(r"[^\w\s-]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", each)).strip().lower()
        for each in headings
    ]
    return {re.sub(r"[-\s]+", "-", each) for each in plain}


def test_links_point_at_what_is_there():
    seen = 0
    for path, text in TEXTS.items():
        shown = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)\s]+)\)", shown):
            place, _, anchor = target.partition("#")
            if "://" in place or place.startswith("mailto:"):
                continue
            to = (path.parent / place).resolve() if place else path
            assert to.exists(), f"{path.relative_to(ROOT)}: {target}"
            assert to.is_relative_to(ROOT), f"{path.relative_to(ROOT)}: {target}"
            if anchor:
                assert anchor in slugs(to.read_text()), f"{path.relative_to(ROOT)}: {target}"
            seen += 1
    assert seen > 60


def test_every_page_is_in_the_navigation_and_every_part_that_it_includes_is_there():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in sorted((ROOT / "docs").rglob("*.md")):
        name = page.relative_to(ROOT / "docs")
        if name.parts[0] not in LINKED:
            assert re.search(rf"[ :]{re.escape(str(name))}$", navigation, re.MULTILINE), name
        for file, _, part in re.findall(r'--8<-- "([^":]+)(:?)([^"]*)"', page.read_text()):
            text = (ROOT / file).read_text()
            assert not part or (f"[start:{part}]" in text and f"[end:{part}]" in text), (name, file, part)
    for name in re.findall(r"[ :]([\w/]+\.(?:md|ipynb))$", navigation, re.MULTILINE):
        assert (ROOT / "docs" / name).exists(), name


def test_the_reference_names_what_there_is():
    for page in sorted((ROOT / "docs/reference").glob("*.md")):
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE):
            module, _, attribute = name.rpartition(".")
            assert module == "lira"
            assert getattr(lira, attribute).__doc__, name
    documented = " ".join(page.read_text() for page in (ROOT / "docs/reference").glob("*.md"))
    assert not [name for name in dir(lira) if name[:2] != "__" and f"::: lira.{name}\n" not in documented]
