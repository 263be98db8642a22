"""Lower bounds on epsilon where it is known: the Gaussian mechanism, and noise.

Command:   python experiments/benchmarks/epsilon.py [--case 0] [--out FILE.json]
Duration:  --case 3 takes four minutes on one CPU core; all five took an hour beside other work.
Expected:  above the truth in at most 5 % of repeats; for noise, positive in at most 5 %.
Measured:  experiments/benchmarks/epsilon_cpu.json, table in experiments/README.md.

m scores, each a trial of its own: N(mu, 1) for members, drawn by coins of a probability, else N(0, 1). Bounds at 95 % and
delta 1e-5, thresholds chosen on a random half.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from lira.epsilon import epsilon_bounds, gaussian_epsilon

DELTA = 1e-5
# (mu, scores, repeats, probability of the coin), fixed beforehand
CASES = (
    (0.0, 2000, 400, 0.5),
    (0.5, 2000, 200, 0.5),
    (1.0, 2000, 300, 0.5),
    (1.0, 20_000, 100, 0.5),
    (2.0, 2000, 100, 0.5),
    *((mu, 2000, 100, coin) for mu in (0.0, 1.0) for coin in (0.1, 0.6, 0.9)),
)


def measure(mu: float, m: int, repeats: int, coin: float) -> list[dict]:
    """One row a method."""
    truth = gaussian_epsilon(mu, DELTA)
    found = []
    for repeat in range(repeats):
        rng = np.random.default_rng([repeat, m, int(100 * mu)])
        member = rng.random(m) < coin
        scores = rng.normal(size=m) + mu * member
        bounds = epsilon_bounds(scores[member], scores[~member], delta=DELTA, seed=repeat, independent=True)
        found.append(bounds)
    rows = []
    for method in found[0]:
        values = np.array([bounds[method].epsilon for bounds in found])
        rows.append(
            {
                "mu": mu,
                "scores": m,
                "repeats": repeats,
                "coin": coin,
                "truth": round(truth, 3),
                "method": method,
                "mean": round(float(values.mean()), 3),
                "mean_over_truth": round(float(values.mean() / truth), 3) if truth else None,
                "largest": round(float(values.max()), 3),
                "share_above_truth": round(float(np.mean(values > truth)), 4),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", type=int, choices=range(len(CASES)), help="only this one; default: all")
    parser.add_argument(
        "--out", type=Path, help="also write the rows to this JSON file, beside those of other cases"
    )
    arguments = parser.parse_args()
    cases = CASES if arguments.case is None else [CASES[arguments.case]]
    rows = [row for case in cases for row in measure(*case)]
    for row in rows:
        print(row)
    if arguments.out:
        before = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
        measured = {(mu, m, coin) for mu, m, _, coin in cases}
        rest = [row for row in before if (row["mu"], row["scores"], row["coin"]) not in measured]
        rows = sorted(rest + rows, key=lambda row: (row["coin"], row["mu"], row["scores"]))
        arguments.out.write_text(json.dumps({"delta": DELTA, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
