"""What a pool's models give away of canaries: beside the pool's own figures, and in none of them."""

import importlib.util

import numpy as np

from lira.attacks.suite import attack_pool, select_attacks
from lira.epsilon import pool_epsilon
from lira.reporting.implied import CONFIDENCE, DELTA
from lira.reporting.measured import CanaryFigures, measure_attacks
from lira.scoring import canary_pool
from lira.store.run import Run

__all__ = ["canary_figures"]

# Beside the headline attack: what a model by itself gives away.
BASELINE = "global_threshold"


def canary_figures(run: Run, headline: str) -> CanaryFigures | None:
    """Attack the canaries of a run by the attack that leads its report; None where it has none."""
    canaries, run = run.config.canaries, run.as_it_stands()
    if canaries is None:
        return None
    member = run.memberships(run.targets)[:, run.canaries]
    selected = select_attacks([headline, BASELINE])
    scores = attack_pool(
        canary_pool(run), {name: selected[name] for name in dict.fromkeys([headline, *selected])}
    )
    bound, privacy = None, run.config.recipe.privacy
    of_all = next((name for name, each in scores.items() if not np.isnan(each).any()), None)
    if of_all is not None and importlib.util.find_spec("jax_privacy") is not None:
        bound = pool_epsilon(
            scores[of_all],
            member,
            independent=True,
            fair=True,
            delta=privacy.delta if privacy else DELTA,
            confidence=CONFIDENCE,
        )
    return CanaryFigures(canaries.kind, canaries.count, measure_attacks(scores, member), bound, of_all)
