"""Did training give the models that it should? Checks of accuracies and losses, as soon as the first models are there.

A check that *fails* makes the figures meaningless, one that *warns* makes them weaker or other than they look.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lira.engine.accuracies import published_accuracy
from lira.learning.recipe import Recipe, steps_per_epoch
from lira.metrics.alignment import FEW_EXAMPLES, chance_accuracy
from lira.store.run import Run

__all__ = [
    "HORIZONS",
    "LARGE",
    "Check",
    "check_accuracy",
    "check_averaging",
    "check_evaluation",
    "check_losses",
    "check_trained",
    "check_training",
    "unscaled",
]

# A moving average is of the weights, and not of their way there, from so many of its horizons on.
HORIZONS = 5
# Standard errors beyond which chance is no explanation: one run in 16,000.
LIMIT = 4.0
# Accuracy that nobody would mind losing, whatever the error.
MARGIN = 0.01
# Larger features than these are not standardised: bytes reach 1.
LARGE = 30.0
# Sources that are standardised where that is asked for.
TABLES = ("csv", "parquet", "hf")


class Check(NamedTuple):
    """What was looked at, "ok", "warn" or "fail", and what was found, in a sentence."""

    name: str
    status: str
    sentence: str


def check_trained(run: Run, models: np.ndarray) -> list[Check]:
    """The checks of what training gave, over the models given by index."""
    return [check for check in _checks(run, models) if check is not None]


def _checks(run: Run, models: np.ndarray) -> Iterator[Check | None]:
    inside, outside, test = (run.accuracy(side, models) for side in ("in", "out", "test"))
    known = ~np.isnan(inside)  # a model that holds no example has no accuracy on members
    if not known.any():
        yield Check("training", "warn", "the accuracy on members is not known, because there are no logits")
        return
    pool = len(run.labels) - run.config.num_canaries  # of which the accuracies are
    held = run.memberships(models[known])[:, :pool].sum(axis=1).mean()
    training = check_training(inside[known], outside[known], run.labels[:pool], held)
    if training.status == "fail" and (largest := run.provenance.get("largest_feature", 0)) > LARGE:
        training = training._replace(sentence=f"{training.sentence}; {unscaled(largest, run.config.dataset)}")
    # Beside the verdict's accuracies, which are of the attacked ones alone.
    everyone = (
        f"of all {known.sum()} models, attacked and others: "
        if run.num_targets and known.sum() > len(run.targets)
        else ""
    )
    yield training._replace(sentence=everyone + training.sentence)
    if run.is_foreign:
        return
    recipe, share, N = run.config.recipe, run.config.share(len(run.labels)), len(run.labels)
    yield check_averaging(recipe, steps_per_epoch(N, recipe.batch_size, share) * recipe.epochs)
    if run.outdated:
        yield Check("evaluation", "fail", run.outdated)
    elif run.holds("accuracy_raw_in"):
        sides = ["in", "out"] if np.isnan(test).any() else ["in", "out", "test"]
        counts = np.array([held, pool - held, run.num_test])[: len(sides)]
        answered, raw = (
            np.stack([run.accuracy(prefix + side, models) for side in sides]) for prefix in ("", "raw_")
        )
        yield check_evaluation(answered, raw, counts)
    if run.holds("loss_last_epoch") and not run.config.queries.masked:  # of what is released, then
        yield check_losses(run.losses("in", models), run.losses("last_epoch", models))
    if share == 0.5:  # as of those that are published
        yield check_accuracy(test, run.config.dataset, N, recipe)


def unscaled(largest: float, source: str) -> str:
    """What to do with features of such a size, of the data set of that name."""
    how = " (,standardise behind the table's name)" if source.partition(":")[0] in TABLES else ""
    return f"features reach {largest:.3g} in size: standardise them{how}"


# --- One check each -------------------------------------------------------------------------------------------------


def check_averaging(recipe: Recipe, total_steps: int) -> Check | None:
    """A moving average against the length of the training; None without one."""
    if not recipe.ema:
        return None
    horizon = 1 / (1 - recipe.ema)
    text = f"the average of the weights reaches back {horizon:,.0f} steps, and a training has {total_steps:,}"
    if round(total_steps / horizon, 6) < HORIZONS:
        return Check(
            "averaging",
            "warn",
            f"{text}: below {HORIZONS} times as many it holds weights of early, worse models; lower recipe.ema to "
            f"{max(0.0, 1 - HORIZONS / total_steps):.3g} or train longer",
        )
    return Check("averaging", "ok", text)


def check_training(inside: np.ndarray, outside: np.ndarray, labels: np.ndarray, held: float) -> Check:
    """Accuracy on members and on the others, float `[M]` each: does a model know its members, `held` on average, at all?"""
    chance = chance_accuracy(labels)
    text = f"accuracy on members {100 * inside.mean():.1f} %"
    if not np.isnan(outside).all():  # of models that hold all examples there are no others
        text += f", on the others {100 * outside.mean():.1f} %"
    error = np.sqrt(chance * (1 - chance) / held)
    if inside.mean() <= chance + 2 * error:
        text += f", and {100 * chance:.1f} % needs no model"
        # A good model of classes as unequal, or of so few examples, may do no better.
        if 2 * chance > 1 + 1 / len(np.unique(labels)) or held < FEW_EXAMPLES / 2:
            sentence = f"{text}: see by other figures than accuracy that these models know their members"
            return Check("training", "warn", sentence)
        return Check("training", "fail", f"{text}: there is nothing to attack")
    if inside.mean() < 0.9:
        return Check("training", "warn", f"{text}: undertrained models make every attack look weak")
    return Check("training", "ok", text)


def check_evaluation(answered: np.ndarray, raw: np.ndarray, counts: np.ndarray) -> Check:
    """The models that are asked against the weights as they were trained: averaging must not make them worse.

    Args:
        answered: accuracies of the models that are asked, float `[sides, M]`: on members, on the others, and on a test
            set where there is one.
        raw: the same of the weights as they were trained.
        counts: examples of each side, `[sides]`.
    """
    means, raw_means = answered.mean(axis=1), raw.mean(axis=1)
    # Of two independent models; these are not, so that the difference has less.
    error = np.sqrt(2 * raw_means * (1 - raw_means) / (np.asarray(counts) * answered.shape[1]))
    worse = raw_means - means
    text = (
        f"accuracy of the averaged weights {', '.join(f'{100 * mean:.1f} %' for mean in means)} and of the last ones "
        f"{', '.join(f'{100 * mean:.1f} %' for mean in raw_means)} on members and others"
    ) + (" and the test set" if len(means) > 2 else "")
    if (worse > np.maximum(LIMIT * error, MARGIN)).any():
        return Check(
            "evaluation",
            "fail",
            f"{text}: the models that are asked are not those that were trained; see recipe.ema and recipe.statistics",
        )
    return Check("evaluation", "ok", text)


def check_losses(loss_in: np.ndarray, loss_last_epoch: np.ndarray) -> Check:
    """The members' loss at the queries against that of the last epoch of training, float `[M]` each.

    Training asks in training mode about augmented images, so its loss is the larger one, unless what is asked in
    evaluation mode is another model.
    """
    asked, trained = float(loss_in.mean()), float(loss_last_epoch.mean())
    text = f"mean loss of members {asked:.3g} at the queries, {trained:.3g} in the last epoch of training"
    if asked > 2 * trained and asked > trained + 0.1:
        return Check(
            "losses",
            "warn",
            f"{text}: models are worse when asked than when trained: look at norms, dropout and recipe.ema",
        )
    return Check("losses", "ok", text)


def check_accuracy(
    accuracy_test: np.ndarray, dataset: str, num_examples: int, recipe: Recipe
) -> Check | None:
    """Test accuracy, float `[M]`, against that published of this data set, model and recipe; None where none is."""
    known = published_accuracy(dataset, num_examples, recipe)
    mean = float(accuracy_test.mean())
    if known is None or np.isnan(mean):
        return None
    text = f"test accuracy {100 * mean:.1f} %; {known.source}: {100 * known.low:.0f} % to {100 * known.high:.0f} %"
    if mean < known.low - MARGIN:
        status = "warn" if known.differs else "fail"
        other = f" (with another recipe: {'; '.join(known.differs)})" if known.differs else ""
        return Check("accuracy", status, f"{text}{other}: these models are worse than the published ones")
    return Check("accuracy", "ok", text)
