import numpy as np
import pytest
from data_sets import table
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lira.data.dataset import DataError, Dataset
from lira.learning.forward import as_input


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
    "times": (
        {"y": np.arange(6).astype("M8[D]")},
        r"y must hold numbers or words; got dtype datetime64\[D\]: map",
    ),
    "two-hot": ({"y": np.ones((6, 2))}, r"y must be \[N\].*got shape \(6, 2\).*argmax one-hot"),
    "half-hot": ({"y": np.full((6, 2), 0.5)}, r"y must be \[N\].*got shape \(6, 2\)"),
    "new word": (
        {"y": list("ababab"), "x_test": ROWS, "y_test": list("abcabc")},
        "y_test row 2 holds 'c', which is none",
    ),
    "ragged": ({"x": [[1, 2], [3]] * 3}, "x has rows of different lengths"),
    "channels first": ({"x": np.ones((6, 3, 8, 8), np.uint8)}, r"channels first.*x\.transpose\(0, 2, 3, 1\)"),
    "channel first": ({"x": np.ones((6, 1, 8, 6))}, r"channels first.*x\.transpose\(0, 2, 3, 1\)"),
    "identifiers": (
        {"x": 10**18 + np.arange(12).reshape(6, 2)},
        "x column 0 holds numbers like 1e.18, whose differences",
    ),
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


def test_labels_as_others_hold_them():
    """Words, columns, one-hot rows, tables of pandas."""
    pandas = pytest.importorskip("pandas")
    words = ["no", "yes", "no", "yes", "no", "no"]
    numbers = [0, 1, 0, 1, 0, 0]
    for y in (words, np.array(words, object), pandas.Series(words), pandas.Series(words, dtype="category")):
        dataset = Dataset.from_arrays(ROWS, y, x_test=ROWS[:1], y_test=["yes"])
        assert (dataset.y.tolist(), dataset.class_names) == (numbers, ("no", "yes"))
        assert dataset.y_test is not None
        assert dataset.y_test.tolist() == [1]
    for y in (np.eye(2)[numbers], np.array(numbers)[:, None], pandas.DataFrame({"y": numbers})):
        dataset = Dataset.from_arrays(ROWS, y)
        assert (dataset.y.tolist(), dataset.class_names) == (numbers, ())
    named = Dataset.from_arrays(ROWS, words, class_names=("yes", "no"))
    assert (named.y.tolist(), named.class_names) == ([1, 0, 1, 0, 1, 1], ("yes", "no"))


def test_features_as_others_hold_them():
    pandas, sparse = pytest.importorskip("pandas"), pytest.importorskip("scipy.sparse")
    y = [0, 1, 0, 1, 0, 0]
    mixed = pandas.DataFrame({"a": ROWS[:, 0], "b": [True, False] * 3})
    expected = np.stack([ROWS[:, 0], [1, 0] * 3], axis=1).astype(np.float32)
    np.testing.assert_array_equal(Dataset.from_arrays(mixed, y).x, expected)
    np.testing.assert_array_equal(Dataset.from_arrays(sparse.csr_matrix(ROWS), y).x, ROWS.astype(np.float32))
    # Wide or long signals of few channels are no images, and float32 holds these numbers as they are.
    assert Dataset.from_arrays(np.ones((6, 1, 128, 9)), y).x.shape == (6, 1, 128, 9)
    assert Dataset.from_arrays(np.array([[2.0**30, 2.0**30 + 128]] * 3).reshape(6, 1), y).x.shape == (6, 1)


def test_images_that_look_unscaled_are_told():
    y = [0, 1, 0, 1, 0, 0]
    with pytest.warns(UserWarning, match=r"whole numbers up to 200 as floats.*x\.astype\(np\.uint8\)"):
        dataset = Dataset.from_arrays(np.full((6, 4, 4, 1), 200.0), y)
    assert (dataset.x == 200).all()  # and nothing else is done to them
    with pytest.warns(
        UserWarning, match=r"reaches 4,000 of the 65,535 .* \[-1, -0.88\]: multiply it, as by 16"
    ):
        dataset = Dataset.from_arrays(np.full((6, 4, 4, 1), 4000, np.uint16), y)
    np.testing.assert_allclose(dataset.x, 4000 / 32767.5 - 1, rtol=1e-6)


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
        table(x=x.astype(np.float32) + 0.5),
        table(x=x.reshape(6, 1, 3, 1)),
        table(y=[1, 0] * 3, x=x),
    ]
    others += [table(x=x, x_test=x, y_test=one.y), table(x=x, x_test=x[::-1], y_test=one.y)]
    if list(order) != sorted(order):
        others.append(table(x=x[order], y=one.y))
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)


@pytest.mark.parametrize("kind", [bytes, object])
def test_labels_in_bytes_are_words(kind):
    """As HDF5 and older files hold them."""
    words = np.array([b"no", "j\u00e4".encode(), b"no"], dtype="S" if kind is bytes else object)
    made = Dataset.from_arrays([[0.5], [1.5], [2.5]], words)
    assert (made.y.tolist(), made.class_names) == ([1, 0, 1], ("j\u00e4", "no"))


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.zeros(3), "of one feature give x[:, None]"),
        (np.zeros(3, [("a", "f4"), ("b", "f4")]), "make columns of its fields"),
        (np.array([["2024-01-01"]] * 3, "M8[D]"), "make numbers of dates and times"),
        (np.zeros((3, 2), complex), "give real and imaginary parts"),
    ],
)
def test_features_of_other_kinds_are_told_what_to_do(x, says):
    with pytest.raises(DataError) as error:
        Dataset.from_arrays(x, [0, 1, 1])
    assert says in str(error.value)
