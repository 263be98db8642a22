"""Did I reproduce it? The field's published figures, beside a run of the same data, model, pool and queries.

A figure is compared only where all of these are the same by name and number; what remains different (recipe,
framework, one target or all of them pooled, the authors' conventions) is why the verdict is one of intervals and not
of equality.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lira.engine.accuracies import PAPER, POOL_SIZES, words_of
from lira.metrics import Estimate
from lira.reporting.measured import AttackFigures, Measured

__all__ = ["PUBLISHED", "Comparison", "Published", "compare_published", "published_of"]


class Published(NamedTuple):
    """One published row: an attack's figures, as fractions, by metric ("auc", or an FPR as in metrics.json)."""

    source: str
    dataset: str
    model: str
    models: int  # in the pool; shadow models plus what is left out for the target
    queries: int | None  # None where the source does not say
    attack: str
    figures: dict[str, float]


class Comparison(NamedTuple):
    """A published figure beside a run's own, and what its interval says."""

    attack: str
    metric: str
    published: float
    source: str
    measured: Estimate  # NaN where it cannot be resolved
    verdict: str


ORIGINAL = "code of Carlini et al., BatchNorm in eval mode"
PORT = "PyTorch port of that code"
LEAVE_ONE_OUT = "arXiv 2603.07567"
RMIA = "Zarifzadeh et al. 2024"


# Source, data set, model, models and queries of what was published.
PAPER_1 = (PAPER, "cifar10", "wrn-28-2", 256, 1)
PAPER_2 = (PAPER, "cifar10", "wrn-28-2", 256, 2)
PAPER_18 = (PAPER, "cifar10", "wrn-28-2", 256, 18)
PAPER_100 = (PAPER, "cifar100", "wrn-28-2", 256, 18)
ORIGINAL_16 = (ORIGINAL, "cifar10", "wrn-28-2", 16, 2)
PORT_RESNET = (PORT, "cifar10", "resnet18", 16, 2)
PORT_WIDE = (PORT, "cifar10", "wrn-28-10", 16, 2)
LEAVE_256 = (LEAVE_ONE_OUT, "cifar10", "resnet18", 256, 18)
# Its 254 reference models are a pool of 256 less the target's pair.
RMIA_256 = (RMIA, "cifar10", "wrn-28-2", 256, None)

PUBLISHED: tuple[Published, ...] = (
    Published(*PAPER_1, "lira_online", {"0.001": 0.056, "1e-05": 0.010}),
    Published(*PAPER_2, "lira_online", {"0.001": 0.075, "1e-05": 0.018}),
    Published(*PAPER_18, "lira_online", {"balanced_accuracy": 0.638, "0.001": 0.084, "1e-05": 0.022}),
    Published(*PAPER_18, "lira_offline", {"0.001": 0.071}),
    Published(*PAPER_100, "lira_online", {"balanced_accuracy": 0.826, "0.001": 0.276, "1e-05": 0.112}),
    Published(*PAPER_100, "lira_offline", {"0.001": 0.223}),
    Published(*ORIGINAL_16, "lira_online", {"auc": 0.6675, "0.001": 0.0104}),
    Published(*ORIGINAL_16, "lira_online_fixed", {"auc": 0.6831, "0.001": 0.0541}),
    Published(*ORIGINAL_16, "lira_offline", {"auc": 0.5465, "0.001": 0.0073}),
    Published(*ORIGINAL_16, "lira_offline_fixed", {"auc": 0.5518, "0.001": 0.0259}),
    Published(*ORIGINAL_16, "global_threshold", {"auc": 0.5900, "0.001": 0.0007}),
    Published(*PORT_RESNET, "lira_online", {"auc": 0.6548, "0.001": 0.0068}),
    Published(*PORT_RESNET, "lira_online_fixed", {"auc": 0.6700, "0.001": 0.0464}),
    Published(*PORT_RESNET, "lira_offline", {"auc": 0.5250, "0.001": 0.0041}),
    Published(*PORT_RESNET, "lira_offline_fixed", {"auc": 0.5270, "0.001": 0.0192}),
    Published(*PORT_RESNET, "global_threshold", {"auc": 0.5948, "0.001": 0.0006}),
    Published(*PORT_WIDE, "lira_online_fixed", {"auc": 0.702, "0.001": 0.0704}),
    Published(*PORT_WIDE, "lira_offline_fixed", {"auc": 0.570, "0.001": 0.0370}),
    Published(*LEAVE_256, "lira_online", {"auc": 0.7648, "0.001": 0.10268, "1e-05": 0.03956}),
    Published(*LEAVE_256, "lira_online_fixed", {"auc": 0.7628, "0.001": 0.09135, "1e-05": 0.02876}),
    Published(*LEAVE_256, "lira_offline", {"auc": 0.5558, "0.001": 0.03262, "1e-05": 0.00762}),
    Published(*RMIA_256, "lira_online", {"auc": 0.7204, "0.0001": 0.0339}),
    Published(*RMIA_256, "rmia_online", {"auc": 0.7225, "0.0001": 0.0431}),
    Published(*RMIA_256, "rmia_offline", {"auc": 0.7171, "0.0001": 0.0418}),
    Published(*RMIA_256, "attack_p", {"auc": 0.5819, "0.0001": 0.0001}),
)


def compare_published(
    attacks: Mapping[str, AttackFigures],
    *,
    dataset: str,
    num_examples: int,
    model: str,
    models: int,
    queries: int,
) -> list[Comparison]:
    """The published figures of this data set, model, pool size and number of queries, beside the run's own.

    Args:
        attacks: what was measured, by name.
        dataset: the source, as in config.toml; `tfds:cifar10` and `folder:/data/CIFAR-10` are both cifar10.
        num_examples: of the pool; a part of the data set is another one.
        model: the recipe's.
        models: attacked.
        queries: per example.

    Returns:
        One comparison for every published figure of an attack in `attacks`; empty where nothing published matches.
    """
    parts = words_of(dataset)
    result = []
    for row in PUBLISHED:
        if row.dataset not in parts or num_examples != POOL_SIZES[row.dataset] or row.attack not in attacks:
            continue
        if (row.model, row.models, row.queries or queries) != (model, models, queries):
            continue
        attack = attacks[row.attack]
        for metric, published in row.figures.items():
            if metric in ("auc", "balanced_accuracy"):
                measured: Estimate = getattr(attack, metric)
            else:
                point = attack.tpr_at[float(metric)]
                measured = Estimate(point.tpr, point.low, point.high)
            verdict = _verdict(published, measured)
            result.append(Comparison(row.attack, metric, published, row.source, measured, verdict))
    return result


def published_of(evaluation: Measured) -> list[Comparison]:
    """`compare_published` of an evaluation; empty where its data or model are not known, or its models are no pairs."""
    subject = evaluation.subject
    if subject.design != "pairs" or not subject.dataset or not subject.model:
        return []  # all that is published is of models of half the examples
    return compare_published(
        evaluation.attacks,
        dataset=subject.dataset,
        num_examples=subject.num_examples,
        model=subject.model,
        models=evaluation.num_models,
        queries=subject.queries,
    )


def _verdict(published: float, measured: Estimate) -> str:
    if np.isnan(measured.value):
        return "not resolvable here"
    if np.isnan(measured.low):
        return "no interval"
    if measured.low <= published <= measured.high:
        return "reproduced: within the interval"
    return "lower than published" if measured.value < published else "higher than published"
