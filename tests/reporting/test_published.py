import dataclasses

import numpy as np
import pytest

from lira.membership import keep_mask
from lira.metrics import Estimate
from lira.reporting.measured import AttackFigures, measure_attacks
from lira.reporting.published import PUBLISHED, compare_published

FOUND = {"dataset": "tfds:cifar10", "num_examples": 50_000, "model": "wrn-28-2", "models": 16, "queries": 2}


def attacks(tpr=0.05, low=0.04, high=0.06) -> dict[str, AttackFigures]:
    """Two attacks of the same figures, without an interval of the AUC."""
    keep = keep_mask(0, 4, 20)
    measured = measure_attacks({"any": np.where(keep, 1.0, 0.0)}, keep)["any"]
    point = dataclasses.replace(measured.tpr_at[0.01], tpr=tpr, low=low, high=high)
    figures = dataclasses.replace(
        measured, auc=Estimate(0.68, np.nan, np.nan), tpr_at={0.001: point, 1e-05: point}
    )
    return {"lira_online_fixed": figures, "another": figures}


def test_a_figure_is_judged_by_the_interval():
    rows = {row.metric: row for row in compare_published(attacks(), **FOUND)}
    assert set(rows) == {"auc", "0.001"}
    assert rows["0.001"].published == 0.0541
    assert rows["0.001"].verdict == "reproduced: within the interval"
    assert rows["auc"].verdict == "no interval"
    for values, verdict in [
        ((0.03, 0.02, 0.04), "lower than published"),
        ((0.08, 0.07, 0.09), "higher than published"),
        ((np.nan, np.nan, np.nan), "not resolvable here"),
    ]:
        row = {row.metric: row for row in compare_published(attacks(*values), **FOUND)}["0.001"]
        assert row.verdict == verdict


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "digits"},
        {"dataset": "memory"},
        {"dataset": "tfds:cifar100"},
        {"num_examples": 10_000},
        {"model": "cnn-small"},
        {"models": 64},
        {"queries": 18},
    ],
)
def test_nothing_is_compared_that_is_not_the_same(changes):
    assert compare_published(attacks(), **{**FOUND, **changes}) == []


@pytest.mark.parametrize(
    "dataset", ["tfds:cifar10", "tfds:cifar10:3.0.2", "folder:/data/CIFAR-10", "folder:/d/cifar_10/"]
)
def test_data_sets_are_known_by_name(dataset):
    assert len(compare_published(attacks(), **{**FOUND, "dataset": dataset})) == 2


def test_the_figures_are_fractions_with_a_source():
    for row in PUBLISHED:
        assert row.source
        assert row.figures
        for metric, value in row.figures.items():
            assert metric in ("auc", "balanced_accuracy", "1e-05", "0.0001", "0.001", "0.01")
            assert 0 < value < 1
            # A TPR near guessing would have been written in percent.
            assert metric in ("auc", "balanced_accuracy") or value < 0.3
    keys = [(row.dataset, row.model, row.models, row.queries, row.attack, row.source) for row in PUBLISHED]
    assert len(set(keys)) == len(keys)
    assert np.isclose(max(row.figures.get("0.001", 0) for row in PUBLISHED), 0.276)
