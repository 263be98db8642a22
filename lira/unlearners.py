"""Unlearning methods: pure functions of one trained model and of what it is to forget; `vmap` makes stacks outside.

A method is `method(problem, key, *, options) -> variables`; one of your own is named by its dotted path and may use
`descend` and `fold_steps` as those here do. It must not depend on anything but its arguments, and every option has a
default that is a number, a string, true or false.

Learning rates are given as `rate`, the share of the recipe's peak at which its own optimizer steps, so that the
defaults mean the same for SGD and for Adam. The running averages of norms follow the retained batches alone:
forgotten examples are asked about in evaluation mode.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from lira.models import import_dotted
from lira.training import Recipe, as_input, augmented, forward, optimizer, random_order, steps_per_epoch

__all__ = [
    "METHODS",
    "RETRAIN",
    "Batch",
    "Problem",
    "apply_method",
    "descend",
    "find_method",
    "finetune",
    "fisher",
    "fold_steps",
    "gradient_ascent",
    "last_layer",
    "method_options",
    "negrad_plus",
    "none",
    "random_labels",
    "scrub",
]

Variables = dict[str, Any]  # {"params": ..., **statistics}


class Batch(NamedTuple):
    """Examples of one step: their rows in the pool, int32 `[n]`, images or features `[n, ...]` and labels `[n]`."""

    rows: jax.Array
    x: jax.Array
    y: jax.Array


class Problem(NamedTuple):
    """One trained model, and the request that it is to forget."""

    module: nn.Module
    recipe: Recipe
    num_classes: int
    size: int  # examples in the whole request; a model holds about half of them
    variables: Variables  # {"params": ..., **statistics}, as the trained model answers
    x: jax.Array  # [N, ...], the whole pool
    y: jax.Array  # int32 [N]
    forget: jax.Array  # bool [N], the part of the request that the model holds
    retain: jax.Array  # bool [N], what it goes on to hold

    def ask(
        self, variables: Variables, x: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Logits `[n, C]` and statistics: in training mode with a key for dropout, in evaluation mode without."""
        return forward(self.module, self.recipe, variables, x, key)

    def steps(self, side: str) -> tuple[int, int]:
        """Steps in a pass over one side, "forget" or "retain", and examples a step.

        Static, so the same for every model: a pass is over half of the request or of the rest, as in training.
        """
        if side == "retain":
            return max(
                1, steps_per_epoch(len(self.y) - self.size, self.recipe.batch_size)
            ), self.recipe.batch_size
        batch = min(self.recipe.batch_size, max(1, self.size // 2))
        return max(1, self.size // 2 // batch), batch


Method = Callable[..., Variables]
Loss = Callable[[Variables, Batch, Batch, jax.Array], tuple[jax.Array, dict[str, Any]]]


def fold_steps(
    problem: Problem,
    key: jax.Array,
    visit: Callable[[Any, Batch, Batch, jax.Array], Any],
    carry: Any,
    *,
    over: str,
    epochs: int,
) -> Any:
    """Go through the batches: `carry = visit(carry, forget, retain, step_key)` at every step; return the last `carry`.

    Args:
        problem: the model and what it is to forget.
        key: decides orders, augmentation and the keys of the steps.
        visit: it is given a batch of either side at every step, augmented as the recipe augments.
        carry: any pytree.
        over: the side, "forget" or "retain", whose passes are counted. Each is gone through in a random order, drawn
            anew at every pass over the counted side, that wraps.
        epochs: passes, at least 1.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1; got {epochs}")
    counts = {side: problem.steps(side) for side in ("forget", "retain")}
    masks = {"forget": problem.forget, "retain": problem.retain}
    x, y = jnp.asarray(problem.x), jnp.asarray(problem.y)

    def one_epoch(carry, epoch):
        *order_keys, steps_key = jax.random.split(jax.random.fold_in(key, epoch), 3)
        orders = [
            random_order(order_key, masks[side], steps * batch).reshape(steps, batch)
            for order_key, (side, (steps, batch)) in zip(order_keys, counts.items(), strict=True)
        ]

        def one_step(carry, step):
            *augment_keys, step_key = jax.random.split(jax.random.fold_in(steps_key, step), 3)

            def batch(augment_key, order):
                rows = order[step % len(order)]
                return Batch(rows, augmented(problem.recipe, augment_key, x[rows]), y[rows])

            forget, retain = map(batch, augment_keys, orders)
            return visit(carry, forget, retain, step_key), None

        return jax.lax.scan(one_step, carry, jnp.arange(counts[over][0]))[0], None

    return jax.lax.scan(one_epoch, carry, jnp.arange(epochs))[0]


def descend(
    problem: Problem,
    key: jax.Array,
    loss: Loss,
    *,
    over: str,
    epochs: int,
    rate: float | jax.Array,
    anneal: bool = True,
    clip: float = float("inf"),
    variables: Variables | None = None,
) -> Variables:
    """Follow the gradient of `loss` by the recipe's optimizer, from a fresh state of it.

    Args:
        problem: the model and what it is to forget.
        key: see `fold_steps`.
        loss: `loss(variables, forget, retain, step_key)` is the scalar and the statistics that the model goes on with.
        over: the side whose passes are counted, "forget" or "retain".
        epochs: passes.
        rate: the learning rate of the first step, as a share of the recipe's peak.
        anneal: let it fall to 0 along a cosine; else it is constant.
        clip: norm to which longer gradients are shortened.
        variables: where to start; the trained model by default.
    """
    if isinstance(rate, float) and not 0 < rate < float("inf"):
        raise ValueError(f"rate must be positive; got {rate}")
    if not clip > 0:
        raise ValueError(f"clip must be positive; got {clip}")
    start = problem.variables if variables is None else variables
    total = epochs * problem.steps(over)[0]

    def learning_rate(step):
        shape = 0.5 * (1 + jnp.cos(jnp.pi * step / total)) if anneal else 1.0
        return rate * problem.recipe.learning_rate * shape

    steps = optax.chain(optax.clip_by_global_norm(clip), optimizer(problem.recipe, learning_rate))

    def visit(carry, forget, retain, step_key):
        variables, state = carry

        def of_params(params):
            return loss({**variables, "params": params}, forget, retain, step_key)

        gradient, statistics = jax.grad(of_params, has_aux=True)(variables["params"])
        updates, state = steps.update(gradient, state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), **statistics}, state

    carry = (start, steps.init(start["params"]))
    return fold_steps(problem, key, visit, carry, over=over, epochs=epochs)[0]


# --- The methods -----------------------------------------------------------------------------------------------------


def none(problem: Problem, key: jax.Array) -> Variables:
    """The control: the model as it is."""
    return problem.variables


def finetune(problem: Problem, key: jax.Array, *, epochs: int = 5, rate: float = 0.5) -> Variables:
    """Train on what is retained, and trust that the rest is forgotten.

    Args:
        problem: the model and what it is to forget.
        key: of batches and dropout.
        epochs: passes over the retained examples.
        rate: share of the recipe's peak learning rate.
    """
    return descend(problem, key, _retained_loss(problem), over="retain", epochs=epochs, rate=rate)


def gradient_ascent(
    problem: Problem, key: jax.Array, *, epochs: int = 20, rate: float = 0.5, clip: float = 1.0
) -> Variables:
    """Climb the loss of the forgotten examples.

    Graves et al. 2021 (arXiv 2010.10981), Thudi et al. 2022 (arXiv 2109.13398). Nothing bounds that loss: more steps
    destroy the model, and unclipped they overflow.

    Args:
        problem: the model and what it is to forget.
        key: of batches.
        epochs: passes over the forgotten examples.
        rate: share of the recipe's peak learning rate.
        clip: norm to which longer gradients are shortened.
    """

    def loss(variables, forget, retain, step_key):
        logits, statistics = problem.ask(variables, forget.x)
        return -_cross_entropy(logits, forget.y), statistics

    return descend(problem, key, loss, over="forget", epochs=epochs, rate=rate, clip=clip)


def negrad_plus(
    problem: Problem,
    key: jax.Array,
    *,
    epochs: int = 5,
    rate: float = 0.5,
    beta: float = 0.8,
    clip: float = 1.0,
) -> Variables:
    """Descend on the retained and climb on the forgotten examples at once.

    NegGrad+ of Kurmanji et al. 2023 (arXiv 2302.09880).

    Args:
        problem: the model and what it is to forget.
        key: of batches and dropout.
        epochs: passes over the retained examples.
        rate: share of the recipe's peak learning rate.
        beta: weight of the retained loss; 1 - beta is the forgotten one's.
        clip: norm to which longer gradients are shortened.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be in [0, 1]; got {beta}")
    retained = _retained_loss(problem)

    def loss(variables, forget, retain, step_key):
        kept, statistics = retained(variables, forget, retain, step_key)
        logits, _ = problem.ask(variables, forget.x)
        return beta * kept - (1 - beta) * _cross_entropy(logits, forget.y), statistics

    return descend(problem, key, loss, over="retain", epochs=epochs, rate=rate, clip=clip)


def random_labels(problem: Problem, key: jax.Array, *, epochs: int = 5, rate: float = 0.5) -> Variables:
    """Train the forgotten examples under wrong labels, drawn once, beside the retained ones.

    Graves et al. 2021 (arXiv 2010.10981).

    Args:
        problem: the model and what it is to forget.
        key: of labels, batches and dropout.
        epochs: passes over the retained examples; each step has a batch of either side.
        rate: share of the recipe's peak learning rate.
    """
    label_key, key = jax.random.split(key)
    wrong = wrong_labels(label_key, problem.y, problem.num_classes)
    retained = _retained_loss(problem)
    share = problem.size / len(problem.y)  # as if all examples were trained on together

    def loss(variables, forget, retain, step_key):
        kept, statistics = retained(variables, forget, retain, step_key)
        logits, _ = problem.ask(variables, forget.x)
        return (1 - share) * kept + share * _cross_entropy(logits, wrong[forget.rows]), statistics

    return descend(problem, key, loss, over="retain", epochs=epochs, rate=rate)


def scrub(
    problem: Problem,
    key: jax.Array,
    *,
    epochs: int = 10,
    ascents: int = 4,
    passes: int = 6,
    rate: float = 0.5,
    alpha: float = 0.1,
    gamma: float = 1.0,
    temperature: float = 4.0,
    clip: float = 1.0,
) -> Variables:
    """A student that disobeys its teacher on the forgotten examples alone.

    Kurmanji et al. 2023 (arXiv 2302.09880), algorithm 1.

    The teacher is the trained model. Each of the first `ascents` epochs begins with `passes` over the forgotten examples
    that climb KL(teacher, student); every epoch passes over the retained ones and descends on `alpha` KL(teacher,
    student) + `gamma` cross-entropy. At the start the student is the teacher and has no slope to climb: only what
    follows the first descent forgets.

    Args:
        problem: the model and what it is to forget.
        key: of batches and dropout.
        epochs: passes over the retained examples.
        ascents: epochs that begin with the forgotten examples, at most `epochs`.
        passes: over the forgotten examples in such an epoch.
        rate: share of the recipe's peak learning rate.
        alpha: weight of the distillation on retained examples.
        gamma: weight of their loss.
        temperature: of the distillation.
        clip: norm to which longer gradients are shortened.
    """
    if not 1 <= ascents <= epochs:
        raise ValueError(f"ascents must be in 1..epochs, here 1..{epochs}; got {ascents}")

    def divergence(variables, x, step_key=None):
        taught, _ = problem.ask(problem.variables, x)
        logits, statistics = problem.ask(variables, x, step_key)
        teacher, student = (jax.nn.log_softmax(a / temperature) for a in (taught, logits))
        kl = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1).mean()
        return temperature**2 * kl, logits, statistics

    def climb(variables, forget, retain, step_key):
        kl, _, statistics = divergence(variables, forget.x)
        return -kl, statistics

    def obey(variables, forget, retain, step_key):
        kl, logits, statistics = divergence(variables, retain.x, step_key)
        return alpha * kl + gamma * _cross_entropy(logits, retain.y), statistics

    def go_over(side, times, variables, loss, its_key, epoch):
        now = rate * 0.5 * (1 + jnp.cos(jnp.pi * epoch / epochs))
        return descend(
            problem,
            its_key,
            loss,
            over=side,
            epochs=times,
            rate=now,
            anneal=False,
            clip=clip,
            variables=variables,
        )

    def one_epoch(variables, epoch):
        climb_key, obey_key = jax.random.split(jax.random.fold_in(key, epoch))
        climbed = jax.lax.cond(
            epoch < ascents,
            lambda: go_over("forget", passes, variables, climb, climb_key, epoch),
            lambda: variables,
        )
        return go_over("retain", 1, climbed, obey, obey_key, epoch), None

    return jax.lax.scan(one_epoch, problem.variables, jnp.arange(epochs))[0]


def last_layer(problem: Problem, key: jax.Array, *, epochs: int = 10, rate: float = 0.5) -> Variables:
    """Draw the last `nn.Dense` layer anew and fine-tune on what is retained (after Goel et al. 2022, arXiv 2201.06640).

    The whole model is fine-tuned: a new layer on frozen features would leave in them what they remember.

    Args:
        problem: the model and what it is to forget.
        key: of the new layer, of batches and dropout.
        epochs: passes over the retained examples.
        rate: share of the recipe's peak learning rate.
    """
    init_key, key = jax.random.split(key)
    example = as_input(jnp.asarray(problem.x)[:1], jnp.float32)
    layer = _last_dense(problem.module, example)
    fresh = problem.module.init(init_key, example, train=False)["params"]
    params = _replaced(problem.variables["params"], fresh, layer)
    start = {**problem.variables, "params": params}
    return descend(
        problem, key, _retained_loss(problem), over="retain", epochs=epochs, rate=rate, variables=start
    )


def fisher(
    problem: Problem, key: jax.Array, *, epochs: int = 1, noise: float = 0.03, floor: float = 1e-3
) -> Variables:
    """Noise where the retained examples do not determine a weight (Golatkar et al. 2020, arXiv 1911.04933, section 5).

    Its standard deviation is `noise (F / mean F + floor)^(-1/4)`, F the diagonal of their Fisher information.

    Args:
        problem: the model and what it is to forget.
        key: of batches, labels, signs and noise.
        epochs: passes over the retained examples to estimate F.
        noise: standard deviation for a weight of average information.
        floor: what no information counts as, relative to the average.
    """
    if noise < 0 or floor <= 0:
        raise ValueError(f"noise must not be negative and floor be positive; got {noise} and {floor}")
    noise_key, key = jax.random.split(key)
    information = fisher_information(problem, key, epochs)
    mean = ravel_pytree(information)[0].mean()
    leaves, structure = jax.tree.flatten(information)
    keys = jax.tree.unflatten(structure, list(jax.random.split(noise_key, len(leaves))))

    def noisy(weight, F, its_key):
        deviation = noise * (F / jnp.maximum(mean, jnp.finfo(mean.dtype).tiny) + floor) ** -0.25
        return weight + deviation * jax.random.normal(its_key, weight.shape, weight.dtype)

    return {
        **problem.variables,
        "params": jax.tree.map(noisy, problem.variables["params"], information, keys),
    }


def fisher_information(problem: Problem, key: jax.Array, epochs: int) -> Any:
    """The diagonal of the Fisher information, a mean over the retained examples, in the structure of the parameters.

    Estimated without bias by one gradient a batch: labels are drawn uniformly and weighted by their probability, and
    random signs make the examples' gradients uncorrelated.
    """
    params = problem.variables["params"]

    def visit(total, forget, retain, step_key):
        label_key, sign_key = jax.random.split(step_key)
        labels = jax.random.randint(label_key, retain.y.shape, 0, problem.num_classes)
        signs = jax.random.rademacher(sign_key, retain.y.shape, jnp.float32)

        def signed(params):
            logits, _ = problem.ask({**problem.variables, "params": params}, retain.x)
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
            weights = jnp.sqrt(problem.num_classes * jnp.exp(jax.lax.stop_gradient(chosen)))
            return jnp.sum(signs * weights * chosen)

        return jax.tree.map(lambda t, g: t + g * g, total, jax.grad(signed)(params))

    total = fold_steps(
        problem, key, visit, jax.tree.map(jnp.zeros_like, params), over="retain", epochs=epochs
    )
    steps, batch = problem.steps("retain")
    return jax.tree.map(lambda t: t / (epochs * steps * batch), total)


# Trained from scratch by the engine: not a function of a trained model.
RETRAIN = "retrain"

METHODS: dict[str, Method] = {
    "none": none,
    "finetune": finetune,
    "gradient_ascent": gradient_ascent,
    "negrad_plus": negrad_plus,
    "random_labels": random_labels,
    "scrub": scrub,
    "last_layer": last_layer,
    "fisher": fisher,
}


def apply_method(
    method: Method, options: Mapping[str, Any], problem: Problem, key: jax.Array
) -> tuple[Variables, jax.Array]:
    """The variables after a method, and whether they are all finite.

    A model that holds nothing of the request keeps its variables, whatever the method.

    Raises:
        ValueError: the method returned another structure than `problem.variables`, or refused an option.
    """
    before = problem.variables
    after = method(problem, key, **options)
    shapes = [
        jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree) for tree in (before, after)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "must return the model's variables, the same names, shapes and dtypes as problem.variables"
        )
    holds = jnp.any(problem.forget)
    after = jax.tree.map(lambda new, old: jnp.where(holds, new, old), after, before)
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(after)]).all()
    return after, finite


