import io
import json
import os
import shutil
import struct
import tarfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from lira.data import cache as data_cache
from lira.data import folder as image_folder
from lira.data import tfds
from lira.data.dataset import DataError, Dataset
from lira.data.sources import load_dataset
from lira.learning.forward import as_input

CIFAR = Path(__file__).parents[3] / "shared/data/cifar10/cifar10-jpeg.tar.xz"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, so that none reads what another left."""
    monkeypatch.setenv("LIRA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def table(num_examples=6, **changes):
    arrays = {"x": np.arange(2.0 * num_examples).reshape(-1, 2), "y": np.arange(num_examples) % 2}
    return Dataset.from_arrays(**(arrays | changes))


def arrays_of(dataset):
    return {key: getattr(dataset, key) for key in ("x", "y", "x_test", "y_test")}


def assert_same(one, other):
    for (key, ours), theirs in zip(arrays_of(one).items(), arrays_of(other).values(), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=key, strict=ours is not None)
    assert one.num_classes == other.num_classes
    assert one.fingerprint == other.fingerprint


# ---- Dataset ----


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float32, np.float16, np.int64, np.int8, np.uint8, np.uint16, bool]
)
def test_numbers_become_float32_and_labels_int32(dtype):
    x = np.arange(18).reshape(6, 3).astype(dtype)
    dataset = table(x=x, y=[0.0, 1.0, 2.0] * 2)
    np.testing.assert_array_equal(dataset.x, x.astype(np.float32), strict=True)
    np.testing.assert_array_equal(as_input(dataset.x, np.float32), x)  # as models get it
    assert dataset.y.dtype == np.int32
    assert (dataset.num_examples, dataset.num_classes, dataset.num_test) == (6, 3, 0)
    assert not dataset.is_image
    assert dataset.name == "memory"


def test_bytes_stay_bytes_and_gray_images_gain_a_channel():
    dataset = table(x=np.zeros((6, 5, 4), np.uint8), x_test=np.zeros((3, 5, 4), np.uint8), y_test=[1, 1, 0])
    assert dataset.x.shape == (6, 5, 4, 1)
    assert dataset.x.dtype == np.uint8
    assert dataset.is_image
    assert dataset.num_test == 3


@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 4, 1), (6, 5, 4, 3)])
def test_whole_numbers_of_images_are_bytes_or_16_bits(shape):
    x = np.random.default_rng(0).integers(0, 256, shape)
    x.flat[:2] = 0, 255
    four = shape if len(shape) == 4 else (*shape, 1)
    for dtype in (np.uint8, np.int16, np.int32, np.int64, np.uint32, ">i4"):
        dataset = table(x=x.astype(dtype))
        np.testing.assert_array_equal(dataset.x, x.reshape(four).astype(np.uint8), strict=True)
    for dtype in (np.uint16, ">u2"):
        deep = table(x=(257 * x).astype(dtype)).x  # 255 to 65535
        np.testing.assert_allclose(deep, x.reshape(four) / 127.5 - 1, atol=1e-6)
        assert deep.dtype == np.float32
        assert (deep.min(), deep.max()) == (-1, 1)
    for floats in (x / 255, x > 127):
        np.testing.assert_array_equal(table(x=floats).x, floats.astype(np.float32), strict=True)


def test_classes_are_named_or_numbered():
    x, y = [[0.5], [1.5], [2.5]], [0, 1, 2]
    plain, words, numbers = (
        Dataset.from_arrays(x, y, class_names=names)
        for names in ((), ("ant", "bee", "cat"), ("1", "10", "2"))
    )
    assert [plain.label_of(label) for label in (0, "2")] == [0, 2]
    assert [words.label_of(label) for label in ("cat", 1)] == [2, 1]
    assert [numbers.label_of(label) for label in (2, "10", "1")] == [2, 1, 0]
    for dataset, label, message in [
        (plain, 3, r"memory has no class '3': the classes are 0\.\.2"),
        (words, "bees", "has no class 'bees': nearest is bee of ant, bee, cat"),
        (words, 3, "has no class '3'"),
        (numbers, 0, "has no class '0': nearest is 10 of 1, 10, 2"),
    ]:
        with pytest.raises(DataError, match=message):
            dataset.label_of(label)


ROWS = np.ones((6, 2))
BAD = {
    "nan": ({"x": np.where(np.arange(12).reshape(6, 2) == 7, np.nan, 1)}, "x row 3 holds NaN or infinity"),
    "inf": ({"x": np.where(np.arange(12).reshape(6, 2) == 2, np.inf, 1)}, "x row 1 holds NaN or infinity"),
    "too large for float32": ({"x": ROWS * 1e300}, "x row 0 holds NaN or infinity"),
    "nan in x_test": ({"x_test": ROWS * np.nan, "y_test": [0] * 6}, "x_test row 0 holds NaN or infinity"),
    "lengths": ({"y": [0, 1] * 4}, "x has 6 rows but y has 8"),
    "test lengths": ({"x_test": ROWS, "y_test": [0]}, "x_test has 6 rows but y_test has 1"),
    "negative": ({"y": [0, 1, 0, 1, -1, 0]}, "y row 4 holds label -1"),
    "fractional": ({"y": [0, 1, 0.5, 1, 0, 0]}, "y row 2 holds label 0.5, not a whole number"),
    "nan label": ({"y": [0, 1, np.nan, 1, 0, 0]}, "y row 2 holds label nan, not a whole number"),
    "names": ({"y": list("abcabc")}, "y must hold numbers; got dtype <U1: map the classes"),
    "one-hot": ({"y": np.eye(6)}, r"y must be \[N\].*got shape \(6, 6\).*argmax one-hot"),
    "huge": ({"y": [0, 1, 2**40, 1, 0, 0]}, "y row 2 holds label 1099511627776"),
    "gap": ({"y": [0, 1, 3, 0, 1, 3]}, "class 2 of 0..3 has no example in y"),
    "last class": ({"num_classes": 3}, "class 2 of 0..2 has no example in y"),
    "too high": ({"y": [0, 1, 2, 0, 1, 2], "num_classes": 2}, "y row 2 holds label 2, outside 0..1"),
    "too high test": (
        {"x_test": ROWS, "y_test": [0, 1, 1, 5, 0, 0]},
        "y_test row 3 holds label 5, outside 0..1",
    ),
    "negative test": ({"x_test": ROWS, "y_test": [0, -2, 1, 1, 0, 0]}, "y_test row 1 holds label -2"),
    "one class": ({"y": [0] * 6}, "at least 2 classes; got 1"),
    "x_test alone": ({"x_test": ROWS}, "x_test is given without y_test"),
    "y_test alone": ({"y_test": [0]}, "y_test is given without x_test"),
    "test shape": (
        {"x_test": np.ones((1, 3)), "y_test": [0]},
        r"x_test is float32 \[N, 3\] but x is float32 \[N, 2\]",
    ),
    "test dtype": (
        {"x": np.ones((6, 2, 2)), "x_test": np.ones((1, 2, 2), np.uint8), "y_test": [0]},
        r"x_test is uint8 \[N, 2, 2, 1\] but x is float32 \[N, 2, 2\]",
    ),
    "empty": ({"x": np.ones((0, 2)), "y": []}, r"x is empty, shape \(0, 2\)"),
    "empty test": ({"x_test": np.ones((0, 2)), "y_test": []}, "x_test is empty"),
    "no features": ({"x": np.ones((6, 0))}, r"x is empty, shape \(6, 0\)"),
    "one axis": ({"x": np.ones(6)}, r"x must be \[N, ...\].*got \(6,\) and \(6,\)"),
    "12 bits": (
        {"x": np.where(np.arange(96).reshape(6, 4, 4) == 40, 4095, 0)},
        "x row 2 holds 4095, and images of int64 are bytes, 0 to 255: give 16 bits as uint16, or scale them",
    ),
    "signed": ({"x": -np.ones((6, 4, 4, 1), np.int8)}, "x row 0 holds -1, and images of int8 are bytes"),
    "strings": ({"x": np.full((6, 2), "a")}, "x must hold numbers; got dtype <U1"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_arrays_are_refused_in_one_line(changes, message):
    with pytest.raises(DataError, match=message) as caught:
        table(**changes)
    assert "\n" not in str(caught.value)


def test_the_constructor_converts_nothing():
    with pytest.raises(DataError, match=r"got float64 and int32: use Dataset\.from_arrays"):
        Dataset(np.ones((2, 2)), np.array([0, 1], np.int32), 2, "memory")
    with pytest.raises(DataError, match=r"bytes are images .*: use Dataset\.from_arrays"):
        Dataset(np.ones((2, 2), np.uint8), np.array([0, 1], np.int32), 2, "memory")


pools = hnp.arrays(np.uint8, (6, 3, 1, 1), unique=True)


@given(pools, st.integers(0, 17), st.permutations(range(6)))
def test_fingerprint_tells_contents_order_and_dtype(x, place, order):
    one = table(x=x)
    assert one.fingerprint == table(x=x.copy(order="F"), name="other").fingerprint
    changed = x.copy()
    changed.flat[place] ^= 1
    others = [
        table(x=changed),
        table(x=x.astype(np.float32)),
        table(x=x.reshape(6, 1, 3, 1)),
        table(y=[1, 0] * 3, x=x),
    ]
    others += [table(x=x, x_test=x, y_test=one.y), table(x=x, x_test=x[::-1], y_test=one.y)]
    if list(order) != sorted(order):
        others.append(table(x=x[order], y=one.y))
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)


# ---- digits, npz, sources by name ----


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
    np.savez(path, x=np.ones((2, 2)), labels=[0, 1])
    with pytest.raises(DataError, match="holds labels: the valid names are x, y, x_test, y_test"):
        load_dataset(source)
    np.savez(path, x=np.ones((2, 2)))
    with pytest.raises(DataError, match="lacks y"):
        load_dataset(source)
    np.savez(path, x=np.array([[{}], [{}]]), y=[0, 1])
    with pytest.raises(DataError, match=r"cannot be read.*allow_pickle"):
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


# ---- image folders ----


def write_images(root, *, test=True, mode="L", size=(4, 3), seed=0):
    """Two classes of three random PNGs, and one in test/; returns the pixels in order `[6, 3, 4, ...]`."""
    rng = np.random.default_rng(seed)
    pixels = []
    for split, label, count in [("train", "ant", 3), ("train", "bee", 3)] + [("test", "bee", 1)] * test:
        for number in range(count):
            path = root / split / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            channels = () if mode == "L" else (3,)
            image = rng.integers(0, 256, (size[1], size[0], *channels), np.uint8)
            Image.fromarray(image).save(path)
            pixels.append(image)
    return np.stack(pixels)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_folders_of_images(tmp_path, mode, channels):
    pixels = write_images(tmp_path, mode=mode).reshape(7, 3, 4, channels)
    (tmp_path / "train" / "ant" / ".0.png").write_text("hidden")
    (tmp_path / "train" / ".git").mkdir()
    (tmp_path / "train" / "README").write_text("not a class")
    dataset = load_dataset(f"folder:{tmp_path}")
    np.testing.assert_array_equal(dataset.x, pixels[:6], strict=True)
    np.testing.assert_array_equal(dataset.y, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(dataset.x_test, pixels[6:])
    np.testing.assert_array_equal(dataset.y_test, [1])
    assert dataset.name == f"folder:{tmp_path}"


def test_folders_know_their_classes_and_files(tmp_path):
    write_images(tmp_path)
    source = f"folder:{tmp_path}"
    names = [f"train/{label}/{number}.png" for label in ("ant", "bee") for number in range(3)]
    for dataset in (load_dataset(source), load_dataset(source)):  # decoded, and from the cache
        assert dataset.class_names == ("ant", "bee")
        assert list(dataset.files) == names
    part = load_dataset(source, num_examples=4)
    rows = [int(np.flatnonzero((dataset.x == x).all(axis=(1, 2, 3)))[0]) for x in part.x]
    assert list(part.files) == [names[row] for row in rows] == [names[row] for row in (0, 1, 3, 4)]
    assert part.class_names == dataset.class_names


def test_names_are_no_part_of_the_fingerprint_and_must_be_as_many():
    plain = Dataset.from_arrays([[0.5], [1.5], [2.5]], [0, 1, 1])
    named = Dataset.from_arrays(
        [[0.5], [1.5], [2.5]], [0, 1, 1], class_names=["a", "b"], files=["x", "y", "z"]
    )
    assert (plain.class_names, plain.files) == ((), ())
    assert (named.class_names, named.files) == (("a", "b"), ("x", "y", "z"))
    assert named.fingerprint == plain.fingerprint
    with pytest.raises(DataError, match="class_names holds 1 names for 2: give one for each class"):
        Dataset.from_arrays([[0.5], [1.5]], [0, 1], class_names=["a"])
    with pytest.raises(DataError, match="files holds 3 names for 2: give one for each example"):
        Dataset.from_arrays([[0.5], [1.5]], [0, 1], files=["a", "b", "c"])


def test_folders_without_test(tmp_path):
    write_images(tmp_path, test=False)
    assert load_dataset(f"folder:{tmp_path}").num_test == 0


def test_one_colour_image_makes_all_of_them_rgb(tmp_path):
    pixels = write_images(tmp_path)
    colour = np.full((3, 4, 3), (1, 2, 3), np.uint8)
    Image.fromarray(colour).save(tmp_path / "train" / "bee" / "3.png")
    Image.fromarray(np.eye(3, 4) > 0).save(tmp_path / "train" / "bee" / "4.png")  # one bit a pixel
    dataset = load_dataset(f"folder:{tmp_path}")
    np.testing.assert_array_equal(dataset.x[:6], np.repeat(pixels[:6, ..., None], 3, axis=-1))
    np.testing.assert_array_equal(dataset.x[6], colour)
    np.testing.assert_array_equal(dataset.x[7, ..., 2], 255 * np.eye(3, 4))


def test_what_is_left_out_is_counted_by_extension(tmp_path):
    write_images(tmp_path)
    for number in range(5):
        (tmp_path / "train" / "ant" / f"{number}.GIF").write_bytes(b"GIF89a")
    (tmp_path / "test" / "bee" / "notes").write_text("")
    with pytest.warns(
        UserWarning, match=r"left out 5 \.gif, 1 no extension, taken 7 \.png: images end in \.bmp"
    ) as caught:
        assert load_dataset(f"folder:{tmp_path}").num_examples == 6
    assert len(caught) == 1


@pytest.mark.parametrize("kind", ["png", "tiff", "pgm"])
def test_images_of_16_bits_become_floats(tmp_path, kind):
    pixels = np.random.default_rng(0).integers(0, 65536, (4, 3, 4), np.uint16)
    pixels[0, 0, :2] = 0, 65535
    for row, image in enumerate(pixels):
        path = tmp_path / "train" / "ab"[row % 2] / f"{row}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    for dataset in (load_dataset(f"folder:{tmp_path}"), load_dataset(f"folder:{tmp_path}")):
        expected = pixels[[0, 2, 1, 3], ..., None] / 32767.5 - 1
        np.testing.assert_allclose(dataset.x, expected, atol=1e-6)
        assert (dataset.x.dtype, dataset.x.min(), dataset.x.max()) == (np.float32, -1, 1)


def deep_colours(kind):
    """An image of 4 x 2 pixels, 16 bits a channel, that Pillow writes in no way."""
    if kind in ("rgb", "la", "rgba"):
        colour, channels = {"rgb": (2, 3), "la": (4, 2), "rgba": (6, 4)}[kind]
        rows = b"".join(b"\0" + b"\xff" * (4 * channels * 2) for _ in range(2))

        def chunk(name, data):
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        header = struct.pack(">IIBBBBB", 4, 2, 16, colour, 0, 0, 0)
        body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        return ".png", b"\x89PNG\r\n\x1a\n" + body
    if kind == "ppm":
        return ".ppm", b"P6 4 2 65535\n" + bytes(4 * 2 * 3 * 2)
    if kind == "plain ppm":
        return ".ppm", b"P3 4 2 1023\n" + b"1000 " * 24
    tags = [(256, 4), (257, 2), (258, 122), (259, 1), (262, 2), (273, 128), (277, 3), (278, 2), (279, 48)]
    entries = b"".join(
        struct.pack("<HHII", tag, 3, 3, value) if tag == 258 else struct.pack("<HHIHH", tag, 3, 1, value, 0)
        for tag, value in tags
    )
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    return ".tif", header + struct.pack("<HHH", 16, 16, 16) + bytes(48)


@pytest.mark.parametrize("kind", ["rgb", "la", "rgba", "ppm", "plain ppm", "tiff"])
def test_colours_of_16_bits_are_refused_and_not_halved(tmp_path, kind):
    extension, content = deep_colours(kind)
    with Image.open(io.BytesIO(content)) as image:
        assert (image.size, image.mode in ("RGB", "RGBA")) == ((4, 2), True), "Pillow reads it, as 8 bits"
        image.load()
    for name in "ab":
        path = tmp_path / "train" / name / f"0{extension}"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a/0\{extension} has colours of 16 bits a channel.* npz:"):
        load_dataset(f"folder:{tmp_path}")


def with_alpha(path, mode, transparent):
    """Save a black image of 4 x 3 pixels, of which the first is transparent or not, in a mode with alpha."""
    alpha = np.full((3, 4), 255, np.uint8)
    alpha[0, 0] = 7 if transparent else 255
    match mode:
        case "palette":
            pixels = np.zeros((3, 4), np.uint8)
            pixels[0, 0] = transparent
            image = Image.fromarray(pixels, "P")
            image.putpalette([0, 0, 0, 9, 9, 9])
            image.save(path, transparency=1)
        case "key":
            pixels = np.zeros((3, 4), np.uint8)
            pixels[0, 0] = 5 * transparent
            Image.fromarray(pixels).save(path, transparency=5)
        case "deep key":
            pixels = np.zeros((3, 4), np.uint16)
            pixels[0, 0] = 500 * transparent
            Image.fromarray(pixels).save(path, transparency=500)
        case "LA":
            Image.fromarray(np.stack([0 * alpha, alpha], axis=-1)).save(path)
        case "RGBA":
            Image.fromarray(np.stack([0 * alpha] * 3 + [alpha], axis=-1)).save(path)


@pytest.mark.parametrize(
    ("mode", "channels"), [("palette", 3), ("key", 1), ("deep key", 1), ("LA", 1), ("RGBA", 3)]
)
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
def test_opaque_alpha_is_dropped_and_any_other_is_refused(tmp_path, mode, channels):
    """A black glyph on nothing would be a black image."""
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        with_alpha(tmp_path / "train" / name / "0.png", mode, transparent=False)
    dataset = load_dataset(f"folder:{tmp_path}")
    assert dataset.x.shape == (2, 3, 4, channels)
    assert (dataset.x == (-1 if mode == "deep key" else 0)).all()
    with_alpha(tmp_path / "train" / "b" / "1.png", mode, transparent=True)
    with pytest.raises(
        DataError, match=r"b/1\.png has transparent pixels, .*: flatten it, as by .*-alpha remove"
    ):
        load_dataset(f"folder:{tmp_path}")


def damage(root, case):
    ant = root / "train" / "ant"
    match case:
        case "size":
            Image.new("L", (5, 3)).save(ant / "1.png")
        case "broken":
            (ant / "1.png").write_bytes((ant / "0.png").read_bytes()[:40])
        case "deep":
            Image.fromarray(np.zeros((3, 4), np.uint16)).save(ant / "1.png")
        case "deep first":
            Image.fromarray(np.zeros((3, 4), np.uint16)).save(ant / "0.png")
        case "32 bits":
            Image.fromarray(np.zeros((3, 4), np.float32)).save(ant / "1.tif")
        case "empty class":
            (root / "train" / "cat").mkdir()
        case "test class":
            (root / "test" / "cat").mkdir()
        case "layout":
            (root / "train").rename(root / "training")
        case "dead link":
            (ant / "3.png").symlink_to("nowhere")
        case "fifo":
            os.mkfifo(ant / "3.png")
        case "no classes":
            (root / "train").rename(root / "training")
            (root / "train").mkdir()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("size", r"differ in size: .*ant/0\.png is 4 x 3 and .*ant/1\.png is 5 x 3"),
        ("broken", r"ant/1\.png cannot be read as an image"),
        ("deep", r"ant/1\.png has 16 bits a channel and .*ant/0\.png 8: convert them to one depth"),
        ("deep first", r"ant/0\.png has 16 bits a channel and .*ant/1\.png 8: convert them to one depth"),
        ("32 bits", r"ant/1\.tif has 32 bits a channel"),
        ("empty class", r"train/cat has no image.*\.jpg \.pgm \.png"),
        ("test class", r"test/cat is not a class of train/"),
        ("layout", r"no directory train: expected are train/<class>/\* and test/<class>/\*"),
        ("dead link", r"folder:.* cannot be read .*No such file.*ant/3\.png"),
        ("fifo", r"ant/3\.png is no regular file"),
        ("no classes", "train has no class directories"),
    ],
)
def test_unfit_folders(tmp_path, cache, case, message):
    write_images(tmp_path / "images")
    damage(tmp_path / "images", case)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(f"folder:{tmp_path}/images")
    assert "\n" not in str(caught.value)
    assert not list(cache.glob("*"))


# ---- the cache ----


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def decoded(monkeypatch):
    """The paths decoded so far."""
    paths, decode = [], image_folder._decode_image
    monkeypatch.setattr(image_folder, "_decode_image", lambda path: (paths.append(path), decode(path))[1])
    return paths


def test_the_second_load_decodes_nothing(folder, decoded, cache):
    first = load_dataset(f"folder:{folder}")
    assert decoded
    decoded.clear()
    second = load_dataset(f"folder:{folder}")
    assert not decoded
    assert_same(first, second)
    assert first.name == second.name
    assert [path.name.startswith(".") for path in cache.iterdir()] == [False]


@pytest.mark.parametrize("change", ["contents", "added", "renamed", "removed"])
def test_a_changed_folder_is_decoded_anew(folder, decoded, change):
    before = load_dataset(f"folder:{folder}")
    decoded.clear()
    image = folder / "train" / "bee" / "2.png"
    match change:
        case "contents":
            Image.new("L", (4, 3), 7).save(image)
        case "added":
            Image.new("L", (4, 3), 7).save(folder / "train" / "bee" / "3.png")
        case "renamed":
            image.rename(folder / "train" / "ant" / "9.png")
        case "removed":
            image.unlink()
    after = load_dataset(f"folder:{folder}")
    assert decoded
    assert after.fingerprint != before.fingerprint


@pytest.fixture
def raw(folder):
    """An image of the folder that is not compressed, so that another one has as many bytes."""
    image = folder / "train" / "bee" / "2.png"
    Image.new("L", (4, 3), 5).save(image, format="BMP")
    return image


def flip_pixel(image):
    content = image.read_bytes()
    image.write_bytes(content[:-1] + bytes([content[-1] ^ 128]))


@pytest.mark.parametrize("how", ["written in place", "renamed over it"])
def test_a_file_that_was_replaced_with_size_and_time_kept_is_decoded_anew(folder, raw, how):
    before, stat = load_dataset(f"folder:{folder}"), raw.stat()
    if how == "written in place":
        flip_pixel(raw)
    else:
        shutil.copy(raw, folder / "spare")
        flip_pixel(folder / "spare")
        (folder / "spare").replace(raw)
    os.utime(raw, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (raw.stat().st_size, raw.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert load_dataset(f"folder:{folder}").fingerprint != before.fingerprint


def test_the_bytes_alone_tell_where_a_run_begins(folder, raw, decoded, monkeypatch):
    # As on a file system that knows no times and no inodes.
    monkeypatch.setattr(image_folder, "what_changes", lambda stat: (stat.st_size,))
    before = load_dataset(f"folder:{folder}")
    flip_pixel(raw)
    assert_same(load_dataset(f"folder:{folder}"), before)
    after = load_dataset(f"folder:{folder}", reread=True)
    assert after.fingerprint != before.fingerprint
    for reread in (False, True):  # what is kept is now of these bytes
        decoded.clear()
        assert_same(load_dataset(f"folder:{folder}", reread=reread), after)
        assert not decoded


def test_what_was_read_by_other_rules_is_read_anew(folder, decoded, monkeypatch):
    load_dataset(f"folder:{folder}")
    decoded.clear()
    monkeypatch.setattr(data_cache, "READING", data_cache.READING + 1)
    load_dataset(f"folder:{folder}")
    assert decoded


@pytest.mark.parametrize("harm", ["flipped bit", "truncated", "empty", "lost", "no fingerprint"])
def test_a_damaged_entry_is_rebuilt(folder, decoded, cache, harm):
    before = load_dataset(f"folder:{folder}")
    (entry,) = cache.iterdir()
    contents = (entry / "x.npy").read_bytes()
    match harm:
        case "flipped bit":
            (entry / "x.npy").write_bytes(contents[:-1] + bytes([contents[-1] ^ 1]))
        case "truncated":
            (entry / "x.npy").write_bytes(contents[:-1])
        case "empty":
            (entry / "x.npy").write_bytes(b"")
        case "lost":
            (entry / "x.npy").unlink()
        case "no fingerprint":
            (entry / "fingerprint").unlink()
    for expect_decoding in (True, False):
        decoded.clear()
        assert_same(load_dataset(f"folder:{folder}"), before)
        assert bool(decoded) == expect_decoding


def test_a_write_that_is_cut_off_leaves_no_entry(folder, cache, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            load_dataset(f"folder:{folder}")
    assert not list(cache.iterdir())
    assert load_dataset(f"folder:{folder}").num_examples == 6


def test_an_unwritable_cache_only_warns(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIRA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="cannot be kept in .*set LIRA_CACHE") as caught:
        dataset = load_dataset(f"folder:{folder}")
    assert len(caught) == 1
    assert dataset.num_examples == 6


# ---- tensorflow-datasets ----


def prepare(data_dir, name, splits, features, keys=("image", "label"), *, register=False, configs=()):
    """Prepare a TFDS data set of examples `{split: [example, ...]}`, in this order, without TensorFlow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependencies' deprecations
        import tensorflow_datasets as tfds

        def info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=keys,
                disable_shuffling=True,
            )

        body = {
            "VERSION": tfds.core.Version("1.0.0"),
            "name": name,
            "BUILDER_CONFIGS": [tfds.core.BuilderConfig(name=config) for config in configs],
            "_info": info,
            "_split_generators": lambda self, _: {split: self._generate_examples(split) for split in splits},
            "_generate_examples": lambda self, split: enumerate(splits[split]),
        }
        builder = type(name, (tfds.core.GeneratorBasedBuilder,), body, skip_registration=not register)
        if not register:
            builder(data_dir=data_dir, file_format="array_record").download_and_prepare()


