"""Membership-inference attacks: pure functions from arrays to scores, higher = more likely a member.

All share one signature,

    attack(phi [M, N, Q], keep [M, N], *, target=None [T, N, Q], leave="pair") -> scores [T, N]

With `target=None` every model of the pool is attacked in turn (T = M) by the others. Attacks that compare x with other
points take `population [M, Z, Q]`, and `target_population [T, Z, Q]` with outside targets. `leave` says what is left out
with a target: see `lira_online`. What an attack cannot do on a pool it refuses with `UnfitPoolError`, whose message names
an attack that can. `suite.ATTACKS` lists them all.
"""

from lira.attacks._pool import FewModelsWarning, FlooredVarianceWarning, Leave, SignalArray, UnfitPoolError
from lira.attacks.bavaria import bavaria_offline, bavaria_online
from lira.attacks.calibration import base, difficulty_calibration, difficulty_calibration_both
from lira.attacks.classifier import classifier_features, shadow_classifier
from lira.attacks.likelihood_ratio import lira_offline, lira_offline_fixed, lira_online, lira_online_fixed
from lira.attacks.multivariate import lira_online_multivariate
from lira.attacks.p_values import (
    PValues,
    conformal_p_values,
    offline_fixed_p_values,
    offline_p_values,
    online_fixed_p_values,
    online_p_values,
    rank_p_values,
)
from lira.attacks.proxies import pmia
from lira.attacks.quantile import quantile_regression
from lira.attacks.rank import attack_p, attack_r
from lira.attacks.relative import informia_offline, informia_online, rmia_offline, rmia_online
from lira.attacks.threshold import (
    confidence_threshold,
    entropy_threshold,
    global_threshold,
    loss_threshold,
    modified_entropy_threshold,
)

__all__ = [
    "FewModelsWarning",
    "FlooredVarianceWarning",
    "Leave",
    "PValues",
    "SignalArray",
    "UnfitPoolError",
    "attack_p",
    "attack_r",
    "base",
    "bavaria_offline",
    "bavaria_online",
    "classifier_features",
    "confidence_threshold",
    "conformal_p_values",
    "difficulty_calibration",
    "difficulty_calibration_both",
    "entropy_threshold",
    "global_threshold",
    "informia_offline",
    "informia_online",
    "lira_offline",
    "lira_offline_fixed",
    "lira_online",
    "lira_online_fixed",
    "lira_online_multivariate",
    "loss_threshold",
    "modified_entropy_threshold",
    "offline_fixed_p_values",
    "offline_p_values",
    "online_fixed_p_values",
    "online_p_values",
    "pmia",
    "quantile_regression",
    "rank_p_values",
    "rmia_offline",
    "rmia_online",
    "shadow_classifier",
]
