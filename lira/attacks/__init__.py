"""Membership-inference attacks: pure functions from arrays to scores, higher = more likely a member.

All share one signature,

    attack(phi [M, N, Q], keep [M, N], *, target=None [T, N, Q], leave="pair") -> scores [T, N]

With `target=None` every model of the pool is attacked in turn (T = M) by the others.
"""

from lira.attacks._pool import FewModelsError, FewModelsWarning, FlooredVarianceWarning, SignalArray
from lira.attacks.likelihood_ratio import (
    lira_offline,
    lira_offline_fixed,
    lira_online,
    lira_online_fixed,
)
from lira.attacks.threshold import global_threshold

__all__ = [
    "FewModelsError",
    "FewModelsWarning",
    "FlooredVarianceWarning",
    "SignalArray",
    "global_threshold",
    "lira_offline",
    "lira_offline_fixed",
    "lira_online",
    "lira_online_fixed",
]
