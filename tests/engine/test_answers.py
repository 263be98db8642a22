"""What is stored of a stack's answers: accuracies of the pool's own examples, and which models stayed finite."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stored_runs import N, dataset

import lira
from lira.engine.answers import Data, Learned, answers_of

C, M = 12, 6


@pytest.fixture
def run(tmp_path):
    data = lira.plant(dataset(), lira.Canaries(C, "random"))
    return lira.Run.create(
        tmp_path / "run",
        data,
        lira.Recipe(epochs=2, batch_size=8, ema=0.5),
        num_models=M,
        signals=("phi@0.5",),
    )


@pytest.fixture
def said():
    """What models 4 and 1 say: phi and correct about the pool, about the test set, and with the weights as trained."""
    rng = np.random.default_rng(0)

    def draw(n):
        return rng.normal(size=(2, n, 1)).astype(np.float32), rng.random((2, n)) < 0.6

    return {
        "averaged": draw(N + C),
        "tested": draw(7),
        "raw": draw(N + C),
        "raw tested": draw(7),
        "look": draw(N + C),
    }


def asked(run, said, finite=(True, True)):
    def sweep(variables, x, y):
        phi, correct = said[variables if x == "x" else f"{variables} tested".removeprefix("averaged ")]
        return {"phi": phi}, correct

    programs: Any = SimpleNamespace(width=2, sweep=sweep, clean=sweep)
    data: Any = Data("x", "y", "x_test", "y_test")  # pyright: ignore[reportArgumentType]
    learned = Learned("averaged", np.array(finite), "raw", looks={"phi@0.5": "look"})
    return answers_of(run, data, programs, np.array([4, 1]), learned)


def test_accuracies_and_losses_are_of_the_pools_own_examples(run, said):
    arrays, finite = asked(run, said)
    keep = run.memberships(np.array([4, 1]))[:, :N]
    assert finite.tolist() == [True, True]
    for prefix, name in (("", "averaged"), ("raw_", "raw")):
        correct = said[name][1][:, :N]
        for side, held in (("in", keep), ("out", ~keep)):
            expected = [right[among].mean() for right, among in zip(correct, held, strict=True)]
            np.testing.assert_allclose(arrays[f"accuracy_{prefix}{side}"], expected, rtol=1e-6)
        tested = said[f"{name} tested".removeprefix("averaged ")][1]
        np.testing.assert_allclose(arrays[f"accuracy_{prefix}test"], tested.mean(axis=1), rtol=1e-6)
    phi = said["averaged"][0][:, :N, 0].astype(np.float64)
    losses = [np.log1p(np.exp(-row[held])).mean() for row, held in zip(phi, keep, strict=True)]
    np.testing.assert_allclose(arrays["loss_in"], losses, rtol=1e-6)
    for name, at in (("phi", "averaged"), ("phi_test", "tested"), ("phi@0.5", "look")):
        np.testing.assert_array_equal(arrays[name], said[at][0])


@pytest.mark.parametrize("at", ["averaged", "tested", "look"])
def test_a_model_that_answers_anything_with_nan_has_diverged(run, said, at):
    said[at][0][1, -1, 0] = np.nan
    assert asked(run, said)[1].tolist() == [True, False]
    assert asked(run, said, finite=(False, True))[1].tolist() == [False, False]
