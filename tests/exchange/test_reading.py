"""Arrays of every kind give one pool."""

import numpy as np
import pytest
from audited_models import KEEP, LABELS, LOGITS, PHI, M, exact_phi, model_logits
from scipy.special import softmax

from lira.attacks import attack_p
from lira.exchange.audit import read_audit
from lira.signals import SaturatedWarning

pytestmark = pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")


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


def test_saturated_values_of_pool_and_population_stay_in_their_order():
    """A loss of 0 is below one of 1e-30, on whichever side each of them stands, and ties with another of 0."""
    rng, keep = np.random.default_rng(0), KEEP[:4]
    losses, points = (rng.exponential(size=(4, n)).astype(np.float32) for n in (keep.shape[1], 40))
    losses[:, :10], points[:, :20], points[:, 20] = 0, 0, 1e-30
    with pytest.warns(SaturatedWarning, match=f"120 of {losses.size + points.size:,} values"):
        pool = read_audit({"losses": losses, "keep": keep, "population": points}).pool
    scores = attack_p(pool.signals["phi"], keep, population=pool.population)
    above = points[:, None] > losses[..., None]
    np.testing.assert_allclose(scores, above.mean(axis=2), rtol=1e-6)


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
