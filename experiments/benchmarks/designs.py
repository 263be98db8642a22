"""Pools that know nothing, in every design of memberships: is any attack better, or worse, than guessing?

    python experiments/benchmarks/designs.py [--pools 200] [--designs ...] [--out FILE.json]

200 pools a design, of models that are alike, that differ by a random effect, or of which one row is an outlier. Of each
attack the mean AUC and TPR less FPR, where 1 % of all scores are let through, over the pools are held against chance at a family-wise level of 5 % (Bonferroni,
over all attacks, designs and tempers, two-sided), with the standard error between pools.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
from scipy import stats

from lira.attacks import UnfitPoolError
from lira.attacks.suite import ATTACKS, Pool, call_attack
from lira.membership import audited_half, disjoint_mask, independent_mask, keep_mask

EXAMPLES, POINTS, FPR, LEVEL = 250, 40, 0.01, 0.05
TEMPERS = ("alike", "effects", "first row", "middle row", "last row")
DESIGNS = {
    "pairs, 8": 8,
    "balanced, 8": 8,
    "balanced, one of 8 lost": 7,
    "balanced, 16": 16,
    "independent, 16": 16,
    "undeclared, 40": 40,
    "outside target of a balanced 8": 7,
    "independent .3, 16": 16,
    "disjoint, 4 targets of 12": 12,
}


def draw_keep(rng: np.random.Generator, design: str, N: int) -> np.ndarray:
    """Memberships of the pool, and where there is one of the outside target in the last row."""
    if design.startswith("pairs"):
        return keep_mask(int(rng.integers(1 << 30)), 8, N)
    if design.startswith("disjoint"):  # the targets last, and of the examples their half
        seed = int(rng.integers(1 << 30))
        return np.roll(disjoint_mask(seed, 16, 2 * N, 4)[:, audited_half(seed, 2 * N)], -4, axis=0)
    if design.startswith("independent .3"):
        return independent_mask(int(rng.integers(1 << 30)), 16, N, 0.3)
    if design.startswith(("independent", "undeclared")):
        return rng.uniform(size=(DESIGNS[design], N)) < 0.5
    size = 16 if "16" in design else 8
    keep = np.argsort(rng.uniform(size=(size, N)), axis=0) < size // 2
    return keep[:7] if "lost" in design else keep


def noise(design: str, seed: int) -> tuple[Pool, np.ndarray]:
    """A pool that knows nothing, its examples in as many equal parts as there are tempers; and who is a member."""
    rng = np.random.default_rng([seed, list(DESIGNS).index(design)])
    N = EXAMPLES * len(TEMPERS)
    keep = draw_keep(rng, design, N)
    rows, M = len(keep), DESIGNS[design]
    shifts = np.zeros((rows, N, 1))
    for index, temper in enumerate(TEMPERS):
        part = slice(index * EXAMPLES, (index + 1) * EXAMPLES)
        if temper == "effects":
            shifts[:, part] = rng.normal(size=(rows, 1, 1))
        elif temper != "alike":
            shifts[{"first row": 0, "middle row": M // 2, "last row": M - 1}[temper], part] = 8
    phi = (rng.normal(size=(rows, N, 1)) + shifts).astype(np.float32)
    signals = {"phi": phi, "entropy": np.exp(-phi), "modified_entropy": np.exp(-phi), "phi@0.5": phi / 2}
    points = rng.normal(size=(rows, POINTS, 1)).astype(np.float32)
    outside = rows > M
    pool = Pool(
        {name: values[:M] for name, values in signals.items()},
        keep[:M],
        target={name: values[M:] for name, values in signals.items()} if outside else None,
        population=points[:M],
        target_population=points[M:] if outside else None,
        features=rng.normal(size=(N, 2)),
        population_features=rng.normal(size=(POINTS, 2)),
        independent=design.startswith(("pairs", "independent")),
    )
    return pool, keep[M:] if outside else keep


def excess(scores: np.ndarray, member: np.ndarray) -> tuple[float, float]:
    """AUC less 1/2, ties one half; TPR less FPR above the bar that lets at most FPR of *all* scores through.

    Chosen so, and not on the non-members, the bar knows nothing of memberships: at chance the difference is 0 on average.
    """
    ranks = stats.rankdata(np.concatenate([scores[member], scores[~member]]))[: member.sum()]
    auc = (ranks.mean() - (member.sum() + 1) / 2) / (~member).sum()
    bar = np.sort(scores, axis=None)[::-1][int(FPR * scores.size)]
    return auc - 0.5, float((scores[member] > bar).mean() - (scores[~member] > bar).mean())


def measure(design: str, pools: int) -> dict[str, dict[str, np.ndarray]]:
    """By attack and temper AUC and TPR less chance, float64 `[pools, 2]`."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for seed in range(pools):
        pool, member = noise(design, seed)
        for name, attack in ATTACKS.items():
            if not attack.uses_shadows:
                continue
            try:
                scores = call_attack(attack, pool)
            except UnfitPoolError:
                continue
            for index, temper in enumerate(TEMPERS):
                part = slice(index * EXAMPLES, (index + 1) * EXAMPLES)
                figures = excess(scores[:, part], member[:, part])
                found.setdefault(name, {}).setdefault(temper, []).append(figures)
    return {
        name: {temper: np.array(values) for temper, values in by_temper.items()}
        for name, by_temper in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", type=int, default=200)
    parser.add_argument("--designs", nargs="*", choices=list(DESIGNS), default=list(DESIGNS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    start, rows = time.perf_counter(), []
    for design in arguments.designs:
        for name, by_temper in measure(design, arguments.pools).items():
            for temper, values in by_temper.items():
                mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))
                z = mean / np.where(error > 0, error, 1)
                rows.append(
                    {
                        "design": design,
                        "attack": name,
                        "models": temper,
                        "auc": 0.5 + mean[0],
                        "auc_z": z[0],
                        "tpr_less_fpr": mean[1],
                        "tpr_z": z[1],
                    }
                )
        print(f"{design}: {time.perf_counter() - start:.0f} s", flush=True)
    limit = float(stats.t.isf(LEVEL / 2 / (2 * len(rows)), arguments.pools - 1))
    for kind in ("auc", "tpr"):
        far = sorted(
            (row for row in rows if abs(row[f"{kind}_z"]) > limit), key=lambda row: -abs(row[f"{kind}_z"])
        )
        print(
            f"{kind}: {len(far)} of {len(rows)} means are further than {limit:.2f} standard errors from chance"
        )
        for row in far[:40]:
            print(
                f"  {row['design']}, {row['models']}, {row['attack']}: AUC {row['auc']:.4f} (z {row['auc_z']:.1f}), "
                f"TPR - FPR {row['tpr_less_fpr']:.4f} (z {row['tpr_z']:.1f})"
            )
    if arguments.out:
        arguments.out.write_text(
            json.dumps({"pools": arguments.pools, "limit": limit, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
