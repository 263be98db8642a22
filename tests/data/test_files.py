import os
import zipfile

import numpy as np
import pytest
import tensorstore as ts

from lira.data.dataset import DataError
from lira.data.files import FileError, read_array
from lira.data.sources import load_dataset
from lira.store.config import ConfigError, read_config

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
        # What pandas' to_csv writes, without its index, with it, and read and written once more.
        ("0,1,2\n0.5,1.5,2.5\n3,4,5\n", [[0.5, 1.5, 2.5], [3, 4, 5]]),
        (",0,1\n0,0.5,1.5\n1,3,4\n", [[0.5, 1.5], [3, 4]]),
        (",0\n0,7\n1,8\n", [7, 8]),
        (",a,b\nx,0.5,1.5\ny,3,4\n", [[0.5, 1.5], [3, 4]]),
        ("Unnamed: 0,0,1\n0,0.5,1.5\n", [[0.5, 1.5]]),
        (",0,1\n0,True,False\n1,False,True\n", [[True, False], [False, True]]),
        ("0,1,2\nTrue,False,True\n", [[True, False, True]]),
        ('"a","b"\n"1","2"\n', [[1, 2]]),
        # And what is none.
        ("0,1,2\n", [[0, 1, 2]]),
        ("0,1\n1,0\n", [[0, 1], [1, 0]]),
        ("0\n1\n", [0, 1]),
        ("1,2,3\n4,5,6\n", [[1, 2, 3], [4, 5, 6]]),
    ],
)
def test_csv(tmp_path, text, expected):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    np.testing.assert_array_equal(np.asarray(read_array(tmp_path / "a.csv")), expected)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "0.5;1\n2;3\n"),
        ("a.csv", ";0;1\n0;0.5;1\n1;2;3\n"),
        ("a.tsv", "0.5\t1\n2\t3\n"),
        ("a.csv", "a|b\n0.5|1\n2|3\n"),
        ("a.txt", "5.0e-01 1.0e+00\n2.0e+00 3.0e+00\n"),  # np.savetxt
    ],
)
def test_numbers_apart_by_something_else(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    np.testing.assert_array_equal(np.asarray(read_array(tmp_path / name)), [[0.5, 1], [2, 3]])


def test_words_of_truth_are_truths(tmp_path):
    np.save(tmp_path / "a.npy", np.array(["True", "False"]))
    assert np.asarray(read_array(tmp_path / "a.npy")).tolist() == [True, False]


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
    (tmp_path / "blank.csv").write_text("1,,2\n3,4,5\n")
    (tmp_path / "blank first.csv").write_text(",1,2\n3,4,5\n")
    (tmp_path / "blank below.csv").write_text(",0,1\n0,1,2\n1,3,\n")
    (tmp_path / "longer.csv").write_text("1,2\n3,4,5\n")
    (tmp_path / "model.pt").write_text("")
    (tmp_path / "excel.csv").write_text("0,5;1,5\n2,5;3,5\n")
    (tmp_path / "group").mkdir()
    (tmp_path / "group/zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    for name, message in [
        ("absent.npy", "there is no such file"),
        ("absent.npz:phi", "there is no such file"),
        ("two.npz", r"holds phi, other: name one, .*two.npz:phi"),
        ("two.npz:psi", "holds no array 'psi', but phi, other"),
        ("text.npy", "must hold numbers; its dtype is <U1"),
        ("objects.npy", "cannot be read: it holds objects of Python, as of rows of different lengths"),
        ("empty.npy", r"is empty: its shape is \(0, 3\)"),
        ("broken.npy", "cannot be read"),
        ("broken.npz", "cannot be read"),
        ("ragged.csv", "cannot be read"),
        ("words.csv", "cannot be read"),
        ("empty.csv", "is empty"),
        ("blank.csv", r"the cell in row 1, column 2 is blank"),
        ("blank first.csv", r"the cell in row 1, column 1 is blank"),
        ("blank below.csv", r"the cell in row 2 below the header, column 3 is blank"),
        ("longer.csv", "cannot be read"),
        ("model.pt", r"is neither \*.npy, \*.npz, \*.csv nor a Zarr array: np.save\(FILE, torch.load"),
        ("excel.csv", r"holds '\d,5': write numbers with a point, 0.5"),
        ("group", "cannot be read"),
    ]:
        with pytest.raises(FileError, match=message) as caught:
            read_array(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert name.split(":")[0] in str(caught.value)


def declared(place, shape):
    """A Zarr array of that shape of which no chunk is stored."""
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(place)}}
    grid = {"name": "regular", "configuration": {"chunk_shape": [1, 2]}}
    ts.open({**spec, "metadata": {"chunk_grid": grid}}, create=True, dtype=np.float64, shape=shape).result()
    return place


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
@pytest.mark.parametrize("dtype", [np.float32, np.int32, bool])
def test_a_missing_chunk_of_a_zarr_array_is_refused_and_no_zero(tmp_path, driver, dtype):
    # A chunk that was lost and one that its writer left out as nothing but zeros are the same directory.
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(tmp_path / "a.zarr")}}
    layout = ts.ChunkLayout(chunk_shape=[2, 3])
    store = ts.open(spec, create=True, dtype=dtype, shape=[4, 6], chunk_layout=layout).result()
    store[:2].write(np.ones((2, 6), dtype)).result()
    array = read_array(tmp_path / "a.zarr")
    np.testing.assert_array_equal(np.asarray(array[1]), np.ones(6, dtype))
    for read in (lambda: array[2], lambda: np.asarray(array)):
        with pytest.raises(
            FileError, match=r"a.zarr: chunk \{1, [01]\}.* is missing.*write_empty_chunks=True"
        ):
            read()


