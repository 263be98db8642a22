"""Lower bounds on a training's epsilon at a given delta from attack scores, through `jax_privacy.auditing`.

A bound at confidence 1 - a exceeds the true epsilon with probability at most a, *where its assumption holds*; each
carries that assumption in a sentence. Thresholds are chosen elsewhere, on a part of the scores that the bound itself
does not use or by the caller. (`jax_privacy` offers a Bonferroni correction too. It divides by the corners of the ROC
curve's hull, a number that the scores themselves chose, so it is not used. Nor is its `epsilon_from_gdp`, which takes
absolute values of mu and so claims a positive epsilon for pure noise; the formula is here instead.)

On the Gaussian mechanism with mu = 1, epsilon 4.38 at delta 1e-5, one score a trial, 10,000 members and 10,000
non-members: see `tests/test_epsilon.py`.

`jax_privacy` is an extra: `pip install "lira[privacy]"`.
"""

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from lira.membership import is_paired
from lira.metrics import roc
from lira.metrics.counting import last_within

__all__ = ["EpsilonBound", "epsilon_bounds", "gaussian_epsilon", "target_epsilons"]

TRIALS = (
    "every score comes from a training of its own (independent trials): scores of one example over the models of a "
    "pool may, scores of many examples of one model may not"
)
ONE_RUN = (
    "every example was a member by a fair coin of its own, and no score or threshold used the coins: the examples of "
    "one model may, whose membership is random and whose pair was left out"
)
GAUSSIAN = "the whole trade-off curve is a Gaussian mechanism's, which one threshold cannot show"
ASSUMES = {
    "clopper_pearson": TRIALS,
    "one_run": ONE_RUN,
    "one_run_fdp": f"{ONE_RUN}; and {GAUSSIAN}",
    "gdp": f"{TRIALS}; and {GAUSSIAN}",
}
# False-positive rates among which the threshold of a one-run bound is looked for.
GRID = 40


@dataclass(frozen=True)
class EpsilonBound:
    """A lower bound on epsilon: with probability `confidence` the true one is not below it, if `assumes` holds."""

    method: str  # "clopper_pearson", "one_run", "one_run_fdp" or "gdp"
    epsilon: float
    delta: float
    confidence: float
    assumes: str

    def __str__(self) -> str:
        """Show `epsilon >= 1.99 at delta 1e-05 (95 %, gdp), if every score ...`."""
        return (
            f"epsilon >= {self.epsilon:.3g} at delta {self.delta:g} ({100 * self.confidence:g} %, {self.method}), "
            f"if {self.assumes}"
        )


def epsilon_bounds(
    in_scores: np.ndarray,
    out_scores: np.ndarray,
    *,
    delta: float,
    confidence: float = 0.95,
    threshold: float | None = None,
    seed: int = 0,
) -> dict[str, EpsilonBound]:
    """Lower bounds on epsilon from scores of members and of non-members, by four methods with different assumptions.

    - "clopper_pearson" (Nasr et al. 2021, arXiv 2101.04535, section IV): the larger of
      `ln((TPR_low - delta) / FPR_up)` and `ln((TNR_low - delta) / FNR_up)`.
    - "one_run" (Steinke et al. 2023, arXiv 2305.08846, Theorem 5.2), guessing "member" only.
    - "one_run_fdp" (Mahloujifar et al. 2024, arXiv 2410.22235), with the Gaussian mechanism's f.
    - "gdp" (Nasr et al. 2023, arXiv 2302.07956): `mu = Phi^-1(1 - FPR_up) - Phi^-1(FNR_up)`, then `gaussian_epsilon`.

    Which of them applies is for the caller to know, see `EpsilonBound.assumes`. For one example n of a pool, whose
    models are independent trainings: `epsilon_bounds(phi[keep[:, n], n, 0], phi[~keep[:, n], n, 0], ...)`. For all
    examples of one target: `target_epsilons`.

    Args:
        in_scores: float `[n]`, higher = more likely a member. +-inf are ordered.
        out_scores: float `[m]`.
        delta: in [0, 1). With 0 only "clopper_pearson" is given: the others need delta > 0.
        confidence: in (0.5, 1), of each bound by itself.
        threshold: called a member from here on; chosen without these scores. None chooses it on a random half of them
            and measures on the other half.
        seed: of that split.

    Returns:
        By method; 0 where nothing can be claimed.

    Raises:
        ValueError: a side has fewer than two scores or a NaN, or `delta` or `confidence` is out of range.
        ImportError: `jax_privacy` is missing.
    """
    auditing = _auditing()
    sides = []
    for name, values in (("in_scores", in_scores), ("out_scores", out_scores)):
        side = np.asarray(values, np.float64)
        if side.ndim != 1 or len(side) < 2 or np.isnan(side).any():
            raise ValueError(f"{name} must be at least two numbers [n] without NaN; got shape {side.shape}")
        sides.append(side)
    inside, outside, threshold = _ranked(sides[0], sides[1], threshold)
    _check_levels(delta, confidence)
    a = 1 - confidence
    auditor = auditing.CanaryScoreAuditor(inside, outside)
    strategy = auditing.Split(seed=seed) if threshold is None else auditing.Explicit(threshold)
    found = {
        "clopper_pearson": auditor.epsilon_clopper_pearson(
            a, delta, one_sided=False, threshold_strategy=strategy
        )
    }
    if delta > 0:
        found["one_run"] = auditor.epsilon_one_run(a, delta, threshold_strategy=strategy)
        found["one_run_fdp"] = auditor.epsilon_one_run_fdp(a, delta, threshold_strategy=strategy)
        found["gdp"] = gaussian_epsilon(_mu(inside, outside, a, threshold, seed), delta)
    return {
        method: EpsilonBound(method, float(epsilon), delta, confidence, ASSUMES[method])
        for method, epsilon in found.items()
    }


