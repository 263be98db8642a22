import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from typing import Any

import matplotlib
import numpy as np
import pytest
from documents import figures_of
from matplotlib.figure import Figure
from rich.console import Console

from lira import metrics as measure
from lira import parallel
from lira.attacks import suite
from lira.engine.trained import Check
from lira.membership import keep_mask
from lira.metrics import Estimate, example_tpr
from lira.reporting import measured, plots, tables, write
from lira.reporting import page as page_module
from lira.reporting.document import metrics_document
from lira.reporting.figures import percent, rate
from lira.reporting.glossary import GLOSSARY
from lira.reporting.inks import inks
from lira.reporting.plots import plot_attack_panels
from lira.reporting.published import Comparison
from lira.reporting.records import records_of

pytestmark = pytest.mark.pictures

M, N = 16, 400  # 3,200 non-members: 0.01 % is unresolvable, 0.1 % allows three false positives.


def pool(num_models=M, num_examples=N, seed=0):
    """Scores of three attacks of different strength, `[M, N]` each, and the mask."""
    rng = np.random.default_rng(seed)
    keep = keep_mask(seed, num_models, num_examples)
    noise = rng.normal(size=(3, num_models, num_examples)) + 0.1 * rng.normal(size=(3, num_models, 1))
    gap = rng.exponential(size=num_examples)
    names = ("lira_online", "lira_offline_fixed", "global_threshold")
    return {name: noise[i] + (2 - i) * gap * keep for i, name in enumerate(names)}, keep


@pytest.fixture(scope="module")
def evaluated():
    """Scores, memberships, what was measured, and the content of metrics.json."""
    scores, keep = pool()
    evaluation = measured.measure(scores, keep)
    return scores, keep, evaluation, metrics_document(evaluation)


def numbers(value):
    """All leaves of a JSON document."""
    if isinstance(value, dict | list | tuple):
        items = value.values() if isinstance(value, dict) else value
        return [leaf for item in items for leaf in numbers(item)]
    return [value]


def test_side_by_side_nothing_changes(evaluated, monkeypatch):
    scores, keep, evaluation, metrics = evaluated
    for cores in (1, 4):
        monkeypatch.setattr(parallel, "cores", lambda cores=cores: cores)
        again = measured.measure(scores, keep)
        assert json.dumps(metrics_document(again)) == json.dumps(metrics)
        assert list(again.curves) == list(evaluation.curves) == list(scores)
        for name, curve in again.curves.items():
            for field in dataclasses.fields(curve):
                np.testing.assert_array_equal(
                    getattr(curve, field.name), getattr(evaluation.curves[name], field.name)
                )


def test_an_attacks_error_is_the_reports(evaluated):
    scores, keep, _, _ = evaluated
    broken = scores["lira_online"].copy()
    broken[3, 5] = np.nan
    with pytest.raises(ValueError, match=r"scores\[3, 5\] is NaN"):
        measured.measure({**scores, "lira_offline_fixed": broken}, keep)


# --- metrics.json ---------------------------------------------------------------------------------------------------


def test_the_document_holds_what_the_roc_says(evaluated):
    scores, keep, _, metrics = evaluated
    metrics = json.loads(json.dumps(metrics, allow_nan=False))
    assert (metrics["num_models"], metrics["num_examples"]) == (M, N)
    assert metrics["num_members"] == metrics["num_nonmembers"] == M * N // 2
    assert list(metrics["attacks"]) == list(scores)
    for name, attack in metrics["attacks"].items():
        roc = measure.roc(scores[name], keep)
        assert attack["auc"] == roc.auc
        assert (attack["auc_low"], attack["auc_high"]) == (roc.auc_interval().low, roc.auc_interval().high)
        assert attack["balanced_accuracy"] == roc.balanced_accuracy
        assert attack["balanced_accuracy_low"] == roc.balanced_accuracy_interval().low
        for fpr in (1e-3, 1e-2):
            point, entry = roc.tpr_at(fpr), attack["tpr_at_fpr"][f"{fpr:g}"]
            assert entry == {
                "tpr": point.tpr,
                "low": point.low,
                "high": point.high,
                "status": "ok",
                "threshold": point.threshold,
                "false_positives": point.false_positives,
                "allowed_false_positives": int(fpr * M * N / 2),
                "expected_fpr": point.expected_fpr,
                "distinct_examples": point.distinct_examples,
                "floor": 2 / (M * N),
                "tpr_at_zero_fpr": point.tpr_at_zero,
            }
        mean = measure.mean_over_targets(scores[name], keep, [1e-2])
        assert attack["mean_over_targets"]["auc"] == mean["auc"].value
        entry = attack["mean_over_targets"]["tpr_at_fpr"]["0.01"]
        assert (entry["tpr"], entry["low"], entry["high"]) == (
            mean["tpr_at_fpr"][1e-2].value,
            mean["tpr_at_fpr"][1e-2].low,
            mean["tpr_at_fpr"][1e-2].high,
        )


