"""Epsilon from one training: how many memberships can be guessed, of examples that were members by coins of their own.

How many are guessed is fixed beforehand (`GUESSED`): the examples with the highest scores are guessed to be members, and
as many with the lowest to be none. Such guesses know nothing of the coins, so however dependent the scores of one model
are on each other, no more of them are right than the theorems allow (Steinke et al. 2023, arXiv 2305.08846; Mahloujifar
et al. 2024, arXiv 2410.22235). The numbers of guesses that are tried share the level.
"""

from typing import Literal

import numpy as np
from scipy import special

from lira.epsilon.bound import EpsilonBound, auditing, level_of
from lira.epsilon.gaussian import gaussian_epsilon, lower_mu
from lira.metrics._shared import check_scores
from lira.metrics.coins import check_coins
from lira.numbers import as_array

__all__ = [
    "GUESSED",
    "METHODS",
    "best_guesses",
    "canary_epsilons",
    "coin_limit",
    "pool_epsilon",
    "target_epsilons",
]

Method = Literal["one_run", "one_run_fdp"]
METHODS: tuple[Method, ...] = ("one_run", "one_run_fdp")
# The shares of the examples that are guessed about, half of them from each end. Not all: members are not just half of
# them, and where every guess would be right, a wrong one costs most.
GUESSED = (1 / 64, 1 / 16, 1 / 4, 1 / 2, 7 / 8)


def canary_epsilons(
    scores: np.ndarray,
    member: np.ndarray,
    *,
    delta: float,
    confidence: float = 0.95,
    fair: bool = False,
    chosen_from: int = 1,
) -> dict[str, EpsilonBound]:
    """Lower bounds on epsilon from canaries: examples that were members by coins of their own, of one training or a few.

    - "one_run" (Steinke et al. 2023, arXiv 2305.08846, Theorem 5.2) and "one_run_fdp" (Mahloujifar et al. 2024, arXiv
      2410.22235, Algorithm 3, with the Gaussian mechanism's f) hold however dependent the scores of a model are.
    - "gdp" (Nasr et al. 2023, arXiv 2302.07956) is a reading, and no bound where they are dependent.

    Args:
        scores: float `[m]`, higher = more likely a member, made without the coins; or `[T, m]` of T trainings, each
            scored without the coins of any of them: every coin counts.
        member: bool, likewise.
        delta: in (0, 1).
        confidence: in (0.5, 1), of each bound by itself.
        fair: whether the coins are known to be fair. Otherwise their probability is estimated, and what it alone
            explains is not certified, see `coin_limit`.
        chosen_from: of how many attacks' bounds the largest is taken; they share what `confidence` leaves.

    Returns:
        By method; 0 where nothing can be claimed.

    Raises:
        ValueError: shapes disagree, a score is NaN, all are members or none is, or an argument is out of range.
        ImportError: `jax_privacy` is missing.
    """
    scores, member = np.asarray(as_array(scores), np.float64), as_array(member)
    if scores.ndim not in (1, 2) or scores.shape != member.shape or member.dtype != bool:
        raise ValueError(
            f"scores must be numbers [m] or [T, m], and member bool of the same shape; got {scores.dtype} {scores.shape} "
            f"and {member.dtype} {member.shape}"
        )
    if np.isnan(scores).any():
        raise ValueError(f"scores holds NaN, first of canary {np.isnan(scores).nonzero()[-1][0]}")
    if member.all() or not member.any():
        raise ValueError(
            f"{'all' if member.all() else 'none'} of the canaries are members: coins decide, about half"
        )
    level = level_of(delta, confidence, chosen_from)
    _check_delta(delta)
    scores, member = scores.ravel(), member.ravel()
    found: dict[str, float] = {
        method: best_guesses(scores, member, level, delta, method, fair=fair) for method in METHODS
    }
    found["gdp"] = gaussian_epsilon(lower_mu(scores[member], scores[~member], level, None, 0), delta)
    return {method: EpsilonBound.of(method, each, delta, confidence) for method, each in found.items()}


