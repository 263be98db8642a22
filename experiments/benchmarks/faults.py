"""What faults do to a run: killed, signalled, out of disk, flipped, copied in part, written by many, clocks backwards.

    python experiments/benchmarks/faults.py --count 50 --out faults.json

A small run (8 models of 120 examples, grown to 12) and a small unlearning are made undisturbed first. Then each fault is
done to a run of its own, the same command is given again until it ends with status 0, and three things are counted: models
that were done before and are not byte for byte the same after (lost), metrics.json that differs from that of the
undisturbed run (wrong), and damage that neither a reader nor `lira verify --deep` names (unseen); beside them commands
that ended otherwise than promised (status 0, 2 with one line, 130, 143, or killed).

Commands run in forks of this process, which has imported everything and computed nothing.
"""

import argparse
import collections
import contextlib
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

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
# What is of a moment: seconds, and a warning that another process is waited for.
MOMENT = ("checksum", "files", "arrays", "versions", "warnings", "cost", "seconds")
# What is compared: models that are trained again may have another place in their stack, and sums in another order.
DIGITS = 3
# Attacks that are reported: each of the others costs every command a compilation.
FEW = ("lira_online_fixed", "lira_offline_fixed", "attack_r", "global_threshold")


# --- Commands --------------------------------------------------------------------------------------------------------


class Ended:
    """How a command ended: its status, as of a shell, and what it said on stderr."""

    def __init__(self, status: int, said: str) -> None:
        self.status, self.said = status, said

    @property
    def is_as_promised(self) -> bool:
        """Whether that is one of the promised ends."""
        lines = [
            line for line in self.said.splitlines() if line.startswith("lira: ") and "warning" not in line
        ]
        if "Traceback" in self.said:
            return False
        return self.status in (0, -signal.SIGKILL) or (self.status in (2, 130, 143) and len(lines) == 1)


def begin(*arguments: str | Path, before: Callable[[], None] | None = None) -> tuple[int, Path]:
    """Start a command in a fork; its process and the file that its stderr goes to."""
    said = Path(tempfile.mkstemp(suffix=".err")[1])
    pid = os.fork()
    if pid:
        return pid, said
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(said, os.O_WRONLY), 2)
        sys.argv = ["lira", *map(str, arguments)]
        if before:
            before()
        from lira.__main__ import main

        main()
    except SystemExit as stop:
        sys.stderr.flush()
        os._exit(int(stop.code or 0))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(99)
    raise AssertionError


def end(process: tuple[int, Path], within: float = 300) -> Ended:
    """Wait for a command."""
    pid, said = process
    until = time.time() + within
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            break
        if time.time() > until:
            os.kill(pid, signal.SIGABRT)
            until = float("inf")
        time.sleep(0.01)
    text = said.read_text(errors="replace")
    said.unlink()
    return Ended(os.waitstatus_to_exitcode(status), text)


def command(*arguments: str | Path, before: Callable[[], None] | None = None) -> Ended:
    """Do a command."""
    return end(begin(*arguments, before=before))


# --- What must be the same -------------------------------------------------------------------------------------------


