import numpy as np
import pytest
from chance import check_chance, check_gaussian, figures_of
from scipy.optimize import minimize
from scipy.special import expit, softmax
from sklearn.pipeline import Pipeline

from lira.attacks import _pool, classifier, classifier_features, shadow_classifier
from lira.membership import keep_mask
from lira.metrics import roc

KINDS = ["logistic", "svc"]


def halves_mask(seed, M, N):
    """Complementary pairs in which every model holds exactly half of the examples, so that no row is left over."""
    rng = np.random.default_rng(seed)
    keep = np.empty((M, N), bool)
    for pair in range(M // 2):
        keep[2 * pair] = rng.permutation(N) < N // 2
        keep[2 * pair + 1] = ~keep[2 * pair]
    return keep


def pool(seed, M, N, F, signal=1.0):
    rng = np.random.default_rng(seed)
    keep = halves_mask(seed, M, N)
    features = rng.normal(size=(M, N, F)) * rng.uniform(0.5, 3, F) + 4
    return (features + signal * keep[..., None]).astype(np.float32), keep


def naive(kind, train, labels, test):
    """Standardise, minimise the penalised loss as its definition says, and score, all in float64."""
    train, test = train.astype(np.float64), test.astype(np.float64)
    mean, sd = train.mean(axis=0), train.std(axis=0)
    train, test, sign = (train - mean) / sd, (test - mean) / sd, np.where(labels, 1.0, -1.0)

    def objective(w):
        margin = sign * (train @ w[:-1] + w[-1])
        if kind == "logistic":  # the intercept is not penalised
            loss, slope, penalised = np.logaddexp(0, -margin), -expit(-margin), np.append(w[:-1], 0)
        else:  # liblinear's squared hinge penalises it
            gap = np.maximum(1 - margin, 0)
            loss, slope, penalised = gap**2, -2 * gap, w
        gradient = (slope * sign) @ np.column_stack([train, np.ones(len(train))]) + penalised
        return loss.sum() + penalised @ penalised / 2, gradient

    w = minimize(objective, np.zeros(train.shape[1] + 1), jac=True, method="BFGS", options={"gtol": 1e-8}).x
    return test @ w[:-1] + w[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("M", [4, 6, 10])
def test_each_target_is_scored_by_a_fit_on_the_other_half_of_the_pairs(kind, M):
    features, keep = pool(0, M, 40, 3)
    scores = shadow_classifier(features, keep, kind=kind)
    assert scores.shape == (M, 40)
    assert scores.dtype == np.float32
    for t in range(M):
        other = np.arange(M) // 2 % 2 != t // 2 % 2
        expected = naive(kind, features[other].reshape(-1, 3), keep[other].ravel(), features[t])
        np.testing.assert_allclose(scores[t], expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_unpaired_pools_and_outside_targets(kind):
    """leave="one" teaches by every other model; outside targets are scored by all, odd in number or not."""
    features, keep = pool(1, 8, 40, 2)
    features, keep = features[[0, 2, 4, 6, 7]], keep[[0, 2, 4, 6, 7]]
    scores = shadow_classifier(features, keep, leave="one", kind=kind)
    outside = shadow_classifier(features, keep, target=features[:2] + 1, kind=kind)
    for t in range(5):
        other = np.arange(5) % 2 != t % 2
        expected = naive(kind, features[other].reshape(-1, 2), keep[other].ravel(), features[t])
        np.testing.assert_allclose(scores[t], expected, rtol=2e-3, atol=2e-3)
    for t in range(2):
        expected = naive(kind, features.reshape(-1, 2), keep.ravel(), features[t] + 1)
        np.testing.assert_allclose(outside[t], expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_correlated_gaussians_meet_the_closed_form(kind):
    """Members are shifted by d in correlated noise: the best linear score has AUC Phi(sqrt(d' S^-1 d / 2))."""
    rng = np.random.default_rng(0)
    keep = keep_mask(0, 16, 2000)
    covariance, shift = np.array([[1.0, 0.8], [0.8, 1.0]]), np.array([1.0, 0.2])
    features = rng.multivariate_normal([0, 0], covariance, keep.shape) + keep[..., None] * shift
    scores = shadow_classifier(features.astype(np.float32), keep, kind=kind)
    direction = np.linalg.solve(covariance, shift)
    assert np.corrcoef(scores.ravel(), (features @ direction).ravel())[0, 1] > 0.9995
    check_gaussian(roc(scores, keep), float(np.sqrt(shift @ direction)))


def test_logistic_scores_are_log_likelihood_ratios_where_the_model_is_true():
    """IN N(d, 1), OUT N(0, 1): d phi - d^2 / 2, to the error of 64,000 rows."""
    rng = np.random.default_rng(0)
    keep = keep_mask(0, 4, 32_000)
    phi = (rng.normal(size=(4, 32_000, 1)) + 1.5 * keep[..., None]).astype(np.float32)
    scores = shadow_classifier(phi, keep)
    slope, offset = np.polyfit(phi[0, :, 0], scores[0], 1)
    assert abs(slope - 1.5) < 0.05
    assert abs(offset + 1.5**2 / 2) < 0.05


@pytest.mark.parametrize("signal", [0.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("M", [4, 8, 16, 64])
def test_noise_and_signal_in_the_shadow_models_alone_are_at_chance(M, kind, signal):
    curves = []
    rows, N = (2 if signal else M), 1000
    for seed in range(8):
        rng = np.random.default_rng([seed, M])
        keep = keep_mask(seed, M, N)
        features = rng.normal(size=(M, N, 3)) + signal * keep[..., None]
        if signal:
            features[:2] = rng.normal(size=(2, N, 3)) + signal / 2
        curves.append(
            roc(shadow_classifier(features.astype(np.float32), keep, kind=kind)[:rows], keep[:rows])
        )
    check_chance(*figures_of(curves))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_a_pair_do_not_depend_on_its_own_membership(kind):
    """Nor on that of any pair in its half: the draw of rows has a stream for each model."""
    features, _ = pool(2, 12, 200, 2)
    keep = keep_mask(2, 12, 200)
    swapped = keep.copy()
    swapped[4:6] = ~keep[4:6]
    before, after = (shadow_classifier(features, k, kind=kind) for k in (keep, swapped))
    half = np.arange(12) // 2 % 2 == 0
    np.testing.assert_array_equal(before[half], after[half])
    assert not np.array_equal(before[~half], after[~half]), "the others do see it"


def test_rows_are_drawn_evenly_and_bounded():
    rng = np.random.default_rng(0)
    keep = rng.uniform(size=(10, 1000)) < 0.3
    keep[3], keep[4] = True, np.arange(1000) < 7
    models, examples = classifier._draw(keep, np.array([1, 3, 4, 8]), 100, seed=0)
    assert (np.diff(examples) >= 0).all()
    assert len(set(zip(models, examples, strict=True))) == len(models)
    for model, members in ((1, 100), (3, 0), (4, 7), (8, 100)):
        drawn = keep[model, examples[models == model]]
        assert drawn.sum() == members
        assert (~drawn).sum() == members, "as many of each, also where one is scarce"


def test_the_bound_on_rows_holds_and_seeds_only_draw(monkeypatch):
    features, keep = pool(3, 8, 500, 2)
    everything = shadow_classifier(features, keep)
    np.testing.assert_array_equal(shadow_classifier(features, keep, seed=1), everything)
    monkeypatch.setitem(classifier.ROWS, "logistic", 400)
    seen = []
    fit = Pipeline.fit
    monkeypatch.setattr(
        Pipeline, "fit", lambda self, x, y: (seen.append((len(x), y.mean())), fit(self, x, y))[1]
    )
    first, second = shadow_classifier(features, keep), shadow_classifier(features, keep, seed=1)
    assert seen == [(400, 0.5)] * 4
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_do_not_show(kind, monkeypatch):
    features, keep = pool(1, 8, 700, 2)
    whole = shadow_classifier(features, keep, kind=kind)
    monkeypatch.setattr(_pool, "BLOCK_ELEMENTS", 64 * 16)
    np.testing.assert_allclose(shadow_classifier(features, keep, kind=kind), whole, rtol=1e-5, atol=1e-6)


# --- Features -------------------------------------------------------------------------------------------------------


def test_features_are_those_of_the_definitions():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 5, (3, 4, 2, 5)).astype(np.float32)
    p = softmax(logits.astype(np.float64), axis=-1)
    p_y = p[..., 1]
    phi = np.log(p_y / (1 - p_y)).astype(np.float32)
    entropy = -(p * np.log(p)).sum(axis=-1).astype(np.float32)
    lazy = classifier_features(phi, entropy=entropy, logits=logits)
    assert tuple(lazy.shape) == (3, 4, 2 * (4 + 5))
    values = np.asarray(lazy[:, 1:3])
    assert values.dtype == np.float32
    for m in range(3):
        for n in (1, 2):
            ranked = np.sort(logits[m, n], axis=-1)[:, ::-1]
            ranked = ranked - ranked[:, :1]
            expected = [phi[m, n], p_y[m, n], -np.log(p_y[m, n]), entropy[m, n], *ranked]
            np.testing.assert_allclose(values[m, n - 1], np.concatenate(expected), rtol=1e-5, atol=1e-6)


def test_features_neither_overflow_nor_lose_small_losses():
    phi = np.array([-1e4, -50, 0, 50, 1e4], np.float32).reshape(1, 5, 1)
    values = np.asarray(classifier_features(phi)[:, :])[0]
    np.testing.assert_allclose(values[:, 1], expit(phi[0, :, 0]), rtol=1e-6)
    np.testing.assert_allclose(values[:, 2], [1e4, 50, np.log(2), np.exp(-50), 0], rtol=1e-6)


class Counting:
    """Slices like an array of noise that is never whole in memory, and notes the largest slice."""

    def __init__(self, *shape):
        self.shape, self.largest = shape, 0

    def __getitem__(self, index):
        n = len(range(*index[1].indices(self.shape[1])))
        self.largest = max(self.largest, n)
        rng = np.random.default_rng(index[1].start)
        return rng.normal(size=(self.shape[0], n, *self.shape[2:])).astype(np.float32)


def test_features_are_read_in_blocks(monkeypatch):
    monkeypatch.setattr(_pool, "BLOCK_ELEMENTS", 1 << 14)
    keep = keep_mask(0, 8, 2000)
    signals = Counting(8, 2000, 1), Counting(8, 2000, 1), Counting(8, 2000, 1, 20)
    scores = shadow_classifier(classifier_features(signals[0], entropy=signals[1], logits=signals[2]), keep)
    assert np.isfinite(scores).all()
    assert max(signal.largest for signal in signals) == 64


# --- Edges ----------------------------------------------------------------------------------------------------------


def test_constant_features_do_no_harm():
    features, keep = pool(0, 8, 50, 2)
    widened = np.concatenate([features, np.full((8, 50, 1), 7, np.float32)], axis=2)
    np.testing.assert_allclose(shadow_classifier(widened, keep), shadow_classifier(features, keep), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((4, 6), np.float32)}, r"features must be \[models, examples, features\]"),
        ({"features": np.zeros((4, 6, 0), np.float32)}, "features holds no examples or no features"),
        ({"keep": np.zeros((4, 5), bool)}, r"keep must be bool of shape \(4, 6\) like features"),
        ({"target": np.zeros((1, 6, 2), np.float32)}, r"target must be \[targets, 6, 1\] like features"),
        ({"kind": "forest"}, 'kind must be "logistic" or "svc"; got \'forest\''),
        ({"features": np.full((4, 6, 1), np.nan, np.float32)}, r"features\[0, 0, 0\] is nan"),
        (
            {"features": np.zeros((2, 6, 1), np.float32), "keep": keep_mask(0, 4, 6)[:2]},
            "needs two pairs of models.*the pool has one: use global_threshold",
        ),
        (
            {"features": np.zeros((1, 6, 1), np.float32), "keep": keep_mask(0, 4, 6)[:1], "leave": "one"},
            "needs two models.*the pool has one: use global_threshold",
        ),
        (
            {"keep": np.zeros((4, 6), bool), "leave": "one"},
            "needs models with both members and non-members.*use global_threshold",
        ),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"features": np.zeros((4, 6, 1), np.float32), "keep": keep_mask(0, 4, 6), **change}
    with pytest.raises(ValueError, match=message):
        shadow_classifier(arguments.pop("features"), arguments.pop("keep"), **arguments)


def test_features_that_do_not_belong_together_are_refused():
    phi = np.zeros((4, 6, 1), np.float32)
    with pytest.raises(ValueError, match=r"entropy must be of shape \(4, 6, 1\) like phi; got \(4, 5, 1\)"):
        classifier_features(phi, entropy=phi[:, :5])
    with pytest.raises(ValueError, match=r"logits must be \[4, 6, 1, 'C'\].*got \(4, 6, 1\)"):
        classifier_features(phi, logits=phi)
    with pytest.raises(ValueError, match=r"phi must be \[models, examples, queries\]; got shape \(4, 6\)"):
        classifier_features(phi[..., 0])
