"""What is planted into a data set, and what is refused."""

import csv
import json

import numpy as np
import pytest

from lira.data.canaries import Canaries
from lira.data.dataset import DataError, Dataset
from lira.data.planting import plant


def dataset(examples: int = 40, *, images: bool = False) -> Dataset:
    rng = np.random.default_rng(0)
    x = (
        rng.integers(10, 200, size=(examples, 3, 3, 1)).astype(np.uint8)
        if images
        else rng.normal(size=(examples, 5))
    )
    return Dataset.from_arrays(x, np.arange(examples) % 4)


def rows(x: np.ndarray) -> list[bytes]:
    return [each.tobytes() for each in x]


@pytest.mark.parametrize("images", [False, True])
def test_mislabelled_canaries_are_the_pools_own_examples_under_another_label(images):
    before = dataset(images=images)
    after = plant(before, Canaries(count=10))
    assert after.num_examples == after.num_loaded == 40
    assert (after.num_canaries, after.canaries) == (10, Canaries(count=10))
    labels = dict(zip(rows(before.x), before.y.tolist(), strict=True))
    assert sorted(rows(after.x)) == sorted(rows(before.x)), "they left their places in the pool"
    assert all(labels[x] == y for x, y in zip(rows(after.x[:30]), after.y[:30].tolist(), strict=True))
    assert all(labels[x] != y for x, y in zip(rows(after.x[30:]), after.y[30:].tolist(), strict=True))
    again = plant(before, Canaries(count=10))
    assert after.fingerprint == again.fingerprint != plant(before, Canaries(count=10, seed=1)).fingerprint


@pytest.mark.parametrize("kind", ["random", "blank"])
@pytest.mark.parametrize("images", [False, True])
def test_noise_and_blanks_are_extra_and_within_what_features_may_be(kind, images):
    before = dataset(images=images)
    after = plant(before, Canaries(count=30, kind=kind))
    assert (after.num_examples, after.num_loaded) == (70, 40)
    assert after.x.dtype == before.x.dtype
    np.testing.assert_array_equal(after.x[:40], before.x)
    np.testing.assert_array_equal(after.y[:40], before.y)
    extra = after.x[40:].reshape(30, -1)
    assert len(np.unique(extra, axis=0)) > 25, "of each another"
    assert set(after.y[40:].tolist()) == {0, 1, 2, 3}
    if images:
        assert (extra == extra[:, :1]).all() == (kind == "blank")
        assert extra.max() > 200, "of all bytes, whatever those of the pool"
    else:
        low, high = before.x.min(axis=0), before.x.max(axis=0)
        assert (extra >= low).all()
        assert (extra <= high).all()
        share = (extra - low) / (high - low)
        assert np.allclose(share, share[:, :1], atol=1e-5) == (kind == "blank")


def test_own_canaries_are_the_first_of_the_file(tmp_path):
    np.savez(tmp_path / "own.npz", x=np.arange(15.0).reshape(3, 5), y=[3, 1, 0])
    after = plant(dataset(), Canaries(count=2, kind="own", file=str(tmp_path / "own.npz")))
    np.testing.assert_array_equal(after.x[40:], np.arange(10, dtype=np.float32).reshape(2, 5))
    np.testing.assert_array_equal(after.y[40:], [3, 1])


def test_labels_in_words_of_own_canaries_are_the_data_sets_classes(tmp_path):
    np.savez(tmp_path / "own.npz", x=np.ones((2, 5)), y=["d", "b"])
    canaries = Canaries(count=2, kind="own", file=str(tmp_path / "own.npz"))
    named = Dataset.from_arrays(np.random.default_rng(0).normal(size=(40, 5)), list("abcd") * 10)
    assert plant(named, canaries).y[40:].tolist() == [3, 1]
    with pytest.raises(DataError, match=r"own.npz:y holds words, and y numbers: give class_names"):
        plant(dataset(), canaries)


