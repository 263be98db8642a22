"""Runs of other code, imported and exported by command."""

import json
import re
import warnings

import numpy as np
import pytest
from command_line import config, run

from lira.store.run import Run

__all__ = ["config"]

pytestmark = pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")


def test_runs_of_other_code_come_and_go(tmp_path, config, capsys):
    place = tmp_path / "run"
    assert run("run", config, "--run-dir", place, "--recipe.epochs", 30) == 0
    assert run("export", "carlini", place, tmp_path / "carlini") == 0
    assert "8 models; no x_train.npy" in capsys.readouterr().out
    assert run("import", "carlini", tmp_path / "carlini", tmp_path / "back", "--independent") == 0
    assert "8 models, 100 examples, 1 queries; next: lira report" in capsys.readouterr().out
    assert run("report", tmp_path / "back") == 0
    theirs, ours = (
        json.loads((each / "metrics.json").read_text())["attacks"] for each in (tmp_path / "back", place)
    )
    # The export has no entropies and no images, which those that are not there read, and the shadow classifiers where
    # they can.
    assert set(ours) - set(theirs) == {
        *("entropy_threshold", "modified_entropy_threshold", "pmia_neighbours_fixed")
    }
    same = [name for name in theirs if not name.startswith("shadow")]
    assert {name: theirs[name] for name in same} == {name: ours[name] for name in same}
    page = (tmp_path / "back/report.html").read_text()
    assert "scores/0000000030.npy (carlini)" in page
    assert "is not known of imported models" in page
    assert "<dt>memberships drawn by independent coins</dt><dd>declared</dd>" in page
    capsys.readouterr()
    assert run("train", tmp_path / "back") == 2
    assert re.fullmatch(
        r"lira: error: .*has no recipe: it can be scored and reported, .*\n", capsys.readouterr().err
    )
    assert run("run", config, "--run-dir", tmp_path / "back") == 2
    assert "was imported from" in capsys.readouterr().err
    assert run("check", tmp_path / "back") == 0


def test_labels_come_from_a_file_where_a_layout_has_none(tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels, keep = np.arange(60) % 3, np.argsort(rng.uniform(size=(6, 60)), axis=0) < 3
    for m in range(6):
        (tmp_path / f"port/{m}").mkdir(parents=True)
        logits = rng.normal(size=(60, 1, 3)) + 3 * (labels[:, None, None] == np.arange(3)) * (
            1 + keep[m, :, None, None]
        )
        np.save(tmp_path / f"port/{m}/logits.npy", logits)
        np.save(tmp_path / f"port/{m}/keep.npy", keep[m])
    (tmp_path / "labels.csv").write_text("\n".join(map(str, labels)))
    arguments = ["import", "pytorch", tmp_path / "port", tmp_path / "run"]
    assert run(*arguments) == 2
    assert "logits need labels" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert run(*arguments, "--labels", tmp_path / "labels.csv") == 0
    np.testing.assert_array_equal(Run.open(tmp_path / "run").labels, labels)


def test_bad_import_export_and_check_are_one_line_and_status_2(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments, message in [
        (["import", "karlini", tmp_path, tmp_path / "run"], "invalid choice: 'karlini'"),
        (["import", "carlini", tmp_path / "absent", tmp_path / "run"], "absent: is not a directory"),
        (["import", "carlini", tmp_path, tmp_path / "run"], "holds no directory experiment-{i}_{n}"),
        (
            ["import", "privacy-meter", tmp_path, tmp_path / "run"],
            "models/memberships.npy: there is no such file",
        ),
        (["import", "carlini", tmp_path], "required: RUN"),
        (["export", "carlini", tmp_path / "empty", tmp_path / "out"], "is not a run directory"),
        (["export", "pytorch", tmp_path, tmp_path / "out"], "invalid choice: 'pytorch'"),
        (["check", tmp_path / "empty"], "is not a run directory"),
        (["check", tmp_path, "--fast"], "unknown argument '--fast'"),
        (["report", tmp_path, "--fast"], "unknown argument '--fast'"),
    ]:
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert re.fullmatch(r"lira: error: .*\n", error)
        assert message in error
    assert [each.name for each in tmp_path.iterdir()] == ["empty"]


def test_data_given_in_memory_is_named(tmp_path, capsys):
    import lira

    rng = np.random.default_rng(0)
    data = lira.Dataset.from_arrays(rng.normal(size=(60, 4)), np.arange(60) % 2)
    made = lira.Run.create(tmp_path / "run", data, lira.Recipe(epochs=1, batch_size=10), num_models=4)
    assert run("train", made.path) == 2
    assert "Run.open" in capsys.readouterr().err
    lira.train(lira.Run.open(made.path, dataset=data), data, show_progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run("report", made.path, "--attacks", "lira_online_fixed", "global_threshold") == 0
