"""Lower bounds on a training's epsilon at a given delta from attack scores, through `jax_privacy.auditing`.

A bound at confidence 1 - a exceeds the true epsilon with probability at most a, *where its assumption holds*; each
carries that assumption in a sentence. Thresholds are chosen elsewhere, on a part of the scores that the bound itself
does not use or by the caller. (`jax_privacy` offers a Bonferroni correction too. It divides by the corners of the ROC
curve's hull, a number that the scores themselves chose, so it is not used. Nor is its `epsilon_from_gdp`, which takes
absolute values of mu and so claims a positive epsilon for pure noise; the formula is here instead. Its one-run bounds
take membership for a fair coin, and so certify ln(p / (1 - p)) of a coin p for pure noise: see `coin_limit`.)

`jax_privacy` is an extra: `pip install "lira[privacy]"`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from lira.metrics import Roc, roc
from lira.metrics._shared import check_scores, clusters_of
from lira.metrics.counting import last_within

__all__ = ["EpsilonBound", "coin_limit", "epsilon_bounds", "gaussian_epsilon", "target_epsilons"]

TRIALS = (
    "every score comes from a training of its own (independent trials): scores of one example over the models of a "
    "pool may, scores of many examples of one model may not"
)
ONE_RUN = (
    "every example was a member by a coin of its own, of one probability, and no score or threshold used the coins: the "
    "examples of one model may, whose membership was drawn so and whose pair was left out"
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
    independent: bool = False,
    seed: int = 0,
) -> dict[str, EpsilonBound]:
    """Lower bounds on epsilon from scores of members and of non-members, by four methods with different assumptions.

    - "clopper_pearson" (Nasr et al. 2021, arXiv 2101.04535, section IV): the larger of
      `ln((TPR_low - delta) / FPR_up)` and `ln((TNR_low - delta) / FNR_up)`.
    - "one_run" (Steinke et al. 2023, arXiv 2305.08846, Theorem 5.2), guessing "member" only, less what the coin of
      membership itself explains, see `coin_limit`.
    - "one_run_fdp" (Mahloujifar et al. 2024, arXiv 2410.22235), with the Gaussian mechanism's f and such a coin.
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
        independent: whether each example's membership is known to have been drawn by a coin of its own, all of one
            probability, which need not be known. Scores cannot show it (a balanced design looks like fair coins), so
            without it the one-run bounds are not given.
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
        if independent:
            found |= _one_run_bounds(inside, outside, a, delta, threshold, seed)
        found["gdp"] = gaussian_epsilon(_mu(inside, outside, a, threshold, seed), delta)
    return {
        method: EpsilonBound(method, float(epsilon), delta, confidence, ASSUMES[method])
        for method, epsilon in found.items()
    }


def target_epsilons(
    scores: np.ndarray,
    keep: np.ndarray,
    *,
    independent: bool,
    delta: float,
    confidence: float = 0.95,
    method: str = "one_run",
) -> np.ndarray:
    """A lower bound on epsilon from each target of a pool by itself: all its examples, one training.

    The threshold for one half of the targets is the one that serves the other half best on average. What is assumed
    is that membership was drawn example by example with independent coins of one probability (`keep_mask`), and that a
    target's scores were made without its pair, as all attacks here do by default. The probability is estimated, target
    by target, and what it alone explains is not certified, see `coin_limit`.

    Args:
        scores: float `[T, N]`, higher = more likely a member.
        keep: bool `[T, N]`.
        independent: whether the coins are known, or were declared, to be such. The memberships cannot show it: where
            they are balanced or stratified nothing is claimed, so without it all bounds are 0.
        delta: in (0, 1).
        confidence: in (0.5, 1), of each bound by itself. For the largest of T bounds to hold, ask for
            `1 - 0.05 / T`.
        method: "one_run" or "one_run_fdp", see `epsilon_bounds`.

    Returns:
        float64 `[T]`, 0 where nothing can be claimed.

    Raises:
        ValueError: fewer than two pairs (or two models), an argument out of range, shapes disagree, NaN.
        ImportError: `jax_privacy` is missing.
    """
    if method not in ONE_RUN_METHODS:
        raise ValueError(f'method must be "one_run" or "one_run_fdp", one training each; got {method!r}')
    bound = ONE_RUN_METHODS[method]
    _check_levels(delta, confidence)
    if delta == 0:
        raise ValueError("delta must be positive for one-run bounds; got 0")
    _auditing()
    scores, keep = check_scores(scores, keep)
    group = clusters_of(keep)
    if group[-1] == 0:
        raise ValueError(
            "target_epsilons chooses thresholds on other targets: give at least two pairs (or models)"
        )
    epsilons = np.zeros(len(scores))
    if not independent:
        return epsilons
    first = group < (group[-1] + 1) // 2
    for half, other in ((first, ~first), (~first, first)):
        # One average target of the other half.
        curve = roc(scores[other], keep[other])
        threshold = _best_threshold(curve, int(other.sum()), bound, 1 - confidence, delta)
        for t in np.flatnonzero(half):
            counts = _counts(scores[t], keep[t], threshold)
            limit = coin_limit(*counts[2:], (1 - confidence) / 2)
            epsilons[t] = bound(*counts, (1 - confidence) / 2, delta, limit)
    return epsilons


