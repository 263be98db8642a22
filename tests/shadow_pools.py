"""Pools of shadow models in every design, and which models serve against which target: the oracle's own account."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from lira.attacks import Leave
from lira.attacks._parted import drop_lots
from lira.membership import have_independent_counts, keep_mask

MODES = ("pair", "balanced", "independent", "outside")
SIZES = ((4, 1), (10, 2))  # models, queries: few shapes, so that little is compiled
NUM_EXAMPLES, NUM_POINTS, NUM_OUTSIDE = 25, 17, 3


class Pool(NamedTuple):
    phi: np.ndarray  # float32 [M, N, Q]
    keep: np.ndarray  # bool [M, N]
    population: np.ndarray  # float32 [M, Z, Q]
    target: np.ndarray | None  # float32 [T, N, Q]
    target_population: np.ndarray | None  # float32 [T, Z, Q]
    mode: str

    @property
    def options(self) -> dict[str, Any]:
        """What an attack is told besides phi and keep."""
        leave: dict[str, Leave] = {"balanced": "one", "independent": "independent"}
        return {"target": self.target, "leave": leave.get(self.mode, "pair")}

    @property
    def populations(self) -> dict[str, Any]:
        return {"population": self.population, "target_population": self.target_population}


def gaussian_pool(M: int, T: int, N: int, gap: float) -> tuple[np.ndarray, ...]:
    """Phi IN N(gap, 1) and OUT N(0, 1) about each example's own centre: phi and keep of M models, and of T outside targets."""
    rng = np.random.default_rng(1)
    centre = rng.normal(0, 3, (1, N, 1))
    keep, keep_target = keep_mask(0, M, N), keep_mask(1, T, N)
    phi = (rng.standard_normal((M, N, 1), dtype=np.float32) + gap * keep[..., None] + centre).astype(
        np.float32
    )
    target = (rng.normal(size=(T, N, 1)) + gap * keep_target[..., None] + centre).astype(np.float32)
    return phi, keep, target, keep_target


class Target(NamedTuple):
    """One target and the models that serve against it."""

    own: np.ndarray  # float64 [N, Q]
    inside: np.ndarray  # bool [M, N], the IN models used for each example
    outside: np.ndarray  # bool [M, N]
    own_population: np.ndarray  # float64 [Z, Q]
    others: np.ndarray  # bool [M], the models used for held-out points


def make_pool(seed: int, mode: str, M: int, Q: int, *, ties: bool = False) -> Pool:
    """Draw a pool of one design; with `ties` phi is rounded to whole numbers."""
    rng = np.random.default_rng(seed)

    def draw(rows, columns):
        values = 2 * rng.normal(size=(rows, columns, Q)) + 1
        return (np.round(values) if ties else values).astype(np.float32)

    def coins():
        keep = rng.uniform(size=(M, NUM_EXAMPLES)) < 0.5
        keep[:2], keep[2:4] = True, False  # so that one is left on each side
        return keep

    if mode == "balanced":
        keep = np.argsort(rng.uniform(size=(M, NUM_EXAMPLES)), axis=0) < M // 2
    elif mode == "pair":
        keep = keep_mask(seed, M, NUM_EXAMPLES)
    else:
        keep = coins()
        while not have_independent_counts(keep):  # by chance; such a pool is cut to equal counts
            keep = coins()
    phi = draw(M, NUM_EXAMPLES) + keep[..., None]
    target, target_population = None, None
    if mode == "outside":
        target, target_population = draw(NUM_OUTSIDE, NUM_EXAMPLES), draw(NUM_OUTSIDE, NUM_POINTS)
    return Pool(phi, keep, draw(M, NUM_POINTS), target, target_population, mode)


def targets(pool: Pool) -> Iterator[Target]:
    """Say, for each target in turn, which models serve against it."""
    models = np.arange(len(pool.phi))
    if pool.target is not None:
        assert pool.target_population is not None
        for own, own_population in zip(pool.target, pool.target_population, strict=True):
            everyone = np.ones(len(models), bool)
            yield Target(own.astype(float), pool.keep, ~pool.keep, own_population.astype(float), everyone)
        return
    for t in models:
        others = models // 2 != t // 2 if pool.mode == "pair" else models != t
        inside, outside = pool.keep & others[:, None], ~pool.keep & others[:, None]
        if pool.mode == "balanced":
            inside, outside = left_of_balanced(pool.keep, int(t))
        yield Target(pool.phi[t].astype(float), inside, outside, pool.population[t].astype(float), others)


def draw_drops(rows: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Random numbers for the IN and the OUT side, uint32 `[T, n, 2]`: the targets' are one after another."""
    return drop_lots(examples) + rows[:, None, None].astype(np.uint32)


def left_of_balanced(keep: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
    """IN and OUT models, bool `[M, N]` each, of an exactly balanced pool without model t.

    The side that t is not on has one model more, and loses one of its models, whichever the draw says.
    """
    others = np.arange(len(keep)) != t
    sides = np.stack([keep & others[:, None], ~keep & others[:, None]])
    draws = draw_drops(np.array([t]), np.arange(keep.shape[1]))[0]
    for n, member in enumerate(keep[t]):
        candidates = np.flatnonzero(sides[int(member), :, n])
        sides[int(member), candidates[draws[n, int(member)] % len(candidates)], n] = False
    return sides[0], sides[1]


def without_others(array: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The rows of `array` [M, N, ...] that are used of each example, as many of all: `[c, N, ...]`."""
    return np.stack([array[used[:, n], n] for n in range(used.shape[1])], axis=1)


def probability(phi: np.ndarray) -> np.ndarray:
    return expit(np.asarray(phi, np.float64))


def loss(phi: np.ndarray) -> np.ndarray:
    return -np.log(probability(phi))
