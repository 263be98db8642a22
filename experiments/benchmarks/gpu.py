"""What only a card can tell, in ten minutes, and of use when cut off at any time.

Command:   make gpu ARGS="--data folder:PATH"     (python experiments/benchmarks/gpu.py ...; PATH: CIFAR-10's images)
           ... --parts shadows --budget 3000      these parts alone, such as more shadow models another day
           ... --toy                              every part to its end at toy sizes: a few minutes on a CPU
Duration:  --budget seconds, 560 by default.
Needs:     what the package needs; it installs nothing, and the package need not be installed. Where PyTorch is there, it
           is timed too, and the last parts may be left for another sitting. Without --data the parts that need CIFAR-10
           are skipped.
Measured:  experiments/benchmarks/README.md.

Each part is a process of its own, which is ended when its time is over, and writes what it has found into the JSON file
at once. That file is a list of sittings, the newest last. Shadow models stay in --run-dir, and a later sitting goes on.
"""

import argparse
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a source tree need not be installed

from gpu_parts import device, digits, evaluation, profile, report, scoring, shadows, training
from gpu_sitting import FULL, ROOT, TOY, Sitting, Sizes, SkippedError, about, record, sittings, write

from lira.bench import sides

# Seconds that a part which is told to stop may still take.
GRACE = 5
# Exit status of a part that did not get to its end for a reason that it has written down.
NOT_ALL = 3


class Part(NamedTuple):
    """A part by name, and the seconds that earlier parts leave for it."""

    name: str
    run: Callable[[Sitting], None]
    seconds: float


def parts(sizes: Sizes) -> list[Part]:
    """All parts in their order: what nothing else can tell first, then what fits before the shadow models, then those."""
    reserved = {"mlp": 30, "wrn-28-2": 60, "cnn-fast": 45}
    if sides.why_absent("torch_loop") is None:
        reserved |= {"mlp": 50, "wrn-28-2": 140}
    benches = {
        name: Part(f"bench_{name}", partial(training, name), reserved.get(name, 0)) for name in sizes.models
    }
    return [
        Part("device", device, 20),
        Part("digits", digits, 75),
        Part("scoring", scoring, 25),
        Part("report", partial(report, sizes.report), 40),
        *(bench for bench in benches.values() if bench.seconds),
        Part("profile", profile, 40),
        Part("evaluation", evaluation, 0),
        *(bench for bench in benches.values() if not bench.seconds),
        Part("report_large", partial(report, sizes.large), 0),
        Part("shadows", shadows, 130),
    ]


def allowed(left: float, part: Part, later: list[Part]) -> float:
    """Seconds for a part: all that later ones do not need, and its own in any case, as far as there is time."""
    return max(left - sum(each.seconds for each in later), min(left, part.seconds))


def sit(arguments: argparse.Namespace, chosen: list[Part]) -> int:
    """One part after the other, each in a process of its own; return how many failed."""
    until = time.time() + arguments.budget
    about_it = {"toy": arguments.toy, "budget": arguments.budget, "data": arguments.data}
    write(arguments.out, [*sittings(arguments.out), {**about(), **about_it, "parts": {}}])
    failed = 0
    for index, part in enumerate(chosen):
        began = time.time()
        seconds = allowed(until - began, part, chosen[index + 1 :])
        if seconds < GRACE:
            status = "skipped: no time was left"
        else:
            status = in_a_process(part.name, began + seconds - GRACE, seconds)
        failed += status.startswith("failed")
        took = time.time() - began
        record(arguments.out, part.name, {"status": status, "took_s": round(took, 1)})
        print(f"{part.name}: {status} ({took:.0f} s)", flush=True)
    return failed


def in_a_process(name: str, until: float, seconds: float) -> str:
    """Do a part in a process of its own; return what became of it."""
    own = [sys.executable, __file__, *sys.argv[1:], "--part", name, "--until", str(until)]
    try:
        done = subprocess.run(own, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"cut after {seconds:.0f} s"
    known = {0: "done", NOT_ALL: "not all done"}
    return known.get(done.returncode, f"failed with status {done.returncode}")


def do_part(part: Part, sitting: Sitting) -> int:
    """In the process of a part: do it, and write why where it does not get to its end."""
    try:
        part.run(sitting)
    except SkippedError as why:
        sitting.keep(not_done=str(why))
        print(f"{part.name}: {why}")
        return NOT_ALL
    except Exception as error:
        traceback.print_exc()
        sitting.keep(error=f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        return 1
    return 0


def main() -> int:
    """Sit, or do one part of a sitting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "experiments/benchmarks/gpu.json")
    parser.add_argument("--budget", type=float, default=560, help="seconds")
    parser.add_argument("--data", default="", help="CIFAR-10: folder:PATH, or as in a configuration")
    parser.add_argument("--run-dir", type=Path, help="of the shadow models (runs/gpu_cifar10_wrn28_2)")
    parser.add_argument("--parts", help="these alone, by name: device,shadows")
    parser.add_argument("--toy", action="store_true", help="every part at toy sizes, on any device")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    run_dir = arguments.run_dir or ROOT / "runs" / ("gpu_toy" if arguments.toy else "gpu_cifar10_wrn28_2")
    known = {part.name: part for part in parts(TOY if arguments.toy else FULL)}
    if arguments.part:
        sitting = Sitting(
            arguments.part, arguments.out, arguments.until, arguments.data, run_dir, arguments.toy
        )
        return do_part(known[arguments.part], sitting)
    names = arguments.parts.split(",") if arguments.parts else list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(known)}")
    return sit(arguments, [known[name] for name in names]) and 1


if __name__ == "__main__":
    sys.exit(main())
