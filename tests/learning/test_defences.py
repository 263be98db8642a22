"""Label smoothing, mixup, dropout, early stopping and masked confidences, each against its definition written out."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import lira
from lira.data.dataset import Dataset
from lira.learning import training
from lira.learning.augment import Mixed, Queries, mixed
from lira.learning.evaluation import query
from lira.learning.learner import Learner, model_key
from lira.learning.losses import cross_entropy, of_mixture
from lira.learning.masking import masked_logits
from lira.learning.models import MLP, build_model
from lira.learning.privacy import Privacy
from lira.learning.recipe import Recipe, learning_rate
from lira.learning.training import epoch_order, init_model, train_epochs
from lira.signals import entropy, logit_scaled_confidence
from lira.store.config import Config
from lira.store.errors import RunError

rng = np.random.default_rng(0)
X: np.ndarray = rng.normal(size=(40, 5)).astype(np.float32)
Y = rng.integers(0, 3, 40).astype(np.int32)
KEEP = np.arange(40) % 2 == 0


class Linear(nn.Module):
    num_classes: int = 3

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(self.num_classes)(x)


def softmax(logits):
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def smoothed(labels, classes, smoothing):
    return (1 - smoothing) * np.eye(classes)[labels] + smoothing / classes


def trained(learner, state, key, epochs, steps):
    """A model after some epochs of so many steps, and their losses."""
    train = jax.jit(partial(train_epochs, learner), static_argnums=3)
    return train(state, key, 0, epochs, steps, X, Y, KEEP)


# --- In training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_smoothed_loss_is_cross_entropy_of_the_smoothed_label(smoothing):
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        logits, labels = 5 * rng.normal(size=(7, 4)), rng.integers(0, 4, 7)
        target = smoothed(labels, 4, smoothing)

        @jax.jit
        def both(logits):
            loss, backward = jax.vjp(partial(cross_entropy, labels=labels, smoothing=smoothing), logits)
            return loss, *backward(jnp.ones(7))

        loss, gradient = both(logits)
        np.testing.assert_allclose(loss, -(target * np.log(softmax(logits))).sum(axis=1), rtol=1e-12)
        np.testing.assert_allclose(gradient, softmax(logits) - target, rtol=1e-11, atol=1e-13)


def test_mixup_is_a_convex_combination_with_draws_of_beta():
    images = np.random.default_rng(1).normal(size=(6, 2, 2, 1)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 2000)
    found = jax.jit(jax.vmap(partial(mixed, images=jnp.asarray(images), alpha=0.4)))(keys)
    assert stats.kstest(np.asarray(found.share), stats.beta(0.4, 0.4).cdf).pvalue > 0.01
    partners, share = np.asarray(found.partners), np.asarray(found.share)[:, None, None, None, None]
    np.testing.assert_array_equal(np.sort(partners, axis=1), np.tile(np.arange(6), (2000, 1)))
    np.testing.assert_allclose(found.images, share * images + (1 - share) * images[partners], atol=1e-6)
    # Every example has every partner as often as any other.
    counts = (partners[:, :, None] == np.arange(6)).sum(axis=0)
    assert stats.chisquare(counts.ravel()).pvalue > 0.01


def test_mixed_loss_is_that_of_the_mixed_labels():
    logits = np.random.default_rng(1).normal(size=(5, 3))
    labels, partners = np.array([0, 1, 2, 2, 0]), np.array([4, 2, 0, 1, 3])
    losses = partial(cross_entropy, smoothing=0.1)
    target = 0.3 * smoothed(labels, 3, 0.1) + 0.7 * smoothed(labels[partners], 3, 0.1)
    found = jax.jit(partial(of_mixture, losses))(partners, 0.3, logits, labels)
    np.testing.assert_allclose(found, -(target * np.log(softmax(logits))).sum(axis=1), rtol=1e-5)


def test_step_by_mixed_examples_and_smoothed_labels_against_numpy(monkeypatch):
    """Of a linear model, with a mixture that is known."""
    recipe = Recipe(epochs=1, batch_size=20, learning_rate=0.5, momentum=0, mixup=1.0, label_smoothing=0.2)
    learner, key, partners = Learner(Linear(), recipe, 1), model_key(0, 0), np.arange(20)[::-1]
    monkeypatch.setattr(
        training,
        "mixed",
        lambda key, images, alpha: Mixed(
            0.3 * images + 0.7 * images[partners], jnp.asarray(partners), jnp.float32(0.3)
        ),
    )
    state = jax.jit(partial(init_model, learner))(key, X)
    found, losses = trained(learner, state, key, 1, 1)
    batch = np.asarray(epoch_order(learner, key, 0, KEEP))
    x = 0.3 * X[batch].astype(np.float64) + 0.7 * X[batch][partners]
    target = 0.3 * smoothed(Y[batch], 3, 0.2) + 0.7 * smoothed(Y[batch][partners], 3, 0.2)
    weights = np.asarray(state.params["Dense_0"]["kernel"], np.float64)
    p = softmax(x @ weights)
    np.testing.assert_allclose(losses, -(target * np.log(p)).sum(axis=1).mean(), rtol=1e-5)
    expected = weights - 0.5 * x.T @ (p - target) / 20
    np.testing.assert_allclose(found.params["Dense_0"]["kernel"], expected, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "cnn", "cnn-small"])
def test_dropout_drops_its_share_in_training_alone(name):
    x, key = np.random.default_rng(1).normal(size=(64, 8, 8, 1)).astype(np.float32), jax.random.key(1)
    with_dropout, without = build_model(name, 3, 0.4), build_model(name, 3)

    @jax.jit
    def asked_and_trained(x, key):
        of_both = [m.init(jax.random.key(0), x, train=False) for m in (with_dropout, without)]
        asked = [m.apply(of_both[1], x, train=False) for m in (with_dropout, without)]
        flags = {"train": True, "capture_intermediates": True, "mutable": "intermediates"}
        return of_both, asked, with_dropout.apply(of_both[1], x, rngs={"dropout": key}, **flags)[1]

    of_both, asked, seen = asked_and_trained(x, key)
    assert jax.tree.all(jax.tree.map(np.array_equal, *of_both))
    np.testing.assert_array_equal(asked[0], asked[1])
    layers = {
        name: value["__call__"][0] for name, value in seen["intermediates"].items() if name != "__call__"
    }
    dropped = np.asarray(layers["Dropout_0"]).reshape(64, -1)
    before = layers["Dense_0"] if name == "mlp" else layers["Conv_2"]
    kept = np.maximum(np.asarray(before), 0).reshape(64, -1)
    units = kept > 0
    share = 1 - (dropped[units] != 0).mean()
    assert abs(share - 0.4) < 4 * np.sqrt(0.24 / units.sum())
    np.testing.assert_allclose(dropped[dropped != 0], kept[dropped != 0] / 0.6, rtol=1e-5)


def test_models_without_dropout_refuse_it():
    for name in ("resnet18", "wrn-10-1", "cnn-fast"):
        with pytest.raises(ValueError, match=f"recipe.dropout is 0.1, but model '{name}' has no dropout"):
            build_model(name, 3, 0.1)
    assert build_model("lira.learning.models.MLP", 3, 0.1) == MLP(3, dropout=0.1)


def test_early_stopping_is_the_beginning_of_a_longer_training():
    data = Dataset(X, Y, 3, "some")
    whole, early = Recipe(epochs=4, batch_size=5), Recipe(epochs=2, schedule_epochs=4, batch_size=5)
    states, learners = [], []
    for recipe in (whole, early):
        learner = dataclasses.replace(Learner.of(recipe, data), module=Linear())
        key = learner.key(0)
        state = jax.jit(partial(init_model, learner))(key, X)
        states.append(trained(learner, state, key, 2, 4)[0].params)
        learners.append(learner)
    assert jax.tree.all(jax.tree.map(np.array_equal, *states))
    assert learners[0].total_steps == learners[1].total_steps == 16
    rates = [float(jnp.asarray(learning_rate(each.recipe, each.total_steps)(7))) for each in learners]
    assert rates[0] == rates[1]


# --- At the queries ---------------------------------------------------------------------------------------------------


def released(logits, temperature, decimals, top_k):
    """What is known of one example's confidences, float64 `[C]`: written out on probabilities."""
    p, order = softmax(logits / temperature), np.argsort(-logits, kind="stable")
    unit = 10.0**-decimals if decimals else 0.0
    seen = np.round(p, decimals) if decimals else p
    known = np.where(seen == 0, unit / 4, seen)
    if top_k:
        first, others = order[:top_k], order[top_k:]
        each = (1 - seen[first].sum()) / len(others)
        known[others] = min(max(each, unit / 4), known[first].min())
    return known


