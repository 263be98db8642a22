"""The compiled programs of a stack: train, evaluate, ask."""

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from math import gcd
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lira.data.dataset import Dataset
from lira.engine.cpu import in_loops, step_by_step
from lira.engine.device import MEMORY_SHARE, Device, device_memory, this_device
from lira.engine.stacked import compiled_once, made_when_called, models_in, stacked
from lira.engine.sweep import sweep_program
from lira.learning.augment import Queries
from lira.learning.evaluation import evaluated
from lira.learning.learner import Learner, model_keys
from lira.learning.recipe import SIGNALS, Recipe, checkpoint_epochs, steps_per_epoch
from lira.learning.training import epoch_order, init_model, train_epochs, train_step

__all__ = [
    "Programs",
    "compile_imitation",
    "compile_programs",
    "epochs_at_once",
    "fit_beside",
    "train_steps",
]
# Epochs of fewer steps than this are trained several at a time on accelerators.
STEPS_AT_ONCE = 128


class Programs(NamedTuple):
    """The compiled programs of a stack of `width` models on one device, of which `workers` threads each run their own."""

    width: int
    workers: int
    platform: str  # as JAX names it: cpu, gpu or tpu
    lowering: str
    why: str  # how they were chosen, for people
    init: Callable[..., Any]  # (keys [m], x [1, ...]) -> state
    epochs: int  # that one call of `train` is of
    steps: int  # that they are
    # (state, keys, first epoch, steps, x, y, keep [m, N]) -> (state, losses [m, epochs])
    train: Callable[..., Any]
    evaluate: Callable[..., Any]  # (state, keys, x, keep) -> the variables that the models answer with
    sweep: Callable[..., Any]  # (variables, x [n, ...], y [n]) -> ({"phi": [m, n, Q], ...}, correct [m, n])
    clean: Callable[..., Any]  # as sweep, about the examples as they are, and about nothing but phi
    # As the compiler counts: bytes that the stacks of all workers hold on the device, and bytes that one training step of
    # one stack reads and writes.
    memory: int | None
    traffic: float | None
    state: int  # bytes of a stack in training, as a checkpoint holds them

    @property
    def models(self) -> int:
        """Models in training at a time on the device."""
        return self.width * self.workers

    @property
    def any_steps(self) -> bool:
        """Whether a call of `train` may be of fewer steps than `steps`."""
        return self.platform == "cpu"


def train_steps(
    programs: Programs, state: Any, keys: jax.Array, first: int, steps: int, *data: jax.Array
) -> tuple[Any, int]:
    """Train a stack for `steps` steps from epoch `first` on, or more where programs are of whole epochs; and how many.

    Keys `[m]`, and as data x `[N, ...]`, y `[N]` and keep `[m, N]`, as `Programs.train` takes them.
    """
    taken = 0
    while taken < steps:
        count = min(programs.steps, steps - taken) if programs.any_steps else programs.steps
        epoch = first + taken // programs.steps * programs.epochs
        state, _ = programs.train(state, keys, epoch, count, *data)
        taken += count
    return state, taken


@lru_cache(maxsize=8)
def _of_a_kind(*kind: Any) -> dict[Device, Programs]:
    """What has been compiled for one kind of stack, by device: `compile_programs` fills it."""
    return {}


def compile_programs(
    learner: Learner,
    queries: Queries,
    dataset: Dataset,
    workers: int,
    lowering: str,
    width: int,
    signals: tuple[str, ...] = (),
    ends: tuple[int, ...] = (),
) -> Programs:
    """Compile for this thread's device, or take what was compiled for as many kinds of stacks as a few runs have.

    A call of `Programs.train` ends after each of the numbers of epochs `ends`, beside those of checkpoints.
    """
    examples = dataset.x.shape, dataset.x.dtype, dataset.y.dtype
    compiled = _of_a_kind(learner, queries, examples, lowering, width, signals, ends)
    device = this_device()
    if device not in compiled:
        compiled[device] = _build(learner, queries, dataset, lowering, width, signals, ends)
    built = compiled[device]
    return built._replace(workers=workers, memory=built.memory and workers * built.memory)


def _build(
    learner: Learner,
    queries: Queries,
    dataset: Dataset,
    lowering: str,
    width: int,
    signals: tuple[str, ...],
    ends: tuple[int, ...] = (),
) -> Programs:
    """The programs of stacks of `width` models on one worker."""
    whole = steps_per_epoch(dataset.num_examples, learner.recipe.batch_size, learner.share)
    platform, ends = learner.platform, (*ends, *checkpoint_epochs(signals, learner.recipe.epochs))
    several = 1 if platform == "cpu" else epochs_at_once(learner.recipe, whole, ends)
    init, shapes = _begun(learner, dataset, lowering, width)
    state, keys, x, y, keep = shapes
    train, compiled = _training(learner, lowering, several, whole, shapes)
    usage = compiled.memory_analysis()
    evaluate = stacked(
        in_loops(lowering, platform),
        platform,
        lambda state, key, x, keep: evaluated(learner, queries, state, key, x, keep),
        *(0, 0, None, 0),
    )
    variables = jax.eval_shape(evaluate, state, keys, x, keep)
    sweep = partial(sweep_program, learner, lowering, variables, x, y, usage and usage.temp_size_in_bytes)
    return Programs(
        width=width,
        workers=1,
        platform=platform,
        lowering=lowering,
        why="",
        init=compiled_once(init),
        epochs=several,
        steps=several * whole,
        train=train,
        evaluate=compiled_once(evaluate),
        sweep=made_when_called(partial(sweep, queries, tuple(name for name in signals if name in SIGNALS))),
        clean=made_when_called(partial(sweep, Queries(), ())),
        memory=usage and usage.argument_size_in_bytes + usage.temp_size_in_bytes,
        # The compiler counts the bodies of loops once, however often they turn.
        traffic=(compiled.cost_analysis() or {}).get("bytes accessed"),
        state=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
    )


