"""What cannot be audited is one line that names the array and what to do, and nothing is written."""

import re

import numpy as np
import pytest
from audited_models import KEEP, LABELS, LOGITS, PHI, M, N, run
from scipy.special import softmax

from lira.attacks.suite import Pool
from lira.exchange.audit import Audit, AuditError
from lira.membership import keep_mask

pytestmark = pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")
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
    "values turned": (
        {"phi": PHI.swapaxes(0, 1), "keep": KEEP},
        r"phi.npy: must be .*, \[10, 200\] as .*keep.npy is; got shape \(200, 10, \d\): swap its first two axes",
    ),
    "logits turned": (
        {"logits": LOGITS.swapaxes(0, 1), "keep": KEEP, "labels": LABELS},
        r"logits.npy: must be .*, \[10, 200\] as .*keep.npy is; .*: swap its first two axes",
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


def test_an_audit_made_of_arrays_needs_its_targets_own_memberships():
    keep = keep_mask(0, 8, 30)
    phi = np.random.default_rng(0).normal(size=(8, 30, 1)).astype(np.float32)
    with pytest.raises(AuditError, match=r"like the pool's outside targets, \(8, 30\); got none"):
        Audit(Pool({"phi": phi}, keep, {"phi": -phi}))
    with pytest.raises(AuditError, match="of which it has none; got shape"):
        Audit(Pool({"phi": phi}, keep), member=keep)
    assert Audit(Pool({"phi": phi}, keep, {"phi": phi[:2]}), member=~keep[:2]).membership.shape == (2, 30)
