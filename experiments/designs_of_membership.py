"""What an attack loses where shadow models hold fewer examples, or none of those that are attacked.

Command:   python experiments/designs_of_membership.py DIR
Duration:  five minutes on 2 busy CPU cores; the run directories stay in DIR.
Expected:  the table in experiments/README.md.

The recipe of digits.toml (1,797 examples, an MLP, no test set) and seeds 0 in every design: complementary pairs, independent
coins, and a disjoint pool of 32 targets and 32 shadow models. AUC and TPR are of each design's own targets, in Markdown.
"""

import argparse
import warnings
from pathlib import Path

import lira
from lira.metrics import Estimate
from lira.store.config import read_config

# By name the models and their design. Of the disjoint pool's size and number of others: 33 models of a quarter.
DESIGNS = {
    "pairs": (64, lira.Membership()),
    "coins .5": (64, lira.Membership("independent")),
    "coins .3": (64, lira.Membership("independent", 0.3)),
    "coins .25": (33, lira.Membership("independent", 0.25)),
    "disjoint .5": (64, lira.Membership("disjoint", 0.5, 32)),
}
ATTACKS = (
    "lira_online_fixed",
    "lira_offline_fixed",
    "bavaria_online",
    "bavaria_offline",
    "informia_offline",
    "base",
    "attack_r",
    "global_threshold",
)


def cell(figure: Estimate, scale: float, digits: int) -> str:
    low, high = scale * figure.low, scale * figure.high
    return f"{scale * figure.value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    place = parser.parse_args().directory
    config = read_config(Path(__file__).parent / "digits.toml")
    dataset = lira.load_dataset("digits")
    print(
        "| design | members a model | accuracy on others | attack | AUC | TPR at 0.1 % FPR, % | at 1 % FPR, % |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, (models, membership) in DESIGNS.items():
        directory = place / name.replace(" ", "_")
        run = lira.Run.create(directory, dataset, config.recipe, num_models=models, membership=membership)
        lira.train(run, dataset)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # attacks that a design does not allow
            attacks = lira.report(run, dataset).attacks
        facts = f"{name} | {run.keep.sum(axis=1).mean():.0f} | {100 * run.accuracy('out').mean():.1f} %"
        for attack in ATTACKS:
            if attack not in attacks:
                print(f"| {facts} | {attack} | not possible | | |", flush=True)
                continue
            figures = attacks[attack]
            points = (figures.tpr_at[fpr] for fpr in (1e-3, 1e-2))
            rates = [cell(Estimate(point.tpr, point.low, point.high), 100, 2) for point in points]
            print(f"| {facts} | {attack} | {cell(figures.auc, 1, 3)} | {' | '.join(rates)} |", flush=True)


if __name__ == "__main__":
    main()
