"""What scores and membership say about an attack: pure functions on arrays, higher score = more likely a member.

All take `scores [T, N]` and `keep [T, N]`, every target's score for every example and whether it was trained on it.
"""

from lira.metrics._shared import MIN_CLUSTERS, Estimate, UndefinedMetricWarning
from lira.metrics.curve import OperatingPoint, Roc, roc
from lira.metrics.examples import example_tpr
from lira.metrics.targets import mean_over_targets

__all__ = [
    "MIN_CLUSTERS",
    "Estimate",
    "OperatingPoint",
    "Roc",
    "UndefinedMetricWarning",
    "example_tpr",
    "mean_over_targets",
    "roc",
]
