"""Images as training sees them (random flips and shifts) and as the attack asks about them (aligned queries)."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from lira.fields import check_fields

__all__ = ["ORIGINAL_BATCH", "Mixed", "Queries", "augment", "mixed", "query_views"]

Convention = Literal["paper", "original"]
# Consecutive examples that the released code (inference.py) normalises together; the last batch is what remains.
ORIGINAL_BATCH = 5000


@dataclass(frozen=True)
class Queries:
    """The views of an example that every model is queried with, the same ones in the same order, the clean one first.

    Q = (1 + mirror) (2 shift + 1)^2: 1, 2, 18 or more. They should match the training augmentation; that mismatch
    costs the attack most (Carlini et al. 2022, section VI-B). What models answer may be masked: see `masked_logits`.
    """

    mirror: bool = False
    """Add the mirror image of every view."""
    shift: int = 0
    """Add all shifts by up to this many pixels along both axes, the border filled by reflection."""
    convention: Convention = "paper"
    """paper (evaluation mode), or original for the released code's: weights as trained, norms by batches of 5,000."""
    temperature: float = 1.0
    """What logits are divided by before confidences are released."""
    decimals: int = 0
    """Decimals that released confidences are rounded to, 1 to 7; 0 releases them as they are."""
    top_k: int = 0
    """Classes whose confidences are released, the most likely ones; 0 is all of them."""

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self, "queries.")
        if self.shift < 0:
            raise ValueError(f"queries.shift must not be negative; got {self.shift}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"queries.temperature must be positive; got {self.temperature}")
        if not 0 <= self.decimals <= 7:
            raise ValueError(
                f"queries.decimals must be 1 to 7, which float32 confidences hold, or 0 for all; got {self.decimals}"
            )
        if self.top_k < 0:
            raise ValueError(f"queries.top_k must be 0 (all classes) or more; got {self.top_k}")

    @property
    def views(self) -> list[tuple[bool, int, int]]:
        """(mirrored, pixels down, pixels right) of each of the Q queries."""
        reach = sorted(range(-self.shift, self.shift + 1), key=abs)
        mirrors = (False, True) if self.mirror else (False,)
        return [(mirrored, down, right) for down in reach for right in reach for mirrored in mirrors]

    @property
    def masked(self) -> bool:
        """Whether confidences are released otherwise than the model has them."""
        return self.temperature != 1 or self.decimals > 0 or self.top_k > 0

    def check(self, example_shape: tuple[int, ...], num_classes: int) -> None:
        """Raise ValueError if examples of this shape have no such views, or there are not so many classes."""
        _check_image(
            "queries.mirror and queries.shift", self.mirror or self.shift > 0, self.shift, example_shape
        )
        if self.top_k >= num_classes:
            raise ValueError(
                f"queries.top_k must be below the {num_classes} classes of these data, or 0 for all; got {self.top_k}"
            )


def check_augmentation(flip: bool, crop_pad: int, example_shape: tuple[int, ...]) -> None:
    """Raise ValueError if examples of this shape cannot be augmented so."""
    _check_image("recipe.flip and recipe.crop_pad", flip or crop_pad > 0, crop_pad, example_shape)


def _check_image(name: str, wanted: bool, pad: int, shape: tuple[int, ...]) -> None:
    if wanted and len(shape) != 3:
        raise ValueError(
            f"{name} need images [H, W, C]; these examples have shape {list(shape)}: set them to false and 0"
        )
    if wanted and pad >= min(shape[:2]):
        raise ValueError(
            f"{name} reflect at most {min(shape[:2]) - 1} pixels of {shape[0]} x {shape[1]}; got {pad}"
        )


def augment(key: jax.Array, image: jax.Array, *, flip: bool, crop_pad: int) -> jax.Array:
    """One random view of one image `[H, W, C]`: a fair mirror, then a crop of the reflect-padded image."""
    flip_key, crop_key = jax.random.split(key)
    if flip:
        image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
    if crop_pad:
        top, left = jax.random.randint(crop_key, (2,), 0, 2 * crop_pad + 1)
        padded = jnp.pad(image, ((crop_pad, crop_pad), (crop_pad, crop_pad), (0, 0)), mode="reflect")
        image = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
    return image


class Mixed(NamedTuple):
    """A batch as mixup trains on it: `share` of it is in its own order. Its loss is `losses.of_mixture`."""

    images: jax.Array  # float32 [batch, ...]
    partners: jax.Array  # int32 [batch], the positions in the batch that it was mixed with
    share: jax.Array  # float32, in [0, 1]


def mixed(key: jax.Array, images: jax.Array, alpha: float) -> Mixed:
    """A batch of float `[batch, ...]` mixed with itself in another order (Zhang et al. 2018, arXiv 1710.09412).

    One share for the whole batch, drawn from Beta(alpha, alpha), as in the authors' code.
    """
    share_key, order_key = jax.random.split(key)
    share = jax.random.beta(share_key, alpha, alpha, dtype=jnp.float32)
    partners = jax.random.permutation(order_key, len(images))
    return Mixed(share * images + (1 - share) * images[partners], partners, share)


def query_views(examples: jax.Array, queries: Queries) -> jax.Array:
    """All queries of a batch: `[n, ...]` -> `[Q, n, ...]`, the clean examples first."""
    s = queries.shift
    padded = jnp.pad(examples, ((0, 0), (s, s), (s, s), (0, 0)), mode="reflect") if s else examples
    views = []
    for mirrored, down, right in queries.views:
        view = padded
        if s:
            height, width = examples.shape[1:3]
            view = view[:, s - down : s - down + height, s - right : s - right + width]
        views.append(view[:, :, ::-1] if mirrored else view)
    return jnp.stack(views)
