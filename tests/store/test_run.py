import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
from stored_runs import RECIPE, M, N, dataset, made, rows, write

from lira.data.dataset import READING
from lira.learning.augment import Queries
from lira.learning.fingerprint import UncheckedWarning
from lira.learning.recipe import Recipe
from lira.membership import Membership, audited_half, disjoint_mask, independent_mask, keep_mask
from lira.store.arrays import DIVERGED, DONE
from lira.store.errors import RunError
from lira.store.files import write_atomically
from lira.store.making import write_provenance
from lira.store.run import Run
from lira.store.zarr import StoredSignal, read_rows, write_array


def files(path):
    return {p.relative_to(path): p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}


def test_new_run_has_its_memberships_and_no_model(tmp_path):
    run = made(tmp_path)
    assert run.independent
    assert (run.done == 0).all()
    assert run.models.tolist() == []
    assert run.phi.shape == (0, N, 1)
    np.testing.assert_array_equal(run.memberships(np.arange(M)), keep_mask(0, M, N))
    np.testing.assert_array_equal(run.labels, dataset().y)
    assert os.listdir(tmp_path) == ["run"]


def test_usable_models_are_whole_pairs_that_did_not_diverge(tmp_path):
    run = made(tmp_path)
    write(run, 0, 1, 2, 4)
    write(run, 5, diverged=True)
    assert run.done.tolist() == [DONE, DONE, DONE, 0, DONE, DIVERGED]
    assert run.models.tolist() == [0, 1]
    np.testing.assert_array_equal(np.asarray(run.phi)[:, 0, 0], [0, 1])
    np.testing.assert_array_equal(run.keep, keep_mask(0, M, N)[:2])
    np.testing.assert_allclose(run.accuracy("in"), [0, 0.1])
    assert np.isnan(run.accuracy("test")).all()


def test_a_model_of_independent_coins_stands_and_falls_alone(tmp_path):
    run = made(tmp_path, membership=Membership("independent", 0.3), num_models=7)
    assert run.independent
    write(run, 0, 1, 2, 4)
    write(run, 5, diverged=True)
    assert run.models.tolist() == [0, 1, 2, 4]
    np.testing.assert_array_equal(run.keep, independent_mask(0, 7, N, 0.3)[[0, 1, 2, 4]])


def test_a_run_of_independent_coins_grows_by_rows_and_refuses_other_coins(tmp_path):
    coins = Membership("independent", 0.3)
    run = made(tmp_path, membership=coins, num_models=8)
    write(run, *range(8))
    grown = made(tmp_path, membership=coins, num_models=16)
    np.testing.assert_array_equal(grown.keep, run.keep)
    np.testing.assert_array_equal(grown.memberships(np.arange(16)), independent_mask(0, 16, N, 0.3))
    for other, message in (
        (Membership("independent", 0.4), "membership.fraction is 0.3 there and 0.4 here"),
        (Membership(), "membership.design is 'independent' there and 'pairs' here"),
    ):
        with pytest.raises(RunError, match=message):
            made(tmp_path, membership=other, num_models=16)
    with pytest.raises(RunError, match="holds 16 models, and a run does not shrink"):
        made(tmp_path, membership=coins, num_models=15)


def test_a_disjoint_run_grows_by_shadow_models_and_not_by_targets(tmp_path):
    """Which half a model is of depends on the number of targets, so that is another run's."""
    disjoint = Membership("disjoint", 0.6, 2)
    run = made(tmp_path, membership=disjoint, num_models=8)
    write(run, *range(8))
    assert run.independent, "the targets' coins, at the examples that are attacked"
    grown = made(tmp_path, membership=disjoint, num_models=16)
    np.testing.assert_array_equal(grown.keep, run.keep)
    np.testing.assert_array_equal(grown.memberships(np.arange(16)), disjoint_mask(0, 16, N, 2, 0.6))
    np.testing.assert_array_equal(grown.audited, np.flatnonzero(audited_half(0, N)))
    np.testing.assert_array_equal(grown.membership, run.keep[:2, grown.audited])
    with pytest.raises(RunError, match=r"membership.num_targets is 2 there and 3 here"):
        made(tmp_path, membership=Membership("disjoint", 0.6, 3), num_models=16)


