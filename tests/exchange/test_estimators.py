"""Models of other frameworks, trained by a function of the user's: leaks are found, chance is chance, and a run is a run."""

import json
from typing import Any

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

import lira
from lira.attacks.suite import select_attacks
from lira.cli import main
from lira.engine.fill import DivergedWarning
from lira.exchange.fitting import Fit
from lira.exchange.reading import AuditError
from lira.membership import keep_mask
from lira.signals import SaturatedWarning
from lira.store.errors import RunError

N, C, M = 600, 60, 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 4))
# Labels that nothing explains: who knows them has learnt them by heart.
Y = RNG.integers(0, C, N)
FEW = ("global_threshold", "lira_online_fixed")

pytestmark = [
    pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning"),
    pytest.mark.filterwarnings("ignore::lira.signals.SaturatedWarning"),
    pytest.mark.filterwarnings("ignore::lira.attacks._pool.FlooredVarianceWarning"),
]


def audited(make, tmp_path, x=X, y=Y, **options):
    given = {"num_models": M, "workers": 1, "attacks": FEW, "show_progress": False, **options}
    return lira.audit_estimator(make, x, y, run_dir=tmp_path / "run", **given)


def trained(train, tmp_path, y=Y, **options):
    given = {"num_models": M, "workers": 1, "attacks": FEW, "show_progress": False, **options}
    return lira.audit_training(train, X, y, run_dir=tmp_path / "run", **given)


def statuses(evaluation):
    return {check.name: check.status for check in evaluation.checks}


# --- What is found --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: KNeighborsClassifier(1), lambda: DecisionTreeClassifier()])
def test_models_that_know_their_members_by_heart_are_found(make, tmp_path):
    """They are certain of every member, and of another example's label by chance alone, with probability 1/C."""
    evaluation = audited(make, tmp_path)
    run = lira.Run.open(tmp_path / "run")
    right = float(np.average(run.accuracy("out"), weights=(~run.keep).sum(axis=1)))
    assert abs(right - 1 / C) < 4.5 * np.sqrt(1 / C / (M * N / 2))
    # Members above all others but those that are guessed right, with which they are tied.
    assert evaluation.attacks["global_threshold"].auc.value == pytest.approx(1 - right / 2, abs=1e-6)
    for scores in lira.score(run, attacks=select_attacks(FEW)).values():
        assert lira.metrics.roc(scores, run.keep).realised_tpr(0.03) > 0.99
    assert np.all(run.accuracy("in") == 1)
    # Half of what they say is "1": so are these models, and not a fault of the audit.
    found = statuses(evaluation)
    assert found["confidences"] == "warn"
    assert "fail" not in found.values()


def test_a_model_that_knows_nothing_is_at_chance(tmp_path):
    evaluation = audited(lambda: DummyClassifier(strategy="uniform"), tmp_path, y=Y % 3)
    assert evaluation.attacks["global_threshold"].auc.value == 0.5
    assert statuses(evaluation)["confidences"] == "fail"


def test_answers_that_have_nothing_to_do_with_members_are_at_chance(tmp_path):
    def train(model, members):
        values = np.random.default_rng(model).normal(size=(N, C))
        return lambda x: values[: len(x)]

    evaluation = trained(train, tmp_path)
    for name in FEW:
        auc = evaluation.attacks[name].auc.value
        assert abs(auc - 0.5) < 4.5 * np.sqrt(1 / (12 * M * N / 2)) * 2


# --- What is stored -------------------------------------------------------------------------------------------------


def test_memberships_and_signals_are_what_they_are_called(tmp_path, unreported):
    """Against each model fitted here, alone, by the plain formula."""
    y, held = Y % 3, X[:50] + 1
    audited(lambda: LogisticRegression(), tmp_path, y=y, x_test=held, y_test=y[:50])
    run = lira.Run.open(tmp_path / "run")
    keep = keep_mask(0, M, N)
    np.testing.assert_array_equal(run.keep, keep)
    np.testing.assert_array_equal(run.labels, y)
    for model in range(M):
        fitted = LogisticRegression().fit(X[keep[model]], y[keep[model]])
        for name, x, labels in (("phi", X, y), ("phi_test", held, y[:50])):
            p = fitted.predict_proba(x)
            label = p[np.arange(len(x)), labels]
            phi = np.log(label / (p.sum(axis=1) - label))
            np.testing.assert_allclose(np.asarray(run.signal(name))[model, :, 0], phi, atol=1e-5)
        right = fitted.predict(X) == y
        sides = (right[keep[model]], right[~keep[model]], fitted.predict(held) == y[:50])
        for side, expected in zip(("in", "out", "test"), sides, strict=True):
            assert run.accuracy(side)[model] == pytest.approx(expected.mean())


