import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lira import attacks
from lira.attacks import Leave
from lira.attacks.suite import Pool
from lira.data.dataset import Dataset
from lira.learning.augment import Queries
from lira.learning.recipe import Recipe
from lira.membership import keep_mask
from lira.reporting import checks
from lira.reporting.checks import (
    check_classes,
    check_confidences,
    check_counts,
    check_direction,
    check_models,
    check_null,
    check_pool,
    check_queries,
    check_run,
)
from lira.store.run import Run

pytestmark = pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")


def pool(seed=0, M=16, N=300, Q=2, signal=1.0):
    rng = np.random.default_rng(seed)
    keep = keep_mask(seed, M, N)
    phi = rng.normal(size=(M, N, Q)) + 2 * rng.normal(size=(1, N, 1)) + signal * keep[..., None]
    return phi.astype(np.float32), keep


def statuses(checks):
    return {each.name: each.status for each in checks}


def test_models_trained_against_requested():
    done = np.array([1, 1, 1, 1, 2, 1, 0, 0], np.uint8)
    assert check_models(done, 8)[1:] == (
        "fail",
        "5 of 8 models are there: figures of fewer models are others",
    )
    assert check_models(done[:6], 6).status == "warn"
    assert check_models(done[:4], 4).status == "ok"


def test_counts_of_in_and_out_models():
    assert check_counts(keep_mask(0, 16, 50)).status == "ok"
    assert "8 IN and 8 OUT models, in complementary pairs" in check_counts(keep_mask(0, 16, 50)).sentence
    assert check_counts(keep_mask(0, 8, 50)).status == "warn"
    only_out = check_counts(np.zeros((20, 5), bool))
    assert (only_out.status, "offline attacks only" in only_out.sentence) == ("warn", True)
    assert check_counts(np.ones((20, 5), bool)).status == "fail"


def test_classes_that_are_missing():
    keep = np.ones((3, 6), bool)
    assert check_classes(np.array([0, 0, 1, 1, 2, 2]), keep).status == "ok"
    assert check_classes(np.array([0, 0, 1, 1, 3, 3]), keep)[1:] == (
        "warn",
        "no example has class 2 of 0 to 3",
    )
    keep[1, 4:] = False
    found = check_classes(np.array([0, 0, 1, 1, 2, 2]), keep)
    assert found[1:] == ("warn", "1 times a model was trained on no example of a class, most often class 2")
    assert check_classes(np.array([0, 0, 1, 1, 2, 2]), keep, ("ant", "bee", "10"))[2].endswith("class 10")
    named = check_classes(np.array([0, 0, 1, 1, 1, 1]), keep, ("ant", "bee", "10"))
    assert named[1:] == ("warn", "no example has class 10 of 0 to 2")
    assert check_classes(np.array([0, 0, 1, 1, 2, 2]), np.zeros((3, 6), bool)).status == "ok"


@pytest.mark.parametrize(
    ("flip", "crop_pad", "mirror", "shift", "status", "words"),
    [
        (False, 0, False, 0, "ok", "the one query matches"),
        (True, 4, True, 1, "ok", "the 18 queries match"),
        (True, 0, False, 0, "warn", "training mirrors at random, and the queries do not mirror"),
        (False, 0, True, 0, "warn", "training mirrors nothing, and the queries do mirror"),
        (True, 4, True, 0, "warn", "training shifts by up to 4 pixels, and the queries by 0"),
    ],
)
def test_queries_against_augmentation(flip, crop_pad, mirror, shift, status, words):
    found = check_queries(Recipe(flip=flip, crop_pad=crop_pad), Queries(mirror=mirror, shift=shift))
    assert found.status == status
    assert words in found.sentence
    original = check_queries(
        Recipe(flip=flip, crop_pad=crop_pad), Queries(mirror=mirror, shift=shift, convention="original")
    )
    assert (original.status, "each batch of 5,000" in original.sentence) == ("warn", True)


@pytest.mark.parametrize("block", [50, 4096])
def test_confidences_that_are_broken_saturated_or_constant(block, monkeypatch):
    monkeypatch.setattr(checks, "BLOCK", block)
    phi, _ = pool()
    assert check_confidences(phi).status == "ok"

    broken = phi.copy()
    broken[3, 170, 1], broken[4, 2, 0] = np.nan, np.inf
    assert check_confidences(broken)[1:] == ("fail", "2 of 9,600 values are NaN or infinite")

    # Ties at the upper end, spread over blocks; then so many that nothing is left.
    clipped = np.minimum(phi, np.quantile(phi, 0.99))
    found = check_confidences(clipped, "target's confidences")
    assert found[:2] == ("target's confidences", "warn")
    assert found.sentence.startswith(
        f"{100 * np.mean(clipped == clipped.max()):.2f} % of the values are {clipped.max():.4g}"
    )
    assert check_confidences(np.maximum(phi, np.quantile(phi, 0.3).astype(np.float32))).status == "fail"

    constant = phi.copy()
    constant[:, :7] = constant[:1, :7]
    assert check_confidences(constant)[1:] == (
        "warn",
        "of 7 of 300 examples all models say the same, whatever the query",
    )
    constant[:, :200] = constant[:1, :200]
    assert check_confidences(constant).status == "fail"

    stuck = phi.copy()
    stuck[[2, 5]] = 1.5
    assert check_confidences(stuck)[1:] == ("fail", "2 of 16 models say the same of every example: 2, 5")


