"""Every attack on one pool, called the one way: what each reads is found by the names of its arguments."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from lira import attacks
from lira.attacks import FewModelsError, SignalArray, classifier_features
from lira.cache import keep_compilations
from lira.membership import is_paired

__all__ = [
    "ATTACKS",
    "NO_SHADOWS",
    "MissingSignalError",
    "Pool",
    "attack_pool",
    "call_attack",
    "missing_signals",
    "read_signal",
]

ATTACKS: dict[str, Callable[..., np.ndarray]] = {
    "lira_online": attacks.lira_online,
    "lira_online_fixed": attacks.lira_online_fixed,
    "lira_online_multivariate": attacks.lira_online_multivariate,
    "lira_offline": attacks.lira_offline,
    "lira_offline_fixed": attacks.lira_offline_fixed,
    "bavaria_online": attacks.bavaria_online,
    "bavaria_offline": attacks.bavaria_offline,
    "rmia_online": attacks.rmia_online,
    "rmia_offline": attacks.rmia_offline,
    "base": attacks.base,
    "difficulty_calibration": attacks.difficulty_calibration,
    "difficulty_calibration_both": attacks.difficulty_calibration_both,
    "attack_r": attacks.attack_r,
    "attack_p": attacks.attack_p,
    "shadow_logistic": partial(attacks.shadow_classifier, kind="logistic"),
    "shadow_svc": partial(attacks.shadow_classifier, kind="svc"),
    "quantile_regression": attacks.quantile_regression,
    "global_threshold": attacks.global_threshold,
    "loss_threshold": attacks.loss_threshold,
    "confidence_threshold": attacks.confidence_threshold,
    "entropy_threshold": attacks.entropy_threshold,
    "modified_entropy_threshold": attacks.modified_entropy_threshold,
}


# These look at the attacked model alone.
NO_SHADOWS = (
    "attack_p",
    "quantile_regression",
    "global_threshold",
    "loss_threshold",
    "confidence_threshold",
    "entropy_threshold",
    "modified_entropy_threshold",
)


class MissingSignalError(ValueError):
    """An attack reads what the pool does not hold; the message names it."""


@dataclass(frozen=True, eq=False)
class Pool:
    """What is attacked and with what: M shadow models and, where given, T outside targets."""

    signals: Mapping[str, SignalArray]
    """phi [M, N, Q]; where known entropy and modified_entropy [M, N, Q], logits [M, N, Q, C]"""
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

    @property
    def leave(self) -> str:
        """What is left out with a target: its pair, or in pools of other designs itself alone."""
        return "pair" if is_paired(self.keep) else "one"


def call_attack(attack: Callable[..., np.ndarray], pool: Pool) -> np.ndarray:
    """Call an attack with the signal that its first argument names, and whatever else it takes and the pool has.

    Returns:
        Scores float32 `[T, N]`, `[M, N]` without outside targets.

    Raises:
        MissingSignalError: it reads what the pool does not hold.
        FewModelsError: it needs more models.
    """
    given = _arguments(attack, pool)
    target = None if pool.target is None else read_signal(attack, pool.target)
    return attack(read_signal(attack, pool.signals), pool.keep, target=target, leave=pool.leave, **given)


def attack_pool(
    pool: Pool, attacks: Mapping[str, Callable[..., np.ndarray]] = ATTACKS
) -> dict[str, np.ndarray]:
    """Every attack that the pool allows, by name; see `missing_signals` for those that read what it does not hold.

    What they compile is kept for later processes, see `keep_compilations`.

    Warns:
        UserWarning: naming each attack that needs more models.
    """
    keep_compilations()
    scores = {}
    for name, attack in attacks.items():
        try:
            scores[name] = call_attack(attack, pool)
        except MissingSignalError:
            continue
        except FewModelsError as error:
            warnings.warn(f"{name} is left out: {error}", stacklevel=2)
    return scores


def missing_signals(pool: Pool, attacks: Mapping[str, Callable[..., np.ndarray]] = ATTACKS) -> dict[str, str]:
    """By attack what it reads and the pool does not hold."""
    missing = {}
    for name, attack in attacks.items():
        try:
            _arguments(attack, pool)
        except MissingSignalError as error:
            missing[name] = str(error)
    return missing


def _arguments(attack: Callable[..., np.ndarray], pool: Pool) -> dict[str, object]:
    """The further arguments of an attack, once it is known that the pool holds what it reads."""
    signal, *rest = inspect.signature(attack).parameters.values()
    read = "phi" if signal.name == "features" else signal.name
    for side in (pool.signals, pool.target):
        if side is not None and read not in side:
            raise MissingSignalError(read)
    given = {}
    for parameter in rest:
        value = getattr(pool, parameter.name, None)
        if parameter.name in ("keep", "target", "leave"):
            continue
        if value is not None:
            given[parameter.name] = value
        elif parameter.default is parameter.empty:
            raise MissingSignalError(parameter.name.replace("_", " "))
    return given


def read_signal(attack: Callable[..., np.ndarray], signals: Mapping[str, SignalArray]) -> SignalArray:
    """What an attack reads in the first place, by the name of its first argument: phi, entropy, features ..."""
    signal = next(iter(inspect.signature(attack).parameters))
    if signal == "features":
        return classifier_features(
            signals["phi"], entropy=signals.get("entropy"), logits=signals.get("logits")
        )
    return signals[signal]