@pytest.fixture
def features():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds
    return tfds.features


def rows(labels, start=0):
    return [{"x": np.full(3, start + row, np.float32), "y": label} for row, label in enumerate(labels)]


def prepare_table(data_dir, features, name="lira_table", *, splits=None, keys=("x", "y"), register=False):
    kinds = {
        "x": features.Tensor(shape=(3,), dtype=np.float32),
        "y": features.ClassLabel(names=["cat", "dog"]),
    }
    splits = splits or {"train": rows([0, 1, 1, 0]), "test": rows([1], 9)}
    prepare(data_dir, name, splits, kinds, keys, register=register)


def test_prepared_tables_are_found_by_their_files(tmp_path, features):
    prepare_table(tmp_path, features)
    expected = Dataset.from_arrays(
        np.repeat(np.arange(4.0), 3).reshape(4, 3), [0, 1, 1, 0], x_test=[[9, 9, 9]], y_test=[1]
    )
    for place in ("lira_table", "lira_table:1.0.0", "lira_table:1.*.*"):
        dataset = load_dataset(f"tfds:{place}", data_dir=str(tmp_path))
        assert_same(dataset, expected)
        assert (dataset.name, dataset.data_dir) == (f"tfds:{place}", str(tmp_path))


def test_tfds_is_cached_and_quiet(tmp_path, features, cache, monkeypatch, capfd):
    prepare_table(tmp_path, features)
    capfd.readouterr()
    first = load_dataset("tfds:lira_table", data_dir=str(tmp_path))
    monkeypatch.setattr(tfds, "_read_tfds", None)
    again = load_dataset("tfds:lira_table", data_dir=str(tmp_path))
    assert_same(again, first)
    assert again.class_names == first.class_names == ("cat", "dog")
    assert len(list(cache.iterdir())) == 1
    assert "".join(capfd.readouterr()) == ""


