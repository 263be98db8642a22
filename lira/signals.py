"""What a model says about an example: the logit-scaled confidence phi that LiRA tests, and the entropies.

From logits, as the engine and the attacks use them (JAX, the dtype of the logits), and from what others keep in place
of logits: losses, confidences, probability vectors, one binary logit (NumPy, float64).
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from numpy.typing import DTypeLike

from lira.numbers import as_array, native_floats

Array = jax.Array | np.ndarray

# How the name of a signal at a checkpoint of training begins.
CHECKPOINT = "phi@"

__all__ = [
    "Array",
    "ModelRows",
    "SaturatedWarning",
    "SignalArray",
    "checkpoint_fraction",
    "checkpoints",
    "entropy",
    "is_correct",
    "logit_scaled_confidence",
    "modified_entropy",
    "phi_from_binary_logits",
    "phi_from_confidences",
    "phi_from_losses",
    "phi_from_probabilities",
    "replace_saturated",
    "replace_saturated_alike",
]


class SaturatedWarning(UserWarning):
    """Confidences of exactly 0 or 1, or losses of 0: what low false-positive rates live on was rounded away."""


class SignalArray(Protocol):
    """Anything that slices to numbers along its example axis: a NumPy array, a lazy `Run.phi`, a Zarr array.

    Slices are of some hundred examples in ascending order: what decompresses large chunks should keep the last one, as
    `Run.phi` does.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, index: tuple[slice, slice], /) -> object: ...


@dataclass(frozen=True, eq=False)
class ModelRows:
    """Some models of a signal, read when their examples are."""

    signal: SignalArray
    rows: np.ndarray  # int [m]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.signal.shape[1:])

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        models, examples = index
        return as_array(self.signal[:, examples])[self.rows[models]]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """All of it."""
        return np.asarray(as_array(self.signal), dtype)[self.rows]


# --- At checkpoints of training --------------------------------------------------------------------------------------


def checkpoint_fraction(name: str) -> float | None:
    """The share of training's epochs after which a signal is taken, 0.25 of "phi@0.25"; None of one that is of the end.

    Raises:
        ValueError: what follows "phi@" is no number between 0 and 1, or is not as Python writes it, so that one
            checkpoint would have two names.

    >>> print(checkpoint_fraction("phi@0.25"), checkpoint_fraction("entropy"))
    0.25 None
    """
    if not name.startswith(CHECKPOINT):
        return None
    try:
        fraction = float(name.removeprefix(CHECKPOINT))
    except ValueError:
        fraction = float("nan")
    if not 0 < fraction < 1:
        raise ValueError(f"a checkpoint is phi@FRACTION of training, above 0 and below 1; got {name!r}")
    if name != f"{CHECKPOINT}{fraction}":
        raise ValueError(f"a checkpoint has one name: write {CHECKPOINT}{fraction} for {name!r}")
    return fraction


def checkpoints(names: Iterable[str]) -> list[str]:
    """Those of `names` that are phi at a checkpoint of training, in the order of training."""
    fractions = {name: fraction for name in names if (fraction := checkpoint_fraction(name)) is not None}
    return sorted(fractions, key=fractions.__getitem__)


# --- From logits ----------------------------------------------------------------------------------------------------


def logit_scaled_confidence(logits: Array, labels: Array) -> jax.Array:
    """Phi = log(p_y / (1 - p_y)), from logits (Carlini et al. 2022, section IV-C).

    Computed as `-logsumexp_{c != y}(z_c - z_y)`. No probability is ever formed, so nothing saturates, and the
    label's logit is subtracted first, so the error is relative to phi and not to the logits.

    The confidence is `sigmoid(phi)` and the cross-entropy loss is `softplus(-phi)`. Higher = more likely a member.

    Args:
        logits: float32 or float64 `[..., C]`, C >= 2. Never bfloat16: it rounds away the tail of low false-positive rates.
        labels: integer `[...]`, 0 <= label < C; of NumPy others are refused.

    Returns:
        phi `[...]` in the dtype of `logits`, at least float32. NaN where a logit is NaN.
    """
    logits, labels = _floats(logits), _whole(labels, np.shape(logits)[-1])
    margins = logits - jnp.take_along_axis(logits, labels[..., None], axis=-1)
    others = jnp.arange(logits.shape[-1]) != labels[..., None]
    return -logsumexp(margins, axis=-1, where=others)


