"""Every Python that is found, with the oldest and the newest JAX that it and `pyproject.toml` allow.

Command:   make test-matrix                                   (python tests/matrix.py)
           make test-matrix ARGS="--python 3.13 --jax newest tests/engine"
Duration:  an environment (a minute or two) and the suite each; arguments that are no options go to pytest.

Each environment holds the wheel, not the source tree: the demo's command runs from an empty directory by the wheel alone, then
the tests. What is not there is named and skipped; what fails makes the status 1.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
DEMO = ["--dataset", "digits", "--num-models", "8", "--recipe.epochs", "2", "--run-dir", "run"]


def jax_versions() -> dict[str, str]:
    """What pip is told, by name."""
    (jax,) = (need for need in PROJECT["dependencies"] if re.match(r"jax\b", need))
    oldest = re.search(r">=([0-9.]+)", jax)
    assert oldest, jax
    return {"oldest": f"jax=={oldest[1]}.0", "newest": jax}


def python_of(version: str) -> Path | None:
    """A Python of this version: on the path, or among pyenv's."""
    candidates = [
        shutil.which(f"python{version}"),
        *Path.home().glob(f".pyenv/versions/{version}.*/bin/python"),
    ]
    for candidate in filter(None, candidates):
        asked = [candidate, "-c", "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"]
        said = subprocess.run(asked, capture_output=True, text=True)
        if said.returncode == 0 and said.stdout.strip() == version:
            return Path(candidate)
    return None


def built(place: Path) -> Path:
    """The wheel of the source tree, whatever earlier builds left there."""
    source = place / "source"
    shutil.copytree(ROOT / "lira", source / "lira", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", place, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = place.glob("*.whl")
    return wheel


def tried(python: Path, jax: str, wheel: Path, arguments: list[str], place: Path) -> str:
    """What became of one environment, in a few words."""
    subprocess.run([python, "-m", "venv", place / "venv"], check=True)
    own = place / "venv/bin/python"
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    installed = subprocess.run(
        [own, "-m", "pip", "install", "--quiet", f"{wheel}[dev]", jax], capture_output=True, text=True
    )
    if installed.returncode:
        return f"skipped: pip finds no {jax} for it ({_last_line(installed.stderr)})"
    listed = subprocess.run(
        [own, "-m", "pip", "list", "--format", "json"], capture_output=True, text=True, check=True
    )
    version = {each["name"]: each["version"] for each in json.loads(listed.stdout)}["jax"]
    empty = place / "empty"
    empty.mkdir()
    demo = subprocess.run(
        [own, "-P", "-m", "lira", "run", *DEMO], cwd=empty, env=environment, capture_output=True, text=True
    )
    if demo.returncode or not (empty / "run/report.html").exists():
        return f"FAILED: jax {version}: the demo's command: {_last_line(demo.stderr)}"
    suite = subprocess.run(
        [own, "-m", "pytest", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if suite.returncode:
        print(suite.stdout[-5000:], suite.stderr[-2000:])
    return f"{'FAILED' if suite.returncode else 'passed'}: jax {version}: {_last_line(suite.stdout)}"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def main() -> int:
    """Try all; print a line each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--python", action="append", choices=VERSIONS, help="again for more; all if not given"
    )
    parser.add_argument("--jax", action="append", choices=("oldest", "newest"), help="likewise")
    chosen, arguments = parser.parse_known_args()
    # Of a parent that ignores it, tests of Ctrl-C could not pass.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="lira-matrix-") as folder:
        wheel = built(Path(folder))
        for version in chosen.python or VERSIONS:
            python = python_of(version)
            for name in chosen.jax or ("oldest", "newest"):
                place = Path(folder) / f"{version}-{name}"
                place.mkdir()
                became = (
                    tried(python, jax_versions()[name], wheel, arguments, place)
                    if python
                    else "skipped: there is none here"
                )
                print(f"Python {version}, {name} jax: {became}", flush=True)
                failed += became.startswith("FAILED")
                shutil.rmtree(place)
    return failed and 1


if __name__ == "__main__":
    sys.exit(main())
