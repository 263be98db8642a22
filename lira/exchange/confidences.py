"""Anyone's confidences: models' values become signals, and what does not fit labels or memberships is refused."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lira.learning.logits import (
    BoundedWarning,
    blocks_of,
    entropies_of_logits,
    lie_in_unit_interval,
    signals_of_logits,
    sum_to_one,
)
from lira.membership import pair_rows
from lira.metrics.alignment import member_z, require_aligned
from lira.numbers import as_array, native_floats
from lira.signals import phi_from_confidences, phi_from_losses, phi_from_probabilities

__all__ = [
    "KINDS",
    "as_keep",
    "as_labels",
    "convert_models",
    "located",
    "pair_order",
    "to_signals",
]

KINDS = ("phi", "logits", "confidences", "losses")
# Fewer values than these may all lie between 0 and 1 by chance.
BY_CHANCE = 20


def convert_models(
    kind: str,
    models: Iterable[tuple[str, np.ndarray]],
    labels: np.ndarray | None,
    keep: np.ndarray | None = None,
    *,
    trust_order: bool = False,
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray | None]]:
    """Turn the values of models into signals, one by one; after the last, see that all fit labels and memberships.

    Args:
        kind: one of `KINDS`.
        models: the name of each, for messages, and its values, number `[N, ...]`.
        labels: int `[N]`.
        keep: bool `[M, N]`, a row for each; None: not known.
        trust_order: see `require_aligned`.

    Yields:
        Of each model what `to_signals` returns.

    Raises:
        ValueError: as `to_signals`, naming the model, and as `require_aligned`.
    """
    accuracy, z = [], []
    for index, (name, values) in enumerate(models):
        with located(name, ValueError):
            signals, correct = to_signals(kind, values, labels)
        if keep is not None:
            held = keep[index] if keep[index].any() else ~keep[index]
            accuracy.append(np.nan if correct is None else correct[held].mean())
            z.append(member_z(signals["phi"], keep[index]))
        yield signals, correct
    if keep is not None:
        require_aligned(np.array(accuracy), np.array(z), keep, labels, trust_order=trust_order)


def to_signals(
    kind: str, values: np.ndarray, labels: np.ndarray | None
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Turn one model's values into phi, and into entropies where they say what all classes get.

    What the axes mean follows from the kind alone, but for confidences:

    - phi, losses: `[N]`, or `[N, Q]` with Q queries.
    - logits: `[N, C]` or `[N, Q, C]`; `[N]`, `[N, 1]` or `[N, Q, 1]` are one logit of a binary classifier, for
      class 1. Two axes are never queries of one logit.
    - confidences: `[N]`, `[N, Q]` or `[N, Q, 1]` of the label's class; where labels are given and the last axis holds a
      column for each class of theirs, or more, whole probability vectors `[N, C]` or `[N, Q, C]`, which sum to 1.

    Args:
        kind: one of `KINDS`.
        values: number `[N, ...]`.
        labels: int `[N]`; logits and probability vectors need them.

    Returns:
        Signals by name, float64 `[N, Q]`: phi, infinite where a confidence is saturated (see
        `signals.replace_saturated`); from logits and from whole probability vectors also entropy and modified_entropy in
        nats, in which a probability of 0 counts as the smallest float64. And whether the clean query, the first, is
        classified right, bool `[N]`, None where only the label's class is known.

    Raises:
        ValueError: the axes or labels do not fit, a value is NaN or impossible for its kind, phi or a logit is infinite,
            logits look like probabilities, or whole probability vectors have no labels.

    >>> signals, correct = to_signals("logits", np.array([[2.0, 5.0], [1.0, 0.0]]), np.array([1, 1]))
    >>> print(signals["phi"].tolist(), correct)
    [[3.0], [-1.0]] [ True False]
    """
    kind, values, known = _with_axes(kind, as_array(values), labels)
    if kind in ("phi", "logits"):
        _check_finite(kind, values)
    if kind in ("phi", "losses", "confidences"):
        convert = {"losses": phi_from_losses, "confidences": phi_from_confidences}.get(kind)
        phi = np.asarray(convert(values) if convert else values, np.float64)
        _check_nan(phi)
        if kind == "phi" and phi.size >= BY_CHANCE and phi.min() >= 0 and phi.max() <= 1:
            raise ValueError(
                "looks like confidences, for all of it lies in [0, 1], and phi is log(p / (1 - p)), of any size and sign: give it "
                "as confidences"
            )
        return {"phi": phi}, None
    signals = {name: np.empty(values.shape[:2]) for name in ("phi", "entropy", "modified_entropy")}
    correct = np.empty(len(values), bool)
    for block in blocks_of(values):
        part = native_floats(values[block])
        asked = np.broadcast_to(known[block, None], part.shape[:2])
        if kind == "probabilities":
            phi, right = phi_from_probabilities(part, asked), part[:, 0].argmax(axis=-1) == known[block]
            logits = np.log(np.maximum(part.astype(np.float64), np.finfo(np.float64).tiny))
            found = {"phi": phi, **entropies_of_logits(logits, asked)}
        else:
            found, right = signals_of_logits(part, asked)
        for name, each in found.items():
            signals[name][block] = each
        correct[block] = right
    _check_nan(signals["phi"])
    return signals, correct


