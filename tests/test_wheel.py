"""The wheel: what a user installs is all that the source tree has, and begins without it."""

import email.parser
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from matrix import built

import lira

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return built(tmp_path_factory.mktemp("wheel"))


def test_every_file_of_the_package_is_in_the_wheel_and_no_other(wheel):
    """A template or schema that is left out fails at a user's first report only."""
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "lira").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert inside == package


def test_an_installed_wheel_begins_without_the_source_tree(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    code = "import lira, lira.__main__; print(lira.__file__); lira.__main__.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    file, version = done.stdout.split(maxsplit=1)
    assert Path(file).is_relative_to(tmp_path / "site")
    assert lira.__version__ in version


def test_extras_are_those_that_users_are_told_of(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        fields = email.parser.Parser().parsestr(archive.read(metadata).decode())
    extras = set(fields.get_all("Provides-Extra") or [])
    assert {"cuda", "cuda12", "cuda13", "tpu", "tensorflow", "privacy", "bench", "dev"} <= extras
    needs = fields.get_all("Requires-Dist") or []
    for extra in ("cuda", "cuda12"):
        assert any("jax[cuda12]" in need and f'"{extra}"' in need for need in needs)