def target_epsilons(
    scores: np.ndarray,
    keep: np.ndarray,
    *,
    independent: bool,
    delta: float,
    confidence: float = 0.95,
    method: Method = "one_run",
    fair: bool = False,
    chosen_from: int = 1,
    labels: np.ndarray | None = None,
) -> np.ndarray:
    """A lower bound on epsilon from each target of a pool by itself: all its examples, one training.

    What is assumed is that membership was drawn example by example with independent coins of one probability
    (`keep_mask`), and that a target's scores were made without its pair, as all attacks here do by default. The
    probability is estimated, target by target, and what it alone explains is not certified, see `coin_limit`.

    Args:
        scores: float `[T, N]`, higher = more likely a member.
        keep: bool `[T, N]`.
        independent: whether the coins are known, or were declared, to be such. The memberships cannot show it: where
            they are balanced or stratified nothing is claimed, so without it all bounds are 0. Where they contradict it,
            by their counts, their order or the labels, it is refused; that they do not is no proof, see
            `metrics.coins.contradiction`.
        delta: in (0, 1).
        confidence: in (0.5, 1), of each bound by itself. For the largest of T bounds to hold, `chosen_from` is T; for
            one bound of all, see `pool_epsilon`.
        method: "one_run" or "one_run_fdp", see `canary_epsilons`.
        fair: whether the coins are known to be fair, see there too.
        chosen_from: of how many bounds the largest is taken.
        labels: int `[N]`, by which the coins are looked at too; -1 where one is not known.

    Returns:
        float64 `[T]`, 0 where nothing can be claimed.

    Raises:
        ValueError: an argument is out of range, shapes disagree, NaN; or the memberships are no such coins.
        ImportError: `jax_privacy` is missing.
    """
    _require_coins(keep, labels, independent)
    return _by_target(
        scores, keep, independent, delta, confidence, method=method, fair=fair, chosen_from=chosen_from
    )


def _require_coins(keep: np.ndarray, labels: np.ndarray | None, independent: bool) -> None:
    """Raise ValueError where memberships contradict what is claimed of them; shapes are checked with the scores'."""
    keep = as_array(keep)
    if not independent or keep.ndim != 2 or keep.dtype != bool:
        return
    if labels is not None and np.shape(labels) != keep.shape[1:]:
        raise ValueError(f"labels must be one an example, [{keep.shape[1]}]; got shape {np.shape(labels)}")
    check_coins(keep, labels)


def _by_target(
    scores: np.ndarray,
    keep: np.ndarray,
    independent: bool,
    delta: float,
    confidence: float,
    *,
    method: Method,
    fair: bool,
    chosen_from: int = 1,
) -> np.ndarray:
    """`target_epsilons` of coins that were looked at."""
    if method not in METHODS:
        raise ValueError(f'method must be "one_run" or "one_run_fdp", one training each; got {method!r}')
    level = level_of(delta, confidence, chosen_from)
    _check_delta(delta)
    auditing()
    scores, keep = check_scores(scores, keep)
    if not independent:
        return np.zeros(len(scores))
    rows = zip(scores, keep, strict=True)
    return np.array([best_guesses(*row, level, delta, method, fair=fair) for row in rows])


def pool_epsilon(
    scores: np.ndarray,
    keep: np.ndarray,
    *,
    independent: bool,
    delta: float,
    confidence: float = 0.95,
    method: Method = "one_run",
    fair: bool = False,
    labels: np.ndarray | None = None,
) -> EpsilonBound:
    """One lower bound on epsilon from all targets of a pool, by one attack or the best of several.

    The median of the targets' bounds: all bound one epsilon, that of the training. If each is too large with
    probability a, half of them are with probability 2 a at most (Markov), however dependent they are.

    Args:
        scores: float `[T, N]`, or `[A, T, N]` of A attacks among which the largest bound is chosen; they share the level.
        keep: bool `[T, N]`.
        independent: as for `target_epsilons`, and so are the other arguments.
        delta: in (0, 1).
        confidence: in (0.5, 1), of the bound that is returned.
        method: "one_run" or "one_run_fdp".
        fair: as there, too.
        labels: as there.

    Raises:
        ValueError: as `target_epsilons`.
        ImportError: `jax_privacy` is missing.
    """
    attacks = [scores] if np.ndim(scores) == 2 else scores
    level = level_of(delta, confidence, len(attacks)) / 2
    _require_coins(keep, labels, independent)
    medians = [
        np.median(_by_target(each, keep, independent, delta, 1 - level, method=method, fair=fair))
        for each in attacks
    ]
    return EpsilonBound.of(method, max(medians), delta, confidence)


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
    return float(special.betaincinv(count + 1, total - count, 1 - level / 2)) if count < total else 1.0


# --- From scores to guesses -----------------------------------------------------------------------------------------


