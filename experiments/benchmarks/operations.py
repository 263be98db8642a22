"""Where the time of a training step goes: a profile by operation of one stack of one model.

Command:   python experiments/benchmarks/operations.py [MODEL] [LOWERING] [STEPS]     (mlp, cnn, resnet18, wrn-28-2)
Duration:  under a minute on 2 CPU cores, compilation included.
Measured:  experiments/benchmarks/README.md.
"""

import collections
import re
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.profiler import ProfileData

from lira.bench import throughput
from lira.engine.programs import compile_programs
from lira.learning.augment import Queries
from lira.learning.learner import Learner

SHOWN = 12


def main(model: str = "wrn-28-2", lowering: str = "winograd", steps: int = 3) -> None:
    """Train a few steps under the profiler and add up what each kind of operation took."""
    dataset, recipe, _ = throughput.workload(model, "float32")
    programs = compile_programs(Learner.of(recipe, dataset), Queries(), dataset, 1, lowering, 1)
    x, y = jnp.asarray(dataset.x), jnp.asarray(dataset.y)
    keep, index = jnp.ones((1, len(y)), bool), jnp.zeros(1, int)

    def train(state, count):
        return jax.block_until_ready(programs.train(state, index, 0, count, x, y, keep))[0]

    state = train(programs.init(index, x[:1]), 1)
    with tempfile.TemporaryDirectory() as place:
        with jax.profiler.trace(place):
            began = time.perf_counter()
            train(state, steps)
            taken = (time.perf_counter() - began) / steps
        traces = [ProfileData.from_file(str(file)) for file in Path(place).rglob("*.xplane.pb")]
    # The names of XLA's operations are those of its text; loops are left out, since their bodies are counted.
    kinds = dict(re.findall(r"%([\w.\-]+) = [^\n]*? ([\w\-]+)\(", programs.train.as_text()))
    totals: collections.Counter[str] = collections.Counter()
    events = (e for trace in traces for plane in trace.planes for line in plane.lines for e in line.events)
    for event in events:
        if kinds.get(event.name, "while") != "while":
            totals[re.sub(r"[.\d]+$", "", event.name)] += event.duration_ns / 1e6 / steps
    whole = sum(totals.values())
    print(
        f"{model}, {lowering}, batch {recipe.batch_size}: {taken * 1e3:.3g} ms a step, {whole:.3g} ms over all threads"
    )
    for name, spent in totals.most_common(SHOWN):
        print(f"{spent:9.3f} ms  {spent / whole:5.1%}  {name}")


if __name__ == "__main__":
    model, lowering, steps = (*sys.argv[1:], *("wrn-28-2", "winograd", "3")[len(sys.argv) - 1 :])
    main(model, lowering, int(steps))
