import time
import warnings

import numpy as np
import pytest

from lira import attacks
from lira.attacks import UnfitPoolError, classifier_features
from lira.attacks._pool import Leave
from lira.attacks.suite import (
    ATTACKS,
    Attack,
    Pool,
    attack_groups,
    attack_pool,
    call_attack,
    missing_signals,
    select_attacks,
)
from lira.attacks.thin import have_enough
from lira.membership import keep_mask
from lira.metrics import roc

M, N, Q = 20, 300, 2
rng = np.random.default_rng(0)
KEEP = keep_mask(0, M, N)
PHI = (rng.normal(size=(M, N, Q)) + 2 * KEEP[..., None]).astype(np.float32)
ENTROPY = np.exp(-PHI)
SIGNALS = {"phi": PHI, "entropy": ENTROPY, "modified_entropy": ENTROPY / 2, "phi@0.5": PHI / 2}
FEATURES = rng.normal(size=(N, 3)).astype(np.float32)
POINTS = rng.normal(size=(M, 40, Q)).astype(np.float32)
LABELS = np.arange(N) % 3
POINT_FEATURES = rng.normal(size=(40, 3)).astype(np.float32)


def balanced():
    rng = np.random.default_rng(1)
    return np.argsort(rng.uniform(size=(M, N)), axis=0) < M // 2


def test_pools_of_pairs_leave_the_pair_out_and_others_the_target():
    some = select_attacks(("lira_online", "bavaria_offline", "rmia_online", "attack_p"))
    for keep, leave in ((KEEP, "pair"), (balanced(), "one"), (balanced()[:19], "one")):
        scores = attack_pool(Pool({"phi": PHI[: len(keep)]}, keep), some)
        assert list(scores) == list(some)
        for name, attack in some.items():
            np.testing.assert_array_equal(scores[name], attack.function(PHI[: len(keep)], keep, leave=leave))


def test_a_pool_of_some_examples_is_of_these_alone():
    """Whatever is of an example: signals of pool and targets, memberships, features and labels; public points stay."""
    at = np.array([3, 4, 50, 299])
    pool = Pool(
        SIGNALS,
        KEEP,
        {name: 2 * each[:3] for name, each in SIGNALS.items()},
        population=POINTS,
        target_population=POINTS[:3],
        features=FEATURES,
        population_features=POINT_FEATURES,
        labels=LABELS,
        independent=True,
    )
    part = pool.at(at)
    assert part.target is not None
    assert not part.independent, "they were chosen by their counts"
    for name, each in SIGNALS.items():
        np.testing.assert_array_equal(np.asarray(part.signals[name]), each[:, at])
        np.testing.assert_array_equal(part.signals[name][2:5, 1:3], each[2:5, at[1:3]])
        np.testing.assert_array_equal(np.asarray(part.target[name]), 2 * each[:3, at])
    for name, expected in (
        ("keep", KEEP[:, at]), ("features", FEATURES[at]), ("labels", LABELS[at]), ("population", POINTS),
        ("target_population", POINTS[:3]), ("population_features", POINT_FEATURES),
    ):  # fmt: skip
        np.testing.assert_array_equal(getattr(part, name), expected)


def test_an_example_has_enough_models_where_any_target_may_take_one_of_them():
    keep = np.arange(6)[:, None] < np.arange(7)  # 0 to 6 IN models of 6
    assert have_enough(keep, {"IN": 2}, outside=False).tolist() == [False] * 3 + [True] * 4
    assert have_enough(keep, {"IN": 2}, outside=True).tolist() == [False] * 2 + [True] * 5
    assert (
        have_enough(keep, {"IN": 2, "OUT": 2}, outside=False).tolist() == [False] * 3 + [True] + [False] * 3
    )


def test_each_attack_reads_the_signal_that_it_names():
    pool = Pool(
        SIGNALS,
        KEEP,
        population=POINTS,
        features=FEATURES,
        population_features=POINT_FEATURES,
        labels=LABELS,
    )
    assert missing_signals(pool) == {}
    scores = attack_pool(pool)
    assert list(scores) == list(ATTACKS)
    assert all(values.shape == (M, N) and np.isfinite(values).all() for values in scores.values())
    np.testing.assert_allclose(scores["entropy_threshold"], -ENTROPY.mean(axis=2), rtol=1e-5)
    np.testing.assert_allclose(scores["modified_entropy_threshold"], -ENTROPY.mean(axis=2) / 2, rtol=1e-5)
    features = classifier_features(PHI, entropy=ENTROPY)
    np.testing.assert_array_equal(scores["shadow_svc"], attacks.shadow_classifier(features, KEEP, kind="svc"))
    expected = attacks.quantile_regression(
        PHI, KEEP, features=FEATURES, population=POINTS, population_features=POINT_FEATURES
    )
    np.testing.assert_array_equal(scores["quantile_regression"], expected)
    options = {"proxy": "class", "labels": LABELS, "fixed": True}
    np.testing.assert_array_equal(scores["pmia_class_fixed"], attacks.pmia(PHI, KEEP, **options))
    options = {"proxy": "neighbours", "features": FEATURES}
    np.testing.assert_array_equal(
        scores["pmia_neighbours_fixed"], attacks.pmia(PHI, KEEP, fixed=True, **options)
    )
    np.testing.assert_array_equal(scores["rmia_offline"], attacks.rmia_offline(PHI, KEEP, population=POINTS))


