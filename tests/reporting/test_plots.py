"""Pictures: a line and a band for each attack, the floor, histograms of examples."""

import dataclasses
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from reported_scores import M, N, pool

from lira import metrics as measure
from lira.attacks import suite
from lira.membership import keep_mask
from lira.metrics import Estimate
from lira.reporting import measured, plots, write
from lira.reporting.glossary import GLOSSARY
from lira.reporting.inks import inks
from lira.reporting.plots import plot_attack_panels
from lira.reporting.records import records_of


def test_every_attack_has_a_line_and_a_band(evaluated):
    scores, curves = evaluated[0], evaluated[2].curves
    own = Figure().add_subplot()
    assert plots.plot_roc(curves, own) is own
    lines = {line.get_gid(): line for line in own.lines}
    assert list(lines) == [*scores, "chance", "floor"]
    assert [band.get_gid() for band in own.collections] == list(scores)
    assert len({str(lines[name].get_color()) for name in scores}) == len(scores)
    for name, curve in curves.items():
        np.testing.assert_array_equal(lines[name].get_ydata(), curve.tpr[1:])
        legend = str(lines[name].get_label())
        assert legend.startswith(name)
        assert f"{curve.auc:.3f}" in legend
    assert own.get_xscale() == own.get_yscale() == "log"


@pytest.mark.pictures
def test_pictures_are_the_same_whatever_a_matplotlibrc_says(evaluated):
    def picture():
        figure = plots.plot_roc(evaluated[2].curves).get_figure(root=True)
        assert figure is not None
        return write.png(figure)

    plain = picture()
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30, "axes.facecolor": "black"}):
        assert picture() == plain


def test_the_floor_is_one_over_the_nonmembers(evaluated):
    ax = plots.plot_roc(evaluated[2].curves)
    (line,) = [line for line in ax.lines if line.get_gid() == "floor"]
    assert list(np.asarray(line.get_xdata())) == [1 / 3200, 1 / 3200]
    (zone,) = [patch for patch in ax.patches if patch.get_gid() == "floor"]
    assert zone.get_window_extent().x1 == pytest.approx(ax.transData.transform((1 / 3200, 1))[0])
    assert 0 < ax.get_xlim()[0] < 1 / 3200
    assert ax.get_xlim()[1] == ax.get_ylim()[1] == 1
    for name in evaluated[0]:
        (curve,) = [line for line in ax.lines if line.get_gid() == name]
        assert np.min(np.asarray(curve.get_xdata())) == 1 / 3200


def test_a_curve_whose_first_step_is_a_tie_starts_at_the_floor():
    """Below the first realised FPR the TPR is that at no false positive."""
    keep = np.array([[True, True, False, False, False, False, False, False, False, False]])
    scores = np.array([[9.0, 1, 5, 5, 5, 5, 0, 0, 0, 0]])
    ax = plots.plot_roc(measured.measure({"a": scores}, keep).curves)
    x, y = np.asarray(ax.lines[0].get_data())
    np.testing.assert_allclose(x[:2], [1 / 8, 4 / 8])
    np.testing.assert_allclose(y[:2], [1 / 2, 1])


def test_many_attacks_stay_apart(evaluated):
    curve = evaluated[2].curves["lira_online"]
    ax = plots.plot_roc({f"attack {i}": curve for i in range(8)})
    assert len({str(line.get_color()) for line in ax.lines[:8]}) == 8


@pytest.mark.parametrize(
    "images", [None, np.zeros((4, 8, 8, 3), np.uint8), np.zeros((4, 8, 8, 1), np.float32)]
)
def test_examples_have_a_histogram_and_a_gaussian_a_side(images):
    rng = np.random.default_rng(0)
    phi, keep = rng.normal(size=(M, 4, 2)), keep_mask(0, M, 4)
    phi[:, 3] = 1.0  # No spread, so no Gaussian.
    figure = plots.plot_examples(phi, keep, [f"no. {i}" for i in range(4)], images)
    assert [ax.get_title() for ax in figure.axes] == ["no. 0", "no. 1", "no. 2", "no. 3"]
    assert [len(ax.lines) for ax in figure.axes] == [2, 2, 2, 0]
    assert [len(ax.containers) for ax in figure.axes] == [2] * 4
    assert [len(ax.child_axes) for ax in figure.axes] == [0 if images is None else 1] * 4
    inside = phi[keep[:, 0], 0].mean(axis=1)
    grid, density = np.asarray(figure.axes[0].lines[0].get_data())
    assert grid[density.argmax()] == pytest.approx(inside.mean(), abs=np.diff(grid)[0])
    figure.draw_without_rendering()


