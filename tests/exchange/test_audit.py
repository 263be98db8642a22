import json
import re

import numpy as np
import pytest
import tensorstore as ts
from scipy.special import log_softmax, softmax

import lira
from lira import attacks
from lira.attacks.suite import ATTACKS, Pool, attack_pool
from lira.cli import main
from lira.exchange.audit import Audit, AuditError, read_audit, write_audit
from lira.membership import keep_mask
from lira.metrics import roc
from lira.signals import SaturatedWarning

M, N, Q, C = 10, 200, 2, 3
FEW = ("global_threshold", "lira_online_fixed")

pytestmark = pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")


def balanced(M=M):
    return np.argsort(np.random.default_rng(0).uniform(size=(M, N)), axis=0) < M // 2


def model_logits(keep, num_classes=C, seed=0):
    """Logits `[rows, N, Q, C]` of models that are right mostly, and more so on members."""
    rng = np.random.default_rng(seed)
    labels = np.arange(N) % num_classes
    logits = rng.normal(size=(*keep.shape, Q, num_classes)) + np.random.default_rng(99).normal(
        size=(1, N, 1, num_classes)
    )
    logits[:, np.arange(N), :, labels] += 1 + 2 * keep.T[:, :, None]
    return logits.astype(np.float32), labels


KEEP = keep_mask(0, M, N)
LOGITS, LABELS = model_logits(KEEP)


def exact_phi(logits, labels):
    log_p = log_softmax(logits.astype(np.longdouble), axis=-1)
    others = np.where(np.arange(logits.shape[-1]) == labels[:, None, None], -np.inf, log_p)
    label = np.take_along_axis(
        log_p, np.broadcast_to(labels[:, None, None], (*log_p.shape[:-1], 1)), axis=-1
    )[..., 0]
    return (label - np.log(np.exp(others).sum(axis=-1))).astype(np.float32)


PHI = exact_phi(LOGITS, LABELS)


class Files:
    """Arrays as files, and the flags that name them."""

    def __init__(self, place):
        self.place = place

    def __call__(self, **arrays):
        flags = {}
        for name, values in arrays.items():
            flags[name] = values
            if isinstance(values, np.ndarray):
                flags[name] = str(self.place / f"{name}.npy")
                np.save(flags[name], values)
        return flags


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def run(flags, out, *declared):
    arguments = [
        part for name, place in flags.items() for part in (f"--{name.replace('_', '-')}", str(place))
    ]
    return main(["audit", *arguments, *declared, "--out", str(out)])


def read_zarr(place):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(place)}}
    return ts.open(spec, open=True).result().read().result()


# --- Reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "values", "labels"),
    [
        ("phi", PHI, None),
        ("logits", LOGITS, LABELS),
        ("losses", np.log1p(np.exp(-PHI.astype(np.float64))), None),
        ("confidences", 1 / (1 + np.exp(-PHI.astype(np.float64))), LABELS),
        ("confidences", softmax(LOGITS.astype(np.float64), axis=-1), LABELS),
    ],
)
def test_every_kind_of_values_gives_one_pool(files, kind, values, labels):
    for queries in (True, False):
        given = {kind: values if queries else values[:, :, 0], "keep": KEEP, "labels": labels}
        audit = read_audit(files(**given))
        phi = phi_of(audit)
        assert phi.dtype == np.float32
        np.testing.assert_allclose(phi, PHI if queries else PHI[:, :, :1], rtol=2e-5, atol=2e-5)
        np.testing.assert_array_equal(audit.pool.keep, KEEP)
        assert audit.pool.target is audit.member is None
        # Only values of all classes tell the entropies.
        assert ("entropy" in audit.pool.signals) == (values.shape == LOGITS.shape)


def phi_of(audit):
    return np.asarray(audit.pool.signals["phi"])


def target_of(audit):
    return np.asarray(audit.pool.target["phi"])


def test_one_logit_is_a_binary_classifier(files):
    logits, labels = model_logits(KEEP, 2)
    z = logits[..., 1] - logits[..., 0]
    for values in (z[:, :, 0], z[..., None]):
        phi = phi_of(read_audit(files(logits=values, keep=KEEP, labels=labels)))
        expected = exact_phi(logits, labels)[:, :, : phi.shape[2]]
        np.testing.assert_allclose(phi, expected, rtol=1e-5, atol=1e-5)