def test_tfrecord_files_are_read_without_tensorflow(tmp_path, features):
    """The same records in TFDS's default format, which TensorFlow alone can write."""
    from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue] (compiled)

    prepare_table(tmp_path, features)
    expected = load_dataset("tfds:lira_table", data_dir=str(tmp_path))
    root = tmp_path / "lira_table" / "1.0.0"
    for path in root.glob("*.array_record-*"):
        records = array_record_module.ArrayRecordReader(str(path)).read_all()
        framed = [struct.pack("<QI", len(record), 0) + record + struct.pack("<I", 0) for record in records]
        path.with_name(path.name.replace("array_record", "tfrecord")).write_bytes(b"".join(framed))
        path.unlink()
    info = json.loads((root / "dataset_info.json").read_text())
    (root / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    assert_same(load_dataset("tfds:lira_table", data_dir=str(tmp_path)), expected)
    (path,) = root.glob("*-train.tfrecord-*")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"tfds:lira_table cannot be read from .*: prepare it again"):
        load_dataset("tfds:lira_table", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": {"validation": rows([0, 1])}}, "has no split train, only validation"),
        ({"keys": None}, "neither supervised_keys nor features image and label, only x, y"),
        ({"splits": {"train": rows([0, 0])}}, "class 1 of 0..1 has no example"),
    ],
)
def test_unfit_tfds_data(tmp_path, features, options, message):
    prepare_table(tmp_path, features, **options)
    with pytest.raises(DataError, match=message):
        load_dataset("tfds:lira_table", data_dir=str(tmp_path))


