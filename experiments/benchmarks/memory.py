"""What scoring, reporting and auditing take of a host's memory: a synthetic run, each stage in a process of its own.

    python experiments/benchmarks/memory.py --num-models 1024 --num-examples 60000 --queries 18

Models are not trained: their confidences are drawn, members' a little higher, examples of their own difficulty. What is
written is a run like any other.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

STAGES = ("score", "report", "verify", "enough", "audit")


def make(path: Path, num_models: int, num_examples: int, queries: int) -> None:
    """A run of that many models, of labels alone; `queries` is odd times two, of shifts and mirror images."""
    import lira

    rng = np.random.default_rng(0)
    y = np.arange(num_examples, dtype=np.int32) % 10
    x = rng.integers(0, 256, (num_examples, 4, 4, 1), np.uint8)
    shift = {1: (False, 0), 2: (True, 0), 18: (True, 1)}[queries]
    run = lira.Run.create(
        path / "run",
        lira.Dataset(x, y, 10, name="memory"),
        lira.Recipe(model="mlp", epochs=1, batch_size=250),
        num_models=num_models,
        queries=lira.Queries(mirror=shift[0], shift=shift[1]),
        signals=(),
    )
    hard, spread = rng.normal(3, 2, (num_examples, 1)), rng.gamma(4, 0.3, (num_examples, 1))
    for model in np.flatnonzero(run.done == 0):
        row = np.random.default_rng(model + 1)
        keep = run.memberships(np.array([model]))[0][:, None]
        phi = hard + spread * (row.normal(size=(num_examples, queries)) + 0.7 * keep)
        figures = {name: np.float32(0.9) for name in ("accuracy_in", "accuracy_out")}
        run.write_model(int(model), {"phi": phi.astype(np.float32), **figures}, diverged=False)


def stage(path: Path, name: str, attacks: list[str] | None) -> None:
    """One stage in this process, of all attacks or some; what it took as JSON."""
    import lira
    from lira.attacks.suite import ATTACKS, select_attacks

    run, before = lira.Run.open(path / "run"), time.time()
    if name == "score":
        lira.score(run, attacks=select_attacks(attacks) if attacks else None)
    elif name == "report":
        lira.report(run, attacks=attacks)
    elif name == "verify":
        assert not any(found.status == "broken" for found in lira.verify(run, deep=True))
    elif name == "enough":
        for each in set(ATTACKS) - set(attacks or ATTACKS):
            del ATTACKS[each]
        lira.enough(run)
    else:
        arrays = path / "run/arrays"
        given = {"phi": arrays / "phi", "keep": arrays / "keep", "independent": True, "attacks": attacks}
        lira.audit(path / f"audit_{os.getpid()}", **given)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps({"stage": name, "seconds": round(time.time() - before), "peak_GB": round(peak / 1e9, 2)})
    )


def main() -> None:
    """Make the run where it is not there, and go through the stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", type=Path, default=Path("runs/memory"))
    parser.add_argument("--num-models", type=int, default=256)
    parser.add_argument("--num-examples", type=int, default=50_000)
    parser.add_argument("--queries", type=int, choices=(1, 2, 18), default=1)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--attacks", nargs="+", default=[], help="some, where all would take hours")
    parser.add_argument("--here", action="store_true", help="in this process, without making the run")
    given = parser.parse_args()
    if given.here:
        for name in given.stages:
            stage(given.path, name, given.attacks or None)
        return
    make(given.path, given.num_models, given.num_examples, given.queries)
    for name in given.stages:
        command = [sys.executable, __file__, "--path", str(given.path), "--here", "--stages", name]
        command += ["--attacks", *given.attacks] if given.attacks else []
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
