"""Commands that faults are done to, as forks of this process, and what must be the same after."""

import collections
import contextlib
import functools
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What is of a moment: seconds, and a warning that another process is waited for.
MOMENT = ("checksum", "files", "arrays", "versions", "warnings", "cost", "seconds")
# Models that are trained again may have another place in their stack, and sums in another order.
TOLERANCE = 1e-3
# Where the stages of `lira run` begin and end.
STAGES = {
    "train": ("lira.engine.fill", "train_stack"),
    "sweep": ("lira.engine.fill", "answers_of"),
    "write": ("lira.store.run", "Run.write_model"),
    "score": ("lira.reporting.reports", "score"),
    "measure": ("lira.reporting.reports", "evaluate_pool"),
    "report": ("lira.reporting.evaluation", "Evaluation.report"),
}


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
    handle, said = tempfile.mkstemp(suffix=".err")
    pid = os.fork()
    if pid:
        os.close(handle)
        return pid, Path(said)
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(handle, 2)
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


def end(process: tuple[int, Path], within: float = 600) -> Ended:
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


# --- Stages ----------------------------------------------------------------------------------------------------------


def _wrapped(stage: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put `around(function)` in the place of what does a stage, in this process."""
    module, name = STAGES[stage]
    *owners, name = name.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    setattr(owner, name, around(getattr(owner, name)))


def timed_into(log: Path) -> None:
    """Write the seconds of every stage's calls to a file, in this process."""

    def around(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                with open(log, "a") as file:
                    file.write(f"{stage} {time.perf_counter() - began}\n")

        return timed

    for stage in STAGES:
        _wrapped(stage, functools.partial(around, stage))


def killed_in(stage: str, call: int, seconds: float) -> None:
    """Kill -9 this process so many seconds after the beginning of a stage's call, counted from 0."""
    left = [call]

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def killed(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == -1:
                threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
            return function(*arguments, **options)

        return killed

    _wrapped(stage, around)


# --- What must be the same -------------------------------------------------------------------------------------------


def figures(path: Path) -> Any:
    """What metrics.json says, without what is of a moment; None where it cannot be read."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items() if key not in MOMENT}
        return [plain(each) for each in value] if isinstance(value, list) else value

    try:
        return plain(json.loads((path / "metrics.json").read_text()))
    except (OSError, ValueError):
        return None


def same(a: Any, b: Any) -> bool:
    """Whether two documents say the same, numbers to TOLERANCE."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= TOLERANCE * max(1, abs(b))
    return a == b


def done_models(path: Path) -> dict[str, str]:
    """A hash of the signals of every model that is done, by place: of a run, or of those of an unlearning."""
    found = {}
    for chunk in path.glob("**/arrays/done/c/*"):
        if not chunk.name.isdecimal() or "broken" in chunk.parts:  # a lock, or what was moved aside
            continue
        with contextlib.suppress(OSError):
            if chunk.read_bytes()[:1] == b"\x01":
                parts = sorted(chunk.parents[2].glob(f"phi/c/{chunk.name}/*/*"))
                digest = hashlib.sha256(b"".join(each.read_bytes() for each in parts)).hexdigest()
                found[str(chunk.relative_to(path))] = digest
    return found


class Counts(collections.Counter[str]):
    """Of one kind of fault: times, lost, wrong, unseen, unpromised; and what was said where something was."""

    said: list[str]

    def __init__(self, counts: dict[str, int] | None = None) -> None:
        super().__init__(
            {name: 0 for name in ("times", "lost", "wrong", "unseen", "unpromised")} | (counts or {})
        )
        self.said = []

    def told(self) -> list[str]:
        """What was said since the last time."""
        said, self.said = self.said, []
        return said

    def note(self, what: str, said: str) -> None:
        """Count what is not as it should be."""
        self[what] += 1
        self.said.append(said)

    def ended(self, ended: Ended, *statuses: int) -> None:
        """Note how a command ended; `statuses` narrow what is promised."""
        if not ended.is_as_promised or (statuses and ended.status not in statuses):
            self.note("unpromised", f"{ended.status}: {ended.said[-600:]}")
        if ended.status in (2, 130, 143):
            self[f"status {ended.status}"] += 1


def finish(
    counts: Counts, path: Path, arguments: list[str | Path], before: dict[str, str], expected: Any
) -> None:
    """Give the command again until it ends well, and compare."""
    for _ in range(3):
        ended = command(*arguments)
        counts.ended(ended, 0)
        if ended.status == 0:
            break
    after = done_models(path)
    lost = [model for model, digest in before.items() if after.get(model) != digest]
    counts["done before"] += len(before)
    counts["lost"] += len(lost)
    if lost:
        counts.said.append(f"models of {path} that were done are others: {', '.join(lost)}")
    if wrong := not same(figures(path), expected):
        counts.note("wrong", f"metrics.json of {path} differs")
    if not wrong and not lost:
        shutil.rmtree(path)
