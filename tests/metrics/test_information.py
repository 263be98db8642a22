import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from sklearn.metrics import mutual_info_score

from lira.membership import keep_mask
from lira.metrics import (
    Estimate,
    UndefinedMetricWarning,
    bayes_error_bound,
    information_bound,
    mutual_information,
    youden,
)
from lira.metrics.information import _bias, _information


def gaussian_information(mean, sd):
    """Bits between a balanced coin and a draw from N(0, 1) or N(mean, sd), by quadrature."""

    def integrand(x):
        p, q = stats.norm.pdf(x, mean, sd), stats.norm.pdf(x)
        return 0.5 * sum(side * np.log2(2 * side / (p + q)) for side in (p, q) if side > 0)

    return integrate.quad(integrand, -40, 40, points=(-4, 0, 4), limit=500)[0]


def total_variation(mean, sd):
    return integrate.quad(
        lambda x: 0.5 * abs(stats.norm.pdf(x, mean, sd) - stats.norm.pdf(x)),
        -40,
        40,
        points=(-4, 0, 4),
        limit=500,
    )[0]


def best_j(mean, sd):
    """The best J of a threshold on the score."""
    x = np.linspace(-20, 20, 400_001)
    return np.max(stats.norm.sf(x, mean, sd) - stats.norm.sf(x))


@pytest.mark.parametrize(("mean", "sd"), [(0.5, 1), (1, 1), (2, 1), (0, 3), (1, 2)])
def test_bounds_hold_for_gaussians(mean, sd):
    j = best_j(mean, sd)
    exact = Estimate(j, j, j)
    bound, error = information_bound(exact).value, bayes_error_bound(exact).value
    assert bound <= gaussian_information(mean, sd)
    assert error >= (1 - total_variation(mean, sd)) / 2 - 1e-9
    if sd == 1:
        assert error == pytest.approx(stats.norm.cdf(-mean / 2), abs=1e-9), (
            "one threshold is Bayes' rule here"
        )


def test_j_gives_no_upper_bound_on_information():
    """Why none is offered: the ROC curve of N(0, 1) against N(0, 9) is not concave."""
    j, information = best_j(0, 3), gaussian_information(0, 3)
    assert (round(j, 3), round(information, 3)) == (0.242, 0.269)
    assert information > j


@given(st.floats(-1, 1), st.just(0.0) | st.floats(1e-9, 0.3))
def test_bounds_move_with_j(j, width):
    estimate = Estimate(j, max(j - width, -1), min(j + width, 1))
    bound, error = information_bound(estimate), bayes_error_bound(estimate)
    assert 0 <= bound.low <= bound.value <= bound.high <= 1
    assert 0 <= error.low <= error.value <= error.high <= 0.5
    if j <= 0:
        assert (bound.value, error.value) == (0, 0.5)
    if j == 1:
        assert (bound.value, error.value) == (1, 0)


def test_undefined_j_bounds_nothing():
    nan = float("nan")
    for bound in (information_bound, bayes_error_bound):
        assert np.isnan(bound(Estimate(nan, nan, nan)).value)
        half = bound(Estimate(0.5, nan, nan))
        assert not np.isnan(half.value)
        assert np.isnan([half.low, half.high]).all()


@pytest.mark.parametrize("d", [0.5, 1.0, 2.0])
def test_information_of_gaussians_is_the_quadratures(d):
    keep = keep_mask(0, 16, 4000)
    scores = np.random.default_rng(1).normal(size=keep.shape) + d * keep
    found = mutual_information(scores, keep)
    truth = gaussian_information(d, 1)
    # 64 bins lose little: the interval must hold the truth, and be narrow enough to mean something.
    assert found.bits.low < truth < found.bits.high
    assert found.bits.high - found.bits.low < 0.03
    assert found.bins == 64
    assert information_bound(youden(scores, keep).j).value < found.bits.value