def test_fpr_keys_are_the_fractions_of_the_format(evaluated):
    for attack in evaluated[3]["attacks"].values():
        for part in (attack, attack["mean_over_targets"]):
            assert list(part["tpr_at_fpr"]) == ["1e-05", "0.0001", "0.001", "0.01"]


def test_the_unresolvable_is_null_with_its_floor(evaluated):
    scores, keep, _, metrics = evaluated
    for name, attack in metrics["attacks"].items():
        entry = attack["tpr_at_fpr"]["0.0001"]
        assert (entry["tpr"], entry["low"], entry["high"]) == (None, None, None)
        assert entry["status"] == "unresolvable"
        assert entry["floor"] == 1 / 3200
        best_nonmember = scores[name][~keep].max()
        assert entry["tpr_at_zero_fpr"] == pytest.approx(np.mean(scores[name][keep] > best_nonmember))
        # A single target has some 200 non-members: 0.1 % is not to be averaged although it is pooled.
        mean = attack["mean_over_targets"]["tpr_at_fpr"]["0.001"]
        assert (mean["tpr"], mean["status"]) == (None, "unresolvable")
        assert mean["floor"] == 1 / (~keep).sum(axis=1).min()


def test_zero_is_measured_and_not_null():
    keep = keep_mask(0, M, N)
    evaluation = measured.measure({"reversed": np.where(keep, -1.0, 1.0)}, keep)
    entry = metrics_document(evaluation)["attacks"]["reversed"]["tpr_at_fpr"]["0.01"]
    assert (entry["tpr"], entry["status"], entry["false_positives"]) == (0, "ok", 0)
    assert entry["threshold"] is None  # All non-members tie at the top: only infinity keeps them out.
    assert measured.low_fpr_threshold(evaluation.attacks["reversed"]) == (0.001, np.inf)


def test_one_class_is_undefined_everywhere_and_still_reported(tmp_path):
    scores = {"attack": np.random.default_rng(0).normal(size=(4, 50))}
    with pytest.warns(measure.UndefinedMetricWarning):
        evaluation = measured.measure(scores, np.ones((4, 50), bool))
    metrics = metrics_document(evaluation)
    attack = metrics["attacks"]["attack"]
    assert (attack["auc"], attack["balanced_accuracy"], evaluation.curves) == (None, None, {})
    assert metrics["implied"] is None
    for part in (attack, attack["mean_over_targets"]):
        assert {entry["status"] for entry in part["tpr_at_fpr"].values()} == {"undefined"}
    write.write_report(tmp_path, evaluation)
    assert "undefined" in (tmp_path / "report.html").read_text()
    assert "undefined" in rendered(evaluation, 100)


@pytest.mark.parametrize("num_models", [1, 4, 7])
def test_pools_of_other_sizes_hold_no_nan(num_models):
    """One target; two pairs, too few for intervals; an unpaired pool."""
    scores, keep = pool(8)
    evaluation = measured.measure({"a": scores["lira_online"][:num_models]}, keep[:num_models])
    metrics = metrics_document(evaluation)
    json.dumps(metrics, allow_nan=False)
    assert metrics["attacks"]["a"]["auc"] > 0.5
    interval = {1: "of the one target", 4: "none, because 2 complementary pairs", 7: "95 %, models resampled"}
    assert interval[num_models] in metrics["interval"]
    assert (metrics["attacks"]["a"]["auc_low"] is None) == (num_models == 4)
    assert len(plots.plot_roc(evaluation.curves).collections) == (num_models != 4)


def test_infinite_scores_are_ordered():
    scores, keep = pool(4)
    values = scores["lira_online"].copy()
    values[keep & (values > 3)] = np.inf
    values[~keep & (values < -1)] = -np.inf
    metrics = metrics_document(measured.measure({"a": values}, keep))
    assert all(leaf is None or isinstance(leaf, str) or np.isfinite(leaf) for leaf in numbers(metrics))


def test_no_attack_is_refused():
    with pytest.raises(ValueError, match="holds no attack"):
        measured.measure({}, np.ones((4, 5), bool))