def pair_order(keep: np.ndarray, names: Sequence[str], kind: str = "") -> np.ndarray | None:
    """The order of models, int `[m]`, that brings complementary pairs together; None where there are no pairs.

    Args:
        keep: bool `[M, N]`.
        names: of the models, for the warning.
        kind: stands before the names.

    Warns:
        UserWarning: naming those that are left out, because the others are pairs and their mate is missing.
    """
    order = pair_rows(keep)
    if not len(order):
        return None
    lost = [names[m] for m in sorted(set(range(len(keep))) - set(order.tolist()))]
    if lost:
        warnings.warn(
            f"{kind}{', '.join(lost)}: left out, because the other models are complementary pairs and the mate is missing",
            stacklevel=4,
        )
    return order


@contextlib.contextmanager
def located(where: object, error_type: type[ValueError]) -> Iterator[None]:
    """Turn a ValueError into one of a type whose message begins with where it was."""
    try:
        yield
    except ValueError as error:
        raise error_type(f"{where}: {error}") from error


def _with_axes(
    kind: str, values: np.ndarray, labels: np.ndarray | None
) -> tuple[str, np.ndarray, np.ndarray]:
    """The kind, "probabilities" for whole vectors of confidences; values `[N, Q]`, or `[N, Q, C]` of vectors; labels.

    Where the kind needs no labels, they are empty.
    """
    if labels is not None and len(labels) != len(values):
        raise ValueError(
            f"has {len(values):,} rows, but there are {len(labels):,} labels: give each row its own"
        )
    axes = values.ndim
    if kind == "confidences" and axes in (2, 3):
        # Fewer columns than classes are queries.
        classes = 2 if labels is None else max(2, int(labels.max()) + 1)
        if values.shape[-1] >= classes and (labels is not None or axes == 3):
            if labels is None or not sum_to_one(values):
                raise ValueError(
                    f"has a shape of {values.shape} for a model, and probability vectors need labels and rows that sum to 1; "
                    f"confidences of the label alone, beside labels of {classes} classes, are [N, Q, 1]"
                )
            kind = "probabilities"
        elif axes == 3 and values.shape[-1] == 1:
            values, axes = values[..., 0], 2
        elif axes == 2 and labels is None and values.shape[-1] > 1 and sum_to_one(values):
            raise ValueError(
                "looks like whole probability vectors, for every row sums to 1: give labels beside them, or the "
                "probability of the label alone"
            )
    most = 3 if kind in ("logits", "probabilities") else 2
    if not 1 <= axes <= most:
        wanted = {"logits": "[N], [N, C] or [N, Q, C]"}.get(kind, "[N] or [N, Q]")
        raise ValueError(f"has a shape of {values.shape} for a model; {kind} are {wanted}")
    if kind in ("phi", "losses", "confidences"):
        return kind, values if axes == 2 else values[:, None], np.empty(0, np.int32)
    if labels is None:
        raise ValueError(f"{kind} need labels: give them, or the label's own confidence")
    if axes == 1:
        values = values[:, None]
    if values.ndim == 2:
        values = values[:, None, :]  # one query
    C = values.shape[-1]
    if labels.max() >= max(C, 2):
        raise ValueError(f"has {C} classes on its last axis, but labels go up to {labels.max()}")
    if kind == "logits":
        _check_unbounded(values)
    return kind, values, as_array(labels).astype(np.int32)


