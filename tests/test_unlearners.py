import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lira.learning.recipe import Recipe
from lira.unlearners import METHODS, apply_method, find_method, method_options
from lira.unlearners.descent import (
    finetune,
    gradient_ascent,
    last_layer,
    negrad_plus,
    random_labels,
    scrub,
    wrong_labels,
)
from lira.unlearners.fisher import fisher, fisher_information
from lira.unlearners.problem import Problem, descend, fold_steps

N, C = 24, 3
rng = np.random.default_rng(0)
X = rng.normal(size=(N, 4))
Y = rng.integers(0, C, N).astype(np.int32)
FORGET = np.arange(N) < 6
RETAIN = np.arange(N) >= 14
# Batches of ten are all that is retained, and a request of twelve has all six that are held in one batch.
RECIPE = Recipe(batch_size=10, learning_rate=0.2, momentum=0.9)
KEY = jax.random.key(3)


class Linear(nn.Module):
    num_classes: int = C

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


class Normed(nn.Module):
    """The dense layer that is called last is neither the first nor the last by name."""

    num_classes: int = C

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(5, name="b")(x)
        x = nn.Dense(6, name="c")(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="a")(x))
        return nn.Dense(self.num_classes, name="ab")(nn.relu(x))


def problem_of(module=None, *, recipe=RECIPE, size=12, forget=FORGET, retain=RETAIN, seed=0, dtype=float):
    """A model with random weights. In float64 where that is on."""
    module = Linear() if module is None else module
    x = jnp.asarray(X, dtype)
    variables: Any = module.init(jax.random.key(seed), x[:1], train=False)
    noise = iter(jax.random.split(jax.random.key(seed + 50), 100))
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, dtype) + 0.3 * jax.random.uniform(next(noise), leaf.shape, dtype),
        variables,
    )
    return Problem(
        module, recipe, C, size, dict(variables), x, jnp.asarray(Y), jnp.asarray(forget), jnp.asarray(retain)
    )


def weights(variables):
    layer = variables["params"]["Dense_0"]
    return np.vstack([layer["kernel"], layer["bias"][None]])


def softmax(logits):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def gradient(W, mask, logit_gradient):
    """Of the mean over the examples `mask` of a loss whose gradient by the logits is given, [5, C]."""
    inputs = np.hstack([X, np.ones((N, 1))])[mask]
    return inputs.T @ logit_gradient(inputs @ W, mask) / mask.sum()


def of_cross_entropy(W, mask, labels=Y):
    return gradient(W, mask, lambda logits, m: softmax(logits) - np.eye(C)[labels[m]])


LR = RECIPE.learning_rate


def test_one_step_of_ascent_is_the_parameters_plus_the_gradient():
    with jax.enable_x64(True):
        problem = problem_of()
        assert problem.steps("forget") == (1, 6)
        after = gradient_ascent(problem, KEY, epochs=1, rate=0.5, clip=100.0)
        W = weights(problem.variables)
        np.testing.assert_allclose(
            weights(after), W + 0.5 * LR * of_cross_entropy(W, FORGET), rtol=0, atol=1e-14
        )


def test_long_gradients_are_shortened_to_the_clip():
    problem = problem_of(dtype=jnp.float32)
    for method, share in ((gradient_ascent, 0.5), (negrad_plus, 0.5)):
        after = method(problem, KEY, epochs=1, rate=0.5, clip=1e-2)
        step = np.linalg.norm(weights(after) - weights(problem.variables))
        np.testing.assert_allclose(step, share * LR * 1e-2, rtol=1e-3)


def test_ascent_without_end_stays_finite():
    problem = problem_of(Normed(), dtype=jnp.float32)
    _, finite = apply_method(gradient_ascent, {"epochs": 2000, "rate": 5.0}, problem, KEY)
    assert bool(finite)


def test_two_steps_of_fine_tuning_have_momentum_and_half_the_rate():
    with jax.enable_x64(True):
        problem = problem_of()
        assert problem.steps("retain") == (1, 10)
        after = finetune(problem, KEY, epochs=2, rate=0.5)
        W = weights(problem.variables)
        first = of_cross_entropy(W, RETAIN)
        W = W - 0.5 * LR * first
        W = W - 0.25 * LR * (0.9 * first + of_cross_entropy(W, RETAIN))
        np.testing.assert_allclose(weights(after), W, rtol=0, atol=1e-14)