def test_a_batch_that_is_larger_than_the_fraction_of_the_examples_is_refused(tmp_path):
    with pytest.raises(ValueError, match="batch_size is 8, but a model has only about 6 members"):
        made(tmp_path, membership=Membership("independent", 0.15))


def test_done_models_are_never_written_again(tmp_path):
    run = made(tmp_path)
    assert run.write_model(3, rows(3), diverged=False)
    phi = np.array(run.signal("phi", np.array([3])))
    assert not run.write_model(3, rows(4), diverged=False)
    assert not run.write_model(3, rows(4), diverged=True)
    np.testing.assert_array_equal(np.array(run.signal("phi", np.array([3]))), phi)
    assert run.done[3] == DONE


def test_any_zarr_reader_can_open_the_arrays(tmp_path):
    """The metadata is plain Zarr v3, opened here without any of this project's options."""
    run = made(tmp_path, queries=Queries())
    write(run, 0)
    metadata = json.loads((run.path / "arrays/phi/zarr.json").read_text())
    assert metadata["zarr_format"] == 3
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [1, N, 1]
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(run.path / "arrays/phi")}}
    values = ts.open(spec, open=True).result().read().result()
    assert values.shape == (M, N, 1)
    assert (values[0] == 0).all()
    assert np.isnan(values[1:]).all()


def test_opening_again_is_the_same_run(tmp_path):
    run = made(tmp_path)
    write(run, 0, 1)
    before = files(run.path)
    assert made(tmp_path).models.tolist() == [0, 1]
    assert Run.open(run.path, dataset()).config == run.config
    assert files(run.path) == before


def test_growth_keeps_what_is_there(tmp_path):
    run = made(tmp_path)
    write(run, *range(M))
    chunks = {p: t for p, t in files(run.path).items() if "/c/" in str(p)}
    grown = made(tmp_path, num_models=12)
    after = files(run.path)
    assert all(after[p] == t for p, t in chunks.items())
    assert grown.done.tolist() == [1] * M + [0] * 6
    np.testing.assert_array_equal(grown.memberships(np.arange(12)), keep_mask(0, 12, N))
    write(grown, *range(M, 12))
    np.testing.assert_array_equal(np.asarray(grown.phi)[:, 0, 0], np.arange(12))
    with pytest.raises(RunError, match=r"holds 12 models, and a run does not shrink to 6"):
        made(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": Recipe(epochs=2, batch_size=8)}, "recipe.epochs is 1 there and 2 here"),
        ({"queries": Queries(shift=1)}, "queries.shift is 0 there and 1 here"),
        ({"membership_seed": 5}, "membership_seed is 0 there and 5 here"),
        ({"save_params": True}, "save_params is False there and True here"),
        ({"dataset": dataset(seed=1)}, "is a run of other data"),
        ({"dataset": dataset(y=(np.arange(N, dtype=np.int32) + 1) % 2)}, "is a run of other data"),
        ({"dataset": dataset(x=dataset().x[::-1].copy())}, "is a run of other data"),
    ],
)
def test_other_data_recipe_or_queries_are_refused_by_name(tmp_path, changes, message):
    run = made(tmp_path)
    before = files(run.path)
    arguments = {"dataset": dataset(), "recipe": RECIPE, "num_models": M, **changes}
    with pytest.raises(RunError, match=message):
        Run.create(run.path, arguments.pop("dataset"), arguments.pop("recipe"), **arguments)
    assert files(run.path) == before


def test_data_that_would_be_read_by_other_rules_now_say_so(tmp_path):
    run = made(tmp_path)
    assert run.provenance["reading"] == READING
    del run.provenance["reading"]  # as of earlier versions
    write_provenance(run.path, run.provenance)
    assert made(tmp_path).path == run.path, "the same data, whatever the rules"
    with pytest.raises(RunError, match=r"other data: .* may be read otherwise by this version: transparent"):
        Run.open(run.path, dataset(seed=1))


