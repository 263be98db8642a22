"""Scoring speed: all targets of a pool of M = 256, N = 50,000, Q = 2, against one pass of scipy's normal density.

Command:   python experiments/benchmarks/scoring.py [--out FILE.json]
           python experiments/benchmarks/scoring.py --large    (M = 1,024, N = 60,000, Q = 18: time and memory)
           python experiments/benchmarks/scoring.py --suite [--out FILE.json]    (every attack, population of 10,000)
           python experiments/benchmarks/scoring.py --report 8 [--out FILE.json]    (`lira report` of a pool of 8 models)
Duration:  two to three minutes on 2 CPU cores each.
Expected:  lira_online under four times scipy's pass, under 2 GB; ROC, AUC and intervals under 10 s; the suite under
           three minutes; with 16 cores a report of 8 models under 30 s, of 256 under 90 s.
Measured:  experiments/README.md.
"""

import argparse
import dataclasses
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import scipy.stats

import lira
from lira.attacks.suite import ATTACKS, Attack, Pool, attack_groups, attack_pool
from lira.store.imported import run_of_models

M, N, Q, REPEATS = 256, 50_000, 2, 5
POPULATION, FEATURES = 10_000, 202  # CIFAR-10's test images, patch means and labels


def seconds(function) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def spread(times: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(times), 3),
        "min": round(min(times), 3),
        "max": round(max(times), 3),
    }


def peak_memory_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


class Noise:
    """1.1 billion values of phi that are drawn when they are read: 4.4 GB that are never in memory at once."""

    shape = (1024, 60_000, 18)

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """Values of all models for a block of examples."""
        start, stop, _ = index[1].indices(self.shape[1])
        rng = np.random.default_rng(start)
        return rng.standard_normal((self.shape[0], stop - start, self.shape[2]), dtype=np.float32)


def large() -> None:
    keep = lira.keep_mask(0, *Noise.shape[:2])
    for name in ("lira_online", "lira_online_fixed"):
        taken = seconds(lambda name=name: getattr(lira.attacks, name)(Noise(), keep))
        print(f"{name}: {taken:.1f} s, peak memory {peak_memory_gb():.2f} GB")


def suite(out: str | None) -> None:
    """Every attack once, compilation included, as `lira run` calls them: two at a time, where one's seconds are of both."""
    keep = lira.keep_mask(0, M, N)
    rng = np.random.default_rng(0)
    phi = rng.standard_normal((M, N, Q), dtype=np.float32) + keep[..., None] * np.float32(0.5)
    entropy = np.exp(-phi)
    pool = Pool(
        {"phi": phi, "entropy": entropy, "modified_entropy": entropy, "phi@0.5": phi / 2},
        keep,
        population=rng.standard_normal((M, POPULATION, Q), dtype=np.float32),
        features=rng.standard_normal((N, FEATURES), dtype=np.float32),
        population_features=rng.standard_normal((POPULATION, FEATURES), dtype=np.float32),
        labels=rng.integers(0, 10, N),
    )
    times: dict[str, float] = {}

    def timed(name: str, attack: Attack) -> Attack:
        def function(*arguments, **options):
            began = time.perf_counter()
            scores = attack.function(*arguments, **options)
            times[name] = round(time.perf_counter() - began, 1)
            return scores

        return dataclasses.replace(attack, function=function)

    attacks = {name: timed(name, attack) for name, attack in ATTACKS.items()}
    began, busy = time.perf_counter(), time.process_time()
    for group in attack_groups(attacks, M, N):
        attack_pool(pool, group)
    rows: dict = {"seconds": times, "total_seconds": round(time.perf_counter() - began, 1)}
    rows |= {"cpu_seconds": round(time.process_time() - busy, 1), "memory_gb": peak_memory_gb()}
    rows["device"] = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.machine()}"
    print(json.dumps(rows, indent=2))
    if out:
        with open(out, "w") as file:
            json.dump(rows, file, indent=2)