def test_one_step_of_negrad_plus_and_of_random_labels():
    with jax.enable_x64(True):
        problem = problem_of()
        W = weights(problem.variables)
        kept, forgotten = of_cross_entropy(W, RETAIN), of_cross_entropy(W, FORGET)
        after = negrad_plus(problem, KEY, epochs=1, rate=0.5, beta=0.7, clip=100.0)
        np.testing.assert_allclose(
            weights(after), W - 0.5 * LR * (0.7 * kept - 0.3 * forgotten), rtol=0, atol=1e-14
        )
        after = random_labels(problem, KEY, epochs=1, rate=0.5)
        labels = np.asarray(wrong_labels(jax.random.split(KEY)[0], problem.y, C))
        assert (labels != Y).all()
        wrong = of_cross_entropy(W, FORGET, labels)
        # 12 of 24 examples are of the request.
        np.testing.assert_allclose(
            weights(after), W - 0.5 * LR * (0.5 * kept + 0.5 * wrong), rtol=0, atol=1e-14
        )


def test_scrub_climbs_and_descends_in_turns():
    """Two epochs by hand: KL(teacher, student) by the student's logits z is T (softmax(z / T) - softmax(teacher / T))."""
    T, alpha, gamma = 2.0, 0.3, 0.8
    with jax.enable_x64(True):
        problem = problem_of()
        after = scrub(
            problem,
            KEY,
            epochs=2,
            ascents=2,
            passes=1,
            rate=0.5,
            alpha=alpha,
            gamma=gamma,
            temperature=T,
            clip=100.0,
        )
        W0 = W = weights(problem.variables)
        taught = np.hstack([X, np.ones((N, 1))]) @ W0

        def of_kl(W, mask):
            return gradient(W, mask, lambda z, m: T * (softmax(z / T) - softmax(taught[m] / T)))

        for share in (1.0, 0.5):
            W = W + 0.5 * share * LR * of_kl(W, FORGET)
            W = W - 0.5 * share * LR * (alpha * of_kl(W, RETAIN) + gamma * of_cross_entropy(W, RETAIN))
        np.testing.assert_allclose(weights(after), W, rtol=0, atol=1e-14)
        # It climbs as long as told.
        once = scrub(problem, KEY, epochs=2, ascents=1, passes=1, rate=0.5)
        assert (
            abs(weights(once) - weights(scrub(problem, KEY, epochs=2, ascents=2, passes=1, rate=0.5))).max()
            > 1e-4
        )


def test_wrong_labels_are_never_the_true_ones_and_all_others_are_drawn():
    y = jnp.tile(jnp.arange(5), 2000)
    wrong = np.asarray(wrong_labels(KEY, y, 5))
    assert not (wrong == np.asarray(y)).any()
    counts = np.array([np.bincount(wrong[np.asarray(y) == c], minlength=5) for c in range(5)])
    assert (np.diag(counts) == 0).all()
    others = counts[~np.eye(5, dtype=bool)]
    # Each is binomial of 2,000 and 1/4, standard deviation 19.
    assert abs(others - 500).max() < 100


def test_batches_are_of_their_side_alone_and_cover_it():
    recipe = dataclasses.replace(RECIPE, batch_size=3)
    problem = problem_of(recipe=recipe)
    assert problem.steps("retain") == (2, 3)
    assert problem.steps("forget") == (2, 3)

    def visit(carry, forget, retain, step_key):
        counts, right = carry
        counts = counts.at[0, forget.rows].add(1).at[1, retain.rows].add(1)
        same = [
            jnp.all(b.x == problem.x[b.rows]) & jnp.all(b.y == problem.y[b.rows]) for b in (forget, retain)
        ]
        return counts, right & same[0] & same[1]

    start = (jnp.zeros((2, N), int), jnp.asarray(True))
    counts, right = fold_steps(problem, KEY, visit, start, over="retain", epochs=50)
    counts = np.asarray(counts)
    assert bool(right)
    assert not counts[0, ~FORGET].any()
    assert not counts[1, ~RETAIN].any()
    # Six a pass: all that are forgotten in every pass, six of the ten retained, others each time.
    assert (counts[0, FORGET] == 50).all()
    assert counts[1].sum() == 300
    assert (counts[1, RETAIN] > 10).all()


def test_a_side_that_is_smaller_than_a_batch_wraps():
    forget = np.arange(N) == 2
    problem = problem_of(forget=forget)

    def visit(counts, batch, retain, step_key):
        return counts.at[batch.rows].add(1)

    counts = fold_steps(problem, KEY, visit, jnp.zeros(N, int), over="forget", epochs=4)
    np.testing.assert_array_equal(counts, 4 * 6 * forget)


