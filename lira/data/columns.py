"""One column of a table: its cells as numbers, words or classes; what is wrong with one names file, row and column."""

import dataclasses
import re
import warnings

import numpy as np

from lira.data.dataset import DataError
from lira.data.delimited import is_number

__all__ = ["EMPTY", "NESTED", "Column", "with_points"]

# How a cell says that it is empty: by pandas, R and spreadsheets, in lower case.
EMPTY = (
    "",
    "na",
    "n/a",
    "nan",
    "-nan",
    "null",
    "none",
    "nat",
    "<na>",
    "#n/a",
    "#n/a n/a",
    "#na",
    "1.#qnan",
    "-1.#ind",
)
# Numbers as people write them: signs of currency, percent, groups of digits, a decimal comma, a minus of typographers; and as
# programs do: 0x1f, 1_000, 1.5D+00.
FOR_PEOPLE = re.compile(
    r"[+\-\u2212]?[$\u20ac\u00a3\u00a5]? ?[+\-\u2212]?\d[\d.,'_\u00a0\u202f ]*([dD][+-]?\d+|[%$\u20ac\u00a3\u00a5])?|0[xX][\da-fA-F]+"
)
DATE = r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2})"
TIME = r"\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?( ?[apAP]\.?[mM]\.?)?(Z|[+-]\d{2}:?\d{2})?"
WHEN = re.compile(rf"({DATE})([ T]{TIME})?|{TIME}")
DECIMAL_COMMA = re.compile(r"([+-]?\d*),(\d+(?:[eE][+-]?\d+)?)")
THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+")
TRUTHS = ("true", "false")
# What stands in a column whose cells are lists, or the like.
NESTED = object()


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
    """One column of a file, `[N]`, and where it is."""

    cells: np.ndarray
    file: str
    name: str
    first_row: int

    def error(self, row: int, what: str) -> DataError:
        """One that names file, row and column."""
        return DataError(f"{self.file} row {row + self.first_row}, column {self.name!r} {what}")

    def words(self, empty: tuple[str, ...] = EMPTY) -> np.ndarray:
        """Its cells as words, none of them one that says `empty`."""
        cells = self.cells
        if cells.dtype == object and cells[0] is NESTED:
            raise DataError(
                f"{self.file}: column {self.name!r} holds lists: leave it out by drop={self.name}, or make columns of it"
            )
        words = np.array([str(cell).strip() for cell in cells.tolist()])
        if (blank := np.isin(np.char.lower(words), empty)).any():
            row = int(blank.argmax())
            what = "is empty: fill it in, or leave the row out"
            if words[row]:
                what = f"holds {str(words[row])!r}: fill it in, leave the row out, or call it a word by categorical={self.name}"
            raise self.error(row, what)
        return words

    def finite(self, values: np.ndarray) -> np.ndarray:
        """Its numbers, whole ones as such, each of which float32 can hold."""
        values = values if values.dtype.kind in "iu" else values.astype(np.float64)
        if not (finite := np.abs(values) <= np.finfo(np.float32).max).all():
            row = int(finite.argmin())
            raise self.error(
                row, f"holds {values[row]:g}, which 32 bits do not: mend it, or leave the row out"
            )
        return values

    def values(self, *, mixed: bool = False) -> np.ndarray:
        """Its cells as numbers where all of them are, else as words; numbers among words only where that may be, `mixed`."""
        if self.cells.dtype.kind in "bui":
            return self.cells
        if self.cells.dtype.kind == "f":
            if (empty := np.isnan(self.cells)).any():
                raise self.error(int(empty.argmax()), "is empty (NaN): fill it in, or leave the row out")
            return self.cells
        words = self.words()
        if np.isin(lower := np.char.lower(words), TRUTHS).all():
            return lower == "true"
        unfit = [row for row, word in enumerate(words.tolist()) if not is_number(word)]
        if unfit and not mixed and all(WHEN.fullmatch(word) for word in words.tolist()):
            raise self.error(
                unfit[0],
                f"holds {str(words[unfit[0]])!r}, a date or a time: make a number of it, as of days since one, leave it out by "
                f"drop={self.name}, or call the column one of words by categorical={self.name}",
            )
        if unfit and not mixed and all(FOR_PEOPLE.fullmatch(word) for word in words.tolist()):
            one = str(words[unfit[0]])
            how = "add decimal_comma" if DECIMAL_COMMA.fullmatch(one) else "write it as 1234.5"
            if THOUSANDS.fullmatch(one):
                how = f"write it as {one.replace(',', '')}, or add decimal_comma if it is {one.replace(',', '.', 1)}"
            raise self.error(
                unfit[0],
                f"holds {one!r}: a number? {how}, or call the column one of words by categorical={self.name}",
            )
        if unfit and len(unfit) < len(words) and not mixed:
            raise self.error(
                unfit[0],
                f"holds {str(words[unfit[0]])!r}, and other rows numbers: mend it, or call the column one of words by "
                f"categorical={self.name}",
            )
        return words if unfit else _numbers(words)

    def classes(self, labels: np.ndarray) -> np.ndarray:
        """The classes of a label, sorted: words, or whole numbers."""
        if labels.dtype.kind == "f":
            if not (whole := labels == np.floor(labels)).all():
                row = int(whole.argmin())
                raise self.error(row, f"holds {labels[row]:g}, and a label is no fraction: name another")
            labels = labels.astype(np.int64)
        classes = np.unique(labels)
        if len(classes) < 2:
            raise DataError(
                f"{self.file}: column {self.name!r} holds the label {classes[0]} in every row, and a data set needs at least 2 "
                f"classes: name another as label=NAME"
            )
        if classes.dtype.kind in "US" and len(set(np.char.lower(classes).tolist())) < len(classes):
            warnings.warn(
                f"{self.file}: labels of column {self.name!r} differ in nothing but capitals, and are classes of their own: "
                f"{', '.join(classes[:10].tolist())}",
                stacklevel=5,
            )
        if len(classes) == len(labels) > 2:
            raise DataError(
                f"{self.file}: every row has a label of its own in column {self.name!r}: name the label's as label=NAME"
            )
        return classes

    def numbered(self, cells: np.ndarray, known: np.ndarray) -> np.ndarray:
        """The position of every cell among known values, ascending, int `[N]`."""
        if (cells.dtype.kind in "US") != (known.dtype.kind in "US"):
            raise self.error(0, f"holds {cells[0]!s}, which no row of the pool has: leave the row out")
        if (new := ~np.isin(cells, known)).any():
            row = int(new.argmax())
            raise self.error(row, f"holds {cells[row]!s}, which no row of the pool has: leave the row out")
        return np.searchsorted(known, cells)


def with_points(cells: np.ndarray) -> np.ndarray:
    """Cells in which numbers with a decimal comma have a point."""
    if cells.dtype.kind not in "US":
        return cells
    return np.array(
        [
            DECIMAL_COMMA.sub(r"\1.\2", each) if DECIMAL_COMMA.fullmatch(each) else each
            for each in cells.tolist()
        ]
    )


def _numbers(words: np.ndarray) -> np.ndarray:
    """Numbers of words, int64 where all of them are whole and fit."""
    try:
        return words.astype(np.int64)
    except (ValueError, OverflowError):
        return words.astype(np.float64)
