"""What a grid's page and document say: sentences, differences, how to read them, and all figures as JSON."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lira.metrics import Estimate
from lira.reporting.document import operating_point, with_interval
from lira.reporting.figures import known, percent, rate, signed
from lira.reporting.grid_figures import CONFIDENCE, GridDifference, GridFigures
from lira.reporting.grid_plots import accuracy_label, fields_varied
from lira.reporting.page import embedded, named_values, render_page
from lira.store.config import Config, as_dict
from lira.store.run import Run

__all__ = ["grid_document", "grid_page", "in_sentences"]


def in_sentences(grid: GridFigures) -> list[str]:
    """The findings, in plain words: the front first, then each setting on it beside the reference."""
    S = len(grid.settings)
    front = sorted(grid.front, key=lambda name: -grid.settings[name].accuracy)
    if S == 1:
        sentences = [f"One setting, {grid.reference}: there is nothing to compare."]
    elif len(front) == 1:
        sentences = [_best_in_words(grid, front[0])]
    else:
        sentences = [
            f"On the front are {len(front)} of {S} settings: by its points no other one is as accurate and leaks less."
        ]
    sentences += [_in_words(grid, name) for name in front if name != grid.reference]
    if broken := _above_proof(grid):
        sentences.append(
            f"Measured above the proven epsilon: {', '.join(broken)}. Chance does so in one grid of 20; else the training is "
            f"not what its proof is of."
        )
    return sentences


def _best_in_words(grid: GridFigures, name: str) -> str:
    """A setting that is alone on the front, and how far the others are really behind it."""
    less = [grid.difference(name, other) for other in grid.settings if other != name]
    leakage = [each.auc if grid.settings[name].tpr is None else each.tpr for each in less]
    accurate, private = sum(each.accuracy.low > 0 for each in less), sum(each.high < 0 for each in leakage)
    ahead = f"{name} is the most accurate and leaks least by its points"
    others = "the other setting" if len(less) == 1 else f"any of the {len(less)} other settings"
    if not accurate and not private:
        return (
            f"{ahead}, but its difference from {others} is within its interval, in both: that may be chance."
        )
    if len(less) == 1:
        surely = [word for word, sure in (("is more accurate", accurate), ("leaks less", private)) if sure]
        rest = ", in the other it may be chance" if len(surely) == 1 else ""
        return f"{ahead}. Beyond the interval of the difference it {' and '.join(surely)}{rest}."
    return (
        f"{ahead}. Beyond the interval of the difference it is more accurate than {accurate} of the {len(less)} other "
        f"settings, and leaks less than {private}."
    )


def _in_words(grid: GridFigures, name: str) -> str:
    """A setting on the front beside the reference."""
    each, base, less = (
        grid.settings[name],
        grid.settings[grid.reference],
        grid.difference(name, grid.reference),
    )
    points = f"{signed(less.accuracy, 1, scale=100)} points of accuracy"
    if each.tpr is None or base.tpr is None:
        return f"{name} beside {grid.reference}: AUC {each.auc.value:.3f} for {base.auc.value:.3f}, {points}."
    certain = "" if _beyond(less.tpr) else ", a difference within its interval"
    more = ""
    if each.strongest is not None and each.strongest.low > each.tpr.high:
        more = f" But {each.strongest.attack} finds {percent(each.strongest.tpr)} there."
    return (
        f"{name} beside {grid.reference}: TPR {rate(each.tpr).value} for {rate(base.tpr).value} at {100 * each.tpr.fpr:g} % "
        f"FPR{certain}, {points}.{more}"
    )


def _above_proof(grid: GridFigures) -> list[str]:
    """Settings whose lower bound exceeds what was proven."""
    return [
        name
        for name, each in grid.settings.items()
        if each.proven is not None
        and each.epsilon is not None
        and each.epsilon.together > each.proven.epsilon
    ]


def grid_page(
    grid: GridFigures,
    pictures: Mapping[str, bytes],
    config: Config,
    runs: Mapping[str, Run],
    warnings: Sequence[str],
) -> str:
    """The page. Everything that comes from outside is escaped by the template."""
    return render_page(
        "grid.html.j2",
        title="Utility against leakage: a grid of settings",
        grid=grid,
        sentences=in_sentences(grid),
        accuracy=accuracy_label(grid),
        pictures={name: embedded(content) for name, content in pictures.items()},
        fields=", ".join(fields_varied(grid)),
        bounded=grid.no_epsilon is None,
        proven=any(each.proven is not None for each in grid.settings.values()),
        infinity=float("inf"),
        differences={
            name: _cells(grid, grid.difference(name, grid.reference))
            for name in grid.settings
            if name != grid.reference
        },
        reading=_reading(grid),
        facts=_facts(config, runs),
        warnings=warnings,
    )


def _cells(grid: GridFigures, less: GridDifference) -> list[tuple[str, str, bool]]:
    """Of a row of differences: value, interval, and whether 0 lies beyond it."""
    parts = [(less.accuracy, 2, 100.0), (less.tpr, 3, 100.0), (less.auc, 3, 1.0)]
    cells = []
    for estimate, digits, scale in parts if grid.fpr is not None else (parts[0], parts[2]):
        value, _, interval = signed(estimate, digits, scale=scale).partition(" ")
        cells.append((value, interval.strip("[]"), _beyond(estimate)))
    return cells


def _beyond(estimate: Estimate) -> bool:
    return estimate.low > 0 or estimate.high < 0


def _reading(grid: GridFigures) -> dict[str, str]:
    """What the figures are, and how far they hold where one setting is chosen from several."""
    S = len(grid.settings)
    reading = {
        "The attacker": "knows the setting: the shadow models that the attack learns from are trained and asked by it, too. "
        "Masked confidences are attacked as they are released. One attack is compared over all settings: that which the "
        "number of models declares, unless another was named. The "
        "strongest of all that were run on a setting stands beside it, chosen by that very figure. An attack that is made for "
        "one defence may find more.",
        "Intervals": f"of TPR, AUC and differences: {grid.interval}. Each is by itself: of {S} settings one interval in 20 "
        f"misses by chance, and none is corrected for choosing among them.",
        "The front": "is chosen from the very figures that stand beside it, so its settings look somewhat better here than they "
        "would in new models. Settings whose paired difference lies within its interval are not told apart.",
    }
    if grid.no_epsilon is None:
        reading["Measured epsilon"] = (
            f"a lower bound on that of a training, from memberships as independent coins (Steinke et al. 2023), the median over "
            f"targets, with thresholds from other targets. It holds with 95 % by itself. Together: each with "
            f"{percent(grid.confidence)}, so that all {S} hold with 95 %, whichever one is picked. They are of "
            f"the one attack that is compared; naming it after a look at scores is not corrected for."
        )
    if guarantees := [each.proven for each in grid.settings.values() if each.proven is not None]:
        kinds = ", ".join(dict.fromkeys(f"{each.adjacency}" for each in guarantees))
        reading["Proven epsilon"] = (
            f"an upper bound on that of one training by one setting (adjacency: {kinds}), at the same delta as the measured one. "
            f"Choosing a setting by looking at its models is not accounted for. It holds for randomness that stays secret: the "
            f"seeds of these runs are published with them, so these models are for audits, not for release."
        )
    return reading


def _facts(config: Config, runs: Mapping[str, Run]) -> dict[str, str]:
    """What the page says about the runs."""
    seconds = {
        name: sum(each["seconds"] for each in run.provenance["sessions"]) for name, run in runs.items()
    }
    facts = {
        "data set": config.dataset,
        "models": f"{config.num_models} of each setting, memberships by seed {config.membership_seed}: "
        f"{config.membership.in_words()}",
        "recipe of the configuration": named_values(as_dict(config.recipe)),
        "queries of the configuration": named_values(dataclasses.asdict(config.queries)),
        "training": "; ".join(f"{name} {each:.0f} s" for name, each in seconds.items()),
    }
    return {**facts, "versions": named_values(next(iter(runs.values())).provenance["versions"])}


def grid_document(
    grid: GridFigures, over: Mapping[str, Sequence[Any]], failed: Mapping[str, str]
) -> dict[str, Any]:
    """The content of grid.json."""
    return {
        "description": "of settings on the same memberships; rates are fractions, differences the first less the second",
        "over": {field: [_plain(value) for value in values] for field, values in over.items()},
        "attack": grid.attack,
        "fpr": grid.fpr,
        "accuracy_on": grid.side,
        "interval": grid.interval,
        "interval_is": "of each figure by itself, not corrected for choosing among settings",
        "num_models": grid.num_models,
        "num_examples": grid.num_examples,
        "front": list(grid.front),
        "reference": grid.reference,
        "epsilon_confidence": {"alone": CONFIDENCE, "together": CONFIDENCE, "together_each": grid.confidence},
        "no_epsilon": grid.no_epsilon,
        "settings": {
            name: {
                "values": {field: _plain(value) for field, value in each.values.items()},
                "directory": each.directory,
                "accuracy": known(each.accuracy),
                "accuracy_spread": known(each.spread),
                "accuracy_in": known(each.accuracy_in),
                "tpr_at_fpr": None if each.tpr is None else operating_point(each.tpr),
                **with_interval("auc", each.auc),
                "strongest": each.strongest
                and {
                    name: known(v) if name != "attack" else v for name, v in each.strongest._asdict().items()
                },
                "epsilon_at_least": None if each.epsilon is None else each.epsilon._asdict(),
                "epsilon_proven": None if each.proven is None else _plain(each.proven.epsilon),
                "delta": each.delta,
            }
            for name, each in grid.settings.items()
        },
        "differences": [
            {
                "of": later,
                "less": earlier,
                **with_interval("accuracy", each.accuracy),
                **with_interval("tpr", each.tpr),
                **with_interval("auc", each.auc),
            }
            for (later, earlier), each in grid.differences.items()
        ],
        "failed": dict(failed),
    }


def _plain(value: Any) -> Any:
    """A value as JSON holds it; infinity in words."""
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value
