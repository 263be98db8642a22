import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lira.data.dataset import Dataset
from lira.learning.convolution import LOWERINGS, lowering
from lira.learning.evaluation import norm_constants
from lira.learning.forward import as_input
from lira.learning.learner import Learner, model_key
from lira.learning.models import CNN, MLP, ResNet18, WideResNet, _Standardised, build_model, max_pool
from lira.learning.privacy import Privacy
from lira.learning.recipe import Recipe
from lira.learning.training import init_model, train_epochs, train_step


@pytest.mark.parametrize(
    ("module", "shape", "parameters"),
    [
        # 64 x 128 + 128 + 128 x 128 + 128 + 128 x 10 + 10
        (MLP(num_classes=10), (8, 8, 1), 26_122),
        # 3 x 3 x (3 x 32 + 32 x 64 + 64 x 128) + 224, and 8 x 8 x 128 x 10 + 10
        (CNN(num_classes=10), (32, 32, 3), 93_248 + 81_930),
        (build_model("cnn-small", 10), (32, 32, 3), 93_248 + 20_490),
        # 9 x (3 x 32 + 32 x 64 + 64 x 64 + 64 x 256 + 3 x 256 x 256), two a channel of each norm, and 256 x 10 + 10
        (build_model("cnn-fast", 10), (32, 32, 3), 1_973_088 + 2 * 1_184 + 2_570),
        # As published for CIFAR-10.
        (ResNet18(num_classes=10), (32, 32, 3), 11_173_962),
        (WideResNet(num_classes=10, depth=28, widen=10), (32, 32, 3), 36_479_194),
        (build_model("wrn-28-2", 10), (32, 32, 3), 1_467_610),
    ],
)
def test_models_have_the_published_sizes(module, shape, parameters):
    x = jnp.zeros((2, *shape))
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters
    assert jax.eval_shape(lambda v: module.apply(v, x, train=False), variables).shape == (2, 10)


def test_training_mode_moves_the_statistics_and_evaluation_does_not():
    module = WideResNet(num_classes=3, depth=10, widen=1)
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    variables = jax.jit(partial(module.init, train=False))(jax.random.key(0), x)
    apply = jax.jit(partial(module.apply, mutable=["batch_stats"]), static_argnames="train")
    (_, trained), (_, evaluated) = (apply(variables, x, train=train) for train in (True, False))
    changed = jax.tree.map(
        lambda a, b: not np.array_equal(a, b), trained["batch_stats"], variables["batch_stats"]
    )
    assert all(jax.tree.leaves(changed))
    same = jax.tree.map(np.array_equal, evaluated["batch_stats"], variables["batch_stats"])
    assert all(jax.tree.leaves(same))


def test_convolutions_beside_groupnorm_standardise_their_kernels():
    conv = _Standardised(5, (3, 3), use_bias=False)
    x = jax.random.normal(jax.random.key(1), (2, 6, 6, 4))
    raw = 3 + 2 * jax.random.normal(jax.random.key(0), (3, 3, 4, 5)).at[..., 4].set(0)  # one of equal weights
    written_out = np.asarray(raw, np.float64)
    written_out = (written_out - written_out.mean((0, 1, 2))) / np.maximum(written_out.std((0, 1, 2)), 1e-9)
    plain = nn.Conv(5, (3, 3), use_bias=False)
    # Of 36 inputs each.
    expected = jnp.asarray(plain.apply({"params": {"kernel": jnp.asarray(written_out / 6, jnp.float32)}}, x))
    for how in ("xla", "patches"):
        with lowering(how, "cpu"):
            given = jnp.asarray(conv.apply({"params": {"kernel": raw}}, x))
        np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def separable():
    """Images of two slants and of nothing, with a little noise, their labels, and which half is trained on."""
    labels = np.arange(48, dtype=np.int32) % 3
    noise = np.random.default_rng(0).integers(0, 20, (48, 8, 8, 1))
    slant = np.stack([np.eye(8), np.eye(8)[::-1], np.zeros((8, 8))]).astype(int)[..., None]
    return (noise + 200 * slant[labels]).astype(np.uint8), labels, np.arange(48) < 24


