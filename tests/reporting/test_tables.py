"""The tables of the terminal."""

import dataclasses
import re

import numpy as np
import pytest
from reported_scores import rendered

from lira.metrics import Estimate
from lira.reporting.figures import rate


@pytest.mark.parametrize("width", [100, 120])
def test_the_table_fits_and_wraps_no_number(evaluated, width):
    _, _, evaluation, metrics = evaluated
    text = rendered(evaluation, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for name, attack in metrics["attacks"].items():
        assert name in text
        assert f"{attack['auc_low']:.3f}–{attack['auc_high']:.3f}" in text
        point = attack["tpr_at_fpr"]["0.01"]
        assert re.search(rf"{100 * point['tpr']:.3g}\d* %", text)
    assert text.count("unresolvable") == 2 * len(metrics["attacks"]) + 1
    assert "floor 0.0312 %" in text
    assert "k = 3, true" in text
    assert f"≈ {100 * 4 / 3201:#.2g} %" in text
    assert "pooled over 16 targets" in text


def test_a_name_that_looks_like_markup_is_shown_as_it_is(evaluated):
    attacks = {"[red]x[/red]": evaluated[2].attacks["lira_online"]}
    assert "[red]x[/red]" in rendered(dataclasses.replace(evaluated[2], attacks=attacks), 100)


@pytest.mark.parametrize(
    ("point", "shown"),
    [
        ((0.0, np.nan, np.nan), ("0 %", "")),
        ((0.0, 0.0, 0.0012), ("0 %", "0.000–0.120")),
        ((0.00002, 0.0, 0.11), ("0.0020 %", "0.0–11.0")),
        ((0.00005, 0.00004, 0.00006), ("0.0050 %", "0.0040–0.0060")),
        ((0.0312, 0.0281, 0.0343), ("3.12 %", "2.81–3.43")),
        ((1.0, 1.0, 1.0), ("100.0 %", "100.0–100.0")),
    ],
)
def test_rates_keep_three_figures(point, shown):
    assert rate(Estimate(*point)) == shown