def _begun(learner: Learner, dataset: Dataset, lowering: str, width: int) -> tuple[Any, tuple[Any, ...]]:
    """`Programs.init`, jitted, and what a stack is trained with: state, keys `[m]`, x, y and keep `[m, N]`, or their shapes."""
    keys = model_keys(0, range(width))
    x, y = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (dataset.x, dataset.y))
    keep = jax.ShapeDtypeStruct((width, len(dataset.y)), bool)
    init = stacked(lowering, learner.platform, lambda key, x: init_model(learner, key, x), 0, None)
    state = jax.eval_shape(init, keys, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
    return init, (state, keys, x, y, keep)


def _training(
    learner: Learner, lowering: str, several: int, whole: int, shapes: tuple[Any, ...]
) -> tuple[Callable[..., Any], Any]:
    """`Programs.train` for `several` epochs of `whole` steps, and the compiled program that it calls.

    `shapes` are those of a stack's state, keys `[m]`, x `[N, ...]`, y `[N]` and keep `[m, N]`, and of what imitators know
    of their target, which they share.
    """
    (state, keys, x, y, keep, *taught), platform = shapes, learner.platform
    shared = (None,) * len(taught)
    by_lowering = partial(stacked, lowering, platform)
    if in_loops(lowering, platform) == lowering:
        # On accelerators a number of steps that the compiler knows: the host need not be asked after each for another.
        taken = (lambda stop: stop) if platform == "cpu" else (lambda stop: whole)
        of_stack = by_lowering(
            lambda state, key, first, stop, *data: train_epochs(
                learner, state, key, first, several, taken(stop), *data
            ),
            *(0, 0, None, None, None, None, 0, *shared),
            donate_argnums=0,
        )
        compiled = of_stack.lower(state, keys, 0, 0, x, y, keep, *taught).compile()
        return compiled, compiled
    order = by_lowering(lambda key, number, keep: epoch_order(learner, key, number, keep), 0, None, 0)
    one_step = by_lowering(
        lambda state, key, *rest: train_step(learner, state, key, *rest),
        *(0, 0, None, None, 0, None, None, *shared),
        donate_argnums=0,
    )
    orders = jax.eval_shape(order, keys, 0, keep)
    compiled = one_step.lower(state, keys, 0, 0, orders, x, y, *taught).compile()
    return partial(step_by_step, order, compiled), compiled


def compile_imitation(
    programs: Programs, learner: Learner, dataset: Dataset, taught: Any
) -> Callable[..., Any]:
    """`Programs.train` by the loss of `learner.imitation`, for the stacks of `programs` and as many epochs a call.

    It takes one argument more, after the others: what imitators know of their target, `taught` or arrays like these.
    """
    _, shapes = _begun(learner, dataset, programs.lowering, programs.width)
    whole = programs.steps // programs.epochs
    return _training(learner, programs.lowering, programs.epochs, whole, (*shapes, taught))[0]


def epochs_at_once(recipe: Recipe, steps: int, ends: Iterable[int] = ()) -> int:
    """Epochs of so many steps that an accelerator trains in one call: a divisor of all, so that one program serves.

    It divides `ends` too, epochs after which models are asked: a call must end there.
    """
    common = gcd(recipe.epochs, *ends)
    divisors = (n for n in range(1, common + 1) if common % n == 0)
    return max(n for n in divisors if n == 1 or n * steps <= STEPS_AT_ONCE)


def fit_beside(
    programs: Programs, function: Callable[..., Any], axes: tuple[int | None, ...], arguments: tuple[Any, ...]
) -> tuple[Programs, Callable[..., Any]]:
    """Compile another function of one model for the stacks of `programs`.

    Its convolutions are theirs, but patches in place of XLA's own on CPU, which are slow within loops. Where it takes more
    memory than training, fewer workers call it, or it goes through a stack in narrower parts.

    Args:
        programs: of the stacks.
        function: of one model.
        axes: of its arguments, 0 for those that models have their own of and None for shared ones.
        arguments: arrays or shapes of them for a stack of `programs.width` models.

    Returns:
        The programs with as many workers as there is memory for, and the compiled function of a stack.
    """
    lowering = in_loops(programs.lowering, programs.platform)
    jitted = stacked(lowering, programs.platform, function, *axes)
    for width in (w for w in range(programs.width, 0, -1) if programs.width % w == 0):
        shapes = [
            jax.ShapeDtypeStruct((width, *a.shape[1:]) if axis == 0 else a.shape, a.dtype)
            for a, axis in zip(arguments, axes, strict=True)
        ]
        try:
            compiled = jitted.lower(*shapes).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                continue
            raise
        usage = compiled.memory_analysis()
        each = 0 if usage is None else usage.argument_size_in_bytes + usage.temp_size_in_bytes
        if workers := min(programs.workers, int(MEMORY_SHARE * device_memory()) // max(each, 1)):
            return programs._replace(workers=workers), partial(_by_parts, compiled, axes, width)
    raise ValueError("not even one model fits on the device: lower recipe.batch_size")


def _by_parts(compiled: Callable[..., Any], axes: tuple[int | None, ...], width: int, *arguments: Any) -> Any:
    """Call a function compiled for `width` models on a whole stack, one part after the other: arrays `[m, ...]`."""
    models = models_in(axes, arguments)
    if models == width:
        return compiled(*arguments)
    parts = [
        compiled(*(a[at : at + width] if axis == 0 else a for a, axis in zip(arguments, axes, strict=True)))
        for at in range(0, models, width)
    ]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