def entropy(logits: Array) -> jax.Array:
    """H = -sum_c p_c log p_c in nats (Salem et al. 2019); the attack's score is -H.

    Every term is positive and computed from log-probabilities that are right to relative precision, so the entropy of
    a certain prediction is too: about phi e^-phi, until that underflows (near a phi of 90 in float32).

    Args:
        logits: float32 or float64 `[..., C]`, C >= 2. A class of logit -inf has probability 0.

    Returns:
        H `[...]` in the dtype of `logits`, 0 to log C. NaN where a logit is NaN.

    >>> print(entropy(np.zeros(4, np.float32)).round(4))  # log 4
    1.3863
    """
    log_p, _ = _log_probabilities(_floats(logits))
    return jnp.sum(_times_exp(-log_p, log_p), axis=-1)


def modified_entropy(logits: Array, labels: Array) -> jax.Array:
    """M = -(1 - p_y) log p_y - sum_{c != y} p_c log(1 - p_c) (Song & Mittal 2021).

    The attack's score is -M. M is 0 where the label is certain and unbounded where another class is. It is computed
    like `entropy`, to relative precision; for a certain label it is about e^(-2 phi) (twice that with two classes),
    which underflows near a phi of 44 in float32 and 370 in float64.

    Args:
        logits: float32 or float64 `[..., C]`, C >= 2.
        labels: integer `[...]`, 0 <= label < C.

    Returns:
        M `[...]` in the dtype of `logits`. NaN where a logit is NaN.

    >>> print(modified_entropy(np.zeros(2, np.float32), np.array(1)).round(4))  # log 2
    0.6931
    """
    log_p, log_rest = _log_probabilities(_floats(logits))
    is_label = jnp.arange(log_p.shape[-1]) == _whole(labels, np.shape(logits)[-1])[..., None]
    # (1 - p_y) log p_y for the label, p_c log(1 - p_c) for the others.
    factor, power = jnp.where(is_label, log_p, log_rest), jnp.where(is_label, log_rest, log_p)
    return jnp.sum(_times_exp(-factor, power), axis=-1)


