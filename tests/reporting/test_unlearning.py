import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from documents import figures_of

from lira.forgetting import measure, retrained_values, u_lira
from lira.forgetting.measure import CurveFigures
from lira.membership import keep_mask
from lira.metrics import Estimate, example_tpr, roc
from lira.reporting.document import unlearning_document
from lira.reporting.figures import percent
from lira.reporting.unlearning import exposed_figure, write_unlearning_report
from lira.reporting.unlearning_evaluation import evaluate_unlearning

pytestmark = pytest.mark.pictures

M, N, F = 16, 300, 30
UNKNOWN = Estimate(np.nan, np.nan, np.nan)
HOSTILE = "<script>alert('x')</script>\" onload=\"y"


class Study:
    """Two requests of F examples each; phi is 2 higher where a model was trained on an example."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.keep = keep_mask(0, M, N)

        def draw(held):
            return (2.0 * held + rng.normal(size=(M, N)))[..., None].astype(np.float32)

        before = draw(self.keep)
        self.figures = {"none": [], HOSTILE: [], "ascent": []}
        for request in (1, 2):
            self.forget = np.arange(N) < request * F
            rest = self.keep & ~self.forget
            self.retrained = draw(rest)
            gone = (self.keep & self.forget)[..., None]
            self.after = {"none": before, HOSTILE: draw(rest), "ascent": before - np.float32(5) * gone}
            own = retrained_values(self.retrained, self.keep, self.forget, redraws=10)
            for name, after in self.after.items():
                accuracy = {"retain": (np.full(M, 0.987), np.full(M, 1.0)), "test": (np.full(M, np.nan),) * 2}
                figures = measure(
                    before, after, self.retrained, self.keep, self.forget, reference=own, accuracy=accuracy
                )
                self.figures[name].append(figures)


@pytest.fixture(scope="module")
def study():
    return Study()


@pytest.fixture(scope="module")
def evaluation(study):
    return evaluate_unlearning(study.figures, study.keep, costs={"none": 0.0, "ascent": 0.0523})


@pytest.fixture(scope="module")
def metrics(evaluation):
    return unlearning_document(evaluation)


@pytest.fixture(scope="module")
def written(study, evaluation, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "new"
    figure = exposed_figure(study.after["none"], study.retrained, study.keep, study.forget)
    write_unlearning_report(
        path,
        evaluation,
        examples={HOSTILE: figure, "none": None},
        facts={HOSTILE: "value"},
        warnings=[f"model 7 of {HOSTILE} diverged"],
        title=f"Unlearning {HOSTILE}",
    )
    return path


class Page(HTMLParser):
    """The text that a browser would show, what it would load, and each table's rows; checks that elements nest."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags, self.references, self.open, self.rows = "", [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "tr" in self.open:
            self.rows[-1] += data.strip() + " "


# --- Verdicts and metrics.json --------------------------------------------------------------------------------------


def test_untouched_is_exposed_retrained_is_not_and_ascent_is_over_forgotten(metrics):
    found = {
        name: [each["verdict"] for each in method["requests"]] for name, method in metrics["methods"].items()
    }
    assert found == {
        "none": ["exposed"] * 2,
        HOSTILE: ["as retrained"] * 2,
        "ascent": ["over-forgotten"] * 2,
    }


def test_either_figure_above_the_range_is_exposed(study):
    figures = study.figures[HOSTILE][1]
    assert figures.lowest_fpr == 0.01  # 480 non-members

    def judged(auc, tpr):
        own, point = figures.retrained, figures.u_lira.tpr_at_fpr[0.01]
        point = dataclasses.replace(point, tpr=own.tpr_at_fpr[0.01].high + tpr)
        curve = CurveFigures(
            dataclasses.replace(figures.u_lira.auc, value=own.auc.high + auc),
            {**figures.u_lira.tpr_at_fpr, 0.01: point},
        )
        return dataclasses.replace(figures, u_lira=curve).verdict

    assert judged(-0.001, -0.001) == "as retrained"
    assert judged(0.001, -0.001) == "exposed"
    assert judged(-0.001, 0.001) == "exposed"


