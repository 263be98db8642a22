"""How a GPU could multiply in the query sweep: exactly, or by three products of split operands on its tensor cores.

An operand is split into the nearest bfloat16 and the nearest bfloat16 to the rest; high x high, high x low and low x
high are one convolution of three times the channels, whose products are exact and whose sum is float32's. For each way
this prints kernels and bytes of a view as compiled; on a GPU also the seconds that 18 queries of 60,000 images take, and
the greatest difference of phi to float32's (tests/learning/test_query_precision.py holds those to float64).

Command:   pip install "jax[cuda12]"
           python experiments/benchmarks/queries.py [MODEL] [IMAGES]      # on a machine with a GPU
           JAX_PLATFORMS=cpu JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 python experiments/benchmarks/queries.py
                                                                          # for a described H100
Duration:  two minutes without a GPU, on 2 CPU cores.
Measured:  experiments/benchmarks/README.md.
"""

import contextlib
import json
import re
import sys
import time
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from gpu_programs import BANDWIDTH, FREE, H100, _bytes
from jax import lax
from jax.experimental import topologies

from lira.learning.augment import Queries
from lira.learning.evaluation import query
from lira.learning.models import build_model

QUERIES, EXAMPLES = Queries(mirror=True, shift=1), 60_000


def split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The nearest bfloat16 of x and that of the rest, as float32."""
    high = lax.reduce_precision(x, 8, 7)
    return high, lax.reduce_precision(x - high, 8, 7)


def three_products(dtype, lhs, rhs, *args, precision=None, preferred_element_type=None, **kwargs):
    """`lax.conv_general_dilated` NHWC of split operands that are stored as `dtype`; the small products come first."""
    (high, low), (kernel_high, kernel_low) = split(lhs), split(rhs)
    channels = jnp.concatenate([low, high, high], axis=-1).astype(dtype)
    kernels = jnp.concatenate([kernel_high, kernel_low, kernel_high], axis=2).astype(dtype)
    # Else norms, broadcast to whole images, would become part of the library's call.
    apart = lax.optimization_barrier if dtype == jnp.bfloat16 else lambda array: array
    result = lax.conv_general_dilated(
        apart(channels),
        kernels,
        *args,
        precision=lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
        **kwargs,
    )
    return apart(result)


@contextlib.contextmanager
def convolved(dtype):
    """Within it, every convolution is `three_products` stored as `dtype`."""

    def convolution(*args, **kwargs):
        return three_products(dtype, *args, **kwargs)

    def replaced(call, args, kwargs, context):
        module = context.module
        if not isinstance(module, nn.Conv) or module.conv_general_dilated is not None:
            return call(*args, **kwargs)
        other = module.clone(conv_general_dilated=convolution, parent=None)
        return other.apply(module.variables, *args, **kwargs)

    with nn.intercept_methods(replaced):
        yield


# name -> the context to trace in and options of XLA's. A library convolution of float32 takes TF32 units where it may,
# and those hold a bfloat16; one of bfloat16 with a sum in float32 needs an option that XLA calls experimental.
WAYS: dict[str, tuple[Callable, dict[str, bool]]] = {
    "float32": (contextlib.nullcontext, {}),
    "float32, NCHW": (contextlib.nullcontext, {"xla_gpu_force_conv_nchw": True}),
    "three products, stored as float32": (lambda: convolved(jnp.float32), {}),
    "three products, stored as bfloat16": (
        lambda: convolved(jnp.bfloat16),
        {"xla_gpu_experimental_enable_conv_fusion": True},
    ),
}


def compiled(module: nn.Module, context, options, arguments):
    """The queries of a batch as one program of the GPU, or of a described one for shapes that are placed there."""

    def ask(variables, x, y):
        with context():
            return query(module, QUERIES, (), variables, x, y)

    return (
        jax.jit(ask).trace(*arguments).lower(lowering_platforms=("cuda",)).compile(compiler_options=options)
    )


def kernels_and_bytes(text: str) -> tuple[int, int]:
    """Of a program without loops: kernels, and bytes that they read and write."""
    sizes, count, moved = {}, 0, 0
    for line in text[text.index("\nENTRY ") :].splitlines():
        if match := re.match(r"\s*(?:ROOT )?(%[\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)", line):
            result, shape, kind, operands = match.groups()
            sizes[result] = _bytes(shape)
            if kind not in FREE:
                count += 1
                moved += sizes[result] + sum(sizes[name] for name in re.findall(r"%[\w.\-]+", operands))
    return count, moved


def seconds(program, arguments) -> float:
    """Of one call, the fastest of five."""
    taken = []
    for _ in range(6):
        began = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


def main(model: str, images: int) -> None:
    """Compile each way, count and where there is a GPU measure; print a row of each."""
    on_gpu = jax.default_backend() == "gpu"
    module, rng = build_model(model, 10), np.random.default_rng(0)

    def init():
        return module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)

    variables = jax.jit(init)() if on_gpu else jax.eval_shape(init)
    arguments = (variables, rng.integers(0, 256, (images, 32, 32, 3), np.uint8), rng.integers(0, 10, images))
    views, exact = images * len(QUERIES.views), None
    shapes = arguments
    if not on_gpu:
        topology = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1")
        place = jax.sharding.SingleDeviceSharding(topology.devices[0])
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), arguments)
    for name, (context, options) in WAYS.items():
        row: dict[str, object] = {"model": model, "way": name, "images": images}
        try:
            program = compiled(module, context, options, shapes)
            row["kernels"], moved = kernels_and_bytes(str(program.as_text()))
            row["megabytes_per_view"] = round(moved / views / 1e6, 2)
            row["seconds_at_full_bandwidth"] = round(
                moved / views * EXAMPLES * len(QUERIES.views) / BANDWIDTH, 1
            )
            if on_gpu:
                phi = np.asarray(program(*arguments)[0]["phi"], np.float64)
                exact = phi if exact is None else exact
                row["difference_over_greatest_phi"] = float(np.abs(phi - exact).max() / np.abs(exact).max())
                row["seconds"] = seconds(program, arguments) / images * EXAMPLES
        except jax.errors.JaxRuntimeError as error:
            row["error"] = str(error).splitlines()[0]
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    given = [*sys.argv[1:], *("wrn-28-2", "64")[len(sys.argv) - 1 :]]
    main(given[0], int(given[1]))
