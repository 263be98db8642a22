"""Every attack on one pool: a table of what each reads and needs, and one way to call them."""

import contextlib
import dataclasses
import difflib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from lira.attacks import (
    bavaria,
    calibration,
    classifier,
    likelihood_ratio,
    multivariate,
    proxies,
    quantile,
    rank,
    relative,
    threshold,
    trajectory,
)
from lira.attacks._pool import MANY_MODELS, Leave, SignalArray, ThinPoolError, UnfitPoolError, require_arrays
from lira.attacks.p_values import (
    PValues,
    conformal_p_values,
    offline_fixed_p_values,
    offline_p_values,
    online_fixed_p_values,
    online_p_values,
    rank_p_values,
)
from lira.attacks.thin import Columns, have_enough, left_out
from lira.cache import keep_compilations
from lira.membership import is_paired
from lira.numbers import as_array, require_unmasked
from lira.parallel import MEMORY, side_by_side
from lira.signals import checkpoints

__all__ = [
    "ATTACKS",
    "Attack",
    "Pool",
    "attack_groups",
    "attack_pool",
    "call_attack",
    "call_where_enough",
    "missing_signals",
    "pool_p_values",
    "select_attacks",
]

# What an attack takes at its peak beside the signals, about: its scores, and ranks or odds of all of them in float64.
BYTES_A_SCORE = 64
# An attack is left out altogether where it could score fewer than this share of the examples.
LEAST_SCORED = 0.5


@dataclass(frozen=True, eq=False)
class Pool:
    """What is attacked and with what: M shadow models and, where given, T outside targets."""

    signals: Mapping[str, SignalArray]
    """phi [M, N, Q]; where known entropy and modified_entropy [M, N, Q], logits [M, N, Q, C], and phi at checkpoints of
    training, such as phi@0.25 [M, N, Q]"""
    keep: np.ndarray
    """bool [M, N]"""
    target: Mapping[str, SignalArray] | None = None
    """the same of outside targets, with T in place of M; None attacks every model of the pool"""
    population: SignalArray | None = None
    """phi of the pool's models at public points [M, Z, Q]"""
    target_population: SignalArray | None = None
    """phi of the outside targets at them [T, Z, Q]"""
    features: ArrayLike | None = None
    """of the examples [N, F], of nothing that was trained on them"""
    population_features: ArrayLike | None = None
    """of the public points [Z, F]"""
    labels: np.ndarray | None = None
    """of the examples, int [N], where all are known"""
    independent: bool = False
    """whether it is known, or was declared, that each bit of what is attacked's membership (of one model of each pair) is
    a coin of its own, all of one probability"""

    def __post_init__(self) -> None:
        """Raise ValueError where what stands for an array is none, or has masked elements."""
        require_arrays({"keep": self.keep, **self.signals, **(self.target or {})})
        beside = ("population", "target_population", "features", "population_features", "labels")
        require_unmasked({name: getattr(self, name) for name in beside})

    @property
    def leave(self) -> Leave:
        """What is left out with a target: its pair, or in pools of other designs itself, with equal counts or without."""
        if is_paired(self.keep):
            return "pair"
        return "independent" if self.independent else "one"

    def at(self, examples: np.ndarray) -> "Pool":
        """The pool of some examples, int `[n]` ascending, that were chosen by their counts: no longer independent coins."""

        def chosen(signals: Mapping[str, SignalArray]) -> dict[str, SignalArray]:
            return {name: Columns(signal, examples) for name, signal in signals.items()}

        return dataclasses.replace(
            self,
            signals=chosen(self.signals),
            keep=self.keep[:, examples],
            target=None if self.target is None else chosen(self.target),
            features=None if self.features is None else as_array(self.features)[examples],
            labels=None if self.labels is None else self.labels[examples],
            independent=False,
        )


@dataclass(frozen=True)
class Attack:
    """An attack: its function, and what of a `Pool` it is called with besides the memberships."""

    function: Callable[..., np.ndarray]
    """of (signal [M, N, ...], keep [M, N]), with `target` and `leave` and what it needs and takes by keyword"""
    signal: Literal["phi", "entropy", "modified_entropy", "classifier_features", "trajectory"] = "phi"
    """its first argument; the features of the classifier are made of phi, and entropy and logits where known, the
    trajectory of phi and its checkpoints"""
    needs: tuple[str, ...] = ()
    """fields of the pool that it cannot do without"""
    takes: tuple[str, ...] = ()
    """fields that it takes where the pool has them"""
    uses_shadows: bool = True
    """whether it consults models other than the attacked one"""
    p_values: Callable[..., PValues] | None = None
    """where its null distribution is known: its p-values, called like the function"""

    def read(self, signals: Mapping[str, SignalArray]) -> SignalArray:
        """The attack's first argument, from the signals of pool or targets."""
        if self.signal == "classifier_features":
            return classifier.classifier_features(
                signals["phi"], entropy=signals.get("entropy"), logits=signals.get("logits")
            )
        if self.signal == "trajectory":
            return trajectory.phi_trajectory(signals)
        return signals[self.signal]

    def missing(self, pool: Pool) -> str | None:
        """What the attack reads and the pool, or its targets, does not hold; None where nothing is missing."""
        sides = [side for side in (pool.signals, pool.target) if side is not None]
        reads = ["phi" if self.signal == "classifier_features" else self.signal]
        if self.signal == "trajectory":  # the same stages of all
            reads = checkpoints({name for side in sides for name in side}) or ["checkpoints of phi"]
        for name in reads:
            if any(name not in side for side in sides):
                return name
        return next((name.replace("_", " ") for name in self.needs if getattr(pool, name) is None), None)


