import threading
import time

import pytest

from lira import parallel
from lira.parallel import side_by_side


@pytest.fixture(autouse=True)
def four_cores(monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 4)


def most_at_a_time(items, **options):
    """How many calls were under way together at most."""
    lock, under_way, most = threading.Lock(), 0, 0

    def call(_):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.02)
        with lock:
            under_way -= 1

    side_by_side(call, items, **options)
    return most


def test_results_come_in_the_order_of_the_items():
    """The first items take the longest."""

    def call(item):
        time.sleep(0.01 * (3 - item))
        return item * item

    assert side_by_side(call, range(4)) == [0, 1, 4, 9]
    assert side_by_side(call, {"a": 3}.values()) == [9]
    assert side_by_side(call, []) == []


def test_as_many_at_a_time_as_there_are_cores_and_memory_for():
    assert most_at_a_time(range(12)) == 4
    assert most_at_a_time(range(3)) == 3
    assert most_at_a_time(range(12), bytes_each=parallel.MEMORY // 2) == 2
    assert most_at_a_time(range(3), bytes_each=2 * parallel.MEMORY) == 1


def test_one_at_a_time_needs_no_thread(monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 1)
    assert side_by_side(lambda _: threading.current_thread(), range(2)) == [threading.main_thread()] * 2


def test_the_first_error_is_raised():
    def call(item):
        if item:
            raise ValueError(f"no {item}")

    with pytest.raises(ValueError, match="no 1"):
        side_by_side(call, range(3))
