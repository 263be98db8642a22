"""What all tests share: quick compilations that they need not repeat, deterministic examples, a cache of their own."""

import gc
import importlib.metadata
import os
import tempfile

import hypothesis
import pytest
from matplotlib.figure import Figure
from PIL import Image

# By the versions of jaxlib whose XLA knows them.
QUICK = {
    "0.10.": "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
    "0.11.": "--xla_cpu_parallel_codegen_split_count=1",
    "0.12.": "--xla_cpu_parallel_codegen_split_count=1",
}

# Before JAX is imported; child processes, pytest's workers among them, inherit it. The tests' programs are small, and
# compiling them is most of the suite's time.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="lira-tests-")  # removed by the process that made it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
# Child processes, of which there are many, would each compile the whole package to bytecode again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Two processes share the cores: threads of BLAS and OpenMP that wait for each other only burn them. Before NumPy is imported.
for library in ("OPENBLAS", "OMP"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
# Tracing leaves millions of small objects behind; looking through them for cycles is a seventh of its time by default.
gc.set_threshold(100_000, 20, 50)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# The compiler then takes a third of the time (1.8 s in place of 5.8 s for 16 small attacks). For known versions alone: XLA
# ends the process where it does not know a flag.
for known, quick in QUICK.items():
    if importlib.metadata.version("jaxlib").startswith(known):
        os.environ["XLA_FLAGS"] = f"{quick} {os.environ.get('XLA_FLAGS', '')}"

# Compilation makes the first example slow, so no deadline; derandomized, so that a failure is everybody's failure.
hypothesis.settings.register_profile("lira", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.load_profile("lira")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Neither read nor leave anything in the user's cache; child processes inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIRA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _pictures(request, monkeypatch):
    """One pixel in place of each picture, half of a report's time; the tests marked `pictures` have them drawn."""
    if not request.node.get_closest_marker("pictures"):
        monkeypatch.setattr(
            Figure, "savefig", lambda figure, file, **_: Image.new("L", (1, 1)).save(file, "png")
        )