def test_last_layer_called_is_drawn_anew_and_the_others_go_on():
    problem = problem_of(Normed())
    anew = jax.jit(lambda key: last_layer(problem, key, epochs=1, rate=1e-9))
    after, before = anew(KEY), problem.variables
    for layer in ("a", "b", "c"):
        for one, other in zip(
            jax.tree.leaves(after["params"][layer]), jax.tree.leaves(before["params"][layer]), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    assert np.abs(before["params"]["ab"]["bias"]).max() > 0.01
    np.testing.assert_allclose(after["params"]["ab"]["bias"], 0, atol=1e-6)
    assert np.abs(after["params"]["ab"]["kernel"] - before["params"]["ab"]["kernel"]).min() > 1e-3
    others = anew(jax.random.key(8))
    assert np.abs(after["params"]["ab"]["kernel"] - others["params"]["ab"]["kernel"]).min() > 1e-4


def test_model_without_a_dense_layer_has_no_last_one():
    class Sum(nn.Module):
        num_classes: int = C

        @nn.compact
        def __call__(self, x, train):
            return x[:, :C] + self.param("bias", nn.initializers.zeros, (C,))

    with pytest.raises(ValueError, match=r"last_layer needs a flax nn.Dense layer, and Sum has none"):
        last_layer(problem_of(Sum()), KEY)


def test_fisher_information_is_that_of_every_example_and_label():
    with jax.enable_x64(True):
        problem = problem_of()
        estimate = fisher_information(problem, KEY, 20_000)
        W = weights(problem.variables)
    inputs = np.hstack([X, np.ones((N, 1))])[RETAIN]
    p = softmax(inputs @ W)
    exact = np.zeros_like(W)
    for a, probabilities in zip(inputs, p, strict=True):
        for c in range(C):
            exact += probabilities[c] * np.outer(a, np.eye(C)[c] - probabilities) ** 2 / len(inputs)
    got = np.vstack([estimate["Dense_0"]["kernel"], estimate["Dense_0"]["bias"][None]])
    # 20,000 squares of sums of ten: a standard error of 1 %.
    np.testing.assert_allclose(got, exact, rtol=0.06)


def test_fisher_noise_follows_the_information():
    problem = problem_of(dtype=jnp.float32)

    def moved(key, **options):
        after = fisher(problem, key, **options)
        return jnp.asarray(
            after["params"]["Dense_0"]["kernel"] - problem.variables["params"]["Dense_0"]["kernel"]
        )

    keys = jax.random.split(KEY, 4000)
    even = np.asarray(jax.jit(jax.vmap(lambda key: moved(key, noise=0.5, floor=1e8)))(keys))
    # (1e8)^(-1/4) = 0.01 whatever the information is.
    np.testing.assert_allclose(even.std(axis=0), 0.005, rtol=0.1)
    np.testing.assert_allclose(even.mean(axis=0), 0, atol=4e-4)
    steep = np.asarray(jax.jit(jax.vmap(lambda key: moved(key, noise=0.5, epochs=30)))(keys[:1000])).std(
        axis=0
    )
    information = np.asarray(fisher_information(problem, KEY, 3000)["Dense_0"]["kernel"])
    assert np.corrcoef(np.log(steep.ravel()), np.log(information.ravel()))[0, 1] < -0.9


@pytest.mark.parametrize("name", METHODS)
def test_model_in_a_stack_equals_the_model_alone_and_one_without_a_request_is_unchanged(name):
    """In float64, three models with norms; the last one holds nothing of the request."""
    forgets = jnp.asarray(np.stack([FORGET, np.roll(FORGET, 3), np.zeros(N, bool)]))
    short = {"epochs": 2, "ascents": 1} if name == "scrub" else {"epochs": 2}
    options = {} if name == "none" else short
    with jax.enable_x64(True):
        first = problem_of(Normed())
        starts = [problem_of(Normed(), seed=seed).variables for seed in range(3)]
        stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
        keys = jax.vmap(lambda m: jax.random.fold_in(KEY, m))(jnp.arange(3))

        def one(variables, forget, key):
            problem = first._replace(variables=variables, forget=forget)
            return apply_method(METHODS[name], options, problem, key)

        together, finite = jax.jit(jax.vmap(one))(stack, forgets, keys)
        assert np.asarray(finite).all()
        alone, _ = jax.jit(one)(starts[1], forgets[1], keys[1])
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(b[1], a, rtol=1e-9, atol=1e-9)
        moved = 0.0
        for a, b in zip(
            jax.tree.leaves(starts),
            jax.tree.leaves([jax.tree.map(lambda leaf, i=i: leaf[i], together) for i in range(3)]),
            strict=True,
        ):
            moved = max(moved, float(np.abs(a - b).max()))
        for a, b in zip(jax.tree.leaves(starts[2]), jax.tree.leaves(together), strict=True):
            np.testing.assert_array_equal(b[2], a)
        assert (moved > 1e-3) == (name != "none")


def test_running_averages_follow_the_retained_batches_alone():
    problem = problem_of(Normed())
    statistics = jax.tree.leaves(problem.variables["batch_stats"])
    climbed = gradient_ascent(problem, KEY, epochs=2)
    for a, b in zip(statistics, jax.tree.leaves(climbed["batch_stats"]), strict=True):
        np.testing.assert_array_equal(a, b)
    for method in (finetune, negrad_plus, random_labels, scrub):
        after = method(problem, KEY)
        assert all(
            np.abs(a - b).max() > 1e-4
            for a, b in zip(statistics, jax.tree.leaves(after["batch_stats"]), strict=True)
        )
        # NaN among the forgotten would reach them otherwise.
        poisoned = problem._replace(x=jnp.where(problem.forget[:, None], jnp.nan, problem.x))
        if method is finetune:
            for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(method(poisoned, KEY)), strict=True):
                np.testing.assert_array_equal(a, b)


