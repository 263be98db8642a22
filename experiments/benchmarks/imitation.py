"""Models that imitate a target, against LiRA with as many ordinary models: what do IMIA and GLiRA gain, over several targets?

Command:   lira run experiments/digits.toml --run-dir RUN --num-models 80
           python experiments/benchmarks/imitation.py RUN --imitators 10 20 --targets 8 --out FILE.json
Duration:  digits, 8 targets: ten minutes on one busy CPU core.
Expected:  of IMIA's paper (arXiv 2509.06796) a TPR at low FPR several times that of LiRA with the same number of models.
Measured:  experiments/benchmarks/imitation_digits_cpu.json, with --methods imia imia_pivots
           imitation_nonadaptive_digits_cpu.json, of CIFAR-10 imitation_cifar_cpu.json; tables in
           experiments/benchmarks/README.md.

Targets are of different pairs, the first models of the pairs at the end of the run, which are among nobody's shadow models.
Means over targets with their standard deviation; the TPR at 0.1 % FPR is pooled over targets, for one of digits alone does
not resolve it. Differences are paired: the same targets, less `lira_online_fixed` with the same number of models in all.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from lira import Run, load_dataset
from lira.metrics import roc
from lira.reporting.imitation import imitate

LOW, POOLED = 0.01, 0.001


def measure(run: Run, targets: list[int], imitators: int, methods: list[str], place: Path) -> list[dict]:
    """A row an attack: means over targets, spread, and the difference from LiRA with as many models."""
    dataset = load_dataset(
        run.config.dataset, num_examples=run.config.num_examples, data_dir=run.config.data_dir
    )
    done = [
        imitate(
            run,
            dataset,
            target=t,
            methods=methods,
            num_imitators=imitators,
            out=place / f"{imitators}_{t}",
            show_progress=False,
        )
        for t in targets
    ]
    for name in done[0].distances:
        values = [away for each in done if (away := each.distances[name]) is not None]
        print(
            f"{imitators} imitators: distance of phi from the target's, {name}: {np.mean(values):.2f}",
            flush=True,
        )
    member = np.stack([each.member for each in done])
    curves = {
        name: [roc(each.scores[name][None], each.member[None]) for each in done] for name in done[0].scores
    }
    aucs = {name: np.array([each.auc for each in found]) for name, found in curves.items()}
    tprs = {name: np.array([each.realised_tpr(LOW) for each in found]) for name, found in curves.items()}
    rows = []
    for name in curves:
        total = {"imia": 3, "imia_nonadaptive": 2}.get(name, 1) * imitators
        if "_of_" in name:
            total = int(name.split("_of_")[1])
        pooled = roc(np.stack([each.scores[name] for each in done]), member).tpr_at(POOLED)
        gain = tprs[name] - tprs[f"lira_online_fixed_of_{total}"]
        rows.append(
            {
                "imitators": imitators,
                "attack": name,
                "models": total,
                "auc": round(float(aucs[name].mean()), 4),
                "auc_sd": round(float(aucs[name].std(ddof=1)), 4),
                "tpr_at_1_percent": round(float(tprs[name].mean()), 5),
                "tpr_at_1_percent_sd": round(float(tprs[name].std(ddof=1)), 5),
                "pooled_tpr_at_0.1_percent": round(float(pooled.tpr), 5),
                "gain_of_tpr_at_1_percent": round(float(gain.mean()), 5),
                "gain_standard_error": round(float(gain.std(ddof=1) / np.sqrt(len(gain))), 5),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path, help="a trained run")
    parser.add_argument("--imitators", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--targets", type=int, default=8)
    parser.add_argument("--methods", nargs="+", default=["imia", "glira_kl"])
    parser.add_argument(
        "--place", type=Path, help="keep the imitators here, and go on with those of an earlier call"
    )
    parser.add_argument("--out", type=Path, help="also write the rows to this JSON file")
    arguments = parser.parse_args()
    run = Run.open(arguments.run)
    targets = run.models[::2][-arguments.targets :].tolist()
    if len(run.models) < 3 * max(arguments.imitators) + 2 * len(targets):
        parser.error("the run needs three times as many models as imitators, and a pair a target beside")
    rows = []
    with tempfile.TemporaryDirectory(prefix="imitation-") as passing:
        for count in arguments.imitators:
            rows += measure(run, targets, count, arguments.methods, arguments.place or Path(passing))
    for row in rows:
        print(row)
    if arguments.out:
        arguments.out.write_text(json.dumps({"targets": targets, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
