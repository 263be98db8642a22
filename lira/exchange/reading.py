"""From anyone's arrays or files to a pool that can be attacked.

Axes are read by position, so nothing is guessed: models, examples, then what the kind of values says (see
`confidences.to_signals`). Without an outside target every model of the pool is attacked by the others.
"""

import dataclasses
import math
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from lira.attacks.suite import Pool
from lira.data.files import Rows, read_array
from lira.exchange.confidences import (
    KINDS,
    as_keep,
    as_labels,
    convert_models,
    located,
    pair_order,
)
from lira.membership import pair_rows, related_rows
from lira.metrics.coins import check_coins
from lira.numbers import as_array
from lira.scoring import HELD
from lira.signals import ModelRows, replace_saturated_alike

__all__ = ["Audit", "AuditError", "Values", "read_audit"]

# An array, or the file that holds one: npy, npz (FILE.npz:name), Zarr or CSV.
Values = np.ndarray | str | os.PathLike[str]


class AuditError(ValueError):
    """Arrays that cannot be audited; the message names the file, or the argument, and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Audit:
    """A pool to attack, and what is known about it besides."""

    pool: Pool
    labels: np.ndarray | None = None  # int32 [N]
    member: np.ndarray | None = None  # bool [T, N], of the outside targets
    models: np.ndarray | None = None  # int [M], the row of each in the files, where they were paired
    accuracies: np.ndarray | None = (
        None  # float [2, M + T], of the pool and then of targets, on members and others
    )
    population_labels: np.ndarray | None = None  # int32 [N_population]

    def __post_init__(self) -> None:
        """Raise AuditError unless outside targets come with their own memberships, and these with targets."""
        outside = None if self.pool.target is None else tuple(self.pool.target["phi"].shape[:2])
        given = None if self.member is None else np.shape(self.member)
        if outside != given:
            raise AuditError(
                f"member must be [targets, examples] like the pool's outside targets, {outside or 'of which it has none'}; "
                f"got {'none' if given is None else f'shape {given}'}"
            )

    @property
    def membership(self) -> np.ndarray:
        """Of what is attacked: bool `[T, N]`, or `[M, N]` without an outside target."""
        return self.pool.keep if self.member is None else self.member


def read_audit(
    given: Mapping[str, Values | None], *, independent: bool = False, trust_order: bool = False
) -> Audit:
    """Check and convert the arrays of an audit.

    Rows of `keep` that are complementary pairs are brought together, so that a target's mate can be left out with it.

    Args:
        given: arrays, or the files that hold them, by the argument's name of `audit`; one of `KINDS`, and keep.
        independent: declares that each membership of what is attacked (of one model of each pair) was drawn by a coin
            of its own, all of one probability: memberships cannot show it. Without it no epsilon is claimed, and models
            that are no pairs are attacked with `leave="one"`.
        trust_order: declares that values, labels and memberships are of the same examples in the same order; what
            speaks against it is then a warning.

    Raises:
        AuditError: arrays do not fit each other, or hold what cannot be: NaN, probabilities in place of logits, one
            class or one side of membership only, labels or memberships that the values contradict.
        FileError: a file cannot be read.
    """
    files = {name: _opened(name, values) for name, values in given.items() if values is not None}
    kind = _kind_of(files)
    values = files[kind]
    shape = values.array.shape
    if len(shape) < 2:
        raise AuditError(f"{values.name}: must be [models, examples, ...]; got shape {tuple(shape)}")
    M, N = shape[:2]
    _check_turned(files["keep"], values, files.get("labels"))
    labels = _labels(files.get("labels"), N)
    keep = _membership(files["keep"], (M, N))
    _check_axes(keep, values.name)
    member, sources = None, [values]
    if "target" in files:
        target = _as_rows(files["target"], len(shape))
        if target.array.shape[1:] != tuple(shape[1:]):
            raise AuditError(
                f"{target.name}: has shape {tuple(target.array.shape)}, and {values.name} {tuple(shape)}: all axes but the first "
                f"must agree"
            )
        member = _membership(files["member"], (target.array.shape[0], N))
        sources.append(target)
    _check_sides(keep, member, files["keep"].name)
    if independent:
        held, name = (keep, "keep") if member is None else (member, "member")
        with located(files[name].name, AuditError):
            check_coins(held, labels)
    signals, correct = _convert(kind, sources, labels, (keep, member), trust_order=trust_order)
    points, known = _population(files, kind, M, len(shape)) if "population" in files else (None, None)
    # Of pool and population alike, which are ranked among each other.
    replace_saturated_alike(
        [each for each in (signals["phi"], points) if each is not None], _precision(values.array)
    )
    if member is not None:
        _check_relations(keep, member, files["member"].name)
    target_signals = None if member is None else {name: rows[M:] for name, rows in signals.items()}
    pool = Pool(
        {name: rows[:M] for name, rows in signals.items()},
        keep,
        target_signals,
        labels=labels if labels is not None and (labels >= 0).all() else None,
        independent=independent,
    )
    if points is not None:
        theirs = points[M:] if "target_population" in files else None
        pool = dataclasses.replace(pool, population=points[:M], target_population=theirs)
    held = keep if member is None else np.concatenate([keep, member])
    accuracies = None if correct is None else np.stack([_share(correct, held), _share(correct, ~held)])
    audit = Audit(pool, labels, member, accuracies=accuracies, population_labels=known)
    return audit if member is not None else _paired(audit)


def _kind_of(files: Mapping[str, "_File"]) -> str:
    """Which of `KINDS` is given; AuditError where what else is given does not go with it."""
    kinds = [kind for kind in KINDS if kind in files]
    if len(kinds) != 1 or "keep" not in files:
        raise AuditError(f"an audit needs keep and one of {', '.join(KINDS)}; got {', '.join(files)}")
    needs = [("target", "member"), ("member", "target"), ("population_labels", "population")]
    needs += [("target_population", "target"), ("target_population", "population")]
    if "target" in files:
        needs.append(("population", "target_population"))
    for one, other in needs:
        if one in files and other not in files:
            one, other = one.replace("_", "-"), other.replace("_", "-")
            raise AuditError(f"--{one} is given without --{other}: it needs that too")
    return kinds[0]


def _population(
    files: Mapping[str, "_File"], kind: str, num_models: int, axes: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """What phi is of the pool's models, and of targets after them, at the points of a population; and these points' labels."""
    points = [files["population"]]
    if points[0].array.shape[0] != num_models:
        raise AuditError(
            f"{points[0].name}: must hold the pool's {num_models} models; got {points[0].array.shape[0]} rows"
        )
    if "target_population" in files:
        points.append(_as_rows(files["target_population"], axes))
    labels = _labels(files.get("population_labels"), points[0].array.shape[1])
    return _convert(kind, points, labels)[0]["phi"], labels


# --- From files to arrays -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _File:
    """An opened array and where it is, for messages: its file, or its argument's name."""

    name: str
    array: Rows


