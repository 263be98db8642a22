import numpy as np
import pytest
from chance import check_chance, check_gaussian, figures_of
from scipy.stats import rankdata
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.preprocessing import StandardScaler

from lira.attacks import _pool, global_threshold, quantile, quantile_regression
from lira.membership import keep_mask
from lira.metrics import roc


def mu(x):
    return 2 * np.sin(2 * x[:, 0]) + 3


def sigma(x):
    return np.exp(0.6 * x[:, 0])


def pool(seed, T, N, Z, Q=1, signal=0.0):
    """Targets whose phi is mu(x) + sigma(x) (noise + signal for members), and their non-members."""
    rng = np.random.default_rng(seed)
    features, public = rng.normal(size=(N, 1)), rng.normal(size=(Z, 1))
    keep = keep_mask(seed, T, N)
    noise = rng.normal(size=(T, N, Q)) + signal * keep[..., None]
    phi = mu(features)[:, None] + sigma(features)[:, None] * noise
    population = mu(public)[:, None] + sigma(public)[:, None] * rng.normal(size=(T, Z, Q))
    return (
        phi.astype(np.float32),
        keep,
        {
            "features": features,
            "population": population.astype(np.float32),
            "population_features": public,
        },
    )


def naive_head(design, values):
    """Ridge by refitting without each row in turn, at every penalty; the least error wins."""
    best = None
    for penalty in quantile.PENALTIES:
        left_out = np.empty(len(values))
        for z in range(len(values)):
            rest = np.arange(len(values)) != z
            left_out[z] = values[z] - Ridge(penalty).fit(design[rest], values[rest]).predict(design[[z]])[0]
        error = np.mean(left_out**2)
        if best is None or error < best[0]:
            best = error, left_out, Ridge(penalty).fit(design, values)
    assert best is not None
    return best[2], best[1]


def naive(phi, features, population, public):
    """One target and query at a time, scikit-learn doing the regressions."""
    scaler = StandardScaler().fit(public)
    basis = Nystroem(n_components=len(public), random_state=0).fit(scaler.transform(public))
    design, rows = basis.transform(scaler.transform(public)), basis.transform(scaler.transform(features))
    scores = np.empty(phi.shape)
    for t in range(phi.shape[0]):
        for q in range(phi.shape[2]):
            centre, residuals = naive_head(design, population[t, :, q].astype(float))
            spread, rest = naive_head(design, np.log(np.abs(residuals)))
            scale = np.sqrt(np.mean(np.exp(rest) ** 2))
            scores[t, :, q] = (phi[t, :, q] - centre.predict(rows)) / (scale * np.exp(spread.predict(rows)))
    return scores.mean(axis=2)


def test_each_target_equals_its_own_refits():
    phi, keep, arguments = pool(0, 4, 20, 30, Q=2)
    population = arguments.pop("population")[:2]
    scores = quantile_regression(phi, keep, target=phi[:2], target_population=population, **arguments)
    assert scores.shape == (2, 20)
    assert scores.dtype == np.float32
    expected = naive(phi[:2], arguments["features"], population, arguments["population_features"])
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_penalties_and_residuals_are_those_of_ridge_cv():
    """Many outputs of differing noise, so that different penalties win."""
    rng = np.random.default_rng(0)
    design = rng.uniform(size=(200, 8))
    outputs = design @ rng.normal(size=(8, 40)) + rng.normal(size=(200, 40)) * np.geomspace(0.01, 100, 40)
    with _pool.scoring():
        (weights, offsets), residuals = quantile._ridge(quantile._decompose(design), outputs)
    linear = quantile._Linear(np.asarray(weights), np.asarray(offsets))
    reference = RidgeCV(quantile.PENALTIES, alpha_per_target=True, store_cv_results=True).fit(design, outputs)
    chosen = np.asarray(reference.alpha_, float)
    assert len(np.unique(chosen)) > 3
    np.testing.assert_allclose(linear(design), reference.predict(design), rtol=1e-6, atol=1e-8)
    index = np.searchsorted(quantile.PENALTIES, chosen)
    squares = np.take_along_axis(reference.cv_results_, index[None, :, None], axis=2)[..., 0]
    np.testing.assert_allclose(residuals**2, squares, rtol=1e-6)


def test_known_head_is_found_and_attains_the_best_curve():
    """Where z is N(0, 1) for non-members and N(d, 1) for members, TPR = Phi(Phi^-1(FPR) + d)."""
    d, T, N = 1.5, 8, 2000
    phi, keep, arguments = pool(1, T, N, 3000, signal=d)
    scores = quantile_regression(phi, keep, **arguments)
    features = arguments["features"]
    truth = (phi[..., 0] - mu(features)) / sigma(features)
    usual = np.abs(features[:, 0]) < 2  # where the population is dense
    assert np.sqrt(np.mean((scores - truth)[:, usual] ** 2)) < 0.15
    curve = roc(scores, keep)
    check_gaussian(curve, d, (0.01, 0.1))
    assert curve.auc > roc(global_threshold(phi, keep), keep).auc + 0.1


def test_constant_features_standardise_each_target():
    phi, keep, arguments = pool(2, 4, 300, 2000)
    arguments["features"], arguments["population_features"] = np.ones((300, 2)), np.ones((2000, 2))
    scores = quantile_regression(phi, keep, **arguments)
    for t in range(4):
        np.testing.assert_array_equal(rankdata(scores[t]), rankdata(phi[t, :, 0]))
        values = arguments["population"][t, :, 0]
        expected = (phi[t, :, 0] - values.mean()) / values.std()
        slope, offset = np.polyfit(expected, scores[t], 1)
        assert abs(slope - 1) < 0.02
        assert abs(offset) < 0.02


