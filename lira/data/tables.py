"""Tables in files, csv: and parquet:, with named columns: categories become one-hot columns, labels class numbers.

    csv:PATH[,OPTION...]      parquet:PATH[,OPTION...]

    label=NAME          the label's column; by default the one called label, target, class or y
    features=A+B        these columns alone
    drop=A+B            all but these
    categorical=A+B     columns of numbers that are names, such as postal codes
    decimal_comma       numbers are written 0,5
    standardise         mean 0 and standard deviation 1 of every column of numbers, over the pool
    test=PATH           a file of held-out examples, of the same columns

A comma or plus sign within a name is written %2C or %2B.
"""

import dataclasses
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np

from lira.data.arrays import is_lost_in_float32
from lira.data.columns import EMPTY, NESTED, Column, with_points
from lira.data.dataset import DataError, Dataset
from lira.data.delimited import is_unnamed, read_rows, split_header
from lira.data.paths import expand, one_line

__all__ = [
    "LABELS",
    "NESTED",
    "Choice",
    "TableSource",
    "absolute_source",
    "load_table",
    "parse_source",
    "table_dataset",
]

LABELS = ("label", "target", "class", "y")
# A column of more names than these is text or an identifier.
MOST_CATEGORIES = 1000
# Of fewer rows any column may look like an index.
FEW_ROWS = 20
# Options that are there or not.
FLAGS = ("decimal_comma", "standardise")


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which columns are what; empty: by name and contents."""

    label: str = ""
    features: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    standardise: bool = False
    decimal_comma: bool = False


@dataclasses.dataclass(frozen=True)
class TableSource:
    """A source that names a table: its kind, its place, the columns, and what else it says, by option."""

    kind: str
    place: str
    choice: Choice
    others: Mapping[str, str]

    def __str__(self) -> str:
        """As `parse_source` reads it."""
        parts = [f"{self.kind}:{self.place}"]
        for name, value in [*vars(self.choice).items(), *self.others.items()]:
            if value is True:
                parts.append(name)
            elif value:
                words = [value] if isinstance(value, str) else value
                parts.append(f"{name}={'+'.join(quote(word, safe=' /:.-~$') for word in words)}")
        return ",".join(parts)


def parse_source(source: str, others: tuple[str, ...] = ("test",)) -> TableSource:
    """Read a source such as `csv:adult.csv,label=income,standardise`.

    Args:
        source: the whole of it.
        others: options beside those of `Choice`.

    Raises:
        DataError: an option is unknown, given twice, or has no value.
    """
    kind, _, rest = source.partition(":")
    place, *parts = rest.split(",")
    while parts and "=" not in parts[0] and parts[0] not in FLAGS:
        place += f",{parts.pop(0)}"  # a comma in the path
    known = [each.name for each in dataclasses.fields(Choice)] + list(others)
    found: dict[str, str] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if name not in known or name in found or (name in FLAGS) == bool(equals) or (equals and not value):
            spelt = ", ".join(each if each in FLAGS else f"{each}=..." for each in known)
            why = "is given twice" if name in found else "is no option"
            raise DataError(
                f"{source!r}: {part!r} {why}: the options are {spelt}; write a comma in a name as %2C"
            )
        found[name] = value
    choice = Choice(
        label=unquote(found.get("label", "")),
        standardise="standardise" in found,
        decimal_comma="decimal_comma" in found,
        **{name: _names(found.get(name, "")) for name in ("features", "drop", "categorical")},
    )
    return TableSource(kind, place, choice, {name: unquote(found[name]) for name in others if name in found})


def absolute_source(source: str) -> str:
    """The source with paths made absolute, `$VARIABLES` and `~` expanded."""
    parsed = parse_source(source)
    others = {name: os.path.abspath(expand(value)) for name, value in parsed.others.items()}
    return str(dataclasses.replace(parsed, place=os.path.abspath(expand(parsed.place)), others=others))


def load_table(source: str) -> Dataset:
    """Load a csv: or parquet: source.

    Raises:
        DataError: one line with the file, the row, the column, and what to do.
    """
    name = absolute_source(source)
    parsed = parse_source(name)
    read = _read_csv if parsed.kind == "csv" else _read_parquet
    files = [parsed.place, *filter(None, [parsed.others.get("test")])]
    return table_dataset([read(file) for file in files], files, parsed.choice, name)


# --- From columns to a data set -------------------------------------------------------------------------------------


def table_dataset(
    tables: list[dict[str, np.ndarray]], files: list[str], choice: Choice, name: str, *, first_row: int = 1
) -> Dataset:
    """Make a data set of one table, or of two, the second held out.

    Args:
        tables: columns by name, each `[N]`: numbers, or strings where some cell is no number.
        files: where they are, for messages.
        choice: which columns are what.
        name: of the data set.
        first_row: the number of the first row, for messages.

    Raises:
        DataError: a column is missing, or a cell is empty or unfit; the message names file, row and column.
    """
    if choice.decimal_comma:
        tables = [{key: with_points(cells) for key, cells in table.items()} for table in tables]
    label, features = _columns(tables[0], files[0], choice)
    for other, where in zip(tables[1:], files[1:], strict=True):
        if missing := [each for each in (label, *features) if each not in other]:
            raise DataError(
                f"{where} has no column {missing[0]!r}, which {files[0]} has: give both the same columns"
            )

    def column(name: str) -> list[Column]:
        return [Column(each[name], where, name, first_row) for each, where in zip(tables, files, strict=True)]

    blocks = [_feature(column(each), choice) for each in features]
    x = [np.concatenate(parts, axis=1, dtype=np.float32) for parts in zip(*blocks, strict=True)]
    labels = column(label)
    truth = labels[0].values(mixed=True)
    classes = labels[0].classes(truth)
    y = [each.numbered(each.values(mixed=True), classes) for each in labels]
    held_out = {"x_test": x[1], "y_test": y[1]} if len(x) > 1 else {}
    plain = classes.dtype.kind in "iu" and np.array_equal(classes, np.arange(len(classes)))
    names = () if plain else tuple(map(str, classes.tolist()))
    return Dataset.from_arrays(x[0], y[0], name=name, num_classes=len(classes), class_names=names, **held_out)


def _feature(columns: list["Column"], choice: Choice) -> list[np.ndarray]:
    """What becomes of one column, float `[N, f]`, in the pool and in what is held out."""
    first = columns[0]
    values = [] if first.name in choice.categorical else [each.values() for each in columns]
    if not values or values[0].dtype.kind in "US":
        named = first.name in choice.categorical
        words = [each.words(EMPTY[:1] if named else EMPTY) for each in columns]
        known = np.unique(words[0])
        if len(known) > MOST_CATEGORIES:
            raise DataError(
                f"{first.file}: column {first.name!r} holds {len(known):,} different words: leave it out by "
                f"drop={first.name} if it names the rows; text must be made numbers first"
            )
        if not named and FEW_ROWS < len(known) == len(words[0]):
            _warn_of_names(first, "holds another word in each row")
        one_hot = np.eye(len(known))
        return [one_hot[each.numbered(word, known)] for each, word in zip(columns, words, strict=True)]
    numbers = []
    for each, found in zip(columns, values, strict=True):
        if found.dtype.kind in "US":
            raise each.error(0, f"holds {str(found[0])!r}, and numbers in {first.file}: mend it")
        numbers.append(each.finite(found)[:, None])
    if (
        numbers[0].dtype.kind in "iu"
        and len(numbers[0]) > FEW_ROWS
        and (np.diff(numbers[0][:, 0]) == 1).all()
    ):
        _warn_of_names(first, "numbers the rows")
    if choice.standardise:
        mean, spread = numbers[0].mean(), numbers[0].std()
        numbers = [(each - mean) / (spread or 1.0) for each in numbers]
    elif is_lost_in_float32(numbers[0][:, 0]):
        raise DataError(
            f"{first.file}: column {first.name!r} holds numbers like {numbers[0][0, 0]:.15g}, whose differences 32 bits do "
            f"not hold: add standardise, or leave it out by drop={first.name}"
        )
    return numbers


def _warn_of_names(column: Column, what: str) -> None:
    """Of a column by which a model could learn every row by heart."""
    warnings.warn(
        f"{column.file}: column {column.name!r} {what}: if it names them, leave it out by drop={column.name}",
        stacklevel=6,
    )


def _names(value: str) -> tuple[str, ...]:
    return tuple(unquote(word) for word in value.split("+")) if value else ()


def _columns(table: Mapping[str, np.ndarray], file: str, choice: Choice) -> tuple[str, list[str]]:
    """The label's column, and those of the features in the order of the file."""
    there = ", ".join(table)
    by_small = {name.lower(): name for name in reversed(list(table))}
    label = choice.label or next((by_small[each] for each in LABELS if each in by_small), "")
    if not label:
        raise DataError(
            f"{file} has no column {', '.join(LABELS)}: name the label's as label=NAME of {there}"
        )
    for name in (label, *choice.features, *choice.drop, *choice.categorical):
        if name not in table:
            raise DataError(f"{file} has no column {name!r}: there are {there}")
    chosen = choice.features or tuple(table)
    features = [name for name in table if name in chosen and name != label and name not in choice.drop]
    if label in choice.features:
        raise DataError(f"{file}: {label!r} is both the label and a feature: leave it out of one")
    if not features:
        raise DataError(f"{file} has no column but the label {label!r}: a model needs features")
    return label, features


