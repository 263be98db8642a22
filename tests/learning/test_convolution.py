from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from lira.learning.convolution import convolve, lowering, patches
from lira.learning.convolution.cpu import blocks, cache
from lira.learning.convolution.static import Convolution

NUMBERS = ("NHWC", "HWIO", "NHWC")


def value_and_gradients(function, x, kernel, cotangent):
    """What a convolution gives and what its backward pass makes of a cotangent, in one compiled program."""

    @jax.jit
    def both(x, kernel, cotangent):
        y, back = jax.vjp(function, x, kernel)
        return y, *back(cotangent)

    return [np.asarray(each) for each in both(x, kernel, cotangent)]


def reference(x, kernel, cotangent, strides, padding):
    """Value and gradients of the plain convolution in float64, by XLA."""
    plain = partial(
        lax.conv_general_dilated, window_strides=strides, padding=padding, dimension_numbers=NUMBERS
    )
    with jax.enable_x64(True):
        return value_and_gradients(plain, *(jnp.asarray(a, jnp.float64) for a in (x, kernel, cotangent)))


def result_shape(x, kernel, strides, padding):
    plain = partial(
        lax.conv_general_dilated, window_strides=strides, padding=padding, dimension_numbers=NUMBERS
    )
    return jax.eval_shape(plain, x, kernel).shape


def conv(by, strides, padding, x, kernel, platform="cpu"):
    return convolve(x, kernel, strides, padding, dimension_numbers=NUMBERS, lowering=by, platform=platform)


@contextmanager
def a_few_images_at_a_time():
    """A cache so small that a batch of six is cut on CPU, into parts; Winograd for any channels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "tiles_bytes", lambda: 24_000)
        patch.setattr(blocks, "WINOGRAD_CHANNELS", 1)
        patch.setattr(patches, "ROWS_AT_ONCE", 4)
        yield


@settings(max_examples=20)
@given(
    # As for an accelerator it is still computed on CPU, the whole batch at once.
    platform=st.sampled_from(["cpu", "gpu"]),
    by=st.sampled_from(["patches", "winograd", "mixed"]),
    batch=st.sampled_from([1, 6]),
    size=st.sampled_from([(1, 1), (3, 3), (5, 5), (3, 1), (2, 2)]),
    strides=st.sampled_from([(1, 1), (2, 2), (1, 2)]),
    height=st.integers(5, 9),
    width=st.integers(5, 9),
    padding=st.sampled_from(["SAME", "VALID", ((0, 2), (1, 0))]),
    seed=st.integers(0, 2**31 - 1),
)
def test_lowerings_agree_with_xla_in_value_and_gradients(
    platform, by, batch, size, strides, height, width, padding, seed
):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, height, width, 3)).astype(np.float32)
    kernel = rng.normal(size=(*size, 3, 4)).astype(np.float32)
    cotangent = rng.normal(size=result_shape(x, kernel, strides, padding)).astype(np.float32)
    expected, *wide = reference(x, kernel, cotangent, strides, padding)
    with a_few_images_at_a_time():
        ours = partial(conv, by, strides, padding, platform=platform)
        y, *gradients = value_and_gradients(ours, x, kernel, cotangent)
    # Sums of at most 5 x 5 x 4 (values, input) or 6 x 9 x 9 (kernel) products of unit size, in float32.
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-5)
    for ours, theirs in zip(gradients, wide, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=6e-5)


def test_no_lowering_fails_where_xlas_own_convolution_does_not():
    """By traces of value and gradients: images from one pixel, steps beyond them, kernels beyond them, one channel."""
    rng = np.random.default_rng(0)

    def traced(function, *arrays):
        def both(x, kernel):
            y, back = jax.vjp(function, x, kernel)
            return y, *back(jnp.ones_like(y))

        return jax.eval_shape(both, *arrays)

    cases = [
        # batch, size, kernel, strides, channels, outputs, padding
        (2, (1, 1), (3, 3), (2, 2), 1, 3, "SAME"),
        (2, (3, 3), (1, 1), (3, 5), 2, 3, ((1, 1), (1, 1))),
        (6, (2, 1), (3, 3), (7, 2), 1, 32, ((0, 2), (1, 0))),
        (6, (5, 1), (4, 4), (3, 1), 1, 1, ((0, 2), (1, 0))),
        (1, (2, 5), (3, 3), (5, 2), 2, 1, ((-1, 0), (0, 0))),
    ]
    for _ in range(6):
        size, strides = tuple(rng.integers(1, 5, 2).tolist()), tuple(rng.integers(1, 7, 2).tolist())
        kernel = tuple(rng.integers(1, 5, 2).tolist())
        cases.append((2, size, kernel, strides, *rng.integers(1, 3, 2).tolist(), "SAME"))
    for batch, size, taps, strides, channels, outputs, padding in cases:
        x = jax.ShapeDtypeStruct((batch, *size, channels), jnp.float32)
        kernel = jax.ShapeDtypeStruct((*taps, channels, outputs), jnp.float32)
        plain = partial(
            lax.conv_general_dilated, window_strides=strides, padding=padding, dimension_numbers=NUMBERS
        )
        expected = traced(plain, x, kernel)
        for by, platform in (("patches", "cpu"), ("winograd", "cpu"), ("mixed", "gpu"), ("per_model", "gpu")):
            assert traced(partial(conv, by, strides, padding, platform=platform), x, kernel) == expected


@pytest.mark.parametrize("by", ["patches", "winograd", "mixed"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize(("channels", "outputs"), [(3, 16), (32, 32), (128, 64)])
def test_error_is_that_of_xlas_own_convolution_in_float32(by, strides, channels, outputs):
    """Against float64, at the sizes of real layers: within twice the error of the plain convolution, or 1e-6."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4, 16, 16, channels)).astype(np.float32)
    kernel = (rng.normal(size=(3, 3, channels, outputs)) / np.sqrt(9 * channels)).astype(np.float32)
    cotangent = rng.normal(size=result_shape(x, kernel, strides, "SAME")).astype(np.float32)
    exact = reference(x, kernel, cotangent, strides, "SAME")

    def errors(how):
        found = value_and_gradients(partial(conv, how, strides, "SAME"), x, kernel, cotangent)
        return [np.sqrt(np.mean((a - e) ** 2) / np.mean(e**2)) for a, e in zip(found, exact, strict=True)]

    for ours, plain in zip(errors(by), errors("xla"), strict=True):
        assert ours < max(2 * plain, 1e-6)


