"""What the metrics share: a figure with its interval, clusters of targets, and how a pool is resampled."""

import functools
from dataclasses import dataclass

import numpy as np
from scipy import special

from lira.membership import is_paired
from lira.numbers import as_array, native_floats, require_unmasked

__all__ = [
    "MIN_CLUSTERS",
    "RESAMPLES",
    "UNDEFINED",
    "Estimate",
    "UndefinedMetricWarning",
    "check_fpr",
    "check_scores",
    "cluster_margin",
    "clusters_of",
    "require_bool",
    "resample_margin",
    "resample_rates",
    "scored_part",
]

RESAMPLES = 1000
MIN_CLUSTERS = 4


class UndefinedMetricWarning(UserWarning):
    """A metric is NaN because there is nothing to measure it on, such as no members or no non-members."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; `low` and `high` are NaN where no interval can be given."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Show `0.614 [0.610, 0.618]`."""
        return f"{self.value:.4g}" + ("" if np.isnan(self.low) else f" [{self.low:.4g}, {self.high:.4g}]")

    @classmethod
    def around(
        cls, value: float, margin: float, lowest: float = -np.inf, highest: float = np.inf
    ) -> "Estimate":
        """`value` +- `margin`, clipped to the range that the figure can take; a NaN margin gives no interval."""
        low, high = np.maximum(value - margin, lowest), np.minimum(value + margin, highest)
        return cls(float(value), float(low), float(high))


UNDEFINED = Estimate(float("nan"), float("nan"), float("nan"))


def check_scores(scores: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scores, see `native_floats`, and keep as arrays `[T, N]`; raise ValueError for other shapes, types, and NaN."""
    require_unmasked({"scores": scores, "keep": keep})
    scores, keep = native_floats(scores), as_array(keep)
    if scores.ndim != 2 or scores.size == 0:
        one = ": of one target scores[None] and keep[None]" if scores.ndim == 1 and scores.size else ""
        raise ValueError(f"scores must be [targets, examples] and not empty; got shape {scores.shape}{one}")
    require_bool(keep, scores.shape, "scores")
    nan = np.isnan(scores)
    if nan.any():
        target, example = np.argwhere(nan)[0]
        raise ValueError(
            f"scores[{target}, {example}] is NaN: leave out the targets that could not be attacked, and the examples that "
            f"are not scored (metrics.scored_part)"
        )
    return scores, keep


def require_bool(keep: np.ndarray, shape: tuple[int, ...], like: str) -> None:
    """Raise ValueError where memberships are of another type or shape than scores or signals, `like`, have."""
    if keep.shape == shape and keep.dtype == bool:
        return
    how = ""
    if keep.shape != shape and keep.shape == shape[::-1]:
        how = ": transpose it"
    elif keep.shape == shape and keep.dtype.kind in "iuf" and np.isin(keep, (0, 1)).all():
        how = ": of 0 and 1 keep.astype(bool)"
    elif keep.dtype.kind in "iu" and keep.size and keep.max() > 1:
        how = ": of indices of members make a mask, keep[model, indices] = True"
    raise ValueError(
        f"keep must be bool of shape {shape} like {like}; got {keep.dtype} of shape {keep.shape}{how}"
    )


def scored_part(scores: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is measured of an attack that leaves out some examples: the columns of those that it scores.

    Args:
        scores: float `[T, N]`; NaN for all targets at the examples that are left out.
        keep: bool `[T, N]`.

    Returns:
        scores `[T, n]`, keep `[T, n]`, and which examples these are, int `[n]`; all of them where none is left out.

    >>> scored_part(np.array([[1.0, np.nan, 3.0]]), np.array([[True, True, False]]))[2]
    array([0, 2])
    """
    scores, keep = as_array(scores), as_array(keep)
    scored = ~np.isnan(scores).all(axis=0)
    if scored.all():
        return scores, keep, np.arange(scores.shape[1])
    return scores[:, scored], keep[:, scored], np.flatnonzero(scored)


def check_fpr(fpr: float) -> None:
    """Raise ValueError unless `fpr` lies in [0, 1]."""
    if not 0 <= fpr <= 1:
        raise ValueError(f"fpr is a fraction between 0 and 1; got {fpr}")


def clusters_of(keep: np.ndarray, clusters: np.ndarray | None = None) -> np.ndarray:
    """Number each target's cluster, int `[T]` from 0: complementary pairs, else every target by itself."""
    if clusters is None:
        return np.arange(len(keep)) // 2 if is_paired(keep) else np.arange(len(keep))
    if np.shape(clusters) != (len(keep),):
        raise ValueError(
            f"clusters must be one label a target, [{len(keep)}]; got shape {np.shape(clusters)}"
        )
    return np.unique(as_array(clusters), return_inverse=True)[1]


def cluster_margin(values: np.ndarray) -> float:
    """Half the 95 % interval of a mean over clusters, by Student's t; NaN below MIN_CLUSTERS."""
    if len(values) < MIN_CLUSTERS:
        return float("nan")
    return float(special.stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(len(values)))


def resample_rates(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """False- and true-positive rates at G thresholds in resamples of whole clusters.

    Args:
        counts: int `[2, P, G]`, false and true positives of each cluster at descending thresholds, the last of which
            lets everything through.

    Returns:
        FPR and TPR, float64 `[B, G]`; None without members or non-members, or with too few clusters. A single cluster
        has its members and its non-members drawn instead. The draws depend on P alone, so that two figures of the
        same targets can be compared resample by resample, and a figure is the same each time it is asked for.
    """
    P = counts.shape[1]
    if not counts[:, :, -1].sum(axis=1).all() or 1 < P < MIN_CLUSTERS:
        return None
    if P == 1:
        rng = np.random.default_rng(0)
        # Members and non-members are drawn apart, which on the thresholds is a multinomial.
        false, true = (
            np.cumsum(rng.multinomial(c[-1], np.diff(c, prepend=0) / c[-1], size=RESAMPLES), axis=1) / c[-1]
            for c in counts[:, 0]
        )
        return false, true
    rates = []
    for side in counts:
        rate = _draws(P) @ side.astype(np.float64)
        rate /= np.where(
            rate[:, -1:] == 0, np.nan, rate[:, -1:]
        )  # in place: as large as all that is made here besides
        rates.append(rate)
    return rates[0], rates[1]


@functools.lru_cache(maxsize=4)
def _draws(P: int) -> np.ndarray:
    """How often each of P clusters is drawn in each resample, float64 `[B, P]`."""
    draws = np.random.default_rng(0).multinomial(P, np.full(P, 1 / P), size=RESAMPLES).astype(np.float64)
    draws.flags.writeable = False
    return draws


def resample_margin(resampled: np.ndarray, num_clusters: int) -> np.ndarray:
    """Half the 95 % interval of a figure, from its values in resamples (first axis) of clusters.

    Student's quantile times the bootstrap's standard error times sqrt(P / (P - 1)): resampling P clusters shows only
    (P - 1) / P of the variance between them. A single cluster's members and non-members are many: neither is needed.
    """
    error = np.std(resampled, axis=0, ddof=1)
    if num_clusters == 1:
        return special.ndtri(0.975) * error
    return special.stdtrit(num_clusters - 1, 0.975) * np.sqrt(num_clusters / (num_clusters - 1)) * error