def test_result_that_is_not_finite_is_told():
    problem = problem_of()
    _, finite = apply_method(
        lambda p, key: jax.tree.map(lambda leaf: leaf * jnp.nan, p.variables), {}, problem, KEY
    )
    assert not bool(finite)
    _, finite = apply_method(METHODS["none"], {}, problem, KEY)
    assert bool(finite)


def test_method_must_return_the_variables():
    with pytest.raises(ValueError, match=r"must return the model's variables"):
        apply_method(lambda p, key: p.variables["params"], {}, problem_of(), KEY)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: finetune(p, KEY, epochs=0), "epochs must be at least 1; got 0"),
        (lambda p: finetune(p, KEY, rate=0.0), "rate must be positive; got 0.0"),
        (lambda p: finetune(p, KEY, rate=float("nan")), "rate must be positive; got nan"),
        (lambda p: negrad_plus(p, KEY, beta=1.5), r"beta must be in \[0, 1\]; got 1.5"),
        (lambda p: gradient_ascent(p, KEY, clip=0.0), "clip must be positive; got 0.0"),
        (lambda p: scrub(p, KEY, epochs=2, ascents=3), "ascents must be in 1..epochs, here 1..2; got 3"),
        (lambda p: fisher(p, KEY, noise=-1.0), "noise must not be negative"),
    ],
)
def test_options_that_make_no_sense_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(problem_of())


def test_options_are_the_defaults_and_what_is_given():
    assert method_options("finetune", {}) == {"epochs": 5, "rate": 0.5}
    assert method_options("finetune", {"rate": 1}) == {"epochs": 5, "rate": 1.0}
    assert method_options("retrain", {}) == method_options("none", {}) == {}
    assert method_options("tests.test_unlearners.own", {"strength": 2.0}) == {"strength": 2.0, "loud": False}
    assert find_method("tests.test_unlearners.own").__name__ == "own"


def own(problem, key, *, strength=1.0, loud=False):
    return problem.variables


def without_default(problem, key, *, strength):
    return problem.variables


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("finetun", {}, "unknown method 'finetun', did you mean 'finetune'"),
        ("own.py", {}, "method 'own.py': cannot import 'own'"),
        ("tests.test_unlearners.KEY", {}, "is not a function"),
        ("tests.test_unlearners.absent", {}, "'tests.test_unlearners' has no 'absent'"),
        ("finetune", {"epoch": 3}, "method.finetune: unknown option 'epoch': did you mean 'epochs'"),
        ("none", {"epoch": 3}, "method.none: unknown option 'epoch': valid ones are none"),
        ("retrain", {"epochs": 3}, "method.retrain: unknown option 'epochs'"),
        ("finetune", {"epochs": 3.0}, "method.finetune.epochs must be like its default, 5; got 3.0"),
        ("finetune", {"epochs": True}, "method.finetune.epochs must be like its default"),
        ("tests.test_unlearners.without_default", {}, "strength needs a default"),
    ],
)
def test_unknown_methods_and_options_are_named(name, given, message):
    with pytest.raises(ValueError, match=message) as caught:
        method_options(name, given)
    assert "\n" not in str(caught.value)


def test_a_loss_of_ones_own_may_use_both_sides():
    """Descend on half the squared distance of the bias to its start plus the number of examples: a closed form."""
    with jax.enable_x64(True):
        problem = problem_of()
        target = problem.variables["params"]["Dense_0"]["bias"]

        def loss(variables, forget, retain, step_key):
            pull = len(forget.y) * len(retain.y) * jnp.sum(variables["params"]["Dense_0"]["bias"])
            return pull, {}

        after = descend(problem, KEY, loss, over="forget", epochs=1, rate=1.0)
        np.testing.assert_allclose(after["params"]["Dense_0"]["bias"], target - LR * 60, rtol=1e-12)