def test_where_the_original_models_are_not_told_apart_nothing_is_resolved(study, tmp_path):
    """Models that never memorised: retrained ones in the place of the original ones."""
    figures = study.figures[HOSTILE][1]
    assert figures.is_resolved
    untouched, none = figures.untouched, study.figures["none"][1].u_lira
    assert (untouched.auc, untouched.tpr_at_fpr[0.01]) == (none.auc, none.tpr_at_fpr[0.01])
    blind = dataclasses.replace(figures, untouched=figures.u_lira)
    assert blind.verdict == "not resolved"
    exposed = dataclasses.replace(blind, u_lira=figures.untouched)
    assert exposed.verdict == "exposed"
    evaluation = evaluate_unlearning({"none": [blind]}, study.keep)
    assert [doubt[:32] for doubt in evaluation.doubts] == ["nothing can be told apart here: "]
    write_unlearning_report(tmp_path, evaluation, warnings=["and another"])
    page = Page((tmp_path / "report.html").read_text())
    assert page.text.index("nothing can be told apart") < page.text.index("and another")
    assert page.text.index("nothing can be told apart") < page.text.index("told from retraining")
    assert any(line.startswith("none not resolved") for line in page.rows)
    assert "as retrained" not in " ".join(page.rows)


def test_a_positive_control_that_fails_is_the_first_thing_said(study, tmp_path):
    """Exact retraining that is called exposed by chance."""
    right, wrong = study.figures[HOSTILE], study.figures["none"]
    assert evaluate_unlearning({"retrain": right}, study.keep).doubts == []
    evaluation = evaluate_unlearning({"retrain": wrong, "scrub": right}, study.keep)
    (doubt,) = evaluation.doubts
    assert doubt.startswith(
        'do not trust these verdicts: "retrain" is exact retraining and is called exposed'
    )
    write_unlearning_report(tmp_path, evaluation, warnings=["and another"])
    page = Page((tmp_path / "report.html").read_text())
    assert page.text.index("do not trust these verdicts") < page.text.index("and another")
    assert figures_of(tmp_path / "metrics.json")["doubts"] == [doubt]


def test_a_ratio_that_is_not_resolved_is_a_difference_on_the_page(study, tmp_path):
    """Phi of the original models that is hardly higher: a bounded interval of Fieller's that says nothing."""
    figures = study.figures[HOSTILE][0]
    classical = {"threshold": {0.1: figures.classical["threshold"][0.1]}}
    psi = classical["threshold"][0.1].psi_normalised
    vague = psi._replace(
        estimate=UNKNOWN, difference=Estimate(-0.02, -0.05, 0.01), denominator=Estimate(0.03, 0.001, 0.06)
    )
    assert not vague.is_resolved
    classical["threshold"][0.1] = classical["threshold"][0.1]._replace(psi_normalised=vague)
    evaluation = evaluate_unlearning({"a": [dataclasses.replace(figures, classical=classical)]}, study.keep)
    write_unlearning_report(tmp_path, evaluation)
    page = Page((tmp_path / "report.html").read_text())
    assert any("not resolved difference -0.02 (-0.05 to 0.01)" in line for line in page.rows)
    found = unlearning_document(evaluation)["methods"]["a"]["requests"][0]["classical"]["threshold"]["0.1"]
    assert found["psi_normalised"]["status"] == "not resolved"
    assert found["psi_normalised"]["difference"] == {"value": -0.02, "low": -0.05, "high": 0.01}


def test_the_frame_has_a_row_a_method(evaluation, study):
    frame = evaluation.to_frame()
    assert (frame.index.tolist(), frame.index.name) == (["none", HOSTILE, "ascent"], "method")
    row = frame.loc["ascent"]
    figures = study.figures["ascent"][-1]
    assert (row["verdict"], row["cost"]) == ("over-forgotten", 0.0523)
    assert (row["auc"], row["auc_high"]) == (figures.u_lira.auc.value, figures.u_lira.auc.high)
    assert row["tpr@0.01_low"] == figures.u_lira.tpr_at_fpr[0.01].low
    assert (row["retain_accuracy"], row["klom"]) == (pytest.approx(0.987), figures.klom_mean)


