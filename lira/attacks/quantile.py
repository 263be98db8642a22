"""Quantile regression on non-members (Bertran et al. 2023, arXiv 2307.03694): no shadow model at all.

How confident would this very model be about such an example, had it not been trained on it? A regression on public
examples that no model was trained on answers, and what is above the answer looks like a member.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lira.attacks._pool import (
    Leave,
    SignalArray,
    UnfitPoolError,
    blocks,
    check_pool,
    check_population,
    read_block,
)
from lira.numbers import as_array, native_floats

__all__ = ["quantile_regression"]

# Radial basis functions, centred on random non-members.
BASIS = 256
# Ridge penalties to choose from; the rows of the basis have norms of at most 1.
PENALTIES = np.logspace(-4, 3, 8)
# Outputs (targets x queries) that are fitted at once: bounds the memory.
OUTPUTS = 512
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
    M, N, Q = check_pool(phi, as_array(keep), target, leave)
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
    # Slow to import, and training needs none of it.
    from sklearn.kernel_approximation import Nystroem
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    basis = make_pipeline(StandardScaler(), Nystroem(n_components=min(BASIS, Z), random_state=seed))
    design = _decompose(basis.fit_transform(population_features.astype(np.float64)))
    step = max(1, OUTPUTS // Q)
    heads = [
        _fit(design, _read_targets(publics, slice(begin, min(begin + step, T))))
        for begin in range(0, T, step)
    ]
    centres, spreads = (
        _Linear(*map(np.hstack, zip(*parts, strict=True))) for parts in zip(*heads, strict=True)
    )
    scores = np.empty((T, N), np.float32)
    for examples, _ in blocks(1, N, max(max(M, T) * Q, features.shape[1])):
        rows = basis.transform(features[examples].astype(np.float64))
        mean = centres(rows)
        spread = np.maximum(np.exp(spreads(rows)), SD_FLOOR * (1 + np.abs(mean)))
        values = read_block(attacked, examples, name).astype(np.float64)
        z = (values.swapaxes(0, 1).reshape(len(rows), -1) - mean) / spread
        scores[:, examples] = z.reshape(len(rows), T, Q).mean(axis=2).T
    return scores


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
    values = np.asarray(as_array(population[rows, slice(None)]), np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        row, example, query = np.argwhere(~finite)[0]
        raise ValueError(
            f"population[{rows.start + row}, {example}, {query}] is {values[row, example, query]}: "
            f"leave that model or that public example out"
        )
    return values.swapaxes(0, 1).reshape(values.shape[1], -1)


# --- Ridge regression of many outputs on one design, exact leave-one-out residuals included -------------------------


class _Design(NamedTuple):
    """A centred design, taken apart once: `(left * singular) @ right + centre`."""

    left: np.ndarray  # [Z, P]
    singular: np.ndarray  # [P]
    right: np.ndarray  # [P, P]
    centre: np.ndarray  # [P]


class _Linear(NamedTuple):
    """A linear function of the basis for each output."""

    weights: np.ndarray  # [P, K]
    offsets: np.ndarray  # [K]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return rows @ self.weights + self.offsets


def _decompose(rows: np.ndarray) -> _Design:
    centre = rows.mean(axis=0)
    return _Design(*np.linalg.svd(rows - centre, full_matrices=False), centre)


def _fit(design: _Design, values: np.ndarray) -> tuple[_Linear, _Linear]:
    """Regress `values` [Z, K]: their mean, and the logarithm of their standard deviation."""
    centre, residuals = _ridge(design, values)
    # The logarithm keeps the spread positive and an outlier from ruling it.
    spread, rest = _ridge(design, np.log(np.maximum(np.abs(residuals), SD_FLOOR)))
    # E log|r| is below log sigma, by how much depends on the tails: standardise what was left out.
    scale = 0.5 * np.log(np.mean(np.exp(2 * rest), axis=0))
    return centre, _Linear(spread.weights, spread.offsets + scale)


def _ridge(design: _Design, outputs: np.ndarray) -> tuple[_Linear, np.ndarray]:
    """Fit each output with the penalty that leaves it the least leave-one-out error; also return its residuals."""
    mean = outputs.mean(axis=0)
    centred = outputs - mean
    rotated = design.left.T @ centred
    squares = np.square(centred)
    penalties = [_Penalty(design, penalty) for penalty in PENALTIES]
    best = np.argmin([penalty.errors(design, centred, rotated, squares) for penalty in penalties], axis=0)
    chosen, residuals = np.empty_like(rotated), centred
    for index, penalty in enumerate(penalties):
        at = np.flatnonzero(best == index)
        chosen[:, at] = penalty.slopes[:, None] * rotated[:, at]
        fitted = design.left @ (penalty.shrink[:, None] * rotated[:, at])
        residuals[:, at] = (centred[:, at] - fitted) * penalty.weights[:, None]
    weights = design.right.T @ chosen
    return _Linear(weights, mean - design.centre @ weights), residuals


class _Penalty:
    """What one penalty makes of a design."""

    def __init__(self, design: _Design, penalty: float) -> None:
        squares = np.square(design.singular)
        self.shrink = squares / (squares + penalty)
        self.slopes = design.singular / (squares + penalty)
        # Leaving one out divides its residual by 1 - leverage (the mean has 1 / Z of it).
        self.weights = 1 / (1 - 1 / len(design.left) - np.square(design.left) @ self.shrink)

    def errors(
        self, design: _Design, centred: np.ndarray, rotated: np.ndarray, squares: np.ndarray
    ) -> np.ndarray:
        """Each output's sum of squared leave-one-out residuals, `[K]`: multiplied out, so that no residual is stored."""
        weights = np.square(self.weights)[:, None]
        weighted = design.left * weights
        fitted = self.shrink[:, None] * rotated
        crossed = weighted.T @ centred
        quadratic = (design.left.T @ weighted) @ fitted
        return np.square(self.weights) @ squares + (fitted * (quadratic - 2 * crossed)).sum(axis=0)