def test_the_names_of_classes_are_kept(tmp_path):
    assert made(tmp_path).class_names == ()
    named = dataset(class_names=("1", "caf\udce9"))  # of a directory in Latin-1
    run = Run.create(tmp_path / "named", named, RECIPE, num_models=M)
    assert Run.open(run.path).class_names == ("1", "caf\\udce9")


CODE = """
import flax.linen as nn, jax, jax.numpy as jnp, numpy as np
TABLE = np.array([1.0, 2.0], np.float32)
@jax.custom_vjp
def same(x): return x
same.defvjp(lambda x: (x, None), lambda _, ct: (1.0 * ct,))
class Net(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, x, train):
        y = nn.Dropout(0.1, deterministic=not train)(nn.relu(nn.Dense(8)(x)))
        return nn.Dense(self.num_classes)(same(y)) * TABLE
"""
CHANGES = {
    "Dense(8)": "Dense(9)",
    "nn.relu": "jnp.tanh",
    "Dropout(0.1": "Dropout(0.9",
    "[1.0, 2.0]": "[1.0, 2.0000002]",
    "1.0 * ct": "0.5 * ct",
    "same(y)": "same(y) + (0 if train else 1)",
}


def of_module(path, name, code):
    """A run of a user's module with that code."""
    (path / f"{name}.py").write_text(code)
    stamp = hash(code) % 10**6
    os.utime(path / f"{name}.py", (stamp, stamp))  # for Python's cache
    sys.modules.pop(name, None)
    return Run.create(path / "run", dataset(), Recipe(model=f"{name}.Net", batch_size=8), num_models=M)


@pytest.mark.parametrize("old", CHANGES)
def test_changed_model_code_is_refused(tmp_path, monkeypatch, old):
    monkeypatch.syspath_prepend(str(tmp_path))
    of_module(tmp_path, "changing", CODE)
    of_module(
        tmp_path,
        "changing",
        "# a comment changes nothing\n" + CODE.replace(" y =", " z =").replace("(y)", "(z)"),
    )
    before = files(tmp_path / "run")
    assert CODE.count(old) == 1
    what = (
        "initial parameter params/Dense_0" if old == "Dense(8)" else "what it computes of the same parameters"
    )
    with pytest.raises(RunError, match=f"changing.Net has changed since the run began: .*{what}"):
        of_module(tmp_path, "changing", CODE.replace(old, CHANGES[old]))
    assert files(tmp_path / "run") == before


@pytest.mark.parametrize("change", ["versions", "module"])
def test_code_of_other_versions_is_unchecked_and_said(tmp_path, monkeypatch, change):
    monkeypatch.syspath_prepend(str(tmp_path))
    run = of_module(tmp_path, "changing", CODE)
    if change == "versions":
        run.provenance["versions"]["flax"] = "0.1"
    else:
        del run.provenance["fingerprints"]["module"]
    write_provenance(run.path, run.provenance)
    message = "flax 0.1 there and" if change == "versions" else "a version that did not record it"
    with pytest.warns(UncheckedWarning, match=f"code of model changing.Net .* is not checked: .*{message}"):
        of_module(tmp_path, "changing", CODE.replace("nn.relu", "jnp.tanh"))


def test_things_that_are_not_runs_are_refused(tmp_path):
    with pytest.raises(RunError, match=r"is not a run directory \(it has no config.toml\)"):
        Run.open(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"is not a run directory"):
        made(tmp_path)
    assert files(tmp_path / "run").keys() == {(tmp_path / "run/thesis.tex").relative_to(tmp_path / "run")}
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"is not a run directory"):
        Run.create(tmp_path / "file", dataset(), RECIPE, num_models=M)
    with pytest.raises(RunError, match=r"cannot be written: Not a directory"):
        Run.create(tmp_path / "file/below", dataset(), RECIPE, num_models=M)


def test_unwritable_directory_is_one_line():
    with pytest.raises(RunError, match=r"/proc/run: cannot be written"):
        Run.create("/proc/run", dataset(), RECIPE, num_models=M)