def coin_limit(members: int, nonmembers: int, level: float) -> float:
    """The upper confidence limit of max(p, 1 - p), where each example was a member by a coin of probability p.

    One-run bounds compare how many guesses are right with what a fair coin allows. By a coin p the odds that a guess is
    right are at most e^epsilon p / (1 - p), not e^epsilon, so that a bound exceeds epsilon by ln(p / (1 - p)) where it
    takes the coin for a fair one. (What delta adds is, for each example and whatever the coins, at most delta, half of
    what Theorem 5.2 of arXiv 2305.08846 reckons with.) Not being seen to be unfair does not make a coin fair, hence the
    limit: Clopper and Pearson's, for both sides together.

    Args:
        members: how many heads.
        nonmembers: how many tails.
        level: the probability that the limit is too low, at most.

    Returns:
        From 0.5 to 1.

    >>> round(coin_limit(900, 100, 0.025), 3)
    0.92
    """
    count, total = max(members, nonmembers), members + nonmembers
    return float(stats.beta.ppf(1 - level / 2, count + 1, total - count)) if count < total else 1.0


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


# --- One-run bounds from counts -------------------------------------------------------------------------------------


def _one_run(
    true: int, false: int, members: int, nonmembers: int, level: float, delta: float, coin: float
) -> float:
    """The bound of Steinke et al. at `level` from guesses of "member", `true` right and `false` wrong ones."""
    if coin >= 1:
        return 0.0
    auditing = _auditing()
    guesses = (
        np.repeat([1.0, 0.0], [hit, total - hit]) for hit, total in ((true, members), (false, nonmembers))
    )
    auditor = auditing.CanaryScoreAuditor(*guesses)
    apparent = auditor.epsilon_one_run(level, delta, threshold_strategy=auditing.Explicit(0.5))
    return max(0.0, float(apparent) - float(special.logit(coin)))


def _one_run_fdp(
    true: int, false: int, members: int, nonmembers: int, level: float, delta: float, coin: float
) -> float:
    """The bound of Mahloujifar et al. (Algorithm 3) at `level`, for a coin of at most `coin`.

    An event of probability x within the members has at least F(x) = Phi(Phi^-1(x) - mu) within the non-members, so
    guesses whose right ones weigh r weigh at least (1 - p) F(r / p) in wrong ones. The paper has F(r) for the fair
    coin, which by convexity is no more than F(2 r) / 2; the smaller of both is taken, so that a fair coin gives its
    bound. No shift of epsilon would do, since the whole curve is inferred from one point of it: noise at 90 % members reads
    3.8 where the coin is taken for fair, and ln(.9 / .1) is 2.2.
    """
    m, guesses = members + nonmembers, true + false

    def excess(mu: float) -> float:
        """Positive where so many right guesses contradict mu at `level`."""

        def wrong(right: float) -> float:
            plain = special.ndtr(special.ndtri(right) - mu)
            return min(plain, (1 - coin) * special.ndtr(special.ndtri(min(right / coin, 1.0)) - mu))

        r, h = level * true / m, level * false / m
        for i in range(true - 1, -1, -1):
            higher = max(h, wrong(r))
            if higher == h:
                break  # neither changes any more
            r, h = min(r + i / (guesses - i) * (higher - h), 1.0), higher
        return r + h - guesses / m

    if coin >= 1 or excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return gaussian_epsilon(optimize.root_scalar(excess, bracket=(0.0, high), xtol=1e-9).root, delta)


ONE_RUN_METHODS = {"one_run": _one_run, "one_run_fdp": _one_run_fdp}


def _one_run_bounds(
    inside: np.ndarray, outside: np.ndarray, a: float, delta: float, threshold: float | None, seed: int
) -> dict[str, float]:
    """Both one-run bounds at level `a`, half of it the coin's; without a threshold one that a random half chose."""
    scores = np.concatenate([inside, outside])[None]
    keep = np.arange(scores.size)[None] < len(inside)
    coin = coin_limit(len(inside), len(outside), a / 2)
    found = {}
    # Halves of the examples, not of each side: of those that remain each is a member by its coin still.
    chosen = np.random.default_rng(seed).permutation(scores.size) < scores.size // 2
    for method, bound in ONE_RUN_METHODS.items():
        kept, at = slice(None), threshold
        if at is None:
            kept, at = ~chosen, np.inf
            if keep[:, chosen].any() and not keep[:, chosen].all():
                at = _best_threshold(roc(scores[:, chosen], keep[:, chosen]), 1, bound, a, delta)
        found[method] = bound(*_counts(scores[0, kept], keep[0, kept], at), a / 2, delta, coin)
    return found


def _best_threshold(
    curve: Roc, targets: int, bound: Callable[..., float], level: float, delta: float
) -> float:
    """The threshold of GRID that gives an average target of a pooled curve the largest bound."""
    wanted = np.geomspace(1, max(curve.num_nonmembers / 2, 1), GRID)
    points = np.unique(last_within(curve.false_positives, wanted))
    counts = np.stack([curve.true_positives, curve.false_positives])[:, points]
    totals = np.array([curve.num_members, curve.num_nonmembers])
    averages = np.round(np.column_stack([counts.T, np.tile(totals, (len(points), 1))]) / targets).astype(int)
    coin = coin_limit(int(averages[0, 2]), int(averages[0, 3]), level / 2)
    best = np.argmax([bound(*map(int, row), level / 2, delta, coin) for row in averages])
    return float(curve.thresholds[points[best]])


def _counts(scores: np.ndarray, keep: np.ndarray, threshold: float) -> tuple[int, int, int, int]:
    """True and false positives, members and non-members of one target, `[N]` both."""
    found = scores >= threshold
    return int(np.sum(found & keep)), int(np.sum(found & ~keep)), int(np.sum(keep)), int(np.sum(~keep))


# --- The Gaussian mechanism's mu ------------------------------------------------------------------------------------


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
