"""What earlier runs left behind for later ones, under `$LIRA_CACHE` (`~/.cache/lira`)."""

import os
from pathlib import Path

import jax

__all__ = ["cache_directory", "keep_compilations"]

# JAX keeps by itself only what took a second or more to compile.
JAX_LEAST_SECONDS = 1.0


def cache_directory() -> Path:
    """`$LIRA_CACHE`, or `~/.cache/lira`."""
    return Path(os.path.expanduser(os.environ.get("LIRA_CACHE") or "~/.cache/lira"))


def keep_compilations() -> None:
    """Have JAX keep what XLA compiles, unless the user has said where or whether it should.

    Small programs are kept too: scoring a pool compiles some thirty of a tenth to half a second each. A least time
    that the user has set stands. Where nothing can be written nothing is kept.
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
        return
    place = cache_directory() / "xla"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(place, os.W_OK):
        return  # JAX would warn of each program
    jax.config.update("jax_compilation_cache_dir", str(place))
    name = "jax_persistent_cache_min_compile_time_secs"
    if name.upper() not in os.environ and getattr(jax.config, name, None) == JAX_LEAST_SECONDS:
        jax.config.update(name, 0.0)