def test_what_the_pool_does_not_hold_is_named():
    pool = Pool({"phi": PHI}, KEEP)
    assert missing_signals(pool) == {
        **dict.fromkeys(("pmia_class", "pmia_class_fixed"), "labels"),
        **dict.fromkeys(("pmia_neighbours_fixed", "quantile_regression"), "features"),
        "entropy_threshold": "entropy",
        "modified_entropy_threshold": "modified_entropy",
        **dict.fromkeys(("lira_online_trajectory", "lt_iqr"), "checkpoints of phi"),
    }
    assert set(ATTACKS) - set(attack_pool(pool)) == set(missing_signals(pool))
    with pytest.raises(UnfitPoolError, match=r"^it reads entropy, .* not hold: use global_threshold"):
        call_attack(ATTACKS["entropy_threshold"], pool)
    # The targets' own signal is needed too.
    outside = Pool(SIGNALS, KEEP, {"phi": PHI[:1]})
    assert set(missing_signals(outside)) == set(missing_signals(pool))


def test_one_target_and_out_models_allow_offline_attacks_only():
    rng = np.random.default_rng(1)
    out = np.zeros((9, N), bool)
    phi = rng.normal(size=(9, N, Q)).astype(np.float32)
    with pytest.warns(UserWarning, match="is left out: .* needs .*model"):
        scores = attack_pool(Pool({"phi": phi}, out, {"phi": PHI[:1]}))
    assert not {"lira_online", "lira_online_fixed"} & set(scores)
    np.testing.assert_array_equal(scores["lira_offline"], attacks.lira_offline(phi, out, target=PHI[:1]))
    assert roc(scores["lira_offline"], KEEP[:1]).auc > 0.7


def test_populations_of_pool_and_targets_reach_the_attacks_that_take_them():
    seen = {}

    def takes_both(phi, keep, *, target=None, population=None, target_population=None, leave: Leave = "pair"):
        seen["both"] = (population, target_population)
        return attacks.global_threshold(phi, keep, target=target, leave=leave)

    pool = Pool(
        {"phi": PHI[:18]},
        KEEP[:18],
        {"phi": PHI[18:]},
        population=POINTS[:18],
        target_population=POINTS[18:],
    )
    both = Attack(takes_both, takes=("population", "target_population"))
    attack_pool(pool, {"global_threshold": ATTACKS["global_threshold"], "both": both})
    assert seen["both"] == (pool.population, pool.target_population)


def test_too_few_models_are_a_warning_and_other_errors_are_errors():
    def needs_more(phi, keep, *, target=None, leave="pair"):
        raise UnfitPoolError("needs more")

    with pytest.warns(UserWarning, match="needs_more is left out: needs more"):
        assert attack_pool(Pool({"phi": PHI}, KEEP), {"needs_more": Attack(needs_more)}) == {}
    with pytest.raises(ValueError, match=r"phi\[0, 0, 0\] is nan"):
        attack_pool(Pool({"phi": PHI * np.nan}, KEEP))


def test_attacks_side_by_side_give_what_each_gives_alone(monkeypatch):
    """And what is left out is told in the order of the table, whichever came to its end first."""
    table = {name: ATTACKS[name] for name in ("lira_online", "rmia_online", "base", "global_threshold")}

    def waits(phi, keep, *, target=None, leave="pair"):
        time.sleep(0.2)
        raise UnfitPoolError("of another kind")

    def at_once(phi, keep, *, target=None, leave="pair"):
        raise UnfitPoolError("of no kind")

    monkeypatch.setattr("lira.parallel.cores", lambda: 4)
    pool = Pool({"phi": PHI}, KEEP)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        scores = attack_pool(pool, {"first": Attack(waits), **table, "second": Attack(at_once)})
    left_out = [str(each.message) for each in said if "left out" in str(each.message)]
    assert left_out == ["first is left out: of another kind", "second is left out: of no kind"]
    assert list(scores) == list(table)
    for name, attack in table.items():
        np.testing.assert_array_equal(scores[name], call_attack(attack, pool))


def test_large_pools_are_attacked_by_one_or_two_attacks_at_a_time():
    names = list(ATTACKS)
    two = [list(group) for group in attack_groups(ATTACKS, 256, 50_000)]
    assert two == [names[at : at + 2] for at in range(0, len(names), 2)]
    assert [list(group) for group in attack_groups(ATTACKS, 512, 50_000)] == [[name] for name in names]
    assert [list(group) for group in attack_groups(ATTACKS, 16, 100)] == [list(ATTACKS)]
