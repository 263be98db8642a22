"""What scores and membership say about an attack: pure functions on arrays, higher score = more likely a member.

All take `scores [T, N]` and `keep [T, N]`, every target's score for every example and whether it was trained on it.
"""

from lira.metrics._shared import MIN_CLUSTERS, Estimate, UndefinedMetricWarning, scored_part
from lira.metrics.calibrated import CalibratedPoint, NamedMembers, calibrated_tpr, named_members
from lira.metrics.comparison import Difference, difference
from lira.metrics.curve import OperatingPoint, Roc, roc
from lira.metrics.examples import Stability, example_gap, example_tpr, most_and_least_vulnerable, stability
from lira.metrics.information import (
    MutualInformation,
    bayes_error_bound,
    information_bound,
    mutual_information,
)
from lira.metrics.means import mean_over_clusters, ratio_of_means
from lira.metrics.ranking import (
    ExampleRates,
    example_rates,
    jaccard,
    rank_examples,
    rate_interval,
    shares_reaching,
    threshold_above,
    top_examples,
    top_in_halves,
)
from lira.metrics.subpools import (
    LearningPoint,
    Rescored,
    enough_models,
    learning_curve,
    rescored_intervals,
    stability_between_pools,
    subpool_scores,
)
from lira.metrics.targets import mean_over_targets
from lira.metrics.thresholds import FixedThreshold, Youden, fixed_threshold, ppv, youden

__all__ = [
    "MIN_CLUSTERS",
    "CalibratedPoint",
    "Difference",
    "Estimate",
    "ExampleRates",
    "FixedThreshold",
    "LearningPoint",
    "MutualInformation",
    "NamedMembers",
    "OperatingPoint",
    "Rescored",
    "Roc",
    "Stability",
    "UndefinedMetricWarning",
    "Youden",
    "bayes_error_bound",
    "calibrated_tpr",
    "difference",
    "enough_models",
    "example_gap",
    "example_rates",
    "example_tpr",
    "fixed_threshold",
    "information_bound",
    "jaccard",
    "learning_curve",
    "mean_over_clusters",
    "mean_over_targets",
    "most_and_least_vulnerable",
    "mutual_information",
    "named_members",
    "ppv",
    "rank_examples",
    "rate_interval",
    "ratio_of_means",
    "rescored_intervals",
    "roc",
    "scored_part",
    "shares_reaching",
    "stability",
    "stability_between_pools",
    "subpool_scores",
    "threshold_above",
    "top_examples",
    "top_in_halves",
    "youden",
]
