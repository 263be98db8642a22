"""Do the 95 % intervals hold? Their coverage in simulated pools whose truth is known.

Command:   python experiments/benchmarks/coverage.py DIR [--worker 0/2] [--seconds 280]    (until nothing is missing)
           python experiments/benchmarks/coverage.py DIR --report [--out FILE.json]
Duration:  the last 42 % took 7 minutes on 2 CPU cores, one worker each; every call goes on where the last one stopped.
Expected:  pooled TPR within 92-97 %; AUC below that for small pools, whose shadow models all targets share.
Measured:  experiments/benchmarks/coverage_cpu2.json, table in experiments/README.md.

A pool as in a real run: complementary pairs, every model a target of fixed-variance online LiRA by the others with its
pair left out. phi = noise of each model and example (sd 1) + strength of the example where it is a member (exponential,
mean 1, drawn once) + an effect of the model on all examples alike (sd 0.2, or 0.5 as a hard case; 0.16 was measured
over 64 models on digits). The truth is the mean over runs: the expectation over re-drawn pools, examples fixed.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import lira
from lira.metrics import (
    bayes_error_bound,
    fixed_threshold,
    information_bound,
    mutual_information,
    rescored_intervals,
    roc,
    subpool_scores,
    youden,
)

# All fixed beforehand.
SEED, N, RUNS, PIECE = 0, 1500, 1000, 25
FPRS = (0.001, 0.01)
# (models, sd of a model's effect, the costly figures too)
POOLS = (
    (16, 0.2, True),
    (16, 0.5, True),
    (64, 0.2, True),
    (64, 0.5, True),
    (256, 0.2, False),
    (256, 0.5, False),
)


def draw(M: int, effect: float, run: int) -> tuple[np.ndarray, np.ndarray]:
    """One pool's phi `[M, N, 1]` and keep `[M, N]`."""
    strength = np.random.default_rng(SEED).exponential(1.0, N)
    rng = np.random.default_rng([SEED, M, run])
    keep = lira.keep_mask(run, M, N)
    return (rng.normal(size=(M, N)) + keep * strength + rng.normal(0, effect, (M, 1)))[..., None], keep


def attack(phi, keep: np.ndarray) -> np.ndarray:
    """`lira.attacks.lira_online_fixed` in NumPy: nothing to compile for small pools."""
    phi = np.asarray(phi[:, :])[..., 0]
    inside = np.where(keep, phi, 0)
    outside = phi - inside
    # The pair's own values on either side, which are taken out.
    mates = phi[np.arange(len(phi)) ^ 1]
    pair = np.where(keep, phi, mates), np.where(keep, mates, phi)
    n = len(phi) / 2 - 1
    terms = []
    for side, own in zip((inside, outside), pair, strict=True):
        mean = (side.sum(axis=0) - own) / n
        within = ((np.square(side).sum(axis=0) - own**2) / n - mean**2).mean(axis=1, keepdims=True)
        variance = within if n > 1 else np.ones_like(within)
        terms.append((phi - mean) ** 2 / variance + np.log(variance))
    return (0.5 * (terms[1] - terms[0])).astype(np.float32)


def figures(M: int, effect: float, everything: bool, run: int) -> Iterator[tuple[str, float, float, float]]:
    """Name, value and interval's ends of every figure of one pool."""
    phi, keep = draw(M, effect, run)
    scores = attack(phi, keep)
    curve = roc(scores, keep)
    for fpr, value, low, high in zip(FPRS, *curve.band(np.array(FPRS)), strict=True):
        yield f"TPR at {100 * fpr:g} %", value, low, high
    j = youden(scores, keep).j
    estimates = {"AUC": curve.auc_interval(), "balanced accuracy": curve.balanced_accuracy_interval()}
    estimates |= {
        "held-out J": j,
        "information bound": information_bound(j),
        "Bayes error": bayes_error_bound(j),
    }
    estimates["mutual information"] = mutual_information(scores, keep).bits
    if everything:
        rescored = rescored_intervals(attack, phi, keep, fpr=0.01)
        estimates |= {"TPR at 1 %, rescored": rescored.tpr, "AUC, rescored": rescored.auc}
        estimates["balanced accuracy, rescored"] = rescored.balanced_accuracy
        estimates["held-out J, rescored"] = rescored.j
        estimates["information bound, rescored"] = information_bound(rescored.j)
        fixed = fixed_threshold(scores, keep, 0.01)
        estimates |= {"fixed threshold: FPR": fixed.mean_fpr, "fixed threshold: TPR": fixed.mean_tpr}
    if everything and M == 64:
        # As `learning_curve` does.
        for size in (8, 16):
            within = roc(subpool_scores(attack, phi, keep, size), keep, clusters=np.arange(M) // size)
            name = f"{M // size} sub-pools of {size}"
            yield f"{name}: TPR at 1 %", *(float(end[0]) for end in within.band(np.array([0.01])))
            estimates[f"{name}: AUC"] = within.auc_interval()
    for name, estimate in estimates.items():
        yield name, estimate.value, estimate.low, estimate.high


def work(directory: Path, worker: str, seconds: float) -> None:
    """Simulate pieces that are missing until the time is up."""
    number, workers = (int(part) for part in worker.split("/"))
    began = time.perf_counter()
    pieces = [(*pool, start) for start in range(0, RUNS, PIECE) for pool in POOLS]
    for M, effect, everything, start in pieces[number::workers]:
        path = directory / f"{M}-{effect}-{start}.json"
        if path.exists():
            continue
        if time.perf_counter() - began > seconds:
            return print("time is up: call again")
        runs = [list(figures(M, effect, everything, run)) for run in range(start, start + PIECE)]
        path.write_text(json.dumps(runs))
    print("nothing is missing")


def report(directory: Path) -> list[dict]:
    """One row a figure: truth, spread, coverage."""
    rows = []
    for M, effect, _ in POOLS:
        runs = []
        for start in range(0, RUNS, PIECE):
            runs += json.loads((directory / f"{M}-{effect}-{start}.json").read_text())
        for index, (name, *_) in enumerate(runs[0]):
            value, low, high = np.array([run[index][1:] for run in runs]).T
            truth = value.mean()
            rows.append(
                {
                    "models": M,
                    "effect": effect,
                    "figure": name,
                    "runs": len(runs),
                    "truth": round(float(truth), 5),
                    "sd": round(float(value.std(ddof=1)), 5),
                    "half_width": round(float(np.mean(high - low) / 2), 5),
                    "coverage": round(float(np.mean((low <= truth) & (truth <= high))), 3),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path, help="of the pieces that are done")
    parser.add_argument("--worker", default="0/1", help="this one's number / how many there are")
    parser.add_argument("--seconds", type=float, default=280)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the report to this JSON file")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    if not arguments.report:
        return work(arguments.directory, arguments.worker, arguments.seconds)
    rows = report(arguments.directory)
    for row in rows:
        print("{models:4} {effect} {figure:32} truth {truth:.4f}  coverage {coverage:.3f}".format(**row))
    if arguments.out:
        arguments.out.write_text(
            json.dumps({"seed": SEED, "examples": N, "fprs": FPRS, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