def training_with_groupnorm(separable, epochs, **fields):
    """A learner, and its training as a function of a key: the state and the losses of epochs."""
    x, y, keep = separable
    recipe = Recipe(model="wrn-10-1-gn", epochs=epochs, batch_size=12, learning_rate=0.1, **fields)
    learner = Learner.of(recipe, Dataset.from_arrays(x, y))

    @jax.jit
    def train(key):
        with lowering("patches", "cpu"):
            return train_epochs(learner, init_model(learner, key, x), key, 0, epochs, 2, x, y, keep)

    return learner, train


def test_network_with_groupnorm_learns_its_members(separable):
    learner, train = training_with_groupnorm(separable, 12)
    state, losses = train(model_key(0, 0))
    x, y, keep = separable
    answer = jax.jit(partial(learner.module.apply, train=False))
    right = np.argmax(answer({"params": state.params}, as_input(x, jnp.float32)), axis=1) == y
    assert losses[0] > 0.5
    assert losses[-1] < 0.1
    assert right[keep].mean() == 1
    assert right[~keep].mean() > 0.9


def test_network_with_groupnorm_trains_in_private(separable):
    _, train = training_with_groupnorm(separable, 1, privacy=Privacy(noise=0.5, clip=0.1))
    first, again, another = (jax.tree.leaves(train(model_key(0, index))) for index in (0, 0, 1))
    for a, b in zip(first, again, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(first, another, strict=True))


def scattering_max_pool(x):
    return nn.max_pool(x, (2, 2), strides=(2, 2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(3, 8, 8, 5), (2, 7, 4, 3), (2, 6, 9, 1), (1, 5, 3, 2)])
