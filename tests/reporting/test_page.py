"""The page: self-contained, well-formed, its figures those of the document, what comes from outside escaped."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from documents import figures_of
from reported_scores import M, pool

from lira.attacks import suite
from lira.engine.trained import Check
from lira.membership import keep_mask
from lira.metrics import Estimate
from lira.reporting import measured, plots, tables, write
from lira.reporting import page as page_module
from lira.reporting.document import metrics_document
from lira.reporting.figures import percent, rate
from lira.reporting.published import Comparison


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