def test_words_for_labels_and_a_class_that_a_model_has_not_seen(tmp_path):
    """A class of two examples, both of which are in one model of a pair now and then: its probability is 0 there."""
    words = np.array(["no", "yes", "perhaps"])[np.where(np.arange(N) < 2, 2, Y % 2)]
    evaluation = audited(lambda: GaussianNB(var_smoothing=1.0), tmp_path, y=words)
    run = lira.Run.open(tmp_path / "run")
    np.testing.assert_array_equal(run.labels, np.where(np.arange(N) < 2, 1, 2 * (Y % 2)))
    unseen = ~run.keep[:, :2].any(axis=1)
    assert unseen.any()
    assert np.all(np.asarray(run.phi)[unseen, :2] < -37)
    assert evaluation.num_models == M
    assert "perhaps" in (tmp_path / "run" / "records.csv").read_text()


def test_every_model_has_randomness_of_its_own_which_comes_again():
    def make():
        return make_pipeline(StandardScaler(), DecisionTreeClassifier(max_features=1))

    x, y = X[:100], Y[:100] % 4
    members = np.arange(0, 100, 2)
    answers = [
        Fit(make, x, y, np.unique(y), seed)(model, members)(x)
        for seed, model in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    np.testing.assert_array_equal(answers[0], answers[1])
    assert not np.array_equal(answers[0], answers[2])
    assert not np.array_equal(answers[0], answers[3])


def test_parallel_processes_give_the_models_of_one(tmp_path, unreported):
    """Sent by value: a function within this one, and its data."""
    scale = 3.0

    def make():
        return LogisticRegression(C=scale)

    runs = []
    for workers in (1, 2):
        place = tmp_path / str(workers)
        audited(make, place, y=Y % 3, workers=workers, num_models=4)
        runs.append(lira.Run.open(place / "run"))
    np.testing.assert_allclose(np.asarray(runs[0].phi), np.asarray(runs[1].phi), atol=1e-5)
    np.testing.assert_array_equal(runs[0].keep, runs[1].keep)


# --- A run is a run -------------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_and_grows(tmp_path, unreported):
    """What is done is not trained again, and stays as it is to the last bit."""
    called, broken = [], [True]

    def train(model, members):
        called.append(model)
        if broken[0] and len(called) > 3:
            raise KeyboardInterrupt
        held = np.isin(np.arange(N), members)
        values = np.random.default_rng(len(called)).normal(size=(N, C))
        values[np.arange(N), Y] += 3 * held
        return lambda x: values

    with pytest.raises(KeyboardInterrupt):
        trained(train, tmp_path)
    run = lira.Run.open(tmp_path / "run")
    assert run.done.tolist() == [1, 1, 1] + [0] * 5
    before = np.asarray(run.signal("phi", np.arange(3)))
    broken[0] = False
    called.clear()
    trained(train, tmp_path)
    assert called == [3, 4, 5, 6, 7]
    trained(train, tmp_path, num_models=10)
    assert called == [3, 4, 5, 6, 7, 8, 9]
    run = lira.Run.open(tmp_path / "run")
    assert run.done.tolist() == [1] * 10
    np.testing.assert_array_equal(np.asarray(run.phi)[:3], before)
    np.testing.assert_array_equal(run.keep, keep_mask(0, 10, N))
    with pytest.raises(RunError, match="does not shrink to 8"):
        trained(train, tmp_path)


def test_the_commands_work_on_it(tmp_path, capsys):
    y = Y % 3
    audited(lambda: DecisionTreeClassifier(), tmp_path, y=y, name="noise", attacks=FEW)
    place = str(tmp_path / "run")
    assert main(["verify", place, "--deep"]) == 0
    assert main(["check", place]) == 0
    assert main(["score", place, "--attacks", *FEW]) == 0
    assert main(["report", place, "--attacks", *FEW]) == 0
    assert main(["enough", place]) == 0
    assert main(["compare", place]) == 0
    said = capsys.readouterr().out
    assert "8 DecisionTreeClassifier models trained on noise, half of 600 examples each" in said
    assert main(["export", "carlini", place, str(tmp_path / "theirs")]) == 0
    assert main(["train", place]) == 2
    assert "trained by a function of yours" in capsys.readouterr().err
    assert (
        json.loads((tmp_path / "run" / "metrics.json").read_text())["verdict"]["attack"]
        == "lira_online_fixed"
    )
    # A chunk of a model that is broken is mended by training that one again.
    run = lira.Run.open(place)
    before = np.asarray(run.phi)
    chunk = tmp_path / "run" / "arrays" / "phi" / "c" / "3" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    assert main(["verify", place]) == 1
    lira.mend(place)
    assert lira.Run.open(place).done.tolist() == [1, 1, 1, 0, 1, 1, 1, 1]
    audited(lambda: DecisionTreeClassifier(), tmp_path, y=y, name="noise")
    np.testing.assert_array_equal(np.asarray(lira.Run.open(place).phi), before)


def test_another_run_is_refused_by_what_differs(tmp_path, unreported):
    y = Y % 3
    audited(lambda: GaussianNB(), tmp_path, y=y, num_models=4)
    for message, changes in (
        ("of other data", {"x": X + 1}),
        ("of other data", {"y": y[::-1]}),
        ("the seed is 0 there and 1 here", {"seed": 1}),
        ("settings is 'GaussianNB\\(\\)' there", {"make": lambda: GaussianNB(var_smoothing=1e-3)}),
        ("model is 'GaussianNB' there", {"make": lambda: DummyClassifier()}),
        ("holds no phi_test", {"x_test": X, "y_test": y, "x": X}),
    ):
        given = {"make": lambda: GaussianNB(), "y": y, "num_models": 4, **changes}
        if "x_test" in changes:
            message = "of other data"
        with pytest.raises(RunError, match=message):
            audited(given.pop("make"), tmp_path, **given)


# --- What does not fit ----------------------------------------------------------------------------------------------


def test_what_cannot_be_audited_is_one_line(tmp_path, unreported):
    class NoProbabilities:
        def fit(self, x, y): ...

    cases = (
        ("has no predict_proba", NoProbabilities, {}),
        ("x has 599 rows, and there are 600 labels", GaussianNB, {"x": X[1:]}),
        ("label is no fraction", GaussianNB, {"y": X[:, 0]}),
        ("argmax one-hot rows", GaussianNB, {"y": np.eye(3)[Y % 3]}),
        ("y_test\\[0\\] is .*77.*, which no example of y has", GaussianNB, {"x_test": X[:1], "y_test": [77]}),
        ("without the other", GaussianNB, {"x_test": X}),
        ("one class only", GaussianNB, {"y": np.zeros(N, int)}),
    )
    for message, make, changes in cases:
        with pytest.raises(AuditError, match=message):
            audited(make, tmp_path, **changes)
    assert not (tmp_path / "run").exists()
    for values, message in (
        (np.full((N, C), 0.5), "model 0: the probabilities of example 0 sum to 30, not to 1"),
        (np.full(N, 0.5), "model 0: probabilities must be"),
        (np.full((N, 2), 0.5), "model 0: has 2 classes on its last axis, but labels go up to 59"),
    ):
        with pytest.raises(AuditError, match=message):
            trained(lambda model, members, values=values: lambda x: values, tmp_path, answers="probabilities")
    for values, message in (
        (np.zeros(N), "looks like probabilities"),
        (np.zeros((3, C)), "must answer with floats"),
    ):
        with pytest.raises(ValueError, match=message):
            trained(lambda model, members, values=values: lambda x: values, tmp_path / message[:3], y=Y % 2)


def test_an_error_of_the_users_own_says_of_which_model_it_is(tmp_path, unreported):
    def train(model, members):
        if model == 1:
            raise ZeroDivisionError("theirs")
        return lambda x: np.zeros((len(x), C))

    with pytest.raises(ZeroDivisionError, match="theirs") as caught:
        trained(train, tmp_path)
    assert "this is of model 1" in caught.value.__notes__[0]
    assert lira.Run.open(tmp_path / "run").done.tolist() == [1] + [0] * 7


def test_models_that_answer_nan_are_left_out_by_name(tmp_path):
    def train(model, members):
        values = np.random.default_rng(model).normal(size=(N, C))
        values[0, 0] = np.nan if model == 2 else 0
        return lambda x: values

    with pytest.warns(DivergedWarning, match="1 of 8 models answered with NaN .* mates: 2"):
        evaluation = trained(train, tmp_path)
    assert evaluation.models == [0, 1, 4, 5, 6, 7]


def test_tables_of_pandas_and_sparse_matrices_are_what_arrays_are(tmp_path, unreported):
    pandas, sparse = pytest.importorskip("pandas"), pytest.importorskip("scipy.sparse")
    table = pandas.DataFrame({f"column {i}": X[:, i] for i in range(4)}, index=np.arange(N)[::-1])
    phis = []
    for x, y in ((X, Y % 3), (table, pandas.Series(Y % 3, index=table.index)), (sparse.csr_matrix(X), Y % 3)):
        place = tmp_path / type(x).__name__
        run: Any = audited(lambda: LogisticRegression(), place, x=x, y=y, num_models=4)
        audited(lambda: LogisticRegression(), place, x=x, y=y, num_models=4)  # known again
        phis.append(np.asarray(run.phi))
    np.testing.assert_allclose(phis[1], phis[0], atol=1e-5)
    np.testing.assert_allclose(phis[2], phis[0], atol=1e-2)
    with pytest.raises(RunError, match="of other data"):
        audited(lambda: LogisticRegression(), tmp_path / "DataFrame", x=table[::-1], y=Y % 3, num_models=4)


def test_probabilities_of_0_and_1_are_counted(tmp_path, unreported):
    with pytest.warns(SaturatedWarning, match="4,800 of 4,800 probabilities"):
        audited(lambda: KNeighborsClassifier(1), tmp_path)
    assert set(np.unique(np.abs(np.asarray(lira.Run.open(tmp_path / "run").phi)))) == {np.float32(37.429947)}
