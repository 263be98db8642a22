"""Run with eight virtual devices: training on one, on all, and on all where some fail; prints what happened as JSON."""

import contextlib
import json
import sys
import threading
import warnings
from pathlib import Path

import jax
import numpy as np
from small_runs import dataset

from lira.engine import fill
from lira.engine.device import this_device
from lira.learning.recipe import Recipe
from lira.store.config import Execution
from lira.store.run import Run

train_stack, made = fill.train_stack, []


def trained(place: Path, execution: Execution, fail=lambda device, stack: None) -> dict:
    """Train 32 models; `fail` may return an error to raise in place of training a stack on a device."""
    num_devices = len(execution.devices) or jax.local_device_count()
    made.clear()
    seen, together = set(), threading.Barrier(num_devices)

    def train(run, programs, checkpoints, stack, attempts, *rest):
        device = this_device().id
        if device not in seen:  # the models are too small for any device to be busy for long
            seen.add(device)
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(120)
        if message := fail(device, stack):
            raise jax.errors.JaxRuntimeError(message)
        learned = train_stack(run, programs, checkpoints, stack, attempts, *rest)
        assert learned is not None
        leaf = jax.tree.leaves(learned.variables)[0]
        made.append((device, [each.id for each in leaf.devices()], stack.tolist()))
        return learned

    fill.train_stack = train
    run = Run.create(
        place, dataset(), Recipe(epochs=2, batch_size=10), num_models=32, execution=execution, signals=()
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fill.train(run, dataset(), show_progress=False)
            error = ""
        except ValueError as raised:
            error = str(raised)
    done = run.done.tolist()
    return {
        "made": list(made),
        "done": done,
        "phi": run.phi[:, :].tolist() if all(done) else None,
        "warnings": [str(each.message) for each in caught if each.category.__name__ == "DeviceWarning"],
        "error": error,
        "session": Run.open(place).provenance["sessions"][-1],
    }


def main() -> None:
    """Write all cases to the file named."""
    out = Path(sys.argv[1])
    wide = Execution(width=2)
    lost = "INTERNAL: the device is lost"

    def full(device: int, stack: np.ndarray) -> str:
        return "RESOURCE_EXHAUSTED: out of memory" if len(stack) > 2 else ""

    found = {
        "one": trained(out / "one", Execution(width=2, devices=(3,))),
        "all": trained(out / "all", wide),
        "lost": trained(out / "lost", wide, lambda device, _: lost if device in (2, 5) else ""),
        "memory": trained(out / "memory", Execution(width=4, devices=(1,)), full),
        "none": trained(out / "none", wide, lambda *_: lost),
    }
    (out / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
