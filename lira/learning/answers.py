"""What a module of one's own answers before it is trained: by each example alone, the same each time, and in logits."""

import warnings
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lira.data.dataset import Dataset
from lira.learning.forward import Variables, as_input, fresh_variables
from lira.learning.logits import BoundedWarning, are_probabilities, lie_in_unit_interval
from lira.learning.shapes import ModelError

__all__ = ["BoundedWarning", "check_answers"]

# Examples that a module is asked about.
ASKED = 8
# Weights so many times as large take logits far out of [0, 1], and no probabilities.
ENLARGED = 30.0
# Answers that differ by more than this share of the largest do not differ by rounding.
ROUNDING = 1e-3


def check_answers(module: nn.Module, name: str, dataset: Dataset) -> None:
    """Ask a module, of which `check_shapes` holds, about a few examples, with weights as they are drawn and enlarged.

    Args:
        module: flax module.
        name: of the model, for messages.
        dataset: which it is asked about.

    Raises:
        ModelError: its answers are probabilities, are random in evaluation, or depend on the other examples of a batch.

    Warns:
        BoundedWarning: its answers lie in [0, 1] and do not sum to 1, as those of a sigmoid.
    """
    few = np.ascontiguousarray(dataset.x[:ASKED])
    if bounded := _check(module, name, few.tobytes(), few.shape, str(few.dtype)):
        warnings.warn(bounded, BoundedWarning, stacklevel=2)


@lru_cache(maxsize=8)
def _check(module: nn.Module, name: str, content: bytes, shape: tuple[int, ...], dtype: str) -> str:
    """Once for a run that is planned, made and trained; what to warn of, or nothing."""
    x = as_input(np.frombuffer(content, dtype).reshape(shape), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 3)
    variables = jax.jit(partial(fresh_variables, module))(keys[0], x)
    evaluate, train = (jax.jit(partial(_asked, module, train=train)) for train in (False, True))
    half = (len(x) + 1) // 2

    plain, again = (np.asarray(evaluate(variables, x, key)) for key in keys[1:])
    if _differ(plain, again):
        raise ModelError(
            f"model {name!r}: answers at random in evaluation: is its dropout on where train is False? Give "
            f"Dropout deterministic=not train"
        )
    beside_others = np.asarray(evaluate(variables, x.at[half:].set(0), keys[1]))
    if _differ(plain[:half], beside_others[:half]):
        raise ModelError(
            f"model {name!r}: answers about an example otherwise beside other examples, in evaluation: does it take the "
            f"statistics of the batch where train is False? Give BatchNorm use_running_average=not train"
        )
    # Rows that are alike are answered alike, but by what is drawn for each.
    alike = jnp.broadcast_to(x[:1], x.shape)
    trained, anew = (np.asarray(train(variables, alike, key)) for key in keys[1:])
    if _differ(trained, trained[:1]) and not _differ(trained, anew):
        raise ModelError(
            f"model {name!r}: draws the same random numbers in every step of training: take them from the stream of dropout "
            f'(of nnx the rngs that the module is given, of linen make_rng("dropout"))'
        )
    enlarged = {**variables, "params": jax.tree.map(lambda leaf: leaf * ENLARGED, variables["params"])}
    answers = np.stack([plain, np.asarray(evaluate(enlarged, x, keys[1]))], axis=1)
    if are_probabilities(answers):
        raise ModelError(
            f"model {name!r}: returns probabilities, which sum to 1, and must return logits: leave out the softmax that it "
            f"ends in (or return jnp.log of them)"
        )
    if not lie_in_unit_interval(answers) or np.ptp(plain, axis=0).max() == 0:
        return ""
    return (
        f"model {name!r}: its answers lie in [0, 1] whatever its weights are, as those of a sigmoid, and are taken for logits, "
        f"which are of any size: leave out the sigmoid that it ends in, or the audit sees less than the model gives away"
    )


def _asked(
    module: nn.Module, variables: Variables, x: jax.Array, key: jax.Array, *, train: bool
) -> jax.Array:
    """Answers `[n, C]` in float32; in evaluation too with a key, so that what is random there shows."""
    kept = [name for name in variables if name != "params"]
    answers: Any = module.apply(
        variables, x, train=train, mutable=kept if train else False, rngs={"dropout": key}
    )
    return jnp.asarray(answers[0] if train else answers, jnp.float32)


def _differ(some: np.ndarray, others: np.ndarray) -> bool:
    """Whether answers differ beyond rounding; what is not finite does not differ."""
    return bool(np.abs(some - others).max() > ROUNDING * np.abs(some).max())
