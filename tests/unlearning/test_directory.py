"""What an unlearning's directory takes and refuses: other configurations, other data, runs that are there."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from unlearned_runs import RECIPE, K, M, N, configured, dataset, finished

from lira.engine.fill import train
from lira.membership import keep_mask
from lira.store.config import Config, ConfigError, Execution
from lira.store.errors import RunError
from lira.store.imported import run_of_models
from lira.store.run import Run
from lira.unlearning.config import Forget, UnlearnConfig, read_unlearning, resolved
from lira.unlearning.directory import Unlearning, measurements
from lira.unlearning.protocol import unlearn


def test_finished_directory_is_not_touched_and_takes_more_methods(done, tmp_path):
    small = finished(tmp_path / "u", methods=("none",))
    files = {
        p: p.stat().st_mtime_ns for p in Path(small.path).rglob("*") if p.is_file() and p.name != ".lock"
    }
    more = finished(tmp_path / "u", methods=("none", "unlearned_runs.nudge"))
    now = {p: p.stat().st_mtime_ns for p in Path(more.path).rglob("*") if p.is_file() and p.name != ".lock"}
    assert [p for p in files if now[p] != files[p]] == [more.path / "config.toml"]
    np.testing.assert_allclose(
        measurements(more, "unlearned_runs.nudge", 1).after,
        measurements(done, "unlearned_runs.nudge", 1).after,
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": dataclasses.replace(RECIPE, epochs=3)}, "recipe.epochs is 2 there and 3 here"),
        ({"forget": Forget(size=7, requests=K)}, "forget.size is 6 there and 7 here"),
        ({"num_models": 6}, "num_models is 4 there and 6 here"),
        (
            {"method": {"unlearned_runs.nudge": {"by": 2.0}}},
            "nudge has by = 1.0 there and by = 2.0 here",
        ),
    ],
)
def test_another_unlearning_in_the_same_place_is_refused_by_name(done, changes, message):
    with pytest.raises(RunError, match=message):
        Unlearning.create(done.path, dataset(), configured(**changes))


def test_requests_are_of_the_data_that_they_were_drawn_from(done, tmp_path):
    """Also where it was killed before its first run was made, or all is done."""
    begun = Unlearning.create(tmp_path / "u", dataset(), configured())
    permuted = dataclasses.replace(dataset(), x=dataset().x[::-1].copy())
    for place in (begun.path, done.path):
        with pytest.raises(RunError, match="is an unlearning of other data: its requests were drawn from"):
            Unlearning.create(place, permuted, configured())
    assert Unlearning.create(begun.path, dataset(), configured()).config == begun.config


def test_run_that_is_there_is_taken_as_it_is(done, tmp_path):
    config = resolved(UnlearnConfig.of_run(done.path / "before", methods=("none",), forget=Forget(size=6)))
    assert (config.pool.recipe, config.pool.num_models, config.pool.dataset) == (RECIPE, M, "memory")
    unlearning = Unlearning.create(tmp_path / "u", dataset(), config)
    unlearn(unlearning, dataset(), show_progress=False)
    assert not (unlearning.path / "before").exists()
    np.testing.assert_allclose(
        measurements(unlearning, "none", 0).after, np.asarray(done.before.phi), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(
        ConfigError, match=r"decides these, so leave them out: recipe.epochs is 2 there and 50 here"
    ):
        resolved(with_pool(config, recipe=dataclasses.replace(RECIPE, epochs=50)))
    with pytest.raises(ConfigError, match=r"num_models is 4 there and 8 here"):
        resolved(with_pool(config, num_models=8))
    with pytest.raises(RunError, match=r"is a run of other data"):
        Unlearning.create(tmp_path / "v", dataset(test=False), config)


def with_pool(config, **changes):
    return dataclasses.replace(config, pool=dataclasses.replace(config.pool, **changes))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("num_models = 256", "num_models is 4 there and 256 here"),  # the default, but said
        ("[recipe]\nepochs = 50", "recipe.epochs is 2 there and 50 here"),
        ("[queries]\nmirror = true", "queries.mirror is False there and True here"),
        ("num_models = 4", None),
        ("[execution]\nworkers = 1", None),
        ("[recipe]\nepochs = 2", None),
    ],
)
@pytest.mark.parametrize("by_flag", [False, True])
def test_what_is_said_beside_a_run_is_told_from_a_default(done, tmp_path, line, message, by_flag):
    before = done.path / "before"
    text = "" if by_flag else f'run = "{before}"\n'
    (tmp_path / "c.toml").write_text(f"{text}{line}\n[forget]\nsize = 6\n")
    config = read_unlearning(tmp_path / "c.toml", str(before) if by_flag else "")
    if message is None:
        assert resolved(config).pool.recipe == RECIPE
    else:
        with pytest.raises(ConfigError, match=f"decides these, so leave them out: {message}$"):
            resolved(config)


def test_runs_that_cannot_be_unlearned_are_refused(tmp_path):
    run = Run.create(tmp_path / "bare", dataset(), RECIPE, num_models=M)
    with pytest.raises(RunError, match=r"bare: saved no parameters, .*: train a run with save_params = true"):
        UnlearnConfig.of_run(run.path)
    run = Run.create(tmp_path / "begun", dataset(), RECIPE, num_models=M, save_params=True)
    with pytest.raises(RunError, match=r"begun: lacks 4 models: finish it first"):
        UnlearnConfig.of_run(run.path)
    run_of_models(
        tmp_path / "other",
        keep_mask(0, M, N),
        dataset().y,
        [
            {
                "phi": np.zeros((N, 1), np.float32),
                **dict.fromkeys(("accuracy_in", "accuracy_out", "accuracy_test"), np.float32(0)),
            }
        ]
        * M,
        source={"path": "x"},
    )
    with pytest.raises(RunError, match=r"other: was imported and has no recipe"):
        UnlearnConfig.of_run(tmp_path / "other")


def test_run_of_given_memberships_holds_them_and_does_not_grow(tmp_path):
    keep = np.random.default_rng(0).random((M, N)) < 0.3
    config = Config(dataset="memory", num_models=M, recipe=RECIPE, execution=Execution(width=2, workers=1))
    made = Run.from_config(tmp_path / "run", dataset(), config, keep=keep)
    assert not made.independent, "memberships that were given are of any design"
    train(made, dataset(), show_progress=False)
    np.testing.assert_array_equal(made.keep, keep)
    correct = np.asarray(made.signal("correct"), bool)
    np.testing.assert_allclose(
        made.accuracy("in"), (correct & keep).sum(axis=1) / keep.sum(axis=1), rtol=1e-6
    )
    assert (Run.from_config(made.path, dataset(), config, keep=keep).done == 1).all()
    for other in (None, ~keep):
        with pytest.raises(RunError, match=r"is a run of other memberships"):
            Run.from_config(made.path, dataset(), config, keep=other)
    more = dataclasses.replace(config, num_models=2 * M)
    with pytest.raises(RunError, match=r"is a run of other memberships"):
        Run.from_config(made.path, dataset(), more, keep=np.tile(keep, (2, 1)))
    with pytest.raises(ValueError, match=r"keep must be \[num_models, N\], here \[8, 60\]; got \[4, 60\]"):
        Run.from_config(tmp_path / "new", dataset(), more, keep=keep)
