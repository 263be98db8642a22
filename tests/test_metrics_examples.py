import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lira.membership import keep_mask
from lira.metrics import example_tpr


def pool(seed, T=16, N=300, spread=2.0):
    """Scores whose members stand out by an amount of the example's own."""
    rng = np.random.default_rng(seed)
    keep = keep_mask(seed, T, N)
    return rng.normal(size=(T, N)) + keep * np.random.default_rng(0).exponential(spread, N), keep


@given(st.integers(0, 2**31 - 1))
def test_example_tpr_counts_the_models_that_hold_it(seed):
    scores, keep = pool(seed, T=6, N=20)
    for n, share in enumerate(example_tpr(scores, keep, 0.5)):
        assert share == np.mean(scores[keep[:, n], n] >= 0.5)
    assert np.isnan(example_tpr(scores, np.zeros_like(keep), 0.5)).all()
