"""What a GPU would have to do: training steps compiled for an H100 that need not be there.

XLA compiles for a described GPU. Of the program of a step this counts the kernels, the bytes that they read and write,
and the memory that it asks for: an estimate and not a measurement. Arrays that stay in the card's 50 MB of L2 cache
cost less than their bytes say, and a kernel that reads a part of an array counts all of it.

Command:   pip install "jax[cuda12]"
           JAX_PLATFORMS=cpu JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 \
               python experiments/benchmarks/gpu_programs.py [--out FILE.json]
Duration:  some minutes on 2 CPU cores.
Measured:  experiments/benchmarks/README.md.
"""

import argparse
import collections
import json
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from lira.bench.throughput import workload
from lira.engine.programs import epochs_at_once
from lira.engine.stacked import stacked
from lira.learning.learner import Learner
from lira.learning.models import build_model
from lira.learning.recipe import steps_per_epoch
from lira.learning.training import init_model, train_epochs

# An H100 SXM as XLA describes it. Kernels are not tuned by trial, for want of a card to try them on.
BANDWIDTH = 3.35e12
H100 = f"""
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
runtime_version {{ major: 12 minor: 9 }}
dnn_version_info {{ major: 9 minor: 8 }}
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98  memory_bandwidth: {BANDWIDTH:.0f}
  device_memory_size: 84929347584  l2_cache_size: 52428800  threads_per_warp: 32
  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_block: 49152  shared_memory_per_core: 233472  shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
}}
"""
# model, precision, lowering and width
PROGRAMS = (
    ("wrn-28-2", "bfloat16", "xla", 1),
    ("mlp", "float32", "patches", 64),
    ("mlp", "float32", "patches", 1024),
    ("cnn", "bfloat16", "xla", 1),
    ("wrn-28-2", "bfloat16", "per_model", 4),
    ("cnn", "bfloat16", "per_model", 4),
    ("cnn-fast", "bfloat16", "xla", 1),
)
# A kernel that moves fewer bytes a model is small: launching it takes longer than its work.
SMALL = 4e6
BYTES = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8}
# What takes no kernel of its own.
FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant"}


class Kernel(NamedTuple):
    """One kernel of a step: the JAX operation that it ends with, and the bytes of its result and of each operand."""

    operation: str
    sizes: list[int]


def compiled_training(model: str, precision: str, how: str, width: int):
    """The program that trains a stack for an epoch or more, compiled for the H100; its epochs, and its data set's bytes."""
    dataset, recipe, _ = workload(model, precision, "gpu")
    steps = steps_per_epoch(len(dataset.y), recipe.batch_size)
    learner = Learner(build_model(model, dataset.num_classes), recipe, steps, "gpu")
    several = epochs_at_once(recipe, steps)

    def init(index, x):
        return init_model(learner, learner.key(index), x)

    def epochs(state, index, first, x, y, keep):
        return train_epochs(learner, state, learner.key(index), first, several, steps, x, y, keep)

    index, first = jnp.zeros(width, int), jnp.zeros((), int)
    keep = jax.ShapeDtypeStruct((width, len(dataset.y)), bool)
    state = jax.eval_shape(stacked(how, "gpu", init, 0, None), index, dataset.x[:1])
    topology = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1")
    place = jax.sharding.SingleDeviceSharding(topology.devices[0])
    arguments = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place),
        (state, index, first, dataset.x, dataset.y, keep),
    )
    whole = stacked(how, "gpu", epochs, 0, 0, None, None, None, 0, donate_argnums=0)
    program = whole.trace(*arguments).lower(lowering_platforms=("cuda",)).compile()
    return program, several, dataset.x.nbytes


def kernels(text: str) -> list[Kernel]:
    """The kernels in the body of a program's loop over steps."""
    computations: dict[str, list[str]] = collections.defaultdict(list)
    name = ""
    for line in text.splitlines():
        if line.endswith("{") and " -> " in line:
            name = line.removeprefix("ENTRY ").split()[0]
        computations[name].append(line)
    bodies = [computations[body] for body in re.findall(r"while\(.*body=(%[\w.\-]+)", text)]
    sizes, found = {}, []
    for line in max(bodies, key=len):
        if match := re.match(r"\s*(?:ROOT )?(%[\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)", line):
            result, shape, kind, operands = match.groups()
            sizes[result] = _bytes(shape)
            if kind not in FREE:
                used = [sizes[operand] for operand in re.findall(r"%[\w.\-]+", operands)]
                operation = re.search(r'op_name="(?:[^"]*/)?([^"]*)"', line)
                found.append(Kernel(operation[1] if operation else "", [sizes[result], *used]))
    return found


def _are_known(text: str) -> bool:
    """Whether the compiler knows how often each loop of a program turns; if not, the host asks after every turn."""
    loops = re.findall(r"while\(.*", text)
    return all("known_trip_count" in loop for loop in loops)


def _bytes(shape: str) -> int:
    arrays = re.findall(r"\b(\w+)\[([\d,]*)\]", shape)
    return sum(BYTES[dtype] * math.prod(map(int, filter(None, dims.split(",")))) for dtype, dims in arrays)


def main(out: str | None) -> None:
    """Compile the programs, and print a row of each."""
    rows = []
    for model, precision, how, width in PROGRAMS:
        program, epochs, dataset_bytes = compiled_training(model, precision, how, width)
        text = program.as_text()
        step = kernels(text)
        # Of the data set a batch is read, and not the whole.
        traffic = [sum(size for size in kernel.sizes if size != dataset_bytes) / width for kernel in step]
        small = [kernel.operation for kernel, moved in zip(step, traffic, strict=True) if moved < SMALL]
        rows.append(
            {
                "model": model,
                "precision": precision,
                "lowering": how,
                "width": width,
                "programs_per_epoch": 1 / epochs,
                "host_decides_after_each_step": not _are_known(text),
                "kernels_per_step": len(step),
                "small_kernels": len(small),
                "small_kernels_by_operation": dict(collections.Counter(small).most_common(6)),
                "bytes_per_step_and_model": round(sum(traffic)),
                "ms_at_full_bandwidth": round(1e3 * sum(traffic) / BANDWIDTH, 5),
                "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
        if out:
            with open(out, "w") as file:
                json.dump({"device": "H100, described", "jax": jax.__version__, "rows": rows}, file, indent=2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", help="also write the figures to this JSON file")
    main(parser.parse_args().out)
