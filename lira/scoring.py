"""Scoring a run: every attack on every usable model, from what is stored."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import DTypeLike

from lira.attacks import SignalArray
from lira.attacks.suite import ATTACKS, Attack, Pool, attack_groups, attack_pool
from lira.data.dataset import Dataset
from lira.parallel import give_memory_back
from lira.store.arrays import DIVERGED
from lira.store.errors import RunError
from lira.store.files import require_writable
from lira.store.run import Run

__all__ = ["HELD", "StoredScores", "canary_pool", "pool_of", "score", "score_each"]

# Patches along each axis of an image whose means are its features.
PATCHES = 8
# Signals of at most so many bytes are read into memory once; larger ones in blocks, by each attack anew.
HELD = 1 << 29


@dataclass(frozen=True)
class StoredScores(Mapping[str, np.ndarray]):
    """Scores by attack, float32 `[T, N]`, read whenever they are asked for: all together may be larger than the memory."""

    attacks: tuple[str, ...]
    read: Callable[[str], np.ndarray] = field(repr=False)

    def __getitem__(self, attack: str) -> np.ndarray:
        """Scores of one attack."""
        if attack not in self.attacks:
            raise KeyError(attack)
        return self.read(attack)

    def __iter__(self) -> Iterator[str]:
        """In the order of `suite.ATTACKS`."""
        return iter(self.attacks)

    def __len__(self) -> int:
        return len(self.attacks)


def score(
    run: Run,
    dataset: Dataset | None = None,
    *,
    pool: Pool | None = None,
    attacks: Mapping[str, Attack] | None = None,
) -> StoredScores:
    """Every attack on every usable model of the run, computed where the stored scores are absent or out of date.

    A target's whole pair is left out where the memberships are complementary pairs, in pools of another design the
    target alone.

    Args:
        run: the run.
        dataset: its data, whose features `quantile_regression` and `pmia_neighbours_fixed` read; None goes without them.
        pool: `pool_of(run, dataset)`, where it is there already.
        attacks: by name, see `suite.select_attacks`; None: all.

    Returns:
        Scores `[t, n]` by attack, of `run.targets` at the examples `run.audited`: all, unless disjoint. They are read from
        the run when they are asked for; `dict(score(run))` holds all. Attacks that cannot run on such a pool are left out,
        with a warning; those that read what is not stored, silently (see `suite.missing_signals`).

    Raises:
        RunError: too few trained models are usable, or the data are not the run's.
    """
    run, asked = run.as_it_stands(), ATTACKS if attacks is None else attacks

    def read(attack: str) -> np.ndarray:
        scores = run.scores(attack, features=_features_read(asked[attack], dataset))
        if scores is None:  # another process has scored the run since, with more models or of other features
            scores = attack_pool(pool_of(run, dataset), {attack: asked[attack]})[attack]
        return scores

    return StoredScores(tuple(name for name, _ in score_each(run, dataset, pool=pool, attacks=attacks)), read)


def score_each(
    run: Run,
    dataset: Dataset | None = None,
    *,
    pool: Pool | None = None,
    attacks: Mapping[str, Attack] | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """`score`, one attack after the other: name and scores, for those who need not hold all of them."""
    run = run.as_it_stands()
    if dataset is not None:
        run.require_same_data(dataset)
    _require_attackable(run)
    _require_enough(run)
    signals = run.fingerprint()
    models = max(len(run.shadows), len(run.targets))
    for group in attack_groups(ATTACKS if attacks is None else attacks, models, len(run.audited)):
        features = {name: _features_read(attack, dataset) for name, attack in group.items()}
        stored = {name: run.scores(name, signals, features[name]) for name in group}
        scores = {name: each for name, each in stored.items() if each is not None}
        if absent := {name: attack for name, attack in group.items() if name not in scores}:
            require_writable(run.path, f"for the scores of {', '.join(absent)}")
            pool = _held(pool or pool_of(run, dataset))
            computed = attack_pool(pool, absent)
            with run.lock():
                for name, fresh in computed.items():
                    run.write_scores(name, fresh, signals, features[name] or "")
            scores |= computed
            del computed  # while the next are computed, what was read of these may be let go
            give_memory_back()
        yield from ((name, scores[name]) for name in group if name in scores)


def _features_read(attack: Attack, dataset: Dataset | None) -> str | None:
    """The fingerprint of the data whose features an attack reads, which of models of other code may be any; None without."""
    return dataset.fingerprint if dataset is not None and "features" in attack.needs else None


def _require_attackable(run: Run) -> None:
    """Raise RunError where every model is trained on all examples of the pool."""
    if run.config.membership.design == "all":
        raise RunError(
            f"{run.path}: its models are trained on the whole pool, and canaries alone can be attacked: lira audit-one does"
        )


def _require_enough(run: Run) -> None:
    """Raise RunError where too few models are trained for any attack."""
    if run.is_imported:
        return
    usable, done = len(run.models), run.done
    remedy = "train it first"
    if (done != 0).all():
        remedy = "it was made of too few: grow it by --num-models"
    if done.all() and (diverged := int(np.sum(done == DIVERGED))):
        remedy = (
            f"{diverged} of {len(done)} models diverged: train a pool of a lower learning rate, or of standardised "
            f"features, in another directory"
        )
    if run.config.membership.design == "pairs" and usable < 4:
        raise RunError(
            f"{run.path}: has {usable // 2} complete pairs of models, and the attacks need two: {remedy}"
        )
    targets, others = len(run.targets), len(run.shadows) - (not run.num_targets)
    if targets < 1 or others < 2:
        raise RunError(
            f"{run.path}: has {usable} trained models, {targets} of them to be attacked by {max(others, 0)} others each, and "
            f"the attacks need one and two: {remedy}"
        )


def pool_of(run: Run, dataset: Dataset | None = None) -> Pool:
    """The run's usable models as the attacks see them; arrays stay on disk, and features undone, until they are read.

    Where some models are attacked by the others they are outside targets; of a disjoint run the examples are those that may
    be their members.
    """
    run = run.as_it_stands()
    _require_attackable(run)
    return _pool_at(run, run.audited, dataset)


def canary_pool(run: Run) -> Pool:
    """The same at the canaries, whose memberships are fair coins, each of its own, whatever the pool's design."""
    run = run.as_it_stands()
    return dataclasses.replace(_pool_at(run, run.canaries, None), independent=True)


