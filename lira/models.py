"""Shadow models: flax modules by name or dotted path, and how their convolutions are computed.

Every module is called `module(x, train)` with x float `[batch, H, W, C]` or `[batch, F]` and returns logits
`[batch, num_classes]`.
"""

import contextlib
import difflib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterator, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["CNN", "LOWERINGS", "MLP", "ResNet18", "WideResNet", "build_model", "lowering", "patches_conv"]

LOWERINGS = ("xla", "patches")

_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# A convolution whose bias the norm after it would undo.
_Conv = partial(nn.Conv, kernel_size=(3, 3), use_bias=False, kernel_init=_he_normal)


class MLP(nn.Module):
    """Two hidden layers on the flattened input."""

    num_classes: int
    hidden: Sequence[int] = (128, 128)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits `[batch, num_classes]`."""
        x = x.reshape(len(x), -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)


class CNN(nn.Module):
    """Three 3x3 convolutions of 32, 64 and 128 channels, then a dense layer; no norms.

    Strides 1, 2, 2; `cnn-small` begins with stride 2 as well, at a quarter of the cost.
    """

    num_classes: int
    channels: Sequence[int] = (32, 64, 128)
    strides: Sequence[int] = (1, 2, 2)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits `[batch, num_classes]`."""
        for channels, strides in zip(self.channels, self.strides, strict=True):
            x = nn.relu(nn.Conv(channels, (3, 3), strides=strides)(x))
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016) with the CIFAR stem: a 3x3 convolution and no pooling."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits `[batch, num_classes]`."""
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.99)
        x = nn.relu(norm()(_Conv(64)(x)))
        for stage, channels in enumerate((64, 128, 256, 512)):
            for block in range(2):
                strides = 2 if stage > 0 and block == 0 else 1
                y = nn.relu(norm()(_Conv(channels, strides=strides)(x)))
                y = norm()(_Conv(channels)(y))
                if y.shape != x.shape:
                    x = norm()(_Conv(channels, kernel_size=(1, 1), strides=strides)(x))
                x = nn.relu(x + y)
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


