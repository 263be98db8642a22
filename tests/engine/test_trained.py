"""The checks of what training gave, and the one that a run of the old evaluation fails."""

import dataclasses
import json
import re
import shutil
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tomli_w
from jax.flatten_util import ravel_pytree

import lira
from lira import cli
from lira.attacks.suite import select_attacks
from lira.data.dataset import Dataset
from lira.engine import fill, programs
from lira.engine.accuracies import published_accuracy
from lira.engine.fill import FirstModelsWarning, train
from lira.engine.plan import plan
from lira.engine.trained import (
    check_accuracy,
    check_averaging,
    check_evaluation,
    check_losses,
    check_trained,
    check_training,
)
from lira.learning.augment import Queries
from lira.learning.convolution import Lowering
from lira.learning.evaluation import query
from lira.learning.recipe import Recipe
from lira.reporting import checks
from lira.scoring import score
from lira.store.config import Config, Execution, as_dict
from lira.store.errors import OutdatedWarning, RunError
from lira.store.run import Run

PAPER = Recipe(
    model="wrn-28-2", epochs=100, batch_size=256, schedule="cos7pi16", warmup=0.01, weight_decay=5e-4, ema=0.999,
    flip=True, crop_pad=4,
)  # fmt: skip
FEW = ("lira_online_fixed", "global_threshold")
SHORT = Recipe(model="tests.engine.test_trained.Normed", epochs=2, batch_size=10, ema=0.9)

pytestmark = pytest.mark.filterwarnings("ignore:.* is left out", "ignore::lira.attacks.FewModelsWarning")


class Normed(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3), strides=2)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


def images(n=40):
    rng = np.random.default_rng(0)
    y = np.arange(n, dtype=np.int32) % 2
    x = (rng.integers(0, 100, (n, 8, 8, 1)) + 120 * y[:, None, None, None]).astype(np.uint8)
    return Dataset(x=x, y=y, num_classes=2, name="memory", x_test=x[:10] + 1, y_test=y[:10])


