"""What holds for every attack by reference models or a population: leaks, chance, blocks, few references, errors."""

import numpy as np
import pytest
from chance import check_chance
from scipy.stats import rankdata
from shadow_pools import make_pool, probability

from lira import attacks
from lira.attacks import _pool
from lira.membership import keep_mask

WITH_POPULATION = ["rmia_online", "rmia_offline", "informia_online", "informia_offline", "attack_p"]
NAMES = [*WITH_POPULATION, "attack_r", "difficulty_calibration", "difficulty_calibration_both", "base"]
ONLINE = ["rmia_online", "informia_online", "difficulty_calibration_both"]
# Every attack, and those with a population with and without held-out points.
CASES = [(name, False) for name in NAMES] + [(name, True) for name in WITH_POPULATION]
each_case = pytest.mark.parametrize(("name", "held_out"), CASES)


def run(name, phi, keep, population=None, **options):
    if population is not None:
        options["population"] = population
    return getattr(attacks, name)(phi, keep, **options)


def auc_and_tpr(scores, keep, fpr=0.001):
    """Pooled AUC, ties one half, and TPR at the largest realised FPR that is not above `fpr`."""
    members, nonmembers = scores[keep], np.sort(scores[~keep])[::-1]
    ranks = rankdata(np.concatenate([members, nonmembers]))[: len(members)]
    auc = (ranks.mean() - (len(members) + 1) / 2) / len(nonmembers)
    bar = nonmembers[int(fpr * len(nonmembers))]
    return auc, np.mean(members > bar)


@pytest.mark.parametrize("M", [4, 8, 16, 64])
@each_case
def test_pure_noise_is_at_chance(name, held_out, M):
    results = []
    for seed in range(6):
        rng = np.random.default_rng([seed, M])
        phi = 3 * rng.standard_normal((M, 2048, 1), dtype=np.float32)
        population = 3 * rng.standard_normal((M, 2048, 1), dtype=np.float32) if held_out else None
        keep = keep_mask(seed, M, 2048)
        results.append(auc_and_tpr(run(name, phi, keep, population), keep))
    aucs, tprs = np.array(results).T
    check_chance(aucs, tprs, M * 1024, steps=True)


@pytest.mark.parametrize("M", [4, 8, 16, 64])
@each_case
def test_signal_in_all_models_but_the_target_is_at_chance(name, held_out, M):
    """The mate, too, tells what it was trained on; the target's phi depends on the others' memberships alone."""
    results = []
    for seed in range(6):
        rng = np.random.default_rng([seed, M])
        keep = keep_mask(seed, M, 2048)
        phi = 3 * rng.standard_normal((M, 2048, 1), dtype=np.float32)
        phi += np.where(keep, rng.uniform(0, 6, size=(M, 1)), 0)[..., None]
        phi[0] = 3 * rng.standard_normal((2048, 1)) + 4 * keep[2, :, None]
        population = 3 * rng.standard_normal((M, 2048, 1), dtype=np.float32) if held_out else None
        results.append(auc_and_tpr(run(name, phi, keep, population)[:1], keep[:1]))
    aucs, tprs = np.array(results).T
    check_chance(aucs, tprs, 1024, steps=True)


@each_case
def test_signal_in_all_of_a_balanced_pool_but_the_target_is_at_chance(name, held_out):
    M, results = 8, []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        keep = np.argsort(rng.uniform(size=(M, 2048)), axis=0) < M // 2
        phi = 3 * rng.standard_normal((M, 2048, 1), dtype=np.float32)
        phi[1:] += 4 * keep[1:, :, None]
        population = 3 * rng.standard_normal((M, 2048, 1), dtype=np.float32) if held_out else None
        results.append(auc_and_tpr(run(name, phi, keep, population, leave="one")[:1], keep[:1]))
    aucs, tprs = np.array(results).T
    check_chance(aucs, tprs, 1024, steps=True)


def test_the_leak_of_composition_would_be_seen():
    """A balanced pool less the target has one model less on the target's side: mean p over all of it leaks that.

    Members are 3 higher, but the targets' own scores are noise.
    """
    M, N = 8, 4000
    rng = np.random.default_rng(0)
    keep = np.argsort(rng.uniform(size=(M, N)), axis=0) < M // 2
    noise = rng.normal(size=(M, N))
    p = probability(noise + 3 * keep)
    leaky = np.log(probability(noise)) - np.log((p.sum(axis=0) - p) / (M - 1))
    assert auc_and_tpr(leaky, keep)[0] > 0.55
    sound = attacks.base((noise + 3 * keep)[..., None].astype(np.float32), keep, leave="one", target=None)
    own = np.log(probability(noise + 3 * keep))
    assert abs(auc_and_tpr(sound - own + np.log(probability(noise)), keep)[0] - 0.5) < 0.02