POPULATIONS = ("population", "target_population")
ATTACKS: dict[str, Attack] = {
    "lira_online": Attack(likelihood_ratio.lira_online, p_values=online_p_values),
    "lira_online_fixed": Attack(likelihood_ratio.lira_online_fixed, p_values=online_fixed_p_values),
    "lira_online_multivariate": Attack(multivariate.lira_online_multivariate),
    "lira_online_trajectory": Attack(trajectory.lira_online_trajectory, "trajectory"),
    "lira_offline": Attack(likelihood_ratio.lira_offline, p_values=offline_p_values),
    "lira_offline_fixed": Attack(likelihood_ratio.lira_offline_fixed, p_values=offline_fixed_p_values),
    "bavaria_online": Attack(bavaria.bavaria_online),
    "bavaria_offline": Attack(bavaria.bavaria_offline),
    "pmia_global_fixed": Attack(partial(proxies.pmia, proxy="global", fixed=True)),
    "pmia_class": Attack(partial(proxies.pmia, proxy="class"), needs=("labels",)),
    "pmia_class_fixed": Attack(partial(proxies.pmia, proxy="class", fixed=True), needs=("labels",)),
    "pmia_neighbours_fixed": Attack(
        partial(proxies.pmia, proxy="neighbours", fixed=True), needs=("features",), takes=("labels",)
    ),
    "rmia_online": Attack(relative.rmia_online, takes=POPULATIONS),
    "rmia_offline": Attack(relative.rmia_offline, takes=POPULATIONS),
    "informia_online": Attack(relative.informia_online, takes=POPULATIONS),
    "informia_offline": Attack(relative.informia_offline, takes=POPULATIONS),
    "base": Attack(calibration.base),
    "difficulty_calibration": Attack(calibration.difficulty_calibration),
    "difficulty_calibration_both": Attack(calibration.difficulty_calibration_both),
    "attack_r": Attack(rank.attack_r, p_values=rank_p_values),
    "attack_p": Attack(rank.attack_p, takes=POPULATIONS, uses_shadows=False),
    "shadow_logistic": Attack(partial(classifier.shadow_classifier, kind="logistic"), "classifier_features"),
    "shadow_svc": Attack(partial(classifier.shadow_classifier, kind="svc"), "classifier_features"),
    "quantile_regression": Attack(
        quantile.quantile_regression,
        needs=("features", "population_features"),
        takes=POPULATIONS,
        uses_shadows=False,
    ),
    "global_threshold": Attack(threshold.global_threshold, uses_shadows=False),
    "loss_threshold": Attack(threshold.loss_threshold, uses_shadows=False),
    "confidence_threshold": Attack(threshold.confidence_threshold, uses_shadows=False),
    "entropy_threshold": Attack(threshold.entropy_threshold, "entropy", uses_shadows=False),
    "modified_entropy_threshold": Attack(
        threshold.modified_entropy_threshold, "modified_entropy", uses_shadows=False
    ),
    "lt_iqr": Attack(trajectory.lt_iqr, "trajectory", uses_shadows=False),
}


def select_attacks(names: Iterable[str]) -> dict[str, Attack]:
    """Attacks by name, in the order of the table.

    Raises:
        ValueError: a name is none of theirs.
    """
    names = set(names)
    if unknown := sorted(names - ATTACKS.keys()):
        close = [name for name in ATTACKS if unknown[0] and unknown[0].lower() in name]
        close = close or difflib.get_close_matches(unknown[0], ATTACKS, n=1)
        meant = (
            f"did you mean {' or '.join(map(repr, close))}?" if close else f"they are {', '.join(ATTACKS)}"
        )
        raise ValueError(f"there is no attack {unknown[0]!r}; {meant}")
    return {name: attack for name, attack in ATTACKS.items() if name in names}


def call_attack(attack: Attack, pool: Pool) -> np.ndarray:
    """Call an attack with what it reads, and whatever else it takes and the pool has.

    Returns:
        Scores float32 `[T, N]`, `[M, N]` without outside targets.

    Raises:
        UnfitPoolError: it cannot run on this pool, or reads what the pool does not hold.
    """
    missing = attack.missing(pool)
    if missing is not None:
        raise UnfitPoolError(
            f"it reads {missing}, which the pool does not hold: use global_threshold, which reads phi alone"
        )
    target = None if pool.target is None else attack.read(pool.target)
    fields = {name: getattr(pool, name) for name in (*attack.needs, *attack.takes)}
    given = {name: value for name, value in fields.items() if value is not None}
    return attack.function(attack.read(pool.signals), pool.keep, target=target, leave=pool.leave, **given)