def test_files_of_every_kind(tmp_path):
    """Keep as CSV of 0 and 1, values inside an npz, labels as a column: the same pool."""
    np.savetxt(tmp_path / "keep.csv", KEEP, fmt="%d", delimiter=",")
    np.savetxt(tmp_path / "labels.csv", LABELS, fmt="%d", header="label", comments="")
    np.savez(tmp_path / "all.npz", shadow=LOGITS, other=LABELS)
    audit = read_audit(
        {
            "logits": f"{tmp_path}/all.npz:shadow",
            "keep": str(tmp_path / "keep.csv"),
            "labels": str(tmp_path / "labels.csv"),
        }
    )
    np.testing.assert_allclose(phi_of(audit), PHI, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("single", [True, False])
def test_targets_stand_outside_the_pool(files, single):
    keep = KEEP[:8]
    target, member = (LOGITS[8], KEEP[8]) if single else (LOGITS[8:], KEEP[8:])
    audit = read_audit(files(logits=LOGITS[:8], keep=keep, labels=LABELS, target=target, member=member))
    assert audit.member is not None
    np.testing.assert_allclose(target_of(audit), PHI[8:9] if single else PHI[8:], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(audit.member, KEEP[8:9] if single else KEEP[8:])
    np.testing.assert_allclose(phi_of(audit), PHI[:8], rtol=1e-5, atol=1e-5)


def test_saturated_confidences_are_counted_over_pool_and_target(files):
    p = (1 / (1 + np.exp(-PHI[:, :, 0].astype(np.float64)))).astype(np.float32)
    p[:8][p[:8] > 0.99], p[9, 0] = 1, 1
    count = int((p[:9] == 1).sum()) + int((p[9:] == 1).sum())
    with pytest.warns(SaturatedWarning, match=rf"^{count:,} of 2,000 values"):
        audit = read_audit(files(confidences=p[:8], keep=KEEP[:8], target=p[8:], member=KEEP[8:]))
    assert target_of(audit)[1, 0, 0] == phi_of(audit).max() == np.float32(np.log(2.0**25 - 1))


def test_populations_are_read_like_the_pool(files):
    points, labels = LOGITS[:, :50], LABELS[:50]
    flags = files(logits=LOGITS[:8], keep=KEEP[:8], labels=LABELS, target=LOGITS[8], member=KEEP[8])
    flags |= files(population=points[:8], target_population=points[8], population_labels=labels)
    pool = read_audit(flags).pool
    assert pool.population is not None
    assert pool.target_population is not None
    np.testing.assert_allclose(np.asarray(pool.population), PHI[:8, :50], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.asarray(pool.target_population), PHI[8:9, :50], rtol=1e-5, atol=1e-5)


def test_pairs_that_are_apart_are_brought_together(files):
    order = np.array([0, 2, 4, 6, 8, 1, 3, 5, 7, 9])
    audit = read_audit(files(phi=PHI[order], keep=KEEP[order]))
    np.testing.assert_array_equal(audit.pool.keep, KEEP)
    np.testing.assert_array_equal(phi_of(audit), PHI)
    assert audit.models is not None
    np.testing.assert_array_equal(order[audit.models], np.arange(M))
    with pytest.warns(
        UserWarning, match="models 2: left out, because the other models are complementary pairs"
    ):
        audit = read_audit(files(phi=PHI[[0, 1, 2, 4, 5]], keep=KEEP[[0, 1, 2, 4, 5]]))
    np.testing.assert_array_equal(audit.pool.keep, KEEP[[0, 1, 4, 5]])


def test_large_arrays_are_on_disk_and_figures_the_same(files, tmp_path, monkeypatch):
    given = files(confidences=np.clip(1 / (1 + np.exp(-PHI)), 0, 1).astype(np.float32), keep=KEEP)
    small = read_audit(given)
    monkeypatch.setattr("lira.exchange.reading.HELD", 0)
    large = read_audit(given)
    assert isinstance(small.pool.signals["phi"], np.ndarray)
    assert isinstance(large.pool.signals["phi"], np.memmap)
    np.testing.assert_array_equal(phi_of(large), phi_of(small))


# --- The command ----------------------------------------------------------------------------------------------------


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


SHUFFLED = np.random.default_rng(3).permutation(N)
BINARY = np.arange(N) % 2

BAD = {
    "transposed keep": (
        {"phi": PHI, "keep": KEEP.T},
        r"keep.npy: must be \[10, 200\].*got shape \(200, 10\): transpose it",
    ),
    "shorter keep": ({"phi": PHI, "keep": KEEP[:8]}, r"keep.npy: must be \[10, 200\].*got shape \(8, 200\)"),
    "keep of indices": (
        {"phi": PHI, "keep": np.tile(np.arange(N), (M, 1))},
        "keep.npy: membership must be true or false",
    ),
    "keep all true": ({"phi": PHI, "keep": np.ones((M, N), bool)}, "keep.npy: is true everywhere"),
    "keep all false": (
        {"phi": PHI, "keep": np.zeros((M, N), bool)},
        "is false everywhere: give the attacked model by",
    ),
    "a model of members only": (
        {"phi": PHI, "keep": np.concatenate([np.ones((1, N), bool), KEEP[1:]])},
        "keep.npy: model 0 has only members",
    ),
    "keep of indices of members": (
        {"phi": PHI, "keep": np.tile(np.arange(0, N, 2), (M, 1))},
        r"keep.npy: must be \[10, 200\].*: of indices of members make a mask",
    ),
    "models and examples turned": (
        {"phi": PHI.swapaxes(0, 1), "keep": KEEP.T},
        r"phi.npy: holds 200 models of 10 examples, .*models and examples have changed places, so transpose",
    ),
    "confidences as phi": (
        {"phi": 1 / (1 + np.exp(-PHI)), "keep": KEEP},
        r"model 0: looks like confidences, for all of it lies in \[0, 1\]",
    ),
    "words": (
        {"phi": PHI, "keep": np.where(KEEP, "in", "out")},
        "its dtype is <U3: save numbers, or true and false",
    ),
    "keep inverted": ({"phi": PHI, "keep": ~KEEP}, r"phi.npy: .*AUC below 0.5\): membership is inverted"),
    "losses as phi": ({"phi": -PHI, "keep": KEEP}, "the values have the wrong sign"),
    "one axis": ({"phi": PHI[0, :, 0], "keep": KEEP}, r"phi.npy: must be \[models, examples, ...\]"),
    "four axes of phi": (
        {"phi": LOGITS, "keep": KEEP},
        r"model 0: has a shape of \(200, 2, 3\) for a model; phi are",
    ),
    "nan": (
        {"phi": np.where(np.arange(N)[:, None] == 7, np.nan, PHI), "keep": KEEP},
        "model 0: is NaN at example 7",
    ),
    "negative losses": (
        {"losses": -np.abs(PHI), "keep": KEEP},
        "model 0: a cross-entropy loss is not negative",
    ),
    "confidences above 1": ({"confidences": PHI, "keep": KEEP}, r"model 0: a probability is in \[0, 1\]"),
    "no labels": ({"logits": LOGITS, "keep": KEEP}, "model 0: logits need labels"),
    "short labels": (
        {"logits": LOGITS, "keep": KEEP, "labels": LABELS[1:]},
        r"labels.npy: labels must be \[N\] = \[200\]",
    ),
    "more classes": (
        {"logits": LOGITS, "keep": KEEP, "labels": LABELS + (LABELS == 2)},
        "has 3 classes on its last axis, but labels go up to 3",
    ),
    "labels in another order": (
        {"logits": LOGITS, "keep": KEEP, "labels": LABELS[SHUFFLED]},
        "labels or rows are in another order",
    ),
    "probabilities as logits": (
        {"logits": softmax(LOGITS, axis=-1), "keep": KEEP, "labels": LABELS},
        "looks like probabilities",
    ),
    "one probability as a logit": (
        {"logits": softmax(LOGITS, axis=-1)[:, :, 0, 0], "keep": KEEP, "labels": BINARY},
        "looks like probabilities",
    ),
    "a target without member": (
        {"phi": PHI, "keep": KEEP, "target": PHI[0]},
        "--target is given without --member",
    ),
    "member without target": (
        {"phi": PHI, "keep": KEEP, "member": KEEP[0]},
        "--member is given without --target",
    ),
    "a target of the pool": (
        {"phi": PHI, "keep": KEEP, "target": PHI[3], "member": KEEP[3]},
        r"member.npy: target 0's memberships .* model [23] of the pool.*leave model [23] out of the pool",
    ),
    "a target's mate in the pool": (
        {"phi": PHI[:9], "keep": KEEP[:9], "target": PHI[9], "member": KEEP[9]},
        r"member.npy: target 0's memberships .* model 8 of the pool",
    ),
    "target of other queries": (
        {"phi": PHI, "keep": KEEP, "target": PHI[0, :, :1], "member": KEEP[0]},
        r"target.npy: has shape \(1, 200, 1\), and .*phi.npy \(10, 200, 2\)",
    ),
    "target of other axes": (
        {"phi": PHI, "keep": KEEP, "target": PHI[0, :, 0], "member": KEEP[0]},
        "target.npy: must have the 3 axes of the pool, or one less",
    ),
    "member all true": (
        {"phi": PHI, "keep": KEEP, "target": PHI[0], "member": np.ones(N, bool)},
        "--member: target 0 has only members",
    ),
    "member of two": (
        {"phi": PHI, "keep": KEEP, "target": PHI[:1], "member": KEEP[:2]},
        r"member.npy: must be \[1, 200\].*got shape \(2, 200\)",
    ),
    "population of other models": (
        {"phi": PHI, "keep": KEEP, "population": PHI[:8, :50]},
        r"population.npy: must hold the pool's 10 models; got 8",
    ),
    "population of the pool alone": (
        {"phi": PHI, "keep": KEEP, "target": PHI[0], "member": KEEP[0], "population": PHI[:, :50]},
        "--population is given without --target-population",
    ),
    "population of the target alone": (
        {"phi": PHI, "keep": KEEP, "target": PHI[0], "member": KEEP[0], "target_population": PHI[0, :50]},
        "--target-population is given without --population",
    ),
    "two kinds": ({"phi": PHI, "losses": np.abs(PHI), "keep": KEEP}, "not allowed with argument"),
    "no kind": (
        {"keep": KEEP},
        "one of the arguments --phi --logits --confidences --losses --canaries is required",
    ),
    "no keep": ({"phi": PHI}, "the following arguments are required: --keep"),
    "an unknown flag": ({"phi": PHI, "keep": KEEP, "shadow": PHI}, "unknown argument '--shadow'"),
    "no such file": ({"phi": "absent.npy", "keep": KEEP}, "absent.npy: there is no such file"),
}


@pytest.mark.parametrize("mistake", BAD)
def test_bad_input_is_one_line_status_2_and_nothing_written(files, tmp_path, capsys, mistake):
    arrays, message = BAD[mistake]
    (tmp_path / "out").mkdir()
    assert run(files(**arrays), tmp_path / "out/audit") == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"lira: error: .*\n", error)
    assert re.search(message, error)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_audit_does_not_overwrite(files, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")
    assert run(files(phi=PHI, keep=KEEP), tmp_path / "out") == 2
    assert "out: exists already; name a new or empty directory" in capsys.readouterr().err
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_write_audit_takes_arrays(tmp_path):
    evaluation = write_audit(Audit(Pool({"phi": PHI}, KEEP)), tmp_path / "out", source="another framework")
    assert evaluation.attacks["lira_online"].auc.value == roc(attacks.lira_online(PHI, KEEP), KEEP).auc
    assert "another framework" in (tmp_path / "out/report.html").read_text()


def test_an_audit_made_of_arrays_needs_its_targets_own_memberships():
    keep = keep_mask(0, 8, 30)
    phi = np.random.default_rng(0).normal(size=(8, 30, 1)).astype(np.float32)
    with pytest.raises(AuditError, match=r"like the pool's outside targets, \(8, 30\); got none"):
        Audit(Pool({"phi": phi}, keep, {"phi": -phi}))
    with pytest.raises(AuditError, match="of which it has none; got shape"):
        Audit(Pool({"phi": phi}, keep), member=keep)
    assert Audit(Pool({"phi": phi}, keep, {"phi": phi[:2]}), member=~keep[:2]).membership.shape == (2, 30)


# --- A run ----------------------------------------------------------------------------------------------------------


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
    assert after["verdict"]["subject"].startswith("8 models trained on 200 examples; a model gets ")
    differences = lira.compare(audited, lira.Run.open(place))
    assert all(each.auc.value == 0 for each in differences.by_attack.values())


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
