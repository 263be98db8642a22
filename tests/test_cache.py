import os
import subprocess
import sys

import jax
import pytest

from lira.cache import cache_directory, keep_compilations

DIRECTORY, LEAST = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"


@pytest.fixture
def unset(tmp_path, monkeypatch):
    """JAX as it is where nothing is said of its cache, and `$LIRA_CACHE`."""
    before = {name: getattr(jax.config, name) for name in (DIRECTORY, LEAST)}
    monkeypatch.setenv("LIRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(LEAST.upper(), raising=False)
    jax.config.update(DIRECTORY, None)
    jax.config.update(LEAST, 1.0)
    yield tmp_path / "cache"
    for name, value in before.items():
        jax.config.update(name, value)


def test_everything_is_kept_where_nothing_is_said(unset):
    assert cache_directory() == unset
    keep_compilations()
    assert getattr(jax.config, DIRECTORY) == str(unset / "xla")
    assert getattr(jax.config, LEAST) == 0


def test_a_least_time_that_the_user_set_stands(unset, monkeypatch):
    jax.config.update(LEAST, 5.0)
    keep_compilations()
    assert getattr(jax.config, DIRECTORY) == str(unset / "xla")
    assert getattr(jax.config, LEAST) == 5
    # Jax's own default, said aloud.
    jax.config.update(DIRECTORY, None)
    jax.config.update(LEAST, 1.0)
    monkeypatch.setenv(LEAST.upper(), "1")
    keep_compilations()
    assert getattr(jax.config, LEAST) == 1


def test_a_directory_that_the_user_set_stands_with_all_else(unset):
    jax.config.update(DIRECTORY, "/elsewhere")
    keep_compilations()
    assert getattr(jax.config, DIRECTORY) == "/elsewhere"
    assert getattr(jax.config, LEAST) == 1


def test_nothing_is_kept_where_nothing_can_be_written(unset, monkeypatch):
    unset.write_text("a file")
    keep_compilations()
    assert getattr(jax.config, DIRECTORY) is None
    unset.unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    keep_compilations()
    assert getattr(jax.config, DIRECTORY) is None
    assert getattr(jax.config, LEAST) == 1


SCRIPT = """
import collections, jax, numpy as np
counted = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: counted.update([name.rsplit("/", 1)[1]]))
from lira.attacks.suite import ATTACKS, Pool, attack_pool
from lira.membership import keep_mask
phi = np.random.default_rng(0).normal(size=(4, 16, 1)).astype(np.float32)
attack_pool(Pool({"phi": phi}, keep_mask(0, 4, 16)), {name: ATTACKS[name] for name in ("base", "loss_threshold")})
print(counted["cache_misses"], counted["cache_hits"])
"""


def test_a_second_process_compiles_nothing_anew(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"LIRA_CACHE": str(tmp_path), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    said = [
        subprocess.run(
            [sys.executable, "-W", "error", "-c", SCRIPT],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        for _ in range(2)
    ]
    first, second = (tuple(map(int, each.stdout.split())) for each in said)
    assert first[0] >= 3
    assert first[1] == 0
    assert second == (0, first[0])
