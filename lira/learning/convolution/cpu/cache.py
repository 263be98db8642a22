"""A core's caches, as Linux reports them."""

import functools
from pathlib import Path

__all__ = ["cache_bytes", "tiles_bytes"]

# What is made of images is to stay in a core's own cache where it has as much as this, otherwise in the one that cores
# share, where twice as much was best: measured on AMD's with 1 MB of L2 cache and Intel's with 2 MB.
OWN_CACHE_BYTES = 2 << 20


@functools.cache
def tiles_bytes() -> int:
    """Bytes of Winograd's tiles to make at a time."""
    level2 = cache_bytes().get(2, 0)
    return level2 if level2 >= OWN_CACHE_BYTES else 2 * OWN_CACHE_BYTES


def cache_bytes(directory: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> dict[int, int]:
    """Bytes of a core's data caches by level, as Linux reports them (`2048K`); empty where nothing does."""
    sizes = {}
    for cache in sorted(directory.glob("index*")):
        try:
            level, kind, size = ((cache / name).read_text().strip() for name in ("level", "type", "size"))
            if kind != "Instruction":
                sizes[int(level)] = int(size.removesuffix("K")) << 10
        except (OSError, ValueError):
            continue
    return sizes
