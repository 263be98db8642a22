"""PMIA, membership inference with proxies for IN models (arXiv 2507.21412): only OUT models of x are needed.

How sure a model is of x once it was trained on x is guessed from how sure models that were not are of *other* examples,
those that they were trained on. Unlike offline LiRA's, which only asks whether OUT explains a confidence, the score also
asks whether IN would explain it better.
"""

import dataclasses
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_matrix

from lira.attacks._averages import over_queries
from lira.attacks._moments import SD_FLOOR, float64, median, middle, moments, pooled_sums
from lira.attacks._nearest import nearest_others
from lira.attacks._opponents import Group, Opponents, opponents_of
from lira.attacks._parted import Block, Side
from lira.attacks._pool import (
    FEW_MODELS,
    Array,
    FewModelsWarning,
    Leave,
    SignalArray,
    UnfitPoolError,
    advice_on_few,
    blocks,
    read_block,
    require_numbers,
    scoring,
)
from lira.numbers import as_array, native_floats, require_unmasked
from lira.parallel import side_by_side

__all__ = ["pmia"]

Proxy = Literal["global", "class", "neighbours"]
# Nearest neighbours that stand for an example.
NEIGHBOURS = 50
# Examples whose values are summed over proxies at a time, and sets of proxies that one core sums them for.
SLAB, SETS = 8192, 1024


def pmia(
    phi: SignalArray,
    keep: np.ndarray,
    *,
    proxy: Proxy = "global",
    labels: np.ndarray | None = None,
    features: ArrayLike | None = None,
    fixed: bool = False,
    target: SignalArray | None = None,
    leave: Leave = "pair",
) -> np.ndarray:
    """Score by log N(phi; m_in, s_in) - log N(phi; median_out, s_out), mean over queries, IN guessed from proxies.

    m_in of example x is the mean of all values phi[m, n] of models m that were *not* trained on x at proxies n that they
    were trained on. s_in is the proxies' standard deviation after each one's own mean is taken out: over every model
    left against the target that was trained on them, since to keep to those that were not trained on x would cost N^2
    operations a target and hardly move a spread. Median and standard deviation of OUT are those of x's own OUT models.

    Args:
        phi: float32 `[M, N, Q]`, logit-scaled confidences of the shadow models. Read in blocks along N, three times;
            with "neighbours" sums of its size in float64 are held in memory.
        keep: bool `[M, N]`, true where the model was trained on the example.
        proxy: what stands for x. "global", all other examples; "class", those of its label, or all where it has no
            other; "neighbours", the 50 nearest in the standardised features, or its class where there are no 50 others.
        labels: int `[N]`, for "class"; "neighbours" goes without, taking all for the class.
        features: float `[N, F]`, for "neighbours": of the examples, and of nothing that was trained on them.
        fixed: one variance a side for all examples, as in `lira_online_fixed`, the better choice with few models.
        target: float32 `[T, N, Q]`, models outside the pool; all M shadow models then serve against them. None
            attacks every model of the pool.
        leave: "pair" leaves out the model and its complementary mate, "one" the model only, as in `lira_online`.

    Returns:
        float32 `[T, N]`, higher = more likely a member.

    Raises:
        ValueError: shapes disagree, a value is not finite, or labels or features are missing.
        UnfitPoolError: an example has fewer than two OUT models (one with `fixed`), or none that was trained on a proxy.

    Warns:
        FewModelsWarning: variances are of fewer than eight OUT models.
    """
    opponents = opponents_of(phi, keep, target, leave)
    remedy = "attack_p or global_threshold, which need no shadow models"
    if not fixed and opponents.fewest["OUT"] == 1:
        remedy = "its form with one variance a side, or lira_offline_fixed, which need one"
    opponents.require("pmia", "OUT", 1 if fixed else 2, remedy)
    if not fixed and opponents.fewest["OUT"] < FEW_MODELS:
        warnings.warn(f"pmia: {advice_on_few(opponents.fewest['OUT'])}", FewModelsWarning, stacklevel=2)
    proxies = _proxies(proxy, opponents.shape[1], labels, features)
    beside = dataclasses.replace(opponents, phi=_BesideProxies(opponents, proxies))
    scores = np.empty((opponents.num_targets, opponents.shape[1]), np.float32)
    with scoring(phi, target):
        for group in opponents.groups:
            variances = _fixed_variances(opponents, group) if fixed else None
            spreads = None if fixed else _spreads(opponents, group, proxies)
            for examples, block in beside.blocks(group):
                spread = None if spreads is None else spreads[proxies.row[examples]].swapaxes(0, 1)
                outside = block.outside.mask
                centre = middle(np.asarray(block.values)[..., : opponents.shape[2]], np.asarray(outside))
                values, known = _score(block, centre, spread, variances, proxies.hold_x)
                _require_proxies(np.asarray(known), examples)
                scores[group.rows, examples] = values
    return require_numbers(scores)


