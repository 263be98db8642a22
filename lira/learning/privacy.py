"""What a recipe asks of private training: DP-SGD (Abadi et al. 2016, arXiv 1607.00133). What it proves is in `accounting`."""

import math
from dataclasses import dataclass

from lira.fields import check_fields

__all__ = ["Privacy"]

# Within these, squares of norms, and of what is a thousand times as long, are numbers of float32.
CLIPS = 1e-15, 1e15
# Beyond it nothing is promised, and less noise than it takes is hardly any.
MAX_EPSILON = 100.0
# Below it hardly anything is hidden, and accounting takes minutes and gigabytes to say so.
MIN_NOISE = 0.05


@dataclass(frozen=True)
class Privacy:
    """Training by DP-SGD: each example's gradient is clipped, and noise is added to their sum. By epsilon or by noise."""

    clip: float = 1.0
    """The largest L2 norm of one example's gradient; longer ones are shortened to it."""
    epsilon: float = 0.0
    """To be proven of the whole training, by as much noise as that takes; inf is without noise, 0 where noise is given."""
    noise: float = 0.0
    """Standard deviation of the noise on the sum of a step, in units of clip; 0 where epsilon is given."""
    delta: float = 1e-5
    """Of (epsilon, delta)."""
    multiplicity: int = 1
    """Augmentations of an example over which its gradient is averaged before it is clipped (De et al. 2022)."""

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self, "recipe.privacy.")
        if not 0 < self.clip <= math.inf:
            raise ValueError(f"recipe.privacy.clip must be positive; got {self.clip:g}")
        if not CLIPS[0] <= self.clip <= CLIPS[1] and self.clip != math.inf:
            raise ValueError(
                f"recipe.privacy.clip must lie between {CLIPS[0]:g} and {CLIPS[1]:g}, for float32 knows no others; got "
                f"{self.clip:g}: inf clips nothing"
            )
        if math.isinf(self.clip) and self.epsilon != math.inf:
            raise ValueError(
                "recipe.privacy.clip is inf, and nothing is proven of gradients that are not clipped"
            )
        if (self.epsilon == 0) == (self.noise == 0):
            raise ValueError(
                f"recipe.privacy needs epsilon or noise, and not both; got epsilon {self.epsilon:g} and noise {self.noise:g}"
            )
        if not (0 <= self.epsilon <= MAX_EPSILON or self.epsilon == math.inf):
            raise ValueError(
                f"recipe.privacy.epsilon must be positive and at most {MAX_EPSILON:g}, or inf for no noise; "
                f"got {self.epsilon:g}"
            )
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"recipe.privacy.noise must be positive; got {self.noise:g}")
        if 0 < self.noise < MIN_NOISE:
            raise ValueError(
                f"recipe.privacy.noise must be at least {MIN_NOISE:g}, for less hides nothing; got {self.noise:g}: raise it, or "
                "give epsilon = inf in its place for none"
            )
        if not 0 < self.delta < 1:
            raise ValueError(f"recipe.privacy.delta must be between 0 and 1; got {self.delta:g}")
        if self.multiplicity < 1:
            raise ValueError(f"recipe.privacy.multiplicity must be at least 1; got {self.multiplicity}")
