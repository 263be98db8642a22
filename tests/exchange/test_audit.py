"""Audits of arrays: from files to the report, to a run that the commands work on."""

import json

import numpy as np
import pytest
import tensorstore as ts
from audited_models import FEW, KEEP, LABELS, LOGITS, PHI, N, run

import lira
from lira import attacks
from lira.attacks.suite import ATTACKS, Pool, attack_pool
from lira.cli import main
from lira.exchange.audit import Audit, read_audit, write_audit
from lira.membership import keep_mask
from lira.metrics import roc

pytestmark = pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")


def read_zarr(place):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(place)}}
    return ts.open(spec, open=True).result().read().result()


def test_from_files_to_report(files, tmp_path, capsys):
    order = np.array([0, 2, 4, 6, 8, 1, 3, 5, 7, 9])
    flags = files(logits=LOGITS[order], keep=KEEP[order], labels=LABELS)
    assert run(flags, tmp_path / "new/out") == 0
    out = tmp_path / "new/out"
    assert sorted(each.name for each in out.glob("[!.]*")) == [
        *(
            "arrays",
            "attacks.png",
            "config.toml",
            "metrics.json",
            "provenance.json",
            "records",
            "records.csv",
            "records.json",
            "report.html",
            "roc.png",
            "scores",
        )
    ]
    metrics = json.loads((out / "metrics.json").read_text())
    pool = read_audit(flags).pool
    # No features are given, and no checkpoints of training can be.
    assert list(metrics["attacks"]) == [
        name
        for name, attack in ATTACKS.items()
        if "features" not in attack.needs and attack.signal != "trajectory"
    ]
    for name, scores in attack_pool(Pool(pool.signals, KEEP)).items():
        # Scores stand in the order of the files.
        np.testing.assert_allclose(read_zarr(out / "scores" / name), scores[order], rtol=1e-3, atol=1e-3)
        assert metrics["attacks"][name]["auc"] == pytest.approx(roc(scores, KEEP).auc, abs=1e-4)
    assert metrics["interval"].startswith("95 %, complementary pairs")
    page = (out / "report.html").read_text()
    for words in ("left out of it with its pair", "shuffled memberships", "Most and least vulnerable"):
        assert words in page
    assert metrics["implied"]["epsilon"] is None
    assert "neither known nor was declared" in metrics["implied"]["no_epsilon"]
    assert "not claimed" in page
    said = capsys.readouterr()
    assert "lira_online" in said.out
    assert said.err.count("lira: warning") == said.err.count("below 64 models in the pool") == 3
    # The page says it in the verdict's warnings and among the checks, in the same words.
    assert page.count("below 64 models in the pool one variance for all examples") == 2


def test_an_epsilon_is_claimed_of_declared_coins_alone(files, tmp_path):
    """Perfectly separated: the pool's design is the same either way."""
    flags = files(phi=np.where(KEEP[:4], 9.0, -9.0) + PHI[:4, :, 0] / 100, keep=KEEP[:4])
    assert not read_audit(flags).pool.independent
    assert run(flags, tmp_path / "out", "--independent") == 0
    implied = json.loads((tmp_path / "out/metrics.json").read_text())["implied"]
    assert implied["epsilon"]["at_least"] > 1
    assert implied["no_epsilon"] is None
    page = (tmp_path / "out/report.html").read_text()
    assert "<dt>memberships drawn by independent coins</dt><dd>declared</dd>" in page
    assert "not claimed" not in page


def test_a_single_pair_is_audited_by_the_attacks_without_shadow_models(files, tmp_path, capsys):
    flags = files(logits=LOGITS[:2], keep=KEEP[:2], labels=LABELS)
    assert run(flags, tmp_path / "out") == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    alone = [name for name, attack in ATTACKS.items() if not attack.uses_shadows]
    assert list(metrics["attacks"]) == [
        name for name in alone if name not in ("quantile_regression", "lt_iqr")
    ]
    assert "base is left out: base needs 1 IN or OUT model" in capsys.readouterr().err


