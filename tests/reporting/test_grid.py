"""A grid of settings: trained side by side, resumed, and measured against figures that are written out."""

import errno
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from scipy import stats

import lira
from lira.cli import main
from lira.epsilon import target_epsilons
from lira.learning.accounting import Guarantee
from lira.membership import keep_mask
from lira.reporting import grid
from lira.reporting.grid_document import grid_document, in_sentences
from lira.reporting.grid_figures import AttackRate, Measurement, measure_grid, pareto_front
from lira.reporting.grid_plots import plot_grid, spread
from lira.store.errors import RunError

CONFIG = """
dataset = "digits"
num_examples = 120
num_models = 8
[recipe]
epochs = 3
batch_size = 16
learning_rate = 0.2
[execution]
width = 8
workers = 1
"""
ATTACKS = ["--attacks", "lira_online_fixed", "global_threshold"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("grid")
    (place / "config.toml").write_text(CONFIG)
    return place


@pytest.fixture(scope="module")
def first(place):
    """Two settings that go well and one that diverges; its exit status."""
    over = "recipe.learning_rate=0.2,0.01,1e30"
    arguments = ["--over", over, "--run-dir", str(place / "grid"), *ATTACKS]
    return main(["grid", str(place / "config.toml"), *arguments])


def times(directory):
    return {str(file): file.stat().st_mtime_ns for file in sorted(directory.rglob("*")) if file.is_file()}


def test_each_setting_is_a_run_and_one_that_fails_is_named(place, first):
    assert first == 1
    document = json.loads((place / "grid" / "grid.json").read_text())
    assert list(document["settings"]) == ["learning_rate=0.2", "learning_rate=0.01"]
    assert list(document["failed"]) == ["learning_rate=1e+30"]
    page = (place / "grid" / "report.html").read_text()
    assert "setting learning_rate=1e+30 is left out" in page
    runs = [lira.Run.open(place / "grid" / each["directory"]) for each in document["settings"].values()]
    for run, (name, each) in zip(runs, document["settings"].items(), strict=True):
        assert (run.path / "report.html").exists()
        assert f'href="{quote(each["directory"])}/report.html"' in page
        assert name == f"learning_rate={run.config.recipe.learning_rate:g}"
        assert each["accuracy"] == pytest.approx(run.accuracy("out").mean())
        assert each["accuracy_spread"] == pytest.approx(run.accuracy("out").std(ddof=1))
    np.testing.assert_array_equal(runs[0].keep, runs[1].keep)
    # The paired difference is what `lira compare` tells.
    scores = [np.asarray(run.scores(document["attack"])) for run in runs]
    less = lira.metrics.difference(scores[1], scores[0], runs[0].keep, fpr=document["fpr"])
    (found,) = document["differences"]
    assert (found["of"], found["less"]) == ("learning_rate=0.01", "learning_rate=0.2")
    for figure in ("tpr", "auc"):
        estimate = getattr(less, figure)
        ends = found[figure], found[f"{figure}_low"], found[f"{figure}_high"]
        assert ends == pytest.approx((estimate.value, estimate.low, estimate.high))


@pytest.mark.usefixtures("first")
def test_the_same_call_goes_on_and_touches_nothing_that_is_done(place):
    settings = [place / "grid" / f"learning_rate={rate}" for rate in ("0.2", "0.01")]
    before, plans = [times(each) for each in settings], []
    config = lira.Config(**vars(lira.Run.open(settings[0]).config))
    found = lira.grid(
        place / "grid",
        config,
        {"recipe.learning_rate": [0.2, 0.01]},
        attacks=["lira_online_fixed", "global_threshold"],
        show_progress=False,
        planned=plans.append,
    )
    assert [times(each) for each in settings] == before
    assert [each.models for each in plans[0].settings.values()] == [0, 0]
    assert str(plans[0]).startswith("2 settings: 0 of 16 models to train, 0 images, about 0 s in all")
    assert found.failed == {}
    assert list(found.runs) == ["learning_rate=0.2", "learning_rate=0.01"]
    assert found.figures.reference == "learning_rate=0.2"  # the configuration as it stands
    assert "left out" not in (place / "grid" / "report.html").read_text()


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize(
    ("fails", "leaves_out"),
    [
        (lambda: keep_mask(0, 3, 4), True),  # lira says no, in a line of its own
        (lambda: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")), True),
        (lambda: (_ for _ in ()).throw(MemoryError()), True),
        (lambda: (_ for _ in ()).throw(RuntimeError("RESOURCE_EXHAUSTED: 8 GB")), True),
        (lambda: np.zeros(2) + np.zeros(3), False),  # a ValueError that nobody foresaw
        (lambda: (_ for _ in ()).throw(RuntimeError("a fault")), False),
        (lambda: {}["missing"], False),
    ],
)
def test_a_fault_stops_the_grid_and_what_a_setting_lacks_leaves_it_out(
    place, fails, leaves_out, monkeypatch, capsys
):
    def reported(run, attacks):
        return fails() if run.path.name == "learning_rate=0.01" else known(run, attacks)

    known = grid.reported
    monkeypatch.setattr(grid, "reported", reported)
    before = times(place / "grid" / "learning_rate=0.01")
    flags = ["--over", "recipe.learning_rate=0.2,0.01", "--run-dir", str(place / "grid"), *ATTACKS]
    status, error = main(["grid", str(place / "config.toml"), *flags]), capsys.readouterr().err
    assert times(place / "grid" / "learning_rate=0.01") == before
    if leaves_out:
        assert status == 1
        assert re.search(r"setting learning_rate=0.01 is left out: \S+", error)
        assert "Traceback" not in error
    else:
        assert status in (2, 70)
        assert "Traceback" in error
        assert "left out" not in error


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--over", "recipe.epoch=1,2"], "unknown field 'recipe.epoch': did you mean 'recipe.epochs'"),
        (["--over", "num_examples=50,60"], "num_examples is not varied"),
        (["--over", "recipe.batch_size=600,16"], "setting batch_size=600: recipe.batch_size is 600"),
        (["--over", "recipe.epochs=1", "--attacks", "lira"], "lira"),
        ([], "a grid needs a field to vary"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(place, flags, message, capsys):
    out = place / "nowhere"
    assert main(["grid", str(place / "config.toml"), "--run-dir", str(out), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not out.exists()


@pytest.mark.usefixtures("first")
def test_runs_of_another_configuration_are_not_gone_on_with(place, capsys):
    before = times(place / "grid")
    flags = ["--over", "recipe.learning_rate=0.2,0.01", "--recipe.epochs", "4"]
    assert main(["grid", str(place / "config.toml"), "--run-dir", str(place / "grid"), *flags]) == 2
    assert "is another run: recipe.epochs is 3 there and 4 here" in capsys.readouterr().err
    assert times(place / "grid") == before


# --- Figures, of scores that are made up ------------------------------------------------------------------------------


@pytest.mark.usefixtures("first")
def test_each_setting_is_verified_and_named(place, tmp_path, capsys):
    grid = Path(shutil.copytree(place / "grid", tmp_path / "grid"))
    assert main(["verify", str(grid), "--deep"]) == 0
    assert capsys.readouterr().out == f"{grid}: nothing is broken, in 0 of 3 runs\n"
    chunk = grid / "learning_rate=0.2/arrays/phi/c/3/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    (grid / "grid.json").unlink()
    assert main(["verify", str(grid), "--deep"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in said[:-1]] == [
        ["broken", "grid.json"],
        ["broken", "learning_rate=0.2/arrays/phi/c/3/0/0"],
    ]
    assert said[-1] == f"{grid}: 2 broken, in 1 of 3 runs (learning_rate=0.2)"
    dataset = lira.load_dataset("digits", num_examples=120)
    (sentence,) = lira.mend(grid, dataset)
    assert sentence.startswith("learning_rate=0.2/arrays/phi/c/3/0/0 is not of 484 bytes: ")
    with pytest.raises(RunError, match="is no directory of a run"):
        lira.verify(tmp_path)


T, N = 16, 500
KEEP = keep_mask(3, T, N)


RATES = [AttackRate("lira", 0.9, 0.8, 0.95), AttackRate("other", 0.999, 0.998, 1.0)]


def measurement(shift, accuracy, seed, proven=None):
    """Scores of which those of members are higher by `shift`."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(T, N)) + shift * KEEP
    accuracies = accuracy + 0.01 * rng.normal(size=T)
    guarantee = None if proven is None else Guarantee(proven, 2e-5, 1.0, 1.0, 100, 0.1, 20)
    return Measurement(
        {"recipe.a": shift},
        f"a={shift}",
        np.arange(T),
        scores,
        KEEP,
        accuracies,
        accuracies + 0.05,
        guarantee,
    )


@pytest.fixture(scope="module")
def made_up():
    measured = {
        "a=2": measurement(4.0, 0.9, 0, float("inf"))._replace(rates={1e-3: RATES}),
        "a=1": measurement(2.0, 0.7, 1, 0.01),
        "a=0": measurement(0.0, 0.8, 2, 1.0),
    }
    return measured, measure_grid(
        measured, attack="lira_online", side="out", reference="a=2", independent=True
    )


def test_lower_bounds_hold_together_and_are_at_the_proofs_delta(made_up):
    measured, grid = made_up
    assert grid.confidence == pytest.approx(1 - 0.05 / 3)
    for name, each in measured.items():
        for found, level in zip(grid.settings[name].epsilon, (0.05, 0.05 / 3), strict=True):
            # The median of bounds that are each too large half as often.
            bounds = target_epsilons(
                each.scores, KEEP, independent=True, delta=2e-5, confidence=1 - level / 2
            )
            assert found == np.median(bounds)
        assert grid.settings[name].delta == 2e-5
    alone, together = zip(*(each.epsilon for each in grid.settings.values()), strict=True)
    assert alone[0] > together[0] > together[1] > together[2] == 0
    assert "But other finds 99.9 % there." in in_sentences(replace(grid, reference="a=0"))[1]
    assert "Measured above the proven epsilon: a=1." in in_sentences(grid)[-1]


def test_accuracies_are_compared_by_students_t_over_pairs(made_up):
    measured, grid = made_up
    less = (measured["a=0"].accuracy - measured["a=2"].accuracy).reshape(-1, 2).mean(axis=1)
    interval = stats.ttest_1samp(less, 0).confidence_interval(0.95)
    found = grid.difference("a=0", "a=2").accuracy
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    back = grid.difference("a=2", "a=0").accuracy
    assert (back.value, back.low, back.high) == (-found.value, -found.high, -found.low)
    assert grid.difference("a=0", "a=2").tpr.high < 0


def test_front_is_what_no_other_setting_beats(made_up):
    _, grid = made_up
    assert grid.front == ("a=2", "a=0")
    rng = np.random.default_rng(0)
    for _ in range(50):
        utility, leakage = rng.integers(0, 4, (2, 6)).astype(float)
        naive = [
            not any(
                utility[j] >= utility[i]
                and leakage[j] <= leakage[i]
                and (utility[j] > utility[i] or leakage[j] < leakage[i])
                for j in range(6)
            )
            for i in range(6)
        ]
        assert pareto_front(utility, leakage).tolist() == naive
    assert pareto_front([np.nan, 1.0], [0.0, np.nan]).tolist() == [False, False]


def test_the_best_by_its_points_is_not_said_to_be_better_than_what_lies_within_its_interval():
    """Of two settings of one distribution one happens to be ahead in both; a third is worse really."""

    def drawn(seed):
        alike = {name: measurement(0.0, 0.8, [seed, i]) for i, name in enumerate("ab")}
        return measure_grid({**alike, "worse": measurement(4.0, 0.6, 3)}, attack="lira_online", side="out")

    grid = next(grid for grid in map(drawn, range(20)) if len(grid.front) == 1)
    (best,) = grid.front
    assert best in "ab"
    assert in_sentences(grid)[0] == (
        f"{best} is the most accurate and leaks least by its points. Beyond the interval of the difference it is more "
        f"accurate than 1 of the 2 other settings, and leaks less than 1."
    )


@pytest.mark.parametrize(
    ("gap", "says"),
    [
        (
            0.0,
            "but its difference from the other setting is within its interval, in both: that may be chance.",
        ),
        (4.0, "Beyond the interval of the difference it is more accurate and leaks less."),
    ],
)
def test_two_settings_are_told_apart_in_words(gap, says):
    def drawn(seed):
        alike, other = measurement(0.0, 0.8, [seed, 0]), measurement(gap, 0.8 - gap / 20, [seed, 1])
        return measure_grid({"a": alike, "b": other}, attack="lira_online", side="out")

    grid = next(grid for grid in map(drawn, range(20)) if len(grid.front) == 1)
    assert in_sentences(grid)[0].endswith(says)


def test_other_memberships_and_targets_of_one_setting_alone():
    one, other = measurement(1.0, 0.9, 0), measurement(0.0, 0.9, 1)
    fewer = other._replace(
        targets=np.arange(4, T), scores=other.scores[4:], keep=KEEP[4:], accuracy=other.accuracy[4:],
        accuracy_in=other.accuracy_in[4:],
    )  # fmt: skip
    grid = measure_grid({"one": one, "fewer": fewer}, attack="a", side="out")
    assert grid.num_models == T - 4
    assert grid.settings["one"].accuracy == pytest.approx(one.accuracy[4:].mean())
    assert grid.no_epsilon is not None
    assert grid.settings["one"].epsilon is None
    with pytest.raises(ValueError, match="setting other has other memberships"):
        measure_grid({"one": one, "other": other._replace(keep=~KEEP)}, attack="a", side="out")


def test_examples_that_a_setting_leaves_out_are_in_no_figure():
    """Of independent coins some have too few models for the attack; they were chosen, so no epsilon is claimed."""
    one, other = measurement(2.0, 0.9, 0), measurement(1.0, 0.9, 1)
    thin = [each._replace(scores=each.scores.copy()) for each in (one, other)]
    thin[0].scores[:, [3, 7]] = thin[1].scores[:, [7, 9]] = np.nan
    rest = np.setdiff1d(np.arange(N), [3, 7, 9])
    cut = [each._replace(scores=each.scores[:, rest], keep=KEEP[:, rest]) for each in (one, other)]
    found = measure_grid(dict(zip("ab", thin, strict=True)), attack="a", side="out", independent=True)
    expected = measure_grid(dict(zip("ab", cut, strict=True)), attack="a", side="out")
    assert (found.num_examples, found.no_epsilon) == (N - 3, expected.no_epsilon)
    assert found.settings["a"].auc == expected.settings["a"].auc
    assert found.difference("a", "b") == expected.difference("a", "b")
    thin[0].scores[2, 0] = np.nan
    with pytest.raises(ValueError, match=r"scores\[2, 0\] is NaN"):
        measure_grid(dict(zip("ab", thin, strict=True)), attack="a", side="out")


def test_document_is_json_and_picture_has_every_setting(made_up):
    _, grid = made_up
    document = json.loads(
        json.dumps(grid_document(grid, {"recipe.a": [2.0, float("inf")]}, {}), allow_nan=False)
    )
    assert document["over"] == {"recipe.a": [2.0, "inf"]}
    assert document["settings"]["a=2"]["epsilon_proven"] == "inf"
    assert document["epsilon_confidence"]["together_each"] == pytest.approx(1 - 0.05 / 3)
    assert document["settings"]["a=2"]["strongest"] == RATES[1]._asdict()
    leakage, epsilon = plot_grid(grid).axes
    for ax in (leakage, epsilon):
        assert {line.get_gid() for line in ax.lines} >= set(grid.settings)
    (proven,) = (line for line in epsilon.lines if line.get_gid() == "proven")
    points = {(grid.settings[name].accuracy, bound) for name, bound in (("a=1", 0.01), ("a=0", 1.0))}
    assert {tuple(point) for point in np.asarray(proven.get_xydata()).tolist()} == points


def test_names_of_close_points_stand_apart():
    heights = np.array([0.1, 0.5, 0.5, 0.51, 0.52, 0.9, 0.95])
    places = spread(heights)
    assert (np.diff(places) > 0.0369).all()
    assert 0.03 <= places[0] < places[-1] <= 0.93
    np.testing.assert_allclose(spread(np.array([0.2, 0.4])), [0.2, 0.4])
