"""Does a model take this data? By a trace of its shapes, before anything is written or trained."""

import sysconfig
import traceback
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import InvalidRngError

from lira.data.dataset import Dataset
from lira.learning.forward import apply_module, as_input, fresh_variables

__all__ = ["ModelError", "check_private", "check_shapes"]

# An even number might be what a stride leaves of an axis that is none of images.
BATCH = 7


class ModelError(ValueError):
    """A model that cannot be trained on the data, in one line: both, what is wrong, and what to do."""


def check_shapes(module: nn.Module, name: str, dataset: Dataset) -> None:
    """Raise ModelError unless a module turns a batch of the data into logits `[batch, num_classes]` in both modes.

    Args:
        module: flax module.
        name: of the model, for messages.
        dataset: its x says what a batch is.
    """
    _check(module, name, dataset.name, dataset.num_classes, dataset.x.shape[1:], str(dataset.x.dtype))


@lru_cache(maxsize=8)
def _check(
    module: nn.Module, name: str, source: str, num_classes: int, shape: tuple[int, ...], dtype: str
) -> None:
    """Once for a run that is planned, made and trained."""
    data = f"{source}, whose x is {dtype} [N, {', '.join(map(str, shape))}]"
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = jax.eval_shape(
        lambda x: as_input(x, jnp.float32), jax.ShapeDtypeStruct((BATCH, *shape), jnp.dtype(dtype))
    )
    variables, mode = {}, "when it is made"
    try:
        variables = jax.eval_shape(partial(fresh_variables, module), key, batch)
        if "params" not in variables:
            raise ModelError(f"model {name!r}: has no parameters: there is nothing to train")
        mode = "in evaluation"
        logits, _ = jax.eval_shape(lambda v, x: apply_module(module, v, x, None), variables, batch)
        mode = "in training"
        trained, _ = jax.eval_shape(lambda v, x, key: apply_module(module, v, x, key), variables, batch, key)
    except ModelError:
        raise
    except Exception as error:  # whatever its code leads Python, JAX or flax to
        if isinstance(error, InvalidRngError) or "No RngStream named" in str(error):  # of linen, of nnx
            raise ModelError(f"model {name!r}: {_stream(mode, error)}{_place(error)}") from error
        if isinstance(error, TypeError) and "'train'" in str(error):
            raise ModelError(
                f"model {name!r}: must be called with (x, train): write __call__(self, x, train); {_first_line(error)}"
            ) from error
        raise ModelError(
            f"model {name!r}: fails {mode} on {data}{_hint(shape)}: {type(error).__name__}: {_first_line(error)}{_place(error)}"
        ) from error
    for each, when in ((logits, "in evaluation"), (trained, "in training")):
        found = getattr(each, "shape", None)
        if found != (BATCH, num_classes):
            what = f"a {type(each).__name__}" if found is None else f"shape {list(found)}"
            raise ModelError(
                f"model {name!r}: returns {what} {when} for {BATCH} examples of {data}{_hint(shape)}: it must return logits "
                f"[batch, num_classes], here {[BATCH, num_classes]}{_way_on(each, num_classes)}"
            )


def check_private(module: nn.Module, name: str, dataset: Dataset) -> None:
    """Raise ModelError where a module of which `check_shapes` holds mixes the examples of a batch, as BatchNorm does.

    What it keeps beside its parameters it has from batches, and no gradient is then of one example alone. Canaries that
    are gradients take a weight each: it is raised, too, where there are fewer.
    """
    batch = jax.eval_shape(partial(as_input, dtype=jnp.float32), dataset.x[:1])
    variables = jax.eval_shape(partial(fresh_variables, module), jax.random.key(0), batch)
    size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    canaries = dataset.canaries
    if canaries is not None and canaries.kind == "gradient" and canaries.count > size:
        raise ModelError(
            f"model {name!r}: has {size:,} weights, of which each canary of kind gradient takes one, and canaries.count is "
            f"{canaries.count:,}: lower it"
        )
    if kept := sorted(variables.keys() - {"params"}):
        raise ModelError(
            f"model {name!r}: has BatchNorm or the like ({', '.join(kept)}), which mixes the examples of a batch, and "
            f"recipe.privacy clips the gradient of each alone: take GroupNorm or no norms, as of wrn-16-4-gn, cnn or mlp"
        )


def _stream(mode: str, error: Exception) -> str:
    """What is wrong with a stream of random numbers that there is not, and what to do."""
    if mode == "in evaluation" and '"dropout"' in str(error):
        return (
            f"draws at random in evaluation ({_first_line(error)}): give nn.Dropout deterministic=not train"
        )
    return (
        f"draws {mode} from another random stream than dropout, the one there is ({_first_line(error)}): "
        f'use make_rng("dropout"), or rng_collection="dropout" of nn.Dropout'
    )


def _way_on(returned: Any, num_classes: int) -> str:
    """What to return in place of a tuple, a dict, or the one logit of two classes; empty of anything else."""
    if isinstance(returned, tuple | list | Mapping):
        names = returned if isinstance(returned, Mapping) else range(len(returned))
        return ", " + " or ".join(f"its [{name!r}] alone" for name in names)
    one = num_classes == 2 and getattr(returned, "shape", ()) in ((BATCH,), (BATCH, 1))
    return ": of one logit z [batch, 1] return jnp.concatenate([0 * z, z], 1)" if one else ""


def _hint(shape: tuple[int, ...]) -> str:
    """Which axes the data have, where they are none of images with a channel axis."""
    if len(shape) == 1:
        return " (rows of features: convolutions want images [N, H, W, C], and mlp takes rows)"
    return " (no channel axis: give x[..., None] where these are images)" if len(shape) == 2 else ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0].partition(" (https://")[0][:200]


def _place(error: Exception) -> str:
    """` (FILE:LINE)` in the code of the model's author; empty where it passed through none."""
    ours = (str(Path(__file__).parents[1]), sysconfig.get_paths()["purelib"], sysconfig.get_paths()["stdlib"])
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((*ours, "<"))]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
