"""What a model does not take is one line, before anything is written or trained."""

import sys

import flax.linen as nn
import numpy as np
import pytest

import lira
from lira.data.dataset import Dataset
from lira.learning.learner import Learner
from lira.learning.recipe import Recipe

CODE = """
import flax.linen as nn, jax, jax.numpy as jnp
class Net(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(self.num_classes)(x.reshape(len(x), -1))
        return x
"""


def data(shape=(12, 5), dtype=np.float32):
    return Dataset.from_arrays(np.ones(shape, dtype), np.arange(shape[0]) % 3)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("self.num_classes)", "10)", r"returns shape \[7, 10\] in evaluation .* here \[7, 3\]"),
        ("return x", "return x[0]", r"returns shape \[3\] in evaluation"),
        ("return x", "return x, x", "returns a tuple in evaluation"),
        ("return x", "return x[:, :2] if train else x", r"returns shape \[7, 2\] in training"),
        (", train)", ")", r"must be called with \(x, train\): write __call__\(self, x, train\)"),
        (
            "return x",
            "return jax.random.bernoulli(self.make_rng('drop_path'), 0.5) * x if train else x",
            r'draws in training from another random stream .*"drop_path".*use make_rng\("dropout"\)',
        ),
        (
            "return x",
            "return x + jax.random.normal(self.make_rng('noise'), x.shape)",
            r'from another random stream .*"noise"',
        ),
        (
            "return x",
            "return x @ jnp.ones((4, 3))",
            r"fails when it is made on memory.*\(rows of features: .*mine\.py:8\)",
        ),
        ("return x", "return y", r"NameError: name 'y' is not defined \(.*mine\.py:8\)"),
        ("x = nn.Dense(self.num_classes)(x.reshape(len(x), -1))", "x = x[:, :3]", "has no parameters"),
    ],
)
def test_modules_that_do_not_fit_are_one_line_and_write_nothing(tmp_path, monkeypatch, old, new, message):
    assert CODE.count(old) == 1
    (tmp_path / "mine.py").write_text(CODE.replace(old, new))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    with pytest.raises(ValueError, match=rf"model 'mine\.Net': .*{message}") as caught:
        lira.Run.create(tmp_path / "run", data(), Recipe(model="mine.Net", batch_size=3), num_models=4)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["cnn", "cnn-small", "cnn-fast", "wrn-10-1"])
def test_what_has_no_image_axes_is_named(model):
    for shape, hint in (
        ((12, 64), "rows of features"),
        ((12, 8, 8), r"no channel axis: give x\[\.\.\., None\]"),
    ):
        with pytest.raises(
            ValueError, match=rf"model '{model}': .*memory, whose x is float32 \[N, .*\({hint}"
        ):
            Learner.of(Recipe(model=model, batch_size=2), data(shape))
    Learner.of(Recipe(model=model, batch_size=2), data((12, 8, 8, 1)))


def test_images_too_small_for_a_model_are_named():
    with pytest.raises(ValueError, match=r"model 'cnn-fast': fails .* \[N, 4, 4, 1\]"):
        Learner.of(Recipe(model="cnn-fast", batch_size=2), data((12, 4, 4, 1)))


class Dropping(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        return nn.Dense(self.num_classes)(nn.Dropout(0.5, deterministic=not train)(x))


def test_what_fits_passes():
    for model in ("mlp", f"{__name__}.Dropping"):
        assert Learner.of(Recipe(model=model, batch_size=2), data()).total_steps
