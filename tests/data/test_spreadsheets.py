"""Tables as spreadsheets, pandas and R write them: read rightly, or refused with what to do, and never otherwise."""

import gzip

import numpy as np
import pytest

from lira.data.dataset import DataError
from lira.data.sources import load_dataset

TABLE = "a,b,label\n0.5,1,x\n1.5,2,y\n2.5,4,x\n"
X = np.array([[0.5, 1], [1.5, 2], [2.5, 4]], np.float32)


@pytest.fixture
def load(tmp_path):
    def load(content, options=""):
        place = tmp_path / "table.csv"
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_dataset(f"csv:{place}{options}")

    return load


@pytest.mark.parametrize(
    "content",
    [
        TABLE.encode("utf-16"),  # Excel's "Unicode text"
        TABLE.replace(",", "|"),
        "sep=;\r\n" + TABLE.replace(",", ";").replace("\n", "\r\n"),
        TABLE + ",,\n\n , ,\n",  # rows that were deleted
        TABLE.replace("\n", ",\n"),  # a column that was deleted
        "a,b,label\n" + TABLE.split("\n", 1)[1].replace("\n", ",\n"),
        TABLE.replace("label", "Label"),
        TABLE.replace("\n", "\r"),
    ],
)
def test_what_other_programs_write_is_the_same_table(load, content):
    dataset = load(content)
    np.testing.assert_array_equal(dataset.x, X)
    assert (dataset.y.tolist(), dataset.class_names) == ([0, 1, 0], ("x", "y"))


def test_decimal_commas_are_numbers_where_that_is_said(load):
    """They were categories, one for each number."""
    table = TABLE.replace(",", ";").replace(".", ",")
    np.testing.assert_array_equal(load(table, ",decimal_comma").x, X)
    with pytest.raises(
        DataError, match=r"row 1, column 'a' holds '0,5': a number\? add decimal_comma, or call"
    ):
        load(table)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (("1,000", "2,000", "3,000"), "write it as 1000, or add decimal_comma if it is 1.000"),
        (
            ("$0.5", "$1", "$2"),
            "holds '$0.5': a number? write it as 1234.5, or call the column one of words by",
        ),
        (("5 %", "10 %", "20 %"), "holds '5 %': a number?"),
        (("1.234,5", "1.000", "2"), "holds '1.234,5': a number?"),
        (("0x1f", "0x2a", "7"), "holds '0x1f': a number?"),
        (("1_000", "2_000", "3"), "holds '1_000': a number?"),
        (("1.5D+00", "2.5D-01", "3"), "holds '1.5D+00': a number?"),
        (("\u22121.5", "2.5", "3"), "holds '\u22121.5': a number?"),
        (("2024-01-05", "2024-02-07", "1999-12-31"), "holds '2024-01-05', a date or a time: make a number"),
        (("2024-01-05 10:30:00", "2024-02-07T10:30Z", "1999-12-31"), "a date or a time"),
        (("5.1.2024", "7/2/24", "31.12.1999"), "holds '5.1.2024', a date or a time"),
        (("10:30", "9:05 pm", "23:59:59.5"), "holds '10:30', a date or a time"),
    ],
)
def test_numbers_for_people_are_no_categories(load, cells, message):
    table = "a,y\n" + "".join(f'"{cell}",{row % 2}\n' for row, cell in enumerate(cells))
    with pytest.raises(DataError) as error:
        load(table)
    assert message in str(error.value)
    assert load(table, ",categorical=a").x.shape == (3, 3)


@pytest.mark.parametrize("empty", ["#N/A", "<NA>", "None", "NaT"])
def test_what_says_empty_is_no_category_unless_that_is_said(load, empty):
    table = f"a,y\nred,0\n{empty},1\nred,0\n"
    with pytest.raises(DataError, match=r"row 2, column 'a' holds .*: fill it in, .* by categorical=a"):
        load(table)
    assert load(table, ",categorical=a").x.shape == (3, 2)


@pytest.mark.parametrize(
    "table",
    [
        "5.1,3.5,setosa\n4.9,3.0,versicolor\n",  # label=setosa took the first row for names
        "39,State-gov,77516,setosa\n50,Private,83311,versicolor\n",
        "0,0,setosa\n1,2,no\n",
    ],
)
def test_a_table_without_a_header_is_told_so(load, table):
    with pytest.raises(DataError, match=r"has no header, but .*: name the columns in its first line"):
        load(table, ",label=setosa")


def test_names_of_pandas_that_are_numbers_are_a_header(load):
    assert load("0,1,label\n5,6,x\n7,8,y\n").x.tolist() == [[5, 6], [7, 8]]
    assert load("2019,2020,label\n5,6,x\n7,8,y\n").x.tolist() == [[5, 6], [7, 8]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "a,label\nr1,5,x\nr2,6,y\n",
            "has one name less in its header than cells in its rows, as R writes row names",
        ),
        ("# made by me\na,b,label\n1,2,x\n", "begins with the line '# made by me': its first line must name"),
        (gzip.compress(TABLE.encode(), mtime=0), "is compressed: unpack it"),
        (b"PK\x03\x04\x00\xff", "is a zip archive, as Excel's own files are: save it as CSV"),
        ("a,y\n1,0\n1e300,1\n", "row 2, column 'a' holds 1e+300, which 32 bits do not"),
        ("a,y\n1,no\n2,no\n", "holds the label no in every row"),
    ],
)
def test_what_to_do_is_said(load, content, message):
    with pytest.raises(DataError) as error:
        load(content)
    assert message in str(error.value)


def test_numbers_that_float32_holds_as_one_are_refused(load):
    """Identifiers and times: they were a column of one number."""
    for first, step in ((10**18, 1), (1_700_000_000, 1)):
        table = "a,y\n" + "".join(f"{first + step * row},{row % 2}\n" for row in (3, 0, 1, 2))
        with pytest.raises(
            DataError, match=r"column 'a' holds numbers like 1.*: add standardise, or leave it out"
        ):
            load(table)
    times = "a,y\n" + "".join(f"{1_700_000_000 + row},{row % 2}\n" for row in (3, 0, 1, 2))
    x = load(times, ",standardise").x.ravel()
    np.testing.assert_allclose(x, (np.array([3, 0, 1, 2]) - 1.5) / np.std([0, 1, 2, 3]), rtol=1e-6)
    assert load("year,y\n2020,0\n2024,1\n").x.ravel().tolist() == [2020, 2024]


def test_columns_that_name_the_rows_are_told(load):
    rows = range(21)
    with pytest.warns(
        UserWarning, match="the column without a name, as pandas writes its index, is left out"
    ):
        dataset = load("Unnamed: 0,a,y\n" + "".join(f"{row},{row % 4},{row % 2}\n" for row in rows))
    assert dataset.x.shape == (21, 1)
    with pytest.warns(
        UserWarning, match="column 'id' numbers the rows: if it names them, leave it out by drop=id"
    ):
        load("id,y\n" + "".join(f"{row + 1},{row % 2}\n" for row in rows))
    with pytest.warns(UserWarning, match="column 'name' holds another word in each row"):
        load("name,y\n" + "".join(f"n{row},{row % 2}\n" for row in rows))
    with pytest.warns(
        UserWarning, match="differ in nothing but capitals, and are classes of their own: No, no, yes"
    ):
        load("a,y\n" + "".join(f"{row * 2},{['no', 'No', 'yes'][row % 3]}\n" for row in rows))