def as_keep(values: np.ndarray, name: str = "keep") -> np.ndarray:
    """Membership as bool, from booleans or numbers that are 0 or 1.

    Raises:
        ValueError: another value, such as an index of a member.
    """
    values = as_array(values)
    if values.dtype == bool:
        return values
    if not np.isin(values, (0, 1)).all():
        bad = values[~np.isin(values, (0, 1))][0]
        raise ValueError(
            f"{name} must be true or false (1 or 0) for every example; got {bad:g}: not indices of members"
        )
    return values == 1


def as_labels(values: np.ndarray, num_examples: int) -> np.ndarray:
    """Labels as int32 `[N]`.

    Raises:
        ValueError: another shape, or a label that is no class number.
    """
    values = as_array(values)
    if 1 in values.shape and values.ndim == 2:
        values = values.ravel()
    if values.shape != (num_examples,):
        raise ValueError(
            f"labels must be [N] = [{num_examples}], one an example; got shape {values.shape}: argmax one-hot rows"
        )
    whole = np.isfinite(values) & (values >= 0) & (values < 2**31) & (values == np.floor(values))
    if not whole.all():
        row = int(whole.argmin())
        raise ValueError(f"labels[{row}] is {values[row]:g}, not a class number: use 0, 1, ...")
    return values.astype(np.int32)


def _check_unbounded(logits: np.ndarray) -> None:
    """Raise ValueError where all of logits `[N, Q, C]` could be probabilities; warn where they could be of a sigmoid."""
    if not lie_in_unit_interval(logits):
        return
    if logits.shape[-1] == 1:
        raise ValueError(
            "looks like probabilities of class 1 (in [0, 1]), not its logits: give log(p / (1 - p)), or both classes as "
            "confidences [1 - p, p]"
        )
    if sum_to_one(logits):
        raise ValueError(
            "looks like probabilities (in [0, 1], summing to 1), not logits: give it as confidences, of "
            'lira.audit_training by answers="probabilities"'
        )
    # That all are one number is no sigmoid's doing.
    if logits.size >= BY_CHANCE and logits.min() < logits.max():
        warnings.warn(
            "all logits of a model lie in [0, 1], as what a sigmoid gives does, and logits are of any size: give what goes into "
            "the sigmoid, or the audit sees less than the model gives away",
            BoundedWarning,
            stacklevel=2,
        )


def _check_finite(kind: str, values: np.ndarray) -> None:
    """Raise ValueError at the first infinity of phi `[N, Q]` or logits `[N, Q, C]`: what it stands for is not known."""
    for block in blocks_of(values):
        if (infinite := np.isinf(native_floats(values[block]))).any():
            row, query, *_ = np.argwhere(infinite)[0]
            raise ValueError(
                f"is infinite at example {block.start + row}, query {query}: {kind} must be finite; compute them without "
                f"rounding, or leave that model out"
            )


def _check_nan(phi: np.ndarray) -> None:
    nan = np.isnan(phi)
    if nan.any():
        example, query = np.argwhere(nan)[0]
        raise ValueError(
            f"is NaN at example {example}, query {query} ({int(nan.sum()):,} in all): leave that model out"
        )
