"""Quantile regression on non-members (Bertran et al. 2023, arXiv 2307.03694): no shadow model at all.

How confident would this very model be about such an example, had it not been trained on it? A regression on public
examples that no model was trained on answers, and what is above the answer looks like a member.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from lira.attacks._pool import (
    Array,
    Leave,
    SignalArray,
    UnfitPoolError,
    blocks,
    check_pool,
    check_population,
    host,
    read_block,
)
from lira.numbers import native_floats

__all__ = ["quantile_regression"]

# Radial basis functions, centred on random non-members.
BASIS = 256
# Ridge penalties to choose from; the rows of the basis have norms of at most 1.
PENALTIES = np.logspace(-4, 3, 8)
# Outputs (targets x queries) that are fitted at once: bounds the memory.
OUTPUTS = 256
# A spread below this, relative to 1 + |mean|, is the rounding of float32 phi.
SD_FLOOR = 2.0**-20
# Public examples: fewer show no spread to regress.
FEWEST = 10


def quantile_regression(
    phi: SignalArray,
    keep: np.ndarray,
    *,
    features: ArrayLike,
    population_features: ArrayLike,
    population: SignalArray | None = None,
    target_population: SignalArray | None = None,
    target: SignalArray | None = None,
    leave: Leave = "pair",
    seed: int = 0,
) -> np.ndarray:
    """Score by (phi - mu(x)) / sigma(x), mean over queries: a Gaussian regressed on non-members (section 3).

    phi stands for the paper's hinge score. Each target is fitted by itself, on its own values at the population: mu by
    ridge regression on 256 radial basis functions of the standardised features, log sigma by another on the logarithm
    of mu's leave-one-out residuals. The basis is shared, which makes it one regression with many outputs; each output
    has its own penalties, chosen by leaving one out. A quantile of that Gaussian is mu + z sigma, so ranking by z tests
    at every quantile at once. With constant features it is `global_threshold`, standardised for each target.

    Args:
        phi: float32 `[M, N, Q]`, logit-scaled confidences of the pool. Read in blocks along N.
        keep: bool `[M, N]`; no shadow model is consulted, so `keep` and `leave` are only checked.
        features: float `[N, F]`, of the examples, and of nothing that was trained on them: pixels, a public embedding,
            the label as one-hot columns.
        population_features: float `[Z, F]`, of Z public examples that no attacked model was trained on.
        population: float32 `[M, Z, Q]`, phi of the pool's models at these. With `target` it is not consulted.
        target_population: float32 `[T, Z, Q]`, phi of the outside targets at these.
        target: float32 `[T, N, Q]`, outside targets; None attacks every model of the pool.
        leave: as for every attack.
        seed: of the basis.

    Returns:
        float32 `[T, N]`, higher = more likely a member.

    Raises:
        ValueError: shapes disagree, or a value is not finite.
        UnfitPoolError: the attacked models' population is missing, or there are fewer than 10 public examples.
    """
    M, N, Q = check_pool(phi, keep, target, leave)
    attacked, name = (phi, "phi") if target is None else (target, "target")
    T = attacked.shape[0]
    features, population_features = native_floats(features), native_floats(population_features)
    check_population(population, target_population, (M, N, Q), target)
    publics = population if target is None else target_population
    if publics is None:
        raise UnfitPoolError(
            f"quantile_regression needs {'population' if target is None else 'target_population'}, phi of the attacked "
            f"models at public examples: pass it, or use global_threshold, which needs none"
        )
    Z = publics.shape[1]
    _check_rows(features, population_features, N, Z)
    scores = np.empty((T, N), np.float32)
    # By XLA, whose threads take turns with those of other attacks; a BLAS's would wait for each other.
    with jax.enable_x64(True), jax.default_device(host()):
        basis = _fit_basis(population_features, seed)
        design = _decompose(np.asarray(basis(population_features)))
        step = max(1, OUTPUTS // Q)
        heads = [
            _fit(design, _read_targets(publics, slice(begin, min(begin + step, T))))
            for begin in range(0, T, step)
        ]
        centres, spreads = (
            _Linear(*map(np.hstack, zip(*parts, strict=True))) for parts in zip(*heads, strict=True)
        )
        for examples, _ in blocks(1, N, max(max(M, T) * Q, features.shape[1])):
            values = read_block(attacked, examples, name)
            scores[:, examples] = _score(basis(features[examples]), values, centres, spreads)
    return scores


@jax.jit
def _score(rows: Array, values: Array, centres: "_Linear", spreads: "_Linear") -> jax.Array:
    """Scores `[T, n]` of values `[T, n, Q]` at rows `[n, P]` of the basis."""
    mean = centres(rows)
    spread = jnp.maximum(jnp.exp(spreads(rows)), SD_FLOOR * (1 + jnp.abs(mean)))
    z = (values.astype(jnp.float64).swapaxes(0, 1).reshape(len(rows), -1) - mean) / spread
    return z.reshape(len(rows), len(values), -1).mean(axis=2).T


def _check_rows(features: np.ndarray, population_features: np.ndarray, N: int, Z: int) -> None:
    """Check that features are matrices of one width with N and Z rows, and finite."""
    for name, values, rows in (("features", features, N), ("population_features", population_features, Z)):
        if values.ndim != 2 or values.shape != (rows, features.shape[1]):
            width = "features" if name == "features" else features.shape[1]
            raise ValueError(
                f"{name} must be [{rows}, {width}], a row for each example; got shape {values.shape}"
            )
        if not np.isfinite(values).all():
            raise ValueError(
                f"{name} has a value that is not finite in row {np.argwhere(~np.isfinite(values))[0][0]}"
            )
    if Z < FEWEST:
        raise UnfitPoolError(
            f"quantile_regression needs {FEWEST} public examples, and there are {Z}: use global_threshold, which needs none"
        )


def _read_targets(population: SignalArray, rows: slice) -> np.ndarray:
    """Values of some targets at all public examples, float64 `[Z, targets x Q]`."""
    values = native_floats(population[rows, slice(None)]).astype(np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        row, example, query = np.argwhere(~finite)[0]
        raise ValueError(
            f"population[{rows.start + row}, {example}, {query}] is {values[row, example, query]}: "
            f"leave that model or that public example out"
        )
    return values.swapaxes(0, 1).reshape(values.shape[1], -1)


# --- The basis ------------------------------------------------------------------------------------------------------


class _Basis(NamedTuple):
    """Nystroem's radial basis functions of standardised features."""

    mean: np.ndarray  # [F]
    scale: np.ndarray  # [F]
    points: np.ndarray  # [P, F]
    mixing: np.ndarray  # [P, P]

    def __call__(self, features: np.ndarray) -> jax.Array:
        """Float64 `[n, P]`."""
        return _functions(self, features)