def test_max_pool_has_flaxs_value_and_gradient(shape, dtype):
    normal = jax.random.normal(jax.random.key(0), shape, dtype)
    gradient = jax.random.normal(jax.random.key(1), (shape[0], shape[1] // 2, shape[2] // 2, shape[3]), dtype)

    @jax.jit
    def both(x):
        results = [jax.vjp(pool, x) for pool in (max_pool, scattering_max_pool)]
        return [(value, back(gradient)[0]) for value, back in results]

    infinite = jnp.where(normal < 0.5, jnp.array(-jnp.inf, dtype), normal)
    for x in (normal, jnp.round(normal), nn.relu(normal - 1), infinite):
        ours, theirs = both(x)
        for mine, expected in zip(ours, theirs, strict=True):
            assert mine.dtype == expected.dtype == dtype
            np.testing.assert_array_equal(mine, expected)


def test_max_pool_of_a_stack_is_that_of_each_model():
    x = jnp.round(2 * jax.random.normal(jax.random.key(0), (4, 3, 6, 8, 5)))

    def gradient(pool):
        return jax.grad(lambda x: jnp.sum(jnp.sin(pool(x)) * jnp.arange(5.0)))

    together = jax.jit(jax.vmap(gradient(max_pool)))(x)
    for one, stacked in zip(x, together, strict=True):
        np.testing.assert_allclose(stacked, gradient(scattering_max_pool)(one), rtol=1e-6)


def test_max_pool_does_not_hide_what_is_no_number():
    x = jnp.zeros((4, 4, 1)).at[[0, 3], [0, 3]].set(jnp.nan)
    np.testing.assert_array_equal(jnp.isnan(max_pool(x))[..., 0], np.eye(2, dtype=bool))


def test_max_pool_scatters_nowhere():
    x = jnp.zeros((2, 7, 8, 3))
    text = {
        pool: jax.jit(jax.vmap(jax.grad(lambda x, pool=pool: jnp.sum(pool(x))))).lower(x[None]).as_text()
        for pool in (max_pool, scattering_max_pool)
    }
    assert "scatter" in text[scattering_max_pool]
    assert "scatter" not in text[max_pool]


def test_fast_network_learns_labels_by_heart():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (32, 8, 8, 3)).astype(np.uint8)
    y = rng.integers(0, 3, 32).astype(np.int32)
    module = build_model("cnn-fast", 3)
    recipe = Recipe(batch_size=16, learning_rate=0.05, schedule="constant", precision="bfloat16")
    key = model_key(0, 0)
    state = jax.jit(partial(init_model, Learner(module, recipe, 16)))(key, x)

    @jax.jit
    def step(state):
        with lowering("patches", "cpu"):
            return train_step(Learner(module, recipe, 16), state, key, state.step, 0, jnp.arange(16), x, y)

    losses = []
    for _ in range(16):
        state, loss = step(state)
        losses.append(float(loss))
    # The first loss is that of a guess; the labels have nothing to do with the images.
    assert losses[0] == pytest.approx(np.log(3), abs=0.5)
    assert losses[-1] < 0.1


MINE = """
import flax.linen as nn

class Net(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(5, (3, 3), strides=2)(x))
        x = nn.Conv(5, (3, 3), feature_group_count=5)(x)
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))

def function(num_classes):
    return None

class Plain:
    pass

class Needy(nn.Module):
    num_classes: int
    more: int
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def test_users_own_module_gains_the_lowering_without_change(mine):
    module = build_model("mine.Net", 3)
    assert build_model("mine:Net", 3) == module
    x = jax.random.normal(jax.random.key(1), (4, 9, 9, 2))
    variables = jax.jit(partial(module.init, train=False))(jax.random.key(0), x)

    def loss(variables, how):
        with lowering(how, "cpu"):
            return jnp.sum(jnp.asarray(module.apply(variables, x, train=False)) ** 2)

    lowered = {how: jax.jit(jax.value_and_grad(partial(loss, how=how))).lower(variables) for how in LOWERINGS}
    results = {how: each.compile()(variables) for how, each in lowered.items()}
    for how in ("patches", "winograd", "mixed"):
        for ours, theirs in zip(*(jax.tree.leaves(results[name]) for name in (how, "xla")), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    text = {how: jax.jit(lambda v, how=how: loss(v, how)).lower(variables).as_text() for how in LOWERINGS}
    assert text["xla"].count("stablehlo.convolution") == 2
    for how in ("patches", "winograd"):
        assert text[how].count("stablehlo.convolution") == 1, "only the grouped one is left to XLA"


def test_class_of_the_running_script_works(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "Net", MLP, raising=False)
    assert build_model("__main__.Net", 3) == MLP(num_classes=3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mpl", "unknown model 'mpl', did you mean 'mlp'"),
        ("transformer", "unknown model 'transformer'.*dotted path of a flax module"),
        ("wrn-27-2", r"depth is 6n \+ 4"),
        ("wrn-28-0", r"depth is 6n \+ 4"),
        ("absent_module.Net", "cannot import 'absent_module'"),
        ("mine.Absent", "'mine' has no 'Absent'"),
        ("mine.Plain", "is not a flax.linen.Module class"),
        ("mine.function", "is not a flax.linen.Module class"),
        ("mine.Needy", "must take num_classes as its one required argument"),
    ],
)
def test_names_that_lead_nowhere_are_one_line(mine, name, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_model(name, 3)
    assert "\n" not in str(caught.value)


class OfNnx(nnx.Module):
    def __init__(self, num_classes, *, rngs):
        self.norm, self.out = nnx.BatchNorm(4, rngs=rngs), nnx.Linear(4, num_classes, rngs=rngs)

    def __call__(self, x, train):
        return self.out(self.norm(x, use_running_average=not train))


class Wrapped(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        return nnx.bridge.ToLinen(OfNnx, (self.num_classes,))(x, train)


def test_a_module_of_nnx_is_told_to_be_wrapped_and_comes_in_so():
    """Its wrapper answers for attributes that it does not have by a method, in which the look for norms never ended."""
    with pytest.raises(
        ValueError, match=r"is not a flax.linen.Module class: wrap it in one, by flax.nnx.bridge"
    ):
        build_model(f"{__name__}.OfNnx", 3)
    x = np.ones((2, 4), np.float32)
    module = build_model(f"{__name__}.Wrapped", 3)
    assert norm_constants(module, x) == {}
    variables = module.init(jax.random.key(0), x, train=False)
    assert module.apply(variables, x, train=False).shape == (2, 3)  # pyright: ignore[reportAttributeAccessIssue]
