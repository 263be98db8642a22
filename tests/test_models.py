import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from lira.models import CNN, MLP, ResNet18, WideResNet, build_model, lowering, patches_conv

NUMBERS = ("NHWC", "HWIO", "NHWC")


def reference(x, kernel, strides, padding):
    """Value and gradients of the plain convolution in float64, by XLA."""
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(np.asarray(x), jnp.float64), jnp.asarray(np.asarray(kernel), jnp.float64)

        def conv(x, kernel):
            return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NUMBERS)

        y, back = jax.vjp(conv, x, kernel)
        return y, back


@settings(max_examples=15)
@given(
    size=st.sampled_from([(1, 1), (3, 3), (5, 5), (3, 1), (2, 2)]),
    strides=st.sampled_from([(1, 1), (2, 2), (1, 2)]),
    height=st.integers(5, 9),
    width=st.integers(5, 9),
    padding=st.sampled_from(["SAME", "VALID", ((0, 2), (1, 0))]),
    seed=st.integers(0, 2**31 - 1),
)
def test_patches_agree_with_xla_in_value_and_gradients(size, strides, height, width, padding, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, height, width, 3)).astype(np.float32)
    kernel = rng.normal(size=(*size, 3, 4)).astype(np.float32)
    expected, expected_back = reference(x, kernel, strides, padding)
    y, back = jax.vjp(lambda x, k: patches_conv(x, k, strides, padding, dimension_numbers=NUMBERS), x, kernel)
    cotangent = rng.normal(size=y.shape).astype(np.float32)
    with jax.enable_x64(True):
        wide = [np.asarray(g) for g in expected_back(jnp.asarray(cotangent, jnp.float64))]
    # Sums of at most 5 x 5 x 4 (values, input) or 2 x 9 x 9 (kernel) products of unit size, in float32.
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-5)
    for ours, theirs in zip(back(cotangent), wide, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=4e-5)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_under_vmap_it_is_a_matrix_product_without_scatter_or_convolution(strides):
    x, kernel = jnp.ones((3, 2, 8, 8, 3)), jnp.ones((3, 3, 3, 3, 4))

    def loss(x, kernel):
        return jnp.sum(patches_conv(x, kernel, strides, "SAME", dimension_numbers=NUMBERS) ** 2)

    lowered = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1)))).lower(x, kernel).as_text()
    assert "dot_general" in lowered
    assert "scatter" not in lowered
    assert "convolution" not in lowered


def test_first_layers_input_gradient_costs_nothing():
    """Without it the backward pass has one matrix product less."""
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))

    def loss(x, kernel):
        return jnp.sum(patches_conv(x, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS) ** 2)

    products = [
        str(jax.jit(jax.grad(loss, argnums=wanted)).lower(x, kernel).compile().as_text()).count(" dot(")
        for wanted in ((0, 1), (1,))
    ]
    assert products[0] == products[1] + 1


@pytest.mark.parametrize(
    "options", [{"feature_group_count": 3}, {"rhs_dilation": (2, 2)}, {"lhs_dilation": (2, 2)}]
)
def test_other_convolutions_fall_back(options):
    x = jnp.ones((1, 8, 8, 3))
    kernel = jnp.ones((3, 3, 3 // options.get("feature_group_count", 1), 3))
    around = ((1, 1), (1, 1))
    ours = patches_conv(x, kernel, (1, 1), around, dimension_numbers=NUMBERS, **options)
    theirs = lax.conv_general_dilated(x, kernel, (1, 1), around, dimension_numbers=NUMBERS, **options)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("module", "shape", "parameters"),
    [
        # 64 x 128 + 128 + 128 x 128 + 128 + 128 x 10 + 10
        (MLP(num_classes=10), (8, 8, 1), 26_122),
        # 3 x 3 x (3 x 32 + 32 x 64 + 64 x 128) + 224, and 8 x 8 x 128 x 10 + 10
        (CNN(num_classes=10), (32, 32, 3), 93_248 + 81_930),
        (build_model("cnn-small", 10), (32, 32, 3), 93_248 + 20_490),
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
    variables = module.init(jax.random.key(0), x, train=False)
    _, trained = module.apply(variables, x, train=True, mutable=["batch_stats"])
    _, evaluated = module.apply(variables, x, train=False, mutable=["batch_stats"])
    changed = jax.tree.map(
        lambda a, b: not np.array_equal(a, b), trained["batch_stats"], variables["batch_stats"]
    )
    assert all(jax.tree.leaves(changed))
    same = jax.tree.map(np.array_equal, evaluated["batch_stats"], variables["batch_stats"])
    assert all(jax.tree.leaves(same))


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


@pytest.mark.parametrize("name", ["mine.Net", "mine:Net"])
def test_users_own_module_gains_the_lowering_without_change(mine, name):
    module = build_model(name, 3)
    x = jax.random.normal(jax.random.key(1), (4, 9, 9, 2))
    variables = module.init(jax.random.key(0), x, train=False)

    def loss(variables, how):
        with lowering(how):
            return jnp.sum(jnp.asarray(module.apply(variables, x, train=False)) ** 2)

    results = {how: jax.value_and_grad(loss)(variables, how) for how in ("xla", "patches")}
    for ours, theirs in zip(*map(jax.tree.leaves, results.values()), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    text = {
        how: jax.jit(lambda v, how=how: loss(v, how)).lower(variables).as_text() for how in ("xla", "patches")
    }
    assert text["xla"].count("stablehlo.convolution") == 2
    assert text["patches"].count("stablehlo.convolution") == 1, "only the grouped one is left to XLA"


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


def test_unknown_lowering_is_refused():
    with (
        pytest.raises(ValueError, match="lowering must be one of xla, patches; got 'winograd'"),
        lowering("winograd"),
    ):
        pass