@pytest.mark.parametrize("d", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(("n", "share"), [(n, share) for n in (400, 1000, 4000) for share in (0.5, 0.1)])
def test_few_scores_do_not_seem_to_tell_more_than_they_do(d, n, share):
    """One target: the mean over 50 draws within the interval that one draw gives, and less than a standard deviation off."""
    truth = gaussian_information(d, 1) if d else 0.0
    found = []
    for seed in range(50):
        keep = np.arange(n)[None] < share * n
        scores = np.random.default_rng(seed).normal(size=(1, n)) + d * keep
        bits = mutual_information(scores, keep).bits
        found.append((bits.value, bits.low, bits.high))
    value, low, high = np.mean(found, axis=0)
    assert low < truth < high
    sd = np.std(found, axis=0, ddof=1)[0]
    assert abs(value - truth) < sd + 2 * sd / np.sqrt(50)
    # The interval is about two standard deviations to either side, not so wide that anything lies within.
    assert high - low < 8 * sd


def test_a_monotone_transform_changes_nothing():
    keep = keep_mask(3, 8, 500)
    scores = np.random.default_rng(3).normal(size=keep.shape) + keep
    one, other = mutual_information(scores, keep), mutual_information(np.exp(3 * scores), keep)
    assert one == other


@given(st.integers(0, 2**31 - 1))
def test_plug_in_is_scikit_learns_and_bias_is_millers_and_madows(seed):
    keep = keep_mask(seed, 8, 100)
    scores = np.random.default_rng(seed).integers(0, 6, size=keep.shape).astype(np.float32)
    found = mutual_information(scores, keep, bins=100)
    # Pairs have as many members as non-members: the balanced prior is the sample's own.
    plug_in = mutual_info_score(keep.ravel(), scores.ravel()) / np.log(2)
    assert found.bits.value + found.bias == pytest.approx(plug_in, abs=1e-12)
    # Noise: (bins - 1) / (2 n ln 2), but for the difference between observed and true frequencies.
    assert found.bins == 6
    assert found.bias == pytest.approx(5 / (2 * 800 * np.log(2)), rel=0.02)


def test_bias_is_what_multinomial_draws_have():
    """Unequal frequencies and unequal numbers: second-order bias against 20,000 simulated tables."""
    rng = np.random.default_rng(0)
    p, q = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.2, 0.3, 0.3, 0.2])
    members, nonmembers = 300, 900
    drawn = _information(
        rng.multinomial(members, p, 20_000) / members, rng.multinomial(nonmembers, q, 20_000) / nonmembers
    )
    excess = drawn.mean() - _information(p, q)
    assert excess == pytest.approx(_bias(p, q, members, nonmembers), rel=0.15)
    assert drawn.std() / np.sqrt(20_000) < 0.05 * excess


def test_noise_has_no_information_on_average():
    """With an effect of whole models, which goes with the bias's assumption of independent scores."""
    values = []
    for run in range(200):
        rng = np.random.default_rng(run)
        keep = keep_mask(run, 8, 200)
        values.append(
            mutual_information(rng.normal(size=keep.shape) + rng.normal(0, 1, (8, 1)), keep).bits.value
        )
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(200)
    # Without the correction it would be 63 / (2 * 1600 ln 2) = .028.
    assert 4 * np.std(values) / np.sqrt(200) < 0.005


def test_ties_are_in_the_bin_that_begins_with_them():
    """Two scores that tell all, in two bins: one bit but for the bias; three, of which one is of both sides."""
    keep = np.array([[True, False] * 60])
    found = mutual_information(keep.astype(float), keep, bins=2)
    assert found.bins == 2
    assert found.bits.value + found.bias == pytest.approx(1)
    scores = np.where(np.arange(120) < 40, 0.0, np.where(keep, 1.0, -1.0))
    found = mutual_information(scores, keep, bins=3)
    assert found.bins == 3
    assert found.bits.value + found.bias == pytest.approx(2 / 3)


def test_information_at_the_ends():
    keep = keep_mask(0, 8, 50)
    assert mutual_information(np.where(keep, np.inf, -np.inf), keep).bits.value == pytest.approx(1, abs=1e-12)
    assert mutual_information(np.zeros(keep.shape), keep).bits == Estimate(0, 0, 0)
    assert np.isnan(mutual_information(np.zeros((4, 50)), keep[:4]).bits.low), "two pairs"
    few = np.arange(400)[None] < 40  # a tenth
    assert mutual_information(np.where(few, 1.0, 0.0), few).bits.value == pytest.approx(1, abs=1e-12)
    single = mutual_information(np.where(keep[:1], 1.0, 0.0), keep[:1])
    assert single.bits.value == pytest.approx(1, abs=1e-12)
    with pytest.warns(
        UndefinedMetricWarning, match="mutual information is undefined: there are no non-members"
    ):
        assert np.isnan(mutual_information(np.zeros((1, 5)), np.ones((1, 5), bool)).bits.value)
    with pytest.raises(ValueError, match="bins must be at least 2; got 1"):
        mutual_information(np.zeros(keep.shape), keep, bins=1)
