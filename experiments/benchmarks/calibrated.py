"""Is the false-positive rate the same for every example, and are at most 5 % of those named members wrong?

Command:   python experiments/benchmarks/calibrated.py [--out FILE.json]
Duration:  some ten minutes on one CPU core.
Expected:  by `offline_p_values` and `online_p_values` the realised rate of 95 % of the examples lies within a factor of 1.5
           of the nominal one, at 0.1 and 1 % (not with one pooled threshold); false shares below 5 % times the share of
           non-members, two standard errors allowed.
Measured:  experiments/benchmarks/calibrated_cpu2.json, tables in experiments/benchmarks/README.md.

Examples differ: mean N(0, 3), OUT standard deviation exp(N(0, .7)), IN exp(N(0, .5)) times that, gap |N(0, 1.5)| OUT standard
deviations; phi is Gaussian. Rates: pools of 256 models are drawn anew for 200 kinds of examples, 51,200 non-member trials of
each, so that binomial noise alone spreads the rate at 0.1 % by 14 %. False shares: 100 targets of 2,000 examples outside one
pool of 256, half or a tenth of them members, without and with a random effect of each model on all its confidences.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from lira.attacks import (
    conformal_p_values,
    lira_online,
    offline_fixed_p_values,
    offline_p_values,
    online_p_values,
    rank_p_values,
)
from lira.membership import keep_mask
from lira.metrics import named_members

M, KINDS, REPEATS = 256, 200, 400
FPRS = (1e-3, 1e-2)
FACTOR = 1.5


class Examples:
    """Kinds of examples, each `copies` times."""

    def __init__(self, seed: int, kinds: int, copies: int = 1) -> None:
        rng = np.random.default_rng(seed)
        self.mean, self.gap = rng.normal(0, 3, kinds), np.abs(rng.normal(0, 1.5, kinds))
        self.out_sd = np.exp(rng.normal(0, 0.7, kinds))
        self.in_sd = self.out_sd * np.exp(rng.normal(0, 0.5, kinds))
        self.copies = copies

    def draw(self, rng: np.random.Generator, held: np.ndarray, effect: float = 0.0) -> np.ndarray:
        """Phi of models that hold `held` [rows, N], float32 `[rows, N, 1]`; `effect` is of whole models."""
        mean, gap, out_sd, in_sd = (
            np.tile(each, self.copies) for each in (self.mean, self.gap, self.out_sd, self.in_sd)
        )
        noise = rng.normal(size=held.shape)
        phi = mean + np.where(held, gap * out_sd + in_sd * noise, out_sd * noise)
        return (phi + effect * rng.normal(size=(len(held), 1)))[..., None].astype(np.float32)


def measure_rates() -> list[dict]:
    """Realised per-example rates, of p-values and of LiRA's pooled threshold."""
    kinds = Examples(0, KINDS, copies=20)
    rng = np.random.default_rng(1)
    methods = {
        "online": online_p_values,
        "offline": offline_p_values,
        "offline, one variance": offline_fixed_p_values,
        "rank": rank_p_values,
    }
    false = {(name, fpr): np.zeros(KINDS) for name in [*methods, "lira_online, pooled"] for fpr in FPRS}
    true = {key: 0 for key in false}
    trials, members = np.zeros(KINDS), 0

    def by_kind(found: np.ndarray) -> np.ndarray:
        return found.reshape(M, kinds.copies, KINDS).sum(axis=(0, 1))

    for part in range(REPEATS // kinds.copies):
        keep = keep_mask(part, M, KINDS * kinds.copies)
        phi = kinds.draw(rng, keep)
        trials += by_kind(~keep)
        members += int(keep.sum())
        found = {
            (name, fpr): p.values <= fpr
            for name, f in methods.items()
            for p in [f(phi, keep)]
            for fpr in FPRS
        }
        scores = lira_online(phi, keep)
        for fpr in FPRS:
            found["lira_online, pooled", fpr] = scores >= np.quantile(scores[~keep], 1 - fpr)
        for key, called in found.items():
            false[key] += by_kind(called & ~keep)
            true[key] += int((called & keep).sum())
    rows = []
    for (name, fpr), counts in false.items():
        ratio = counts / trials / fpr
        rows.append(
            {
                "threshold": name,
                "fpr": fpr,
                "tpr": round(true[name, fpr] / members, 4),
                "mean_over_fpr": round(float(ratio.mean()), 3),
                "lowest_over_fpr": round(float(ratio.min()), 3),
                "highest_over_fpr": round(float(ratio.max()), 3),
                "within_factor": round(float(np.mean((ratio >= 1 / FACTOR) & (ratio <= FACTOR))), 3),
            }
        )
    return rows


def measure_names() -> list[dict]:
    """How many members are named at 5 %, and how many of those wrongly."""
    examples, rng = Examples(2, 2000), np.random.default_rng(3)
    keep, rows = keep_mask(0, M, 2000), []
    for prior in (0.5, 0.1):
        for effect in (0.0, 1.0):
            phi = examples.draw(rng, keep, effect)
            member = rng.random((100, 2000)) < prior
            target = examples.draw(rng, member, effect)
            found = {
                "online": online_p_values(phi, keep, target=target),
                "offline": offline_p_values(phi, keep, target=target),
                "conformal, lira_online": conformal_p_values(lira_online, phi, keep, target=target),
            }
            for name, p in found.items():
                named = named_members(p.values, member, 0.05)
                rows.append(
                    {
                        "p_values": name,
                        "members": prior,
                        "effect_of_models": effect,
                        "named_of_members": round(named.named.value / (prior * 2000), 4),
                        "false_share": round(named.false_share.value, 4),
                        "false_share_low": round(named.false_share.low, 4),
                        "false_share_high": round(named.false_share.high, 4),
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, help="also write the rows to this JSON file")
    arguments = parser.parse_args()
    document = {"names": measure_names(), "rates": measure_rates()}
    for row in [*document["names"], *document["rates"]]:
        print(row)
    if arguments.out:
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
