import shutil
import tomllib

import numpy as np
import pytest
from foreign_layouts import (
    C,
    N,
    confidences,
    naive_phi,
    pool,
    write_carlini,
    write_privacy_meter,
    write_pytorch,
)
from scipy.special import softmax, xlogy

from lira import scoring
from lira.attacks.suite import ATTACKS, select_attacks
from lira.data.dataset import Dataset
from lira.engine import fill
from lira.exchange.export import export_carlini
from lira.exchange.layouts import LayoutError, import_run
from lira.reporting import measured, write
from lira.signals import SaturatedWarning
from lira.store.config import Config
from lira.store.errors import RunError
from lira.store.run import Run

pytestmark = pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")


# --- Import ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scores", [False, True])
def test_the_originals_directory_becomes_a_run(tmp_path, scores):
    """Twelve models: as text, experiment-10_12 would come before experiment-2_12."""
    logits, keep, labels = pool(M=12)
    run = import_run(
        "carlini", write_carlini(tmp_path / "exp", logits, keep, labels, scores=scores), tmp_path / "run"
    )
    np.testing.assert_allclose(np.asarray(run.phi), naive_phi(logits, labels), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(run.keep, keep)
    np.testing.assert_array_equal(run.labels, labels)
    assert run.provenance["source"]["epoch"] == 10
    assert run.provenance["source"]["hparams"]["arch"] == "wrn28-2"
    if scores:
        assert np.isnan(run.accuracy("in")).all()
        assert not run.holds("logits")
    else:
        correct = logits[:, :, 0].argmax(axis=-1) == labels
        np.testing.assert_allclose(
            run.accuracy("in"), [c[k].mean() for c, k in zip(correct, keep, strict=True)]
        )
        np.testing.assert_allclose(
            run.accuracy("out"), [c[~k].mean() for c, k in zip(correct, keep, strict=True)]
        )
        np.testing.assert_array_equal(np.asarray(run.signal("logits")), logits)


@pytest.mark.parametrize("scores", [False, True])
def test_the_pytorch_ports_directory_becomes_a_run(tmp_path, scores):
    logits, keep, labels = pool(M=11)
    place = write_pytorch(tmp_path / "exp", logits, keep, labels, scores)
    run = import_run("pytorch", place, tmp_path / "run", labels=None if scores else labels)
    np.testing.assert_allclose(np.asarray(run.phi), naive_phi(logits, labels), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(run.keep, keep)
    np.testing.assert_array_equal(run.labels, np.full(N, -1) if scores else labels)


@pytest.mark.parametrize("name", ["rmia", "loss"])
def test_privacy_meters_directory_becomes_a_run(tmp_path, name):
    logits, keep, labels = pool(paired=True)
    phi = naive_phi(logits, labels)[..., :1]
    values = confidences(logits, labels) if name == "rmia" else np.log1p(np.exp(-phi[..., 0]))
    run = import_run(
        "privacy-meter", write_privacy_meter(tmp_path / "log", values, keep, name), tmp_path / "run"
    )
    np.testing.assert_allclose(np.asarray(run.phi), phi, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(run.keep, keep)


def test_saturated_confidences_are_counted(tmp_path):
    logits, keep, labels = pool()
    p = confidences(logits, labels).astype(np.float32)
    p[0, :7] = 1
    with pytest.warns(SaturatedWarning, match="^7 of 2,400 values"):
        run = import_run("privacy-meter", write_privacy_meter(tmp_path / "log", p, keep), tmp_path / "run")
    np.testing.assert_allclose(np.asarray(run.phi)[0, :7], 25 * np.log(2), rtol=1e-4)


@pytest.mark.parametrize(("M", "paired"), [(8, False), (7, False), (8, True)])
def test_imported_runs_are_scored_and_reported(tmp_path, M, paired):
    """Complementary pairs leave the pair out; every other design the target alone, odd numbers of models too."""
    logits, keep, labels = pool(M=8, paired=paired)
    run = import_run(
        "carlini", write_carlini(tmp_path / "exp", logits[:M], keep[:M], labels), tmp_path / "run"
    )
    # There are no features to regress on, or to find neighbours by, and no checkpoints of training.
    without = [
        name
        for name, attack in ATTACKS.items()
        if "features" not in attack.needs and attack.signal != "trajectory"
    ]
    # All attacks compile thirty programs for each number of models and design; of odd numbers these are enough.
    asked = without if M == 8 else ["lira_online", "rmia_offline", "entropy_threshold", "global_threshold"]
    scores = scoring.score(run, attacks=select_attacks(asked))
    assert list(scores) == [name for name in ATTACKS if name in asked]
    leave = "pair" if paired else "one"
    for name in ("lira_online", "rmia_offline", "global_threshold"):
        np.testing.assert_array_equal(scores[name], ATTACKS[name].function(run.phi, keep[:M], leave=leave))
    entropies = np.asarray(run.signal("entropy"))
    p = softmax(logits[:M].astype(np.float64), axis=-1)
    np.testing.assert_allclose(entropies, -xlogy(p, p).sum(axis=-1), rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(scores["entropy_threshold"], -entropies.mean(axis=2), rtol=1e-5)
    write.write_report(run.path, measured.measure(scores, run.keep))
    assert Run.open(run.path).scores("lira_online") is not None
    assert not scoring.pool_of(run).independent


def test_coins_that_were_declared_independent_are_remembered(tmp_path):
    logits, keep, labels = pool(M=8, paired=True)
    place = write_carlini(tmp_path / "exp", logits, keep, labels)
    import_run("carlini", place, tmp_path / "run", independent=True)
    assert scoring.pool_of(Run.open(tmp_path / "run")).independent


def test_a_balanced_pool_that_is_declared_independent_is_refused(tmp_path):
    place = write_carlini(tmp_path / "exp", *pool(M=8))
    with pytest.raises(
        LayoutError, match=r"declared to be independent coins, and examples are in more equal"
    ):
        import_run("carlini", place, tmp_path / "run", independent=True)


def test_two_imported_models_leave_the_global_threshold(tmp_path):
    logits, keep, labels = pool(M=8)
    place = write_carlini(tmp_path / "exp", logits[:2], keep[:2], labels)
    # One model of two is left: it holds some examples and not the others, so no example has both sides.
    with pytest.warns(UserWarning, match="is left out") as said:
        scores = scoring.score(import_run("carlini", place, tmp_path / "run"))
    silent = [
        name
        for name, attack in ATTACKS.items()
        if "features" in attack.needs or attack.signal == "trajectory"
    ]
    left_out = [name for name in ATTACKS if name not in (*scores, *silent)]
    assert [str(each.message).split(" is left out: ")[0] for each in said] == left_out
    assert {"lira_online", "lira_offline_fixed"} < set(left_out)
    assert "global_threshold" in scores


def test_imported_runs_hold_no_recipe_and_cannot_be_trained(tmp_path):
    logits, keep, labels = pool()
    run = import_run("carlini", write_carlini(tmp_path / "exp", logits, keep, labels), tmp_path / "run")
    assert tomllib.loads((run.path / "config.toml").read_text()) == {"dataset": "imported", "num_models": 8}
    data = Dataset.from_arrays(np.zeros((N, 3)), labels)
    with pytest.raises(
        RunError, match=r"was imported from .*/exp and has no recipe: it can be scored and reported"
    ):
        fill.train(run, data)
    with pytest.raises(RunError, match="was imported from"):
        Run.create(run.path, data, Config().recipe)


def test_pairs_that_are_apart_are_brought_together_and_widows_left_out(tmp_path):
    logits, keep, labels = pool(M=8, paired=True)
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])
    place = write_carlini(tmp_path / "exp", logits[order], keep[order], labels)
    run = import_run("carlini", place, tmp_path / "run")
    np.testing.assert_array_equal(run.keep, keep)
    np.testing.assert_allclose(np.asarray(run.phi), naive_phi(logits, labels), rtol=1e-5, atol=1e-5)
    shutil.rmtree(place / "experiment-2_8")
    with pytest.warns(UserWarning, match="are there|left out") as said:
        run = import_run("carlini", place, tmp_path / "smaller")
    assert "7 of 8 models are there" in str(said[0].message)
    assert "experiment-6_8: left out, because the other models are complementary pairs" in str(
        said[1].message
    )
    np.testing.assert_array_equal(run.keep, keep[[0, 1, 2, 3, 6, 7]])


# --- What people get wrong ------------------------------------------------------------------------------------------


def damage(place, name):
    """One mistake in a directory of the original's."""
    folder = place / "experiment-3_8"
    file = folder / "logits/0000000010.npy"
    values = np.load(file)
    shuffled = np.random.default_rng(1).permutation(N)
    if name == "transposed":
        np.save(file, values.transpose(2, 1, 0, 3))
    elif name == "longer keep":
        np.save(folder / "keep.npy", np.ones(N + 5, bool))
    elif name == "indices":
        np.save(folder / "keep.npy", np.arange(N))
    elif name == "all members":
        np.save(folder / "keep.npy", np.ones(N, bool))
    elif name == "another epoch":
        file.unlink()
    elif name == "unfinished":
        shutil.rmtree(folder / "logits")
        shutil.rmtree(place / "experiment-2_8/logits")
    elif name == "another pool":
        shutil.copytree(folder, place / "experiment-3_16")
    elif name == "nan":
        values[5, 0, 1] = np.nan
        np.save(file, values)
    elif name == "one model's order":
        np.save(file, values[shuffled])
    elif name == "labels' order":
        np.save(place / "y_train.npy", np.load(place / "y_train.npy")[shuffled])
    elif name == "more labels":
        np.save(place / "y_train.npy", np.arange(N + 1) % C)
    elif name == "more classes":
        np.save(place / "y_train.npy", np.arange(N) % (C + 1))
    elif name == "no labels":
        (place / "y_train.npy").unlink()
    elif name == "probabilities":
        for each in place.glob("experiment-*/logits/0000000010.npy"):
            exponentials = np.exp(np.load(each))
            np.save(each, exponentials / exponentials.sum(axis=-1, keepdims=True))
    elif name == "inverted":
        for each in place.glob("experiment-*/keep.npy"):
            np.save(each, ~np.load(each))
    elif name == "broken json":
        (place / "experiment-0_8/hparams.json").write_text("{")
    elif name == "empty":
        for each in place.iterdir():
            each.rename(place.parent / each.name)


MISTAKES = {
    "transposed": r"experiment-3_8/logits/0000000010.npy: has shape \(2, 1, 300, 4\); all models need one shape",
    "longer keep": r"experiment-3_8/keep.npy: must be \[300\], as many as the model was asked about; got \(305,\)",
    "indices": r"experiment-3_8/keep.npy must be true or false .* got 2: not indices of members",
    "all members": r"experiment-3_8 was trained on all of the examples",
    "another epoch": r"experiment-3_8/logits/0000000009.npy: is this model's last epoch, and 0000000010.npy that of",
    "unfinished": r"experiment-\d_8: has neither logits/\*.npy nor scores/\*.npy: finish that model or remove it",
    "another pool": r"holds experiments of 8, 16 models each",
    "nan": r"experiment-3_8: is NaN at example 5, query 1 \(1 in all\): leave that model out",
    "one model's order": r"the logits of model 3 agree with the labels no better than chance, those of the others",
    "labels' order": r"labels or rows are in another order",
    "more labels": r"labels must be \[N\] = \[300\], one an example; got shape \(301,\)",
    "more classes": r"has 4 classes on its last axis, but labels go up to 4",
    "no labels": r"y_train.npy: there is no such file",
    "probabilities": r"experiment-0_8: looks like probabilities .* not logits",
    "inverted": r"AUC below 0.5\): membership is inverted",
    "broken json": r"experiment-0_8/hparams.json: is not valid JSON",
    "empty": r"holds no directory experiment-\{i\}_\{n\}",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_refused_by_name_and_nothing_is_written(tmp_path, name):
    place = write_carlini(tmp_path / "in/exp", *pool())
    damage(place, name)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=MISTAKES[name]) as caught:
        import_run("carlini", place, tmp_path / "out/run")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_mistakes_of_the_other_layouts_are_refused(tmp_path):
    logits, keep, labels = pool()
    port = write_pytorch(tmp_path / "port", logits, keep, labels)
    with pytest.raises(LayoutError, match="port: 0: logits need labels"):
        import_run("pytorch", port, tmp_path / "run")
    with pytest.raises(LayoutError, match=r"labels must be \[N\] = \[300\]"):
        import_run("pytorch", port, tmp_path / "run", labels=labels[:-1])
    meter = write_privacy_meter(tmp_path / "log", confidences(logits, labels), keep)
    np.save(meter / "signals/rmia_signals.npy", confidences(logits, labels))
    with pytest.raises(
        LayoutError, match=r"rmia_signals.npy: must be \[examples, models\].*it is transposed"
    ):
        import_run("privacy-meter", meter, tmp_path / "run")
    np.save(meter / "signals/rmia_signals.npy", naive_phi(logits, labels)[..., 0].T)
    with pytest.raises(LayoutError, match=r"rmia_signals.npy: a probability is in \[0, 1\]"):
        import_run("privacy-meter", meter, tmp_path / "run")
    np.save(meter / "signals/rmia_signals.npy", 1 - confidences(logits, labels).T)
    with pytest.raises(LayoutError, match="the values have the wrong sign"):
        import_run("privacy-meter", meter, tmp_path / "run")
    with pytest.raises(LayoutError, match="the layouts are carlini, pytorch, privacy-meter"):
        import_run("karlini", meter, tmp_path / "run")
    with pytest.raises(LayoutError, match="is not a directory"):
        import_run("carlini", tmp_path / "absent", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten(tmp_path):
    logits, keep, labels = pool()
    place = write_carlini(tmp_path / "exp", logits, keep, labels)
    run = import_run("carlini", place, tmp_path / "run")
    for occupied in (run.path, place):
        with pytest.raises(RunError, match="exists already; name a new or empty directory"):
            import_run("carlini", place, occupied)
        with pytest.raises(RunError, match="exists already; name a new or empty directory"):
            export_carlini(run, occupied)


# --- Export, and the original's own formulas on it ------------------------------------------------------------------
