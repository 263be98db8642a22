"""Small and odd pools: each attack of the table scores them, or refuses with one error that names what to use instead."""

import re
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from lira.attacks import UnfitPoolError
from lira.attacks.suite import ATTACKS, Attack, Pool, attack_pool, call_attack

EXAMPLES = 12


def make_pool(
    M: int, *, N: int = EXAMPLES, Q: int = 1, points: int | None = 12, targets: int = 0, design: str = "any"
) -> Pool:
    """A pool in which nothing is missing, of a design: "pairs", "balanced", "members", "others" or "any"."""
    rng = np.random.default_rng(M)

    def draw(rows, columns):
        return rng.normal(size=(rows, columns, Q)).astype(np.float32)

    keep = rng.uniform(size=(M, N)) < 0.5
    if design == "pairs":
        keep[1::2] = ~keep[::2]
    elif design == "balanced":
        keep = np.argsort(rng.uniform(size=(M, N)), axis=0) < M // 2
    elif design != "any":
        keep[:] = design == "members"

    def signals(rows):
        return {
            "phi": draw(rows, N),
            "entropy": np.exp(draw(rows, N)),
            "modified_entropy": np.exp(draw(rows, N)),
            "logits": rng.normal(size=(rows, N, Q, 3)).astype(np.float32),
            "phi@0.5": draw(rows, N),
        }

    return Pool(
        signals(M),
        keep,
        signals(targets) if targets else None,
        population=None if points is None else draw(M, points),
        target_population=draw(targets, points) if targets and points is not None else None,
        features=rng.normal(size=(N, 2)),
        population_features=rng.normal(size=(points or 0, 2)),
        labels=rng.integers(0, 3, size=N),
    )


def odd_pools() -> Iterator[tuple[str, Pool]]:
    """Pools at the edges of what can be attacked, by what they are."""
    for M in (1, 2, 3, 4, 5):
        designs = ("any", "balanced", "members", "others", *(["pairs"] if M % 2 == 0 else []))
        for design in designs if M < 5 else ("balanced",):
            yield f"{M} models, {design}", make_pool(M, design=design)
            yield f"{M} models, {design}, a target", make_pool(M, targets=1, design=design)
    for M in (2, 5):
        yield f"{M} models, two queries", make_pool(M, Q=2)
        yield f"{M} models, one example", make_pool(M, N=1, points=None)
    for points in (None, 0, 1, 2, 9, 10):
        yield f"{points} points", make_pool(4, points=points, design="pairs")
    for points in (0, 1, 10):
        yield f"{points} points, targets", make_pool(5, points=points, targets=2)
        yield f"{points} points, one example", make_pool(4, N=1, points=points, design="pairs")
    pool = make_pool(6, targets=2)
    yield "the targets' population is missing", replace(pool, target_population=None)
    yield "the pool's population is missing", replace(pool, population=None)
    yield "features are missing", replace(pool, features=None)
    phi = np.asarray(pool.signals["phi"])
    yield "phi alone", Pool({"phi": phi}, pool.keep)
    yield "no model at all", Pool({"phi": phi[:0]}, pool.keep[:0], {"phi": phi})
    for M, targets in ((2, 0), (4, 0), (6, 0), (5, 2)):
        pool = make_pool(M, targets=targets, Q=2, design="any" if targets else "pairs")
        constant = {name: np.ones_like(np.asarray(values)) for name, values in pool.signals.items()}
        theirs = pool.target and {name: values[:targets] for name, values in constant.items()}
        yield f"{M} models, constant signals", replace(pool, signals=constant, target=theirs)
        points = np.ones_like(np.asarray(pool.population))
        same = np.zeros_like(pool.features), np.zeros_like(pool.population_features)
        yield (
            f"{M} models, all constant",
            replace(
                pool,
                signals=constant,
                target=theirs,
                population=points,
                target_population=points[:targets] if targets else None,
                features=same[0],
                population_features=same[1],
            ),
        )


POOLS = dict(odd_pools())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", POOLS)
def test_an_attack_scores_a_pool_or_says_what_to_use_instead(kind):
    pool = POOLS[kind]
    T = len(pool.keep) if pool.target is None else pool.target["phi"].shape[0]
    refusals = {}
    for name, attack in ATTACKS.items():
        try:
            scores = call_attack(attack, pool)
        except UnfitPoolError as error:
            refusals[name] = str(error)
            continue
        assert scores.shape == (T, pool.keep.shape[1]), name
        assert np.isfinite(scores).all(), name
    for name, sentence in refusals.items():
        assert "use " in sentence or "pass " in sentence, f"{name}: {sentence}"
    assert refusals.keys().isdisjoint({"global_threshold", "loss_threshold", "confidence_threshold"})


def scores_and_warnings(pool: Pool) -> tuple[dict[str, np.ndarray], str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scores = attack_pool(pool)
    return scores, "\n".join(str(each.message) for each in caught)


@pytest.mark.parametrize("points", [0, 1, 9])
def test_a_population_that_is_too_small_costs_one_attack(points):
    pool = make_pool(4, points=points, design="pairs")
    scores, warned = scores_and_warnings(pool)
    assert re.search(r"quantile_regression is left out: .* use global_threshold", warned)
    assert "quantile_regression" not in scores
    assert ("rmia_online" in scores) == (points > 0)


def test_a_single_pair_of_models_leaves_the_attacks_without_shadow_models():
    pool = make_pool(2, design="pairs")
    scores, warned = scores_and_warnings(pool)
    assert re.search(r"base is left out: base needs 1 IN or OUT model .* use attack_p", warned)
    assert set(scores) == {name for name, attack in ATTACKS.items() if not attack.uses_shadows}


@pytest.mark.filterwarnings("ignore")
def test_mistakes_are_not_swallowed():
    pool = make_pool(4, design="pairs")
    broken = np.array(pool.signals["phi"])
    broken[1, 2] = np.nan
    mistakes = [
        (replace(pool, signals={"phi": broken}), r"phi\[1, 2, 0\] is nan"),
        (replace(pool, keep=pool.keep[:, :5]), "keep must be bool of shape"),
        (replace(pool, population=np.zeros((3, 12, 1))), "population must be .* got shape"),
        (replace(pool, features=np.zeros((5, 2))), r"features must be \[12, features\]"),
        (replace(pool, target_population=np.zeros((3, 12, 1))), "target_population is for outside targets"),
    ]
    for wrong, message in mistakes:
        with pytest.raises(ValueError, match=message) as caught:
            attack_pool(wrong)
        assert not isinstance(caught.value, UnfitPoolError)


def test_the_table_says_what_each_attack_reads():
    """Signals, needs and populations as the functions' own arguments have them."""
    for name, attack in ATTACKS.items():
        assert isinstance(attack, Attack)
        assert (attack.signal == "phi") == ("phi" in _arguments(attack)), name
        keywords = set(_arguments(attack)[2:]) - {"target", "leave"}
        pool_fields = {"population", "target_population", "features", "population_features", "labels"}
        named = {*attack.needs, *attack.takes}
        # Which of a form's arguments it reads, the attack itself says: `proxy` of PMIA.
        assert named <= keywords & pool_fields if "proxy" in keywords else named == keywords & pool_fields, (
            name
        )


def _arguments(attack: Attack) -> list[str]:
    function = getattr(attack.function, "func", attack.function)
    return list(
        function.__code__.co_varnames[: function.__code__.co_argcount + function.__code__.co_kwonlyargcount]
    )
