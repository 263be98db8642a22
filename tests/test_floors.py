"""The package is built in floors: a module imports only from those before it."""

import ast
from pathlib import Path

import lira

FLOORS = [
    *(
        "versions",
        "cache",
        "parallel",
        "signals",
        "confidences",
        "membership",
        "metrics",
        "epsilon",
        "attacks",
    ),
    *("suite", "leakage", "forgetting"),
    *(
        "files",
        "data",
        "sources",
        "augment",
        "models",
        "convolution",
        "norms",
        "packing",
        "training",
        "unlearners",
    ),
    *("config", "arrays", "store", "published", "trained", "interchange"),
    *("stack", "engine", "forget_sets", "unlearn"),
    *("check", "plots", "unlearning_plots", "report", "unlearning_report"),
    *("enough", "audit", "bench_torch", "bench", "cli", "__main__"),
]


def imported(path):
    """Modules of this package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lira":
            below = node.module.split(".")[1:]
            yield from below[:1] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                assert alias.name.split(".")[0] != "lira", f"{path.name}: write `from lira import ...`"


def test_imports_point_only_downwards():
    root = Path(lira.__file__).parent
    seen = set()
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts == ("__init__",):
            continue
        seen.add(parts[0])
        for name in imported(path):
            same = name == parts[0]
            assert same or FLOORS.index(name) < FLOORS.index(parts[0]), f"{'/'.join(parts)} imports {name}"
    assert seen == set(FLOORS)
