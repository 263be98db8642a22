"""How many shadow models are enough? Every attack within disjoint parts of one pool, from few models to all of them."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lira.attacks import FewModelsWarning, UnfitPoolError
from lira.attacks.suite import ATTACKS, Pool
from lira.metrics import LearningPoint, learning_curve
from lira.reporting.document import learning_document
from lira.reporting.measured import LOW_FPR
from lira.reporting.plots import plot_learning_curves
from lira.reporting.write import png, write_document
from lira.scoring import pool_of
from lira.signals import SignalArray
from lira.store.errors import RunError
from lira.store.run import Run

__all__ = ["RULE", "curves_of", "enough", "write_curves"]

RULE = (
    "enough: the smallest number from which on the shortfall of TPR against the largest number tried stays below 5 % of "
    "it, at the upper end of the shortfall's 95 % interval"
)
# Examples on which an attack is tried for whether it can do with so few models.
TRIAL = 8


def curves_of(
    pool: Pool, *, fpr: float = 1e-3, attacks: Sequence[str] = tuple(ATTACKS)
) -> dict[str, list[LearningPoint]]:
    """TPR at `fpr` and AUC against the number of models, for every attack that uses shadow models and reads signals alone.

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
        if not ATTACKS[name].uses_shadows or ATTACKS[name].needs or ATTACKS[name].missing(pool) is not None:
            continue
        attack, signal = ATTACKS[name].function, ATTACKS[name].read(pool.signals)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FewModelsWarning)  # the curve is there to show it
            possible = [size for size in sizes if _is_possible(attack, signal, pool.keep, size)]
            if possible:
                curves[name] = learning_curve(attack, signal, pool.keep, possible, fpr=fpr)
    return curves


def enough(run: Run, *, fpr: float = LOW_FPR) -> dict[str, list[LearningPoint]]:
    """`curves_of` a run's usable models, which are written to its enough.json and enough.png, too.

    Warns:
        UserWarning: they cannot be, as in a run of somebody else's.
    """
    curves = curves_of(pool_of(run), fpr=fpr)
    try:
        write_curves(run.path, curves, fpr)
    except RunError as error:
        warnings.warn(f"what is enough is not stored: {error}", stacklevel=2)
    return curves


def write_curves(
    path: str | os.PathLike[str], curves: Mapping[str, Sequence[LearningPoint]], fpr: float
) -> None:
    """Write enough.json and enough.png into a directory; each file whole or not at all."""
    picture = png(plot_learning_curves(curves, fpr))
    write_document(path, "enough.json", learning_document(RULE, curves, fpr), {"enough.png": picture})


def _is_possible(attack: Callable[..., np.ndarray], signal: SignalArray, keep: np.ndarray, size: int) -> bool:
    rows = slice(0, size)
    try:
        attack(np.asarray(signal[rows, slice(0, TRIAL)]), keep[rows, :TRIAL])
    except UnfitPoolError:
        return False
    return True