def find_method(name: str) -> Method:
    """A method by name or dotted path; the current directory is importable.

    Raises:
        ValueError: no such method, or what the path leads to cannot be called.
    """
    if name in METHODS:
        return METHODS[name]
    method: Any = import_dotted(name, "method", [*METHODS, RETRAIN], "a function of your own")
    if not inspect.isfunction(method):
        raise ValueError(f"method {name!r}: is not a function (problem, key, *, options)")
    return method


def method_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a method: those given, and the defaults of the others.

    Raises:
        ValueError: an option is unknown, or of another type than its default.
    """
    if name == RETRAIN:
        known = {}
    else:
        parameters = inspect.signature(find_method(name)).parameters.values()
        known = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
    options = dict(known)
    for key, value in given.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"valid ones are {', '.join(known) or 'none'}"
            raise ValueError(f"method.{name}: unknown option {key!r}: {hint}")
        wanted = type(known[key])
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            raise ValueError(f"method.{name}.{key} must be like its default, {known[key]!r}; got {value!r}")
        options[key] = value
    for key, value in options.items():
        if type(value) not in (bool, int, float, str):
            raise ValueError(f"method.{name}.{key} needs a default: a number, a string, true or false")
    return options


# --- Behind the scenes -----------------------------------------------------------------------------------------------


def wrong_labels(key: jax.Array, y: jax.Array, num_classes: int) -> jax.Array:
    """A label for every example, int32 `[N]`, uniform over the classes that are not its own."""
    return (y + jax.random.randint(key, y.shape, 1, num_classes)) % num_classes


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _retained_loss(problem: Problem) -> Loss:
    def loss(variables, forget, retain, step_key):
        logits, statistics = problem.ask(variables, retain.x, step_key)
        return _cross_entropy(logits, retain.y), statistics

    return loss


def _last_dense(module: nn.Module, example: jax.Array) -> tuple[str, ...]:
    """The path of the `nn.Dense` layer that is called last."""
    called: list[tuple[str, ...]] = []

    def watch(call, args, kwargs, context):
        if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
            called.append(context.module.path)
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        jax.eval_shape(lambda: module.init(jax.random.key(0), example, train=False))
    if not called:
        raise ValueError(f"last_layer needs a flax nn.Dense layer, and {type(module).__name__} has none")
    return called[-1]


def _replaced(params: Any, fresh: Any, path: tuple[str, ...]) -> Any:
    """`params` with the subtree at `path` taken from `fresh`."""
    if not path:
        return jax.tree.map(lambda old, new: new.astype(old.dtype), params, fresh)
    return {**params, path[0]: _replaced(params[path[0]], fresh[path[0]], path[1:])}
