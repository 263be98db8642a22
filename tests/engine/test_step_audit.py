"""Canary gradients pass a step that is as private as it says, and catch those that are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lira.engine.step_audit import audit_step
from lira.learning.accounting import Guarantee
from lira.learning.noised import noised_sum

CLIP, NOISE = 0.5, 1.0


def gradients(loss_of, params, examples, absent):
    each = jax.vmap(jax.grad(loss_of), (None, 0))(params, *examples)
    return jnp.where(absent[:, None], 0.0, each)


def shortened(rows, clip=CLIP):
    """Rows of norm `clip` at most."""
    norms = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return rows * jnp.minimum(1.0, clip / jnp.maximum(norms, 1e-12))


def step(*, noise=NOISE, per_example=True, clip=CLIP):
    """DP-SGD by its formula (Abadi et al. 2016, Algorithm 1), or what is wrong with it."""

    def noised(loss_of, key, params, examples, absent):
        rows = gradients(loss_of, params, examples, absent)
        total = shortened(rows, clip).sum(axis=0) if per_example else shortened(rows.sum(axis=0), clip)
        return total + noise * CLIP * jax.random.normal(key, params.shape)

    return noised


def ours(*, noise=NOISE, clip=CLIP):
    """What training itself calls."""
    guarantee = Guarantee(epsilon=1.0, delta=1e-5, noise=noise, clip=clip, steps=1, rate=1.0, max_batch=9)

    def noised(loss_of, key, params, examples, absent):
        return noised_sum(loss_of, guarantee, key, params, examples, absent, 9)[0]

    return noised


def test_the_step_that_training_takes_is_sound_and_without_its_noise_it_would_not_be():
    audit = audit_step(ours(), clip=CLIP, noise=NOISE)
    assert audit.holds
    assert audit.bound.epsilon > 0.75 * audit.claimed
    assert not audit_step(ours(noise=NOISE / 10), clip=CLIP, noise=NOISE).holds
    assert not audit_step(ours(clip=2 * CLIP, noise=NOISE / 2), clip=CLIP, noise=NOISE).holds


@pytest.mark.parametrize("seed", range(2))
def test_a_sound_step_passes_and_its_epsilon_is_nearly_found(seed):
    audit = audit_step(step(), clip=CLIP, noise=NOISE, seed=seed)
    assert audit.holds
    assert audit.claimed == pytest.approx(4.377, abs=1e-3)
    assert audit.bound.epsilon > 0.75 * audit.claimed, "so little lies between the bound and what is claimed"


@pytest.mark.parametrize(
    ("broken", "at_least"),
    [
        ({"noise": 0.0}, 20),
        ({"noise": NOISE / 10}, 20),
        ({"noise": NOISE / 2}, 1.5),
        ({"per_example": False}, 1.15),
        ({"clip": np.inf}, 20),
        ({"clip": 2 * CLIP}, 1.5),
    ],
)
def test_broken_steps_are_caught(broken, at_least):
    """No noise, a tenth or half of it; clipping of the whole batch, of nothing, or to twice the norm."""
    audit = audit_step(step(**broken), clip=CLIP, noise=NOISE)
    assert not audit.holds
    assert audit.bound.epsilon > min(at_least * audit.claimed, 25), "and by far"