def target_epsilons(
    scores: np.ndarray, keep: np.ndarray, *, delta: float, confidence: float = 0.95, method: str = "one_run"
) -> np.ndarray:
    """A lower bound on epsilon from each target of a pool by itself: all its examples, one training.

    The threshold for one half of the targets is the one that serves the other half best on average. What is assumed
    is that membership was drawn example by example with fair coins (`keep_mask`) and that a target's scores were made
    without its pair, as all attacks here do by default.

    Args:
        scores: float `[T, N]`, higher = more likely a member.
        keep: bool `[T, N]`.
        delta: in (0, 1).
        confidence: in (0.5, 1), of each bound by itself. For the largest of T bounds to hold, ask for
            `1 - 0.05 / T`.
        method: "one_run" or "one_run_fdp", see `epsilon_bounds`; the second takes some 0.2 s a target.

    Returns:
        float64 `[T]`, 0 where nothing can be claimed.

    Raises:
        ValueError: fewer than two pairs (or two models), an argument out of range, shapes disagree, NaN.
        ImportError: `jax_privacy` is missing.
    """
    if method not in ("one_run", "one_run_fdp"):
        raise ValueError(f'method must be "one_run" or "one_run_fdp", one training each; got {method!r}')
    _check_levels(delta, confidence)
    if delta == 0:
        raise ValueError("delta must be positive for one-run bounds; got 0")
    auditing = _auditing()
    scores, keep = np.asarray(scores), np.asarray(keep)
    pooled = roc(scores, keep)  # checks them
    if pooled.num_clusters < 2:
        raise ValueError(
            "target_epsilons chooses thresholds on other targets: give at least two pairs (or models)"
        )

    def bound(true: int, false: int, members: int, nonmembers: int) -> float:
        guesses = (
            np.repeat([1.0, 0.0], [hit, total - hit]) for hit, total in ((true, members), (false, nonmembers))
        )
        auditor = auditing.CanaryScoreAuditor(*guesses)
        audit = getattr(auditor, f"epsilon_{method}")
        return float(audit(1 - confidence, delta, threshold_strategy=auditing.Explicit(0.5)))

    group = np.arange(len(scores)) // 2 if is_paired(keep) else np.arange(len(scores))
    first = group < (group[-1] + 1) // 2
    epsilons = np.empty(len(scores))
    for half, other in ((first, ~first), (~first, first)):
        curve = roc(scores[other], keep[other])
        wanted = np.geomspace(1, curve.num_nonmembers / 2, GRID)
        points = np.unique(last_within(curve.false_positives, wanted))
        counts = np.stack([curve.true_positives, curve.false_positives])[:, points]
        totals = np.array([curve.num_members, curve.num_nonmembers])
        # One average target.
        averages = np.round(np.column_stack([counts.T, np.tile(totals, (len(points), 1))]) / other.sum())
        best = np.argmax([bound(*row) for row in averages.astype(int)])
        threshold = curve.thresholds[points[best]]
        for t in np.flatnonzero(half):
            found = scores[t] >= threshold
            epsilons[t] = bound(
                int(np.sum(found & keep[t])),
                int(np.sum(found & ~keep[t])),
                int(np.sum(keep[t])),
                int(np.sum(~keep[t])),
            )
    return epsilons


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon at `delta` of a mechanism whose trade-off curve is that of N(0, 1) against N(mu, 1).

    Solves `delta = Phi(-eps / mu + mu / 2) - e^eps Phi(-eps / mu - mu / 2)` (Dong et al. 2019, arXiv 1905.02383,
    Corollary 2.13); 0 where delta alone suffices.

    Raises:
        ValueError: mu is negative or not finite, or delta is not in (0, 1).

    >>> round(gaussian_epsilon(mu=1, delta=1e-5), 3)
    4.377
    """
    if not 0 <= mu < np.inf:
        raise ValueError(f"mu must be a finite number from 0; got {mu}")
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1); got {delta}")
    if mu == 0 or 2 * special.ndtr(mu / 2) - 1 <= delta:
        return 0.0

    def excess(epsilon: float) -> float:
        # In logarithms: both terms are tiny where delta is.
        larger = special.log_ndtr(-epsilon / mu + mu / 2)
        smaller = epsilon + special.log_ndtr(-epsilon / mu - mu / 2)
        return larger + np.log(-np.expm1(min(smaller - larger, -1e-300))) - np.log(delta)

    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(optimize.root_scalar(excess, bracket=(0.0, high), xtol=1e-9).root)


def _ranked(
    inside: np.ndarray, outside: np.ndarray, threshold: float | None
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Ranks in place of scores, and where among them the threshold lies: the order is all that a bound looks at.

    `jax_privacy` takes infinite scores for thresholds that nobody reaches.
    """
    distinct, ranks = np.unique(np.concatenate([inside, outside]), return_inverse=True)
    ranks = ranks.astype(np.float64)
    if threshold is not None:
        ends = [np.searchsorted(distinct, threshold, side) for side in ("left", "right")]
        threshold = (sum(map(float, ends)) - 1) / 2
    return ranks[: len(inside)], ranks[len(inside) :], threshold