# --- Files ----------------------------------------------------------------------------------------------------------


def _read_csv(path: str) -> dict[str, np.ndarray]:
    """Columns of words by name, without those that have none."""
    try:
        names, rows = split_header(read_rows(path))
    except OSError:
        raise
    except ValueError as error:
        raise DataError(f"{path} {error}") from error
    named = [place for place, name in enumerate(names) if not is_unnamed(name)]
    if len(named) < len(names):
        warnings.warn(
            f"{path}: the column without a name, as pandas writes its index, is left out", stacklevel=4
        )
    found = [names[place] for place in named]
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise DataError(f"{path} has two columns {twice!r}: rename one")
    return {names[place]: np.array([row[place] for row in rows]) for place in named}


def _read_parquet(path: str) -> dict[str, np.ndarray]:
    """Columns by name, of a file or a directory of them."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError('parquet: needs pyarrow: pip install "lira[parquet]"') from error
    if not Path(path).exists():
        raise DataError(f"{path} is not there: check the path")
    try:
        table = parquet.read_table(path)
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as Parquet ({one_line(error)}): write it anew") from error
    columns = {}
    for name in table.column_names:
        if name.startswith("__index_level_"):
            continue  # pandas' index
        column = table.column(name)
        if arrow.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if column.null_count:
            row = column.is_null().index(True).as_py()
            raise DataError(
                f"{path} row {row + 1}, column {name!r} is empty (null): fill it in, or leave the row out"
            )
        if arrow.types.is_nested(column.type):
            columns[name] = np.full(len(table), NESTED)
        else:
            columns[name] = column.to_numpy()
    return columns
