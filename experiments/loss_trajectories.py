"""Loss trajectories: does LT-IQR find with one model what LiRA finds with hundreds, and do checkpoints help LiRA?

Command:   lira run experiments/digits.toml --run-dir RUN --signals entropy modified_entropy phi@0.2 phi@0.4 phi@0.6 phi@0.8
           python experiments/loss_trajectories.py RUN
Duration:  half a minute on 2 CPU cores for 256 models of digits, after the run.
Expected:  precision far above chance; the paper's 92 % on CIFAR-10. Measured: experiments/README.md.

Precision at k is of one target's members, of whom the k that rank highest are named, and a mean over targets. "Called":
k is 1 % of the members, right are those that LiRA calls members at 0.1 % FPR (arXiv 2411.05743's measure). "Top": right
are those of the pool's 1 % most vulnerable examples, as `lira records` ranks them, and k is as many as the target holds.
"""

import sys

import numpy as np

from lira import Run, attacks
from lira.metrics import roc
from lira.metrics.examples import example_gap
from lira.metrics.ranking import example_rates, rank_examples, threshold_above, top_examples
from lira.signals import checkpoints

FPR = 0.001
run = Run.open(sys.argv[1])
keep = run.keep
signals = {name: np.asarray(run.signal(name)) for name in ("phi", *checkpoints(run.config.signals))}
trajectory = np.asarray(attacks.phi_trajectory(signals)[:, :])
scores = {
    "lira_online": attacks.lira_online(signals["phi"], keep),
    "lira_online_multivariate": attacks.lira_online_multivariate(signals["phi"], keep),
    "lira_online_trajectory": attacks.lira_online_trajectory(trajectory, keep),
    "loss_threshold": attacks.loss_threshold(signals["phi"], keep),
    "lt_iqr": attacks.lt_iqr(trajectory, keep),
}

print(f"{len(keep)} models, {keep.shape[1]} examples, {', '.join(signals)}")
for name, values in scores.items():
    curve = roc(values, keep)
    points = [curve.tpr_at(fpr) for fpr in (FPR, 0.01)]
    tprs = "  ".join(
        f"{100 * each.tpr:6.3f} % [{100 * each.low:.3f}, {100 * each.high:.3f}]" for each in points
    )
    print(f"{name:26} AUC {curve.auc:.4f}   TPR at 0.1 and 1 % FPR {tprs}")
stages = checkpoints(signals)
for stage, name in enumerate(stages):
    alone = roc(attacks.lira_online(signals[name], keep), keep)
    two = roc(attacks.lira_online_trajectory(trajectory[:, :, [stage, -1]], keep), keep)
    print(
        f"{name}: AUC and TPR at 0.1 % FPR of lira_online on it {alone.auc:.4f}, {100 * alone.tpr_at(FPR).tpr:.2f} %; "
        f"of lira_online_trajectory on it and phi {two.auc:.4f}, {100 * two.tpr_at(FPR).tpr:.2f} %"
    )

lira = scores["lira_online"]
bar = threshold_above(lira, keep, FPR)
ranks = rank_examples(example_rates(lira, keep, bar).tpr, example_gap(lira, keep))
most = top_examples(ranks, -(-keep.shape[1] // 100))


def precisions(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each target "called" and "top", float `[T]`; `values [T, N]` rank its members, the highest first."""
    called, top = [], []
    for row, held, theirs in zip(values, keep, lira, strict=True):
        order = np.flatnonzero(held)[np.argsort(-row[held], kind="stable")]
        called.append((theirs[order[: held.sum() // 100]] > bar).mean())
        top.append(most[order[: (most & held).sum()]].mean() if (most & held).any() else np.nan)
    return np.array(called), np.array(top)


# Single models, but for the last line and LiRA.
orders = {
    "lt_iqr": scores["lt_iqr"],
    "highest loss at the end": -scores["loss_threshold"],
    **{f"highest loss at {name}": -attacks.loss_threshold(signals[name], keep) for name in stages},
    "LiRA's own scores": lira,
    "by chance": np.random.default_rng(0).uniform(size=keep.shape),
    "lt_iqr, mean over the models that hold it": np.broadcast_to(
        np.nanmean(np.where(keep, scores["lt_iqr"], np.nan), axis=0), keep.shape
    ),
}
print(f"{'members ranked by':44} called           top")
for name, values in orders.items():
    figures = (
        f"{100 * each.mean():5.1f} +- {100 * each.std(ddof=1) / np.sqrt(len(each)):.1f} %"
        for each in precisions(values)
    )
    print(f"{name:44} {'  '.join(figures)}")