@each_case
def test_scores_of_a_pair_do_not_depend_on_its_own_membership(name, held_out):
    """Swap who of a pair holds each example: neither its scores nor any constant used against it may change."""
    pool = make_pool(2, "pair", 10, 2)
    swapped = pool.keep.copy()
    swapped[4:6] = ~pool.keep[4:6]
    population = pool.population if held_out else None
    before, after = (run(name, pool.phi, keep, population) for keep in (pool.keep, swapped))
    np.testing.assert_array_equal(before[4:6], after[4:6])
    # The others do see it, unless IN and OUT models weigh the same, as they do not in InfoRMIA's p(z).
    alike = name in (*ONLINE, "base", "attack_p") and (name, held_out) != ("informia_online", False)
    assert np.array_equal(before[0], after[0]) == alike


@each_case
def test_order_of_pairs_mates_and_examples_does_not_matter(name, held_out):
    pool = make_pool(4, "pair", 10, 2)
    models = np.array([5, 4, 0, 1, 9, 8, 2, 3, 7, 6])
    examples = np.random.default_rng(0).permutation(pool.phi.shape[1])
    points = np.random.default_rng(1).permutation(pool.population.shape[1])
    population, moved_population = (
        (pool.population, pool.population[models][:, points]) if held_out else (None, None)
    )
    scores = run(name, pool.phi, pool.keep, population)
    moved = run(name, pool.phi[models][:, examples], pool.keep[models][:, examples], moved_population)
    np.testing.assert_allclose(moved, scores[models][:, examples], rtol=1e-5, atol=1e-6)


class Lazy:
    """Slices like an array and is nothing else."""

    def __init__(self, values):
        self.values, self.shape = values, values.shape

    def __getitem__(self, index):
        return self.values[index]


@each_case
def test_blocks_do_not_show(name, held_out, monkeypatch):
    """200 examples in blocks of 64, the last one overlapping, from something that only slices."""
    rng = np.random.default_rng(0)
    phi, population = (rng.normal(size=(4, 200, 2)).astype(np.float32) for _ in range(2))
    keep = keep_mask(0, 4, 200)
    whole = run(name, phi, keep, population if held_out else None)
    monkeypatch.setattr(_pool, "BLOCK_ELEMENTS", 64 * 8)
    assert len(list(_pool.blocks(4, 200, 2))) == 4
    parts = run(name, Lazy(phi), keep, Lazy(population) if held_out else None)
    np.testing.assert_allclose(parts, whole, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("count", [1, 2, 4])
@each_case
def test_few_references_suffice(name, held_out, count):
    """One, two or four pairs beside the target's; a clear signal shines through."""
    M = 2 * count + 2
    rng = np.random.default_rng(0)
    keep = keep_mask(0, M, 2048)
    phi = rng.normal(size=(M, 2048, 1)).astype(np.float32) + 6 * keep[..., None]
    population = rng.normal(size=(M, 2048, 1)).astype(np.float32) if held_out else None
    assert auc_and_tpr(run(name, phi, keep, population), keep)[0] > 0.7


@pytest.mark.parametrize("models", [1, 3])
@each_case
def test_outside_targets_and_out_models_alone(name, held_out, models):
    rng = np.random.default_rng(0)
    phi, keep = rng.normal(size=(models, 500, 2)).astype(np.float32), np.zeros((models, 500), bool)
    member = rng.uniform(size=(2, 500)) < 0.5
    target = rng.normal(size=(2, 500, 2)).astype(np.float32) + 6 * member[..., None]
    options = {"target": target}
    if held_out:
        options["population"] = rng.normal(size=(models, 300, 2)).astype(np.float32)
        options["target_population"] = rng.normal(size=(2, 300, 2)).astype(np.float32)
    if name in ONLINE:
        with pytest.raises(
            ValueError, match=f"{name} needs 1 IN model .* has 0: use (rmia_off|informia_off|difficulty_cal)"
        ):
            run(name, phi, keep, **options)
    else:
        assert auc_and_tpr(run(name, phi, keep, **options), member)[0] > 0.7


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"phi": np.zeros((4, 25), np.float32)},
            r"phi must be \[models, examples, queries\]; got shape \(4, 25\)",
        ),
        ({"keep": np.zeros((4, 5), bool)}, r"keep must be bool of shape \(4, 25\) like phi"),
        ({"keep": np.zeros((4, 25), bool)}, 'leave="pair" needs rows in complementary pairs'),
        ({"leave": "none"}, 'leave must be "pair", "one" or "independent"; got \'none\''),
        ({"target": np.zeros((1, 5, 1), np.float32)}, r"target must be \[targets, 25, 1\] like phi"),
        ({"phi": np.full((4, 25, 1), np.nan)}, r"phi\[0, 0, 0\] is nan: leave that model and its mate out"),
    ],
)
def test_bad_arguments_are_named(name, change, message):
    pool = make_pool(0, "pair", 4, 1)
    arguments = {"phi": pool.phi, "keep": pool.keep, **change}
    with pytest.raises(ValueError, match=message):
        getattr(attacks, name)(arguments.pop("phi"), arguments.pop("keep"), **arguments)
