import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lira
from lira.attacks import UnfitPoolError
from lira.attacks.imitation import imia_nonadaptive
from lira.cli import main
from lira.learning.imitation import pivots_of
from lira.membership import imitator_mask, keep_mask
from lira.reporting import imitation
from lira.store.errors import RunError
from lira.store.run import Run
from lira.store.zarr import open_array

N = 900
RECIPE = lira.Recipe(epochs=8, batch_size=25, learning_rate=0.1)
SETTING = lira.Execution(width=8, workers=1)


@pytest.fixture(autouse=True, scope="module")
def _few_attacks_are_enough():
    with pytest.MonkeyPatch.context() as patch:
        few = {name: imitation.LIRA[name] for name in ("lira_online_fixed", "lira_offline_fixed")}
        patch.setattr(imitation, "LIRA", few)
        yield


def data():
    """Noise whose labels only memory knows."""
    rng = np.random.default_rng(0)
    return lira.Dataset.from_arrays(rng.normal(size=(N, 30)), np.arange(N) % 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    dataset = data()
    place = tmp_path_factory.mktemp("imitation")
    np.savez(place / "data.npz", x=dataset.x, y=dataset.y)
    dataset = lira.load_dataset(f"npz:{place / 'data.npz'}")
    made = lira.Run.create(
        place / "run", dataset, RECIPE, num_models=14, signals=("logits",), execution=SETTING
    )
    lira.train(made, dataset, show_progress=False)
    return made


def auc(scores, member):
    """By counting pairs."""
    inside, outside = scores[member], scores[~member]
    above = (inside[:, None] > outside).mean() + 0.5 * (inside[:, None] == outside).mean()
    return above, np.sqrt((len(scores) + 1) / (12 * len(inside) * len(outside)))


@pytest.fixture(scope="module")
def found(run):
    return lira.imitate(run, data(), target=5, num_imitators=4, show_progress=False)


def test_a_target_is_found_out_beside_lira(run, found):
    """Every attack, on a target that knows its members by heart; the scores are those of the arrays that are stored."""
    names = {"imia", "glira_kl", "glira_kl_fixed", "attack_d"}
    lira_names = {f"lira_{side}_fixed_of_{count}" for side in ("online", "offline") for count in (4, 12)}
    assert set(found.scores) == set(found.evaluation.attacks) == names | lira_names
    np.testing.assert_array_equal(found.member, run.memberships([5])[0])
    for name, scores in found.scores.items():
        area, error = auc(scores, found.member)
        assert area > 0.5 + 4.5 * error, name
        np.testing.assert_allclose(found.evaluation.attacks[name].auc.value, area, rtol=1e-6)
    away, theirs = found.distances["imia"], found.distances["shadows"]
    assert away is not None
    assert theirs is not None
    assert away < theirs
    phi, others = np.asarray(run.phi)[5, :, 0].astype(float), [0, 1, 2, 3, 6, 7, 8, 9]
    imitators = Run.open(found.path / "imia")
    theirs, keep, held = np.asarray(imitators.phi)[:, :, 0], imitators.keep, run.memberships(others)
    outside = np.array([theirs[~keep[:, n], n].mean() for n in range(N)])
    inside = np.array([np.asarray(run.phi)[others, n, 0][held[:, n]].mean() for n in range(N)])
    expected = (phi - outside) ** 2 - (phi - inside) ** 2
    np.testing.assert_allclose(found.scores["imia"], expected, rtol=1e-3, atol=1e-3)
    document = json.loads((found.path / "metrics.json").read_text())
    assert document["consulted"]["imia"] == {"imitators": 4, "shadows": 8}
    assert document["attacks"]["imia"]["auc"] == found.evaluation.attacks["imia"].auc.value


def test_what_is_there_is_not_made_again_and_nothing_else_is_taken_for_it(run, found):
    times = {
        path: path.stat().st_mtime_ns for path in (found.path / "imia/arrays").rglob("*") if path.is_file()
    }
    again = lira.imitate(run, data(), target=5, num_imitators=4, show_progress=False)
    for name, scores in again.scores.items():
        np.testing.assert_array_equal(scores, found.scores[name])
    assert times == {path: path.stat().st_mtime_ns for path in times}
    refused: list[tuple[dict[str, Any], str]] = [
        ({"target": 5, "num_imitators": 6}, "num_imitators is 4 there and 6 here; name another directory"),
        ({"target": 5, "seed": 1}, "seed is 0 there and 1 here"),
        ({"target": 4, "out": found.path}, "target is 'target_5' there and 'target_4' here"),
        (
            {"target": 5, "methods": {"imia": lira.Imitation(weight=2.0)}},
            "methods.imia.weight is 5.0 there and 2.0 here",
        ),
    ]
    for options, message in refused:
        with pytest.raises(RunError, match=message):
            lira.imitate(run, data(), **{"num_imitators": 4, **options}, show_progress=False)


def test_what_is_broken_is_named_and_made_again(run, found):
    assert not lira.verify(run, data(), deep=True)
    place, phi = found.path / "imia/arrays/phi/c/2/0/0", np.asarray(Run.open(found.path / "imia").phi)
    place.write_bytes(place.read_bytes()[:-9])
    inside = found.path.relative_to(run.path)
    assert [each.place for each in lira.verify(run)] == [f"{inside}/imia/arrays/phi/c/2/0/0"]
    assert [each.place for each in lira.verify(found.path)] == ["imia/arrays/phi/c/2/0/0"]
    with pytest.warns(UserWarning, match=r"imia/arrays/phi/c/2/0/0 is not of .* model 2 is trained again"):
        again = lira.imitate(run, data(), target=5, num_imitators=4, show_progress=False)
    np.testing.assert_allclose(Run.open(found.path / "imia").phi, phi, atol=1e-3)
    for name, figures in again.evaluation.attacks.items():
        assert figures.auc.value == pytest.approx(found.evaluation.attacks[name].auc.value, abs=1e-3), name
    assert not lira.verify(run)
    table = found.path / "imitation.toml"
    text = table.read_text()
    table.write_text(text.replace("seed = 0", "seed = 1"))
    assert [(each.place, each.status) for each in lira.verify(run)] == [
        (f"{inside}/imitation.toml", "broken")
    ]
    with pytest.raises(RunError, match=r"imitation.toml: it is not as it was written"):
        lira.imitate(run, data(), target=5, num_imitators=4, show_progress=False)
    table.write_text(text)


@pytest.mark.parametrize("what", ["logits/c/0/0", "phi/zarr.json", "member/c/0/0", "."])
def test_a_target_is_asked_again_from_its_number(run, found, tmp_path, what):
    place = tmp_path / "run/imitations/target_5"
    shutil.copytree(run.path, tmp_path / "run")
    answers = {
        name: np.array(open_array(place / "target" / name).read().result())
        for name in ("logits", "phi", "member")
    }
    if what == ".":
        shutil.rmtree(place / "target")
    else:
        (place / "target" / what).write_bytes((place / "target" / what).read_bytes()[:-1])
    assert any(each.place.startswith("target") for each in lira.verify(place))
    (said,) = lira.mend(place, data())
    assert said.startswith("target is damaged or missing: ")
    assert not lira.verify(place, data(), deep=True)
    for name, before in answers.items():
        np.testing.assert_allclose(open_array(place / "target" / name).read().result(), before, atol=1e-3)


def test_an_imitation_elsewhere_knows_its_run(run, found, tmp_path):
    place = Path(shutil.copytree(found.path, tmp_path / "out"))  # as it was before it had a line for that
    shutil.rmtree(place / "target")
    with pytest.raises(RunError, match="whom it is of is known to lira imitate alone"):
        lira.mend(place, data())
    shutil.copytree(found.path / "target", place / "target")
    for of in (run, Run.open(shutil.copytree(run.path, tmp_path / "moved"))):
        lira.imitate(of, data(), target=5, num_imitators=4, out=place, show_progress=False)
        assert f'run = "{of.path}"' in (place / "imitation.toml").read_text()
    shutil.rmtree(place / "target")
    (said,) = lira.mend(place, data())
    assert said == "target is damaged or missing: asked again"
    assert not lira.verify(place, data(), deep=True)


def test_a_target_that_knows_nothing_is_no_better_than_chance(run, tmp_path, capsys):
    """By the command: a model whose logits are noise, and members drawn by a coin."""
    rng = np.random.default_rng(3)
    member = rng.random(N) < 0.5
    np.save(tmp_path / "logits.npy", rng.normal(0, 2, (N, 3)).astype(np.float32))
    np.save(tmp_path / "member.npy", member)
    command = ["imitate", str(run.path), "--logits", str(tmp_path / "logits.npy"), "--member"]
    command += [str(tmp_path / "member.npy"), "--num-imitators", "4", "--out", str(tmp_path / "out")]
    assert main([*command, "--methods", "imia"]) == 0
    said = capsys.readouterr().out
    assert "imia" in said
    assert "lira_online_fixed_of_4" in said
    document = json.loads((tmp_path / "out/metrics.json").read_text())
    for name, figures in document["attacks"].items():
        _, error = auc(np.zeros(N), member)
        assert abs(figures["auc"] - 0.5) < 4.5 * error, name
    assert main([*command, "--methods", "glira_kl", "--weight", "2"]) == 2
    assert "--weight is of imia, which is not among the methods" in capsys.readouterr().err
    assert main([*command, "--methods", "imis"]) == 2
    assert "methods must be among imia, imia_pivots, glira_mse, glira_kl; got imis" in capsys.readouterr().err


def test_memberships_of_imitators_know_nothing_of_a_target():
    """Fair coins in pairs, whose correlation with a run's, whatever the seeds, is that of independent ones."""
    size = 20_000
    for seed in (0, 1):
        keep = keep_mask(seed, 6, size)
        for target in (0, 1):
            mask = imitator_mask(seed, target, 6, size)
            np.testing.assert_array_equal(mask[1::2], ~mask[::2])
            np.testing.assert_array_equal(imitator_mask(seed, target, 4, size), mask[:4])
            signs, theirs = 2.0 * mask[::2] - 1, 2.0 * keep[::2] - 1
            others = 2.0 * imitator_mask(seed, 1 - target, 6, size)[::2] - 1
            assert np.abs(signs.mean(axis=1)).max() < 4.5 / np.sqrt(size)
            for each in (theirs, others, signs - np.roll(signs, 1, axis=1)):
                products = np.abs(signs @ each.T / size)
                np.fill_diagonal(products, 0) if each is not theirs and each is not others else None
                assert products.max() < 6 / np.sqrt(size)
    with pytest.raises(ValueError, match="num_models must be even"):
        imitator_mask(0, 0, 3, size)


def test_what_cannot_be_attacked_is_refused_with_nothing_written(run, tmp_path):
    logits = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
    member = np.arange(N) % 2 == 0
    refused: list[tuple[dict[str, Any], str]] = [
        ({}, "give either target, a model of the run, or logits and member"),
        ({"target": 1, "member": member}, "give either target"),
        ({"logits": logits}, "give either target"),
        ({"target": 14}, "target must be a model of .*, 0 to 13; got 14"),
        ({"target": -1}, "got -1"),
        ({"logits": logits, "member": member[:-1]}, r"member must be \[900\], true or false"),
        ({"logits": logits, "member": member * 2}, r"member must be \[900\]"),
        ({"logits": logits, "member": member | True}, "member is the same everywhere"),
        ({"target": 1, "num_imitators": 5}, "num_models must be even"),
        ({"target": 1, "methods": ()}, "got none"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            lira.imitate(run, data(), **options, out=tmp_path / "out", show_progress=False)
    with pytest.raises(UnfitPoolError, match=r"model 4 of .* gives member away"):
        lira.imitate(
            run, data(), logits=logits, member=run.keep[4], out=tmp_path / "out", show_progress=False
        )
    assert not (tmp_path / "out").exists()


def test_a_target_whose_pair_is_all_that_there_is_is_refused(tmp_path):
    few = lira.Run.create(tmp_path / "run", data(), RECIPE, num_models=4, execution=SETTING)
    with pytest.raises(RunError, match="model 0 cannot be attacked: it or its mate is not trained yet"):
        lira.imitate(few, data(), target=0)
    rows = {"phi": np.zeros((N, 1), np.float32)}
    for model in (0, 1):
        few.write_model(model, rows, diverged=False)
    with pytest.raises(RunError, match="has no models but the target's pair"):
        lira.imitate(few, data(), target=0)


def test_the_nonadaptive_form_goes_by_models_that_were_trained_further_on_pivots(run, found, capsys):
    """By the command, into the directory of the other form, whose imitators serve both."""
    command = ["imitate", str(run.path), "--target", "5", "--num-imitators", "4", "--methods"]
    assert main([*command, "imia", "imia_pivots"]) == 0
    assert "imia_nonadaptive" in capsys.readouterr().out
    document = json.loads((found.path / "metrics.json").read_text())
    assert document["consulted"]["imia_nonadaptive"] == {"imitators": 8}
    scores = np.asarray(open_array(found.path / "scores/imia_nonadaptive").read().result())[0]
    area, error = auc(scores, found.member)
    assert document["attacks"]["imia_nonadaptive"]["auc"] == pytest.approx(area, rel=1e-6)
    assert area > 0.5 + 4.5 * error
    stored = [Run.open(found.path / name) for name in ("imia", "imia_pivots")]
    assert (stored[0].keep == stored[1].keep).all()
    phi, labels = np.asarray(run.phi)[5], data().y
    out, further = (np.asarray(each.phi) for each in stored)
    keep, pivots = stored[0].keep, pivots_of(phi[:, 0], labels)
    expected = imia_nonadaptive(phi, out, keep, further, keep, pivots, labels)
    np.testing.assert_array_equal(scores, expected)
    assert not lira.verify(found.path, data(), deep=True)
    assert main([*command, "imia_pivots"]) == 2
    assert "whose OUT models are imia's: name imia too" in capsys.readouterr().err