def made(path, recipe=SHORT, models=4, **options):
    return Run.create(path, images(), recipe, num_models=models, execution=Execution(width=2), **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = made(tmp_path_factory.mktemp("runs") / "run")
    train(run, images(), show_progress=False)
    return run


def of_earlier_version(provenance):
    known = json.loads(json.dumps(provenance))
    return {name: value for name, value in known.items() if name not in ("checksums", "configuration")}


def copied(run, path, provenance=lambda p: p, config=lambda c: c):
    """A copy of a run with another provenance or configuration, as earlier versions wrote them: without checksums."""
    shutil.copytree(run.path, path)
    (path / "provenance.json").write_text(json.dumps(provenance(of_earlier_version(run.provenance))))
    (path / "config.toml").write_text(tomli_w.dumps(as_dict(config(run.config))))
    return path


def outdated(provenance):
    return {name: value for name, value in provenance.items() if name != "evaluation"}


# --- One check each ---------------------------------------------------------------------------------------------------


def test_training_accuracy():
    labels = np.arange(1000) % 10
    for inside, status in [(0.1, "fail"), (0.11, "fail"), (0.6, "warn"), (0.99, "ok")]:
        assert check_training(np.full(4, inside), np.full(4, 0.1), labels, len(labels) / 2).status == status
    # A good model of a rare class, and of five examples, may do no better than the most common class.
    for few in (np.arange(1000) % 20 == 0, np.arange(10) % 3 == 0):
        found = check_training(np.full(4, 0.8), np.full(4, 0.8), few.astype(int), len(few) / 2)
        assert found.status == "warn"
        assert "see by other figures than accuracy" in found.sentence


@pytest.mark.parametrize(
    ("in_out_test", "status"),
    [
        ((0.95, 0.81, 0.80), "fail"),  # measured on a GPU under the old evaluation
        ((1.00, 0.91, 0.91), "ok"),
        ((1.00, 0.915, 0.92), "ok"),  # averaging helps
        ((0.995, 0.905, 0.905), "ok"),  # less than anybody minds
        ((1.00, 0.91, 0.88), "fail"),
    ],
)
def test_evaluated_models_against_those_that_were_trained(in_out_test, status):
    answered = np.repeat(np.array(in_out_test)[:, None], 2, axis=1)
    raw = np.repeat(np.array([[1.0], [0.91], [0.91]]), 2, axis=1)
    found = check_evaluation(answered, raw, np.array([25_000, 25_000, 10_000]))
    assert found.status == status, found


def test_a_difference_within_its_error_is_no_fault():
    """Two points of 20 test images are one image."""
    answered, raw = np.array([[1.0], [0.85]]), np.array([[1.0], [0.90]])
    assert check_evaluation(answered, raw, np.array([20, 20])).status == "ok"
    assert check_evaluation(answered, raw, np.array([20_000, 20_000])).status == "fail"


def test_losses_at_the_queries_against_training():
    assert check_losses(np.full(3, 0.002), np.full(3, 0.05)).status == "ok"
    assert check_losses(np.full(3, 0.06), np.full(3, 0.05)).status == "ok", (
        "small losses, whatever their ratio"
    )
    assert check_losses(np.full(3, 0.20), np.full(3, 0.05)).status == "warn"


def averaging(recipe, total_steps):
    found = check_averaging(recipe, total_steps)
    assert found is not None
    return found


def test_averages_longer_than_the_training():
    assert check_averaging(dataclasses.replace(PAPER, ema=0.0), 10) is None
    assert averaging(PAPER, 9_700).status == "ok"
    found = averaging(PAPER, 4_999)
    assert found.status == "warn"
    assert "reaches back 1,000 steps, and a training has 4,999" in found.sentence
    assert "lower recipe.ema to 0.999 or train longer" in found.sentence
    assert averaging(dataclasses.replace(PAPER, ema=0.9), 50).status == "ok"


def test_published_accuracies():
    known = published_accuracy("tfds:cifar10", 50_000, PAPER)
    assert known is not None
    assert known.differs == ()
    assert published_accuracy("tfds:cifar10", 25_000, PAPER) is None
    assert published_accuracy("digits", 50_000, PAPER) is None
    assert published_accuracy("tfds:cifar10", 50_000, dataclasses.replace(PAPER, model="resnet18")) is None
    other = published_accuracy("folder:/data/CIFAR-10", 50_000, dataclasses.replace(PAPER, epochs=20))
    assert other is not None
    assert other.differs == ("epochs 20 in place of 100",)
    for accuracy, recipe, status in [
        (0.80, PAPER, "fail"),
        (0.91, PAPER, "ok"),
        (0.80, dataclasses.replace(PAPER, epochs=20), "warn"),
    ]:
        found = check_accuracy(np.full(8, accuracy), "tfds:cifar10", 50_000, recipe)
        assert found is not None
        assert found.status == status
        assert "Carlini et al. 2022: 90 % to 92 %" in found.sentence
    assert check_accuracy(np.full(8, np.nan), "tfds:cifar10", 50_000, PAPER) is None


# --- On runs ----------------------------------------------------------------------------------------------------------


def test_a_run_stores_raw_accuracies_and_losses(finished):
    for kind in ("in", "out", "test"):
        assert np.isfinite(finished.accuracy(f"raw_{kind}")).all()
    phi, keep = np.asarray(finished.phi[:, :])[:, :, 0].astype(np.float64), finished.keep
    expected = [np.log1p(np.exp(-row[members])).mean() for row, members in zip(phi, keep, strict=True)]
    np.testing.assert_allclose(finished.losses("in"), expected, rtol=1e-5)
    assert np.isfinite(finished.losses("last_epoch")).all()
    evaluation = finished.provenance["evaluation"]
    assert evaluation["weights"] == "moving average, decay 0.9"
    assert evaluation["statistics"] == "recomputed"
    assert evaluation["norms"]["BatchNorm_0"] == {"kind": "BatchNorm", "epsilon": 1e-5, "momentum": 0.9}


def test_without_an_average_nothing_stands_beside_the_accuracies(tmp_path):
    run = made(tmp_path / "run", dataclasses.replace(SHORT, ema=0.0))
    assert not run.holds("accuracy_raw_in")
    assert run.holds("loss_in")
    assert run.provenance["evaluation"]["weights"] == "as trained"


def test_check_catches_models_that_are_not_those_that_were_trained(finished, tmp_path, capsys):
    """A run whose answers came from the old evaluation, with the accuracies that it had."""
    path = copied(finished, tmp_path / "run")
    run = Run.open(path)
    for side, value in {"in": 0.95, "raw_in": 1.0}.items():
        run.arrays.open(f"accuracy_{side}")[:].write(np.full(4, value, np.float32)).result()
    run.arrays.open("accuracy_out")[:].write(np.full(4, 0.2, np.float32)).result()
    run.arrays.open("accuracy_raw_out")[:].write(np.full(4, 0.95, np.float32)).result()
    run.arrays.open("loss_in")[:].write(np.full(4, 0.5, np.float32)).result()
    run.arrays.open("loss_last_epoch")[:].write(np.full(4, 0.01, np.float32)).result()
    found = {each.name: each for each in check_trained(run, run.models)}
    assert (found["evaluation"].status, found["losses"].status) == ("fail", "warn")
    assert cli.main(["check", str(path)]) == 1
    assert "fail  evaluation: accuracy of the averaged weights 95.0 %, 20.0 %" in capsys.readouterr().out


def test_a_run_of_the_old_evaluation_opens_with_a_warning_and_does_not_go_on(finished, tmp_path, capsys):
    path = copied(finished, tmp_path / "run", outdated)
    for name in ("accuracy_raw_in", "accuracy_raw_out", "accuracy_raw_test", "loss_in", "loss_last_epoch"):
        shutil.rmtree(path / "arrays" / name)
    with pytest.warns(OutdatedWarning, match="averaged weights with norm statistics that were not averaged"):
        run = Run.open(path)
    assert score(run, attacks=select_attacks(FEW))
    assert {each.name: each.status for each in checks.check_run(run)}["evaluation"] == "fail"
    with (
        pytest.warns(OutdatedWarning),
        pytest.raises(RunError, match="does not go on: its models were evaluated by"),
    ):
        made(path, models=6)
    with pytest.warns(OutdatedWarning):
        assert made(path).config.num_models == 4, "a complete one is opened as it is"
    assert cli.main(["check", str(path)]) == 1
    said = capsys.readouterr()
    assert "fail  evaluation: its models were evaluated by an earlier version" in said.out
    assert cli.main(["report", str(path), "--attacks", *FEW]) == 0
    assert "lira: warning: " in capsys.readouterr().err
    assert "evaluated by an earlier version" in (path / "report.html").read_text()
    run.arrays.open("done")[3].write(0).result()
    with pytest.warns(OutdatedWarning), pytest.raises(RunError, match="does not go on"):
        train(run, images(), show_progress=False)


@pytest.mark.parametrize(
    "recipe", [Recipe(epochs=1, batch_size=10, ema=0.9), dataclasses.replace(SHORT, ema=0.0)]
)
def test_runs_without_norms_or_average_were_never_wrong(recipe, tmp_path):
    path = tmp_path / "run"
    run = made(path, recipe)
    (path / "provenance.json").write_text(json.dumps(outdated(of_earlier_version(run.provenance))))
    assert Run.open(path).outdated == ""
    assert made(path, recipe, models=6).config.num_models == 6


def test_other_constants_of_norms_are_refused_by_name(finished, tmp_path):
    def moved(provenance):
        provenance["evaluation"]["norms"]["BatchNorm_0"]["momentum"] = 0.99
        return provenance

    path = copied(finished, tmp_path / "run", moved)
    with pytest.raises(RunError, match=r"norm BatchNorm_0 is .*0\.99.* there and .*0\.9.* here"):
        made(path, models=6)


def test_other_conventions_of_queries_are_another_run(finished):
    with pytest.raises(RunError, match=r"queries.convention is 'paper' there and 'original' here"):
        Run.create(
            finished.path, images(), SHORT, num_models=4, queries=Queries(convention="original"), execution=Execution(width=2)
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"queries.convention must be one of paper, original; got 'theirs'"):
        Queries(convention="theirs")  # pyright: ignore[reportArgumentType]


def test_original_queries_from_end_to_end(tmp_path, monkeypatch, request):
    """Raw weights; batches of consecutive examples, the last one what remains; stack and lowering do not matter."""
    monkeypatch.setattr("lira.engine.sweep.ORIGINAL_BATCH", 16)
    programs._of_a_kind.cache_clear()  # these have been compiled with batches of another size, or would be kept for others
    request.addfinalizer(programs._of_a_kind.cache_clear)
    phi = {}
    cases: tuple[tuple[Lowering, int], ...] = (("patches", 2), ("xla", 1))
    for lowering, width in cases:
        run = Run.create(
            tmp_path / lowering, images(), SHORT, num_models=4,
            queries=Queries(mirror=True, convention="original"), execution=Execution(width=width, lowering=lowering),
        )  # fmt: skip
        assert not run.holds("accuracy_raw_in")
        assert run.provenance["evaluation"]["weights"] == "as trained"
        train(run, images(), show_progress=False)
        phi[lowering] = np.asarray(run.phi[:, :])
    assert phi["xla"].shape == (4, 40, 2)
    np.testing.assert_allclose(phi["xla"], phi["patches"], rtol=2e-3, atol=2e-3)


def test_a_warning_comes_with_the_first_stack(tmp_path, monkeypatch):
    """Before the others are trained, and once."""
    run = made(tmp_path / "run", models=8)
    done = []
    found = check_trained

    def looked(run, models):
        done.append(int((run.done == 1).sum()))
        return found(run, models)

    monkeypatch.setattr(fill, "check_trained", looked)
    with pytest.warns(
        FirstModelsWarning, match="after the first 2 models: the average of the weights reaches back"
    ):
        train(made(tmp_path / "run", dataclasses.replace(SHORT), models=8), images(), show_progress=False)
    assert len(done) == 1
    assert done[0] < 8
    assert (run.done == 1).all()


def test_plan_warns_of_averages_longer_than_the_training():
    pinned = Execution(width=2, lowering="patches")
    planned = {
        ema: str(plan(Config(num_models=4, recipe=dataclasses.replace(SHORT, ema=ema), execution=pinned), images()))
        for ema in (0.0, 0.9)
    }  # fmt: skip
    assert "warning: the average of the weights reaches back 10 steps, and a training has 4" in planned[0.9]
    assert "warning" not in planned[0.0]


def test_saved_parameters_are_those_that_were_asked(tmp_path):
    """What unlearning starts from: averaged weights with their own statistics, which give the stored phi."""
    run = made(tmp_path / "run", save_params=True)
    train(run, images(), show_progress=False)
    module = Normed(2)
    initial = partial(module.init, train=False)
    shapes = jax.eval_shape(initial, jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), dict(shapes))
    variables = ravel_pytree(zeros)[1](jnp.asarray(run.signal("params")[2:3, :])[0])
    said, _ = jax.jit(partial(query, module, Queries(), ()))(variables, images().x, images().y)
    np.testing.assert_allclose(said["phi"], run.phi[:, :][2], rtol=1e-4, atol=1e-4)


def test_features_that_are_not_standardised_are_named_where_nothing_was_learnt(tmp_path):
    rng = np.random.default_rng(0)
    rows = [f"{1e4 * a},{b},{i % 2}" for i, (a, b) in enumerate(rng.normal(size=(200, 2)))]
    (tmp_path / "mine.csv").write_text("\n".join(["a,b,label", *rows]))
    dataset = lira.load_dataset(f"csv:{tmp_path}/mine.csv")
    recipe = Recipe(model="mlp", epochs=1, batch_size=50, learning_rate=1e-6)
    run = lira.Run.create(tmp_path / "run", dataset, recipe, num_models=4)
    says = r"there is nothing to attack; features reach \d\.\d+e\+04 in size: standardise them \(,standardise"
    with pytest.warns(FirstModelsWarning, match=says):
        train(run, dataset, show_progress=False)
    (check,) = (each for each in check_trained(run, np.arange(4)) if each.name == "training")
    assert check.status == "fail"
    assert re.search(says, check.sentence)
