"""Audits of one training by its canaries: how often the bound is above what is proven, in 200 trainings each.

Command:   python experiments/benchmarks/one_run.py [--epsilon inf 4 1] [--models 200] [--kind random] [--out FILE.json]
Duration:  ten minutes on two busy CPU cores.
Expected:  no bound above the proven epsilon in more than 5 % of trainings, and larger ones without noise.
Measured:  experiments/benchmarks/one_run_cpu.json (and one_run_gradient_cpu.json), table in experiments/benchmarks/README.md.

600 digits with 400 canaries of noise, all digits in every training (membership.design = "all"), an mlp by DP-SGD for 15
epochs. Each model is audited by itself: its confidence on a canary, less its mean over the canaries; by `--kind gradient`
what the noised sums of all steps have along each canary.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import lira
from lira.epsilon import canary_epsilons
from lira.learning.privacy import Privacy
from lira.store.proven import proven_of

DELTA = 1e-5
COUNT = 400


def measure(epsilon: float, models: int, kind: Any, place: Path) -> list[dict]:
    """A row for each method."""
    dataset = lira.plant(lira.load_dataset("digits", num_examples=600), lira.Canaries(count=COUNT, kind=kind))
    recipe = lira.Recipe(epochs=15, batch_size=200, learning_rate=0.5, privacy=Privacy(epsilon=epsilon))
    run = lira.Run.create(
        place,
        dataset,
        recipe,
        num_models=models,
        membership=lira.Membership("all"),
        signals=(),
        execution=lira.Execution(width=16),
    )
    lira.train(run, dataset, show_progress=False)
    proven = proven_of(run.path, run.provenance)
    member = run.keep[:, run.canaries]
    if kind == "gradient":
        scores = run.arrays.read("canary_scores", run.models).astype(np.float64)
    else:
        scores = np.asarray(run.signal("phi", run.models, run.canaries), np.float64)[:, :, 0]
    found = [canary_epsilons(s, k, delta=DELTA, fair=True) for s, k in zip(scores, member, strict=True)]
    rows = []
    for method in found[0]:
        values = np.array([bounds[method].epsilon for bounds in found])
        rows.append(
            {
                "proven": None if proven is None or math.isinf(proven.epsilon) else round(proven.epsilon, 3),
                "method": method,
                "trainings": len(values),
                "accuracy_in": round(float(run.accuracy("in").mean()), 4),
                "mean": round(float(values.mean()), 3),
                "smallest": round(float(values.min()), 3),
                "largest": round(float(values.max()), 3),
                "share_positive": round(float(np.mean(values > 0)), 4),
                "share_above_proven": round(
                    float(np.mean(values > (proven.epsilon if proven else math.inf))), 4
                ),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epsilon", type=float, nargs="+", default=[math.inf, 4.0, 1.0])
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--kind", default="random", choices=["random", "gradient"])
    parser.add_argument("--out", type=Path, help="also write the rows to this JSON file")
    arguments = parser.parse_args()
    rows = []
    for epsilon in arguments.epsilon:
        with tempfile.TemporaryDirectory() as place:
            for row in measure(epsilon, arguments.models, arguments.kind, Path(place) / "run"):
                rows.append(row)
                print(row, flush=True)
    if arguments.out:
        arguments.out.write_text(
            json.dumps({"delta": DELTA, "kind": arguments.kind, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
