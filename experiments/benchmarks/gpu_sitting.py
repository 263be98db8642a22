"""A sitting of gpu.py: how much of everything, where and when it takes place, and the file that it is written to."""

import contextlib
import csv
import dataclasses
import datetime
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import lira
from lira.bench import throughput
from lira.store.config import read_config
from lira.store.files import write_atomically
from lira.versions import versions

ROOT = Path(__file__).resolve().parents[2]
PAPER = read_config(ROOT / "experiments/cifar10_wrn28_2.toml")
# Models from which on a pool's figures are worth a look beside published ones.
ENOUGH = 16


class Sizes(NamedTuple):
    """How much of everything."""

    models: tuple[str, ...]  # of benchmark and profile
    repeats: int  # of a timing
    seconds: float  # of one timing, about
    paper: lira.Recipe
    epochs: int  # after which evaluations are compared
    digits: tuple[str, ...]  # flags of the run from end to end
    pool: tuple[int, int, int]  # M, N, Q of scoring
    report: tuple[int, int, int]  # M, N, Q of a report
    large: tuple[int, int, int]  # and of another
    shadows: int  # the most shadow models


# The most telling models first.
FULL = Sizes(
    models=("mlp", "wrn-28-2", *(name for name in throughput.MODELS if name not in ("mlp", "wrn-28-2"))),
    repeats=3,
    seconds=1.0,
    paper=dataclasses.replace(PAPER.recipe, precision="bfloat16"),
    epochs=20,
    digits=(),
    pool=(256, 50_000, 2),
    report=(8, 50_000, 2),
    large=(256, 50_000, 2),
    shadows=PAPER.num_models,
)

TOY = Sizes(
    models=("mlp", "cnn-small"),
    repeats=1,
    seconds=0.1,
    paper=dataclasses.replace(
        FULL.paper, model="wrn-10-1", epochs=2, batch_size=16, ema=0.9, precision="float32"
    ),
    epochs=2,
    digits=("--num-models", "8", "--recipe.epochs", "2", "--num-examples", "400"),
    pool=(8, 2000, 2),
    report=(8, 1000, 2),
    large=(16, 1000, 2),
    shadows=ENOUGH,
)


class SkippedError(Exception):
    """A part, or the rest of one, that cannot be done; the message says why."""


@dataclasses.dataclass
class Sitting:
    """What a part is told, and the file that it writes to."""

    part: str
    out: Path
    until: float  # on the clock of time.time()
    data: str
    run_dir: Path
    toy: bool

    @property
    def sizes(self) -> Sizes:
        return TOY if self.toy else FULL

    def left(self) -> float:
        return self.until - time.time()

    def keep(self, **found: Any) -> None:
        """Write what the part has found, in place of what it wrote by these names before."""
        record(self.out, self.part, found)

    def needs(self, seconds: float, what: str) -> None:
        """Raise `SkippedError` unless there are so many seconds left: on an H100, what this is known to take or a guess."""
        if self.left() < (0 if self.toy else seconds):
            raise SkippedError(f"{what}: {self.left():.0f} s were left, and it takes about {seconds:.0f}")

    def dataset(self) -> lira.Dataset:
        """CIFAR-10, or some patterns of its shape for the toy, whatever data there is."""
        if self.toy:
            few = throughput.workload("cnn", "float32")[0]
            return lira.Dataset.from_arrays(
                few.x[:128], few.y[:128], x_test=few.x[128:160], y_test=few.y[128:160]
            )
        if not self.data:
            raise SkippedError("needs CIFAR-10: --data folder:PATH")
        return lira.load_dataset(self.data)


def about() -> dict[str, Any]:
    """When, where and on what a sitting takes place, as far as it can be told without waking the card."""
    packages = ["jax", "jaxlib", "flax", "optax", "numpy", "scipy", "tensorstore", "torch"]
    for cuda in ("12", "13"):
        packages += [f"jax-cuda{cuda}-plugin", f"nvidia-cudnn-cu{cuda}"]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cards": cards(),  # with their driver
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions(*packages),
        "commit": commit(),
    }


def cards() -> list[dict[str, str]]:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv"]
        said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
        return list(csv.DictReader(said.splitlines(), skipinitialspace=True))
    return []


def processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.machine()


def commit() -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    return None


def sittings(out: Path) -> list[dict[str, Any]]:
    return json.loads(out.read_text()) if out.exists() else []


def write(out: Path, content: list[dict[str, Any]]) -> None:
    write_atomically(out, json.dumps(content, indent=1, allow_nan=False).encode())


def record(out: Path, part: str, found: dict[str, Any]) -> None:
    """Add what a part of the newest sitting has found to the file."""
    content = sittings(out)
    content[-1]["parts"].setdefault(part, {}).update(found)
    write(out, content)
