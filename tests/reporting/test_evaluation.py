"""An evaluation in Python: against the files of its report, the metrics on arrays, and pandas' own reading."""

import builtins
import json
import re

import matplotlib
import numpy as np
import pandas
import pytest
from matplotlib.figure import Figure

import lira
from lira import metrics
from lira.membership import keep_mask
from lira.reporting.measured import measure
from lira.reporting.plots import plot_attacks, plot_roc

FEW = ("lira_online", "lira_offline_fixed", "global_threshold")
M, N = 12, 200

pytestmark = pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Confidences phi `[M, N]`, keep, the directory of their audit, and the evaluation."""
    rng, keep = np.random.default_rng(0), keep_mask(0, M, N)
    phi = rng.normal(size=(M, N)) + 2 * rng.exponential(size=N) * keep
    out = tmp_path_factory.mktemp("audits") / "all"
    return phi, keep, out, lira.audit(out, phi=phi, keep=keep, labels=np.arange(N) % 3, attacks=FEW)


def test_the_frame_holds_what_metrics_say(audited):
    phi, keep, _, evaluation = audited
    frame = evaluation.to_frame()
    assert (frame.index.tolist(), frame.index.name) == (list(FEW), "attack")
    roc = metrics.roc(phi.astype(np.float32), keep)
    row = frame.loc["global_threshold"]
    assert (row["auc"], row["auc_low"]) == (roc.auc, roc.auc_interval().low)
    assert row["balanced_accuracy"] == roc.balanced_accuracy
    point = roc.tpr_at(1e-2)
    assert (row["tpr@0.01"], row["tpr@0.01_low"], row["tpr@0.01_high"]) == (point.tpr, point.low, point.high)
    assert np.isnan(row["tpr@1e-05"]), "one in 100,000 is not resolved by 1,200 non-members"
    assert (frame.dtypes == np.float64).all()


def test_without_pandas_the_frame_says_what_to_do(audited, monkeypatch):
    import_module = builtins.__import__

    def no_pandas(name, *arguments, **options):
        if name == "pandas":
            raise ImportError(name)
        return import_module(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", no_pandas)
    with pytest.raises(ImportError, match=r"pip install pandas; evaluation\.attacks holds the same"):
        audited[3].to_frame()


def test_the_vulnerable_are_the_first_rows_of_records(audited):
    """As pandas reads and sorts records.csv."""
    _, _, out, evaluation = audited
    stored = pandas.read_csv(out / "records.csv").sort_values("rank", kind="stable").head(7)
    found = pandas.DataFrame(evaluation.vulnerable(7))
    name = evaluation.headline
    for column, theirs in (
        ("index", "index"),
        ("rank", "rank"),
        ("class_name", "label"),
        ("held", "models_in"),
    ):
        assert found[column].astype(int).tolist() == stored[theirs].tolist()
    for column, theirs in (("tpr", f"{name}_tpr"), ("low", f"{name}_low"), ("high", f"{name}_high")):
        np.testing.assert_allclose(found[column], stored[theirs], rtol=1e-5)
    assert len(evaluation.vulnerable(10**6)) == N
    assert evaluation.vulnerable(0) == []


def test_one_target_has_scores_in_the_place_of_shares(tmp_path):
    rng, keep = np.random.default_rng(1), keep_mask(1, M, N)
    phi, member = rng.normal(size=(M, N)), np.arange(N) % 2 == 0
    target = rng.normal(size=N) + 3 * member
    evaluation = lira.audit(tmp_path / "one", phi=phi, keep=keep, target=target, member=member, attacks=FEW)
    found = evaluation.vulnerable(5)
    scores = [each.score for each in found]
    assert scores == sorted(scores, reverse=True)
    assert [each.member for each in found] == member[[each.index for each in found]].tolist()
    assert repr(evaluation).startswith("Evaluation(1 model, 200 examples")
    assert "1 model trained" in str(evaluation)


def test_the_verdict_is_that_of_the_file(audited):
    _, _, out, evaluation = audited
    said = json.loads((out / "metrics.json").read_text())["verdict"]
    assert evaluation.verdict.finding == said["finding"]
    for text in (str(evaluation), str(evaluation.verdict)):
        assert said["finding"] in text
        assert said["subject"] in text
    page = evaluation._repr_html_()
    assert said["finding"] in page
    assert page.count("<p>") == len(evaluation.verdict.sentences)
    warned = len(said["warnings"]) + len(said["failed"])
    assert page.count("<li>") == warned > 0
    assert f"<summary>{warned} warning{'s' if warned > 1 else ''}</summary>" in page


def test_a_report_elsewhere_is_that_of_the_audit(audited, tmp_path):
    """But for the stored scores, which are not there."""
    _, _, out, evaluation = audited
    page = evaluation.report(tmp_path / "again")
    assert page == tmp_path / "again/report.html"
    first, second = (json.loads((place / "metrics.json").read_text()) for place in (out, page.parent))
    for name in ("attacks", "verdict", "subject", "checks", "calibrated", "implied"):
        assert first[name] == second[name]
    assert (out / "records.csv").read_bytes() == (page.parent / "records.csv").read_bytes()
    assert first["arrays"]
    assert not any(place.startswith("scores/") for place in second["arrays"])


@pytest.mark.pictures
def test_plots_take_axes_and_give_them(audited):
    evaluation = audited[3]
    left, right = Figure().subplots(1, 2)
    assert evaluation.plot_roc(left) is left
    assert evaluation.plot_attacks(right, attacks=FEW[:2]) is right
    assert {line.get_gid() for line in left.lines} == {*FEW, "chance", "floor"}
    assert sorted(label.get_text() for label in right.get_yticklabels()) == sorted(FEW[:2])
    assert right.get_xlabel() == "TPR at 0.1 % FPR"
    with pytest.raises(
        ValueError, match="there is no attack 'lira' among lira_online, lira_offline_fixed, global"
    ):
        evaluation.plot_roc(attacks=["lira"])


@pytest.mark.pictures
def test_without_axes_a_notebook_shows_the_figure(audited):
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    with matplotlib.rc_context({"text.usetex": True}):  # of its owner's figures, not of these
        for draw in (audited[3].plot_roc, audited[3].plot_attacks):
            ax = draw()
            assert pyplot.gcf() is ax.figure
            assert not ax.xaxis.label.get_usetex()
            pyplot.close(ax.figure)


@pytest.mark.pictures
def test_plots_take_what_metrics_give(audited):
    phi, keep, _, evaluation = audited
    roc = metrics.roc(phi.astype(np.float32), keep)
    ours, thinned = (
        next(line for line in plot_roc(curves).lines if line.get_gid() == "global_threshold")
        for curves in ({"global_threshold": roc}, evaluation.curves)
    )
    np.testing.assert_array_equal(ours.get_xydata(), thinned.get_xydata())
    assert ours.get_label() == thinned.get_label()
    with pytest.raises(ValueError, match="a curve of one class is undefined"):
        plot_roc({"mine": metrics.roc(phi, np.ones((M, N), bool))})
    for figure, label, chance in (
        (roc.tpr_at(0.01), "TPR at 1 % FPR", 0.01),
        (roc.auc_interval(), "AUC", 0.5),
    ):
        ax = plot_attacks({"mine": figure}, headline="mine")
        lines = {line.get_gid(): np.asarray(line.get_xdata())[0] for line in ax.lines}
        value = figure.tpr if isinstance(figure, metrics.OperatingPoint) else figure.value
        assert (ax.get_xlabel(), lines) == (label, {"figures": value, "chance": chance})
    with pytest.raises(ValueError, match="each attack needs a figure to be drawn; mine has none"):
        plot_attacks({"mine": roc.tpr_at(1e-5)})


def test_what_is_shown_in_a_session_is_one_short_line(audited, tmp_path):
    phi, keep, _, evaluation = audited
    x = np.arange(N * 16).reshape(N, 4, 4, 1) // 16  # each image of one gray
    data = lira.Dataset.from_arrays(x, np.arange(N) % 2, x_test=x[:7] + N, y_test=np.arange(7) % 2)
    run = lira.Run.create(tmp_path / "run", data, lira.Recipe(epochs=1, batch_size=8), num_models=4)
    roc = metrics.roc(phi, keep)
    point = f"{100 * roc.realised_tpr(1e-3):.3f} %"
    shown = {
        repr(data): "Dataset('memory': x uint8 [200, 4, 4, 1], 2 classes, 7 held out)",
        repr(run): f"Run('{tmp_path}/run': 4 mlp models on memory)",
        repr(run.phi): f"StoredSignal([0, 200, 1] in {tmp_path}/run/arrays/phi; signal[:, a:b] or "
        "numpy.asarray(signal) reads it)",
        repr(roc): f"Roc(AUC {roc.auc:.4g}, TPR {point} at 0.1 % FPR; 1,200 members, 1,200 non-members)",
        repr(metrics.roc(phi, np.ones((M, N), bool))): "Roc(undefined: 2,400 members, 0 non-members)",
        repr(
            evaluation.records
        ): "Records(200 examples, 12 targets, 3 attacks, ranked by lira_offline_fixed)",
    }
    for found, expected in shown.items():
        assert found == expected
    one = measure({"a": phi}, keep).curves["a"]
    for each in (evaluation, one):
        assert len(repr(each)) < 200
        assert "\n" not in repr(each)
    assert re.match(
        r"Evaluation\(12 models, 200 examples, 3 attacks; lira_offline_fixed: AUC 0\.", repr(evaluation)
    )
