"""Rows of text files whose cells stand apart by commas or the like, as spreadsheets, pandas and R write them."""

import csv
import io
import re
from pathlib import Path

from lira.data.paths import one_line

__all__ = ["SEPARATORS", "is_number", "is_unnamed", "read_rows", "separator_of", "split_header"]

SEPARATORS = ",;\t|"
# Columns that pandas has named, of an index or of nothing at all.
_UNNAMED = re.compile(r"Unnamed: \d+")


def read_rows(path: str | Path) -> list[list[str]]:
    """The rows of a file, cells stripped, without those that are blank; the first is its header, if it has one.

    UTF-8, or UTF-16 with a byte-order mark; cells apart by what the first line has most of: comma, semicolon, tab or bar.
    Excel's line `sep=;` is followed and left out, and so is what stands behind a last separator where no row has anything.

    Raises:
        ValueError: it is no such file; a sentence without its name.
    """
    content = Path(path).read_bytes()
    if content.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")):
        raise ValueError("is compressed: unpack it")
    if content.startswith(b"PK\x03\x04"):
        raise ValueError("is a zip archive, as Excel's own files are: save it as CSV")
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is no UTF-8 ({one_line(error)}): save it as UTF-8") from error
    separator = None
    if told := re.match(r"sep=(.)\r?\n", text):
        separator, text = told[1], text[told.end() :]
    separator = separator or separator_of(re.match(r"[^\r\n]*", text.lstrip("\r\n"))[0])  # pyright: ignore[reportOptionalSubscript]
    try:
        found = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except csv.Error as error:
        raise ValueError(f"cannot be read as CSV ({one_line(error)}): see to its quotes") from error
    rows = [[cell.strip() for cell in row] for row in found]
    rows = [row for row in rows if any(row)]
    if len(rows) > 1:
        longest = max(map(len, rows))
        below = {len(row) for row in rows[1:]}
        if below == {longest} and len(rows[0]) >= longest - 1 and not any(row[-1] for row in rows[1:]):
            rows = [row[:-1] if len(row) == longest and not row[-1] else row for row in rows]
    return rows


def separator_of(line: str) -> str:
    """What stands between the cells of a line; a comma where nothing does."""
    return max(SEPARATORS, key=line.count)


def split_header(rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The names of a table's columns and the rows below, all of one length.

    Raises:
        ValueError: there is no header, or nothing below it, or rows have other lengths; a sentence without the file's name.
    """
    if len(rows) < 2:
        raise ValueError("has no rows below its header: give examples")
    names, below = rows[0], rows[1:]
    lengths = {len(row) for row in below}
    if lengths == {len(names) + 1}:
        raise ValueError(
            "has one name less in its header than cells in its rows, as R writes row names: name the first column, too"
        )
    if len(names) == 1 < max(lengths):
        raise ValueError(
            f"begins with the line {names[0]!r}: its first line must name the columns, apart by commas, semicolons, tabs or |"
        )
    for number, row in enumerate(below, 1):
        if len(row) != len(names):
            raise ValueError(
                f"row {number} has {len(row)} cells, and the header {len(names)}: quote cells that hold commas"
            )
    if _are_data(names):
        raise ValueError(f"has no header, but {', '.join(names[:3])} ...: name the columns in its first line")
    return names, below


def _are_data(names: list[str]) -> bool:
    """Whether a first line holds numbers that are no names: pandas' and those of years are whole, one after the other."""
    numbers = [name for name in names if is_number(name) and any(map(str.isdigit, name))]
    if not numbers or len(numbers) == len(names):
        return bool(numbers)
    whole = [int(name) for name in numbers if name.isascii() and name.isdigit()]
    return len(whole) < len(numbers) or whole != list(range(whole[0], whole[0] + len(whole)))


def is_unnamed(name: str) -> bool:
    """Whether a column has no name but what pandas gave it: its index, mostly."""
    return not name or _UNNAMED.fullmatch(name) is not None


def is_number(word: str) -> bool:
    """Whether a cell is a number as programs write it."""
    try:
        float(word)
    except ValueError:
        return False
    return "_" not in word