def test_direction_fails_only_beyond_its_interval():
    _, keep = pool()
    noise = np.random.default_rng(5).normal(size=keep.shape)
    assert check_direction(noise + keep, keep).status == "ok"
    assert check_direction(noise, keep).status == "ok"
    assert check_direction(noise - 0.06 * keep, keep).status == "warn"
    found = check_direction(noise - keep, keep)
    assert found.status == "fail"
    assert f"{roc_auc_score(keep.ravel(), (noise - keep).ravel()):.3f}" in found.sentence


# --- The null -------------------------------------------------------------------------------------------------------


def naive_error(scores, keep):
    """The clustered standard error, an example at a time, from every comparison of a member with a non-member."""
    wins = (scores[keep][:, None] > scores[~keep]) + 0.5 * (scores[keep][:, None] == scores[~keep])
    auc = wins.mean()
    columns = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    total = 0
    for n in range(scores.shape[1]):
        influence = (wins[columns[keep] == n].mean(axis=1) - auc).sum() / keep.sum()
        influence += (wins[:, columns[~keep] == n].mean(axis=0) - auc).sum() / (~keep).sum()
        total += influence**2
    return auc, np.sqrt(total)


@pytest.mark.parametrize("ties", [False, True])
def test_auc_and_its_error_agree_with_all_comparisons(ties):
    rng = np.random.default_rng(0)
    scores, keep = rng.normal(size=(6, 25)), keep_mask(0, 6, 25)
    scores = np.round(scores) if ties else scores
    auc, error, low = checks._figures(scores, keep)
    assert low is None
    np.testing.assert_allclose((auc, error), naive_error(scores, keep))


def test_tpr_at_low_fpr_is_the_realised_point():
    from lira.metrics import roc

    rng = np.random.default_rng(0)
    keep = keep_mask(0, 64, 500)
    scores = np.round(rng.normal(size=keep.shape) + 0.5 * keep, 2)
    point = roc(scores, keep).tpr_at(1e-3)
    low = checks._figures(scores, keep)[2]
    assert low is not None
    assert low[:2] == pytest.approx((point.tpr, point.expected_fpr))


def test_large_pools_are_thinned_by_targets(monkeypatch):
    monkeypatch.setattr(checks, "SCORES", 1000)
    scores, keep = np.random.default_rng(0).normal(size=(10, 300)), keep_mask(0, 10, 300)
    auc, _, _ = checks._figures(scores, keep)
    assert auc == pytest.approx(roc_auc_score(keep[::3].ravel(), scores[::3].ravel()))


@pytest.mark.parametrize("M", [4, 8, 16])
def test_shuffled_memberships_are_at_chance_although_the_real_ones_are_not(M):
    """40 pools: |z| > 4 has a chance of 1 in 16,000 each."""
    for seed in range(20):
        phi, keep = pool(seed, M, 200, 1, signal=3.0)
        for name in ("lira_online_fixed", "lira_offline_fixed"):
            found = check_null(name, getattr(attacks, name), phi, keep, seed=seed)
            assert found.status == "ok", found.sentence


def test_the_null_resolves_low_false_positive_rates_where_it_can():
    phi, keep = pool(M=64, N=500, Q=1, signal=3.0)
    found = check_null("lira_online", attacks.lira_online, phi, keep)
    assert found.status == "ok"
    assert "TPR at 0.1 % FPR" in found.sentence
    assert "too few non-members" not in found.sentence


def count_leak(phi, keep, *, target=None, leave: Leave = "pair"):
    """An attack that leaves out the target alone of exactly balanced pairs: the counts that are left tell."""
    return attacks.lira_online_fixed(phi, keep, leave=leave) + 0.5 * (keep.sum(axis=0) - keep)


def composition_leak(phi, keep, *, target=None, leave="pair"):
    """The target's phi less the mean of all other models: more of them are OUT where the target is IN."""
    values = phi.mean(axis=2)
    return (
        values
        - (values.sum(axis=0) - values) / (len(values) - 1)
        + 0.3 * (keep.sum(axis=0) - keep < len(keep) / 2)
    )


def top_leak(phi, keep, *, target=None, leave="pair"):
    """Noise whose AUC is chance, but whose top thousandth are members only."""
    noise = np.random.default_rng(1).normal(size=keep.shape)
    return np.where(np.abs(noise) > 2.7, np.where(keep, np.abs(noise), -np.abs(noise)), noise)