def report(models: int, out: str | None) -> None:
    """`lira report` of a synthetic pool in processes of their own: the first compiles, the second finds it kept."""
    keep = lira.keep_mask(0, models, N)
    rng = np.random.default_rng(0)
    hard = rng.standard_normal((N, 1))

    def answers():
        for held in keep:
            phi = (
                5 + 2 * hard + 1.2 * rng.standard_normal((N, Q)) + held[:, None] * (1 + np.maximum(-hard, 0))
            )
            yield {
                "phi": phi.astype(np.float32),
                "entropy": np.exp(-np.abs(phi)).astype(np.float32),
                "modified_entropy": np.exp(-phi).astype(np.float32),
                **dict.fromkeys(
                    ("accuracy_in", "accuracy_out", "accuracy_test"), np.full((), np.nan, np.float32)
                ),
            }

    rows: dict = {"models": models, "examples": N, "queries": Q, "seconds": []}
    with tempfile.TemporaryDirectory() as place:
        run = run_of_models(
            f"{place}/run",
            keep,
            rng.integers(0, 10, N),
            answers(),
            source=dict.fromkeys(("path", "file"), "-") | {"layout": "synthetic", "requested": models},
        )
        command = "import sys; from lira.cli import main; sys.exit(main(sys.argv[1:]))"
        environment = {**os.environ, "LIRA_CACHE": f"{place}/cache"}
        for _ in range(2):
            for scores in (run.path / "scores").iterdir():
                shutil.rmtree(scores)
            arguments = [sys.executable, "-c", command, "report", str(run.path)]
            taken = seconds(
                lambda a=arguments: subprocess.run(a, check=True, env=environment, capture_output=True)
            )
            rows["seconds"].append(round(taken, 1))
    rows["memory_gb"] = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6, 2)
    rows["cores"] = os.cpu_count()
    rows["device"] = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.machine()}"
    print(json.dumps(rows, indent=2))
    if out:
        with open(out, "w") as file:
            json.dump(rows, file, indent=2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", help="also write the figures to this JSON file")
    parser.add_argument("--large", action="store_true", help="only the large pool, which is not in memory")
    parser.add_argument("--suite", action="store_true", help="every attack, once")
    parser.add_argument("--report", type=int, metavar="M", help="`lira report` of a pool of M models")
    arguments = parser.parse_args()
    if arguments.report:
        return report(arguments.report, arguments.out)
    if arguments.large:
        return large()
    if arguments.suite:
        return suite(arguments.out)

    keep = lira.keep_mask(0, M, N)
    rng = np.random.default_rng(0)
    phi = rng.standard_normal((M, N, Q), dtype=np.float32) + keep[..., None] * np.float32(0.5)
    names = ["lira_online", "lira_online_fixed", "lira_offline", "lira_offline_fixed", "global_threshold"]
    attacks = {name: getattr(lira.attacks, name) for name in names}
    for attack in attacks.values():  # compile
        attack(phi, keep)
    rows: dict = {"memory_scoring_gb": round(peak_memory_gb(), 2)}

    # Only now is scipy's float64 array made, so that the memory above is scoring's own.
    wide = phi.astype(np.float64)
    there = jax.block_until_ready(jax.device_put(phi))
    attacks["lira_online"](there, keep)  # compile
    sides = ["scipy.stats.norm.logpdf", *names, "lira_online, phi on the device"]
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(REPEATS):  # interleaved, so that a slow moment hits all alike
        times["scipy.stats.norm.logpdf"].append(seconds(lambda: scipy.stats.norm.logpdf(wide, 0.0, 1.0)))
        for name, attack in attacks.items():
            times[name].append(seconds(lambda attack=attack: attack(phi, keep)))
        times["lira_online, phi on the device"].append(seconds(lambda: attacks["lira_online"](there, keep)))
    rows["seconds"] = {name: spread(each) for name, each in times.items()}
    pairs = zip(times["lira_online"], times["scipy.stats.norm.logpdf"], strict=True)
    rows["lira_online_over_scipy"] = spread([ours / theirs for ours, theirs in pairs])

    scores = lira.attacks.lira_online(phi, keep)

    def measure():
        curve = lira.metrics.roc(scores, keep)
        points = [curve.tpr_at(fpr) for fpr in (1e-5, 1e-4, 1e-3, 1e-2)]
        return curve.auc_interval(), curve.balanced_accuracy_interval(), points

    rows["seconds"]["roc_auc_and_intervals"] = spread([seconds(measure) for _ in range(REPEATS)])
    rows["device"] = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.machine()}"
    rows["versions"] = {"jax": jax.__version__, "numpy": np.__version__, "scipy": scipy.__version__}
    print(json.dumps(rows, indent=2))
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    main()
