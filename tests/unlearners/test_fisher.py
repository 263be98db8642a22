"""Noise by the Fisher information of what is retained."""

import jax
import jax.numpy as jnp
import numpy as np
from unlearning_problems import KEY, RETAIN, C, N, X, problem_of, softmax, weights

from lira.unlearners.fisher import fisher, fisher_information


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
