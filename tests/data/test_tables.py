"""Tables with named columns and data sets of HuggingFace: right values, and one line for each bad file."""

import re

import numpy as np
import pytest
from PIL import Image

from lira.data.dataset import DataError
from lira.data.sources import load_dataset
from lira.store.config import Config, absolute

TABLE = """age,colour,zip,member,income
31,red,01234,True,high
40,blue,99999,False,low
50,red,01234,True,low
20.5,green,5,False,high
"""
X = {
    "age": [31, 40, 50, 20.5],
    "colour=blue": [0, 1, 0, 0],
    "colour=green": [0, 0, 0, 1],
    "colour=red": [1, 0, 1, 0],
    "zip": [1234, 99999, 1234, 5],
    "member": [1, 0, 1, 0],
}


def expected(*names):
    return np.array([X[name] for name in names], np.float32).T


@pytest.fixture
def written(tmp_path):
    def write(text=TABLE, name="table.csv", encoding="utf-8"):
        (tmp_path / name).write_bytes(text.encode(encoding))
        return f"csv:{tmp_path / name}"

    return write


def test_words_become_columns_and_labels_class_numbers(written):
    dataset = load_dataset(f"{written()},label=income")
    np.testing.assert_array_equal(dataset.x, expected(*X))
    assert dataset.x.dtype == np.float32
    assert dataset.y.tolist() == [0, 1, 1, 0]
    assert dataset.class_names == ("high", "low")
    assert dataset.x_test is None


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        ("drop=zip+member", ["age", "colour=blue", "colour=green", "colour=red"]),
        ("features=member+age", ["age", "member"]),
        ("features=colour", ["colour=blue", "colour=green", "colour=red"]),
    ],
)
def test_columns_are_chosen_by_name(written, options, columns):
    np.testing.assert_array_equal(load_dataset(f"{written()},label=income,{options}").x, expected(*columns))


def test_numbers_that_are_names_and_standardised_ones(written):
    source = f"{written()},label=income,features=age+zip,categorical=zip,standardise"
    x = load_dataset(source).x
    age = np.array(X["age"])
    np.testing.assert_allclose(x[:, 0], (age - age.mean()) / age.std(), rtol=1e-6)
    np.testing.assert_array_equal(x[:, 1:], np.eye(3)[[0, 2, 0, 1]])  # "1234", "5", "99999"


def test_a_held_out_file_has_the_pools_columns(written):
    """In another order, with fewer categories; standardised as the pool is."""
    test = written("income,zip,colour,age,member,more\nlow,7,red,31,False,1\n", "test.csv")
    dataset = load_dataset(f"{written()},label=income,standardise,features=age+colour,test={test[4:]}")
    assert dataset.x_test is not None
    assert dataset.y_test is not None
    np.testing.assert_array_equal(dataset.x_test[0], dataset.x[0])
    assert dataset.y_test.tolist() == [1]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_what_spreadsheets_write(written, separator):
    """Windows' line ends, a byte-order mark, quotes, an empty line at the end."""
    text = "\ufeff" + TABLE.replace(",", separator).replace("red", '"red"').replace("\n", "\r\n") + "\r\n"
    np.testing.assert_array_equal(load_dataset(f"{written(text)},label=income").x, expected(*X))


def test_labels_that_are_numbers(written):
    """Whole numbers keep their order, 2 before 10; those from 0 on are the classes themselves."""
    for labels, y, names in (
        ("2 10 2 10", [0, 1, 0, 1], ("2", "10")),
        ("1 0 1 1", [1, 0, 1, 1], ()),
        ("1.0 0.0 1.0 1.0", [1, 0, 1, 1], ()),
    ):
        rows = "\n".join(f"{i}.5,{label}" for i, label in enumerate(labels.split()))
        dataset = load_dataset(written(f"a,y\n{rows}\n"))
        assert dataset.y.tolist() == y
        assert dataset.class_names == names


def test_the_index_of_pandas_is_left_out_with_a_word(written):
    with pytest.warns(UserWarning, match=r"table.csv: the column without a name, as pandas writes its index"):
        dataset = load_dataset(written(",a,label\n0,1.5,x\n1,2.5,y\n2,3.5,x\n"))
    assert dataset.x.ravel().tolist() == [1.5, 2.5, 3.5]


