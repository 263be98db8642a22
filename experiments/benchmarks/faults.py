"""What faults do to a run: killed, signalled, out of disk, flipped, copied in part, written by many, clocks backwards.

    python experiments/benchmarks/faults.py --count 50 --out faults.json

A small run (8 models of 120 examples, grown to 12) and a small unlearning are made undisturbed first. Then each fault is
done to a run of its own, the same command is given again until it ends with status 0, and three things are counted: models
that were done before and are not byte for byte the same after (lost), metrics.json that differs from that of the
undisturbed run's (wrong), and damage that neither a reader nor `lira verify --deep` names (unseen); beside them commands
that ended otherwise than promised (status 0, 2 with one line, 130, 143, or killed).

Commands run in forks of this process, which has imported everything and computed nothing; programs are compiled without
most optimizations, pictures are of one pixel and intervals of 100 resamples. Disks are tmpfs, which takes root.
"""

import argparse
import collections
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from fault_commands import (
    STAGES,
    Counts,
    begin,
    command,
    done_models,
    end,
    figures,
    finish,
    killed_in,
    same,
    timed_into,
)

RUN = """
dataset = "npz:{data}"
num_models = {models}
[recipe]
model = "mlp"
epochs = 40
batch_size = 10
learning_rate = 0.05
[execution]
width = 2
workers = 1
"""
UNLEARN = """
dataset = "npz:{data}"
num_models = 4
methods = ["none", "finetune"]
[forget]
size = 10
[recipe]
model = "mlp"
epochs = 5
batch_size = 10
[execution]
width = 2
workers = 1
"""
# Attacks that are reported: each of the others costs every command a compilation.
FEW = ("lira_online_fixed", "global_threshold")
# Before JAX is imported.
QUICK = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
PROMISED = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 143}


