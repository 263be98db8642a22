"""What all tests share: quick compilations that they need not repeat, deterministic examples, a cache of their own."""

import os
import tempfile

# Before JAX is imported; child processes, pytest's workers among them, inherit it. The tests' programs are small, and
# compiling them is most of the suite's time.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="lira-tests-")  # removed by the process that made it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis
import pytest

# Compilation makes the first example slow, so no deadline; derandomized, so that a failure is everybody's failure.
hypothesis.settings.register_profile("lira", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.load_profile("lira")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Neither read nor leave anything in the user's cache; child processes inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIRA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