BAD = {
    "no label": (
        TABLE,
        "",
        "has no column label, target, class, y: name the label's as label=NAME of age, colour",
    ),
    "unknown": (TABLE, ",label=wage", "has no column 'wage': there are age, colour, zip, member, income"),
    "spelling": (TABLE, ",lable=income", "'lable=income' is no option: the options are label=..., "),
    "twice": (TABLE, ",label=income,label=age", "'label=age' is given twice"),
    "value": (TABLE, ",label=income,standardise=1", "'standardise=1' is no option"),
    "empty": (TABLE.replace("50,", ","), ",label=income", "row 3, column 'age' is empty: fill it in"),
    "NA": (TABLE.replace("50,", "N/A,"), ",label=income", "row 3, column 'age' holds 'N/A': fill it in"),
    "infinite": (
        TABLE.replace("50,", "inf,"),
        ",label=income",
        "row 3, column 'age' holds inf, which 32 bits",
    ),
    "ragged": (
        TABLE.replace("50,", "50,1,"),
        ",label=income",
        "row 3 has 6 cells, and the header 5: quote cells",
    ),
    "numbers": ("1,2\n3,4\n5,6\n", "", "has no header, but 1, 2 ...: name the columns in its first line"),
    "two": (TABLE.replace("zip", "age"), ",label=income", "has two columns 'age': rename one"),
    "fraction": (TABLE, ",label=age", "row 4, column 'age' holds 20.5, and a label is no fraction"),
    "identifier": ("id,y\n1,a\n2,b\n3,c\n", ",label=id", "every row has a label of its own in column 'id'"),
    "nothing": ("a,y\n", "", "has no rows below its header"),
    "label alone": ("y\na\nb\na\n", "", "has no column but the label 'y'"),
    "quote": (TABLE.replace("red", '"red'), ",label=income", "cannot be read as CSV .*: see to its quotes"),
    "one class": ("a,y\n1,0\n2,0\n", "", "at least 2 classes"),
}


@pytest.mark.parametrize("fault", BAD)
def test_every_bad_table_is_one_line(written, fault):
    text, options, message = BAD[fault]
    with pytest.raises(
        DataError, match=message.replace("(", r"\(").replace("...", r"\.\.\.").replace("+", r"\+")
    ) as caught:
        load_dataset(written(text) + options)
    assert "\n" not in str(caught.value)


def test_numbers_with_a_word_among_them_are_not_made_words(written):
    """`?` for what is missing would make a column of every age."""
    with pytest.raises(
        DataError, match=r"row 3, column 'age' holds '\?', and other rows numbers: .*categorical=age"
    ):
        load_dataset(f"{written(TABLE.replace('50,', '?,'))},label=income")
    x = load_dataset(f"{written(TABLE.replace('50,', '?,'))},label=income,features=age,categorical=age").x
    np.testing.assert_array_equal(x.sum(axis=0), np.ones(4))


def test_what_only_the_held_out_file_holds_is_refused(written):
    for row, column in (("violet,low", "colour"), ("red,middle", "income")):
        test = written(f"colour,income\n{row}\n", "test.csv")
        with pytest.raises(
            DataError, match=rf"test.csv row 1, column '{column}' holds \w+, which no row of the pool has"
        ):
            load_dataset(f"{written()},label=income,features=colour,test={test[4:]}")
    alone = written("income\nlow\n", "test.csv")
    with pytest.raises(DataError, match=r"test.csv has no column 'colour', which .*table.csv has"):
        load_dataset(f"{written()},label=income,features=colour,test={alone[4:]}")


def test_text_is_no_category(written):
    rows = "".join(f"text {i},{i % 2}\n" for i in range(1001))
    with pytest.raises(DataError, match="column 'a' holds 1,001 different words: leave it out by drop=a"):
        load_dataset(written("a,y\n" + rows))


def test_other_encodings(written):
    with pytest.raises(DataError, match=r"is no UTF-8 .*: save it as UTF-8"):
        load_dataset(written(TABLE.replace("red", "rötlich"), encoding="latin-1") + ",label=income")


def test_a_source_is_stored_absolute_and_loads_again(written, monkeypatch, tmp_path):
    """Commas and plus signs in names, and in paths."""
    written(TABLE.replace("age", "a+g,e/x", 1).replace("a+g,e/x", '"a+g,e/x"'), "a,b.csv")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERE", ".")
    config = absolute(
        Config(
            dataset="csv:$HERE/a,b.csv,label=income,features=a%2Bg%2Ce/x,test=../"
            + tmp_path.name
            + "/a%2Cb.csv"
        )
    )
    assert (
        config.dataset
        == f"csv:{tmp_path}/a,b.csv,label=income,features=a%2Bg%2Ce/x,test={tmp_path}/a%2Cb.csv"
    )
    monkeypatch.chdir("/")
    dataset = load_dataset(config.dataset)
    np.testing.assert_array_equal(dataset.x, expected("age"))
    assert dataset.name == config.dataset
    assert absolute(config) == config