def _pool_at(run: Run, at: np.ndarray, dataset: Dataset | None) -> Pool:
    """The usable models at some examples, by index."""
    labels = run.labels[at]
    features = population_features = None
    if dataset is not None:
        features = _Features(dataset.x[at], dataset.y[at], dataset.num_classes)
        if dataset.x_test is not None and dataset.y_test is not None:
            population_features = _Features(dataset.x_test, dataset.y_test, dataset.num_classes)
    names = run.signals
    targets = run.targets if run.num_targets else None
    examples = at if len(at) < len(run.labels) else None
    of_targets = targets is not None and run.holds("phi_test")
    return Pool(
        {name: run.signal(name, run.shadows, examples) for name in names},
        run.memberships(run.shadows)[:, at],
        None if targets is None else {name: run.signal(name, targets, examples) for name in names},
        population=run.signal("phi_test", run.shadows) if run.holds("phi_test") else None,
        target_population=run.signal("phi_test", targets) if of_targets else None,
        features=features,
        population_features=population_features,
        labels=labels if (labels >= 0).all() else None,
        independent=run.independent,
    )


def _held(pool: Pool) -> Pool:
    """The pool with what is not too large read into memory, once for all attacks."""

    def read(signal: SignalArray | None) -> SignalArray | None:
        if signal is None or 4 * math.prod(signal.shape) > HELD:
            return signal
        return np.asarray(signal)

    def read_all(signals: Mapping[str, SignalArray]) -> dict[str, SignalArray]:
        return {name: signal for name, each in signals.items() if (signal := read(each)) is not None}

    return dataclasses.replace(
        pool,
        signals=read_all(pool.signals),
        target=None if pool.target is None else read_all(pool.target),
        population=read(pool.population),
        target_population=read(pool.target_population),
    )


@dataclass(frozen=True, eq=False)
class _Features:
    """What is public of examples, see `_features`; computed when it is read, which few attacks do."""

    x: np.ndarray
    y: np.ndarray
    num_classes: int

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """The features."""
        return _features(self.x, self.y, self.num_classes).astype(dtype or np.float32, copy=False)


def _features(x: np.ndarray, y: np.ndarray, num_classes: int) -> np.ndarray:
    """What is public of examples, float32 `[N, F]`: their features, and their labels as one-hot columns.

    Of images the means of PATCHES x PATCHES patches, which is as fine as a regression on them can use.
    """
    if x.ndim == 4:
        for axis in (1, 2):
            edges = np.unique(np.linspace(0, x.shape[axis], PATCHES, endpoint=False, dtype=int))
            counts = np.diff(np.append(edges, x.shape[axis]))
            sums = np.add.reduceat(x, edges, axis=axis, dtype=np.float32)
            x = sums / counts.reshape([-1 if a == axis else 1 for a in range(4)])
    return np.concatenate([x.reshape(len(x), -1), np.eye(num_classes)[y]], axis=1, dtype=np.float32)