def broken_archives(place):
    """An .npz of arrays x and y, x of each kind of damage."""
    np.save(place / "x.npy", np.zeros(3))
    content = (place / "x.npy").read_bytes()
    shape = b"(3,), }"
    members = {
        "huge": content.replace(shape, b"(1" + b"0" * 13 + b",), }"),
        "beyond": content.replace(shape, b"(1" + b"0" * 40 + b",), }"),
        "header": content.replace(b"{'descr'", b"{[[[[[[("),
        "sound": content,
        "lzma": content,
    }
    for name, member in members.items():
        kind = zipfile.ZIP_LZMA if name == "lzma" else zipfile.ZIP_STORED
        with zipfile.ZipFile(place / f"{name}.npz", "w", kind) as archive:
            archive.writestr("x.npy", member)
            archive.writestr("y.npy", content)
    garbage = bytearray((place / "lzma.npz").read_bytes())
    garbage[50:90] = b"\xff" * 40
    (place / "lzma.npz").write_bytes(garbage)
    locked = bytearray((place / "sound.npz").read_bytes())
    for at in (6, locked.index(b"PK\x01\x02") + 8):
        locked[at] |= 1  # encrypted, by its flags
    (place / "locked.npz").write_bytes(locked)
    return [place / f"{name}.npz" for name in ("huge", "beyond", "header", "lzma", "locked")]


def test_archives_of_every_damage_are_one_line(tmp_path):
    for place in broken_archives(tmp_path):
        with pytest.raises(FileError, match=rf"{place.name}: cannot be read: \S"):
            read_array(f"{place}:x")
        with pytest.raises(DataError, match=rf"{place.name} cannot be read as an .npz file \(\S"):
            load_dataset(f"npz:{place}")


def test_more_than_the_memory_is_refused_and_not_asked_for(tmp_path):
    array = read_array(declared(tmp_path / "wide", (4, 10**14)))
    with pytest.raises(FileError, match=r"wide: says that \[100000000000000\] of float64 .* 800,000 GB"):
        np.asarray(array[0])
    array = read_array(declared(tmp_path / "long", (10**14, 2)))
    array.store[5].write([1.0, 2.0]).result()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(FileError, match="more than this machine's memory"):
        np.asarray(array)
    assert np.asarray(array[5]).tolist() == [1, 2], "a row is small"


def test_only_regular_files_are_opened(tmp_path):
    """A FIFO would never end."""
    for name in ("a.npy", "a.npz", "a.csv", "zarr.json"):
        os.mkfifo(tmp_path / name)
    for name in ("a.npy", "a.npz", "a.csv"):
        with pytest.raises(FileError, match=rf"{name}: is no regular file"):
            read_array(tmp_path / name)
    with pytest.raises(FileError, match="is neither"):
        read_array(tmp_path)
    with pytest.raises(DataError, match=r"it is no regular file"):
        load_dataset(f"npz:{tmp_path}/a.npz")
    with pytest.raises(ConfigError, match=r"cannot be read: it is no regular file"):
        read_config(tmp_path / "a.csv")


def test_places_are_spelt_in_any_way(tmp_path, monkeypatch):
    zarr(tmp_path / "v3.zarr", VALUES)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    np.testing.assert_array_equal(rows("../below/..//v3.zarr"), VALUES)
    with pytest.raises(FileError, match=r"~nobody-here/a.npy: there is no such home directory"):
        read_array("~nobody-here/a.npy")
    with pytest.raises(DataError, match="there is no such home directory"):
        load_dataset("npz:~nobody-here/a.npz")