def _require_proxies(known: np.ndarray, examples: slice) -> None:
    """Raise UnfitPoolError where an example has no value of a proxy, `known` bool `[T, n]`."""
    if not known.all():
        missing = examples.start + int(np.argmin(known.all(axis=0)))
        raise UnfitPoolError(
            f"pmia needs for every example a model that was not trained on it and was on a proxy of it, and example "
            f"{missing} has none: use lira_offline or lira_offline_fixed, which need no proxies"
        )


# --- Which examples stand for which ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Proxies:
    """Sets of examples, and which of them stands for each example."""

    members: csr_matrix
    """[R, N], 1 where the set holds the example"""
    row: np.ndarray
    """int [N], each example's set"""
    hold_x: bool
    """whether the sets hold the examples that they stand for"""


def _proxies(proxy: Proxy, N: int, labels: np.ndarray | None, features: ArrayLike | None) -> _Proxies:
    if proxy not in ("global", "class", "neighbours"):
        raise ValueError(f'proxy must be "global", "class" or "neighbours"; got {proxy!r}')
    require_unmasked({"labels": labels, "features": features})
    labels = None if labels is None else as_array(labels)
    if labels is not None and labels.shape != (N,):
        raise ValueError(f"labels must be [{N}], one for each example; got shape {labels.shape}")
    if labels is not None and (unknown := labels != labels).any():
        raise ValueError(
            f"labels must be known of all examples; that of example {np.argmax(unknown)} is NaN: leave such examples out, "
            f'or labels, and pass proxy="global"'
        )
    if proxy == "class" and labels is None:
        raise ValueError('proxy="class" needs labels [N]: pass them, or proxy="global"')
    if proxy == "neighbours":
        if features is None:
            raise ValueError('proxy="neighbours" needs features [N, F]: pass them, or proxy="global"')
        if N > NEIGHBOURS:
            return _neighbours(native_floats(features), N)
    classes = np.zeros(N, int)
    if proxy != "global" and labels is not None:
        _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        # The last set is of all examples.
        classes = np.where(counts[classes] > 1, classes, len(counts))
        sizes = (len(counts) + 1, N)
        members = np.arange(sizes[0])[:, None] == classes
        members[-1] = True
        return _Proxies(csr_matrix(members, dtype=float), classes, hold_x=True)
    return _Proxies(csr_matrix(np.ones((1, N))), classes, hold_x=True)


def _neighbours(features: np.ndarray, N: int) -> _Proxies:
    """The nearest others of each example in standardised features `[N, F]`."""
    if features.ndim != 2 or len(features) != N:
        raise ValueError(f"features must be [{N}, features], a row for each example; got {features.shape}")
    if not np.isfinite(features).all():
        row = np.argwhere(~np.isfinite(features))[0][0]
        raise ValueError(f"features has a value that is not finite in row {row}")
    # Slow to import, and training needs none of it.
    from sklearn.preprocessing import StandardScaler

    standard = StandardScaler().fit_transform(features).astype(np.float32)
    others = nearest_others(standard, NEIGHBOURS)
    starts = np.arange(0, N * NEIGHBOURS + 1, NEIGHBOURS)
    members = csr_matrix((np.ones(others.size), others.ravel(), starts), shape=(N, N))
    return _Proxies(members, np.arange(N), hold_x=False)


# --- Sums over the proxies ------------------------------------------------------------------------------------------


class _BesideProxies:
    """Phi, and beside it how many of each example's proxies a model was trained on and the sum of its phi there.

    `[M, N, Q + 1 + Q]`, so that what is left out for a target is left out of all three alike.
    """

    def __init__(self, opponents: Opponents, proxies: _Proxies) -> None:
        """Sum over all sets of proxies at once, in a pass over phi."""
        M, N, Q = opponents.shape
        self.phi, self.row, self.shape = opponents.phi, proxies.row, (M, N, 2 * Q + 1)

        def parts() -> Iterator[tuple[slice, np.ndarray]]:
            for examples, fresh in blocks(M, N, Q):
                values = read_block(opponents.phi, examples, "phi").astype(np.float64)
                held = (opponents.keep[:, examples] & fresh)[..., None]
                rows = np.concatenate([held, np.where(held, values, 0)], axis=2)
                yield examples, rows.swapaxes(0, 1)

        self.sums = _summed(proxies.members, parts())  # [R, M, 1 + Q]

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """Of all models and a slice of examples, float64."""
        examples = index[1]
        sums = self.sums[self.row[examples]].swapaxes(0, 1)
        return np.concatenate([native_floats(self.phi[:, examples]).astype(np.float64), sums], axis=2)


def _spreads(opponents: Opponents, group: Group, proxies: _Proxies) -> np.ndarray:
    """For each set of proxies and target: IN values, and by query their squared deviations from their examples' means.

    Float64 `[R, T, 1 + Q]`; T is 1 for outside targets.
    """
    walk = opponents.blocks(group)
    return _summed(
        proxies.members,
        (
            (examples, np.asarray(_squares(block.values, block.inside, block.fresh)))
            for examples, block in walk
        ),
    )