# --- Parquet and HuggingFace ----------------------------------------------------------------------------------------


def test_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "age": X["age"],
        "colour": arrow.array(["red", "blue", "red", "green"]).dictionary_encode(),
        "zip": X["zip"],
        "member": [True, False, True, False],
        "income": ["high", "low", "low", "high"],
    }
    parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
    dataset = load_dataset(f"parquet:{tmp_path}/t.parquet,label=income")
    np.testing.assert_array_equal(dataset.x, expected(*X))
    assert dataset.class_names == ("high", "low")
    for changes, message in (
        ({"age": [1, None, 2, 3]}, r"t.parquet row 2, column 'age' is empty \(null\)"),
        ({"colour": ["a", "b", None, "c"]}, "row 3, column 'colour' is empty"),
        ({"zip": [[1], [2], [3], [4]]}, "column 'zip' holds lists: leave it out by drop=zip"),
    ):
        parquet.write_table(arrow.table({**columns, **changes}), tmp_path / "t.parquet")
        with pytest.raises(DataError, match=message):
            load_dataset(f"parquet:{tmp_path}/t.parquet,label=income")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(DataError, match=r"t.parquet cannot be read as Parquet"):
        load_dataset(f"parquet:{tmp_path}/t.parquet")
    with pytest.raises(DataError, match="is not there: check the path"):
        load_dataset(f"parquet:{tmp_path}/other.parquet")


@pytest.fixture
def hub():
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    return datasets


def test_a_table_of_huggingface(hub, tmp_path):
    features = hub.Features(
        {
            "age": hub.Value("float32"),
            "colour": hub.Value("string"),
            "label": hub.ClassLabel(names=["poor", "able", "rich"]),
        }
    )
    train = {"age": X["age"], "colour": ["red", "blue", "red", "green"], "label": [2, 1, 0, 2]}
    test = {"age": [1.0], "colour": ["red"], "label": [1]}
    splits = {"train": hub.Dataset.from_dict(train, features), "test": hub.Dataset.from_dict(test, features)}
    hub.DatasetDict(splits).save_to_disk(tmp_path / "d")
    dataset = load_dataset(f"hf:{tmp_path}/d")
    np.testing.assert_array_equal(dataset.x, expected("age", "colour=blue", "colour=green", "colour=red"))
    assert dataset.y.tolist() == [2, 1, 0, 2]
    assert dataset.class_names == ("poor", "able", "rich")
    np.testing.assert_array_equal(dataset.x_test, [[1, 0, 0, 1]])
    np.testing.assert_array_equal(dataset.y_test, [1])
    with pytest.raises(DataError, match="has no split 'validation', but train, test"):
        load_dataset(f"hf:{tmp_path}/d,split=validation")
    with pytest.raises(DataError, match="d train has no column 'wage': there are age, colour, label"):
        load_dataset(f"hf:{tmp_path}/d,label=wage")


def test_images_of_huggingface(hub, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    features = hub.Features({"img": hub.Image(), "fine_label": hub.ClassLabel(names=["cat", "dog"])})

    def saved(images):
        hub.Dataset.from_dict({"img": images, "fine_label": [1, 0, 1, 1]}, features).save_to_disk(
            tmp_path / "d"
        )
        return f"hf:{tmp_path}/d,label=fine_label"

    images = [Image.fromarray(each) for each in pixels]
    dataset = load_dataset(saved(images))
    np.testing.assert_array_equal(dataset.x, pixels)
    assert dataset.y.tolist() == [1, 0, 1, 1]
    assert dataset.class_names == ("cat", "dog")
    gray = [each.convert("L") for each in images]
    np.testing.assert_array_equal(load_dataset(saved(gray)).x[..., 0], [np.asarray(each) for each in gray])
    for bad, message in (
        (images[0].resize((3, 3)), "row 2, column 'img' is 3x3 pixels, and row 0 6x5"),
        (images[0].convert("RGBA"), "row 2, column 'img' has mode RGBA"),
    ):
        with pytest.raises(DataError, match=message):
            load_dataset(saved([*images[:2], bad, images[3]]))


def test_arrays_of_huggingface(hub, tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    hub.Dataset.from_dict({"v": x.tolist(), "y": [0, 1, 0, 1]}).save_to_disk(tmp_path / "d")
    np.testing.assert_array_equal(load_dataset(f"hf:{tmp_path}/d").x, x)


def test_what_the_hub_does_not_know(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=re.escape(f"hf:{tmp_path}/none cannot be loaded (")):
        load_dataset(f"hf:{tmp_path}/none")
