"""What the measures of forgetting share: checking a pool of unlearned models, and its one trick."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from lira.membership import is_paired
from lira.numbers import as_array, native_floats
from lira.signals import Array

__all__ = ["Ensemble", "as_ensembles", "check_ensembles", "joined_pool", "of_forgotten", "row_of"]


class Ensemble(Protocol):
    """Values of M models, `[M, N, Q]`, that are read a model at a time: an array, or what is stored."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, model: Any, /) -> Any: ...


def as_ensembles(
    keep: Array, forget: Array, **ensembles: Array
) -> tuple[np.ndarray, np.ndarray, *tuple[np.ndarray, ...]]:
    """Check what every measure takes, and make plain arrays of it.

    Args:
        keep: bool `[M, N]`, rows in complementary pairs.
        forget: bool `[N]`.
        ensembles: numbers `[M, N, Q]` by the name that errors call them.

    Returns:
        keep, forget, and the ensembles in their order as `native_floats`.

    Raises:
        ValueError: shapes or types disagree, rows are not paired, the forget set is empty, or a value is not finite.
    """
    arrays = {name: native_floats(array) for name, array in ensembles.items()}
    keep, forget = check_ensembles(keep, forget, **arrays)
    for name, array in arrays.items():
        finite = np.isfinite(array)
        if not finite.all():
            at = np.argwhere(~finite)[0].tolist()
            raise _not_finite(name, at, float(array[tuple(at)]))
    return keep, forget, *arrays.values()


def of_forgotten(
    keep: Array, forget: Array, **ensembles: Ensemble
) -> tuple[np.ndarray, np.ndarray, *tuple[np.ndarray, ...]]:
    """`as_ensembles` of the forget set alone, for ensembles that may be larger than the memory.

    Args:
        keep: bool `[M, N]`, rows in complementary pairs.
        forget: bool `[N]`, true for F examples.
        ensembles: numbers `[M, N, Q]` by the name that errors call them; every row is read once, and checked.

    Returns:
        keep `[M, F]`, true `[F]`, and the ensembles `[M, F, Q]` in their order.

    Raises:
        ValueError: as `as_ensembles`.
    """
    keep, forget = check_ensembles(keep, forget, **ensembles)
    parts = (
        np.stack([row_of(name, ensemble, model)[forget] for model in range(len(keep))])
        for name, ensemble in ensembles.items()
    )
    return keep[:, forget], np.ones(forget.sum(), bool), *parts


def row_of(name: str, ensemble: Ensemble, model: int) -> np.ndarray:
    """What one model says, `[N, Q]`, as `native_floats`; ValueError where a value is not finite."""
    row = native_floats(ensemble[model])
    finite = np.isfinite(row)
    if not finite.all():
        at = np.argwhere(~finite)[0].tolist()
        raise _not_finite(name, [model, *at], float(row[tuple(at)]))
    return row


def _not_finite(name: str, at: Sequence[int], value: float) -> ValueError:
    place = ", ".join(map(str, at))
    return ValueError(f"{name}[{place}] is {value}: leave that model and its mate out of the pool")


def check_ensembles(keep: Array, forget: Array, **ensembles: Ensemble) -> tuple[np.ndarray, np.ndarray]:
    """Keep and forget as plain arrays; ValueError where they, or the ensembles' shapes, do not fit: see `as_ensembles`."""
    keep, forget = as_array(keep), as_array(forget)
    if keep.ndim != 2 or keep.dtype != bool:
        raise ValueError(f"keep must be bool [models, examples]; got {keep.dtype} of shape {keep.shape}")
    if not len(keep) or not is_paired(keep):
        raise ValueError(
            "unlearning is measured on complementary pairs, keep[2p + 1] = ~keep[2p], so that every forgotten example "
            "has models that never held it; the rows of keep are not paired"
        )
    M, N = keep.shape
    if forget.dtype != bool or forget.shape != (N,):
        raise ValueError(
            f"forget must be bool of shape {(N,)}, one an example; got {forget.dtype} of shape {forget.shape}"
        )
    if not forget.any():
        raise ValueError("forget holds no example: mark at least one as forgotten")
    shapes: dict[str, Sequence[int]] = {name: tuple(each.shape) for name, each in ensembles.items()}
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if len(shape) != 3 or shape[:2] != (M, N) or shape != shapes[first] or not shape[2]:
            raise ValueError(
                f"{name} must be [{M} models, {N} examples, values] like keep"
                f"{'' if name == first else f' and {first}'}; got shape {shape}"
            )
    return keep, forget


def joined_pool(
    after: np.ndarray, retrained: np.ndarray, keep: np.ndarray, forget: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Unlearned models that held an example beside retrained ones that never did, of the forget set alone.

    This is a pool in complementary pairs like any other: row m is what the unlearned model m says of the forgotten
    examples that it held, and what the retrained model m says of those that it never held. Both were trained on the
    same rest, and which of the two a row shows of an example is a fair coin. So with the pair left out nothing that
    remains depends on it, and an attack on exact retraining scores at chance.

    Returns:
        The pool `[M, F, Q]`, and bool `[M, F]`, true where it shows the unlearned model.
    """
    held = keep[:, forget]
    return np.where(held[..., None], after[:, forget], retrained[:, forget]), held
