"""How every attack is drawn: the same colour and dashes on every page, a colour a family."""

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["COLORS", "DASHES", "Ink", "inks"]

# Okabe and Ito's palette, which the colour-blind can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#4D4D4D", "#E69F00", "#56B4E9", "#8C6D31")
# Lengths of strokes and gaps, in widths of the line; the first is drawn through.
DASHES = ((), (4.0, 1.5), (1.2, 1.2), (6.0, 1.5, 1.2, 1.5))

# A family a colour, its forms by dashes.
FAMILIES = (
    ("lira_online", "lira_online_fixed", "lira_online_multivariate", "lira_online_trajectory"),
    ("lira_offline", "lira_offline_fixed", "bavaria_online", "bavaria_offline"),
    ("pmia_neighbours_fixed", "pmia_class_fixed", "pmia_class", "pmia_global_fixed"),
    ("informia_online", "informia_offline", "rmia_online", "rmia_offline"),
    ("global_threshold", "loss_threshold", "confidence_threshold"),
    ("base", "difficulty_calibration", "difficulty_calibration_both", "lt_iqr"),
    ("attack_r", "attack_p", "quantile_regression"),
    ("shadow_logistic", "shadow_svc", "entropy_threshold", "modified_entropy_threshold"),
)


class Ink(NamedTuple):
    """How a line is drawn."""

    color: str
    dashes: tuple[float, ...]  # of strokes and gaps; empty: drawn through

    @property
    def linestyle(self) -> str | tuple[int, tuple[float, ...]]:
        """The dashes as matplotlib wants them."""
        return (0, self.dashes) if self.dashes else "-"


KNOWN = {
    name: Ink(color, dashes)
    for color, names in zip(COLORS, FAMILIES, strict=True)
    for name, dashes in zip(names, DASHES, strict=False)
}


def inks(names: Iterable[str]) -> dict[str, Ink]:
    """The ink of each attack; names that are none of this package's take, in their order, those that are free here."""
    names = list(names)
    taken = {KNOWN[name] for name in names if name in KNOWN}
    free = [ink for dashes in DASHES for color in COLORS if (ink := Ink(color, dashes)) not in taken]
    others = [name for name in names if name not in KNOWN]
    return {name: KNOWN[name] if name in KNOWN else free[others.index(name) % len(free)] for name in names}