def answered(logits, labels, **masks):
    """Phi and entropy of masked logits."""

    def both(logits, labels):
        masked = masked_logits(logits, **masks)
        return logit_scaled_confidence(masked, labels), entropy(masked)

    return jax.tree.map(np.asarray, jax.jit(both)(jnp.asarray(logits, jnp.float32), jnp.asarray(labels)))


@pytest.mark.parametrize("temperature", [0.5, 3.0])
@pytest.mark.parametrize("decimals", [0, 1, 3])
@pytest.mark.parametrize("top_k", [0, 1, 5])
def test_masked_phi_against_released_probabilities(temperature, decimals, top_k):
    rng = np.random.default_rng(1)
    logits, labels = 2 * rng.normal(size=(200, 6)), rng.integers(0, 6, 200)
    if decimals:  # what lies within float32's error of a half rounds either way
        units = softmax(logits / temperature) * 10**decimals
        clear = (np.abs(units % 1 - 0.5) > 1e-3).all(axis=1)
        logits, labels = logits[clear], labels[clear]
    logits, labels = logits[:100], labels[:100]
    assert len(logits) == 100
    phi, h = answered(logits, labels, temperature=temperature, decimals=decimals, top_k=top_k)
    assert phi.dtype == np.float32
    known = np.stack([released(row, temperature, decimals, top_k) for row in logits])
    of_label = known[np.arange(len(known)), labels]
    expected = np.log(of_label) - np.log(known.sum(axis=1) - of_label)
    np.testing.assert_allclose(phi, expected, rtol=2e-5, atol=2e-5)
    p = known / known.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(h, -(p * np.log(p)).sum(axis=1), rtol=2e-5, atol=2e-5)


