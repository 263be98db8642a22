"""Whether memberships may be what claims about epsilon take them for: coins of their own, of one probability a model."""

import numpy as np
from scipy import special

from lira.membership import pair_rows

__all__ = ["check_coins", "contradiction"]

# Standard errors, and the probability by a chi-square distribution, from which on memberships are not such coins.
LIMIT, LEVEL = 6.0, 1e-6
# Of fewer examples nothing is said: sums of a few are not normally distributed that far out.
FEWEST = 30


def check_coins(keep: np.ndarray, labels: np.ndarray | None = None) -> None:
    """Raise ValueError where memberships contradict what is declared of them, see `contradiction`."""
    if (why := contradiction(keep, labels)) is not None:
        raise ValueError(
            f"memberships are declared to be independent coins, and {why}: leave that out (--independent, or "
            f"independent=True), and no epsilon is claimed"
        )


def contradiction(keep: np.ndarray, labels: np.ndarray | None = None) -> str | None:
    """What speaks against memberships that are declared to be independent coins; None where nothing does.

    That nothing does is no proof. What cannot be found: members that were chosen by what is not known here, as clusters of
    one target's examples whose labels are not given and whose order was changed since, or by coins of probabilities that
    differ by example, of one target alone; balance within one target; and whatever fewer than thirty examples would show.
    What is found: counts of the examples that are more equal than those of coins, or less; members that lie together in
    the order of the examples; classes that models hold more of than of others.

    Args:
        keep: bool `[M, N]` of what is attacked, complementary pairs among them or none, each model's coins with a
            probability of their own.
        labels: int `[N]`; -1 where one is not known.

    Returns:
        What is found, for people, to follow "memberships are declared to be independent coins, and".

    >>> held = np.random.default_rng(0).random((1, 1000)) < 0.7
    >>> contradiction(held) is None, contradiction(np.sort(held, axis=1))
    (True, 'examples that stand side by side are more often, or less often, of one side than coins are')
    """
    keep = np.asarray(keep)
    rows = np.delete(keep, pair_rows(keep)[1::2], axis=0)
    rates = rows.mean(axis=1, keepdims=True)
    telling = ((rates > 0) & (rates < 1))[:, 0]
    rows, rates = rows[telling], rates[telling]
    if not len(rows) or rows.shape[1] < FEWEST:
        return None
    M, N = rows.shape
    total, squares, beside = np.zeros(N), np.zeros(N), 0.0
    # One model after the other: of a large pool all of them are a tenth of a gigabyte.
    for row, (rate,) in zip(rows, rates, strict=True):
        away = (row - rate) / np.sqrt(rate * (1 - rate))
        total, squares, beside = total + away, squares + np.square(away), beside + away[1:] @ away[:-1]
    # The sum over pairs of models of their products has mean 0, and its mean over N examples this standard error.
    together = 0.5 * (np.square(total) - squares)
    if M > 1 and abs(together.mean()) > LIMIT * np.sqrt(M * (M - 1) / 2 / N):
        return "examples are in more equal, or less equal, numbers of models than by coins"
    if abs(beside) > LIMIT * np.sqrt(M * N):
        return "examples that stand side by side are more often, or less often, of one side than coins are"
    if labels is not None and _differ_by_class(rows, rates, labels):
        return "models hold more of some classes than of others, by more than coins do"
    return None


def _differ_by_class(rows: np.ndarray, rates: np.ndarray, labels: np.ndarray) -> bool:
    """Whether members are more frequent in some classes: chi-square of all models together, with its exact variance."""
    labels = np.asarray(labels)
    known, classes = np.unique(labels[labels >= 0], return_inverse=True)
    if len(known) < 2:
        return False
    sizes = np.bincount(classes)
    held = np.stack([np.bincount(classes, row[labels >= 0], len(known)) for row in rows])
    variance = rates * (1 - rates)
    found = (np.square(held - sizes * rates) / (sizes * variance)).sum()
    spread = np.sqrt((2 + (1 - 6 * variance) / (sizes * variance)).sum())
    likely = special.chdtrc(len(rows) * len(known), found)
    return bool(found - held.size > LIMIT * spread and likely < LEVEL)