def test_one_target_from_files_to_report(files, tmp_path, capsys):
    flags = files(losses=-np.log(1 / (1 + np.exp(-PHI[:8].astype(np.float64)))), keep=KEEP[:8])
    flags |= files(target=-np.log(1 / (1 + np.exp(-PHI[8].astype(np.float64)))), member=KEEP[8])
    assert run(flags, tmp_path / "out") == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (metrics["num_models"], metrics["num_members"]) == (1, int(KEEP[8].sum()))
    expected = roc(attacks.lira_online(PHI[:8], KEEP[:8], target=PHI[8:9]), KEEP[8:9])
    assert metrics["attacks"]["lira_online"]["auc"] == pytest.approx(expected.auc, abs=1e-3)
    assert "1 outside the pool" in (tmp_path / "out/report.html").read_text()
    header, *rows = (tmp_path / "out/records.csv").read_text().splitlines()
    assert "lira_online_score,lira_online_fpr" in header
    assert "_tpr" not in header
    member = header.split(",").index("member")
    assert [row.split(",")[member] for row in rows] == KEEP[8].astype(int).astype(str).tolist()


def test_write_audit_takes_arrays(tmp_path):
    evaluation = write_audit(Audit(Pool({"phi": PHI}, KEEP)), tmp_path / "out", source="another framework")
    assert evaluation.attacks["lira_online"].auc.value == roc(attacks.lira_online(PHI, KEEP), KEEP).auc
    assert "another framework" in (tmp_path / "out/report.html").read_text()


def test_an_audit_is_a_run(files, tmp_path, capsys):
    """The commands work on it: pairs that are apart are mates still, and a model without one is not there."""
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7, 8])
    with pytest.warns(UserWarning, match="models 8: left out"):
        lira.audit(tmp_path / "out", logits=LOGITS[order], keep=KEEP[order], labels=LABELS, attacks=FEW)
    audited = lira.Run.open(tmp_path / "out")
    assert audited.models.tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    np.testing.assert_array_equal(audited.keep, KEEP[:8])
    np.testing.assert_allclose(np.asarray(audited.phi), PHI[:8], rtol=1e-5, atol=1e-5)
    right = LOGITS[:8, :, 0].argmax(axis=-1) == LABELS
    for side, held in (("in", KEEP[:8]), ("out", ~KEEP[:8])):
        expected = [row[among].mean() for row, among in zip(right, held, strict=True)]
        np.testing.assert_allclose(audited.accuracy(side), expected, rtol=1e-6)
    place, before = str(tmp_path / "out"), json.loads((tmp_path / "out/metrics.json").read_text())
    assert before["pool"] == audited.models.tolist()
    capsys.readouterr()
    assert main(["verify", place, "--deep"]) == 0
    assert main(["check", place]) == 0
    assert main(["report", place, "--attacks", *FEW]) == 0
    after = json.loads((tmp_path / "out/metrics.json").read_text())
    assert after["attacks"] == before["attacks"]
    assert after["verdict"]["subject"].startswith(
        "8 models trained on half of 200 examples each; a model gets "
    )
    differences = lira.compare(audited, lira.Run.open(place))
    assert all(each.auc.value == 0 for each in differences.by_attack.values())
    lira.audit(tmp_path / "fewer", phi=PHI[:8, :150], keep=KEEP[:8, :150], attacks=FEW[:1])
    with pytest.raises(
        ValueError, match=r"is of 200 examples and .*fewer of 150: compare runs of the same examples"
    ):
        lira.compare(audited, lira.Run.open(tmp_path / "fewer"))