@jax.jit
def _functions(basis: _Basis, features: Array) -> jax.Array:
    rows = (features.astype(jnp.float64) - basis.mean) / basis.scale
    squares = jnp.sum(jnp.square(rows), axis=1)[:, None] + jnp.sum(jnp.square(basis.points), axis=1)
    distances = jnp.maximum(squares - 2 * rows @ basis.points.T, 0.0)
    return jnp.exp(-distances / rows.shape[1]) @ basis.mixing.T


def _fit_basis(features: np.ndarray, seed: int) -> _Basis:
    # Slow to import, and training needs none of it.
    from sklearn.kernel_approximation import Nystroem
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    rows = scaler.fit_transform(features.astype(np.float64))
    kernel = Nystroem(n_components=min(BASIS, len(rows)), random_state=seed).fit(rows)
    learnt = scaler.mean_, scaler.scale_, kernel.components_, kernel.normalization_
    return _Basis(*(np.asarray(each, np.float64) for each in learnt))


# --- Ridge regression of many outputs on one design, exact leave-one-out residuals included -------------------------


class _Design(NamedTuple):
    """A centred design, taken apart once: `(left * singular) @ right + centre`, and what each penalty makes of it."""

    left: np.ndarray  # [Z, P]
    right: np.ndarray  # [P, P]
    centre: np.ndarray  # [P]
    shrink: np.ndarray  # [penalties, P], what is left of each rotated output
    slopes: np.ndarray  # [penalties, P], and its coefficients
    weights: np.ndarray  # [penalties, Z], of residuals: what leaving one out makes of its own


class _Linear(NamedTuple):
    """A linear function of the basis for each output."""

    weights: Array  # [P, K]
    offsets: Array  # [K]

    def __call__(self, rows: Array) -> Array:
        return rows @ self.weights + self.offsets


def _decompose(rows: np.ndarray) -> _Design:
    centre = rows.mean(axis=0)
    left, singular, right = np.linalg.svd(rows - centre, full_matrices=False)
    squares = np.square(singular)
    shrink = squares / (squares + PENALTIES[:, None])
    # Leaving one out divides its residual by 1 - leverage (the mean has 1 / Z of it).
    weights = 1 / (1 - 1 / len(left) - shrink @ np.square(left).T)
    return _Design(left, right, centre, shrink, singular / (squares + PENALTIES[:, None]), weights)


@jax.jit
def _fit(design: _Design, values: Array) -> tuple[_Linear, _Linear]:
    """Regress `values` [Z, K]: their mean, and the logarithm of their standard deviation."""
    centre, residuals = _ridge(design, values)
    # The logarithm keeps the spread positive and an outlier from ruling it.
    spread, rest = _ridge(design, jnp.log(jnp.maximum(jnp.abs(residuals), SD_FLOOR)))
    # E log|r| is below log sigma, by how much depends on the tails: standardise what was left out.
    scale = 0.5 * jnp.log(jnp.mean(jnp.exp(2 * rest), axis=0))
    return centre, _Linear(spread.weights, spread.offsets + scale)


def _ridge(design: _Design, outputs: Array) -> tuple[_Linear, Array]:
    """Fit each output with the penalty that leaves it the least leave-one-out error; also return its residuals."""
    mean = jnp.mean(outputs, axis=0)
    centred = outputs - mean
    rotated = design.left.T @ centred

    def residuals(shrink: Array, weights: Array) -> Array:
        return (centred - design.left @ (shrink * rotated)) * weights

    errors = [
        jnp.sum(jnp.square(residuals(shrink[:, None], weights[:, None])), axis=0)
        for shrink, weights in zip(design.shrink, design.weights, strict=True)
    ]
    best = jnp.argmin(jnp.stack(errors), axis=0)
    slopes = design.right.T @ (jnp.asarray(design.slopes)[best].T * rotated)
    shrink, weights = (jnp.asarray(each)[best].T for each in (design.shrink, design.weights))
    return _Linear(slopes, mean - design.centre @ slopes), residuals(shrink, weights)
