"""What all methods share: batches of their side, stacks, running averages, options by name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from unlearning_problems import FORGET, KEY, RECIPE, RETAIN, N, Normed, problem_of

from lira.unlearners import METHODS, apply_method, find_method, method_options
from lira.unlearners.descent import (
    finetune,
    gradient_ascent,
    negrad_plus,
    random_labels,
    scrub,
)
from lira.unlearners.fisher import fisher
from lira.unlearners.problem import fold_steps


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
    assert method_options("tests.unlearners.test_methods.own", {"strength": 2.0}) == {
        "strength": 2.0,
        "loud": False,
    }
    assert find_method("tests.unlearners.test_methods.own").__name__ == "own"


def own(problem, key, *, strength=1.0, loud=False):
    return problem.variables


def without_default(problem, key, *, strength):
    return problem.variables


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("finetun", {}, "unknown method 'finetun', did you mean 'finetune'"),
        ("own.py", {}, "method 'own.py': cannot import 'own'"),
        ("unlearning_problems.KEY", {}, "is not a function"),
        ("tests.unlearners.test_methods.absent", {}, "'tests.unlearners.test_methods' has no 'absent'"),
        ("finetune", {"epoch": 3}, "method.finetune: unknown option 'epoch': did you mean 'epochs'"),
        ("none", {"epoch": 3}, "method.none: unknown option 'epoch': valid ones are none"),
        ("retrain", {"epochs": 3}, "method.retrain: unknown option 'epochs'"),
        ("finetune", {"epochs": 3.0}, "method.finetune.epochs must be like its default, 5; got 3.0"),
        ("finetune", {"epochs": True}, "method.finetune.epochs must be like its default"),
        ("tests.unlearners.test_methods.without_default", {}, "strength needs a default"),
    ],
)
def test_unknown_methods_and_options_are_named(name, given, message):
    with pytest.raises(ValueError, match=message) as caught:
        method_options(name, given)
    assert "\n" not in str(caught.value)