@pytest.mark.parametrize("by", ["patches", "winograd", "mixed"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_under_vmap_it_is_a_matrix_product_without_scatter_or_convolution(by, strides):
    x, kernel = jnp.ones((3, 2, 8, 8, 16)), jnp.ones((3, 3, 3, 16, 16))

    def loss(x, kernel):
        return jnp.sum(conv(by, strides, "SAME", x, kernel) ** 2)

    lowered = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1)))).lower(x, kernel).as_text()
    assert "dot_general" in lowered
    assert "scatter" not in lowered
    assert "convolution" not in lowered


@pytest.mark.parametrize("shared", [False, True])
def test_a_stack_by_per_model_has_no_groups_and_every_derivative(shared):
    """Value, gradient, and gradient of a forward derivative of the gradient, for images of their own or shared."""
    rng = np.random.default_rng(1)
    x, kernel = rng.normal(size=(3, 2, 6, 6, 2)), rng.normal(size=(3, 3, 3, 2, 4))
    x = jnp.asarray(x[0] if shared else x, jnp.float32)
    kernel = jnp.asarray(kernel, jnp.float32)

    def loss(by, x, kernel):
        return jnp.sum(jnp.sin(conv(by, (2, 1), "SAME", x, kernel)))

    def curvature(by, x, kernel):
        gradient = jax.grad(partial(loss, by), argnums=(0, 1))
        return sum(map(jnp.sum, jax.jvp(gradient, (x, kernel), (jnp.cos(x), kernel**2))[1]))

    def derivatives(by, x, kernel):
        values = (partial(loss, by), partial(curvature, by))
        return [jax.value_and_grad(value, argnums=(0, 1))(x, kernel) for value in values]

    def of_a_stack(by):
        return jax.jit(jax.vmap(partial(derivatives, by), (None if shared else 0, 0)))

    text = of_a_stack("per_model").lower(x, kernel).as_text()
    assert "feature_group_count = 1 " in text
    assert "feature_group_count = 3" not in text
    assert "batch_group_count = 3" not in text
    ours, theirs = (jax.tree.leaves(of_a_stack(by)(x, kernel)) for by in ("per_model", "xla"))
    for a, e in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("by", ["patches", "winograd"])
def test_first_layers_input_gradient_costs_nothing(by):
    """Without it the backward pass has one matrix product less, sixteen small ones with Winograd."""
    x, kernel = jnp.ones((6, 8, 8, 16)), jnp.ones((3, 3, 16, 16))

    def loss(x, kernel):
        return jnp.sum(conv(by, (1, 1), "SAME", x, kernel) ** 2)

    def products(wanted):
        compiled = jax.jit(jax.grad(loss, argnums=wanted)).lower(x, kernel).compile()
        return str(compiled.as_text()).count(" dot(")

    less = {"patches": 1, "winograd": 16}[by]
    assert products((0, 1)) == products((1,)) + less
    with a_few_images_at_a_time():
        assert products((0, 1)) == products((1,)) + less, "in the body of the loop over parts, too"


@pytest.mark.parametrize(("channels", "narrow"), [(32, True), (64, False)])
def test_mixed_leaves_narrow_layers_to_xla_but_for_the_kernels_gradient(channels, narrow):
    x, kernel = jnp.ones((2, 8, 8, channels)), jnp.ones((3, 3, channels, channels))
    back = jax.grad(lambda x, kernel: jnp.sum(conv("mixed", (1, 1), "SAME", x, kernel) ** 2), argnums=(0, 1))
    assert jax.jit(back).lower(x, kernel).as_text().count("stablehlo.convolution") == (2 if narrow else 0)


