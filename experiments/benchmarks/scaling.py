"""Is anything serialised when many devices, or many processes, train one run? Virtual devices and processes on one machine.

    python experiments/benchmarks/scaling.py --out experiments/benchmarks/scaling_cpu2.json

Two cores train no more images a second on eight virtual devices than on one. What can be seen here is what would stand in the
way where there are eight: programs that are compiled more than once a device, or after the first stack; locks that are held,
or waited for, while models train; a writer that is busy all the time.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MODELS, WIDTH, EPOCHS, BATCH = 64, 2, 10, 64
COUNTS = (1, 2, 4, 8)


class Watch:
    """Seconds and times that something went on, in any thread."""

    def __init__(self) -> None:
        self.seconds, self.times, self.lock = 0.0, 0, threading.Lock()

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            with self.lock:
                self.seconds += time.perf_counter() - began
                self.times += 1


def watched(hold: Callable[..., Any], waited: Watch, held: Watch) -> Callable[..., Any]:
    """A lock of `lira.store.places`, with how long it was waited for and held."""

    @contextlib.contextmanager
    def lock(*args: Any) -> Iterator[Any]:
        with contextlib.ExitStack() as stack:
            with waited.going_on():
                value = stack.enter_context(hold(*args))
            with held.going_on():
                yield value

    return lock


def watch_the_run() -> dict[str, Watch]:
    """Watch locks, writes and trainings of the runs that this process trains."""
    from lira.engine import fill
    from lira.store import arrays, run

    watch = {
        name: Watch() for name in ("run waited", "run held", "model waited", "model held", "write", "learn")
    }
    write, learn = run.Run.write_model, fill.train_stack

    def timed_write(*args: Any, **kwargs: Any) -> Any:
        with watch["write"].going_on():
            return write(*args, **kwargs)

    def timed_learn(*args: Any) -> Any:
        runs_locked = watch["run held"].times
        with watch["learn"].going_on():
            learned = learn(*args)
        assert learned is not None
        assert watch["run held"].times == runs_locked, "the run was held while models trained"
        return learned

    run.locked = watched(run.locked, watch["run waited"], watch["run held"])
    arrays.locked_model = watched(arrays.locked_model, watch["model waited"], watch["model held"])
    run.Run.write_model, fill.train_stack = timed_write, timed_learn
    return watch


def note_programs_and_devices() -> tuple[list[float], dict[int, float]]:
    """When programs are compiled, and by device when its first stack has answered, as this process trains."""
    import jax

    from lira.engine import fill

    compiled: list[float] = []
    ended: dict[int, float] = {}
    answer = fill.answers_of

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(time.perf_counter())

    def noted_answer(*args: Any) -> Any:
        answers = answer(*args)
        (device,) = jax.tree.leaves(args[-1].variables)[0].devices()
        ended.setdefault(device.id, time.perf_counter())
        return answers

    jax.monitoring.register_event_duration_secs_listener(listen)
    fill.answers_of = noted_answer
    return compiled, ended


def here(place: Path, share: str) -> None:
    """Train a share in this process, on all its devices; what went on as JSON."""
    import lira
    from lira.engine.share import models_of_process

    watch = watch_the_run()
    compiled, ended = note_programs_and_devices()
    dataset = lira.load_dataset("digits")
    opened = lira.Run.open(place, dataset)
    began = time.perf_counter()
    lira.train(opened, dataset, among=models_of_process(MODELS, share=share), show_progress=False)
    seconds = time.perf_counter() - began
    found = {
        "seconds": round(seconds, 2),
        "devices": len(ended),
        "compiled": len(compiled),
        "compiled later": sum(each > max(ended.values()) for each in compiled),
        "writer's share": round(watch["write"].seconds / seconds, 4),
    }
    found |= {name: {"seconds": round(each.seconds, 4), "times": each.times} for name, each in watch.items()}
    print(json.dumps(found))


def measured(devices: int, processes: int) -> dict[str, Any]:
    """A run trained by so many processes on so many devices each, from a start in common."""
    import lira

    with tempfile.TemporaryDirectory(prefix="scaling_") as directory:
        place = Path(directory) / "run"
        recipe = lira.Recipe(model="mlp", epochs=EPOCHS, batch_size=BATCH)
        execution = lira.Execution(width=WIDTH, workers=1)
        lira.Run.create(place, lira.load_dataset("digits"), recipe, num_models=MODELS, execution=execution)
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        environment = {
            **os.environ,
            "XLA_FLAGS": flags,
            "JAX_PLATFORMS": "cpu",
            "LIRA_CACHE": f"{directory}/cache",
        }
        command = [sys.executable, __file__, "--here", str(place), "--share"]
        began = time.perf_counter()
        started = [
            subprocess.Popen(
                [*command, f"{i}/{processes}"], env=environment, stdout=subprocess.PIPE, text=True
            )
            for i in range(processes)
        ]
        found = [json.loads(each.communicate()[0].splitlines()[-1]) for each in started]
        seconds = time.perf_counter() - began
        run = lira.Run.open(place)
        assert (run.done == 1).all()
    images = MODELS * EPOCHS * (1797 // 2 // BATCH) * BATCH
    return {
        "seconds": round(seconds, 1),
        "images a second of training": round(images / max(e["seconds"] for e in found)),
        "processes": found,
    }


def main() -> None:
    """Measure both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--here", type=Path, help="train a share of this run in this process")
    parser.add_argument("--share", default="0/1")
    given = parser.parse_args()
    if given.here:
        here(given.here, given.share)
        return
    table = {}
    for name, cases in (("devices", [(n, 1) for n in COUNTS]), ("processes", [(1, n) for n in COUNTS])):
        table[name] = {}
        for case in cases:
            table[name][max(case)] = found = measured(*case)
            print(name, max(case), json.dumps(found), flush=True)
    if given.out:
        given.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
