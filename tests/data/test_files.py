import numpy as np
import pytest
import tensorstore as ts

from lira.data.files import FileError, read_array

VALUES = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)


def zarr(path, values, driver="zarr3"):
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(path)}}
    store = ts.open(spec, create=True, dtype=values.dtype, shape=values.shape).result()
    store.write(values).result()
    return path


def rows(place):
    """Read as the callers do: a row at a time."""
    array = read_array(place)
    return np.stack([np.asarray(array[i]) for i in range(array.shape[0])])


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    np.save(tmp_path / "a.npy", VALUES)
    np.savez(tmp_path / "one.npz", VALUES)
    np.savez_compressed(tmp_path / "two.npz", phi=VALUES, other=VALUES + 1)
    places = [tmp_path / "a.npy", tmp_path / "one.npz", f"{tmp_path}/two.npz:phi"]
    places += [zarr(tmp_path / "v3.zarr", VALUES), zarr(tmp_path / "v2", VALUES, "zarr")]
    for place in places:
        assert read_array(place).shape == VALUES.shape
        np.testing.assert_array_equal(rows(place), VALUES)
        assert rows(place).dtype == np.float32


def test_npy_files_are_mapped_and_not_read(tmp_path):
    np.save(tmp_path / "a.npy", VALUES)
    assert isinstance(read_array(tmp_path / "a.npy"), np.memmap)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2.5\n-3,nan\n", [[1, 2.5], [-3, np.nan]]),
        ("first,second\n1,2\n", [[1, 2]]),
        ("\ufeff1\n2\n", [1, 2]),
        ("True,false\nFALSE, true\n", [[True, False], [False, True]]),
        ("member\ntrue\nfalse\n", [True, False]),
    ],
)
def test_csv(tmp_path, text, expected):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    np.testing.assert_array_equal(np.asarray(read_array(tmp_path / "a.csv")), expected)


def test_bad_files_are_named_in_one_line(tmp_path):
    np.savez(tmp_path / "two.npz", phi=VALUES, other=VALUES)
    np.save(tmp_path / "text.npy", np.array(["a", "b"]))
    np.save(tmp_path / "objects.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    np.save(tmp_path / "empty.npy", np.zeros((0, 3)))
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY\x01\x00")
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    (tmp_path / "ragged.csv").write_text("1,2\n3\n")
    (tmp_path / "words.csv").write_text("1,2\n3,x\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "model.pt").write_text("")
    (tmp_path / "group").mkdir()
    (tmp_path / "group/zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    for name, message in [
        ("absent.npy", "there is no such file"),
        ("absent.npz:phi", "there is no such file"),
        ("two.npz", r"holds phi, other: name one, .*two.npz:phi"),
        ("two.npz:psi", "holds no array 'psi', but phi, other"),
        ("text.npy", "must hold numbers; its dtype is <U1"),
        ("objects.npy", "cannot be read"),
        ("empty.npy", r"is empty: its shape is \(0, 3\)"),
        ("broken.npy", "cannot be read"),
        ("broken.npz", "cannot be read"),
        ("ragged.csv", "cannot be read"),
        ("words.csv", "cannot be read"),
        ("empty.csv", "is empty"),
        ("model.pt", r"is neither \*.npy, \*.npz, \*.csv nor a Zarr array"),
        ("group", "cannot be read"),
    ]:
        with pytest.raises(FileError, match=message) as caught:
            read_array(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert name.split(":")[0] in str(caught.value)
