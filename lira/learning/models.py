"""Shadow models: flax modules by name or dotted path.

Every module is called `module(x, train)` with x float `[batch, H, W, C]` or `[batch, F]` and returns logits
`[batch, num_classes]`.
"""

import inspect
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lira.learning.dotted import import_dotted

__all__ = ["CNN", "MLP", "FastCNN", "ResNet18", "WideResNet", "build_model", "max_pool"]

_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# A convolution whose bias the norm after it would undo.
_Conv = partial(nn.Conv, kernel_size=(3, 3), use_bias=False, kernel_init=_he_normal)


class _Standardised(nn.Conv):
    """A convolution by kernels of mean 0 and variance 1 / fan-in in each output channel (Qiao et al. 2019, arXiv 1903.10520)."""

    def param(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """A parameter as the convolution uses it; what is stored, and learned, is the kernel as it was drawn."""
        value = super().param(name, *args, **kwargs)
        if name != "kernel":
            return value
        centred = value - value.mean(axis=(0, 1, 2), keepdims=True)
        # The bound of De et al.'s code: a channel of equal weights has no variance.
        return centred * jax.lax.rsqrt(jnp.maximum((centred**2).sum(axis=(0, 1, 2), keepdims=True), 1e-4))


def max_pool(x: jax.Array) -> jax.Array:
    """The largest of every 2x2 pixels: `[..., H, W, C]` -> `[..., H // 2, W // 2, C]`, an odd last row or column dropped.

    Value and gradient are those of `nn.max_pool(x, (2, 2), strides=(2, 2))`, ties going to the first pixel, but the way
    back does not scatter: what is kept for it is which of the four pixels was the largest, a byte each.
    """
    height, width = (size // 2 * 2 for size in x.shape[-3:-1])
    return _max_pool(x[..., :height, :width, :])


@jax.custom_vjp
def _max_pool(x: jax.Array) -> jax.Array:
    """Of even H and W."""
    return _max_pool_forward(x)[0]


def _max_pool_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `_max_pool` returns, and which pixel of the four it is, uint8 of the same shape."""
    largest = x[..., ::2, ::2, :]
    which = jnp.zeros(largest.shape, jnp.uint8)
    for index in (1, 2, 3):
        pixel = x[..., index // 2 :: 2, index % 2 :: 2, :]
        which = jnp.where(pixel > largest, jnp.uint8(index), which)
        largest = jnp.maximum(largest, pixel)
    return largest, which


def _max_pool_backward(which: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    """The gradient of x from that of the result and of its shape."""
    *batch, height, width, channels = which.shape
    indices = jnp.arange(4, dtype=jnp.uint8).reshape(2, 1, 2, 1)
    which, gradient = (array[..., :, None, :, None, :] for array in (which, gradient))
    whole = jnp.where(which == indices, gradient, jnp.zeros((), gradient.dtype))
    return (whole.reshape(*batch, 2 * height, 2 * width, channels),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _dropped(x: jax.Array, rate: float, train: bool) -> jax.Array:
    """Dropout within a compact module; nothing at all at a rate of 0."""
    return nn.Dropout(rate, deterministic=not train)(x) if rate else x


class MLP(nn.Module):
    """Two hidden layers on the flattened input."""

    num_classes: int
    hidden: Sequence[int] = (128, 128)
    dropout: float = 0.0  # after each hidden layer

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits `[batch, num_classes]`."""
        x = x.reshape(len(x), -1)
        for width in self.hidden:
            x = _dropped(nn.relu(nn.Dense(width)(x)), self.dropout, train)
        return nn.Dense(self.num_classes)(x)


class CNN(nn.Module):
    """Three 3x3 convolutions of 32, 64 and 128 channels, then a dense layer; no norms.

    Strides 1, 2, 2; `cnn-small` begins with stride 2 as well, at a quarter of the cost.
    """

    num_classes: int
    channels: Sequence[int] = (32, 64, 128)
    strides: Sequence[int] = (1, 2, 2)
    dropout: float = 0.0  # before the dense layer

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits `[batch, num_classes]`."""
        for channels, strides in zip(self.channels, self.strides, strict=True):
            x = nn.relu(nn.Conv(channels, (3, 3), strides=strides)(x))
        return nn.Dense(self.num_classes)(_dropped(x.reshape(len(x), -1), self.dropout, train))


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
    """WRN-depth-widen (Zagoruyko & Komodakis 2016), pre-activation, without dropout; depth = 6n + 4.

    With `groups`, GroupNorm of so many in place of BatchNorm, and standardised weights: no example then touches another, as
    private training needs (De et al. 2022, arXiv 2204.13650, who take 16; their gains and biases of convolutions are not here).
    """

    num_classes: int
    depth: int = 28
    widen: int = 2
    groups: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits `[batch, num_classes]`."""
        # The constants of the LiRA paper's code, as is the output layer's initialisation.
        norm, conv = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5), _Conv
        if self.groups:
            norm, conv = (
                partial(nn.GroupNorm, num_groups=self.groups),
                partial(_Standardised, **_Conv.keywords),
            )
        x = conv(16)(x)
        for stage, base in enumerate((16, 32, 64)):
            channels = base * self.widen
            for block in range((self.depth - 4) // 6):
                strides = 2 if stage > 0 and block == 0 else 1
                y = nn.relu(norm()(x))
                if block == 0:
                    x = conv(channels, kernel_size=(1, 1), strides=strides)(y)
                y = conv(channels, strides=strides)(y)
                x = x + conv(channels)(nn.relu(norm()(y)))
        x = nn.relu(norm()(x))
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.xavier_normal())(x.mean(axis=(1, 2)))


class FastCNN(nn.Module):
    """Seven 3x3 convolutions in the manner of the CIFAR-10 speed records: 152 million multiply-adds an image.

    A stem of 32 channels, then three groups of two convolutions (64, 256 and 256 channels): the first pools before its
    norm, so that norm and activation touch a quarter of the pixels, and the second is residual in the wide groups, as in
    Jordan 2024 (arXiv 2404.00498, its larger networks). Logits from the largest pixel of each channel, scaled by 1/8
    as in Page 2018 ("How to train your ResNet").
    """

    num_classes: int
    channels: Sequence[int] = (64, 256, 256)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits `[batch, num_classes]`."""
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = nn.relu(norm()(_Conv(32)(x)))
        for group, channels in enumerate(self.channels):
            x = nn.relu(norm()(max_pool(_Conv(channels)(x))))
            y = nn.relu(norm()(_Conv(channels)(x)))
            x = x + y if group else y
        return nn.Dense(self.num_classes)(x.max(axis=(1, 2))) / 8


_NAMED = {
    "mlp": MLP,
    "cnn": CNN,
    "cnn-small": partial(CNN, strides=(2, 2, 2)),
    "cnn-fast": FastCNN,
    "resnet18": ResNet18,
}


def build_model(name: str, num_classes: int, dropout: float = 0.0) -> nn.Module:
    """Make a module by name: mlp, cnn, cnn-small, cnn-fast, resnet18, wrn-DEPTH-WIDEN, or a dotted path such as `my_models.Net`.

    wrn-DEPTH-WIDEN-gn has GroupNorm of 16 groups in place of BatchNorm, and standardised weights.
    The current directory is importable; a class of the running script is `__main__.Net`. A module of one's own is a
    flax linen class that takes `num_classes`; an nnx module comes in through flax's `flax.nnx.bridge.ToLinen`.
    A rate of dropout above 0 is for models with a field of that name: mlp, cnn, cnn-small, or one of your own.

    Raises:
        ValueError: no such name, the path does not lead to such a class, or the model has no dropout.
    """
    if dropout:
        module = build_model(name, num_classes)
        if not hasattr(module, "dropout"):
            raise ValueError(
                f"recipe.dropout is {dropout}, but model {name!r} has no dropout: take mlp, cnn or cnn-small, a module of "
                f"your own with a field `dropout: float`, or leave it at 0"
            )
        return module.clone(dropout=dropout)
    if name in _NAMED:
        return _NAMED[name](num_classes=num_classes)
    if match := re.fullmatch(r"wrn-(\d+)-(\d+)(-gn)?", name):
        depth, widen = int(match[1]), int(match[2])
        if depth < 10 or (depth - 4) % 6 or widen < 1:
            raise ValueError(
                f"model {name!r}: a wide ResNet's depth is 6n + 4 (10, 16, 22, 28 ...), its width 1 or more"
            )
        return WideResNet(num_classes=num_classes, depth=depth, widen=widen, groups=16 if match[3] else 0)
    cls = import_dotted(name, "model", [*_NAMED, "wrn-28-2"], "a flax module")
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        wrap = ""
        if inspect.isclass(cls) and any(each.__module__.startswith("flax.nnx") for each in cls.__mro__):
            wrap = ": wrap it in one, by flax.nnx.bridge.ToLinen(TheirClass, (num_classes,))(x, train)"
        raise ValueError(f"model {name!r}: is not a flax.linen.Module class{wrap}")
    try:
        return cls(num_classes=num_classes)
    except TypeError as error:
        raise ValueError(
            f"model {name!r}: must take num_classes as its one required argument: {error}"
        ) from error
