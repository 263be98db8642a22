"""Work on all CPU cores, in threads: NumPy and XLA let go of Python's lock while they compute."""

import contextlib
import ctypes
import os
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["MEMORY", "cores", "give_memory_back", "side_by_side"]

Item = TypeVar("Item")
Result = TypeVar("Result")

# What the items that are worked on at one time may take together, in bytes.
MEMORY = 2 << 30
# What calls that take so much have freed goes back to the system after each.
LARGE = 64 << 20


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def side_by_side(
    function: Callable[[Item], Result], items: Collection[Item], *, bytes_each: int = 0
) -> list[Result]:
    """`[function(item) for item in items]`, as many at a time as there are cores and as fit into MEMORY.

    Args:
        function: called in threads, so it must neither change what another call reads nor filter warnings.
        items: what it is called with.
        bytes_each: what one call takes at its peak; one is worked on at a time even where it takes more than MEMORY.
            Of large ones what each has freed is given back, see `give_memory_back`.

    Raises:
        The first error in the order of the items; what has not begun by then is left undone.
    """

    def call(item: Item) -> Result:
        try:
            return function(item)
        finally:
            if bytes_each >= LARGE:
                give_memory_back()

    workers = min(cores(), len(items), max(1, MEMORY // max(bytes_each, 1)))
    if workers < 2:
        return [call(item) for item in items]
    with ThreadPoolExecutor(workers) as threads:
        return list(threads.map(call, items))


def give_memory_back() -> None:
    """Let the system have what is freed: glibc keeps what lies below anything that is still held, in each thread's arena."""
    with contextlib.suppress(OSError, AttributeError):  # of another C library
        ctypes.CDLL(None).malloc_trim(0)
