"""What the device is, what it holds, and how many stacks it trains at a time."""

import os

import jax

from lira.parallel import cores

__all__ = ["MEMORY_SHARE", "device_memory", "stacks_at_a_time"]
# Share of the device's memory that stacks may take.
MEMORY_SHARE = 0.8


def device_memory() -> float:
    """Bytes on the device; half of the machine's where the device is its CPU."""
    statistics = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2


def stacks_at_a_time(platform: str) -> int:
    """Stacks to train at a time: one a CPU core that this process may use, one on an accelerator."""
    return cores() if platform == "cpu" else 1
