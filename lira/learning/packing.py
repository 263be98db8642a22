"""A tree's many small arrays as a few long ones, where a kernel for each would take longer to launch than its work."""

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["pack", "unpack"]

# So many arrays of one kind are trained as they are: to part them would read and write more than their kernels take.
FEW_LEAVES = 8


def pack(tree: Any, like: Any, platform: str) -> list[Any]:
    """A tree's leaves by the type of those of `like`, matrices apart from vectors: many on an accelerator as one array.

    On CPU, where kernels cost nothing to launch, they stay as they are. Matrices keep two axes, by which weight decay
    knows them; kernels of convolutions begin with their outputs, as GPU libraries read them.
    """
    kinds: dict[Any, list[jax.Array]] = {}
    for leaf, kind in zip(jax.tree.leaves(tree), map(_kind, jax.tree.leaves(like)), strict=True):
        kinds.setdefault(kind, []).append(leaf)
    return [
        _joined(leaves)[(None,) * is_matrix] if platform != "cpu" and len(leaves) > FEW_LEAVES else leaves
        for (_, is_matrix), leaves in kinds.items()
    ]


def _joined(leaves: list[jax.Array]) -> jax.Array:
    """All numbers of arrays of any shapes as one array, `[P]`."""
    return jnp.concatenate(
        [(jnp.moveaxis(leaf, -1, 0) if leaf.ndim > 2 else leaf).ravel() for leaf in leaves]
    )


def unpack(packed: list[Any], like: Any) -> Any:
    """The tree of the shapes of `like` that was packed."""
    kinds: dict[Any, list[jax.Array]] = {}
    for leaf in jax.tree.leaves(like):
        kinds.setdefault(_kind(leaf), []).append(leaf)
    parts = {}
    for (kind, shapes), whole in zip(kinds.items(), packed, strict=True):
        if not isinstance(whole, list):
            whole = jax.lax.split(whole.ravel(), [leaf.size for leaf in shapes])
        parts[kind] = iter(whole)
    return jax.tree.map(lambda leaf: _shaped(next(parts[_kind(leaf)]), leaf.shape), like)


def _kind(leaf: jax.Array) -> tuple[Any, bool]:
    """Its type, and whether it is a matrix or of more axes."""
    return leaf.dtype, leaf.ndim > 1


def _shaped(part: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A part `[size]` of a joined array, or a leaf as it is, in its shape."""
    if part.shape == shape:
        return part
    if len(shape) <= 2:
        return part.reshape(shape)
    return jnp.moveaxis(part.reshape(shape[-1], *shape[:-1]), 0, -1)
