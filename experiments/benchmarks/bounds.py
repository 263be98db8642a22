"""Do lower bounds on epsilon stay below it? 1,000 simulations of trainings whose epsilon is known, the worst that we know of.

Command:   python experiments/benchmarks/bounds.py [--case NAME ...] [--repeats 1000] [--out FILE.json]
Duration:  ten minutes of one CPU core, all cases.
Expected:  above the truth in at most 5 % of repeats, wherever what the bound assumes holds.
Measured:  experiments/benchmarks/bounds_cpu.json, table in experiments/benchmarks/README.md.

Bounds at 95 % and delta 1e-5 from the scores of one training (or of a pool's) of 500 examples, each a member by a coin.
`uncorrected` is what would be read off without the correction that the functions make: the largest bound of all choices,
each at the whole level.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from lira.epsilon import canary_epsilons, epsilon_bounds, gaussian_epsilon, pool_epsilon

DELTA = 1e-5
EXAMPLES = 500
ATTACKS = 10
THRESHOLDS = np.linspace(-1, 2.5, 8).tolist()
Bounds = Mapping[str, float]


# --- Mechanisms of known epsilon: scores [m] of memberships [m] ------------------------------------------------------


def gaussian(rng: np.random.Generator, member: np.ndarray, mu: float) -> np.ndarray:
    return rng.normal(size=member.shape) + mu * member


def heterogeneous(rng: np.random.Generator, member: np.ndarray) -> np.ndarray:
    """Examples that differ: how much each gives away, at most mu = 1, and how high it scores whether member or not."""
    m = member.shape[-1]
    return rng.normal(size=member.shape) + rng.random(m) * member + np.where(rng.random(m) < 0.3, 3.0, 0.0)


def response(rng: np.random.Generator, member: np.ndarray, epsilon: float) -> np.ndarray:
    """Randomised response: the membership, or its opposite with probability 1 / (1 + e^epsilon)."""
    return (member ^ (rng.random(member.shape) < 1 / (1 + np.exp(epsilon)))).astype(float)


def clustered_response(rng: np.random.Generator, member: np.ndarray, epsilon: float) -> np.ndarray:
    """One training in two says nothing at all, the other answers for all examples: right guesses come in clusters."""
    answers = response(rng, member, epsilon)
    return np.where(rng.random((*member.shape[:-1], 1)) < 0.5, answers, 0.0) + rng.normal(
        size=(*member.shape[:-1], 1)
    )


def clustered_gaussian(rng: np.random.Generator, member: np.ndarray, mu: float) -> np.ndarray:
    """A noised sum of the members' gradients, which overlap: four examples for each direction there is."""
    m = member.shape[-1]
    gradients = rng.normal(size=(m, m // 4))
    gradients /= np.linalg.norm(gradients, axis=1, keepdims=True)
    total = mu * member @ gradients + rng.normal(size=(*member.shape[:-1], m // 4))
    return total @ gradients.T


# --- What is claimed of one simulation: (bounds, what would be read off uncorrected) ----------------------------------


def one_training(
    score: Callable[..., np.ndarray], rng: np.random.Generator, *, coin: float = 0.5, fair: bool = False
) -> tuple[Bounds, Bounds]:
    member = rng.random(EXAMPLES) < coin
    found = canary_epsilons(score(rng, member), member, delta=DELTA, fair=fair)
    return {name: bound.epsilon for name, bound in found.items()}, {}


def attacks(score: Callable[..., np.ndarray], rng: np.random.Generator) -> tuple[Bounds, Bounds]:
    """The largest bound of ATTACKS attacks, each with noise of its own."""
    member = rng.random(EXAMPLES) < 0.5
    scores = score(rng, member) + rng.normal(size=(ATTACKS, EXAMPLES))
    corrected, plain = (
        [canary_epsilons(each, member, delta=DELTA, fair=True, chosen_from=count) for each in scores]
        for count in (ATTACKS, 1)
    )
    return largest(corrected), largest(plain)


def thresholds(score: Callable[..., np.ndarray], rng: np.random.Generator) -> tuple[Bounds, Bounds]:
    """The largest bound of all THRESHOLDS, and of both kinds of trials."""
    member = rng.random(EXAMPLES) < 0.5
    scores = score(rng, member)
    bounds = partial(epsilon_bounds, scores[member], scores[~member], delta=DELTA, independent=True)
    return largest([bounds(threshold=THRESHOLDS)]), largest([bounds(threshold=each) for each in THRESHOLDS])


def pool(score: Callable[..., np.ndarray], rng: np.random.Generator) -> tuple[Bounds, Bounds]:
    """The best of four attacks on 8 models; uncorrected the largest bound of any attack on any of them."""
    keep = rng.random((8, EXAMPLES)) < 0.5
    scores = score(rng, keep) + 0.5 * rng.normal(size=(4, *keep.shape))
    bound = pool_epsilon(scores, keep, independent=True, delta=DELTA)
    each = [
        canary_epsilons(s, k, delta=DELTA)["one_run"].epsilon
        for attack in scores[:1]
        for s, k in zip(attack, keep, strict=True)
    ]
    return {"one_run": bound.epsilon}, {"one_run": max(each)}


def largest(found: list) -> Bounds:
    return {name: max(bounds[name].epsilon for bounds in found) for name in found[0]}


def response_truth(epsilon: float) -> float:
    """Of randomised response at DELTA."""
    wrong = 1 / (1 + np.exp(epsilon))
    return float(np.log((1 - wrong - DELTA) / wrong)) if epsilon else 0.0


GAUSSIAN_1 = gaussian_epsilon(1.0, DELTA)
# Name: (claim, truth, whether the mechanism is Gaussian).
CASES: dict[str, tuple[Callable[..., tuple[Bounds, Bounds]], float, bool]] = {
    "noise": (partial(one_training, partial(gaussian, mu=0.0), fair=True), 0.0, True),
    "noise, coin .8": (partial(one_training, partial(gaussian, mu=0.0), coin=0.8), 0.0, True),
    "gaussian": (partial(one_training, partial(gaussian, mu=1.0), fair=True), GAUSSIAN_1, True),
    "gaussian, coin .6": (partial(one_training, partial(gaussian, mu=1.0), coin=0.6), GAUSSIAN_1, True),
    "response": (
        partial(one_training, partial(response, epsilon=1.0), fair=True),
        response_truth(1.0),
        False,
    ),
    "heterogeneous": (partial(one_training, heterogeneous, fair=True), GAUSSIAN_1, True),
    "clustered response": (
        partial(one_training, partial(clustered_response, epsilon=1.0), fair=True),
        response_truth(1.0),
        False,
    ),
    "clustered gaussian": (
        partial(one_training, partial(clustered_gaussian, mu=1.0), fair=True),
        GAUSSIAN_1,
        True,
    ),
    "10 attacks, noise": (partial(attacks, partial(gaussian, mu=0.0)), 0.0, True),
    "10 attacks, response": (partial(attacks, partial(response, epsilon=1.0)), response_truth(1.0), False),
    "8 thresholds, noise": (partial(thresholds, partial(gaussian, mu=0.0)), 0.0, True),
    "8 thresholds, response": (
        partial(thresholds, partial(response, epsilon=1.0)),
        response_truth(1.0),
        False,
    ),
    "pool of 8, noise": (partial(pool, partial(gaussian, mu=0.0)), 0.0, True),
    "pool of 8, clustered response": (
        partial(pool, partial(clustered_response, epsilon=1.0)),
        response_truth(1.0),
        False,
    ),
}


def measure(name: str, repeats: int) -> list[dict]:
    """A row for each method that the case knows."""
    claim, truth, is_gaussian = CASES[name]
    found = [claim(np.random.default_rng([repeat, list(CASES).index(name)])) for repeat in range(repeats)]
    rows = []
    for method in found[0][0]:
        values = np.array([bounds[method] for bounds, _ in found])
        plain = [bounds[method] > truth for _, bounds in found if bounds]
        rows.append(
            {
                "case": name,
                "method": method,
                "assumption_holds": is_gaussian or method not in ("one_run_fdp", "gdp"),
                "repeats": repeats,
                "truth": round(truth, 3),
                "mean": round(float(values.mean()), 3),
                "largest": round(float(values.max()), 3),
                "share_above_truth": round(float(np.mean(values > truth)), 4),
                "uncorrected": round(float(np.mean(plain)), 4) if plain else None,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="also write the rows to this JSON file")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.case:
        for row in measure(name, arguments.repeats):
            rows.append(row)
            print(row, flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"delta": DELTA, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