def test_configurations_and_fractional_labels(tmp_path, features):
    kinds = {"x": features.Tensor(shape=(3,), dtype=np.float32), "y": features.Scalar(dtype=np.float32)}
    prepare(tmp_path, "lira_configs", {"train": rows([0, 1])}, kinds, ("x", "y"), configs=["whole"])
    assert load_dataset("tfds:lira_configs/whole:1.0.0", data_dir=str(tmp_path)).num_examples == 2
    assert load_dataset("tfds:lira_configs", data_dir=str(tmp_path)).num_examples == 2
    with pytest.raises(DataError, match="lira_configs/other is not prepared in"):
        load_dataset("tfds:lira_configs/other", data_dir=str(tmp_path))
    prepare(tmp_path, "lira_prices", {"train": rows([0, 1.5])}, kinds, ("x", "y"))
    with pytest.raises(DataError, match=r"y row 1 holds label 1\.5, not a whole number"):
        load_dataset("tfds:lira_prices", data_dir=str(tmp_path))


def test_images_of_several_sizes_are_refused(tmp_path, features):
    png = [io.BytesIO() for _ in range(2)]
    for size, file in zip((3, 4), png, strict=True):
        Image.new("L", (size, 3)).save(file, "PNG")
        file.seek(0)
    kinds = {"image": features.Image(shape=(None, None, 1)), "label": features.ClassLabel(num_classes=2)}
    examples = [{"image": file, "label": label} for label, file in enumerate(png)]
    prepare(tmp_path, "lira_sizes", {"train": examples}, kinds, keys=None)
    with pytest.raises(
        DataError, match=r"train examples 0 and 1 differ in shape: \(3, 3, 1\) and \(3, 4, 1\)"
    ):
        load_dataset("tfds:lira_sizes", data_dir=str(tmp_path))


