import numpy as np
import pytest

from lira.metrics import Estimate
from lira.reporting.unlearning_plots import VERDICTS, MethodRow, plot_methods, plot_requests

pytestmark = pytest.mark.pictures

UNKNOWN = Estimate(np.nan, np.nan, np.nan)


def row(verdict="exposed", psi_n=None):
    tpr, auc, psi, own_tpr, own_auc = (Estimate(x, x - 0.01, x + 0.01) for x in (0.05, 0.7, 0.4, 0.01, 0.5))
    return MethodRow(verdict, tpr, auc, psi_n or psi, own_tpr, own_auc)


def test_every_method_has_a_mark_and_an_interval_in_each_panel():
    rows = {
        "a": row(),
        "b": row("over-forgotten", UNKNOWN),
        "c": row("as retrained"),
        "d": row("not resolved"),
    }
    figure = plot_methods(rows, fpr=0.001)
    tpr, auc, psi_n = figure.axes
    for ax, key in ((tpr, "tpr"), (auc, "auc")):
        for y, (name, each) in enumerate(rows.items()):
            interval, mark = (line for line in ax.lines if line.get_gid() == name)
            figure_drawn = getattr(each, key)
            np.testing.assert_array_equal(interval.get_xdata(), [figure_drawn.low, figure_drawn.high])
            np.testing.assert_array_equal(mark.get_xdata(), [figure_drawn.value])
            np.testing.assert_array_equal(mark.get_ydata(), [y])
            assert (mark.get_color(), mark.get_marker()) == VERDICTS[each.verdict]
        (band,) = [patch for patch in ax.patches if patch.get_gid() == "retrained"]
        own = getattr(rows["a"], f"retrained_{key}")
        extent = band.get_window_extent()
        assert (extent.x0, extent.x1) == pytest.approx(
            [ax.transData.transform((x, 0))[0] for x in (own.low, own.high)]
        )
    assert [text.get_text() for text in psi_n.texts] == ["not resolved"]
    assert {line.get_gid() for line in psi_n.lines} >= {"a", "c"}
    assert "b" not in {line.get_gid() for line in psi_n.lines}
    assert [label.get_text() for label in tpr.get_yticklabels()] == ["a", "b", "c", "d"]
    assert "0.1 % FPR" in tpr.get_title()
    figure.draw_without_rendering()
    shown = [label.get_text() for label in tpr.get_xticklabels()]
    assert "0.1 %" in shown
    assert "10 %" in shown


def test_what_cannot_be_resolved_is_said_and_not_drawn():
    rows = {"a": row()._replace(tpr=UNKNOWN, retrained_tpr=UNKNOWN)}
    figure = plot_methods(rows, fpr=None)
    assert [text.get_text() for text in figure.axes[0].texts] == ["unresolvable"]
    figure.draw_without_rendering()
    plot_requests({"a": [rows["a"], rows["a"]]}, fpr=None).draw_without_rendering()


def test_requests_make_a_line_a_method():
    figure = plot_requests({"a": [row(), row(psi_n=UNKNOWN)], "b": [row(), row()]}, fpr=0.01)
    for ax in figure.axes:
        lines = {line.get_gid(): line for line in ax.lines}
        assert {"a", "b"} <= set(lines)
        np.testing.assert_array_equal(lines["a"].get_xdata(), [1, 2])
        assert [band.get_gid() for band in ax.collections] == ["a", "b"]
    psi_n = next(line for line in figure.axes[2].lines if line.get_gid() == "a")
    np.testing.assert_array_equal(psi_n.get_ydata(), [0.4, np.nan])
    figure.draw_without_rendering()


def test_requests_are_counted_in_whole_numbers_where_one_figure_is_known():
    figure = plot_requests({"a": [row(psi_n=UNKNOWN), row()]}, fpr=0.01)
    figure.draw_without_rendering()
    for ax in figure.axes:
        low, high = ax.get_xlim()
        assert [tick for tick in ax.get_xticks() if low <= tick <= high] == [1, 2]