def test_the_document_is_json_with_all_that_was_measured(study, metrics, written):
    read = figures_of(written / "metrics.json")
    assert read == metrics
    assert (read["num_models"], read["num_examples"], read["num_requests"]) == (M, N, 2)
    assert [method["cost"] for method in read["methods"].values()] == [0.0, None, 0.0523]
    assert "complementary pairs of models resampled" in read["interval"]
    for name, requests in study.figures.items():
        for figures, each in zip(requests, read["methods"][name]["requests"], strict=True):
            assert each["verdict"] == figures.verdict
            assert each["u_lira"]["after"]["auc"]["value"] == figures.u_lira.auc.value
            assert [worst["example"] for worst in each["worst"]] == [w.example for w in figures.worst]


def test_nothing_measured_and_unequal_requests_are_refused(study):
    with pytest.raises(ValueError, match="methods holds nothing measured"):
        evaluate_unlearning({}, study.keep)
    with pytest.raises(ValueError, match="methods holds nothing measured"):
        evaluate_unlearning({"none": []}, study.keep)
    some = study.figures["none"]
    with pytest.raises(ValueError, match=r"same number of requests; got \{'a': 2, 'b': 1\}"):
        evaluate_unlearning({"a": some, "b": some[:1]}, study.keep)


# --- Figures -----------------------------------------------------------------------------------------------------------


def test_the_exposed_examples_are_those_found_most_often(study):
    labels = np.arange(N) % 7
    figure = exposed_figure(
        study.after["none"], study.retrained, study.keep, study.forget, labels=labels, count=2
    )
    assert figure is not None
    scores, held = u_lira(study.after["none"], study.retrained, study.keep, study.forget)
    shares = example_tpr(scores, held, roc(scores, held).tpr_at(0.01).threshold)
    titles = [ax.get_title() for ax in figure.axes]
    numbers = [int(title.split()[1].rstrip(",")) for title in titles]
    assert titles[0].endswith(f"class {numbers[0] % 7}")
    assert shares[numbers[0]] == shares.max()
    assert shares[numbers[2]] == shares.min()
    legend = " ".join(text.get_text() for text in figure.legends[0].get_texts())
    assert "unlearned it" in legend
    assert "retrained without it" in legend
    # The curves peak at the means of the two kinds of models.
    unlearned = study.after["none"][study.keep[:, numbers[0]], numbers[0], 0].mean()
    peak = max(zip(*reversed(figure.axes[0].lines[0].get_data()), strict=True))[1]
    assert peak == pytest.approx(unlearned, abs=0.1)
    one = np.arange(N) == 0
    assert exposed_figure(study.after["none"], study.retrained, study.keep, one) is None


# --- The page -------------------------------------------------------------------------------------------------------