class WideResNet(nn.Module):
    """WRN-depth-widen (Zagoruyko & Komodakis 2016), pre-activation, without dropout; depth = 6n + 4."""

    num_classes: int
    depth: int = 28
    widen: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits `[batch, num_classes]`."""
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.99)
        x = _Conv(16)(x)
        for stage, base in enumerate((16, 32, 64)):
            channels = base * self.widen
            for block in range((self.depth - 4) // 6):
                strides = 2 if stage > 0 and block == 0 else 1
                y = nn.relu(norm()(x))
                if block == 0:
                    x = _Conv(channels, kernel_size=(1, 1), strides=strides)(y)
                y = _Conv(channels, strides=strides)(y)
                x = x + _Conv(channels)(nn.relu(norm()(y)))
        x = nn.relu(norm()(x))
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


_NAMED = {"mlp": MLP, "cnn": CNN, "cnn-small": partial(CNN, strides=(2, 2, 2)), "resnet18": ResNet18}


def build_model(name: str, num_classes: int) -> nn.Module:
    """Make a module by name: mlp, cnn, cnn-small, resnet18, wrn-DEPTH-WIDEN, or a dotted path such as `my_models.Net`.

    The current directory is importable; a class of the running script is `__main__.Net`. A module of one's own is a flax linen class that takes `num_classes`; an
    nnx module comes in through flax's `flax.nnx.bridge.ToLinen`.

    Raises:
        ValueError: no such name, or the path does not lead to such a class.
    """
    if name in _NAMED:
        return _NAMED[name](num_classes=num_classes)
    if match := re.fullmatch(r"wrn-(\d+)-(\d+)", name):
        depth, widen = map(int, match.groups())
        if depth < 10 or (depth - 4) % 6 or widen < 1:
            raise ValueError(
                f"model {name!r}: a wide ResNet's depth is 6n + 4 (10, 16, 22, 28 ...), its width 1 or more"
            )
        return WideResNet(num_classes=num_classes, depth=depth, widen=widen)
    module, _, attribute = name.replace(":", ".").rpartition(".")
    if not module:
        known = [*_NAMED, "wrn-28-2"]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"unknown model {name!r}{hint}; use {', '.join(known)} or the dotted path of a flax module"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ValueError(f"model {name!r}: cannot import {module!r}: {error}") from error
    except AttributeError as error:
        raise ValueError(f"model {name!r}: {module!r} has no {attribute!r}") from error
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        raise ValueError(f"model {name!r}: is not a flax.linen.Module class")
    try:
        return cls(num_classes=num_classes)
    except TypeError as error:
        raise ValueError(
            f"model {name!r}: must take num_classes as its one required argument: {error}"
        ) from error


# --- How a convolution is computed ----------------------------------------------------------------------------------


@contextlib.contextmanager
def lowering(name: str) -> Iterator[None]:
    """Within it, every plain `nn.Conv` of any module is computed by lowering `name`, its parameters unchanged.

    "xla" is `lax.conv_general_dilated`; "patches" is `patches_conv`. Enter it inside the function that is traced.
    """
    if name not in LOWERINGS:
        raise ValueError(f"lowering must be one of {', '.join(LOWERINGS)}; got {name!r}")
    if name == "xla":
        yield
        return
    with nn.intercept_methods(_by_patches):
        yield


def _by_patches(call, args, kwargs, context):
    module = context.module
    plain = (
        isinstance(module, nn.Conv)
        and context.method_name == "__call__"
        and module.conv_general_dilated is None
    )
    if not plain or module.is_initializing():
        return call(*args, **kwargs)
    other = module.clone(conv_general_dilated=patches_conv, parent=None)
    return other.apply(module.variables, *args, **kwargs)


def patches_conv(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision=None,
    preferred_element_type=None,
    **kwargs,
) -> jax.Array:
    """`lax.conv_general_dilated` as patches times a matrix, for images NHWC and kernels HWIO.

    Under `vmap` over models it is a batched matrix product instead of a grouped convolution, and inside a loop on CPU
    it is as fast as outside. Its backward pass never scatters. Other layouts, groups and dilations fall back to XLA.
    """
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    handled = (
        lhs.ndim == 4
        and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, ("NHWC", "HWIO", "NHWC"))
        and feature_group_count == batch_group_count == 1
        and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    )
    if not handled:
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
            batch_group_count, precision, preferred_element_type, **kwargs,
        )  # fmt: skip
    strides = (int(window_strides[0]), int(window_strides[1]))
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    return _conv(strides, pads, precision, lhs, rhs)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _conv(strides, pads, precision, x, kernel):
    height, width, _, features = kernel.shape
    patches = _patches(x, (height, width), strides, pads)
    return jnp.matmul(patches, kernel.reshape(-1, features), precision=precision)


def _conv_forward(strides, pads, precision, x, kernel):
    return _conv(strides, pads, precision, x, kernel), (x, kernel)


def _conv_backward(strides, pads, precision, saved, gradient):
    x, kernel = saved
    height, width, channels, features = kernel.shape
    # Patches are made again: cheaper than the memory of keeping them.
    patches = _patches(x, (height, width), strides, pads)
    kernel_gradient = lax.dot_general(
        patches.reshape(-1, patches.shape[-1]),
        gradient.reshape(-1, features),
        (((0,), (0,)), ((), ())),
        precision=precision,
    ).reshape(kernel.shape)
    if strides == (1, 1):
        # A convolution of the output's gradient with the flipped kernel.
        flipped = kernel[::-1, ::-1].swapaxes(2, 3)
        back = tuple(
            (size - 1 - low, size - 1 - high) for size, (low, high) in zip((height, width), pads, strict=True)
        )
        return _conv((1, 1), back, precision, gradient, flipped), kernel_gradient
    # Each kernel tap's share of the gradient, spread to the pixels that the tap saw, and added up.
    shares = jnp.matmul(gradient, kernel.reshape(-1, features).T, precision=precision)
    shares = shares.reshape(*gradient.shape[:3], height, width, channels)
    total = jnp.zeros_like(x)
    for row in range(height):
        for column in range(width):
            spread = []
            for axis, tap in ((0, row), (1, column)):
                low = tap - pads[axis][0]
                reach = (gradient.shape[1 + axis] - 1) * strides[axis] + 1
                spread.append((low, x.shape[1 + axis] - low - reach, strides[axis] - 1))
            total += lax.pad(
                shares[:, :, :, row, column], jnp.zeros((), x.dtype), ((0, 0, 0), *spread, (0, 0, 0))
            )
    return total, kernel_gradient


_conv.defvjp(_conv_forward, _conv_backward)


def _patches(x: jax.Array, size: tuple[int, int], strides: tuple[int, int], pads) -> jax.Array:
    """`[n, H, W, C]` to `[n, H', W', size * C]`: shifted, strided slices of the padded images side by side."""
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)))
    rows, columns = ((x.shape[1 + i] - size[i]) // strides[i] + 1 for i in (0, 1))
    slices = [
        x[
            :,
            row : row + (rows - 1) * strides[0] + 1 : strides[0],
            column : column + (columns - 1) * strides[1] + 1 : strides[1],
        ]
        for row in range(size[0])
        for column in range(size[1])
    ]
    return jnp.concatenate(slices, axis=-1) if len(slices) > 1 else slices[0]
