from typing import Any

import numpy as np
import pytest
from data_sets import arrays_of, assert_same, table
from hypothesis import given
from hypothesis import strategies as st

from lira.data.dataset import DataError
from lira.data.sources import load_dataset


def test_digits():
    dataset = load_dataset("digits")
    assert dataset.x.shape == (1797, 8, 8, 1)
    assert dataset.x.dtype == np.uint8
    assert set(np.unique(dataset.x)) == set(range(0, 241, 15))
    assert (dataset.num_classes, dataset.num_test, dataset.name) == (10, 0, "digits")
    assert dataset.fingerprint == load_dataset("digits").fingerprint


def test_npz_gives_back_what_was_saved(tmp_path, monkeypatch):
    saved = table(x_test=np.zeros((2, 2)), y_test=[0, 1])
    np.savez(tmp_path / "a.npz", **arrays_of(saved))
    monkeypatch.setenv("PLACE", str(tmp_path))
    loaded = load_dataset("npz:$PLACE/a.npz")
    assert_same(loaded, saved)
    assert loaded.name == f"npz:{tmp_path}/a.npz"
    assert_same(load_dataset(f"npz:{tmp_path}/a.npz"), load_dataset("npz:${PLACE}/a.npz"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert_same(load_dataset("npz:~/a.npz"), saved)


def test_an_npz_file_may_hold_names(tmp_path):
    """Of classes and of the examples' files: records show them. A part of the examples has its own files."""
    arrays = {"x": np.arange(12.0).reshape(6, 2), "y": np.arange(6) % 2}
    files = [f"{letter}.png" for letter in "abcdef"]
    np.savez(tmp_path / "a.npz", **arrays, class_names=["cat", "dog"], files=files)
    loaded = load_dataset(f"npz:{tmp_path}/a.npz")
    assert (loaded.class_names, loaded.files) == (("cat", "dog"), tuple(files))
    assert all(type(name) is str for name in (*loaded.class_names, *loaded.files))
    assert load_dataset(f"npz:{tmp_path}/a.npz", num_examples=4).files == tuple(files[:4])
    np.savez(tmp_path / "b.npz", **arrays)
    assert load_dataset(f"npz:{tmp_path}/b.npz").fingerprint == loaded.fingerprint
    for key, bad, message in (
        ("class_names", [0, 1], r"class_names must be words, \[classes\]; got int64 of shape \(2,\)"),
        ("class_names", ["cat"], "class_names holds 1 names for 2"),
        ("files", [files], r"files must be words, \[examples\]"),
        ("files", files[1:], "files holds 5 names for 6"),
    ):
        np.savez(tmp_path / "c.npz", **{**arrays, key: np.array(bad)})
        with pytest.raises(DataError, match=message):
            load_dataset(f"npz:{tmp_path}/c.npz")


def test_unfit_npz_files(tmp_path):
    path = tmp_path / "a.npz"
    source = f"npz:{path}"
    with pytest.raises(DataError, match=r"a\.npz cannot be read.*No such file"):
        load_dataset(source)
    for contents in (b"", b"PK\x03\x04 and no more", b"plain text"):
        path.write_bytes(contents)
        with pytest.raises(DataError, match=r"a\.npz cannot be read as an \.npz file"):
            load_dataset(source)
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(source)
    np.savez(path, x=np.ones((2, 2)), groups=[0, 1])
    with pytest.raises(DataError, match=r"lacks y, and holds x, groups: use np\.savez"):
        load_dataset(source)
    np.savez(path, x=np.ones((2, 2)))
    with pytest.raises(DataError, match="lacks y"):
        load_dataset(source)
    np.savez(path, x=np.array([[{}], [{}]]), y=[0, 1])
    with pytest.raises(DataError, match=r"x holds objects of Python, .*save numbers"):
        load_dataset(source)
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(f"npz:{tmp_path}")


@pytest.mark.parametrize(
    ("source", "near"),
    [
        ("digit", "digits"),
        ("digits:8", "digits"),
        ("npz", "npz:PATH"),
        ("tdfs:cifar10", "tfds:NAME"),
        ("folders:x", "folder:PATH"),
    ],
)
def test_unknown_sources_name_the_valid_ones(source, near):
    with pytest.raises(DataError, match=f"'{source}', nearest is {near}: use digits, npz:PATH, csv:PATH, "):
        load_dataset(source)


def test_undefined_variables_are_named(monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    for source in ("npz:$NOWHERE/a.npz", "folder:${NOWHERE}"):
        with pytest.raises(DataError, match=r"\$NOWHERE in .* is not defined"):
            load_dataset(source)
    with pytest.raises(DataError, match=r"\$NOWHERE"):
        load_dataset("tfds:cifar10", data_dir="$NOWHERE")


def test_data_dir_is_not_ignored():
    with pytest.raises(DataError, match="data_dir is for tfds: sources only"):
        load_dataset("digits", data_dir="somewhere")


@given(st.integers(10, 1797))
def test_subsets_are_balanced_nested_and_in_order(num_examples):
    whole, part = load_dataset("digits"), load_dataset("digits", num_examples=num_examples)
    counts = np.bincount(part.y)
    available = np.bincount(whole.y)
    # No class is two ahead of another that still has examples.
    assert all(counts.max() - have <= 1 for have, most in zip(counts, available, strict=True) if have < most)
    seen, rows = np.zeros(10, int), []
    for row, label in enumerate(whole.y):
        if seen[label] < counts[label]:
            rows.append(row)
        seen[label] += 1
    np.testing.assert_array_equal(part.x, whole.x[rows])
    np.testing.assert_array_equal(part.y, whole.y[rows])
    assert part.num_examples == num_examples


def test_subsets_leave_the_held_out_set_whole(tmp_path):
    saved = table(x_test=np.zeros((5, 2)), y_test=[0, 1, 0, 0, 0])
    np.savez(tmp_path / "a.npz", **arrays_of(saved))
    assert load_dataset(f"npz:{tmp_path}/a.npz", num_examples=4).num_test == 5


@pytest.mark.parametrize("num_examples", [-1, 9, 1798])
def test_subsets_that_cannot_be_are_refused(num_examples):
    with pytest.raises(DataError, match=rf"must be 0 \(all\) or 10\.\.1797.*got {num_examples}"):
        load_dataset("digits", num_examples=num_examples)


USUAL = (
    ("X", "Y", "X_test", "Y_test"),
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("data", "target", "data_test", "target_test"),
)


@pytest.mark.parametrize("names", USUAL)
def test_archives_with_the_names_that_others_give(tmp_path, names):
    x, y = np.ones((4, 3)), np.arange(4) % 2
    arrays: dict[str, Any] = dict(zip(names, (x, y[:, None], 2 * x, 1 - y), strict=True))
    np.savez(tmp_path / "a.npz", **arrays)
    dataset = load_dataset(f"npz:{tmp_path}/a.npz")
    assert (dataset.y.tolist(), dataset.num_test) == ([0, 1, 0, 1], 4)
    np.savez(tmp_path / "a.npz", x=x, y=y, val_images=x, groups=y)
    with pytest.warns(UserWarning, match=r"left out groups, val_images: the names are x, y, x_test, y_test"):
        assert load_dataset(f"npz:{tmp_path}/a.npz").num_test == 0


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"x": np.ones((2, 3)), "X_train": np.ones((2, 3)), "y": [0, 1]},
            "holds both x and X_train, which are x: leave one",
        ),
        (
            {"arr_0": np.ones((2, 3)), "arr_1": [0, 1]},
            r"lacks x and y, and holds arr_0, arr_1: use np\.savez",
        ),
        (
            {"x": np.ones((2, 3)), "y": np.array(["a", 1], object)},
            r"y holds objects of Python.*words, as by y\.astype\(str\)",
        ),
    ],
)
def test_archives_that_are_told_what_to_do(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_dataset(f"npz:{tmp_path}/a.npz")


def test_a_path_without_its_kind_is_told_which(tmp_path):
    for source, meant in (
        ("a/mine.npz", "npz:a/mine.npz"),
        (str(tmp_path), f"folder:{tmp_path}"),
        ("cifar10", "tfds:cifar10"),
    ):
        with pytest.raises(DataError, match=f"nearest is {meant}"):
            load_dataset(source)
    with pytest.raises(
        DataError, match=r"named by a string, such as npz:PATH; got .*: arrays are lira.Dataset.from_arrays"
    ):
        load_dataset(tmp_path)