def call_where_enough(attack: Attack, pool: Pool) -> np.ndarray:
    """`call_attack`, without the examples that have too few models for it on a side: see `thin`.

    Returns:
        Scores float32 `[T, N]`; NaN for all targets at the examples that are left out.

    Raises:
        UnfitPoolError: it cannot run on this pool, or on less than half of its examples.
    """
    needed: dict[str, int] = {}
    examples, part = np.arange(pool.keep.shape[1]), pool
    while True:
        try:
            found = call_attack(attack, part)
        except ThinPoolError as error:
            if error.side not in ("IN", "OUT") or needed.get(error.side, 0) >= error.needed:
                raise
            needed[error.side] = error.needed
            examples = np.flatnonzero(have_enough(pool.keep, needed, outside=pool.target is not None))
            if len(examples) < LEAST_SCORED * pool.keep.shape[1]:
                raise
            part = pool.at(examples)
        else:
            break
    if part is pool:
        return found
    scores = np.full((len(found), pool.keep.shape[1]), np.nan, np.float32)
    scores[:, examples] = found
    return scores


def attack_pool(pool: Pool, attacks: Mapping[str, Attack] = ATTACKS) -> dict[str, np.ndarray]:
    """Every attack that the pool allows, by name, side by side on all cores as far as memory goes.

    Those that read what it does not hold are passed over, see `missing_signals`. Examples that have too few models for an
    attack are left out of it, for all targets alike: their scores are NaN, see `call_where_enough`.

    What they compile is kept for later processes, see `keep_compilations`.

    Warns:
        UserWarning: naming each attack that cannot run on such a pool, and why; and examples that are left out of some.
    """
    keep_compilations()
    able = {name: attack for name, attack in attacks.items() if attack.missing(pool) is None}

    def scored(attack: Attack) -> np.ndarray | UnfitPoolError:
        try:
            return call_where_enough(attack, pool)
        except UnfitPoolError as error:
            return error

    size = (
        pool.keep.size
        if pool.target is None
        else max(len(pool.keep), pool.target["phi"].shape[0]) * pool.keep.shape[1]
    )
    results = side_by_side(scored, able.values(), bytes_each=BYTES_A_SCORE * size)
    scores = {}
    for name, result in zip(able, results, strict=True):
        if isinstance(result, UnfitPoolError):
            warnings.warn(f"{name} is left out: {result}", stacklevel=2)
        else:
            scores[name] = result
    N = pool.keep.shape[1]
    for sentence in left_out({name: np.flatnonzero(np.isnan(each[0])) for name, each in scores.items()}, N):
        warnings.warn(sentence, stacklevel=2)
    return scores


def attack_groups(attacks: Mapping[str, Attack], models: int, examples: int) -> Iterator[dict[str, Attack]]:
    """Attacks in groups for `attack_pool`: of small pools all, of large ones each alone, so that memory stays bounded.

    Args:
        attacks: by name.
        models: of the pool, or its targets if those are more.
        examples: that are attacked.
    """
    names, size = list(attacks), max(1, MEMORY // (BYTES_A_SCORE * models * examples))
    for start in range(0, len(names), size):
        yield {name: attacks[name] for name in names[start : start + size]}


def pool_p_values(pool: Pool, attacks: Mapping[str, Attack] = ATTACKS) -> Iterator[tuple[str, PValues]]:
    """The p-values of every attack that has them and that the pool allows, with its name, and ranks among non-members.

    One after the other, for those who need not hold all of them. The ranks are last, "conformal", of scores of
    `lira_online` where half of the pool is 64 models or more, of `lira_online_fixed` below (the paper's rule, which looks
    at no membership), and of the offline attacks where there are no IN models.
    """
    target = None if pool.target is None else pool.target["phi"]
    arguments = {"target": target, "leave": pool.leave}
    for name, attack in attacks.items():
        if attack.p_values is not None:
            with contextlib.suppress(UnfitPoolError):
                yield name, attack.p_values(pool.signals["phi"], pool.keep, **arguments)
    kind = "" if len(pool.keep) >= 2 * MANY_MODELS else "_fixed"  # half of them attack
    for name in (f"lira_online{kind}", f"lira_offline{kind}"):
        if name in attacks:
            with contextlib.suppress(UnfitPoolError):
                function = ATTACKS[name].function
                yield "conformal", conformal_p_values(function, pool.signals["phi"], pool.keep, **arguments)
                return


def missing_signals(pool: Pool, attacks: Mapping[str, Attack] = ATTACKS) -> dict[str, str]:
    """By attack what it reads and the pool does not hold."""
    missing = {name: attack.missing(pool) for name, attack in attacks.items()}
    return {name: what for name, what in missing.items() if what is not None}
