"""What an unlearning costs, and how it fits into memory."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from unlearned_runs import RECIPE, K, M, dataset

from lira.engine import device
from lira.engine import programs as engine_programs
from lira.engine.calibrate import programs_for
from lira.engine.programs import fit_beside
from lira.store.config import Config, Execution
from lira.unlearning.config import resolved
from lira.unlearning.plan import operations, plan_unlearning


def test_plan_counts_the_models_of_each_kind(done):
    config = dataclasses.replace(done.config, methods=("retrain", "finetune"), method={})
    cost = plan_unlearning(resolved(config), dataset())
    assert [(kind.name, kind.models, kind.of) for kind in cost.kinds] == [
        ("original", M, M),
        ("retrained", K * M, K * M),
        ("retrain", K * M, K * M),
        ("finetune", K * M, K * M),
    ]
    assert cost.kinds[1].seconds == pytest.approx(K * cost.kinds[0].seconds)
    left = plan_unlearning(done.config, dataset(), done)
    assert all(kind.models == 0 == kind.seconds for kind in left.kinds)
    assert str(left).count("\n") == len(left.kinds)


def test_operations_are_those_of_products_and_convolutions_as_often_as_loops_turn():
    a, b = jnp.ones((3, 4)), jnp.ones((4, 5))

    def looped(a, b):
        return jax.lax.scan(
            lambda carry, _: (carry + (jax.jit(jnp.dot)(a, b)).sum(), None), 0.0, None, length=7
        )[0]

    assert operations(jax.make_jaxpr(jnp.dot)(a, b).jaxpr) == 60
    assert operations(jax.make_jaxpr(looped)(a, b).jaxpr) == 7 * 60

    def either(a, b):
        return jax.lax.cond(a.sum() > 0, lambda: a @ b, lambda: jnp.zeros((3, 5)))

    assert operations(jax.make_jaxpr(either)(a, b).jaxpr) == 60
    image, conv = jnp.ones((2, 8, 8, 3)), nn.Conv(5, (3, 3))
    kernel = conv.init(jax.random.key(0), image)
    assert operations(jax.make_jaxpr(conv.apply)(kernel, image).jaxpr) == 2 * 64 * 9 * 3 * 5


def test_what_takes_more_memory_than_training_goes_by_in_parts(monkeypatch):
    config = Config(dataset="memory", recipe=RECIPE, execution=Execution(width=6, workers=2))
    programs = programs_for(config, dataset(), 24)
    assert (programs.width, programs.workers) == (6, 2)

    def one(a, b):
        big = jnp.outer(a, a) @ jnp.outer(b, b)
        return {"sum": big.sum(), "same": a}

    a, b = jnp.asarray(np.random.default_rng(0).normal(size=(6, 200)), jnp.float32), jnp.ones(200)
    whole, function = fit_beside(programs, one, (0, None), (a, b))
    assert whole.workers == 2
    expected = function(a, b)
    usage: Any = jax.jit(jax.vmap(one, (0, None))).lower(a, b).compile().memory_analysis()
    needed = usage.argument_size_in_bytes + usage.temp_size_in_bytes
    widths = []

    def by_parts(compiled, axes, width, *arguments):
        widths.append(width)
        return whole_by_parts(compiled, axes, width, *arguments)

    whole_by_parts = engine_programs._by_parts
    monkeypatch.setattr(engine_programs, "_by_parts", by_parts)
    # Fewer workers before narrower parts, as in training.
    for there_is, workers, width in ((2.1, 2, 6), (1.1, 1, 6), (0.7, 1, 3)):
        monkeypatch.setattr(
            engine_programs, "device_memory", lambda s=there_is: s * needed / device.MEMORY_SHARE
        )
        fitted, function = fit_beside(programs, one, (0, None), (a, b))
        got = function(a, b)
        assert (fitted.workers, widths.pop()) == (workers, width)
        np.testing.assert_allclose(got["sum"], expected["sum"], rtol=1e-4)
        np.testing.assert_array_equal(got["same"], a)
    monkeypatch.setattr(engine_programs, "device_memory", lambda: 1.0)
    with pytest.raises(ValueError, match=r"not even one model fits on the device"):
        fit_beside(programs, one, (0, None), (a, b))