def _log_probabilities(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log p and log(1 - p) of every class, `[..., C]` each, to relative precision however close p is to 0 or 1."""
    is_top = jnp.arange(logits.shape[-1]) == jnp.argmax(logits, axis=-1)[..., None]
    margins = logits - jnp.max(logits, axis=-1, keepdims=True)
    # -phi of the top class. 1 - p of the top one, and p of the others, would be lost in 1 - (1 - p).
    rest = logsumexp(margins, axis=-1, where=~is_top, keepdims=True)
    log_p = margins - jax.nn.softplus(rest)
    # The others have p <= 1/2; the top one's 1 - p is the sum of theirs.
    others = jnp.log1p(-jnp.exp(jnp.where(is_top, -jnp.inf, log_p)))
    return log_p, jnp.where(is_top, -jax.nn.softplus(-rest), others)


def _times_exp(factor: jax.Array, power: jax.Array) -> jax.Array:
    """Factor * exp(power), 0 where power is -inf whatever the factor; NaN where power is NaN."""
    return jnp.where(power == -jnp.inf, 0, factor * jnp.exp(power))


def is_correct(logits: Array, labels: Array) -> jax.Array:
    """Whether the label has the largest logit: bool `[...]`. The first of equal logits wins."""
    return jnp.argmax(_floats(logits), axis=-1) == _whole(labels, np.shape(logits)[-1])


def _floats(values: Array) -> jax.Array:
    """Logits on their device in float32 or float64: half precision is widened."""
    if not isinstance(values, jax.Array):
        return jnp.asarray(native_floats(values))
    return values.astype(jnp.float32) if np.can_cast(values.dtype, np.float32) else values


def _whole(labels: Array, num_classes: int) -> jax.Array:
    """Labels on their device, in this machine's byte order; those of NumPy are checked."""
    if isinstance(labels, jax.Array):
        return labels
    labels = as_array(labels)
    if labels.dtype.kind not in "biu" or ((labels < 0) | (labels >= num_classes)).any():
        raise ValueError(f"labels must be classes, whole numbers below {num_classes}; got {labels!s:.60}")
    return jnp.asarray(labels.astype(labels.dtype.newbyteorder("="), copy=False))


# --- From what others keep in place of logits -----------------------------------------------------------------------


def phi_from_binary_logits(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Phi of a binary classifier with one logit z = log(p_1 / p_0): z for label 1, -z for label 0.

    Args:
        logits: float `[...]`.
        labels: 0 or 1, `[...]` or what broadcasts to it.

    Returns:
        phi, float64 `[...]`.

    Raises:
        ValueError: a label is neither 0 nor 1.
    """
    labels = as_array(labels)
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"one logit stands for two classes, so labels must be 0 or 1; got {labels.max()}")
    return np.where(labels == 1, 1.0, -1.0) * np.asarray(as_array(logits), np.float64)


def phi_from_losses(losses: np.ndarray) -> np.ndarray:
    """Phi = -log(e^loss - 1), from cross-entropy losses in nats.

    Stable at both ends: about -log(loss) for tiny losses, -loss for huge ones. What was rounded when the loss was
    stored cannot be had back: a loss of float32 log-softmax is a multiple of 1.2e-7, so phi ends near 16.

    Args:
        losses: float `[...]`, not negative; what is so by some ulps of 1 is taken for 0.

    Returns:
        phi, float64 `[...]`; +inf for a loss of 0, -inf for an infinite one (see `replace_saturated`), NaN for NaN.

    Raises:
        ValueError: a loss is negative.

    >>> print(phi_from_losses(np.array([1e-20, np.log(2), 800.0])).round(4))
    [  46.0517    0.     -800.    ]
    """
    rounding, losses = _rounding(losses), np.asarray(as_array(losses), np.float64)
    if (losses < -rounding).any():
        raise ValueError(
            f"a cross-entropy loss is not negative; got {losses.min():g}: give losses, not scores of -loss"
        )
    losses = np.where(losses < 0, 0.0, losses)  # NaN stays
    with np.errstate(divide="ignore"):
        # e^l - 1 = e^l (1 - e^-l): neither factor overflows or cancels.
        return -losses - np.log(-np.expm1(-losses))


def phi_from_confidences(confidences: np.ndarray) -> np.ndarray:
    """Phi = log(p_y / (1 - p_y)), from the probability of the label alone.

    A probability near 1 has lost most of what it knew: 1 - p_y is a multiple of 6e-8 in float32 and of 1.1e-16 in
    float64, so phi ends at 16.6 and 36.7, and low false-positive rates live on that tail. Logits, losses, or whole
    probability vectors keep it.

    Args:
        confidences: float `[...]`, in [0, 1]; what is outside by some ulps of 1 is taken for the end.

    Returns:
        phi, float64 `[...]`; -inf for 0 and +inf for 1 (see `replace_saturated`), NaN for NaN.

    Raises:
        ValueError: a confidence is outside [0, 1].

    >>> print(phi_from_confidences(np.array([0.5, 0.9, 1.0])).round(4))
    [0.     2.1972    inf]
    """
    confidences = _in_unit(confidences)
    with np.errstate(divide="ignore"):
        return np.log(confidences) - np.log1p(-confidences)


def phi_from_probabilities(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Phi = log(p_y / sum_{c != y} p_c), from whole probability vectors.

    The other classes' probabilities are summed, which keeps the tail that 1 - p_y has rounded away: float32 vectors
    reach a phi of some 100. The vectors need not sum to exactly 1.

    Args:
        probabilities: float `[..., C]`, C >= 2, in [0, 1]; what is outside by some ulps of 1 is taken for the end.
        labels: integer `[...]`, 0 <= label < C.

    Returns:
        phi, float64 `[...]`; -inf where p_y is 0, +inf where all others are (see `replace_saturated`).

    Raises:
        ValueError: a probability is outside [0, 1], or a vector is all zeros.
    """
    probabilities = _in_unit(probabilities)
    is_label = np.arange(probabilities.shape[-1]) == as_array(labels)[..., None]
    label = np.sum(probabilities, axis=-1, where=is_label)
    others = np.sum(probabilities, axis=-1, where=~is_label)
    if ((label == 0) & (others == 0)).any():
        raise ValueError("a probability vector is all zeros: give the softmax of the logits, or the logits")
    with np.errstate(divide="ignore"):
        return np.log(label) - np.log(others)


def replace_saturated(phi: np.ndarray, precision: DTypeLike, *, in_place: bool = False) -> np.ndarray:
    """Make infinite phi finite, because no Gaussian can be fitted to infinity; say how many there were.

    +inf stands for a probability that was rounded to 1. It becomes log(4 / eps - 1), the smallest phi that rounds
    to 1 (17.3 in float32, 37.4 in float64), or log 2 more than the largest finite phi, whichever is larger, so that
    the order is kept; -inf likewise at the other end. All of them are ties: an attack cannot tell them apart.

    Args:
        phi: float `[...]`, from one of the functions above.
        precision: the dtype that the confidences or losses were stored in.
        in_place: write into `phi`.

    Returns:
        phi `[...]` of its dtype; the same array where nothing is infinite.

    Warns:
        SaturatedWarning: with the number of replaced values.
    """
    if not any(np.isinf(row).any() for row in _rows([phi])):
        return phi
    result = phi if in_place else phi.copy()
    replace_saturated_alike([result], precision)
    return result


def replace_saturated_alike(arrays: Sequence[np.ndarray], precision: DTypeLike) -> None:
    """`replace_saturated` of several arrays in place, by one value at each end: what is compared with one another stays in order."""
    ones = zeros = 0
    highest, lowest = -np.inf, np.inf
    for row in _rows(arrays):
        finite = np.isfinite(row)
        highest = max(highest, np.max(row, initial=-np.inf, where=finite))
        lowest = min(lowest, np.min(row, initial=np.inf, where=finite))
        ones, zeros = ones + int(np.sum(row == np.inf)), zeros + int(np.sum(row == -np.inf))
    if not ones + zeros:
        return
    # p rounds to 1 where 1 - p <= eps / 4: half the spacing below 1.
    quarter = float(jnp.finfo(precision).eps) / 4
    limit = np.log1p(-quarter) - np.log(quarter)
    high, low = max(limit, highest + np.log(2)), min(-limit, lowest - np.log(2))
    warnings.warn(
        f"{ones:,} of {sum(each.size for each in arrays):,} values are a confidence of 1 or a loss of 0, and {zeros:,} a "
        f"confidence of 0: taken as phi of {high:.1f} and {low:.1f}; the tail that low false-positive rates live on is lost: "
        f"give logits",
        SaturatedWarning,
        stacklevel=3,
    )
    for row in _rows(arrays):
        row[row == np.inf], row[row == -np.inf] = high, low


def _rows(arrays: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Row by row: all of it may be larger than the memory."""
    for each in arrays:
        yield from each if each.ndim > 1 else (each,)


def _in_unit(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities in float64, what rounding put outside [0, 1] at its end; raise ValueError for what is further outside."""
    rounding, probabilities = _rounding(probabilities), np.asarray(as_array(probabilities), np.float64)
    bad = (probabilities < -rounding) | (probabilities > 1 + rounding)
    if bad.any():
        raise ValueError(
            f"a probability is in [0, 1]; got {probabilities[bad][0]:g}: are these logits or losses?"
        )
    return np.clip(probabilities, 0, 1)


def _rounding(values: np.ndarray) -> float:
    """What sums and logarithms of numbers near 1 are rounded by: sixteen ulps of the dtype, of float32 at the least."""
    dtype = as_array(values).dtype
    eps = float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.floating) else 0.0
    return 16 * max(eps, float(np.finfo(np.float32).eps))
