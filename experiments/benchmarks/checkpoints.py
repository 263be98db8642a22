"""What checkpoints of stacks in training cost: runs with and without them take turns, on random images.

python experiments/benchmarks/checkpoints.py --models mlp:16:60 cnn-small:2:8 --seconds 0.5 --repeats 7

Prints a line a model: seconds of a run without and with checkpoints, their ratio and that of CPU seconds (medians of the
turns, ranges), how many were written, what one holds up its worker (the copy to the host), how long it is written for beside
the training, and its bytes. Last comes what is left of both with ten minutes between two: a share of the training's time.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import jax
import numpy as np

import lira
from lira.engine import checkpoints
from lira.store.checkpoints import Checkpoint
from lira.store.config import Execution


def images(count: int, side: int) -> lira.Dataset:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, (count, side, side, 3)).astype(np.uint8)
    return lira.Dataset(x=x, y=np.arange(count, dtype=np.int32) % 10, num_classes=10, name="memory")


def timed(where: object, name: str, seconds: list[float], after=lambda *_: None) -> None:
    """Note how long each call of a method takes, from when what it is called with is computed."""
    method = getattr(where, name)

    def call(self, *arguments):
        jax.block_until_ready(arguments)
        began = time.perf_counter()
        try:
            return method(self, *arguments)
        finally:
            seconds.append(time.perf_counter() - began)
            after(self)

    setattr(where, name, call)


def one_run(
    model: str, width: int, epochs: int, dataset: lira.Dataset, minutes: float
) -> tuple[float, float]:
    """Seconds of the training of a few stacks, and those of the CPU, which other work on the machine disturbs less."""
    execution = Execution(width=width, checkpoint_minutes=minutes)
    recipe = lira.Recipe(model=model, epochs=epochs, batch_size=64, learning_rate=0.01)
    with tempfile.TemporaryDirectory() as place:
        run = lira.Run.create(
            Path(place) / "run", dataset, recipe, num_models=max(4, 2 * width), execution=execution
        )
        began, computed = time.perf_counter(), time.process_time()
        lira.train(run, dataset, show_progress=False)
        return time.perf_counter() - began, time.process_time() - computed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--models",
        nargs="+",
        default=["mlp:16:60", "cnn-small:2:8", "resnet18:1:4"],
        metavar="NAME:WIDTH:EPOCHS",
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="between two checkpoints (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=256)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    held, written, sizes = [], [], []
    timed(checkpoints.Kept, "_keep", held)
    timed(Checkpoint, "save", written, lambda self: sizes.append(size_of(self.place)))
    for each in arguments.models:
        model, width, epochs = each.split(":")
        dataset = images(arguments.images, 8 if model == "mlp" else 32)
        one = partial(one_run, model, int(width), int(epochs), dataset)
        one(0.0)
        one(arguments.seconds / 60)
        for noted in (held, written, sizes):
            noted.clear()
        turns = [(one(0.0), one(arguments.seconds / 60)) for _ in range(arguments.repeats)]
        ratios, of_cpu = ([with_[k] / without[k] for without, with_ in turns] for k in (0, 1))
        without, with_ = (statistics.median(wall for wall, _ in side) for side in zip(*turns, strict=True))
        hold, write = statistics.median(held), statistics.median(written)
        print(
            f"{model} x {width}: {without:.1f} s without, {with_:.1f} s with, ratio {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}), of CPU seconds {statistics.median(of_cpu):.3f} ({min(of_cpu):.3f} to "
            f"{max(of_cpu):.3f}); {len(written) / arguments.repeats:.1f} written, each holds up for "
            f"{1e3 * hold:.0f} ms and is written for {1e3 * write:.0f} ms, {max(sizes) / 1e6:.1f} MB; every ten minutes: "
            f"{hold / 600:.1e} to {(hold + write) / 600:.1e}",
            flush=True,
        )


def size_of(place: Path) -> int:
    return sum(each.stat().st_size for each in place.rglob("*") if each.is_file())


if __name__ == "__main__":
    main()
