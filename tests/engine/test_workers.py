"""A queue of stacks on many devices: eight virtual ones, in a process of their own."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("devices")
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    here = Path(__file__)
    subprocess.run(
        [sys.executable, here.parent / "eight_devices.py", out],
        check=True,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
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