def test_broken_tfds_files_are_one_line(tmp_path, features):
    prepare_table(tmp_path, features)
    (tmp_path / "lira_table" / "1.0.0" / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="tfds:lira_table cannot be opened in") as caught:
        load_dataset("tfds:lira_table", data_dir=str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "reason"),
    [("no_such_set", "no_such_set not found"), ("cifar10", "TensorFlow is not installed"), ("a b", None)],
)
def test_what_is_not_prepared_says_how_to_get_it(tmp_path, place, reason, monkeypatch):
    find_spec = tfds.importlib.util.find_spec
    monkeypatch.setattr(
        tfds.importlib.util, "find_spec", lambda name: None if name == "tensorflow" else find_spec(name)
    )
    message = (
        "cannot be opened"
        if reason is None
        else rf'not prepared in .*{reason}.*pip install "lira\[tensorflow\]"'
    )
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(f"tfds:{place}", data_dir=str(tmp_path))
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_registered_builder_is_prepared_when_it_is_not_yet(tmp_path, features):
    prepare_table(tmp_path, features, name="lira_registered", register=True)
    assert not list(tmp_path.glob("lira_registered"))
    assert load_dataset("tfds:lira_registered", data_dir=str(tmp_path)).num_examples == 4


# ---- CIFAR-10 ----


