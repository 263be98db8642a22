"""Membership-inference attacks: pure functions from arrays to scores, higher = more likely a member.

All share one signature,

    attack(phi [M, N, Q], keep [M, N], *, target=None [T, N, Q], leave="pair") -> scores [T, N]

With `target=None` every model of the pool is attacked in turn (T = M) by the others. Attacks that compare x with other
points take `population [M, Z, Q]`, and `target_population [T, Z, Q]` with outside targets.
"""

from lira.attacks._pool import FewModelsError, FewModelsWarning, FlooredVarianceWarning, SignalArray
from lira.attacks.calibration import base, difficulty_calibration, difficulty_calibration_both
from lira.attacks.likelihood_ratio import (
    lira_offline,
    lira_offline_fixed,
    lira_online,
    lira_online_fixed,
)
from lira.attacks.rank import attack_p, attack_r
from lira.attacks.relative import rmia_offline, rmia_online
from lira.attacks.threshold import global_threshold

__all__ = [
    "FewModelsError",
    "FewModelsWarning",
    "FlooredVarianceWarning",
    "SignalArray",
    "attack_p",
    "attack_r",
    "base",
    "difficulty_calibration",
    "difficulty_calibration_both",
    "global_threshold",
    "lira_offline",
    "lira_offline_fixed",
    "lira_online",
    "lira_online_fixed",
    "rmia_offline",
    "rmia_online",
]