def _folder_of_caches(place, caches):
    for at, (level, kind, size) in enumerate(caches):
        (place / f"index{at}").mkdir()
        for name, told in (("level", level), ("type", kind), ("size", size)):
            (place / f"index{at}" / name).write_text(f"{told}\n")
    return place


def test_caches_are_read_as_linux_reports_them(tmp_path):
    l1, code = ("1", "Data", "48K"), ("1", "Instruction", "64K")
    place = _folder_of_caches(tmp_path, [l1, code, ("2", "Unified", "2048K"), ("3", "Unified", "?")])
    assert cache.cache_bytes(place) == {1: 48 * 1024, 2: 2 * 1024 * 1024}
    assert cache.cache_bytes(tmp_path / "none") == {}


MB = 1 << 20


@pytest.mark.parametrize(
    ("caches", "tiled", "patched"),
    [
        ({1: MB // 32, 2: MB, 3: 32 * MB}, 16, 4),  # AMD's: parts of 4 MB of tiles and 2 MB of patches
        ({}, 16, 4),
        ({2: 2 * MB, 3: 480 * MB}, 8, 2),  # Intel's: half of that
    ],
)
def test_batches_are_cut_by_a_cores_own_cache(caches, tiled, patched, monkeypatch):
    monkeypatch.setattr(cache, "cache_bytes", lambda: caches)
    cache.tiles_bytes.cache_clear()
    try:
        x, kernel = jnp.ones((64, 16, 16, 32)), jnp.ones((3, 3, 32, 32))
        # An image has 16 numbers of 64 tiles, of 32 channels before and after, 256 KB; or 256 rows of patches, 288 KB.
        for by, images in (("winograd", tiled), ("patches", patched)):
            conv = Convolution(by, "cpu", (1, 1), ((1, 1), (1, 1)), None)
            assert blocks._images_at_once(conv, x, kernel) == images
            assert blocks._images_at_once(replace(conv, platform="gpu"), x, kernel) == 64
    finally:
        cache.tiles_bytes.cache_clear()


@pytest.mark.parametrize(("width", "pixels"), [(32, 4), (30, 2), (31, 1)])
def test_images_of_few_channels_are_convolved_several_pixels_at_a_time(width, pixels):
    """By a matrix of as many shifted kernels; a width that nothing divides has patches."""
    x, kernel = jnp.ones((2, 8, width, 3)), jnp.ones((3, 3, 3, 16))
    text = jax.jit(partial(conv, "patches", (1, 1), "SAME")).lower(x, kernel).as_text()
    assert f"tensor<{9 * (pixels + 2)}x{16 * pixels}xf32>" in text


@pytest.mark.parametrize(
    "options", [{"feature_group_count": 3}, {"rhs_dilation": (2, 2)}, {"lhs_dilation": (2, 2)}]
)
@pytest.mark.parametrize("by", ["winograd", "per_model"])
def test_other_convolutions_are_xlas(by, options):
    x = jnp.ones((1, 8, 8, 3))
    kernel = jnp.ones((3, 3, 3 // options.get("feature_group_count", 1), 3))
    around = ((1, 1), (1, 1))
    ours = convolve(
        x, kernel, (1, 1), around, dimension_numbers=NUMBERS, lowering=by, platform="cpu", **options
    )
    theirs = lax.conv_general_dilated(x, kernel, (1, 1), around, dimension_numbers=NUMBERS, **options)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("inputs", "outputs", "ours"), [(1024, 10, True), (1024, 17, False), (1023, 10, False)]
)
@pytest.mark.parametrize("how", [lambda function: function, jax.vmap])
def test_dense_layer_of_many_inputs_and_few_outputs_has_the_same_gradients(inputs, outputs, ours, how):
    rng = np.random.default_rng(1)
    module = nn.Dense(outputs)
    x, kernel = rng.normal(size=(2, 7, inputs)), rng.normal(size=(2, inputs, outputs))
    bias, cotangent = rng.normal(size=(2, outputs)), rng.normal(size=(2, 7, outputs))
    if how is not jax.vmap:
        x, kernel, bias, cotangent = (a[0] for a in (x, kernel, bias, cotangent))

    def loss(x, kernel, bias, cotangent):
        with lowering("patches", "cpu"):
            return jnp.sum(cotangent * module.apply({"params": {"kernel": kernel, "bias": bias}}, inputs=x))

    gradient = jax.jit(how(jax.grad(loss, argnums=(0, 1, 2))))
    arguments = [jnp.asarray(a, jnp.float32) for a in (x, kernel, bias, cotangent)]
    assert ("custom_vjp" in str(jax.make_jaxpr(how(loss))(*arguments))) == ours
    expected = cotangent @ np.swapaxes(kernel, -1, -2), np.swapaxes(x, -1, -2) @ cotangent, cotangent.sum(-2)
    for a, e in zip(gradient(*arguments), expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-4)


def test_unknown_lowering_is_refused():
    with (
        pytest.raises(
            ValueError, match="lowering must be one of xla, per_model, patches, winograd, mixed; got 'fft'"
        ),
        lowering("fft", "cpu"),
    ):
        pass
