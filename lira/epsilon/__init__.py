"""Lower bounds on a training's epsilon at a given delta from attack scores, through `jax_privacy.auditing`.

A bound at confidence 1 - a exceeds the true epsilon with probability at most a, *where its assumption holds*; each
carries that assumption in a sentence. Whatever is chosen by looking at scores is paid for where it is chosen: thresholds
are chosen on a part of the scores that the bound itself does not use, or several share the level, and the attacks among
which a caller takes the largest bound share it by `chosen_from`. (`jax_privacy` offers a Bonferroni correction too. It
divides by the corners of the ROC curve's hull, a number that the scores themselves chose, so it is not used. Nor is its
`epsilon_from_gdp`, which takes absolute values of mu and so claims a positive epsilon for pure noise; the formula is
here instead. Its one-run bounds take membership for a fair coin, and so certify ln(p / (1 - p)) of a coin p for pure
noise: see `coin_limit`.)

    one training, many examples     canary_epsilons, of a pool target by target target_epsilons, all together pool_epsilon
    many trainings, one example     epsilon_bounds
    the Gaussian mechanism          gaussian_epsilon

`jax_privacy` is an extra: `pip install "lira[privacy]"`.
"""

from lira.epsilon.gaussian import gaussian_epsilon
from lira.epsilon.one_run import canary_epsilons, coin_limit, pool_epsilon, target_epsilons
from lira.epsilon.scores import EpsilonBound, epsilon_bounds

__all__ = [
    "EpsilonBound",
    "canary_epsilons",
    "coin_limit",
    "epsilon_bounds",
    "gaussian_epsilon",
    "pool_epsilon",
    "target_epsilons",
]
