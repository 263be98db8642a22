"""What a module of one's own answers before training: alone, the same each time, in logits; modules of nnx with dropout."""

import warnings
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lira
from lira.data.dataset import Dataset
from lira.learning.forward import apply_module
from lira.learning.learner import Learner
from lira.learning.logits import BoundedWarning
from lira.learning.recipe import Recipe
from lira.learning.training import init_model

X = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
DATA = Dataset.from_arrays(X, np.arange(24) % 3)
PAIR = Dataset.from_arrays(X, np.arange(24) % 2)


class OfNnx(nnx.Module):
    """Dropout by what `evaluation` says of `train`, from the stream that `stream` names."""

    def __init__(self, num_classes, *, rngs, stream="dropout", own=False):
        self.hidden = nnx.Linear(5, 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rng_collection=stream, rngs=nnx.Rngs(0) if own else rngs)
        self.out = nnx.Linear(16, num_classes, rngs=rngs)

    def __call__(self, x, deterministic):
        return self.out(self.dropout(nnx.relu(self.hidden(x)), deterministic=deterministic))


class Wrapped(nn.Module):
    num_classes: int
    stream = "dropout"
    own = False
    always = False

    @nn.compact
    def __call__(self, x, train):
        options = {"stream": self.stream, "own": self.own}
        return nnx.bridge.ToLinen(OfNnx, (self.num_classes,), options)(x, not train and not self.always)


class OtherStream(Wrapped):
    stream = "noise"


class OwnStream(Wrapped):
    own = True


class Always(Wrapped):
    always = True


class Ends(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        return self.end(nn.Dense(self.num_classes)(x), train)

    def end(self, x, train):
        return x


class InSoftmax(Ends):
    def end(self, x, train):
        return nn.softmax(x)


class InLogSoftmax(Ends):
    def end(self, x, train):
        return nn.log_softmax(x)


class InSigmoid(Ends):
    def end(self, x, train):
        return nn.sigmoid(x)


class InPositive(Ends):
    def end(self, x, train):
        return nn.softplus(x)


class InTrainingWarmer(Ends):
    def end(self, x, train):
        return x / 2 if train else x


class InTheMean(Ends):
    def end(self, x, train):
        return x - x.mean(0)


class Noisy(Ends):
    def end(self, x, train):
        return x + jax.random.normal(jax.random.key(0), x.shape) if train else x


class Dropping(Ends):
    def end(self, x, train):
        return nn.Dropout(0.5, deterministic=False)(x)


class Untouched(Ends):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros)(x)


class OfZeros(Ends):
    @nn.compact
    def __call__(self, x, train):
        return nn.softmax(nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros)(x))


class Single(Ends):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(1)(x)


class Named(Ends):
    def end(self, x, train):
        return {"hidden": x, "logits": x}


class Several(Ends):
    def end(self, x, train):
        return x, x


def learner_of(model, dataset=DATA):
    return Learner.of(Recipe(model=f"{__name__}.{model.__name__}", batch_size=4), dataset)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (OtherStream, r"another random stream than dropout, .*'noise'.*: use make_rng.*test_answers\.py:\d+"),
        (
            OwnStream,
            "the same random numbers in every step of training: take them from the stream of dropout",
        ),
        (Noisy, "the same random numbers in every step of training"),
        (Always, "answers at random in evaluation: .* Give Dropout deterministic=not train"),
        (Dropping, r'draws at random in evaluation .*"dropout".*: give nn.Dropout deterministic=not train'),
        (InTheMean, "otherwise beside other examples, in evaluation: .*use_running_average=not train"),
        (InSoftmax, "returns probabilities, which sum to 1, and must return logits: leave out the softmax"),
        (OfZeros, "returns probabilities, which sum to 1"),
        (Several, r"returns a tuple .* here \[7, 3\], its \[0\] alone or its \[1\] alone"),
        (Named, r"returns a dict .* here \[7, 3\], its \['hidden'\] alone or its \['logits'\] alone"),
    ],
)
def test_answers_that_are_no_logits_of_the_example_are_refused_and_nothing_is_written(
    tmp_path, model, message
):
    recipe = Recipe(model=f"{__name__}.{model.__name__}", batch_size=4)
    with pytest.raises(ValueError, match=rf"model '{__name__}\.{model.__name__}': .*{message}") as caught:
        lira.Run.create(tmp_path / "run", DATA, recipe, num_models=4)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_one_logit_of_two_classes_is_told_what_to_become():
    with pytest.raises(
        ValueError, match=r"here \[7, 2\]: of one logit z .* return jnp\.concatenate\(\[0 \* z, z\], 1\)"
    ):
        learner_of(Single, PAIR)


def test_a_sigmoid_is_warned_of():
    with pytest.warns(
        BoundedWarning, match="as those of a sigmoid, .* leave out the sigmoid that it ends in"
    ):
        learner_of(InSigmoid)


@pytest.mark.parametrize("model", [Ends, InLogSoftmax, InPositive, InTrainingWarmer, Untouched, Wrapped])
def test_others_pass_without_a_word(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert learner_of(model).total_steps


def test_dropout_of_nnx_is_another_at_every_step_and_off_when_asked(tmp_path):
    """Asked, a trained model is the product of its stored weights, computed anew without dropout."""
    recipe = Recipe(model=f"{__name__}.Wrapped", epochs=2, batch_size=4)
    run = lira.Run.create(tmp_path / "run", DATA, recipe, num_models=4, save_params=True)
    learner = Learner.of(recipe, DATA)
    state = init_model(learner, learner.key(0), X)
    variables = {"params": state.params, **state.statistics}
    ask = jax.jit(partial(apply_module, learner.module))
    by_key = [np.asarray(ask(variables, jnp.asarray(X), key)[0]) for key in jax.random.split(learner.key(0))]
    assert np.abs(by_key[0] - by_key[1]).max() > 0.1
    lira.train(run, DATA, show_progress=False)
    flat, tree = jax.tree.flatten(variables)
    for stored, phi in zip(run.arrays.read("params"), np.asarray(run.phi), strict=True):
        parts = np.split(stored.astype(np.float64), np.cumsum([leaf.size for leaf in flat])[:-1])
        leaves = [part.reshape(leaf.shape) for part, leaf in zip(parts, flat, strict=True)]
        (weights,) = (value for value in jax.tree.unflatten(tree, leaves)["params"].values())
        hidden = np.maximum(X @ weights["hidden"]["kernel"] + weights["hidden"]["bias"], 0)
        logits = hidden @ weights["out"]["kernel"] + weights["out"]["bias"]
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        p = p[np.arange(24), DATA.y]
        np.testing.assert_allclose(phi[:, 0], np.log(p / (1 - p)), atol=1e-4)