def figures(path: Path) -> str:
    """What metrics.json says, without what is of a moment."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items() if key not in MOMENT}
        if isinstance(value, float):
            return round(value, DIGITS) + 0.0
        return [plain(each) for each in value] if isinstance(value, list) else value

    try:
        return json.dumps(plain(json.loads((path / "metrics.json").read_text())), sort_keys=True)
    except (OSError, ValueError):
        return "none"


def done_models(path: Path) -> dict[str, str]:
    """A hash of the signals of every model that is done, by number."""
    found = {}
    for chunk in path.glob("arrays/done/c/*"):
        with contextlib.suppress(OSError):
            if chunk.read_bytes()[:1] == b"\x01":
                parts = sorted(path.glob(f"arrays/phi/c/{chunk.name}/*/*"))
                found[chunk.name] = hashlib.sha256(b"".join(each.read_bytes() for each in parts)).hexdigest()
    return found


class Counts(collections.Counter):
    """Of one kind of fault: times, lost, wrong, unseen, unpromised; and what was said where something was."""

    said: list[str]

    def __init__(self) -> None:
        super().__init__({name: 0 for name in ("times", "lost", "wrong", "unseen", "unpromised")})
        self.said = []

    def ended(self, ended: Ended, *statuses: int) -> None:
        """Note how a command ended; `statuses` narrow what is promised."""
        if not ended.is_as_promised or (statuses and ended.status not in statuses):
            self["unpromised"] += 1
            self.said.append(f"{ended.status}: {ended.said[-600:]}")


def finish(
    counts: Counts, path: Path, arguments: list[str | Path], before: dict[str, str], expected: str
) -> None:
    """Give the command again until it ends well, and compare."""
    for _ in range(3):
        ended = command(*arguments)
        counts.ended(ended, 0)
        if ended.status == 0:
            break
    after = done_models(path)
    lost = [model for model, digest in before.items() if after.get(model) != digest]
    counts["lost"] += len(lost)
    if figures(path) != expected:
        counts["wrong"] += 1
        counts.said.append(f"metrics.json of {path} differs")
    if not counts["wrong"] and not lost:
        shutil.rmtree(path)


# --- Faults ----------------------------------------------------------------------------------------------------------


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
        self.expected: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        for _ in range(2):  # the second time programs are compiled
            for name in ("run", "grown", "unlearn"):
                shutil.rmtree(path / name, ignore_errors=True)
                if name == "grown":
                    shutil.copytree(path / "run", path / "grown")
                began = time.time()
                ended = command(*self.arguments(name, path / name))
                assert ended.status == 0, ended.said
                self.seconds[name], self.expected[name] = time.time() - began, figures(path / name)

    def arguments(self, name: str, path: Path) -> list[str | Path]:
        """The command that makes one of them."""
        return ["unlearn" if name == "unlearn" else "run", self.path / f"{name}.toml", "--run-dir", path]

    def fresh(self, name: str) -> Path:
        """A place for the next: nothing, or what is to be grown."""
        self.number += 1
        place = self.path / f"{name}_{self.number}"
        if name == "grown":
            shutil.copytree(self.path / "run", place)
        return place


def signalled(bench: Bench, counts: Counts, name: str, number: int) -> None:
    """A signal at a random moment."""
    place = bench.fresh(name)
    process = begin(*bench.arguments(name, place))
    time.sleep(bench.random.uniform(0.05, 1.1 * bench.seconds[name]))
    with contextlib.suppress(ProcessLookupError):
        os.kill(process[0], number)
    ended = end(process)
    promised = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 143}[
        signal.Signals(number)
    ]
    counts.ended(ended, promised, 0)
    finish(counts, place, bench.arguments(name, place), done_models(place), bench.expected[name])


def stage_killed(bench: Bench, counts: Counts, name: str) -> None:
    """Kill -9 while a finished set of models is scored, or reported, anew."""
    bench.number += 1
    place = bench.path / f"{name}_{bench.number}"
    shutil.copytree(bench.path / "run", place)
    if name == "score":
        shutil.rmtree(place / "scores")
        (place / "scores").mkdir()
    process = begin(name, place)
    time.sleep(bench.random.uniform(0.05, 0.8 * bench.seconds["run"]))
    with contextlib.suppress(ProcessLookupError):
        os.kill(process[0], signal.SIGKILL)
    counts.ended(end(process), -signal.SIGKILL, 0)
    finish(counts, place, bench.arguments("run", place), done_models(place), bench.expected["run"])


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
        finish(counts, place, bench.arguments("run", place), before, bench.expected["run"])


def read_only(bench: Bench, counts: Counts, name: str) -> None:
    """The disk becomes one that cannot be written, and again one that can."""
    bench.number += 1
    with mounted(bench.path / f"disk_{bench.number}", 100_000) as disk:
        place = disk / "run"
        shutil.copytree(bench.path / "run", place)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        counts.ended(command(*bench.arguments(name, place)), 0 if name == "run" else 2)
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        finish(counts, place, bench.arguments("run", place), done_models(place), bench.expected["run"])


def damaged(bench: Bench, counts: Counts, how: str, kind: str) -> None:
    """One file of a finished run, of one kind, is flipped in a byte, truncated, emptied or deleted."""
    bench.number += 1
    place = bench.path / f"damaged_{bench.number}"
    shutil.copytree(bench.path / "run", place)
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
    seen = command("verify", place, "--deep")
    if seen.status != 1:
        counts["unseen"] += 1
        counts.said.append(
            f"{how} {file.relative_to(place)}: verify ended with {seen.status}: {seen.said[-300:]}"
        )
    # What is no model's may be refused by name: there is nothing to make it again from.
    ended = command(*bench.arguments("run", place))
    counts.ended(ended, 0, 2)
    if ended.status == 0 and figures(place) != bench.expected["run"]:
        counts["wrong"] += 1
        counts.said.append(f"{how} {file.relative_to(place)}: metrics.json differs")
    counts["refused"] += ended.status == 2
    shutil.rmtree(place)


def copied_in_part(bench: Bench, counts: Counts) -> None:
    """A copy without some of its files."""
    bench.number += 1
    place = bench.path / f"copy_{bench.number}"
    shutil.copytree(bench.path / "run", place)
    files = sorted(each for each in place.glob("[as]*/*/c/**/*") if each.is_file())
    for file in bench.random.sample(files, bench.random.randint(1, 5)):
        file.unlink()
    seen = command("verify", place)
    counts["unseen"] += seen.status != 1
    ended = command(*bench.arguments("run", place))
    counts.ended(ended, 0)
    counts["wrong"] += figures(place) != bench.expected["run"]
    shutil.rmtree(place)


def many_writers(bench: Bench, counts: Counts, writers: int) -> None:
    """So many commands on one directory at once."""
    place = bench.fresh("run")
    processes = [begin(*bench.arguments("run", place)) for _ in range(writers)]
    for process in processes:
        counts.ended(end(process), 0)
    finish(counts, place, bench.arguments("run", place), done_models(place), bench.expected["run"])


def clock_backwards(bench: Bench, counts: Counts) -> None:
    """Every look at the clock is earlier than the last; killed in the midst, and finished so."""

    def backwards() -> None:
        real, drift = time.time, iter(range(10**9))
        time.time = lambda: real() - 60 * next(drift)

    place = bench.fresh("run")
    process = begin(*bench.arguments("run", place), before=backwards)
    time.sleep(bench.random.uniform(0.05, bench.seconds["run"]))
    with contextlib.suppress(ProcessLookupError):
        os.kill(process[0], signal.SIGKILL)
    counts.ended(end(process), -signal.SIGKILL, 0)
    before = done_models(place)
    counts.ended(command(*bench.arguments("run", place), before=backwards), 0)
    finish(counts, place, bench.arguments("run", place), before, bench.expected["run"])


KINDS = (
    *(
        "config.toml",
        "provenance.json",
        "metrics.json",
        "records.json",
        "records.csv",
        "report.html",
        "roc.png",
    ),
    *("attacks.png", "arrays/*/zarr.json", "scores/*/zarr.json", "scores/*/c/**/*", "records/**/*"),
    *(
        f"arrays/{name}/c/**/*"
        for name in ("keep", "labels", "phi", "entropy", "accuracy_in", "loss_in", "done")
    ),
)


def faults(count: int) -> dict[str, list[Callable[[Bench, Counts], None]]]:
    """Every kind of fault, by name, as often as it is done."""
    table: dict[str, list[Callable[[Bench, Counts], None]]] = {}
    for name in ("run", "grown", "unlearn"):
        for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
            one = partial(signalled, name=name, number=number)
            table[f"{signal.Signals(number).name}, {name}"] = [one] * count
    for name in ("score", "report"):
        table[f"SIGKILL, {name}"] = [partial(stage_killed, name=name)] * count
    sizes = np.geomspace(30, 3000, max(9, count // 5)).astype(int).tolist()
    table["disk full"] = [partial(disk_full, kilobytes=size) for size in sizes]
    table["read only"] = [partial(read_only, name=name) for name in ("run", "grown")]
    for how in ("flipped", "truncated", "emptied", "deleted"):
        table[f"{how} file"] = [partial(damaged, how=how, kind=kind) for kind in KINDS * max(1, count // 20)]
    table["copied in part"] = [copied_in_part] * count
    for writers in (2, 8):
        table[f"{writers} writers"] = [partial(many_writers, writers=writers)] * max(2, count // 5)
    table["clock backwards"] = [clock_backwards] * max(2, count // 5)
    return table


def main() -> None:
    """Do every kind of fault and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=50, help="of each kind, or in proportion")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds whose names hold this")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    results: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory(prefix="faults_") as directory:
        os.environ["LIRA_CACHE"] = str(Path(directory) / "cache")
        # Before the forks.
        for module in ("training", "results", "unlearning", "whole"):
            importlib.import_module(f"lira.commands.{module}")
        from lira.attacks.suite import ATTACKS

        for name in set(ATTACKS) - set(FEW):
            del ATTACKS[name]
        bench = Bench(Path(directory), given.seed)
        for name, each in faults(given.count).items():
            if given.only not in name:
                continue
            counts, began = Counts(), time.time()
            for fault in each:
                counts["times"] += 1
                fault(bench, counts)
            results[name] = {**counts, "seconds": round(time.time() - began)}
            print(name, json.dumps(results[name]), *counts.said[:3], sep="\n   ", flush=True)
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
