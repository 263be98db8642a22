"""Did it forget? Measures of unlearning, from arrays alone.

All take phi `[M, N, Q]` of models before and after unlearning, or retrained from scratch without the forget set, what
the original models held, `keep [M, N]` in complementary pairs, and the forget set, `forget [N]`. Pairs of models are
the clusters of every interval, which is conditional on the examples. `measure` gives all of it for one method.
"""

from lira.forgetting._check import Ensemble, of_forgotten
from lira.forgetting.attacks import Attack, lira_after, u_lira, update_leakage
from lira.forgetting.chance import RetrainedValues, retrained_values
from lira.forgetting.classical import Called, NormalisedPsi, called_members, mia_efficacy, psi, psi_normalised
from lira.forgetting.ensembles import example_epsilons, forgetting_quality, klom, largest_epsilon
from lira.forgetting.measure import Direction, MethodFigures, direction, exposure_threshold, measure

__all__ = [
    "Attack",
    "Called",
    "Direction",
    "Ensemble",
    "MethodFigures",
    "NormalisedPsi",
    "RetrainedValues",
    "called_members",
    "direction",
    "example_epsilons",
    "exposure_threshold",
    "forgetting_quality",
    "klom",
    "largest_epsilon",
    "lira_after",
    "measure",
    "mia_efficacy",
    "of_forgotten",
    "psi",
    "psi_normalised",
    "retrained_values",
    "u_lira",
    "update_leakage",
]