def best_guesses(
    scores: np.ndarray,
    member: np.ndarray,
    level: float,
    delta: float,
    method: Method,
    *,
    fair: bool = False,
    thresholds: np.ndarray | None = None,
) -> float:
    """The largest bound at `level` from scores and memberships `[m]` over the numbers of guesses, which share the level.

    Where the coins are not known to be fair, half of the level is their limit's. With thresholds, chosen without these
    scores, what reaches one is guessed to be a member instead, and nothing is guessed of the others.
    """
    m, coin = len(scores), 0.5
    if not fair:
        level /= 2
        coin = coin_limit(int(member.sum()), int((~member).sum()), level)
    if coin >= 1:
        return 0.0
    if thresholds is None:
        right, guesses = _from_both_ends(scores, member)
    else:
        found = scores >= thresholds[:, None]
        right, guesses = (found & member).sum(axis=1), found.sum(axis=1)
    level /= len(guesses)
    # What delta = 0 would allow is more: the best of all is found early, and few others are looked at.
    most = (
        special.logit(special.betaincinv(right, guesses - right + 1, level)) if method == "one_run" else right
    )
    best = 0.0
    for each in np.argsort(-np.nan_to_num(most, nan=-np.inf)):
        if method == "one_run" and not most[each] - special.logit(coin) > best:
            break
        best = max(best, _BOUNDS[method](int(right[each]), int(guesses[each]), m, level, delta, coin))
    return best


def _from_both_ends(scores: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many guesses are right, and how many there are, int `[len(GUESSED)]`: the highest scores, and the lowest."""
    m = len(scores)
    # Ties fall as they may: in the order of the file they might be in that of the memberships.
    order = np.random.default_rng(0).permutation(m)
    order = order[np.argsort(-scores[order], kind="stable")]
    guesses = np.clip(np.round(np.array(GUESSED) * m).astype(int), 1, m - 1)
    lowest = guesses // 2
    right = [
        np.sum(member[order[: k - low]]) + np.sum(~member[order[m - low :]])
        for k, low in zip(guesses, lowest, strict=True)
    ]
    return np.array(right), guesses


# --- Bounds from counts of guesses ----------------------------------------------------------------------------------


def _one_run(right: int, guesses: int, m: int, level: float, delta: float, coin: float) -> float:
    """The bound of Steinke et al. at `level`."""
    if not right:
        return 0.0
    wrong = guesses - right
    # Its scores are the guesses: right ones stand for members, and of no other example it matters on which side it is.
    auditor = auditing().CanaryScoreAuditor(np.ones(right), np.repeat([1.0, 0.0], [wrong, m - guesses]))
    apparent = auditor.epsilon_one_run(level, delta, threshold_strategy=auditing().Explicit(0.5))
    return max(0.0, float(apparent) - float(special.logit(coin)))


def _one_run_fdp(right: int, guesses: int, m: int, level: float, delta: float, coin: float) -> float:
    """The bound of Mahloujifar et al. (Algorithm 3) at `level`, for a coin of at most `coin`.

    An event of probability x within the members has at least F(x) = Phi(Phi^-1(x) - mu) within the non-members, and the
    other way round. Right guesses that weigh p x of members and (1 - p) y of non-members come with wrong ones of at least
    (1 - p) F(x) + p F(y), by convexity no less than F((1 - p) x + p y), which is at least F(r (1 - p) / p) of right ones
    that weigh r, p the larger side: the paper's F(r) where the coin is fair. No shift of epsilon would do, since the
    whole curve is inferred from one point of it: noise at 90 % members reads 3.8 where the coin is taken for fair, and
    ln(.9 / .1) is 2.2.
    """
    from scipy import optimize  # slow to import, and needed here alone

    odds = (1 - coin) / coin

    def excess(mu: float) -> float:
        """Positive where so many right guesses contradict mu at `level`."""
        r, h = level * right / m, level * (guesses - right) / m
        for i in range(right - 1, -1, -1):
            higher = max(h, special.ndtr(special.ndtri(r * odds) - mu))
            if higher == h:
                break  # neither changes any more
            r, h = min(r + i / (guesses - i) * (higher - h), 1.0), higher
        return r + h - guesses / m

    low = 0.0
    if excess(low) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        low, high = high, 2 * high
    mu = optimize.root_scalar(excess, bracket=(low, high), xtol=1e-9).root
    return gaussian_epsilon(mu, delta)


_BOUNDS = {"one_run": _one_run, "one_run_fdp": _one_run_fdp}


def _check_delta(delta: float) -> None:
    if delta == 0:
        raise ValueError("delta must be positive for one-run bounds; got 0")
