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
from lira.reporting.evaluate import AttackFigures

__all__ = ["PUBLISHED", "Comparison", "Published", "compare_published"]


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


def _rows(
    source: str,
    dataset: str,
    model: str,
    models: int,
    queries: int | None,
    attacks: dict[str, dict[str, float]],
):
    return [
        Published(source, dataset, model, models, queries, name, figures) for name, figures in attacks.items()
    ]


PUBLISHED: tuple[Published, ...] = (
    *_rows(PAPER, "cifar10", "wrn-28-2", 256, 1, {"lira_online": {"0.001": 0.056, "1e-05": 0.010}}),
    *_rows(PAPER, "cifar10", "wrn-28-2", 256, 2, {"lira_online": {"0.001": 0.075, "1e-05": 0.018}}),
    *_rows(
        PAPER,
        "cifar10",
        "wrn-28-2",
        256,
        18,
        {
            "lira_online": {"balanced_accuracy": 0.638, "0.001": 0.084, "1e-05": 0.022},
            "lira_offline": {"0.001": 0.071},
        },
    ),
    *_rows(
        PAPER,
        "cifar100",
        "wrn-28-2",
        256,
        18,
        {
            "lira_online": {"balanced_accuracy": 0.826, "0.001": 0.276, "1e-05": 0.112},
            "lira_offline": {"0.001": 0.223},
        },
    ),
    *_rows(
        ORIGINAL,
        "cifar10",
        "wrn-28-2",
        16,
        2,
        {
            "lira_online": {"auc": 0.6675, "0.001": 0.0104},
            "lira_online_fixed": {"auc": 0.6831, "0.001": 0.0541},
            "lira_offline": {"auc": 0.5465, "0.001": 0.0073},
            "lira_offline_fixed": {"auc": 0.5518, "0.001": 0.0259},
            "global_threshold": {"auc": 0.5900, "0.001": 0.0007},
        },
    ),
    *_rows(
        PORT,
        "cifar10",
        "resnet18",
        16,
        2,
        {
            "lira_online": {"auc": 0.6548, "0.001": 0.0068},
            "lira_online_fixed": {"auc": 0.6700, "0.001": 0.0464},
            "lira_offline": {"auc": 0.5250, "0.001": 0.0041},
            "lira_offline_fixed": {"auc": 0.5270, "0.001": 0.0192},
            "global_threshold": {"auc": 0.5948, "0.001": 0.0006},
        },
    ),
    *_rows(
        PORT,
        "cifar10",
        "wrn-28-10",
        16,
        2,
        {
            "lira_online_fixed": {"auc": 0.702, "0.001": 0.0704},
            "lira_offline_fixed": {"auc": 0.570, "0.001": 0.0370},
        },
    ),
    *_rows(
        LEAVE_ONE_OUT,
        "cifar10",
        "resnet18",
        256,
        18,
        {
            "lira_online": {"auc": 0.7648, "0.001": 0.10268, "1e-05": 0.03956},
            "lira_online_fixed": {"auc": 0.7628, "0.001": 0.09135, "1e-05": 0.02876},
            "lira_offline": {"auc": 0.5558, "0.001": 0.03262, "1e-05": 0.00762},
        },
    ),
    # Its 254 reference models are a pool of 256 less the target's pair.
    *_rows(
        RMIA,
        "cifar10",
        "wrn-28-2",
        256,
        None,
        {
            "lira_online": {"auc": 0.7204, "0.0001": 0.0339},
            "rmia_online": {"auc": 0.7225, "0.0001": 0.0431},
            "rmia_offline": {"auc": 0.7171, "0.0001": 0.0418},
            "attack_p": {"auc": 0.5819, "0.0001": 0.0001},
        },
    ),
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
        if (
            row.dataset not in parts
            or num_examples != POOL_SIZES[row.dataset]
            or (row.model, row.models, row.queries or queries) != (model, models, queries)
            or row.attack not in attacks
        ):
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


def _verdict(published: float, measured: Estimate) -> str:
    if np.isnan(measured.value):
        return "not resolvable here"
    if np.isnan(measured.low):
        return "no interval"
    if measured.low <= published <= measured.high:
        return "reproduced: within the interval"
    return "lower than published" if measured.value < published else "higher than published"