@pytest.fixture(scope="session")
def cifar(tmp_path_factory):
    """The first 100 training and 20 test images of each class."""
    if not CIFAR.exists():
        pytest.skip(f"{CIFAR} is not there")
    root = tmp_path_factory.mktemp("cifar10")
    with tarfile.open(CIFAR, "r|xz") as archive:
        for member in archive:
            path = Path(member.name)
            if path.suffix == ".jpg" and int(path.stem) < (100 if "train" in path.parts else 20):
                archive.extract(member, root, filter="data")
    (train,) = root.glob("**/train")
    return train.parent


def test_cifar10_is_the_same_by_both_routes(cifar, tmp_path, features):
    classes = sorted(path.name for path in (cifar / "train").iterdir())
    splits = {
        split: [
            {"image": io.BytesIO(path.read_bytes()), "label": path.parent.name}
            for path in sorted((cifar / split).glob("*/*.jpg"))
        ]
        for split in ("train", "test")
    }
    kinds = {"image": features.Image(shape=(32, 32, 3)), "label": features.ClassLabel(names=classes)}
    prepare(tmp_path, "lira_cifar", splits, kinds)
    dataset = load_dataset(f"folder:{cifar}")
    assert dataset.x.shape == (1000, 32, 32, 3)
    assert dataset.num_test == 200
    assert_same(load_dataset("tfds:lira_cifar", data_dir=str(tmp_path)), dataset)