def test_the_examples_at_risk_are_drawn_from_the_scores():
    scores, keep = pool()
    values = scores["lira_online"]
    phi = np.random.default_rng(0).normal(size=(M, N, 2))
    attack = measured.measure(scores, keep).attacks["lira_online"]
    labels = np.where(np.arange(N) % 2, -1, 7)  # of every other example the class is not known
    records = records_of(scores.items(), keep, labels=labels)
    shown = write.shown_examples(phi, keep, values, attack, records.title_of)
    assert shown is not None
    figure = plots.plot_examples(*shown)
    assert figure is not None
    most, least = measure.most_and_least_vulnerable(values, keep, measured.low_fpr_threshold(attack)[1])
    expected = [f"example {i}" + ("" if i % 2 else ", class 7") for i in [*most, *least]]
    assert [ax.get_title() for ax in figure.axes] == expected
    # One target has no example on both sides.
    assert write.shown_examples(phi[:1], keep[:1], values[:1], attack, str) is None


def test_example_figures_refuse_what_does_not_fit():
    phi, keep = np.zeros((M, 3, 2)), keep_mask(0, M, 3)
    with pytest.raises(ValueError, match="got 3 examples"):
        plots.plot_examples(phi, keep, ["", "", ""])
    with pytest.raises(ValueError, match="1 titles and no images"):
        plots.plot_examples(phi[:, :2], keep[:, :2], [""])
    with pytest.raises(ValueError, match="lacks a side"):
        plots.plot_examples(phi[:, :2], np.ones((M, 2), bool), ["", ""])


def test_every_attack_has_its_figure_and_interval(evaluated):
    attacks = evaluated[3]["attacks"]
    figure = plot_attack_panels(evaluated[2].attacks, 0.01)
    left, right = figure.axes
    names = [label.get_text() for label in left.get_yticklabels()]
    assert sorted(names) == sorted(attacks)
    values: list[Any] = [
        next(line for line in ax.lines if line.get_gid() == "figures") for ax in (left, right)
    ]
    bars: Any = right.collections[0]
    tprs = [attacks[name]["tpr_at_fpr"]["0.01"]["tpr"] for name in names]
    assert tprs == sorted(tprs), "the strongest is on top"
    np.testing.assert_allclose(values[0].get_xdata(), tprs)
    np.testing.assert_allclose(values[1].get_xdata(), [attacks[name]["auc"] for name in names])
    for row, name in enumerate(names):
        (start, y), (stop, _) = bars.get_segments()[row]
        assert (start, stop, y) == (attacks[name]["auc_low"], attacks[name]["auc_high"], row)


@pytest.mark.parametrize(
    ("tprs", "ticks"), [((0.02, 0.03), ["0.5 %", "1 %", "2 %"]), ((0.002, 0.3), ["0.1 %", "1 %", "10 %"])]
)
def test_rates_are_in_percent_at_every_tick_of_short_axes_and_long_ones(evaluated, tprs, ticks):
    attack = evaluated[2].attacks["lira_online"]
    points = {
        str(tpr): dataclasses.replace(attack.tpr_at[0.01], tpr=tpr, low=0.9 * tpr, high=1.1 * tpr)
        for tpr in tprs
    }
    ax = plots.plot_attacks(points, Figure().add_subplot())
    low, high = ax.get_xlim()
    named = [each for each in ax.xaxis.get_ticklabels() if low <= each.get_position()[0] <= high]
    assert [each.get_text() for each in named] == ticks
    assert not any(each.get_text() for each in ax.xaxis.get_ticklabels(minor=True))


def test_a_measured_zero_and_no_interval_are_drawn(evaluated):
    attack = evaluated[2].attacks["lira_online"]
    unknown = {"low": np.nan, "high": np.nan}
    attacks = {
        name: dataclasses.replace(
            attack,
            auc=Estimate(0.5, **unknown),
            tpr_at={0.001: dataclasses.replace(attack.tpr_at[0.001], tpr=tpr, **unknown)},
        )
        for name, tpr in (("nothing", 0.0), ("something", 0.01))
    }
    left, right = plot_attack_panels(attacks, 0.001).axes
    assert not any(len(bars.get_paths()) for ax in (left, right) for bars in ax.collections)
    points = next(line for line in left.lines if line.get_gid() == "figures")
    assert np.asarray(points.get_xdata()).tolist() == [left.get_xlim()[0], 0.01]
    (zero,) = left.texts
    assert (zero.get_text(), zero.get_position()) == ("0", (7, 0))


def test_every_attack_has_an_ink_of_its_own_and_a_sentence():
    drawn = inks(suite.ATTACKS)
    assert len(set(drawn.values())) == len(suite.ATTACKS) == len(drawn)
    some = ["rmia_online", "mine", "lira_online"]
    assert inks(some)["rmia_online"] == drawn["rmia_online"], "whatever else is drawn"
    assert len(set(inks(some).values())) == 3
    assert GLOSSARY.keys() == suite.ATTACKS.keys()
