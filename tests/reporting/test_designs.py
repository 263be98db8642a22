"""Runs of every design of membership, from the configuration to the report: at chance where models know nothing."""

import csv
import dataclasses
import json
import warnings

import numpy as np
import pytest

import lira
from lira.attacks import lira_offline_fixed, rmia_offline
from lira.attacks.suite import ATTACKS, attack_pool, call_attack
from lira.data.dataset import Dataset
from lira.epsilon import pool_epsilon
from lira.membership import audited_half, disjoint_mask
from lira.metrics import roc, scored_part
from lira.reporting.checks import check_run
from lira.reporting.implied import leakage
from lira.reporting.measured import strongest_attack
from lira.reporting.reports import reported
from lira.scoring import pool_of
from lira.store.errors import RunError
from lira.store.verify_derived import score_findings
from lira.store.zarr import open_array, read_store

COINS = lira.Membership("independent", 0.3)
DISJOINT = lira.Membership("disjoint", num_targets=4)
RECIPE = lira.Recipe(epochs=1, batch_size=8)
N, M = 300, 16
# Of independent coins some examples are in no other model: attacks that need IN models of each go without them.
NEED_IN = {"lira_online", "lira_online_fixed", "lira_online_multivariate", "rmia_online", "informia_online"}
NEED_IN |= {"difficulty_calibration_both", "base"}


def dataset(examples: int = N) -> Dataset:
    rng = np.random.default_rng(0)
    labels = np.arange(examples, dtype=np.int32) % 4
    return Dataset(
        x=rng.normal(size=(examples, 5)).astype(np.float32), y=labels, num_classes=4, name="memory"
    )


def filled(place, membership, seed=0, *, effect=0.0, models=M, examples=N, membership_seed=None):
    """A run whose models know nothing, or with an `effect` something, of their memberships: those of the run itself."""
    rng = np.random.default_rng([seed, models])
    drawn = seed if membership_seed is None else membership_seed
    run = lira.Run.create(
        place, dataset(examples), RECIPE, num_models=models, membership=membership, membership_seed=drawn
    )
    hard = rng.normal(size=examples)
    for model, keep in enumerate(run.memberships(np.arange(models))):
        phi = rng.normal(size=examples) + 2 * hard + rng.normal() + effect * keep
        arrays = {"phi": phi, "entropy": rng.exponential(size=examples), "modified_entropy": np.exp(-phi)}
        rows = {name: values[:, None].astype(np.float32) for name, values in arrays.items()}
        accuracies = {f"accuracy_{side}": np.asarray(0.95, np.float32) for side in ("in", "out")}
        run.write_model(model, {**rows, **accuracies}, diverged=False)
    return run


