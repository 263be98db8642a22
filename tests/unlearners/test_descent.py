"""Steps of gradient methods, each against the step written out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from unlearning_problems import (
    FORGET,
    KEY,
    LR,
    RETAIN,
    C,
    N,
    Normed,
    X,
    Y,
    gradient,
    of_cross_entropy,
    problem_of,
    softmax,
    weights,
)

from lira.unlearners import apply_method
from lira.unlearners.descent import (
    finetune,
    gradient_ascent,
    last_layer,
    negrad_plus,
    random_labels,
    scrub,
    wrong_labels,
)
from lira.unlearners.problem import descend


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