def test_withheld_and_rounded_confidences_saturate_nowhere_and_hide_no_nan():
    sure, labels = [[90.0, 0, 0, 0], [200.0, 0, 0, 0], [np.nan, 0, 0, 0]], [0, 0, 0]
    np.testing.assert_array_equal(answered(sure, labels, top_k=1)[0], answered(sure, labels)[0])
    rounded = answered(sure, labels, decimals=2)[0]
    np.testing.assert_allclose(rounded[:2], np.log(1 / (3 * 0.0025)), rtol=1e-6)  # both are rounded to 1
    assert np.isnan(rounded[2])
    # A label that is not released is not told from others that are not, and hides how unlikely it is.
    wrong = [[5.0, 1, -3, 2], [5.0, -3, 1, 2]]
    hidden = answered(wrong, [1, 1], top_k=2)[0]
    np.testing.assert_allclose(hidden[0], hidden[1], rtol=1e-6)


def test_every_signal_is_of_what_is_released_and_accuracy_is_not():
    module, queries = Linear(), Queries(decimals=1, temperature=8.0)
    initial = jax.jit(partial(module.init, train=False))(jax.random.key(0), X)
    variables = jax.tree.map(lambda leaf: 3 * np.asarray(leaf), initial)

    def ask(queries):
        return jax.jit(partial(query, module, queries, ("entropy", "logits")))(variables, X, Y)

    plain, right = ask(Queries())
    answers, correct = ask(queries)
    np.testing.assert_array_equal(correct, right)  # though rounding makes ties
    masked = jax.jit(partial(masked_logits, temperature=8.0, decimals=1))(plain["logits"])
    np.testing.assert_allclose(answers["logits"], masked, rtol=1e-6)
    assert len(np.unique(answers["phi"])) < 30 < len(np.unique(plain["phi"]))
    np.testing.assert_allclose(answers["entropy"], jax.jit(entropy)(masked), rtol=1e-6)


# --- Refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(Recipe, label_smoothing=1.0), r"recipe.label_smoothing must be in \[0, 1\); got 1.0"),
        (partial(Recipe, dropout=-0.1), r"recipe.dropout must be in \[0, 1\); got -0.1"),
        (partial(Recipe, mixup=-1.0), "recipe.mixup must not be negative; got -1.0"),
        (partial(Recipe, mixup=float("nan")), "recipe.mixup must not be negative; got nan"),
        (partial(Recipe, epochs=9, schedule_epochs=8), "at least recipe.epochs, 9, .*; got 8"),
        (
            partial(Recipe, mixup=0.2, privacy=Privacy(epsilon=1.0)),
            "recipe.mixup mixes examples, .*: leave one out",
        ),
        (partial(Queries, temperature=0.0), "queries.temperature must be positive; got 0.0"),
        (partial(Queries, temperature=float("nan")), "queries.temperature must be positive; got nan"),
        (partial(Queries, decimals=8), "queries.decimals must be 1 to 7, .*; got 8"),
        (partial(Queries, top_k=-1), "queries.top_k must be 0 .* or more; got -1"),
        (lambda: Queries(top_k=3).check((5,), 3), "queries.top_k must be below the 3 classes"),
        (
            lambda: Config(recipe=Recipe(dropout=0.1), queries=Queries(convention="original")),
            "in which recipe.dropout drops: leave one out",
        ),
    ],
)
def test_bad_values_are_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields", [{"recipe": Recipe(batch_size=5, mixup=0.2)}, {"queries": Queries(top_k=1)}]
)
def test_what_a_target_does_not_say_is_not_imitated(fields, tmp_path):
    data = Dataset(X, Y, 3, "memory")
    run = lira.Run.create(
        tmp_path / "run", data, **{"recipe": Recipe(batch_size=5), "num_models": 4, **fields}
    )
    with pytest.raises(RunError, match="its recipe mixes examples, or its queries mask confidences"):
        lira.imitate(run, data, target=0)
