"""Declared coins are held against the memberships themselves: honest ones pass, those that would certify noise do not."""

import numpy as np
import pytest

from lira.epsilon import pool_epsilon, target_epsilons
from lira.exchange.reading import AuditError, read_audit
from lira.membership import keep_mask
from lira.metrics.coins import contradiction

N, CLASSES = 900, 10
LABELS = np.random.default_rng(0).integers(0, CLASSES, N)


def paired(held):
    return np.stack([held, ~held], axis=1).reshape(-1, N)


def drawn(kind, rng, models=8):
    """Memberships of as many models as pairs, or of so many pairs."""
    coins, by_class = rng.random((models, N)), np.linspace(0.1, 0.9, CLASSES)
    return {
        "classes of other probabilities": lambda: coins < by_class[LABELS],
        "pairs whose classes have other probabilities": lambda: paired(coins < by_class[LABELS]),
        "a coin for each class": lambda: paired((rng.random((models, CLASSES)) < 0.5)[:, LABELS]),
        "a coin for thirty in a row": lambda: paired(np.repeat(coins[:, ::30] < 0.5, 30, axis=1)),
        "members first": lambda: np.sort(coins < 0.5, axis=1),
        "exactly balanced": lambda: np.argsort(coins, axis=0) < models // 2,
        "examples of their own popularity": lambda: coins < rng.uniform(0.1, 0.9, N),
    }[kind]()


@pytest.mark.parametrize(
    "kind",
    [
        "classes of other probabilities",
        "pairs whose classes have other probabilities",
        "a coin for each class",
        "a coin for thirty in a row",
        "members first",
        "exactly balanced",
        "examples of their own popularity",
    ],
)
def test_memberships_that_are_no_coins_are_found_out(kind):
    for seed in range(5):
        assert contradiction(drawn(kind, np.random.default_rng(seed)), LABELS), seed


def test_one_target_is_told_by_its_classes_or_its_order():
    rng = np.random.default_rng(0)
    held = drawn("classes of other probabilities", rng, 1)
    assert contradiction(held) is None
    assert "more of some classes" in str(contradiction(held, LABELS))
    assert "side by side" in str(contradiction(drawn("members first", rng, 1)))


def test_coins_of_any_probability_pass():
    """3,000 pools of all sizes: with every limit at six standard errors none is refused."""
    rng = np.random.default_rng(0)
    for _ in range(3000):
        M, n, classes = rng.choice([1, 2, 9, 40]), rng.choice([3, 30, 100, 400]), rng.choice([2, 60])
        rates = rng.choice([0.02, 0.5, 0.9]) if rng.random() < 0.5 else rng.uniform(0.05, 0.95, (M, 1))
        labels = np.sort(rng.integers(-1, classes, n))
        assert contradiction(rng.random((M, n)) < rates, labels) is None
    for seed in range(20):
        assert contradiction(keep_mask(seed, 16, N), LABELS) is None
    assert contradiction(np.ones((4, N), bool)) is None


def test_counts_speak_against_coins_from_six_standard_errors_on():
    """By the products of each two models: shares of the examples are balanced until that is told."""
    rng, M, n = np.random.default_rng(0), 8, 400
    coins, balanced = rng.random((M, n)) < 0.5, np.argsort(rng.random((M, n)), axis=0) < M // 2
    off = []
    for count in range(0, n, 5):
        held = np.where(np.arange(n) < count, balanced, coins)
        away = (held - held.mean(axis=1, keepdims=True)) / held.std(axis=1, keepdims=True)
        products = [(away[i] * away[j]).mean() for i in range(M) for j in range(i)]
        off.append(abs(sum(products)) / np.sqrt(len(products) / n))
        assert (contradiction(held) is not None) == (off[-1] > 6)
    assert sum(6 < each < 8 for each in off) > 3


@pytest.mark.parametrize("outside", [False, True])
def test_an_audit_does_not_take_them_for_coins(outside):
    """Pairs whose classes differ in probability: 8 models that know nothing were certified 0.5 by a threshold on phi."""
    rng = np.random.default_rng(0)
    keep = drawn("pairs whose classes have other probabilities", rng, 4)
    phi = (np.linspace(-1, 1, CLASSES)[LABELS] + rng.normal(size=(8, N))).astype(np.float32)
    given = {"phi": phi, "keep": keep, "labels": LABELS}
    if outside:
        given |= {"keep": rng.random((8, N)) < 0.5, "target": phi[:1], "member": keep[:1]}
    with pytest.raises(AuditError, match=r"declared to be independent coins, and .*leave that out"):
        read_audit(given, independent=True)
    assert not read_audit(given).pool.independent


NO_COINS = [
    "classes of other probabilities",
    "a coin for each class",
    "a coin for thirty in a row",
    "exactly balanced",
]


@pytest.mark.parametrize("kind", NO_COINS)
def test_what_noise_would_certify_of_them_is_refused_in_python_too(kind):
    """Scores that know the rule by which members were chosen, and nothing of a model, certify epsilon where it is believed."""
    pytest.importorskip("jax_privacy")
    rng = np.random.default_rng(0)
    keep = drawn(kind, rng, 16)
    scores = np.asarray(keep.mean(axis=0) + rng.normal(size=keep.shape))  # of the rule, or of nothing
    for claim in (target_epsilons, pool_epsilon):
        with pytest.raises(ValueError, match="declared to be independent coins, and"):
            claim(scores, keep, independent=True, delta=1e-5, labels=LABELS)
    assert not target_epsilons(scores, keep, independent=False, delta=1e-5).any()
    with pytest.raises(ValueError, match="labels must be one an example"):
        target_epsilons(scores, keep, independent=True, delta=1e-5, labels=LABELS[:-1])