# --- Curves and figures ---------------------------------------------------------------------------------------------


def test_curves_are_thinned_to_realised_points():
    scores, keep = pool(32, 2000)
    for name, curve in measured.measure(scores, keep).curves.items():
        roc = measure.roc(scores[name], keep)
        assert 1000 < len(curve.fpr) <= 2000
        assert (np.diff(curve.fpr) > 0).all()
        assert (curve.fpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 1, 1)
        assert curve.fpr[1] == curve.floor == 1 / 32000
        index = np.searchsorted(roc.fpr, curve.fpr, side="right") - 1
        np.testing.assert_array_equal(curve.fpr, roc.fpr[index])
        np.testing.assert_array_equal(curve.tpr, roc.tpr[index])
        assert (curve.low <= curve.tpr).all()
        assert (curve.tpr <= curve.high).all()
        assert (curve.auc, curve.low_fpr_tpr) == (roc.auc, roc.tpr_at(1e-3).tpr)


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


def test_vulnerable_examples_are_ordered_by_tpr_then_by_gap():
    scores, keep = pool()
    values = scores["lira_online"]
    most, least = measure.most_and_least_vulnerable(values, keep, 2.0, count=N // 2)
    tpr = example_tpr(values, keep, 2.0)
    gap = [values[keep[:, n], n].mean() - values[~keep[:, n], n].mean() for n in range(N)]
    naive = sorted(range(N), key=lambda n: (tpr[n], gap[n]))
    assert list(least) == naive[: N // 2]
    assert list(most) == naive[::-1][: N // 2]


def test_examples_without_both_sides_and_infinite_scores_are_survived():
    values = np.array([[3.0, np.inf, 9, 1], [0, 0, 9, 0], [2, np.inf, 9, 1], [0, np.inf, 9, 0]])
    keep = np.array([[1, 1, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1], [0, 0, 1, 0]], bool)
    most, least = measure.most_and_least_vulnerable(values, keep, 1.5, count=3)
    assert (list(most), list(least)) == ([0], [3])


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


# --- The terminal table ---------------------------------------------------------------------------------------------


def rendered(evaluation, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(tables.attacks_table(evaluation))
    return console.export_text()


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


# --- The page -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects what a browser would load, the text it would show, and checks that elements nest."""

    VOID = ("meta", "img", "br")

    def __init__(self, html):
        super().__init__()
        self.tags, self.references, self.text, self.open = [], [], "", []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


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


def test_the_picture_holds_the_strongest_and_the_baseline(tmp_path):
    """Of twelve attacks the seven with the highest TPR, and the global threshold, which is the weakest."""
    rng = np.random.default_rng(0)
    keep = keep_mask(0, 8, 1000)
    strengths = {"global_threshold": 0.0, **{f"attack_{i}": 0.3 * i for i in range(1, 12)}}
    scores = {name: rng.normal(size=keep.shape) + d * keep for name, d in strengths.items()}
    evaluation = measured.measure(scores, keep)
    write.write_report(tmp_path, evaluation)
    page = (tmp_path / "report.html").read_text()
    assert "The 8 strongest attacks at low FPR" in page
    assert list(write.drawn_curves(evaluation.curves, evaluation.headline)) == [
        *("global_threshold", *(f"attack_{i}" for i in range(5, 12)))
    ]
    drawn = re.findall(r'stroke="(#\w+)" stroke-width="3"( stroke-dasharray="[\d. ]+")?/></svg>(\w+)<', page)
    assert {name for _, _, name in drawn} == set(scores)
    assert len(set(drawn)) == len({each[:2] for each in drawn}) == 12, "an ink each, the same in both tables"
    found = metrics_document(evaluation)
    assert found["verdict"]["strongest"] == "attack_11"
    assert found["implied"]["attack"] == found["verdict"]["attack"] == "global_threshold"


def test_every_attack_has_an_ink_of_its_own_and_a_sentence():
    drawn = inks(suite.ATTACKS)
    assert len(set(drawn.values())) == len(suite.ATTACKS) == len(drawn)
    some = ["rmia_online", "mine", "lira_online"]
    assert inks(some)["rmia_online"] == drawn["rmia_online"], "whatever else is drawn"
    assert len(set(inks(some).values())) == 3
    assert GLOSSARY.keys() == suite.ATTACKS.keys()


LOWER = "lower than published"
HOSTILE = "<script>alert('x')</script>\" onload=\"y"


@pytest.fixture(scope="module")
def written(evaluated, tmp_path_factory):
    _, keep, evaluation, _ = evaluated
    path = tmp_path_factory.mktemp("report") / "new"
    phi = np.random.default_rng(0).normal(size=(M, 2))
    write.write_report(
        path,
        dataclasses.replace(evaluation, warnings=(f"model 7 of {HOSTILE} diverged",)),
        examples=plots.plot_examples(phi, keep[:, :2], ["a", "b"]),
        facts={"data set": HOSTILE, HOSTILE: "value"},
        title=f"Report on {HOSTILE}",
    )
    return path


def test_all_files_are_written(written, evaluated):
    assert sorted(file.name for file in written.iterdir()) == [
        *("attacks.png", "metrics.json", "report.html", "roc.png")
    ]
    stored = figures_of(written / "metrics.json")
    assert stored["verdict"].pop("warnings") == [f"model 7 of {HOSTILE} diverged"]
    assert stored == json.loads(
        json.dumps({**evaluated[3], "verdict": {**stored["verdict"], "failed": []}}, allow_nan=False)
    )
    assert (written / "roc.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_is_self_contained(written):
    html = (written / "report.html").read_text()
    page = Page(html)
    assert page.open == []
    outward = [each for each in page.references if not each.startswith("#")]
    assert len(outward) == 3
    assert all(reference.startswith("data:image/png;base64,") for reference in outward)
    contents = [each[1:] for each in page.references if each.startswith("#")]
    assert contents == re.findall(r'<h2 id="(\w+)"', html), "in the order of the page"
    assert "http://" not in html
    assert "https://" not in html
    assert not {"script", "link", "iframe"} & set(page.tags)


def test_the_page_holds_the_numbers(written, evaluated):
    text = Page((written / "report.html").read_text()).text
    for name, attack in evaluated[3]["attacks"].items():
        points = evaluated[2].attacks[name].tpr_at
        assert name in text
        for shown in (
            f"{attack['auc']:.3f}",
            f"{attack['auc_low']:.3f}–{attack['auc_high']:.3f}",
            f"{attack['mean_over_targets']['auc']:.3f}",
            percent(attack["tpr_at_fpr"]["0.01"]["tpr"]),
            rate(points[0.001]).interval,
        ):
            assert shown in text
    for words in (
        "Mean over targets",
        "Pooled over targets",
        "unresolvable",
        "k = 3",
        "conditional on the examples",
    ):
        assert words in text


def test_what_comes_from_outside_is_escaped(written):
    html = (written / "report.html").read_text()
    assert "<script" not in html
    assert Page(html).text.count(HOSTILE) == 5  # title twice, a warning, a fact's name and its value


def test_checks_and_published_figures_have_sections_of_their_own(evaluated, tmp_path, monkeypatch):
    evaluation, nan = evaluated[2], float("nan")
    rows = [
        Comparison("lira_online", "0.001", 0.084, f"source {HOSTILE}", Estimate(0.0723, 0.07, 0.075), LOWER),
        Comparison(
            "lira_online", "balanced_accuracy", 0.638, "source", Estimate(0.63, 0.62, 0.64), "reproduced"
        ),
        Comparison("lira_online", "1e-05", 0.022, "source", Estimate(nan, nan, nan), "not resolvable here"),
        Comparison("global_threshold", "auc", 0.59, "source", Estimate(0.6, nan, nan), "no interval"),
    ]
    checks = [
        Check("models", "ok", "all there"),
        Check("direction", "fail", f"wrong sign {HOSTILE}"),
        Check("a", "warn", "few"),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(page_module, "published_of", lambda evaluation: rows)
        write.write_report(tmp_path, dataclasses.replace(evaluation, checks=tuple(checks)))
    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    assert page.open == []
    assert "<script" not in html
    for shown in (
        *("Did I reproduce it?", "TPR at 0.1 % FPR", "8.40 %", "7.23 %", "7.00–7.50", LOWER),
        *(
            "balanced accuracy",
            "63.8 %",
            "62.0–64.0",
            "TPR at 0.001 % FPR",
            "unresolvable",
            "not resolvable here",
        ),
        *("AUC", "0.590", "no interval", "Checks", "all there", "wrong sign", f"source {HOSTILE}"),
    ):
        assert shown in page.text
    # Failed and doubtful checks stand at the top as well, and the first sentence says what that means.
    for words in (f"check failed: direction: wrong sign {HOSTILE}", "a: few", "Do not rely on these figures"):
        assert page.text.index(words) < page.text.index("TPR at 0.1 % FPR")
    assert page.text.count("wrong sign") == 2
    write.write_report(tmp_path, evaluation)
    text = Page((tmp_path / "report.html").read_text()).text
    assert "Checks" not in text
    assert "reproduce" not in text


def test_a_failing_write_leaves_the_old_report(evaluated, tmp_path, monkeypatch):
    evaluation = evaluated[2]
    write.write_report(tmp_path, evaluation, title="old")
    old = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    # What cannot be rendered touches nothing.
    bad: Any = [float("nan")]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write.write_report(tmp_path, dataclasses.replace(evaluation, models=bad), title="new")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == old

    # A kill before the rename leaves the old file whole.
    def killed(source, destination):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write.write_report(tmp_path, evaluation, title="new")
    assert {name: (tmp_path / name).read_bytes() for name in old} == old


def test_a_report_of_few_nonmembers_falls_back_to_auc(tmp_path):
    """40 non-members resolve nothing below 2.5 %: the page then leads with the AUC and still has examples."""
    scores, keep = pool(4, 20)
    evaluation = measured.measure(scores, keep)
    assert [card[0] for card in page_module._cards(evaluation)] == ["AUC", "balanced accuracy"]
    fpr, threshold = measured.low_fpr_threshold(evaluation.attacks["lira_online"])
    assert fpr == 0
    assert threshold > scores["lira_online"][~keep].max()
    write.write_report(tmp_path, evaluation)
    text = Page((tmp_path / "report.html").read_text()).text
    assert "none, because 2 complementary pairs" in text
    assert "unresolvable" in text


def test_tables_say_in_how_many_pools_their_intervals_hold(evaluated, written):
    note = "in 91 to 96 % (TPR) and in 85 to 94 % (AUC, balanced accuracy)"
    evaluation = evaluated[2]
    assert note in " ".join(tables.footnotes(evaluation))
    assert note in str(tables.attacks_table(evaluation).caption)
    text = " ".join(Page((written / "report.html").read_text()).text.split())
    assert note in text
    assert "they held the truth in 84 to 90 %, those of the information estimated in 85 to 94 %" in text
    scores, keep = pool(num_models=4)
    one = measured.measure({name: each[:1] for name, each in scores.items()}, keep[:1])
    assert "others would move the figures, too" in tables.footnotes(one)[0]
    two = measured.measure(scores, keep)
    assert tables.footnotes(two)[0].endswith("too few to resample.")


# --- Calibrated figures ---------------------------------------------------------------------------------------------


def test_pooled_and_calibrated_figures_stand_side_by_side(evaluated, tmp_path):
    scores, keep, plain, _ = evaluated
    assert plain.calibrated == {}
    phi = np.random.default_rng(4).normal(size=(*keep.shape, 1)).astype(np.float32) + 3 * keep[..., None]
    p_values = dict(suite.pool_p_values(suite.Pool({"phi": phi}, keep)))
    assert set(p_values) >= {"lira_online", "lira_offline", "attack_r", "conformal"}
    calibrated, first = measured.calibrate(p_values.items(), keep)
    assert first == ("lira_online", p_values["lira_online"].values)
    evaluation = measured.measure(scores, keep, calibrated=calibrated)
    write.write_report(tmp_path, evaluation)
    found = json.loads((tmp_path / "metrics.json").read_text())["calibrated"]
    assert list(found) == list(p_values)
    p = p_values["lira_offline"].values
    point = found["lira_offline"]["tpr_at_fpr"]["0.01"]
    assert point["tpr"] == pytest.approx(np.mean(p[keep] <= 0.01))
    assert point["realised_fpr"] == pytest.approx(np.mean(p[~keep] <= 0.01))
    ranks = found["attack_r"]["tpr_at_fpr"]["0.01"]
    assert (ranks["status"], ranks["tpr"], ranks["floor"]) == ("unresolvable", None, 1 / 8)
    named = found["lira_online"]["named_members"]
    assert named["false_discovery_rate"] == 0.05
    assert named["named_per_target"] > 20
    assert named["false_share"] < 0.05
    page = (tmp_path / "report.html").read_text()
    for words in (
        "Calibrated, example by example",
        "One in 2 examples is a member here",
        percent(point["tpr"]),
        "at most 5 % of them are wrong",
    ):
        assert words in page
    write.write_report(tmp_path / "plain", plain)
    assert "Calibrated, example by example" not in (tmp_path / "plain/report.html").read_text()