def test_bad_recipe_or_queries_write_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"recipe.batch_size"):
        Run.create(tmp_path / "run", dataset(), Recipe(batch_size=64), num_models=M)
    with pytest.raises(ValueError, match=r"need images"):
        Run.create(tmp_path / "run", dataset(), RECIPE, num_models=M, queries=Queries(mirror=True))
    with pytest.raises(ValueError, match=r"unknown model"):
        Run.create(tmp_path / "run", dataset(), Recipe(model="mpl", batch_size=8), num_models=M)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_array_is_named(tmp_path, damage):
    run = made(tmp_path)
    write(run, 0, 1)
    chunk = run.path / "arrays/phi/c/1/0/0"
    content = bytearray(chunk.read_bytes())
    if damage == "remove":
        chunk.unlink()
    else:
        content[5] ^= 1
        chunk.write_bytes(content if damage == "flip" else content[:-9])
    with pytest.raises(RunError, match=r"arrays/phi: is damaged.*restore it from a copy") as caught:
        np.asarray(Run.open(run.path).phi)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["provenance.json", "config.toml", "arrays/keep/zarr.json"])
def test_damaged_files_are_named(tmp_path, name):
    run = made(tmp_path)
    (run.path / name).write_text("{")
    with pytest.raises(RunError, match=r"the run directory is damaged"):
        Run.open(run.path)


def test_scores_are_stale_once_more_models_are_usable(tmp_path):
    run = made(tmp_path)
    write(run, 0, 1, 2, 3)
    assert run.scores("lira_online") is None
    scores = np.arange(4 * N, dtype=np.float32).reshape(4, N)
    run.write_scores("lira_online", scores, run.fingerprint())
    np.testing.assert_array_equal(run.scores("lira_online"), scores)
    write(run, 4, 5)
    assert run.scores("lira_online") is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "metadata"])
def test_damaged_scores_are_absent_for_they_can_be_made_again(tmp_path, damage):
    run = made(tmp_path)
    write(run, *range(M))
    scores = np.arange(M * N, dtype=np.float32).reshape(M, N)
    run.write_scores("lira_online", scores, run.fingerprint())
    place = run.path / "scores/lira_online"
    chunk = (
        place / "zarr.json"
        if damage == "metadata"
        else min(p for p in Path(place / "c").rglob("*") if p.is_file())
    )
    content = bytearray(chunk.read_bytes())
    if damage == "flip":
        content[5] ^= 1
        chunk.write_bytes(content)
    elif damage == "remove":
        chunk.unlink()
    else:
        chunk.write_bytes(content[:-3])
    assert run.scores("lira_online") is None
    run.write_scores("lira_online", scores, run.fingerprint())
    np.testing.assert_array_equal(run.scores("lira_online"), scores)


def test_signal_reads_blocks_across_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("lira.store.arrays.BLOCK", 16)
    monkeypatch.setattr("lira.store.zarr.BLOCK", 16)
    run = made(tmp_path)
    values = np.random.default_rng(0).normal(size=(4, N, 1)).astype(np.float32)
    for index, row in enumerate(values):
        run.write_model(index, {**rows(index), "phi": row}, diverged=False)
    phi = run.phi
    assert isinstance(phi, StoredSignal)
    for start, stop in [(0, 16), (3, 9), (10, 20), (32, 40), (24, 40), (39, 100), (5, 5)]:
        np.testing.assert_array_equal(phi[:, start:stop], values[:, start:stop])
    np.testing.assert_array_equal(phi[1:3, 4:8], values[1:3, 4:8])
    np.testing.assert_array_equal(np.asarray(phi), values)


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RunError, match=r"file: cannot be written: No space"):
        write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"old"


def test_arrays_that_are_written_whole_are_few_files_of_bounded_size(tmp_path):
    for shape, files in (((40, 300), 1), ((9, 300_000), 3), ((2, 1_500_000), 4)):
        values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        write_array(tmp_path / "a", values, {})
        sizes = [file.stat().st_size for file in (tmp_path / "a/c").rglob("*") if file.is_file()]
        assert len(sizes) == files
        assert max(sizes) <= 2**22 + 4
        np.testing.assert_array_equal(read_rows(tmp_path / "a", np.array([1, 0]), {}), values[[1, 0]])