@pytest.mark.parametrize("leak", [count_leak, composition_leak, top_leak])
def test_an_attack_that_leaks_fails(leak):
    phi, keep = pool(M=64, N=500, Q=1)
    found = check_null("leak", leak, phi, keep)
    assert found.status == "fail"
    assert found.sentence.endswith(": the attack leaks")


def test_outside_targets_are_shuffled_with_the_pool():
    phi, keep = pool(M=20, signal=3.0)
    target, member = phi[18:], keep[18:]
    found = check_null(
        "lira_offline_fixed", attacks.lira_offline_fixed, phi[:18], keep[:18], target=target, member=member
    )
    assert found.status == "ok"
    real = attacks.lira_offline_fixed(phi[:18], keep[:18], target=target)
    assert roc_auc_score(member.ravel(), real.ravel()) > 0.8


# --- All of them ----------------------------------------------------------------------------------------------------


def test_a_good_pool_passes_and_a_bad_one_fails_by_name():
    phi, keep = pool(M=20)
    labels = np.arange(300) % 3
    good = check_pool(Pool({"phi": phi}, keep), labels)
    assert set(statuses(good).values()) == {"ok"}
    assert [each.name for each in good] == [
        *("IN and OUT models", "classes", "confidences", "direction", "shuffled memberships")
    ]
    assert good[-1].sentence.startswith("lira_online on shuffled")
    assert statuses(check_pool(Pool({"phi": -phi}, keep), labels))["direction"] == "fail"
    phi[0, 0] = np.nan
    bad = statuses(check_pool(Pool({"phi": phi}, keep), labels))
    assert bad["confidences"] == "fail"
    assert "direction" not in bad


def test_without_what_targets_were_trained_on_the_pool_is_checked_in_their_place():
    phi, keep = pool(M=20)
    # As many targets as models, so that no shape betrays the wrong memberships; at chance and saying the opposite.
    target = -phi
    own = check_pool(Pool({"phi": phi}, keep))
    found = check_pool(Pool({"phi": phi}, keep, {"phi": target}))
    assert statuses(found)["target's members"] == "warn"
    by_name = {each.name: each for each in found}
    assert all(by_name[each.name] == each for each in own)
    # Other shapes than the pool's.
    one = check_pool(Pool({"phi": phi}, keep, {"phi": target[:1]}))
    assert [each.name for each in one] == [each.name for each in found]
    # Nothing is known of any membership.
    without = check_pool(Pool({"phi": phi}, np.zeros_like(keep), {"phi": target[:1]}))
    assert [each.name for each in without][-1] == "target's members"
    with pytest.raises(ValueError, match="target is given without member"):
        check_null("lira_offline_fixed", attacks.lira_offline_fixed, phi, keep, target=target)


@pytest.mark.parametrize("member", [np.ones((3, 300), bool), np.ones((2, 300)), np.ones(300, bool)])
def test_memberships_that_are_not_the_targets_are_refused(member):
    phi, keep = pool(M=20)
    with pytest.raises(ValueError, match="like the outside targets, \\(2, 300\\); got"):
        check_pool(Pool({"phi": phi}, keep, {"phi": phi[:2]}), member=member)
    with pytest.raises(ValueError, match="of which there are none"):
        check_pool(Pool({"phi": phi}, keep), member=member)


def test_the_null_is_that_of_the_first_attack_that_is_possible():
    phi, keep = pool(M=16)
    target, member = phi[15:], keep[15:]
    outside = check_pool(Pool({"phi": phi[:10]}, np.zeros_like(keep[:10]), {"phi": target}), member=member)
    assert outside[-1].sentence.startswith("lira_offline on shuffled memberships")
    assert statuses(outside)["target's confidences"] == "ok"


def test_a_run_is_checked_as_far_as_it_has_come(tmp_path):
    data = Dataset.from_arrays(np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 2)
    run = Run.create(tmp_path / "run", data, Recipe(epochs=1, batch_size=10), num_models=8)
    assert statuses(check_run(run)) == {"models": "fail", "copies": "ok", "queries": "ok"}
    keep, (noise, _) = run.memberships(np.arange(8)), pool(0, 8, 60, 1)
    for m in range(8):
        row = {"phi": noise[m] + keep[m, :, None], "accuracy_test": np.float32(np.nan)}
        row |= {"accuracy_in": np.float32(0.97), "accuracy_out": np.float32(0.6)}
        run.write_model(m, row, diverged=False)
        if m == 3:
            half = check_run(run)
            assert statuses(half)["models"] == "fail"
            assert half[-1].name == "shuffled memberships"
    checks = check_run(run)
    assert [each.name for each in checks[:4]] == ["models", "copies", "queries", "training"]
    assert "fail" not in statuses(checks).values()