def test_vulnerable_canaries_are_those_that_an_earlier_run_ranks_first(tmp_path):
    before, ranks = dataset(), np.random.default_rng(1).permutation(40) + 1
    (tmp_path / "provenance.json").write_text(json.dumps({"fingerprints": {"dataset": before.fingerprint}}))
    with open(tmp_path / "records.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [["index", "label", "rank"], *([i, 0, rank] for i, rank in enumerate(ranks))]
        )
    canaries = Canaries(count=3, kind="vulnerable", run=str(tmp_path))
    after = plant(before, canaries)
    np.testing.assert_array_equal(after.x[37:], before.x[np.argsort(ranks)[:3]])
    np.testing.assert_array_equal(after.y[37:], before.y[np.argsort(ranks)[:3]])
    assert after.num_examples == after.num_loaded == 40
    with pytest.raises(DataError, match="is a run of other data than memory"):
        plant(dataset(44), canaries)
    whole = (tmp_path / "records.csv").read_text()
    # Of thin designs some have no rank.
    unranked = f"{np.argsort(ranks)[39]},0,40\n"
    (tmp_path / "records.csv").write_text(whole.replace(unranked, unranked.replace("40\n", "\n")))
    assert plant(before, canaries).fingerprint == after.fingerprint
    for index in (40, -1, np.argsort(ranks)[1]):
        (tmp_path / "records.csv").write_text(
            whole.replace(f"{np.argsort(ranks)[0]},0,1\n", f"{index},0,1\n")
        )
        with pytest.raises(DataError, match=r"records.csv is damaged, for it ranks an example twice"):
            plant(before, canaries)
    with pytest.raises(DataError, match="is no run with a report"):
        plant(before, Canaries(count=3, kind="vulnerable", run=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 5))}, "own.npz lacks y"),
        ({"x": np.zeros((2, 4)), "y": [0, 1]}, r"own.npz:x is float32 \[N, 4\] but x is float32 \[N, 5\]"),
        ({"x": np.zeros((3, 5)), "y": [0, 1]}, "own.npz:x has 3 rows but .*own.npz:y has 2"),
        ({"x": np.zeros((2, 5)), "y": [0, 4]}, r"own.npz:y row 1 holds label 4, outside 0..3"),
        ({"x": np.full((2, 5), np.nan), "y": [0, 1]}, "own.npz:x row 0 holds NaN"),
        ({"x": np.zeros((1, 5)), "y": [0]}, "canaries.count is 2, and .*own.npz holds 1"),
    ],
)
def test_own_files_that_hold_no_such_canaries_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(DataError, match=message):
        plant(dataset(), Canaries(count=2, kind="own", file=str(tmp_path / "own.npz")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 0}, r"canaries.count must be at least 1; got 0: leave \[canaries\] out"),
        ({"count": -3}, "got -3"),
        ({"kind": "yellow"}, "canaries.kind must be one of mislabelled, .*; got 'yellow'"),
        ({"kind": "own"}, 'canaries.file is needed where canaries.kind = "own"'),
        ({"file": "a.npz"}, "is left out elsewhere; got 'a.npz' of kind \"mislabelled\""),
        ({"kind": "vulnerable"}, 'canaries.run is needed where canaries.kind = "vulnerable"'),
        ({"seed": -1}, "canaries.seed must not be negative"),
    ],
)
def test_canaries_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Canaries(**fields)


def test_more_canaries_than_the_pool_can_give_are_refused():
    with pytest.raises(DataError, match="of kind mislabelled memory with its 40 examples takes at most 20"):
        plant(dataset(), Canaries(count=21))
    with pytest.raises(DataError, match="of kind blank memory with its 40 examples takes at most 40"):
        plant(dataset(), Canaries(count=41, kind="blank"))
    with pytest.raises(DataError, match="memory holds canaries already"):
        plant(plant(dataset(), Canaries(count=2)), Canaries(count=2))
    rare = Dataset.from_arrays(np.random.default_rng(0).normal(size=(40, 5)), np.arange(40) == 0)
    with pytest.raises(DataError, match="these leave no example of class 1"):
        [plant(rare, Canaries(count=20, seed=seed)) for seed in range(20)]
