"""How many shadow models are enough? Every attack within disjoint parts of one pool, from few models to all of them."""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Column, Table
from rich.text import Text

from lira.attacks import FewModelsWarning, UnfitPoolError
from lira.attacks.suite import ATTACKS, Pool
from lira.metrics import LearningPoint, enough_models, learning_curve
from lira.metrics.document import estimate_entry, point_entry
from lira.reporting.plots import percent, plot_learning_curves
from lira.reporting.write import png
from lira.store.zarr import write_atomically

__all__ = ["RULE", "curves_of", "table", "write_curves"]

RULE = (
    "enough: the smallest number from which on the shortfall of TPR against the largest number tried stays below 5 % of "
    "it, at the upper end of the shortfall's 95 % interval"
)
# Examples on which an attack is tried for whether it can do with so few models.
TRIAL = 8


def curves_of(
    pool: Pool, *, fpr: float = 1e-3, attacks: Sequence[str] = tuple(ATTACKS)
) -> dict[str, list[LearningPoint]]:
    """TPR at `fpr` and AUC against the number of models, for every attack that uses shadow models.

    Numbers are powers of two from 4, and the whole pool; those that are too few for an attack are left out. An attack
    that compares with a population takes the pool less x itself, since sub-pools have no other.

    Args:
        pool: complementary pairs, without outside targets.
        fpr: a fraction.
        attacks: which ones, of `suite.ATTACKS`.

    Returns:
        By attack, see `metrics.learning_curve`.

    Raises:
        ValueError: the pool is of another design.
    """
    if pool.leave != "pair" or pool.target is not None:
        raise ValueError(
            "sub-pools are cut by complementary pairs that attack one another: this pool is of another design"
        )
    M = len(pool.keep)
    sizes = sorted({2**k for k in range(2, 20) if 2**k <= M} | {M})
    curves = {}
    for name in attacks:
        if not ATTACKS[name].uses_shadows or ATTACKS[name].missing(pool) is not None:
            continue
        attack, signal = ATTACKS[name].function, ATTACKS[name].read(pool.signals)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FewModelsWarning)  # the curve is there to show it
            enough = [size for size in sizes if _is_possible(attack, signal, pool.keep, size)]
            if enough:
                curves[name] = learning_curve(attack, signal, pool.keep, enough, fpr=fpr)
    return curves


def table(curves: Mapping[str, list[LearningPoint]], fpr: float) -> Table:
    """TPR at `fpr` by attack and number of models, and how many are enough."""
    sizes = sorted({point.num_models for points in curves.values() for point in points})
    result = Table(
        Column("attack", overflow="fold", no_wrap=True),
        *(Column(f"{size}", justify="right") for size in sizes),
        "enough",
        title=f"TPR at {100 * fpr:g} % FPR by number of models",
        title_justify="left",
        caption=Text(RULE),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name, points in curves.items():
        by_size = {point.num_models: point.tpr for point in points}
        cells = [_cell(by_size[size]) if size in by_size else "" for size in sizes]
        enough = enough_models(points)
        result.add_row(Text(name), *cells, "more" if enough is None else f"{enough}")
    return result


def write_curves(path: str | os.PathLike[str], curves: Mapping[str, list[LearningPoint]], fpr: float) -> None:
    """Write enough.json and enough.png into a directory; each file whole or not at all."""
    document: dict[str, Any] = {"rule": RULE, "fpr": fpr, "attacks": {}}
    for name, points in curves.items():
        document["attacks"][name] = {
            "enough": enough_models(points),
            "points": [
                {
                    "num_models": int(point.num_models),
                    "num_subpools": int(point.num_subpools),
                    "tpr_at_fpr": point_entry(point.tpr),
                    **estimate_entry("auc", point.auc),
                    **estimate_entry("shortfall", point.shortfall.tpr),
                }
                for point in points
            ],
        }
    write_atomically(Path(path) / "enough.png", png(plot_learning_curves(curves, fpr)))
    write_atomically(Path(path) / "enough.json", json.dumps(document, indent=2, allow_nan=False).encode())


def _is_possible(attack, signal, keep: np.ndarray, size: int) -> bool:
    rows = slice(0, size)
    try:
        attack(np.asarray(signal[rows, slice(0, TRIAL)]), keep[rows, :TRIAL])
    except UnfitPoolError:
        return False
    return True


def _cell(point) -> str:
    if point.status != "ok":
        return point.status
    interval = "" if np.isnan(point.low) else f"\n{100 * point.low:.2f}–{100 * point.high:.2f}"
    return percent(point.tpr) + interval
