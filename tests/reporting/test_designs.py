"""Runs of every design of membership, from the configuration to the report: at chance where models know nothing."""

import csv
import json
import warnings

import numpy as np
import pytest

import lira
from lira.attacks.suite import ATTACKS, attack_pool, call_attack
from lira.data.dataset import Dataset
from lira.metrics import roc
from lira.reporting.checks import check_run
from lira.reporting.implied import leakage
from lira.scoring import pool_of
from tests.chance import check_chance

COINS = lira.Membership("independent", 0.3)
RECIPE = lira.Recipe(epochs=1, batch_size=8)
N, M = 300, 16
# Of independent coins some examples are in no other model, so attacks that need IN models of each are left out.
NEED_IN = {"lira_online", "lira_online_fixed", "lira_online_multivariate", "rmia_online", "informia_online"}
NEED_IN |= {"difficulty_calibration_both", "base"}


def dataset(examples: int = N) -> Dataset:
    rng = np.random.default_rng(0)
    labels = np.arange(examples, dtype=np.int32) % 4
    return Dataset(
        x=rng.normal(size=(examples, 5)).astype(np.float32), y=labels, num_classes=4, name="memory"
    )


def filled(place, membership, seed=0, *, effect=0.0, models=M, examples=N):
    """A run whose models know nothing, or with an `effect` something, of their memberships: those of the run itself."""
    rng = np.random.default_rng([seed, models])
    run = lira.Run.create(
        place, dataset(examples), RECIPE, num_models=models, membership=membership, membership_seed=seed
    )
    hard = rng.normal(size=examples)
    for model, keep in enumerate(run.memberships(np.arange(models))):
        phi = rng.normal(size=examples) + 2 * hard + rng.normal() + effect * keep
        arrays = {"phi": phi, "entropy": rng.exponential(size=examples), "modified_entropy": np.exp(-phi)}
        rows = {name: values[:, None].astype(np.float32) for name, values in arrays.items()}
        accuracies = {f"accuracy_{side}": np.float32(0.95) for side in ("in", "out")}
        run.write_model(model, {**rows, **accuracies}, diverged=False)
    return run


def quietly(verb, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return verb(*arguments, **options)


@pytest.mark.parametrize("membership", [COINS], ids=lambda each: each.design)
def test_models_that_know_nothing_are_at_chance_in_every_attack(tmp_path, membership):
    """Five pools, and memberships, as runs give them."""
    curves: dict[str, list] = {}
    for seed in range(5):
        run = filled(tmp_path / str(seed), membership, seed)
        for name, scores in quietly(attack_pool, pool_of(run, dataset())).items():
            curves.setdefault(name, []).append(roc(scores, run.keep))
    assert len(curves) >= 15
    for name, each in curves.items():
        assert len(each) == 5, name
        aucs = np.array([curve.auc for curve in each])
        tprs = np.array([curve.tpr_at(0.001).tpr for curve in each])
        check_chance(aucs, tprs, each[0].num_nonmembers, steps=name == "attack_r")


def test_a_report_of_independent_coins(tmp_path):
    run = filled(tmp_path / "run", COINS, effect=6.0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        evaluation = lira.report(run, dataset())
    assert any("lira_online is left out: lira_online needs 2 IN models" in str(each.message) for each in said)
    assert not NEED_IN - {"base"} & evaluation.attacks.keys()
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert metrics["models"] == list(range(M))
    assert metrics["num_members"] == run.keep.sum()
    page = (run.path / "report.html").read_text()
    assert "independent coins, each true with probability 0.3" in page
    counts = run.keep.sum(axis=0)
    rows = list(csv.DictReader((run.path / "records.csv").read_text().splitlines()))
    assert [int(row["models_in"]) for row in rows] == counts.tolist()
    by_name = {check.name: check for check in quietly(check_run, run)}
    assert f"{counts.min()} to {counts.max()} IN" in by_name["IN and OUT models"].sentence
    assert by_name["shuffled memberships"].status == "ok"
    assert quietly(lira.compare, run).by_attack.keys() < evaluation.attacks.keys()


def test_epsilon_is_claimed_of_independent_coins_and_not_beyond_what_they_show(tmp_path):
    """Coins of p = .3 that models know nothing of: a claim of ln(.7 / .3) would be wrong. Models that know all: a claim."""
    pytest.importorskip("jax_privacy")
    for effect, claims in ((0.0, False), (30.0, True)):
        run = filled(tmp_path / f"{effect}", COINS, effect=effect)
        pool = pool_of(run)
        scores = call_attack(ATTACKS["lira_offline_fixed"], pool)
        implied = leakage(scores, run.keep, independent=pool.independent)
        assert implied.no_epsilon is None
        assert (implied.epsilon > 0) == claims, implied.epsilon


def test_what_needs_pairs_refuses_other_designs_by_name(tmp_path):
    run = filled(tmp_path / "run", COINS)
    with pytest.raises(ValueError, match=r"cut by complementary pairs.*this pool is of another design"):
        lira.enough(run)
    with pytest.raises(ValueError, match=r'membership.design is "independent", and unlearning.*pairs'):
        lira.UnlearnConfig(pool=lira.Config(membership=COINS, save_params=True))
    with pytest.raises(ValueError, match=r'run: is of membership.design = "independent", and unlearning'):
        lira.UnlearnConfig.of_run(run.path)
