"""A queue of stacks: on eight virtual devices, in a process of their own; and what ends the work of all, on one."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from lira.engine.workers import Queue, work_through


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("devices")
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    here = Path(__file__)
    path = os.pathsep.join([str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, here.parent / "eight_devices.py", out],
        check=True,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
        cwd=here.parents[2],
    )
    return json.loads((out / "found.json").read_text())


def devices_of(case):
    return Counter(device for device, _, stack in case["made"] for _ in stack)


def test_models_of_many_devices_are_those_of_one(found):
    np.testing.assert_allclose(found["all"]["phi"], found["one"]["phi"], rtol=1e-5, atol=1e-5)
    assert devices_of(found["one"]).keys() == {3}, "that was asked for"


def test_all_devices_are_busy_and_each_computes_on_itself(found):
    assert devices_of(found["all"]).keys() == set(range(8))
    for device, on, _ in found["all"]["made"]:
        assert on == [device]
    stacks = sorted(model for _, _, stack in found["all"]["made"] for model in stack)
    assert stacks == list(range(32)), "each model once"
    assert found["all"]["session"]["device"] == "8 x cpu"
    assert found["one"]["session"]["device"] == "1 x cpu"


def test_a_device_that_fails_hands_its_stack_to_the_others(found):
    case = found["lost"]
    assert case["done"] == [1] * 32
    assert devices_of(case).keys() == set(range(8)) - {2, 5}
    np.testing.assert_allclose(case["phi"], found["one"]["phi"], rtol=1e-5, atol=1e-5)
    assert len(case["warnings"]) == 2
    assert all("the device is lost" in each and "of 8 devices go on" in each for each in case["warnings"])


def test_out_of_memory_halves_the_width(found):
    case = found["memory"]
    assert case["done"] == [1] * 32
    assert {len(stack) for _, _, stack in case["made"]} == {2}
    (warning,) = case["warnings"]
    assert re.search(
        r"cpu:1 ran out of memory with \d+ x 4 models: it goes on with stacks of 2 models", warning
    )
    np.testing.assert_allclose(case["phi"], found["one"]["phi"], rtol=1e-5, atol=1e-5)


def test_without_any_device_the_run_says_so(found):
    assert (
        "32 models are not made, all devices failed: INTERNAL: the device is lost" in found["none"]["error"]
    )
    assert found["none"]["done"] == [0] * 32


# --- What ends the work of all ---------------------------------------------------------------------------------------


def queue_of(models):
    return Queue(np.arange(models), lambda stack: stack)


def test_a_write_that_fails_ends_the_work_of_all_workers():
    """A disk that is full, say: hours of other stacks would be for nothing."""
    queue, made = queue_of(100), []

    def make(stack, stop):
        made.append(int(stack[0]))
        stop.wait(0.02)

        def write():
            if stack[0] == 0:  # the other worker's writes go well
                raise OSError(28, "No space left on device")

        return write

    with pytest.raises(OSError, match="No space left"):
        work_through(queue, jax.local_devices(), lambda widest: (1, 2, make))
    assert len(made) < 12


@pytest.mark.filterwarnings("ignore::lira.engine.workers.DeviceWarning")
def test_a_write_that_fails_is_not_lost_behind_a_stack_that_does_not_fit():
    queue = queue_of(4)

    def make(stack, stop):
        if stack[0] > 0:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")

        def write():
            time.sleep(0.1)
            raise OSError(28, "No space left on device")

        return write

    with pytest.raises(OSError, match="No space left"):
        work_through(queue, jax.local_devices(), lambda widest: (widest or 2, 1, make))


def test_an_interrupt_while_programs_are_compiled_is_not_forgotten(monkeypatch):
    """It comes in the main thread, which waits for the others; they must not begin when they are done compiling."""
    compiling, interrupted, made = threading.Event(), threading.Event(), []

    def prepare(widest):
        compiling.set()
        interrupted.wait(10)
        time.sleep(0.1)
        return 1, 1, lambda stack, stop: made.append(stack)

    def interrupting(futures):
        compiling.wait(10)
        interrupted.set()
        raise KeyboardInterrupt

    monkeypatch.setattr("lira.engine.workers.as_completed", interrupting)
    with pytest.raises(KeyboardInterrupt):
        work_through(queue_of(3), jax.local_devices(), prepare)
    assert not made