def _opened(name: str, values: Values) -> _File:
    if isinstance(values, str | os.PathLike):
        return _File(str(values), read_array(values))
    with located(name, AuditError):
        return _File(name, as_array(values))


def _as_rows(file: _File, axes: int) -> _File:
    """A target as one of T: where it has an axis less than the pool it is the only one."""
    if len(file.array.shape) == axes - 1:
        return _File(file.name, as_array(file.array)[None])
    if len(file.array.shape) != axes:
        raise AuditError(
            f"{file.name}: must have the {axes} axes of the pool, or one less for a single target; got shape "
            f"{tuple(file.array.shape)}"
        )
    return file


def _membership(file: _File, shape: tuple[int, int]) -> np.ndarray:
    """Bool of that shape, `[T, N]`; `[N]` is a single target's."""
    values = as_array(file.array)
    if values.ndim == 1 and shape[0] == 1:
        values = values[None]
    if values.shape == (shape[1], 1) and shape[0] == 1:
        values = values.T
    if values.shape != shape:
        turned = ": transpose it" if values.shape == shape[::-1] else ""
        if not turned and values.dtype.kind in "iu" and values.size and 1 < values.max() < shape[1]:
            turned = ": of indices of members make a mask, mask = np.zeros(N, bool), mask[indices] = True"
        raise AuditError(
            f"{file.name}: must be [{shape[0]}, {shape[1]}], models and examples as in the values; got shape "
            f"{values.shape}{turned}"
        )
    with located(file.name, AuditError):
        return as_keep(values, "membership")


def _labels(file: _File | None, num_examples: int) -> np.ndarray | None:
    if file is None:
        return None
    with located(file.name, AuditError):
        return as_labels(as_array(file.array), num_examples)


def _check_turned(keep: _File, values: _File, labels: _File | None) -> None:
    """Raise AuditError where values have examples first and memberships models, as these or the labels say."""
    held, (M, N) = as_array(keep.array), values.array.shape[:2]
    if M == N or held.shape != (N, M):
        return
    count = None if labels is None else as_array(labels.array).size
    # Rows of models are complementary pairs, where they are anything.
    if count == M or (count is None and len(pair_rows(held != 0)) == N):
        raise AuditError(
            f"{values.name}: must be [models, examples, ...], [{N:,}, {M:,}] as {keep.name} is; got shape "
            f"{tuple(values.array.shape)}: swap its first two axes"
        )