def test_three_files_are_written(written):
    assert sorted(file.name for file in written.iterdir()) == [
        "metrics.json",
        "report.html",
        "unlearning.png",
    ]
    assert (written / "unlearning.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_is_self_contained_and_escapes_what_comes_from_outside(written):
    html = (written / "report.html").read_text()
    page = Page(html)
    assert page.open == []
    assert len(page.references) == 3  # methods, examples, requests
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert "http" not in re.sub(r"base64,[^\"]*", "", html).replace("http-equiv", "")
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "<script" not in html
    assert HOSTILE in page.text


def test_every_method_stands_beside_the_retrained_models(written, metrics):
    page = Page((written / "report.html").read_text())
    assert sum(line.startswith("retrained models") for line in page.rows) == 4
    told = next(line for line in page.rows if line.startswith("retrained models"))
    for name, method in metrics["methods"].items():
        last = method["requests"][-1]
        own, after = last["u_lira"]["retrained"], last["u_lira"]["after"]
        line = next(line for line in page.rows if line.startswith(f"{name} {last['verdict']}"))
        assert f"{after['auc']['value']:.3f}" in line
        assert f"{after['auc']['low']:.3f} to {after['auc']['high']:.3f}" in line
        assert percent(after["tpr_at_fpr"]["0.01"]["tpr"]) in line
        assert "unresolvable" in line  # 0.1 % of 480
        assert f"{last['epsilon']['forgetting_quality']['after']:.3f}" in line
        assert f"{own['auc']['low']:.3f} to {own['auc']['high']:.3f}" in told
        assert f"{last['klom']['mean']['retrained']['value']:.2f}" in told
    ascent = metrics["methods"]["ascent"]["requests"][-1]
    shift = ascent["direction"]["shift"]
    assert any(
        line.startswith("ascent") and f"{shift['low']:.2f} to {shift['high']:.2f}" in line
        for line in page.rows
    )
    assert any("5.23 %" in line for line in page.rows)
    assert any("98.7 %" in line and "unknown" in line for line in page.rows)  # test accuracy is not known
    worst = metrics["methods"]["none"]["requests"][-1]["worst"][0]
    assert any(
        line.split()[:2] == ["none", str(worst["example"])] and percent(worst["found"]) in line
        for line in page.rows
    )
    assert "told from retraining" in page.text


def test_one_request_has_no_curves(study, tmp_path):
    once = evaluate_unlearning({name: each[:1] for name, each in study.figures.items()}, study.keep)
    write_unlearning_report(tmp_path, once)
    page = Page((tmp_path / "report.html").read_text())
    assert len(page.references) == 1
    assert "Over requests" not in page.text


def test_what_cannot_be_rendered_touches_nothing(evaluation, tmp_path):
    write_unlearning_report(tmp_path, evaluation)
    old = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    bad = dataclasses.replace(evaluation, num_models=float("nan"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_unlearning_report(tmp_path, bad, title="new")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == old


def test_the_page_opens_with_what_became_of_each_method_in_plain_words(study, tmp_path):
    """Counts are the figures below, of 100; what only an average tells is told as one; a failed control comes first."""
    left, right = study.figures["none"][1], study.figures[HOSTILE][1]
    fpr = left.lowest_fpr
    assert fpr is not None
    average = dataclasses.replace(
        left,
        u_lira=CurveFigures(left.u_lira.auc, {**left.u_lira.tpr_at_fpr, fpr: right.u_lira.tpr_at_fpr[fpr]}),
    )
    assert (left.verdict, average.verdict, right.verdict) == ("exposed", "exposed", "as retrained")
    assert (left.shows_in_rate, average.shows_in_rate) == (True, False)
    evaluation = evaluate_unlearning({"none": [left], "a": [average], "b": [right], "c": [right]}, study.keep)
    point, auc = left.u_lira.tpr_at_fpr[fpr], left.u_lira.auc
    subject, plain, averaged, alike = evaluation.sentences
    assert subject.startswith(f"{study.keep.shape[0]} models, each trained on half of")
    assert (
        f"names {100 * point.tpr:.0f} ({100 * point.low:.0f} to {100 * point.high:.0f}) after none," in plain
    )
    assert f"{100 * fpr:g} false alarm" in plain
    assert f"picks the forgotten one {100 * auc.value:.0f} (" in averaged
    assert "after a times in 100, where guessing picks 50" in averaged
    assert alike.startswith("Forgotten by b and c, as far as")
    assert str(evaluation) == "\n".join(evaluation.sentences)
    write_unlearning_report(tmp_path, evaluation, warnings=["and another"])
    page = Page((tmp_path / "report.html").read_text())
    assert page.text.index("Not forgotten by none (which does nothing)") < page.text.index("and another")
    broken = evaluate_unlearning({"retrain": [left]}, study.keep)
    assert broken.sentences[0].startswith("Do not rely on these sentences")
    blind = dataclasses.replace(right, untouched=right.u_lira)
    (_, sentence) = evaluate_unlearning({"none": [blind]}, study.keep).sentences
    assert sentence.startswith("Nothing can be said of none")
    (_, over) = evaluate_unlearning({"d": [study.figures["ascent"][1]]}, study.keep).sentences
    assert over.startswith("Overdone by d: models are less sure of the forgotten examples")
