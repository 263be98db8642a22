"""Canaries of a run, and of one training: apart from the pool's own figures, at chance where models know nothing."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from metrics_schema import SCHEMA

import lira
from lira.attacks.suite import Pool, attack_pool, select_attacks
from lira.cli import main
from lira.data.dataset import Dataset
from lira.epsilon import canary_epsilons, pool_epsilon
from lira.membership import canary_mask, keep_mask
from lira.metrics import roc, scored_part
from lira.scoring import canary_pool, pool_of
from lira.store.config import ConfigError, read_config
from lira.store.errors import RunError

N, C = 120, 60
RECIPE = lira.Recipe(epochs=1, batch_size=8)
CANARIES = lira.Canaries(count=C, kind="blank")
PAIRS = lira.Membership()


def pool_data() -> Dataset:
    x = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
    return Dataset(x=x, y=np.arange(N, dtype=np.int32) % 2, num_classes=2, name="memory")


def filled(place, models=8, seed=0, *, effect=0.0, membership=PAIRS):
    """A run whose models know nothing of their memberships but an `effect` on canaries, and its data."""
    rng, dataset = np.random.default_rng([seed, models]), lira.plant(pool_data(), CANARIES)
    run = lira.Run.create(
        place, dataset, RECIPE, num_models=models, membership=membership, membership_seed=seed
    )
    hard = rng.normal(size=N + C)
    for model, keep in enumerate(run.memberships(np.arange(models))):
        phi = rng.normal(size=N + C) + 2 * hard + rng.normal()
        phi[N:] += effect * keep[N:]
        arrays = {"phi": phi, "entropy": rng.exponential(size=N + C), "modified_entropy": np.exp(-phi)}
        rows = {name: values[:, None].astype(np.float32) for name, values in arrays.items()}
        run.write_model(model, rows, diverged=False)
    return run, dataset


def quietly(verb, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return verb(*arguments, **options)


def test_the_pool_is_as_it_would_be_without_canaries_and_these_have_coins_of_their_own(tmp_path):
    run, _ = filled(tmp_path / "run")
    keep = run.memberships(np.arange(8))
    np.testing.assert_array_equal(keep[:, :N], keep_mask(0, 8, N))
    np.testing.assert_array_equal(keep[:, N:], canary_mask(0, 8, C))
    np.testing.assert_array_equal(run.audited, np.arange(N))
    np.testing.assert_array_equal(run.canaries, np.arange(N, N + C))
    assert run.membership.shape == (8, N)
    pool = pool_of(run)
    assert pool.leave == "pair"
    assert pool.signals["phi"].shape == (8, N, 1)
    grown = lira.Run.create(tmp_path / "run", lira.plant(pool_data(), CANARIES), RECIPE, num_models=10)
    np.testing.assert_array_equal(grown.memberships(np.arange(8)), keep)


def test_canaries_of_models_that_know_nothing_are_at_chance():
    """Thirty pools of 16 models: how many others hold a canary tells nothing, for its coins are independent."""
    attacks = select_attacks(["lira_online_fixed", "lira_offline_fixed", "difficulty_calibration"])
    found: dict[str, list] = {}
    for seed in range(30):
        rng, keep = np.random.default_rng(seed), canary_mask(seed, 16, C)
        phi = rng.normal(size=(16, C, 1)) + 2 * rng.normal(size=(C, 1)) + rng.normal(size=(16, 1, 1))
        pool = Pool({"phi": phi.astype(np.float32)}, keep, independent=True)
        assert pool.leave == "independent"
        for name, scores in quietly(attack_pool, pool, attacks).items():
            curve = roc(*scored_part(scores, keep)[:2])
            found.setdefault(name, []).append((curve.auc, curve.realised_tpr(0.05)))
    assert found.keys() == attacks.keys()
    for name, each in found.items():
        assert len(each) == 30, name
        figures = np.array(each)
        off = (figures.mean(axis=0) - (0.5, 0.05)) / (figures.std(axis=0, ddof=1) / np.sqrt(len(each)) + 3e-3)
        assert (np.abs(off) < 4.5).all(), (name, figures.mean(axis=0))


def test_the_report_has_canaries_by_themselves(tmp_path):
    run, dataset = filled(tmp_path / "run", 16, effect=4.0)
    asked = ["difficulty_calibration", "global_threshold"]
    evaluation = quietly(lira.report, run, dataset, attacks=asked, headline=asked[0])
    document = json.loads((run.path / "metrics.json").read_text())
    assert not list(Draft202012Validator(SCHEMA).iter_errors(document))
    assert document["num_examples"] == document["subject"]["num_examples"] == N
    assert abs(document["attacks"][asked[0]]["auc"] - 0.5) < 0.08, "the pool's models know nothing"
    found = document["canaries"]
    assert (found["kind"], found["count"]) == ("blank", C)
    assert list(found["attacks"]) == asked
    assert found["attacks"][asked[0]]["auc"] > 0.7
    member = run.keep[:, run.canaries]
    scores = quietly(attack_pool, canary_pool(run), select_attacks(asked[:1]))[asked[0]]
    bound = pool_epsilon(scores, member, independent=True, fair=True, delta=1e-5)
    assert found["epsilon"]["at_least"] == pytest.approx(bound.epsilon)
    assert bound.epsilon > 0.2
    assert len((run.path / "records.csv").read_text().splitlines()) == N + 1
    page = (run.path / "report.html").read_text()
    assert "each a member of each model by a fair coin of its own" in page
    right = 100 * np.exp(bound.epsilon) / (1 + np.exp(bound.epsilon))
    assert f"epsilon is at least {bound.epsilon:.2f}, at delta 1e-05 and 95 % confidence. With" in page
    assert f"may be right in {right:.1f} of 100 cases" in page
    assert evaluation.canaries is not None
    assert evaluation.canaries.epsilon is not None
    none = dataclasses.replace(
        evaluation.canaries, epsilon=dataclasses.replace(evaluation.canaries.epsilon, epsilon=0.0)
    )
    quietly(dataclasses.replace(evaluation, canaries=none).report, tmp_path / "nothing")
    page = (tmp_path / "nothing/report.html").read_text()
    assert "Nothing was found: no epsilon above 0 is claimed at delta 1e-05 and 95 % confidence." in page
    assert "of 100 cases" not in page
    assert not [each for each in lira.verify(run.path, dataset=dataset, deep=True) if each.status == "broken"]


def test_no_bound_is_of_an_attack_that_leaves_canaries_out_by_their_counts(tmp_path):
    """Of eight models: coins of the canaries that have enough on each side are no longer fair."""
    run, dataset = filled(tmp_path / "run", 8, effect=4.0)
    asked = ["lira_online_fixed", "global_threshold"]
    quietly(lira.report, run, dataset, attacks=asked, headline=asked[0])
    found = json.loads((run.path / "metrics.json").read_text())["canaries"]
    left_out = {name: each["num_examples_left_out"] for name, each in found["attacks"].items()}
    assert 0 < left_out[asked[0]] < C / 2
    assert left_out[asked[1]] == 0
    assert found["epsilon_attack"] == asked[1]
    member = run.keep[:, run.canaries]
    scores = np.asarray(run.phi, np.float64)[:, run.canaries, 0]
    bound = pool_epsilon(scores, member, independent=True, fair=True, delta=1e-5)
    assert found["epsilon"]["at_least"] == pytest.approx(bound.epsilon)


def test_accuracies_and_losses_are_of_the_pool_alone_and_canaries_are_learned(tmp_path):
    """Trained really; of two classes an example is classified right where phi is positive."""
    dataset = lira.plant(pool_data(), CANARIES)
    run = lira.Run.create(tmp_path / "run", dataset, RECIPE, num_models=4)
    quietly(lira.train, run, dataset, show_progress=False)
    phi, keep = np.asarray(run.phi)[:, :N, 0].astype(float), run.keep[:, :N]
    for side, among in (("in", keep), ("out", ~keep)):
        expected = [np.mean(values[held] > 0) for values, held in zip(phi, among, strict=True)]
        np.testing.assert_allclose(run.accuracy(side), expected, rtol=1e-6)
    expected = [np.logaddexp(0, -values[held]).mean() for values, held in zip(phi, keep, strict=True)]
    np.testing.assert_allclose(run.losses("in"), expected, rtol=1e-5)
    plain = lira.Run.create(tmp_path / "plain", pool_data(), RECIPE, num_models=4)
    assert "canaries" not in plain.provenance["configuration"]
    assert "canaries" not in (tmp_path / "plain/config.toml").read_text()
    with pytest.raises(RunError, match="is a run of other data"):
        lira.Run.create(tmp_path / "plain", dataset, RECIPE, num_models=4)
    with pytest.raises(RunError, match="holds canaries, whose memberships are no pairs"):
        run.require_trained_pairs("unlearning is of pairs")


# --- One training ---------------------------------------------------------------------------------------------------


def test_an_audit_of_one_training_is_what_its_canaries_say(tmp_path):
    design = lira.Membership("all", num_targets=2)
    run, dataset = filled(tmp_path / "run", 5, effect=4.0, membership=design)
    assert run.keep[:, :N].all()
    audit = lira.audit_one(run, dataset, show_progress=False)
    phi, member = np.asarray(run.phi, np.float64)[..., 0], run.keep[:2, N:]
    scores = phi[:2, N:] - phi[2:, N:].mean(axis=0)
    np.testing.assert_allclose(audit.scores, scores)
    expected = canary_epsilons(scores, member, delta=1e-5, fair=True)
    assert audit.bounds == expected
    assert audit.bounds["one_run"].epsilon > 0.5
    document = json.loads((run.path / "canaries.json").read_text())
    assert document["epsilon"]["one_run"]["at_least"] == expected["one_run"].epsilon
    assert document["proven"] is None
    assert any("2503.07199" in limit for limit in document["limits"])
    page = (run.path / "canaries.html").read_text()
    assert "2503.07199" in page
    assert f"{expected['one_run'].epsilon:.2f}" in str(audit)
    with pytest.raises(RunError, match="canaries alone can be attacked: lira audit-one does"):
        lira.report(run, dataset)
    few, data = filled(tmp_path / "pairs", 4)
    with pytest.raises(
        RunError, match=r'is of membership\.design = "pairs", whose canaries its report shows'
    ):
        lira.audit_one(few, data)


def test_a_bound_above_what_is_proven_is_said_so(tmp_path):
    from lira.learning.accounting import Guarantee

    rng = np.random.default_rng(0)
    coins = rng.random(400) < 0.5
    proven = Guarantee(epsilon=1.0, delta=1e-5, noise=1.0, clip=1.0, steps=1, rate=1.0, max_batch=1)
    found = lira.audit_canaries(coins + 0.1 * rng.normal(size=400), coins, fair=True, proven=proven)
    assert found.contradicts
    assert "MORE than the proven 1.00" in str(found)
    low = found.bounds["one_run"].epsilon
    right = 100 * np.exp(low) / (1 + np.exp(low))
    assert f"may be right in {right:.1f} of 100 cases, where a coin is in 50" in str(found)
    page = found.report(tmp_path / "above").read_text()
    assert '<p class="distrust">That is MORE than the proven 1.00' in page
    row = '<tr><th scope="row">proven</th><td class="figure">1.00</td><td>at most, by privacy loss distributions'
    assert row in page
    noise = lira.audit_canaries(rng.normal(size=400), coins, fair=True, proven=proven)
    with pytest.raises(ValueError, match="delta is 1e-09, and epsilon is proven at delta 1e-05"):
        lira.audit_canaries(rng.normal(size=400), coins, fair=True, proven=proven, delta=1e-9)
    assert not noise.contradicts
    assert "Nothing was found" in str(noise)
    assert "of 100 cases" not in str(noise)
    page = noise.report(tmp_path / "below").read_text()
    assert 'class="distrust"' not in page
    assert row in page


def test_audit_one_on_the_command_line(tmp_path, capsys):
    x = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(N) % 2)
    config = tmp_path / "one.toml"
    config.write_text(
        f'dataset = "npz:{tmp_path}/data.npz"\nnum_models = 64\n[canaries]\ncount = 60\nkind = "blank"\n'
        f"[recipe]\nepochs = 1\nbatch_size = 8\n"
    )
    run = str(tmp_path / "run")
    for expected in (0, 0):  # the second time nothing is trained
        assert main(["audit-one", str(config), "--run-dir", run, "--json"]) == expected
        document = json.loads(capsys.readouterr().out)
    assert (document["num_trainings"], document["num_canaries"]) == (1, 60)
    assert main(["plan", str(config), "--membership.design", "all", "--num-models", "1"]) == 0
    assert "every model is trained on all examples" in capsys.readouterr().out
    for flags, message in (
        (["--canaries.count", "0"], "canaries.count must be at least 1; got 0"),
        (["--canaries.count", "-1"], "canaries.count must be at least 1; got -1"),
        (["--canaries.count", "1000"], "takes at most 120"),
        (["--canaries.kind", "own"], "canaries.file is needed"),
        (["--canaries.count", "1"], "of which nothing can be told: take more"),
        (["--delta", "1"], "delta must be in [0, 1); got 1"),
        (["--delta", "nan"], "delta must be in [0, 1); got nan"),
        (["--confidence", "1"], "confidence must be between 0.5 and 1"),
        (["--recipe.privacy.noise", "1", "--delta", "1e-7"], "epsilon is proven at delta 1e-05"),
    ):
        assert main(["audit-one", str(config), "--run-dir", str(tmp_path / "none"), *flags]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "none").exists()


def test_canaries_that_are_gradients_on_the_command_line(tmp_path, capsys):
    x = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(N) % 2)
    config, run = tmp_path / "one.toml", tmp_path / "run"
    config.write_text(
        f'dataset = "npz:{tmp_path}/data.npz"\n[canaries]\ncount = 300\nkind = "gradient"\n'
        f"[recipe]\nepochs = 2\nbatch_size = 90\n[recipe.privacy]\nepsilon = inf\n"
    )
    assert main(["audit-one", str(config), "--run-dir", str(run), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    there = lira.Run.open(run)
    scores, member = there.arrays.read("canary_scores").astype(float), there.keep[:, there.canaries]
    expected = canary_epsilons(scores, member, delta=1e-5, fair=True)
    assert document["epsilon"]["one_run"]["at_least"] == expected["one_run"].epsilon > 1
    assert "read from the noised sum of every step" in " ".join(document["limits"])
    assert "300 canaries, gradients that are planted to be recognised" in document["sentences"][0]
    assert "the noised sums of all steps have along each canary" in (run / "canaries.html").read_text()
    assert main(["verify", str(run)]) == 0
    capsys.readouterr()
    for flags, message in (
        (
            ["--canaries.count", "100000"],
            "has 17,538 weights, of which each canary of kind gradient takes one",
        ),
        (["--recipe.privacy.clip", "inf"], "is as long as recipe.privacy.clip, which is inf"),
        (["--num-models", "3", "--membership.num-targets", "1"], "need no others for reference"),
        (["--membership.design", "pairs", "--num-models", "4"], "is for audits of single trainings"),
    ):
        assert main(["audit-one", str(config), "--run-dir", str(tmp_path / "none"), *flags]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "none").exists()
    config.write_text(config.read_text().partition("[recipe.privacy]")[0])
    assert main(["audit-one", str(config), "--run-dir", str(tmp_path / "none")]) == 2
    assert "is read from the sums of private training: add [recipe.privacy]" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_anyones_canaries_on_the_command_line(tmp_path, capsys):
    rng = np.random.default_rng(0)
    coins = rng.random(500) < 0.5
    scores = rng.normal(size=500) + 2 * coins
    np.save(tmp_path / "scores.npy", scores)
    np.savetxt(tmp_path / "coins.csv", coins, fmt="%d")
    np.save(tmp_path / "wrong.npy", coins[:-1])
    files = ["--canaries", str(tmp_path / "scores.npy"), "--coins", str(tmp_path / "coins.csv")]
    assert main(["audit", *files, "--fair", "--delta", "1e-6", "--out", str(tmp_path / "out"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    expected = canary_epsilons(scores, coins, delta=1e-6, fair=True)
    assert {name: each["at_least"] for name, each in document["epsilon"].items()} == {
        name: pytest.approx(bound.epsilon) for name, bound in expected.items()
    }
    assert (tmp_path / "out/canaries.html").is_file()
    for arguments, message in (
        (files[:2], "the following arguments are required: --coins"),
        ([*files[:2], "--coins", str(tmp_path / "wrong.npy")], "must hold 0 and 1"),
        ([*files, "--keep", "k.npy"], "--keep is not for --canaries"),
        (["--phi", "p.npy"], "the following arguments are required: --keep"),
        ([*files, "--delta", "0"], "delta must be positive"),
        (["--phi", "p.npy", "--keep", "k.npy", "--fair"], "--fair is for --canaries only"),
    ):
        assert main(["audit", *arguments, "--out", str(tmp_path / "none")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "none").exists()


def test_a_configuration_names_its_mistakes(tmp_path):
    file = tmp_path / "run.toml"
    for text, message in (
        ("canaries = 3", r"'canaries' must be a table, \[canaries\]"),
        ("[canaries]\ncuont = 3", "did you mean 'canaries.count'"),
        ('[membership]\ndesign = "all"', r"canaries alone can be attacked: add \[canaries\]"),
        ("[canaries]\ncount = 0", "canaries.count must be at least 1; got 0"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_config(file)