def test_scale_and_shift_of_a_target_do_not_matter():
    phi, keep, arguments = pool(3, 4, 100, 200)
    scores = quantile_regression(phi, keep, **arguments)
    factor, shift = np.array([1, 2, 0.5, 8], np.float32)[:, None, None], np.float32(16)
    arguments["population"] = arguments["population"] * factor + shift
    np.testing.assert_allclose(
        quantile_regression(phi * factor + shift, keep, **arguments), scores, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("M", [4, 8, 16, 64])
def test_pure_noise_is_at_chance(M):
    """No membership in phi, but hard and easy examples: AUC and TPR at 0.1 %, within 4.5 standard errors.

    Scores of one example share the regression's error, so that the standard error is taken over pools.
    """
    curves = []
    for seed in range(4):
        phi, keep, arguments = pool(100 * M + seed, M, 16_000 // M, 200)
        curves.append(roc(quantile_regression(phi, keep, **arguments), keep))
    check_chance(*figures_of(curves))


def test_other_models_and_membership_are_not_consulted():
    """Signal in the other models alone cannot reach a target: its scores are the same without them."""
    phi, keep, arguments = pool(4, 6, 200, 100, Q=2)
    scores = quantile_regression(phi, keep, **arguments)
    changed = phi.copy()
    changed[2:] += 5 * keep[2:, :, None]
    swapped = keep.copy()
    swapped[:2] = ~keep[:2]
    np.testing.assert_array_equal(quantile_regression(changed, swapped, **arguments)[:2], scores[:2])
    alone = quantile_regression(
        phi, keep, target=phi[:2], target_population=arguments["population"][:2], **arguments
    )
    np.testing.assert_allclose(alone, scores[:2], rtol=1e-5, atol=1e-6)


def test_blocks_of_examples_and_of_targets_do_not_show(monkeypatch):
    phi, keep, arguments = pool(5, 6, 700, 60, Q=2)
    whole = quantile_regression(phi, keep, **arguments)
    monkeypatch.setattr(_pool, "BLOCK_ELEMENTS", 64 * 12)
    monkeypatch.setattr(quantile, "OUTPUTS", 8)
    np.testing.assert_allclose(quantile_regression(phi, keep, **arguments), whole, rtol=1e-5, atol=1e-6)


def test_outliers_and_models_that_are_sure_of_everything():
    phi, keep, arguments = pool(6, 4, 50, 400)
    before = quantile_regression(phi, keep, **arguments)
    arguments["population"][1, 7] = 1e4
    after = quantile_regression(phi, keep, **arguments)
    np.testing.assert_array_equal(before[[0, 2, 3]], after[[0, 2, 3]])
    assert np.isfinite(after).all()
    arguments["population"][:] = 9
    flat = quantile_regression(np.full_like(phi, 9), keep, **arguments)
    np.testing.assert_allclose(flat, 0, atol=1e-3)


def test_another_basis_is_another_draw():
    phi, keep, arguments = pool(7, 4, 100, 600)
    first, second = (quantile_regression(phi, keep, seed=seed, **arguments) for seed in (0, 1))
    assert not np.array_equal(first, second)
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((5, 1))}, r"features must be \[6, features\].*got shape \(5, 1\)"),
        ({"features": np.zeros(6)}, r"features must be \[6, features\].*got shape \(6,\)"),
        (
            {"population_features": np.zeros((20, 2))},
            r"population_features must be \[20, 1\], a row for each example; got shape \(20, 2\)",
        ),
        (
            {"population_features": np.zeros((19, 1))},
            r"population_features must be \[20, 1\], a row for each example; got shape \(19, 1\)",
        ),
        (
            {"population": np.zeros((3, 20, 1), np.float32)},
            r"population must be \[4 models, points, 1 queries\]; got shape \(3, 20, 1\)",
        ),
        (
            {
                "target": np.zeros((2, 6, 1), np.float32),
                "target_population": np.zeros((4, 20, 1), np.float32),
            },
            r"target_population must be \[2 targets, points, 1 queries\]; got shape \(4, 20, 1\)",
        ),
        ({"target": np.zeros((2, 6, 1), np.float32)}, "needs target_population, .*or use global_threshold"),
        ({"population": None}, "needs population, phi of the attacked models"),
        (
            {"target_population": np.zeros((4, 20, 1), np.float32)},
            "target_population is for outside targets: pass target too",
        ),
        (
            {"population": np.zeros((4, 9, 1), np.float32), "population_features": np.zeros((9, 1))},
            "needs 10 public examples, and there are 9: use global_threshold",
        ),
        ({"features": np.full((6, 1), np.inf)}, "features has a value that is not finite in row 0"),
        ({"population": np.full((4, 20, 1), np.nan)}, r"population\[0, 0, 0\] is nan: leave that model"),
        ({"leave": "none"}, 'leave must be "pair", "one" or "independent"'),
    ],
)
def test_bad_arguments_are_named(change, message):
    phi, keep, arguments = pool(0, 4, 6, 20)
    with pytest.raises(ValueError, match=message):
        quantile_regression(phi, keep, **{**arguments, **change})
