"""How far the ensemble of unlearned models is from that of retrained ones, example by example.

Both ensembles are those of `u_lira`: the M / 2 models that unlearned an example, and the M / 2 retrained ones that never
held it. Neither measure is 0 for two samples of one distribution, because each takes what looks largest in few models:
both stand beside the retrained models' own value, `retrained` in place of `after`, which has the same bias. For the same
reason no interval is given: resampled models repeat themselves, and look further apart than new ones would.
"""

import numpy as np

from lira.forgetting._check import as_ensembles, joined_pool
from lira.numbers import as_array

__all__ = ["example_epsilons", "forgetting_quality", "klom", "largest_epsilon"]

BINS = 20
# Margins beyond this are taken as this, as in the authors' code, and so is the floor under the reference's bins.
LARGEST_MARGIN = 100.0
EMPTY_BIN = 1e-5


def example_epsilons(
    after: np.ndarray, retrained: np.ndarray, keep: np.ndarray, forget: np.ndarray, *, delta: float = 1e-5
) -> np.ndarray:
    """Epsilon of each forgotten example by the rule of the NeurIPS 2023 challenge (arXiv 2406.09073).

    Every threshold on phi, in both directions, is an attack that tells unlearned from retrained models, with an FPR and
    an FNR. Its epsilon is the larger of `ln(1 - delta - FPR) - ln FNR` and `ln(1 - delta - FNR) - ln FPR`; the
    example's is the largest over attacks, at least 0. An attack without any error makes it infinite; one with only one
    of the two errors is set aside, as an empty count says nothing of a rate. These are rates of few models and no bounds:
    see `largest_epsilon`, and `lira.epsilon` for bounds that hold.

    Args:
        after: float `[M, N, Q]`, phi of the unlearned models; queries are averaged.
        retrained: float `[M, N, Q]`.
        keep: bool `[M, N]`, complementary pairs.
        forget: bool `[N]`.
        delta: in [0, 1).

    Returns:
        float64 `[F]`, infinite where a threshold parts the two.

    Raises:
        ValueError: delta is out of range, shapes disagree, rows are not paired, the forget set is empty, or a value is
            not finite.
    """
    if not 0 <= delta < 1:
        raise ValueError(f"delta must be in [0, 1); got {delta}")
    keep, forget, after, retrained = as_ensembles(keep, forget, after=after, retrained=retrained)
    pool, held = joined_pool(after, retrained, keep, forget)
    values = pool.mean(axis=2, dtype=np.float64)
    order = np.argsort(-values, axis=0)
    values, unlearned = (np.take_along_axis(array, order, axis=0) for array in (values, held))
    half = len(keep) // 2
    hits = np.cumsum(unlearned, axis=0)
    alarms = np.cumsum(~unlearned, axis=0)
    # A threshold cannot part ties, and one that lets everything through is no attack.
    parts = values[:-1] > values[1:]
    best = np.zeros(values.shape[1])
    for false, missed in ((alarms, half - hits), (half - alarms, hits)):
        epsilons = _epsilon(false[:-1] / half, missed[:-1] / half, delta)
        best = np.maximum(best, np.where(parts, epsilons, 0.0).max(axis=0, initial=0.0))
    return best


def largest_epsilon(num_models: int, *, delta: float = 1e-5) -> float:
    """The largest finite epsilon that `num_models` models, half of them unlearned, can show: one error of each kind.

    Anything above it reads infinite, and below it the values are few.

    >>> round(largest_epsilon(128), 2)
    4.14
    """
    half = num_models // 2
    return max(0.0, float(_epsilon(np.array(1 / half), np.array(1 / half), delta))) if half > 1 else 0.0


def forgetting_quality(epsilons: np.ndarray) -> float:
    """The challenge's forgetting quality: mean over examples of 2 / 2^b, b the bin of width 0.5 (from 1) of epsilon.

    1 where every epsilon is below 0.5, halved for each further 0.5, 0 where all are infinite.

    >>> forgetting_quality(np.array([0.2, 0.7, 1.2, np.inf]))
    0.4375
    """
    return float(np.mean(np.exp2(-np.floor(as_array(epsilons) / 0.5))))


def klom(after: np.ndarray, retrained: np.ndarray, keep: np.ndarray, forget: np.ndarray) -> np.ndarray:
    """KL divergence of margins (KLoM; Georgiev et al. 2024, arXiv 2410.23232) of each forgotten example.

    D(unlearned || retrained) in nats, over 20 equal bins that span both; the margin is phi. As in the authors' code
    margins end at +-100, and a bin without any retrained model counts as 1e-5.

    Args:
        after: float `[M, N, Q]`, phi of the unlearned models; queries are averaged.
        retrained: float `[M, N, Q]`.
        keep: bool `[M, N]`, complementary pairs.
        forget: bool `[N]`.

    Returns:
        float64 `[F]`, 0 where the histograms agree. Errors are those of `example_epsilons`.
    """
    keep, forget, after, retrained = as_ensembles(keep, forget, after=after, retrained=retrained)
    pool, held = joined_pool(after, retrained, keep, forget)
    margins = np.clip(pool.mean(axis=2, dtype=np.float64), -LARGEST_MARGIN, LARGEST_MARGIN)
    low = margins.min(axis=0)
    span = margins.max(axis=0) - low
    position = (margins - low) / np.where(span > 0, span, 1)
    bins = np.minimum((position * BINS).astype(np.int64), BINS - 1)
    in_bin = bins[..., None] == np.arange(BINS)  # [M, F, bins]
    unlearned, reference = (np.mean(in_bin, axis=0, where=side[..., None]) for side in (held, ~held))
    reference = np.where(unlearned > 0, np.maximum(reference, EMPTY_BIN), reference)
    reference = reference / reference.sum(axis=1, keepdims=True)
    ratio = np.divide(unlearned, reference, out=np.ones_like(unlearned), where=unlearned > 0)
    return np.sum(unlearned * np.log(ratio), axis=1)


def _epsilon(fpr: np.ndarray, fnr: np.ndarray, delta: float) -> np.ndarray:
    """Epsilon of attacks with these rates; -inf where only one kind of error was seen."""
    with np.errstate(divide="ignore", invalid="ignore"):
        # One of the logarithms is undefined where a rate is above 1 - delta, and both where both are.
        epsilon = np.fmax(np.log(1 - delta - fpr) - np.log(fnr), np.log(1 - delta - fnr) - np.log(fpr))
        epsilon = np.fmax(epsilon, -np.inf)
    none = (fpr == 0).astype(int) + (fnr == 0)
    return np.select([none == 2, none == 1], [np.inf, -np.inf], epsilon)
