"""Models before, after and without what is to be forgotten, whose phi is Gaussian."""

import numpy as np

from lira.forgetting import (
    called_members,
)
from lira.membership import keep_mask


class World:
    """Models whose phi is Gaussian: `gap` higher, by example, where the model was trained on it."""

    def __init__(self, M=32, N=400, F=60, gap: float | np.ndarray = 1.0, hardness=2.0, seed=0):
        self.rng = np.random.default_rng(seed)
        self.keep = keep_mask(seed, M, N)
        self.forget = np.arange(N) % (N // F) == 0
        self.forget &= np.cumsum(self.forget) <= F
        self.level = hardness * self.rng.normal(size=N)
        self.gap = np.broadcast_to(gap, N)
        self.before, self.retrained = self.draw(self.keep), self.draw(self.keep & ~self.forget)

    def draw(self, held, shift=0.0):
        noise = self.rng.normal(size=self.keep.shape)
        return (self.level + self.gap * held + shift + noise)[..., None].astype(np.float32)

    @property
    def rest(self):
        return self.keep & ~self.forget


def ensembles(world, after, fprs=(0.5,)):
    return (
        called_members(phi, world.keep, world.forget, fprs=fprs)[0]
        for phi in (world.before, after, world.retrained)
    )
