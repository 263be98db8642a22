"""Files of a run that tell whether they are whole: flipped, truncated, emptied and edited."""

import contextlib
import dataclasses
import json
import shutil
import tomllib

import numpy as np
import pytest

from lira.data.dataset import Dataset
from lira.learning.recipe import Recipe
from lira.store.checksums import json_with_checksum, parsed_json, toml_body, toml_with_checksum
from lira.store.config import read_directory
from lira.store.errors import RunError
from lira.store.run import Run

N = 40
FILES = ("config.toml", "provenance.json")


def dataset():
    rng = np.random.default_rng(0)
    return Dataset(rng.normal(size=(N, 5)).astype(np.float32), np.arange(N, dtype=np.int32) % 2, 2, "memory")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Run.create(
        tmp_path_factory.mktemp("runs") / "run", dataset(), Recipe(epochs=1, batch_size=8), num_models=4
    )


@pytest.fixture
def run(whole, tmp_path):
    shutil.copytree(whole.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused_wherever_it_ends(run, name):
    """Of 475 beginnings of a config.toml 56 were filled up with defaults."""
    content = (run.path / name).read_bytes()
    for length in range(len(content)):
        (run.path / name).write_bytes(content[:length])
        with pytest.raises(RunError, match=name.replace(".", r"\.")) as caught:
            read_directory(run.path)
        assert "\n" not in " ".join(str(caught.value).split())


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused_wherever_it_is(run, name):
    content = (run.path / name).read_bytes()
    for place, bit in enumerate(np.random.default_rng(0).integers(0, 8, len(content))):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(bit)
        (run.path / name).write_bytes(flipped)
        with pytest.raises(RunError, match=name.replace(".", r"\.")):
            read_directory(run.path)


def test_a_configuration_edited_by_hand_is_refused_by_its_fields(run):
    text = (run.path / "config.toml").read_text()
    for line, other, said in (
        ("learning_rate = 0.1", "learning_rate = 0.3", "recipe.learning_rate is 0.1 there and 0.3 here"),
        ("shift = 0", "shift = 1", "queries.shift is 0 there and 1 here"),
        ("membership_seed = 0", "membership_seed = 7", "membership_seed is 0 there and 7 here"),
    ):
        assert line in text
        (run.path / "config.toml").write_text(text.replace(line, other))
        with pytest.raises(RunError, match=said):
            Run.open(run.path)
        # Also by one who computes the checksum anew.
        body, _ = toml_body(text.replace(line, other).encode())

        (run.path / "config.toml").write_bytes(toml_with_checksum(tomllib.loads(body.decode())))
        with pytest.raises(RunError, match=said):
            Run.open(run.path)


def test_other_models_and_another_execution_are_still_written(run):
    grown = Run.create(run.path, dataset(), run.config.recipe, num_models=6)
    assert Run.open(run.path).config == grown.config
    assert grown.config == dataclasses.replace(run.config, num_models=6)
    grown.add_session({"models": 2})
    assert Run.open(run.path).provenance["sessions"] == [{"models": 2}]


def test_files_of_earlier_versions_have_no_checksum_and_open(run):
    provenance = {k: v for k, v in run.provenance.items() if k not in ("checksums", "configuration")}
    (run.path / "provenance.json").write_text(json.dumps(provenance, indent=2))
    body, _ = toml_body((run.path / "config.toml").read_bytes())
    (run.path / "config.toml").write_bytes(body)
    assert Run.open(run.path).config == run.config


def test_both_kinds_of_file_are_plain_toml_and_json():

    table = {"a": 1, "b": {"c": "é"}}
    assert tomllib.loads(toml_with_checksum(table).decode()) == table
    assert parsed_json(json_with_checksum(table)) == (table, True)
    assert {**json.loads(json_with_checksum(table)), "checksum": None} == {**table, "checksum": None}
    with contextlib.suppress(ValueError):
        assert parsed_json(json_with_checksum(table)[:-1])[1] is False
