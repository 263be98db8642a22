"""Every kind of file of a run damaged in every way: it is named, and the next run makes of it what was there."""

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from damages import DAMAGES, broken, contents, damage
from documents import figures_of

import lira
from lira import scoring
from lira.attacks.suite import ATTACKS
from lira.cli import main
from lira.learning.fingerprint import UncheckedWarning
from lira.store.errors import RunError
from lira.store.mend import mend

CONFIG = """\
dataset = "npz:{data}"
num_models = 8
[recipe]
epochs = 1
batch_size = 10
[execution]
width = 8
workers = 1
"""

FEW = ("lira_online_fixed", "global_threshold", "modified_entropy_threshold")
pytestmark = pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")


@pytest.fixture(scope="module", autouse=True)
def _few_attacks_are_enough():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "ATTACKS", {name: ATTACKS[name] for name in FEW})
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 8 models of 60 points and 10 held-out ones, reported."""
    directory = tmp_path_factory.mktemp("whole")
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(n, 3)).astype(np.float32) for name, n in (("x", 60), ("x_test", 10))}
    arrays |= {"y": np.arange(60) % 2, "y_test": np.arange(10) % 2}
    np.savez(directory / "data.npz", **arrays)  # pyright: ignore[reportArgumentType]
    (directory / "config.toml").write_text(CONFIG.format(data=directory / "data.npz"))
    assert again(directory / "run", directory / "config.toml") == 0
    return directory / "run"


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def dataset(finished):
    return lira.load_dataset(f"npz:{finished.parent / 'data.npz'}")


def again(run, config=None):
    return main(["run", str(config or run / "config.toml"), "--run-dir", str(run)])


def test_what_is_whole_is_complete_and_says_so(run, capsys):
    before = contents(run)
    assert main(["verify", str(run)]) == 0
    assert main(["verify", str(run), "--deep"]) == 0  # trains a model again
    assert capsys.readouterr().out == 2 * f"{run}: nothing is broken\n"
    assert again(run) == 0
    assert "is complete: 8 models trained, scored and reported; nothing to do" in capsys.readouterr().out
    assert contents(run) == before


# A file of each kind.
OF_A_MODEL = ("arrays/phi/c/3/0/0", "arrays/loss_in/c/3")
DONE = "arrays/done/c/3"

KINDS = (
    *(
        *OF_A_MODEL,
        DONE,
        "arrays/keep/c/3/0",
        "arrays/labels/c/0",
        "arrays/phi/zarr.json",
        "arrays/done/zarr.json",
    ),
    *("scores/lira_online_fixed/c/0/0", "scores/lira_online_fixed/zarr.json"),
    *("metrics.json", "report.html", "attacks.png", "records.csv", "records.json", "records/zarr.json"),
    "records/score/c/0/0",
)


@pytest.fixture(scope="module")
def whole(finished):
    return contents(finished)


@pytest.mark.parametrize("place", KINDS)
def test_every_damage_is_named_and_mended_and_nothing_else_is_touched(run, whole, dataset, place):
    # Moved aside, for the next training or report to make; scores as a whole.
    moved = "/".join(place.split("/")[:2]) if place.startswith("scores") else place
    every_way = place in ("arrays/phi/c/3/0/0", "arrays/phi/zarr.json", "metrics.json")
    for how in DAMAGES if every_way else ("flipped", "deleted"):
        damage(run / place, how)
        found = broken(run, dataset=dataset, deep=True)
        assert any(place == each.place or place.startswith(f"{each.place}/") for each in found), how
        if how != "flipped" or "/c/" not in place:  # of a chunk, which only reading tells
            assert broken(run), how
        assert mend(run, dataset), how
        after = contents(run)
        changed = {each for each, content in after.items() if content != whole[each]}
        assert changed <= ({DONE} if place in (*OF_A_MODEL, DONE) else set()), how
        gone = whole.keys() - after.keys()
        assert all(each.startswith(moved) for each in gone), how
        assert {each.place for each in broken(run)} <= {moved, DONE}, how
        for each in changed | gone:
            (run / each).parent.mkdir(parents=True, exist_ok=True)
            (run / each).write_bytes(whole[each])


def change_a_digit(metrics):
    text = metrics.read_text()
    auc = re.search(r'"auc": 0\.(\d)', text)
    assert auc is not None
    metrics.write_text(text[: auc.start(1)] + ("1" if auc[1] != "1" else "2") + text[auc.end(1) :])


def assert_close(value, expected, where=""):
    """Documents that are equal up to rounding of the signals that their figures are of."""
    if isinstance(expected, dict):
        assert value.keys() == expected.keys(), where
        for name in expected:
            assert_close(value[name], expected[name], f"{where}.{name}")
    elif isinstance(expected, list):
        assert len(value) == len(expected), where
        for one, other in zip(value, expected, strict=True):
            assert_close(one, other, where)
    elif isinstance(expected, float):
        assert value == pytest.approx(expected, rel=1e-3, abs=1e-3), where
    else:
        assert value == expected, where


def test_the_next_run_trains_what_is_broken_and_nothing_else(run, finished, capsys):
    before = contents(run)
    damage(run / "arrays/phi/c/1/0/0", "flipped")
    damage(run / "arrays/entropy/c/2/0/0", "deleted")
    damage(run / "arrays/done/c/5", "emptied")
    damage(run / "arrays/keep/c/6/0", "truncated")
    damage(run / "arrays/labels/c/0", "flipped")
    damage(run / "arrays/phi/zarr.json", "truncated")
    damage(run / "scores/global_threshold/c/0/0", "deleted")
    damage(run / "attacks.png", "deleted")
    change_a_digit(run / "metrics.json")
    assert main(["verify", str(run), "--deep"]) == 1
    said = capsys.readouterr().out
    for place in ("arrays/phi/zarr.json", "arrays/keep/c/6/0", "arrays/labels/c/0", "arrays/done/c/5"):
        assert re.search(f"^broken +{place} ", said, re.MULTILINE), place
    stamps = {place: (run / place).stat().st_mtime_ns for place in before if (run / place).exists()}

    assert again(run) == 0
    said = capsys.readouterr().out
    for model in (1, 2, 5):
        assert f"model {model} is trained again" in said
    assert "arrays/phi/c/1/0/0 is damaged: Digest mismatch" in said
    assert (run / "broken/arrays/phi/c/1/0/0").exists()
    assert (run / "broken/metrics.json").exists()
    after = contents(run)
    assert after.keys() == before.keys()
    for place in before:
        model = re.match(r"arrays/(?!keep|labels)\w+/c/(\d+)", place)
        if model and model[1] in "125":
            continue
        if model:
            assert (run / place).stat().st_mtime_ns == stamps[place], place
        if place.startswith("arrays"):
            assert after[place] == before[place], place
    opened, whole = lira.Run.open(run), lira.Run.open(finished)
    np.testing.assert_allclose(opened.phi, whole.phi, rtol=1e-4, atol=1e-5)
    assert_close(figures_of(run / "metrics.json"), figures_of(finished / "metrics.json"))
    assert main(["verify", str(run), "--deep"]) == 0
    assert again(run) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.pictures
def test_the_next_run_makes_again_what_is_derived(run, capsys):
    assert main(["report", str(run)]) == 0  # with its pictures
    before = contents(run)
    damage(run / "scores/global_threshold/c/0/0", "flipped")
    damage(run / "attacks.png", "deleted")
    damage(run / "records.csv", "deleted")
    change_a_digit(run / "metrics.json")
    assert again(run) == 0
    said = capsys.readouterr().out
    assert "all 8 models are trained; nothing to train" in said
    assert "scores/global_threshold is damaged" in said
    assert contents(run) == before


@pytest.mark.parametrize("place", ["config.toml", "provenance.json"])
@pytest.mark.parametrize("how", DAMAGES)
def test_what_says_how_a_run_was_made_is_named_and_not_guessed(run, capsys, place, how):
    config = run.parent / "own.toml"
    shutil.copy(run / "config.toml", config)
    damage(run / place, how)
    assert main(["verify", str(run)]) == 1
    assert f"broken     {place}" in capsys.readouterr().out
    assert again(run, config) == 2
    assert place in capsys.readouterr().err


def test_signals_that_are_whole_and_of_another_model_are_seen_by_their_scores(run):
    shutil.copy(run / "arrays/phi/c/0/0/0", run / "arrays/phi/c/1/0/0")
    assert {each.place for each in broken(run)} == {f"scores/{name}" for name in FEW}
    assert "was computed of other signals" in broken(run)[0].what


def test_a_report_of_other_scores_is_stale_and_rewritten(run, dataset, capsys):
    page, opened = (run / "report.html").read_text(), lira.Run.open(run)
    scores = opened.scores("global_threshold")
    assert scores is not None
    opened.write_scores("global_threshold", scores + 1, opened.fingerprint())
    found = {(each.place, each.what) for each in broken(run)}
    of_others = "is of other values than scores/global_threshold holds"
    assert found == {(name, of_others) for name in ("metrics.json", "records.json")}
    assert again(run) == 0
    assert "metrics.json is of other values" in capsys.readouterr().out
    assert not broken(run, deep=True)
    stamp = r"fingerprint ([0-9a-f]{12})"
    assert re.findall(stamp, page) != re.findall(stamp, (run / "report.html").read_text())


def test_a_model_that_is_not_what_its_number_gives(run, dataset):
    """Nothing but training it again can tell, where scores and report are gone."""
    opened = lira.Run.open(run)
    opened.arrays.open("phi")[0].write(np.asarray(opened.phi)[3]).result()
    shutil.rmtree(run / "scores")
    for name in ("metrics.json", "report.html", "records.json", "records.csv"):
        (run / name).unlink()
    assert not broken(run, deep=True)
    assert not lira.verify(run, dataset, deep=True, model=3)
    found = lira.verify(run, dataset, deep=True)
    assert [(each.status, each.place, each.model) for each in found] == [("broken", "arrays/phi/c/0", 0)]
    assert [each.status for each in lira.verify(run, deep=True)] == ["unchecked"]
    # Elsewhere such a difference is no proof.
    provenance = opened.provenance
    other = dataclasses.replace(
        opened, provenance={**provenance, "versions": {**provenance["versions"], "jax": "0.1"}}
    )
    other.add_session({"models": 0, "seconds": 0.0, "device": "another", "learning_seconds": 0.0})
    with pytest.warns(UncheckedWarning, match=r"jax 0\.1 there"):
        found = lira.verify(run, dataset, deep=True)
    assert [each.status for each in found] == ["unchecked"]
    assert "jax 0.1 then" in found[0].what
    assert "another" in found[0].what


def test_nan_and_memberships_of_another_seed_are_found_by_reading(run, dataset):
    opened = lira.Run.open(run)
    phi, keep = opened.arrays.open("phi"), opened.arrays.open("keep")
    phi[2, 7].write(np.nan).result()
    keep[4].write(opened.keep[5]).result()
    found = {each.place: each.what for each in broken(run, deep=True) if each.place.startswith("arrays")}
    assert found == {
        "arrays/phi/c/2/0/0": "holds NaN or infinity",
        "arrays/keep/c/4": "is not what its seed gives",
    }
    mend(run, dataset)
    np.testing.assert_array_equal(opened.memberships(np.arange(8)), lira.keep_mask(0, 8, 60))
    assert opened.done[2] == 0


def test_a_runs_configuration_is_not_taken_for_another_run_where_it_is_damaged(run, tmp_path, capsys):
    file = run / "config.toml"
    text = file.read_text()
    file.write_text(text.replace("learning_rate = 0.1", "learning_rate = 0.3"))
    assert main(["run", str(file), "--run-dir", str(tmp_path / "other")]) == 2
    assert "not as it was written, by the checksum in its first line" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    file.write_text(text.partition("\n")[2].replace("learning_rate = 0.1", "learning_rate = 0.3"))
    assert main(["plan", str(file)]) == 0


def test_train_mends_before_it_trains(run, capsys):
    before = np.asarray(lira.Run.open(run).phi)
    damage(run / "arrays/phi/c/1/0/0", "flipped")
    assert main(["train", str(run)]) == 0
    assert "arrays/phi/c/1/0/0" in capsys.readouterr().out
    np.testing.assert_allclose(lira.Run.open(run).phi, before, atol=1e-3)
    assert not [each for each in broken(run, deep=True) if each.place.startswith("arrays")]


def test_other_data_is_refused_by_all_that_read_it(run, dataset):
    order = np.random.default_rng(1).permutation(dataset.num_examples)
    other = dataclasses.replace(dataset, x=dataset.x[order], y=dataset.y[order])
    opened = lira.Run.open(run)
    for verb in (lira.score, lira.report, lira.records, lira.train):
        with pytest.raises(RunError, match=r"is a run of other data"):
            verb(opened, other)
    with pytest.raises(RunError, match=r"is a run of other data"):
        lira.mend(run, other)


@pytest.mark.parametrize(
    "verb",
    ["train", "score", "report", "records", "check", "enough", "compare", "imitate --target 0", "verify"],
)
def test_an_edited_configuration_is_refused_by_every_verb(run, capsys, verb):
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("learning_rate = 0.1", "learning_rate = 0.3"))
    name, *rest = verb.split()
    assert main([name, str(run), *rest]) == (1 if name == "verify" else 2)
    said = capsys.readouterr()
    assert "recipe.learning_rate is 0.1 there and 0.3 here" in said.out + said.err


def test_one_of_many_processes_looks_at_its_own_models(run, dataset):
    damage(run / "arrays/phi/c/1/0/0", "flipped")
    damage(run / "arrays/phi/c/6/0/0", "flipped")
    assert len(mend(run, dataset, among=np.arange(4, 8))) == 1
    assert lira.Run.open(run).done.tolist() == [1, 1, 1, 1, 1, 1, 0, 1]