class Bench:
    """Where it all happens, what is undisturbed, and how long that took."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.random = path, random.Random(seed)
        rng = np.random.default_rng(0)
        y = np.arange(120) % 2
        np.savez(path / "data.npz", x=rng.normal(size=(120, 5)).astype(np.float32) + y[:, None], y=y)
        for name, text, models in (("run", RUN, 8), ("grown", RUN, 12), ("unlearn", UNLEARN, 4)):
            (path / f"{name}.toml").write_text(text.format(data=path / "data.npz", models=models))
        self.number = 0
        self.expected: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        # By stage of a run how long each of its calls takes.
        self.calls: dict[str, list[float]] = collections.defaultdict(list)

    def undisturbed(self, name: str) -> Any:
        """Make one of them, unless it is there, and again once its programs are compiled; what its metrics.json says."""
        if name in self.expected:
            return self.expected[name]
        if name == "grown":
            self.undisturbed("run")
        place, log = self.path / name, self.path / f"{name}.log"
        for _ in range(2):
            shutil.rmtree(place, ignore_errors=True)
            log.unlink(missing_ok=True)
            if name == "grown":
                shutil.copytree(self.path / "run", place)
            began = time.time()
            ended = command(*self.arguments(name, place), before=partial(timed_into, log))
            assert ended.status == 0, ended.said
            self.seconds[name], self.expected[name] = time.time() - began, figures(place)
        if name == "run":
            for line in log.read_text().splitlines():
                stage, seconds = line.split()
                self.calls[stage].append(float(seconds))
        return self.expected[name]

    def arguments(self, name: str, path: Path) -> list[str | Path]:
        """The command that makes one of them."""
        return ["unlearn" if name == "unlearn" else "run", self.path / f"{name}.toml", "--run-dir", path]

    def fresh(self, name: str, source: str = "") -> Path:
        """A place for the next: nothing, or a copy, as of what is to be grown."""
        self.number += 1
        place = self.path / f"{name}_{self.number}"
        if source := source or ("run" if name == "grown" else ""):
            self.undisturbed(source)
            shutil.copytree(self.path / source, place)
        return place


# --- Faults ----------------------------------------------------------------------------------------------------------


def signalled(bench: Bench, counts: Counts, name: str, number: signal.Signals) -> None:
    """A signal at a random moment."""
    expected, place = bench.undisturbed(name), bench.fresh(name)
    process = begin(*bench.arguments(name, place))
    time.sleep(bench.random.uniform(0.05, 1.1 * bench.seconds[name]))
    with contextlib.suppress(ProcessLookupError):
        os.kill(process[0], number)
    counts.ended(end(process), PROMISED[number], 0)
    finish(counts, place, bench.arguments(name, place), done_models(place), expected)


def killed_within(bench: Bench, counts: Counts, stage: str) -> None:
    """Kill -9 at a random moment of a stage of `lira run`."""
    expected = bench.undisturbed("run")
    call = bench.random.randrange(len(bench.calls[stage]))
    kill = partial(killed_in, stage, call, bench.random.uniform(0, bench.calls[stage][call]))
    place = bench.fresh(stage)
    ended = end(begin(*bench.arguments("run", place), before=kill))
    counts.ended(ended, -signal.SIGKILL, 0)  # the stage may be over
    finish(counts, place, bench.arguments("run", place), done_models(place), expected)


@contextlib.contextmanager
def mounted(place: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of so many kB; needs root."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def disk_full(bench: Bench, counts: Counts, kilobytes: int) -> None:
    """The disk ends in the midst of a run, and is enlarged."""
    bench.number += 1
    with mounted(bench.path / f"disk_{bench.number}", kilobytes) as disk:
        place = disk / "run"
        counts.ended(command(*bench.arguments("run", place)), 0, 2)
        before = done_models(place)
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        finish(counts, place, bench.arguments("run", place), before, bench.undisturbed("run"))


def read_only(bench: Bench, counts: Counts, name: str) -> None:
    """The disk becomes one that cannot be written, and again one that can."""
    bench.undisturbed("run")
    bench.number += 1
    with mounted(bench.path / f"disk_{bench.number}", 100_000) as disk:
        place = disk / "run"
        shutil.copytree(bench.path / "run", place)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        counts.ended(command(*bench.arguments(name, place)), 0 if name == "run" else 2)
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        finish(counts, place, bench.arguments("run", place), done_models(place), bench.undisturbed("run"))


def damaged(bench: Bench, counts: Counts, name: str, how: str, kind: str) -> None:
    """One file of what is finished, of one kind, is flipped in a byte, truncated, emptied or deleted."""
    place = bench.fresh("damaged", name)
    file = bench.random.choice(sorted(each for each in place.glob(kind) if each.is_file()))
    content = file.read_bytes()
    if how == "flipped":
        at = bench.random.randrange(len(content))
        file.write_bytes(
            content[:at] + bytes([content[at] ^ (1 << bench.random.randrange(8))]) + content[at + 1 :]
        )
    elif how == "truncated":
        file.write_bytes(content[: bench.random.randrange(len(content))])
    elif how == "emptied":
        file.write_bytes(b"")
    else:
        file.unlink()
    what = f"{how} {name}/{file.relative_to(place)}"
    seen = command("verify", place, "--deep")
    if seen.status != 1:
        counts.note("unseen", f"{what}: verify ended with {seen.status}: {seen.said[-300:]}")
    # What is no model's may be refused by name: there is nothing to make it again from.
    ended = command(*bench.arguments(name, place))
    counts.ended(ended, 0, 2)
    if ended.status == 0 and not same(figures(place), bench.undisturbed(name)):
        counts.note("wrong", f"{what}: metrics.json differs")
    shutil.rmtree(place)


def copied_in_part(bench: Bench, counts: Counts) -> None:
    """A copy without some of its files."""
    place = bench.fresh("copy", "run")
    files = sorted(each for each in place.glob("[as]*/*/c/**/*") if each.is_file())
    gone = bench.random.sample(files, bench.random.randint(1, 5))
    for file in gone:
        file.unlink()
    names = ", ".join(str(each.relative_to(place)) for each in gone)
    if command("verify", place).status != 1:
        counts.note("unseen", f"without {names}")
    counts.ended(command(*bench.arguments("run", place)), 0)
    if not same(figures(place), bench.undisturbed("run")):
        counts.note("wrong", f"without {names}: metrics.json differs")
    shutil.rmtree(place)


def many_writers(bench: Bench, counts: Counts, writers: int) -> None:
    """So many commands on one directory at once."""
    place = bench.fresh("run")
    processes = [begin(*bench.arguments("run", place)) for _ in range(writers)]
    for process in processes:
        counts.ended(end(process), 0)
    finish(counts, place, bench.arguments("run", place), done_models(place), bench.undisturbed("run"))


def clock_backwards(bench: Bench, counts: Counts) -> None:
    """Every look at the clock is earlier than the last; killed in the midst, and finished so."""

    def backwards() -> None:
        real, drift = time.time, iter(range(10**9))
        time.time = lambda: real() - 60 * next(drift)

    bench.undisturbed("run")
    place = bench.fresh("run")
    process = begin(*bench.arguments("run", place), before=backwards)
    time.sleep(bench.random.uniform(0.05, bench.seconds["run"]))
    with contextlib.suppress(ProcessLookupError):
        os.kill(process[0], signal.SIGKILL)
    counts.ended(end(process), -signal.SIGKILL, 0)
    before = done_models(place)
    counts.ended(command(*bench.arguments("run", place), before=backwards), 0)
    finish(counts, place, bench.arguments("run", place), before, bench.undisturbed("run"))


DERIVED = ("metrics.json", "records.json", "records.csv", "report.html", "roc.png", "attacks.png")
OF_A_MODEL = ("keep", "phi", "entropy", "accuracy_in", "loss_in", "done")
# Every kind of file of a run, and of an unlearning.
KINDS = {
    "run": (
        *("config.toml", "provenance.json", *DERIVED, "arrays/*/zarr.json", "arrays/labels/c/**/*"),
        *("scores/*/zarr.json", "scores/*/c/**/*", "records/**/*"),
        *(f"arrays/{name}/c/**/*" for name in OF_A_MODEL),
    ),
    "unlearn": (
        *("config.toml", "forget/zarr.json", "forget/c/**/*", "metrics.json", "report.html"),
        *("*/config.toml", "methods/*/provenance.json", "*/arrays/*/zarr.json"),
        *(f"{part}/arrays/*/c/**/*" for part in ("before", "retrained", "methods/*")),
    ),
}


def faults(count: int) -> dict[str, list[Callable[[Bench, Counts], None]]]:
    """Every kind of fault, by name, as often as it is done."""
    table: dict[str, list[Callable[[Bench, Counts], None]]] = {}
    for stage in STAGES:
        table[f"SIGKILL in {stage}"] = [partial(killed_within, stage=stage)] * count
    for name in ("run", "grown", "unlearn"):
        for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
            table[f"{number.name}, {name}"] = [partial(signalled, name=name, number=number)] * count
    sizes = np.geomspace(30, 3000, max(9, count // 2)).astype(int).tolist()
    table["disk full"] = [partial(disk_full, kilobytes=size) for size in sizes]
    table["read only"] = [partial(read_only, name=name) for name in ("run", "grown")] * max(1, count // 10)
    for name, kinds in KINDS.items():
        for how in ("flipped", "truncated", "emptied", "deleted"):
            one = [partial(damaged, name=name, how=how, kind=kind) for kind in kinds]
            table[f"{how} file of {name}"] = one * max(1, count // 20)
    table["copied in part"] = [copied_in_part] * count
    for writers in (2, 8):
        table[f"{writers} writers"] = [partial(many_writers, writers=writers)] * max(1, count // 5)
    table["clock backwards"] = [clock_backwards] * max(1, count // 5)
    return table


def main() -> None:
    """Do every kind of fault, and count what comes of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=50, help="of each kind, or in proportion")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[""], help="kinds whose names hold one of these")
    parser.add_argument(
        "--out", type=Path, help="written after every fault; what stands there is not done again"
    )
    given = parser.parse_args()
    counts: dict[str, Counts] = collections.defaultdict(Counts)
    if given.out and given.out.exists():
        counts |= {name: Counts(each) for name, each in json.loads(given.out.read_text()).items()}
    with tempfile.TemporaryDirectory(prefix="faults_") as directory:
        os.environ["LIRA_CACHE"] = os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(directory) / "cache")
        os.environ |= QUICK
        # Before the forks.
        for module in ("training", "results", "unlearning", "whole"):
            importlib.import_module(f"lira.commands.{module}")
        from matplotlib.figure import Figure
        from PIL import Image

        from lira.attacks.suite import ATTACKS
        from lira.metrics import _shared

        _shared.RESAMPLES = 100
        pixel = Image.new("L", (1, 1))  # nobody looks at these pictures
        mock.patch.object(Figure, "savefig", lambda figure, file, **_: pixel.save(file, "png")).start()
        for name in set(ATTACKS) - set(FEW):
            del ATTACKS[name]
        bench = Bench(Path(directory), given.seed)
        chosen = {
            name: each
            for name, each in faults(given.count).items()
            if any(part in name for part in given.only)
        }
        # In turns, so that all have as many whenever it is stopped.
        for turn in range(max(map(len, chosen.values()))):
            for name, each in chosen.items():
                if not counts[name]["times"] <= turn < len(each):
                    continue
                counts[name]["times"] += 1
                each[turn](bench, counts[name])
                for said in counts[name].told():
                    print(f"{name}: {said}", flush=True)
                if given.out:
                    given.out.write_text(json.dumps(counts, indent=1) + "\n")
        print(json.dumps(counts, indent=1))


if __name__ == "__main__":
    main()