def quietly(verb, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return verb(*arguments, **options)


@pytest.mark.parametrize("membership", [COINS, DISJOINT], ids=lambda each: each.design)
def test_models_that_know_nothing_are_at_chance_in_every_attack(tmp_path, membership):
    """Eight pools as runs give them: mean AUC, and TPR at 5 % FPR, within 4.5 standard errors of chance.

    Of two memberships: which examples attacks leave out follows from these, and programs are compiled for what is left.
    """
    curves: dict[str, list] = {}
    for seed in range(8):
        run = filled(tmp_path / str(seed), membership, seed, membership_seed=seed % 2)
        for name, scores in quietly(attack_pool, pool_of(run, dataset())).items():
            curves.setdefault(name, []).append(roc(*scored_part(scores, run.membership)[:2]))
    assert len(curves) >= 14
    for name, each in curves.items():
        assert len(each) == 8, name
        steps = name == "attack_r"  # it realises a smaller FPR than is allowed
        for chance, figures in ((0.5, [c.auc for c in each]), (0.05, [c.realised_tpr(0.05) for c in each])):
            off = (np.mean(figures) - chance) / (np.std(figures, ddof=1) / np.sqrt(8) + 1e-3)
            assert (off if steps and chance == 0.05 else abs(off)) < 4.5, (name, chance, np.mean(figures))


def test_a_report_of_independent_coins(tmp_path):
    run = filled(tmp_path / "run", COINS, effect=6.0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        evaluation = lira.report(run, dataset())
    counts = run.keep.sum(axis=0)
    thin = np.flatnonzero(np.minimum(counts, M - counts) - 1 < 2)
    assert 10 < len(thin) < 60
    numbers = f"(number {', '.join(map(str, thin[:10]))}, ...)"
    told = [
        str(each.message) for each in said if f"{len(thin)} of 300 examples are left out" in str(each.message)
    ]
    assert [each.startswith("lira_online, lira_online_multivariate") for each in told] == [True]
    assert told[0].endswith(numbers)
    assert evaluation.attacks.keys() >= NEED_IN
    assert evaluation.attacks["lira_online"].left_out.tolist() == thin.tolist()
    scores = read_store(open_array(run.path / "scores" / "lira_online"), "lira_online")
    assert np.flatnonzero(np.isnan(scores).any(axis=0)).tolist() == thin.tolist()
    assert np.isnan(scores[:, thin]).all()
    scored = np.setdiff1d(np.arange(N), thin)
    assert (
        evaluation.attacks["lira_online"].auc.value == roc(scores[:, scored], run.keep[:, scored]).auc > 0.6
    )
    assert evaluation.attacks["global_threshold"].left_out.size == 0
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert metrics["models"] == list(range(M))
    assert metrics["num_members"] == run.keep.sum()
    left_out = {name: each["num_examples_left_out"] for name, each in metrics["attacks"].items()}
    assert (left_out["lira_online"], left_out["global_threshold"]) == (len(thin), 0)
    assert left_out[evaluation.headline] > 0
    assert metrics["implied"]["epsilon"] is None, "examples chosen by their counts are no independent coins"
    assert not [each for each in score_findings(run, run.done, deep=True) if each.status == "broken"]
    torn = np.asarray(lira.score(run)["lira_online"]).copy()
    torn[3, scored[0]] = np.nan
    signals = run.fingerprint()
    run.write_scores("lira_online", torn, signals)
    broken = [each for each in score_findings(run, run.done, deep=True) if each.status == "broken"]
    assert [(each.place, each.what) for each in broken] == [("scores/lira_online", "holds NaN")]
    torn[3, scored[0]] = 0
    run.write_scores("lira_online", torn, signals)
    page = (run.path / "report.html").read_text()
    assert numbers in page
    assert "independent coins, each true with probability 0.3" in page
    rows = list(csv.DictReader((run.path / "records.csv").read_text().splitlines()))
    assert [int(row["models_in"]) for row in rows] == counts.tolist()
    assert [i for i, row in enumerate(rows) if not row["lira_online_tpr"]] == thin.tolist()
    never = np.flatnonzero(counts == 0).tolist()
    assert [i for i, row in enumerate(rows) if not row["global_threshold_tpr"]] == never
    unranked = {*evaluation.attacks[evaluation.headline].left_out.tolist(), *never}
    assert [i for i, row in enumerate(rows) if not row["rank"]] == sorted(unranked)
    by_name = {check.name: check for check in quietly(check_run, run)}
    assert f"{counts.min()} to {counts.max()} IN" in by_name["IN and OUT models"].sentence
    assert by_name["shuffled memberships"].status == "ok"
    attack, _ = strongest_attack(evaluation.attacks)
    best, other = (lira.score(run)[name] for name in (attack, "global_threshold"))
    on = ~np.isnan(best[0])
    expected = roc(other[:, on], run.keep[:, on]).auc - roc(best[:, on], run.keep[:, on]).auc
    found = quietly(lira.compare, run)
    assert found.against == attack
    assert found.by_attack["global_threshold"].auc.value == pytest.approx(expected)


def test_a_report_of_a_disjoint_pool(tmp_path):
    """Of models that know their members: each figure, row and column is of a target and of an example of its half."""
    run = filled(tmp_path / "run", DISJOINT, effect=6.0)
    half = audited_half(0, N)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        evaluation = lira.report(run, dataset())
    for name in NEED_IN - {"base"} | {"bavaria_online", "pmia_class", "shadow_logistic"}:
        assert name not in evaluation.attacks
        assert any(str(each.message).startswith(f"{name} is left out: ") for each in said), name
    metrics = json.loads((run.path / "metrics.json").read_text())
    member = run.memberships(np.arange(4))[:, half]
    assert metrics["models"] == [0, 1, 2, 3]
    assert (metrics["num_examples"], metrics["num_members"]) == (half.sum(), member.sum())
    assert metrics["implied"]["epsilon"]["at_least"] > 0.5, metrics["implied"]["epsilon"]
    for name, each in metrics["attacks"].items():
        scores = read_store(open_array(run.path / "scores" / name), name)
        assert np.isnan(scores[4:]).all()
        assert np.isnan(scores[:, ~half]).all()
        assert each["auc"] == pytest.approx(roc(scores[:4, half], member).auc)
    assert metrics["attacks"]["lira_offline_fixed"]["auc"] > 0.95
    rows = list(csv.DictReader((run.path / "records.csv").read_text().splitlines()))
    assert [int(row["index"]) for row in rows] == np.flatnonzero(half).tolist()
    assert [int(row["label"]) for row in rows] == dataset().y[half].tolist()
    assert [int(row["models_in"]) for row in rows] == member.sum(axis=0).tolist()
    page = (run.path / "report.html").read_text()
    for words in (
        "disjoint: shadow models are trained on one half",
        "4 attacked by 12 others",
        "150 of them attacked",
    ):
        assert words in page
    by_name = {check.name: check for check in quietly(check_run, run)}
    assert "examples have 0 IN and 12 OUT models" in by_name["IN and OUT models"].sentence
    assert by_name["shuffled memberships"].status == "ok"
    assert quietly(lira.compare, run).by_attack.keys() < evaluation.attacks.keys()
    # Another shadow model, and neither the scores nor the report are of this pool any more.
    assert reported(run)
    grown = lira.Run.create(run.path, dataset(), RECIPE, num_models=M + 1, membership=DISJOINT)
    rows = {name: np.asarray(run.signal(name))[5] for name in ("phi", "entropy", "modified_entropy")}
    grown.write_model(M, rows, diverged=False)
    assert not reported(grown)
    assert grown.scores("lira_offline") is None


@pytest.mark.parametrize("fraction", [0.3, 0.5])
def test_epsilon_of_a_disjoint_pool_is_below_the_truth(fraction):
    """Each example by a Gaussian mechanism of its own: mu = 2 is an epsilon of 10.0 at delta 1e-5, and 0 is none."""
    found: dict[float, list[float]] = {0.0: [], 2.0: []}
    for seed in range(10):
        rng, half = np.random.default_rng(seed), audited_half(seed, 2000)
        member = disjoint_mask(seed, 12, 2000, 4, fraction)[:4, half]
        shadows = rng.normal(size=(8, half.sum(), 1))
        for mu, bounds in found.items():
            phi = rng.normal(size=member.shape) + mu * member
            scores = lira_offline_fixed(shadows, np.zeros(shadows.shape[:2], bool), target=phi[..., None])
            bounds.append(pool_epsilon(scores, member, independent=True, delta=1e-5).epsilon)
    assert max(found[0.0]) == 0
    assert 0.5 < np.mean(found[2.0]) <= max(found[2.0]) < 10


def test_disjoint_pools_with_a_test_set_take_it_for_their_population(tmp_path):
    """Scores are those of the arrays cut by hand."""
    rng = np.random.default_rng(0)
    data = dataclasses.replace(dataset(), x_test=dataset(30).x + 1, y_test=dataset(30).y)
    run = lira.Run.create(tmp_path / "run", data, RECIPE, num_models=9, membership=DISJOINT, signals=())
    phi, phi_test = (rng.normal(size=(9, n, 1)).astype(np.float32) for n in (N, 30))
    for model in range(9):
        run.write_model(model, {"phi": phi[model], "phi_test": phi_test[model]}, diverged=model in (1, 7))
    half, shadows, targets = audited_half(0, N), [4, 5, 6, 8], [0, 2, 3]
    assert (run.targets.tolist(), run.shadows.tolist()) == (targets, shadows)
    pool = pool_of(run, data)
    np.testing.assert_array_equal(np.asarray(pool.signals["phi"]), phi[shadows][:, half])
    np.testing.assert_array_equal(pool.signals["phi"][:2, 7:31], phi[shadows][:2, half][:, 7:31])
    np.testing.assert_array_equal(np.asarray(pool.features)[:, :5], data.x[half])
    expected = rmia_offline(
        phi[shadows][:, half],
        np.zeros((4, half.sum()), bool),
        target=phi[targets][:, half],
        population=phi_test[shadows],
        target_population=phi_test[targets],
    )
    np.testing.assert_array_equal(quietly(call_attack, ATTACKS["rmia_offline"], pool), expected)


def test_a_disjoint_pool_without_shadow_models_or_targets_waits_for_them(tmp_path):
    run = lira.Run.create(tmp_path / "run", dataset(), RECIPE, num_models=8, membership=DISJOINT, signals=())
    for model in range(4):
        run.write_model(model, {"phi": np.zeros((N, 1), np.float32)}, diverged=False)
    with pytest.raises(
        RunError, match=r"4 trained models, 4 of them to be attacked by 0 others each.*train it"
    ):
        lira.score(run)
    assert "models" in {check.name for check in check_run(run)}


def test_epsilon_is_claimed_of_independent_coins_and_not_beyond_what_they_show(tmp_path):
    """Coins of p = .3 that models know nothing of: a claim of ln(.7 / .3) would be wrong. Models that know all: a claim."""
    pytest.importorskip("jax_privacy")
    for effect, claims in ((0.0, False), (30.0, True)):
        run = filled(tmp_path / f"{effect}", COINS, effect=effect)
        pool = pool_of(run)
        scores = call_attack(ATTACKS["lira_offline_fixed"], pool)
        implied = leakage(scores, run.keep, independent=pool.independent)
        assert implied.no_epsilon is None
        assert implied.epsilon is not None
        assert (implied.epsilon > 0) == claims, implied.epsilon


def test_what_needs_pairs_refuses_other_designs_by_name(tmp_path):
    disjoint = filled(tmp_path / "disjoint", DISJOINT)
    with pytest.raises(ValueError, match=r"this pool is of another design"):
        lira.enough(disjoint)
    with pytest.raises(ValueError, match=r'disjoint: is of membership.design = "disjoint", and unlearning'):
        lira.UnlearnConfig.of_run(disjoint.path)
    with pytest.raises(
        RunError, match=r'is of membership.design = "disjoint", and imitators are trained on half'
    ):
        lira.imitate(disjoint, dataset(), target=0)
    run = filled(tmp_path / "run", COINS)
    with pytest.raises(ValueError, match=r"cut by complementary pairs.*this pool is of another design"):
        lira.enough(run)
    with pytest.raises(ValueError, match=r'membership.design is "independent", and unlearning.*pairs'):
        lira.UnlearnConfig(pool=lira.Config(membership=COINS, save_params=True))
    with pytest.raises(ValueError, match=r'run: is of membership.design = "independent", and unlearning'):
        lira.UnlearnConfig.of_run(run.path)
