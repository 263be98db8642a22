"""Figures as tables of pandas, which is optional."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lira.metrics import Estimate, OperatingPoint

if TYPE_CHECKING:
    import pandas

__all__ = ["cells", "frame"]


def cells(key: str, figure: OperatingPoint | Estimate) -> dict[str, float]:
    """A figure's columns: `key`, and `key_low` and `key_high`, the ends of its interval; of an operating point the TPR."""
    value = figure.tpr if isinstance(figure, OperatingPoint) else figure.value
    return {key: value, f"{key}_low": figure.low, f"{key}_high": figure.high}


def frame(rows: Mapping[str, Mapping[str, object]], index: str, elsewhere: str) -> "pandas.DataFrame":
    """A table of columns by row.

    Args:
        rows: by name.
        index: what the rows are called.
        elsewhere: where the same figures are without pandas.

    Raises:
        ImportError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            f"to_frame makes a table of pandas, which is not installed: pip install pandas; {elsewhere} holds the same "
            f"figures without it"
        ) from error
    return pandas.DataFrame.from_dict(dict(rows), orient="index").rename_axis(index)
