"""MIA-efficacy and psi: what the classical attacks of the unlearning literature say, averaged over the forget set.

One attack a model, which needs no shadow models: fitted on half of what the model still holds (retain) against half of
what it never held and nobody forgot (validation), and asked about the other halves and the forgotten examples that it
held. These are averages. They cannot see a few examples that stay exposed, so they stand beside `u_lira`, not in its
place; and they depend on how hard the forget set is, so they stand beside the retrained models' own value.

The two models of a pair share their halves, and each is asked about what the other did not hold. A pair therefore
answers the same number of questions however the coins fell, even where one of its models holds nothing of the forget
set: rates are means over pairs, and pairs are the clusters of their intervals.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lira.forgetting._check import Ensemble, check_ensembles, row_of
from lira.metrics import Estimate, mean_over_clusters, ratio_of_means
from lira.metrics.counting import allowed_false_positives

__all__ = ["Called", "NormalisedPsi", "called_members", "mia_efficacy", "psi", "psi_normalised"]


class Called(NamedTuple):
    """The share of its questions that each of P pairs calls members, float64 `[P]` each."""

    forget: np.ndarray  # of the forgotten examples that a model of the pair held
    retain: np.ndarray  # the attack's TPR
    validation: np.ndarray  # the attack's realised FPR


class NormalisedPsi(NamedTuple):
    """Where unlearned models stand between retrained (0) and untouched ones (1)."""

    estimate: Estimate  # NaN where it is not resolved
    difference: Estimate  # its numerator: P(member | forget set) of the unlearned models less that of the retrained ones
    denominator: Estimate  # the same of the original models

    @property
    def is_resolved(self) -> bool:
        """Whether original are told from retrained models well enough to divide by: to within half of the difference.

        From there on Fieller's interval soon spans many times the way from retrained to untouched, and then everything.
        """
        return bool(self.denominator.value > 0 and self.denominator.low >= self.denominator.value / 2)

    @property
    def over_forgotten(self) -> bool:
        """Whether the difference's whole interval lies below 0: called members less often than by retrained models."""
        return bool(self.difference.high < 0)


def called_members(
    features: Ensemble, keep: np.ndarray, forget: np.ndarray, *, fprs: Sequence[float], seed: int = 0
) -> list[Called]:
    """Fit a classical attack to every model and count whom it calls a member.

    One feature is thresholded as it is. Several are first joined by a logistic regression of retain against validation
    examples. The threshold is the lowest that calls at most a share `fpr` of the validation examples of the fitting
    half members; a group of ties is either called whole or not at all, so the realised rate may be lower, and
    `Called.validation` says what it is on the other half.

    Args:
        features: float `[M, N, D]`, read a model at a time. With D = 1 higher = more likely a member, as phi is.
        keep: bool `[M, N]`, what the original models held; complementary pairs.
        forget: bool `[N]`, everything forgotten so far.
        fprs: in (0, 1); one is stated beside every figure that comes of it.
        seed: of the halves. They are drawn for each pair apart, from examples alone, so that the original, unlearned
            and retrained models of a pair have the same ones.

    Returns:
        One for each of `fprs`.

    Raises:
        ValueError: an FPR is out of range, shapes disagree, rows are not paired, the forget set is empty, a value is
            not finite, or a model has nothing to fit on or to be asked about.
    """
    for fpr in fprs:
        if not 0 < fpr < 1:
            raise ValueError(f"fprs are fractions between 0 and 1; got {fpr}")
    keep, forget = check_ensembles(keep, forget, features=features)
    M = len(keep)
    rates = np.zeros((len(fprs), 3, M // 2))
    for model in range(M):
        fitting = _half(~forget, seed, model // 2)
        held, rest = keep[model], ~forget & ~fitting
        values = row_of("features", features, model)
        scores, thresholds = _fit(values, held & fitting, ~(held | forget) & fitting, fprs, model)
        for i, (asked, side) in enumerate(((forget, held), (rest, held), (rest, ~held))):
            called = scores[asked & side] > thresholds[:, None]
            rates[:, i, model // 2] += np.count_nonzero(called, axis=1) / np.count_nonzero(asked)
    return [Called(*rate) for rate in rates]


def mia_efficacy(called: Called) -> Estimate:
    """The share of the forget set that the attack calls non-members: near 1 - FPR where all is forgotten."""
    return mean_over_clusters(1 - called.forget, 0, 1)


def psi(called: Called) -> Estimate:
    """P(member | forget set) / P(member | retain set): FPR / TPR for retrained models, not 0, and 1 for untouched ones.

    NaN where the attack calls no retained example a member.
    """
    return ratio_of_means(called.forget, called.retain)


def psi_normalised(before: Called, after: Called, retrained: Called) -> NormalisedPsi:
    """Psi on a scale that means the same for every forget set: 0 = as retrained, 1 = untouched, below 0 = over-forgotten.

    `(P_after - P_retrained) / (P_before - P_retrained)`, each the share of the forget set called members; see
    `ratio_of_means` for the interval, in which the same pairs stand above and below. Where the denominator is not known
    to within half of itself the ratio is NaN, and the difference above it is what can be said.
    """
    above, below = after.forget - retrained.forget, before.forget - retrained.forget
    found = NormalisedPsi(
        ratio_of_means(above, below), mean_over_clusters(above, -1, 1), mean_over_clusters(below, -1, 1)
    )
    return found if found.is_resolved else found._replace(estimate=Estimate(np.nan, np.nan, np.nan))


def _half(examples: np.ndarray, seed: int, pair: int) -> np.ndarray:
    """A random half of `examples` (bool `[N]`), bool `[N]`."""
    among = np.flatnonzero(examples)
    chosen = np.zeros(len(examples), bool)
    rng = np.random.default_rng([seed, pair])
    chosen[rng.permutation(among)[: len(among) // 2]] = True
    return chosen


def _fit(
    features: np.ndarray, members: np.ndarray, others: np.ndarray, fprs: Sequence[float], model: int
) -> tuple[np.ndarray, np.ndarray]:
    """One model's scores `[N]`, and for each FPR the threshold that a member's exceeds, fitted on `members` and `others`."""
    if not members.any() or not others.any():
        raise ValueError(
            f"model {model} has no {'retain' if not members.any() else 'validation'} examples in the half that its "
            f"attack is fitted on: leave more examples out of the forget set, or take a larger pool"
        )
    features = features.astype(np.float64)
    if features.shape[1] == 1:
        scores = features[:, 0]
    else:
        from sklearn.linear_model import LogisticRegression  # slow to import, and training needs none of it

        chosen = members | others
        mean, sd = features[chosen].mean(axis=0), features[chosen].std(axis=0)
        features = (features - mean) / np.where(sd > 0, sd, 1)
        # Newton's method: many rows, few columns.
        classifier = LogisticRegression(solver="newton-cholesky", max_iter=1000)
        scores = classifier.fit(features[chosen], members[chosen]).decision_function(features)
    nonmembers = np.sort(scores[others])[::-1]
    # The first validation example that must not be called.
    allowed = allowed_false_positives(fprs, len(nonmembers))
    return scores, nonmembers[np.minimum(allowed, len(nonmembers) - 1)]
