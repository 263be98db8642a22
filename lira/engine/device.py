"""What the devices are, what each holds, and how many stacks it trains at a time.

A thread computes on one device, by `jax.default_device`; nothing beside this file and `fill` asks which.
"""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from lira.parallel import cores

__all__ = [
    "MEMORY_SHARE",
    "Device",
    "arithmetic",
    "device_memory",
    "device_name",
    "devices_of",
    "processor",
    "stacks_at_a_time",
    "this_device",
]
Device = Any  # a jax.Device, which is no type to type checkers
# Share of the device's memory that stacks may take.
MEMORY_SHARE = 0.8


def devices_of(indices: Sequence[int] = ()) -> list[Device]:
    """Devices of this machine by their index, all by default.

    Raises:
        ValueError: there is no such device.
    """
    there = jax.local_devices()
    for index in indices:
        if index >= len(there):
            raise ValueError(
                f"execution.devices names device {index}, and this machine has {len(there)}, from 0 on: "
                f"{', '.join(map(str, there))}"
            )
    return [there[index] for index in indices] if indices else there


def this_device() -> Device:
    """The device that this thread computes on."""
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    return chosen if isinstance(chosen, jax.Device) else jax.local_devices(backend=chosen)[0]


def device_name(devices: Sequence[Device]) -> str:
    """For people: 8 x NVIDIA H100."""
    return f"{len(devices)} x {devices[0].device_kind}"


def arithmetic() -> str:
    """What this thread's device is, as far as its sums depend on it: its kind, and of a CPU which, and on how many cores."""
    device = this_device()
    return f"{cores()} cores of {processor()}" if device.platform == "cpu" else device.device_kind


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the CPU calls itself, with the widest instructions that tell its kind; its architecture where it does not."""
    try:
        lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
        fields = {key.strip(): value.strip() for key, _, value in lines}
    except OSError:
        fields = {}
    # A virtual machine may hide the model's name.
    kinds = [name for name in ("avx512f", "amx_tile") if name in fields.get("flags", "").split()]
    return " ".join((fields.get("model name") or platform.processor() or platform.machine(), *kinds))


def device_memory() -> float:
    """Bytes on this thread's device; of a CPU its share of half of the machine's."""
    statistics = this_device().memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2 / jax.local_device_count()


def stacks_at_a_time(platform: str, devices: int) -> int:
    """Stacks for each of some devices to train at a time: one on an accelerator; CPU cores are shared out among them."""
    return max(1, cores() // devices) if platform == "cpu" else 1