def _mu(inside: np.ndarray, outside: np.ndarray, a: float, threshold: float | None, seed: int) -> float:
    """Lower bound on mu at level `a`: at `threshold`, else at one that a random half chose for the other half."""
    if threshold is None:
        rng = np.random.default_rng(seed)
        inside, outside = rng.permutation(inside), rng.permutation(outside)
        cut = len(inside) // 2, len(outside) // 2
        tried = np.union1d(inside[: cut[0]], outside[: cut[1]])
        threshold = tried[np.argmax(_mus(inside[: cut[0]], outside[: cut[1]], a, tried))]
        inside, outside = inside[cut[0] :], outside[cut[1] :]
    return max(0.0, float(_mus(inside, outside, a, np.array([threshold]))[0]))


def _mus(inside: np.ndarray, outside: np.ndarray, a: float, thresholds: np.ndarray) -> np.ndarray:
    """Phi^-1(1 - FPR_up) - Phi^-1(FNR_up) at each threshold, each rate's upper bound at level a / 2."""
    missed = np.searchsorted(np.sort(inside), thresholds, side="left")
    false = len(outside) - np.searchsorted(np.sort(outside), thresholds, side="left")
    ends = []
    for count, total in ((missed, len(inside)), (false, len(outside))):
        # Clopper and Pearson's bound is 1 where all of them were.
        beta = stats.beta.ppf(1 - a / 2, count + 1, np.maximum(total - count, 1))
        ends.append(special.ndtri(np.where(count < total, beta, 1.0)))
    return -ends[1] - ends[0]


def _check_levels(delta: float, confidence: float) -> None:
    if not 0 <= delta < 1:
        raise ValueError(f"delta must be in [0, 1); got {delta}")
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence must be between 0.5 and 1, such as 0.95; got {confidence}")


def _auditing():
    try:
        from jax_privacy import auditing
    except ImportError as error:
        raise ImportError('epsilon bounds need jax_privacy: pip install "lira[privacy]"') from error
    return auditing