def test_runs_whose_pairs_stand_apart_are_compared_pair_by_pair(tmp_path):
    """Values and intervals are those of the same models with each beside its mate, whose scores go together."""
    shifts = np.repeat(np.random.default_rng(5).normal(size=(2, 4, 1)), 2, axis=1)
    order = np.r_[0:8:2, 1:8:2]
    found = []
    for name, rows in (("beside", np.arange(8)), ("apart", order)):
        runs = []
        for number, shift in enumerate(shifts):
            phi = (PHI[:8, :, 0] + 3 * shift * KEEP[:8])[rows]
            lira.audit(tmp_path / f"{name}{number}", phi=phi, keep=KEEP[rows], attacks=["global_threshold"])
            runs.append(lira.Run.open(tmp_path / f"{name}{number}"))
        found.append(lira.compare(*runs).by_attack["global_threshold"])
    assert runs[0].targets.tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert found[0].auc.high - found[0].auc.low > 0.1
    assert found[0].auc == found[1].auc


def test_a_target_outside_the_pool_is_a_runs_first_model(files, tmp_path):
    """Shadow models that never saw its data have no accuracy on members, and the target's own is told."""
    keep = np.zeros((6, N), bool)
    points = LOGITS[:, :50]
    given = {"logits": LOGITS[:6], "labels": LABELS, "keep": keep, "target": LOGITS[8], "member": KEEP[8]}
    given |= {"population": points[:6], "target_population": points[8], "population_labels": LABELS[:50]}
    evaluation = lira.audit(tmp_path / "out", **given, attacks=("lira_offline_fixed", "attack_p"))
    audited = lira.Run.open(tmp_path / "out")
    assert (audited.targets.tolist(), audited.shadows.tolist()) == ([0], [1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(audited.membership, KEEP[8:9])
    np.testing.assert_array_equal(audited.arrays.read("labels_test"), LABELS[:50])
    assert np.isnan(audited.accuracy("in")[1:]).all()
    right = LOGITS[8, :, 0].argmax(axis=-1) == LABELS
    assert evaluation.subject.accuracy_in == pytest.approx(right[KEEP[8]].mean())
    assert "; it gets " in evaluation.verdict.subject
    # What stands elsewhere is of the same model, or says whose it is.
    assert evaluation.facts["accuracy in"] == f"{100 * right[KEEP[8]].mean():.2f} %"
    (training,) = (each for each in evaluation.checks if each.name == "training")
    assert training.sentence.startswith("accuracy on members ")  # of the others none is known
    expected = attacks.lira_offline_fixed(PHI[:6], keep, target=PHI[8:9])
    assert evaluation.attacks["lira_offline_fixed"].auc.value == pytest.approx(
        roc(expected, KEEP[8:9]).auc, abs=1e-3
    )
    found = {check.name: check.status for check in lira.check(audited)}
    assert found["training"] != "fail"
    assert [each.status for each in lira.verify(audited, deep=True)] == [
        "unchecked"
    ]  # nobody can train it again


@pytest.mark.parametrize("name", ["phi", "phi_test", "labels_test"])
def test_lost_metadata_of_an_audit_is_written_again(tmp_path, name):
    """With a population too, whose answers and labels have as many columns as there are points."""
    rng = np.random.default_rng(0)
    lira.audit(
        tmp_path / "run",
        phi=rng.normal(size=(8, 60)),
        keep=keep_mask(0, 8, 60),
        population=rng.normal(size=(8, 20)),
        attacks=["lira_online_fixed", "attack_p"],
    )
    run = lira.Run.open(tmp_path / "run")
    before = {each: np.asarray(run.arrays.read(each)) for each in ("phi", "phi_test", "labels_test")}
    file = tmp_path / "run/arrays" / name / "zarr.json"
    whole = json.loads(file.read_text())
    file.write_text("{")
    assert len(lira.mend(tmp_path / "run")) == 1
    assert json.loads(file.read_text())["shape"] == whole["shape"]
    for each, values in before.items():
        np.testing.assert_array_equal(lira.Run.open(tmp_path / "run").arrays.read(each), values)
