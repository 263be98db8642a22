"""Where arrays are scored. No test machine has an accelerator: one is told of, and nothing is run on it."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lira import attacks, numbers, signals
from lira.attacks import (
    _averages,
    _moments,
    _opponents,
    _pool,
    bavaria,
    calibration,
    likelihood_ratio,
    multivariate,
    relative,
)
from lira.attacks._pool import ACCELERATOR_ELEMENTS, ACCELERATOR_FACTOR, BLOCK_ELEMENTS, blocks, device_for
from lira.membership import keep_mask

CPU = jax.local_devices(backend="cpu")[0]
GPU = SimpleNamespace(platform="gpu", id=0)
SMALL = np.zeros((4, 8, 2), np.float32)


@pytest.fixture
def gpu(monkeypatch):
    """A host whose default device is an accelerator."""

    def local_devices(backend=None):
        return {None: [GPU], "cpu": [CPU], "gpu": [GPU]}[backend]

    monkeypatch.setattr(jax, "local_devices", local_devices)


def sized(*shape) -> Any:
    """An array that is never in memory."""
    return SimpleNamespace(shape=shape)


def test_small_arrays_are_scored_on_the_cpu_and_large_ones_on_the_accelerator(gpu):
    large = sized(256, ACCELERATOR_ELEMENTS // 256, 1)
    assert device_for(SMALL, None) is CPU
    assert device_for(sized(256, 50_000, 2)) is CPU
    assert device_for(sized(256, ACCELERATOR_ELEMENTS // 256 - 1, 1)) is CPU
    assert device_for(large) is GPU
    assert device_for(SMALL, large) is GPU, "targets count too"
    assert device_for(sized(1024, 60_000, 18)) is GPU


def test_arrays_on_a_device_are_scored_there(gpu):
    large = sized(256, ACCELERATOR_ELEMENTS, 1)
    assert device_for(jnp.zeros((4, 8, 2)), large) is CPU
    assert device_for(large, jnp.zeros((4, 8, 2))) is CPU


def test_the_device_that_the_user_chose_stands(gpu):
    with jax.default_device(CPU):
        assert device_for(sized(256, ACCELERATOR_ELEMENTS, 1)) is CPU
    with jax.default_device("gpu"):
        assert device_for(SMALL) is GPU


def test_without_a_cpu_or_without_an_accelerator_there_is_no_choice(monkeypatch):
    assert device_for(SMALL) is device_for(sized(256, ACCELERATOR_ELEMENTS, 1)) is jax.local_devices()[0]

    def accelerators_alone(backend=None):
        if backend == "cpu":
            raise RuntimeError("Unknown backend cpu")
        return [GPU]

    monkeypatch.setattr(jax, "local_devices", accelerators_alone)
    assert device_for(SMALL) is GPU


def test_blocks_are_larger_where_an_accelerator_works():
    """Of 2^18 elements on a CPU, and so outside of `scoring`, where NumPy works; 16 times as many elsewhere."""

    def size():
        examples, _ = next(blocks(256, 100_000, 2))
        return examples.stop - examples.start

    assert size() == BLOCK_ELEMENTS // 512
    with _pool.scoring(SMALL):
        assert size() == BLOCK_ELEMENTS // 512
    for device, factor in (("cpu", 1), (CPU, 1), ("gpu", ACCELERATOR_FACTOR)):
        with jax.default_device(device):
            assert size() == factor * BLOCK_ELEMENTS // 512


def test_attacks_run_where_the_rule_says(gpu, monkeypatch):
    """The accelerator that is told of is the default one, and would fail if anything were run on it."""
    seen = []
    read = _pool.read_block

    def reading(signal, examples, name):
        seen.append(getattr(jax.config, "jax_default_device", None))
        return read(signal, examples, name)

    monkeypatch.setattr(_pool, "read_block", reading)
    keep = keep_mask(0, 6, 20)
    phi = np.random.default_rng(0).normal(size=(6, 20, 1)).astype(np.float32)
    for attack in (attacks.lira_online_fixed, attacks.base, attacks.attack_r, attacks.rmia_offline):
        seen.clear()
        attack(phi, keep)
        assert seen
        assert all(device is CPU for device in seen)
    assert getattr(jax.config, "jax_default_device", None) is None


# --- JAX arrays -----------------------------------------------------------------------------------------------------

ON_DEVICE = (
    "lira_online",
    "lira_offline_fixed",
    "lira_online_multivariate",
    "bavaria_online",
    "base",
    "rmia_online",
)


class NoHost:
    """NumPy, but it refuses JAX arrays that are as large as phi."""

    def __getattr__(self, name):
        function = getattr(np, name)
        if isinstance(function, type) or not callable(function):
            return function

        def guarded(*args, **kwargs):
            assert not any(isinstance(a, jax.Array) and a.ndim == 3 for a in args), f"np.{name} of phi"
            return function(*args, **kwargs)

        if isinstance(function, np.ufunc):
            vars(guarded)["accumulate"] = function.accumulate
        return guarded


@pytest.fixture
def on_device(monkeypatch):
    for module in (
        _pool,
        _opponents,
        _moments,
        _averages,
        likelihood_ratio,
        multivariate,
        bavaria,
        calibration,
        relative,
        signals,
        numbers,
    ):
        monkeypatch.setattr(module, "np", NoHost())


@pytest.mark.filterwarnings("ignore::lira.attacks.FewModelsWarning")
@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("name", ON_DEVICE)
def test_phi_on_a_device_is_scored_without_a_copy_on_the_host(name, outside, monkeypatch, on_device):
    monkeypatch.setattr(_pool, "BLOCK_ELEMENTS", 64 * 8)
    keep = keep_mask(0, 8, 150)
    assert len(list(blocks(8, 150, 2))) == 5
    rng = np.random.default_rng(0)
    phi = (rng.normal(size=(8, 150, 2)) + keep[..., None]).astype(np.float32)
    target = rng.normal(size=(3, 150, 2)).astype(np.float32) if outside else None
    attack = getattr(attacks, name)
    expected = attack(phi, keep, target=target)
    scores = attack(jnp.asarray(phi), keep, target=None if target is None else jnp.asarray(target))
    assert isinstance(scores, np.ndarray)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, expected)


def test_the_guard_would_see_a_copy(on_device):
    with pytest.raises(AssertionError, match=r"np\.asarray of phi"):
        _pool.read_block(jnp.zeros((4, 6, 1)), slice(0, 3), "phi")


def test_every_attack_takes_jax_arrays():
    keep = keep_mask(0, 8, 40)
    phi = (np.random.default_rng(0).normal(size=(8, 40, 2)) + keep[..., None]).astype(np.float32)
    for name in (
        "attack_p",
        "attack_r",
        "difficulty_calibration_both",
        "rmia_offline",
        "confidence_threshold",
    ):
        attack = getattr(attacks, name)
        np.testing.assert_array_equal(attack(jnp.asarray(phi), keep), attack(phi, keep))


def test_what_is_not_finite_on_a_device_is_named_all_the_same():
    phi = np.ones((4, 50, 2), np.float32)
    phi[2, 33, 1] = np.nan
    with pytest.raises(ValueError, match=r"phi\[2, 33, 1\] is nan: leave that model and its mate out"):
        attacks.lira_offline_fixed(jnp.asarray(phi), keep_mask(0, 4, 50))
