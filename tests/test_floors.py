"""The package is built in floors: a room, a folder or a module, imports only from those below its own."""

import ast
from collections.abc import Iterator
from pathlib import Path

import lira

ROOT = Path(lira.__file__).parent
# From the ground up; rooms of one floor are beside each other, in an order in which they may import too.
FLOORS = (
    (
        "versions",
        "numbers",
        "fields",
        "faults",
        "stopping",
        "cache",
        "parallel",
        "signals",
        "membership",
        "data",
    ),  # ground
    ("metrics", "epsilon", "attacks", "forgetting"),  # mathematics on arrays
    ("learning", "unlearners"),  # one model as a pure function
    ("store",),  # what is on disk
    ("engine", "scoring"),  # running
    ("unlearning", "bench"),  # protocols
    ("reporting",),  # what people read
    ("exchange",),  # foreign models
    ("arguments", "commands", "cli", "__main__"),  # faces
)
ROOMS = [room for floor in FLOORS for room in floor]
# Mathematics on arrays knows no files, no training and no folder but these; learning knows no attacks.
KNOWN = {
    "metrics": {"numbers", "signals", "membership", "parallel"},
    "attacks": {"numbers", "signals", "membership", "parallel", "cache", "metrics"},
    "forgetting": {"numbers", "signals", "membership", "metrics", "attacks", "epsilon"},
    "epsilon": {"numbers", "metrics"},
    "learning": {"fields", "signals", "data", "versions"},
    "unlearners": {"learning", "signals"},
    "store": {"fields", "versions", "membership", "data", "learning"},
}


def imported(path: Path) -> Iterator[str]:
    """Modules of this package that a file imports, in full: `data.dataset`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lira":
            below = node.module.split(".")[1:]
            for alias in node.names:
                inner = ROOT.joinpath(*below, alias.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").exists()
                yield ".".join([*below, alias.name] if is_module else below)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                assert alias.name.split(".")[0] != "lira", f"{path.name}: write `from lira import ...`"


def modules() -> Iterator[tuple[str, Path]]:
    """Every module but the package's own `__init__`, by name."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            yield name, path


def test_imports_point_only_downwards():
    seen = set()
    for name, path in modules():
        room = name.split(".")[0]
        seen.add(room)
        for other in imported(path):
            below = other.split(".")[0]
            assert below == room or ROOMS.index(below) < ROOMS.index(room), f"{name} imports {other}"
            assert below == room or below in KNOWN.get(room, {below}), f"{name} is not to know {other}"
    assert seen == set(ROOMS)


def test_training_knows_nothing_of_attacks():
    for name, path in modules():
        if name.split(".")[0] in ("engine", "learning", "store"):
            assert not [other for other in imported(path) if other.startswith(("attacks", "scoring"))], name


def test_no_two_modules_import_each_other():
    graph = {name: {other for other in imported(path) if other != name} for name, path in modules()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle: {' -> '.join([*way, name])}"
        if name not in done:
            for other in graph[name]:
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())