def _check_axes(keep: np.ndarray, name: str) -> None:
    """Models and examples in each other's places: columns are complementary pairs, which chance makes of none of so many."""
    M, N = keep.shape
    if max(N, 20) < M and len(pair_rows(keep.T)) == N:
        raise AuditError(
            f"{name}: holds {M:,} models of {N:,} examples, of which each has a complementary mate: models and examples have "
            f"changed places, so transpose values and memberships"
        )
    if M > N:
        warnings.warn(
            f"{name}: is read as {M:,} models of {N:,} examples: if it is the other way round, transpose values and memberships",
            stacklevel=4,
        )


def _check_sides(keep: np.ndarray, member: np.ndarray | None, name: str) -> None:
    """What is attacked needs members and non-members, and an attack needs models that have not seen an example."""
    if keep.all():
        raise AuditError(f"{name}: is true everywhere: no example has a model that was not trained on it")
    if member is None and not keep.any():
        raise AuditError(f"{name}: is false everywhere: give the attacked model by --target and --member")
    attacked, what = (keep, "model") if member is None else (member, "target")
    for row, held in enumerate(attacked):
        if held.all() or not held.any():
            raise AuditError(
                f"{name if member is None else '--member'}: {what} {row} has {'only' if held.all() else 'no'} members: "
                f"an audit needs members and non-members"
            )


def _check_relations(keep: np.ndarray, member: np.ndarray, name: str) -> None:
    """A target that is one of the pool's models, or the mate or twin of one, is given away by it."""
    related = related_rows(keep, member)
    if related is not None:
        raise AuditError(
            f"{name}: target {related[0]}'s memberships are much more like those of model {related[1]} of the pool, or "
            f"opposite to them, than other models' are: it is that model, or its twin or mate; leave model {related[1]} "
            f"out of the pool"
        )


def _convert(
    kind: str,
    sources: Sequence[_File],
    labels: np.ndarray | None,
    keeps: Sequence[np.ndarray | None] = (None, None),
    *,
    trust_order: bool = False,
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Phi of all rows of the sources, and the entropies where they say what all classes get.

    Each float32 `[rows, N, Q]`, phi infinite where it is saturated; one row of the sources is in memory at a time. And what is classified right,
    bool `[rows, N]`, where that is known.
    """
    first = sources[0]
    count = sum(each.array.shape[0] for each in sources)
    signals: dict[str, np.ndarray] = {}
    row, right = 0, []
    for file, keep in zip(sources, keeps, strict=False):
        if file.array.shape[1:] != first.array.shape[1:]:
            raise AuditError(
                f"{file.name}: has shape {tuple(file.array.shape)}, and {first.name} {tuple(first.array.shape)}: all "
                f"axes but the first must agree"
            )
        models = ((f"model {m}", as_array(file.array[m])) for m in range(file.array.shape[0]))
        with located(file.name, AuditError):
            for converted, correct in convert_models(kind, models, labels, keep, trust_order=trust_order):
                if not row:
                    signals = {name: _room((count, *each.shape)) for name, each in converted.items()}
                for name, each in converted.items():
                    signals[name][row] = each
                right.append(correct)
                row += 1
    return signals, None if any(each is None for each in right) else np.stack(right)


def _precision(values: Rows) -> np.dtype:
    """In which confidences or losses `[M, ...]` were stored."""
    given = as_array(values[0]).dtype
    return given if jnp.issubdtype(given, jnp.floating) else np.dtype(np.float64)


def _share(correct: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Of the examples among which each model is asked the share that it gets right, float `[rows]`; NaN without any."""
    with np.errstate(invalid="ignore"):
        return (correct & among).sum(axis=1) / among.sum(axis=1)


def _room(shape: tuple[int, ...]) -> np.ndarray:
    """For float32 values of a shape: in memory, or in a file without a name, gone with the array, where they are many."""
    if 4 * math.prod(shape) <= HELD:
        return np.empty(shape, np.float32)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=shape)


def _paired(audit: Audit) -> Audit:
    """The audit with complementary rows side by side; rows without a mate are left out."""
    pool = audit.pool
    order = pair_order(pool.keep, list(map(str, range(len(pool.keep)))), "models ")
    if order is None or np.array_equal(order, np.arange(len(pool.keep))):
        return audit
    paired = dataclasses.replace(
        pool,
        signals={name: ModelRows(rows, order) for name, rows in pool.signals.items()},
        keep=pool.keep[order],
        population=None if pool.population is None else ModelRows(pool.population, order),
    )
    accuracies = None if audit.accuracies is None else audit.accuracies[:, order]
    return dataclasses.replace(audit, pool=paired, models=order, accuracies=accuracies)