@jax.jit
def _squares(values: Array, inside: Side, fresh: Array) -> jax.Array:
    """Count and squared deviations of a block's IN sides, `[n, T, 1 + Q]`, 0 of examples that are not fresh."""
    values, inside = float64((values, inside))
    count, _, squares = moments(values, inside)
    return jnp.where(fresh[:, None], jnp.concatenate([count, squares], axis=2), 0.0).swapaxes(0, 1)


def _summed(members: csr_matrix, parts: Iterator[tuple[slice, np.ndarray]]) -> np.ndarray:
    """`members @ rows` for rows `[N, ...]` that come in blocks of examples, float64 `[R, ...]`."""
    columns, total = members.tocsc(), np.zeros(())
    for at, rows in _slabs(parts):
        if not total.ndim:
            total = np.zeros((members.get_shape()[0], *rows.shape[1:]))
        _add_product(total, columns[:, at].tocsr(), rows)
    return total


def _slabs(parts: Iterator[tuple[slice, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers of examples and their rows, of some blocks at a time."""
    numbers, rows = [], []
    for examples, part in parts:
        numbers += range(examples.start, examples.stop)
        rows.append(
            np.ascontiguousarray(part)
        )  # else what is put together is copied once more to be multiplied
        if len(numbers) >= SLAB:
            slab = np.array(numbers), np.concatenate(rows)
            numbers, rows = [], []
            yield slab
    if numbers:
        yield np.array(numbers), np.concatenate(rows)


def _add_product(total: np.ndarray, held: csr_matrix, rows: np.ndarray) -> None:
    """Add `held @ rows` to `total`, some of its rows at a time on each core."""
    flat = rows.reshape(len(rows), -1)

    def add(at: slice) -> None:
        total[at] += (held[at] @ flat).reshape(-1, *rows.shape[1:])

    side_by_side(add, [slice(start, start + SETS) for start in range(0, len(total), SETS)])


def _fixed_variances(opponents: Opponents, group: Group) -> tuple[np.ndarray, np.ndarray]:
    """One variance of IN and one of OUT for each target, `[T]` or `[1]`; 1 where no spread is seen."""
    inside, outside = (
        side.within / np.maximum(side.models, 1) for side in pooled_sums(opponents.blocks(group))
    )
    return np.where(inside > 0, inside, 1.0), np.where(outside > 0, outside, 1.0)


# --- The score, float64 under jit -----------------------------------------------------------------------------------


@jax.jit
def _score(
    block: Block,
    centre: Array,
    spread: Array | None,
    variances: tuple[Array, Array] | None,
    hold_x: bool,
) -> tuple[jax.Array, jax.Array]:
    """Scores `[T, n]` of one block of `_BesideProxies`, and whether an example has values of proxies, bool `[T, n]`.

    `centre` is what `middle` found of OUT, `spread` `[T, n, 1 + Q]` what `_spreads` found of the proxies, x itself
    among them where `hold_x`; or `variances` are given.
    """
    attacked, values, _, inside, outside = float64(block)
    Q = (values.shape[-1] - 1) // 2
    attacked = attacked[..., :Q]
    own, sums = (_columns(outside, at) for at in (slice(Q), slice(Q, None)))
    count, mean_out, squares = moments(values[..., :Q], own)
    _, means, _ = moments(values[..., Q:], sums)
    known = means[..., :1] * count > 0.5
    mean_in = jnp.where(known, means[..., 1:] / jnp.where(known, means[..., :1], 1.0), 0.0)
    deviation_in, deviation_out = attacked - mean_in, attacked - median(own, centre)
    if variances is not None:
        variance_in, variance_out = (each[:, None, None] for each in variances)
    else:
        assert spread is not None
        its_count, _, its_squares = moments(values[..., :Q], _columns(inside, slice(Q)))
        left = spread[..., 1:] - jnp.where(hold_x, its_squares, 0.0)
        # Below float64's cancellation error nothing is left but rounding.
        left = jnp.where(left > 1e-13 * spread[..., 1:], left, 0.0)
        number = spread[..., :1] - jnp.where(hold_x, its_count, 0)
        variance_in = _floored(left / jnp.maximum(number, 1), mean_in)
        variance_out = _floored(squares / jnp.maximum(count, 1), mean_out)
    score = 0.5 * (
        jnp.square(deviation_out) / variance_out
        - jnp.square(deviation_in) / variance_in
        + jnp.log(variance_out / variance_in)
    )
    return over_queries(score), known[..., 0]


def _columns(side: Side, at: slice) -> Side:
    return side._replace(removed=side.removed[..., at])


def _floored(variance: jax.Array, mean: jax.Array) -> jax.Array:
    return jnp.maximum(variance, jnp.square(SD_FLOOR * (1 + jnp.abs(mean))))
