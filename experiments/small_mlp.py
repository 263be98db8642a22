"""A network so small that noise on its gradients leaves something to learn by: 2,410 parameters on 8x8 digits."""

from collections.abc import Sequence

from lira.learning.models import MLP


class SmallMLP(MLP):
    """One hidden layer of 32 units."""

    hidden: Sequence[int] = (32,)
