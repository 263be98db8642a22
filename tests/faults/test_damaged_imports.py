"""Damage to runs of earlier versions and of other code, which cannot be trained again."""

import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from damages import broken, contents, damage

import lira
from lira.cli import main
from lira.store.errors import RunError
from lira.store.imported import run_of_models
from lira.store.mend import mend
from lira.store.zarr import create_array, open_array

pytestmark = pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")


def test_arrays_of_earlier_versions_are_unchecked_and_not_broken(tmp_path, capsys):
    with tarfile.open(Path(__file__).parents[1] / "store/data/run_before_rooms.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    assert main(["verify", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"^unchecked +arrays/phi/zarr.json was written by an earlier version", said, re.MULTILINE
    )
    assert "nothing is broken" in said
    damage(tmp_path / "run/arrays/phi/c/1/0/0", "truncated")
    assert [each.place for each in broken(tmp_path / "run")] == ["arrays/phi/c/1/0/0"]
    mend(tmp_path / "run")
    # Scores that do not tell of which signals they are go with the models that do.
    assert not list((tmp_path / "run/scores").iterdir())


def test_models_of_other_code_are_restored_from_a_copy(tmp_path):
    rng = np.random.default_rng(0)
    keep = rng.random((4, 30)) < 0.5
    models = [{"phi": rng.normal(size=(30, 1)).astype(np.float32)} for _ in keep]
    source = {"path": "there", "layout": "test", "file": "x", "requested": 4}
    run = run_of_models(tmp_path / "run", keep, np.arange(30) % 2, models, source=source)
    assert not broken(run.path, deep=True)
    for place in ("arrays/phi/c/2/0/0", "arrays/keep/c/2/0", "arrays/labels/c/0"):
        whole = (run.path / place).read_bytes()
        damage(run.path / place, "truncated")
        assert [each.place for each in broken(run.path)] == [place]
        with pytest.raises(RunError, match=rf"{place} .*restore it from a copy, or import there once more"):
            mend(run.path)
        (run.path / place).write_bytes(whole)
    assert not mend(run.path)


def read(path):
    opened = lira.Run.open(path)
    return opened.phi, opened.accuracy("in")


@pytest.mark.parametrize("how", ["truncated", "deleted"])
@pytest.mark.parametrize(
    "place",
    ["arrays/phi/zarr.json", "arrays/accuracy_in/zarr.json", "arrays/done/c/2", "arrays/keep/zarr.json"],
)
def test_of_other_codes_models_what_follows_from_the_rest_is_mended(tmp_path, place, how):
    rng = np.random.default_rng(0)
    keep = rng.random((4, 30)) < 0.5
    phi = rng.normal(size=(4, 30, 2)).astype(np.float32)
    source = {"path": "there", "layout": "test", "file": "x", "requested": 4}
    run = run_of_models(
        tmp_path / "run", keep, np.arange(30) % 2, [{"phi": each} for each in phi], source=source
    )
    before = contents(run.path)
    damage(run.path / place, how)
    assert place in [each.place for each in broken(run.path)]
    with pytest.raises(RunError):  # and not a pool of fewer models
        read(run.path)
    assert main(["report", str(run.path)]) == 0
    assert not broken(run.path, deep=True)
    np.testing.assert_array_equal(lira.Run.open(run.path).phi, phi)
    assert {name: content for name, content in contents(run.path).items() if name in before} == before


def test_every_changed_byte_of_an_arrays_metadata_is_seen(tmp_path):
    create_array(tmp_path / "a", (4, 30), "float32", (1, 30), {"models": [0, 1], "signals": "abc"})
    file = tmp_path / "a/zarr.json"
    whole = file.read_bytes()
    was = open_array(tmp_path / "a").spec().to_json()
    silent = []
    for position in range(len(whole)):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            now = open_array(tmp_path / "a").spec().to_json()
        except ValueError:
            continue
        if now != was:
            silent.append(now["metadata"])
    # The number of rows, which grows, a run knows by itself; and without its checksum an array is of an earlier version.
    for metadata in silent:
        assert metadata["shape"][0] != 4 or "checksum" not in metadata["attributes"]
    assert any(metadata["shape"][0] != 4 for metadata in silent)
