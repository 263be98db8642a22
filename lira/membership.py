"""Which model is trained on which example: complementary pairs, independent coins, disjoint halves, all with canaries."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lira.fields import check_fields
from lira.numbers import as_array

__all__ = [
    "Design",
    "Membership",
    "audited_half",
    "canary_mask",
    "check_num_models",
    "disjoint_mask",
    "have_independent_counts",
    "imitator_mask",
    "independent_mask",
    "is_paired",
    "keep_mask",
    "pair_rows",
    "related_rows",
]

Design = Literal["pairs", "independent", "disjoint", "all"]
# The fewest models of a pool that are no pairs.
MIN_MODELS = 4
# The fewest shadow models of a disjoint pool.
MIN_SHADOWS = 2

# The last word of Philox's counter, which keep_mask leaves at 0: streams of one key and other counters do not overlap.
COINS, HALVES = 1, 2
# The same of canaries, of the same models as the pool's coins.
CANARIES = 4
# The same for models that imitate a target: it must share no stream with what targets are drawn by.
IMITATORS = 1 << 8

# Standard errors from which on counts are not those of independent coins, and memberships of two models related.
SPREAD_LIMIT, RELATION_LIMIT = 3.0, 6.0
# What correlation two models must have beyond that of the others, besides: less gives next to nothing away.
RELATION = 0.3


@dataclass(frozen=True)
class Membership:
    """How it is drawn which model is trained on which example."""

    design: Design = "pairs"
    """pairs: complementary, each example in one model of each pair; independent: a coin for each model and example;
    disjoint: such coins, of the models that are attacked over one half of the examples, of the others over the other;
    all: every model on all of them, and coins for canaries alone, as lira audit-one has it."""
    fraction: float = 0.5
    """The probability of a coin, that a model is trained on an example (of its half, where these are disjoint); of pairs .5."""
    num_targets: int = 0
    """Of disjoint pools: so many models, the first ones, are attacked by the others; of audits of one model (all) so many are
    audited, 0 for all, and the others are their references. Other designs attack every model."""

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self, "membership.")
        if not 0 < self.fraction < 1:
            raise ValueError(
                f"membership.fraction must be larger than 0 and smaller than 1; got {self.fraction}"
            )
        if self.design in ("pairs", "all") and self.fraction != 0.5:
            held = (
                "each model of a pair is trained on half"
                if self.design == "pairs"
                else "every model is trained on all"
            )
            raise ValueError(
                f"membership.fraction is {self.fraction}, and {held} of the examples: "
                f'set membership.design = "independent", or leave it out'
            )
        targets = self.num_targets > 0
        if self.num_targets < 0 or (self.design != "all" and (self.design == "disjoint") != targets):
            raise ValueError(
                f'membership.num_targets must be at least 1 where membership.design = "disjoint", and is left out '
                f'elsewhere; got {self.num_targets} of design "{self.design}"'
            )

    @property
    def share(self) -> float:
        """Of all examples, canaries apart, the share that a model is trained on, on average."""
        return {"disjoint": self.fraction / 2, "all": 1.0}.get(self.design, self.fraction)

    def share_of(self, num_examples: int, num_canaries: int = 0) -> float:
        """The same of `num_examples` the last `num_canaries` of which are canaries, of which it is half."""
        if not num_canaries:
            return self.share
        return (self.share * (num_examples - num_canaries) + 0.5 * num_canaries) / num_examples

    def check(self, num_models: int) -> None:
        """Raise ValueError unless a pool of this design may have so many models."""
        if self.design == "pairs":
            check_num_models(num_models)
        elif self.design == "all":
            if num_models < max(1, self.num_targets):
                raise ValueError(
                    f"num_models must be at least {max(1, self.num_targets)}, those that are audited; got {num_models}"
                )
        elif num_models < MIN_MODELS:
            raise ValueError(f"num_models must be at least {MIN_MODELS}; got {num_models}")
        if self.design == "disjoint" and num_models < self.num_targets + MIN_SHADOWS:
            raise ValueError(
                f"num_models is {num_models}, and {self.num_targets} of them are targets (membership.num_targets): at "
                f"least {MIN_SHADOWS} others must attack them"
            )

    def draw(self, seed: int, num_models: int, num_examples: int, num_canaries: int = 0) -> np.ndarray:
        """The keep mask, bool `[M, N]`; no row depends on M, but those of disjoint pools on the number of targets.

        The last `num_canaries` examples have fair coins of their own, and all others what they would have without them.

        Raises:
            ValueError: a model would have no member.
        """
        if num_canaries:
            pool = self.draw(seed, num_models, num_examples - num_canaries)
            return np.concatenate([pool, canary_mask(seed, num_models, num_canaries)], axis=1)
        if self.design == "all":
            return np.ones((num_models, num_examples), bool)
        if self.design == "pairs":
            return keep_mask(seed, num_models, num_examples)
        if self.design == "disjoint":
            keep = disjoint_mask(seed, num_models, num_examples, self.num_targets, self.fraction)
        else:
            keep = independent_mask(seed, num_models, num_examples, self.fraction)
        if not keep.any(axis=1).all():
            raise ValueError(
                f"membership.fraction is {self.fraction}, and of {num_examples:,} examples model "
                f"{np.argmin(keep.any(axis=1))} would be trained on none: raise it"
            )
        return keep

    def audited(self, seed: int, num_examples: int) -> np.ndarray:
        """Which examples, canaries apart, are attacked, bool `[N]`: all, those of disjoint pools that no shadow model sees, or
        none, where every model holds them all.
        """
        if self.design == "disjoint":
            return audited_half(seed, num_examples)
        return np.full(num_examples, self.design != "all")

    def in_words(self) -> str:
        """The design, for people."""
        if self.design == "pairs":
            return "complementary pairs"
        if self.design == "all":
            return "every model is trained on all examples, and on canaries by fair coins"
        if self.design == "disjoint":
            return (
                f"disjoint: shadow models are trained on one half of the examples, targets on the other, by coins that "
                f"are true with probability {self.fraction:g}"
            )
        return f"independent coins, each true with probability {self.fraction:g}"


def check_num_models(num_models: int) -> None:
    """Raise ValueError unless `num_models` is even and at least 4 (two complementary pairs)."""
    if num_models < 4 or num_models % 2:
        raise ValueError(
            f"num_models must be even and at least 4, because shadow models come in complementary pairs; "
            f"got {num_models}"
        )


def keep_mask(seed: int, num_models: int, num_examples: int) -> np.ndarray:
    """Draw the keep mask of a pool: bool `[M, N]`, true where model m is trained on example n.

    Models 2p and 2p + 1 are complementary, `keep[2p + 1] = ~keep[2p]`, and each bit of `keep[2p]` is an
    independent fair coin. Every example is therefore in exactly M / 2 models, and once a target's whole pair is
    left out nothing that remains depends on the target's membership: the IN and OUT counts do not leak it, as
    they do when a single model is taken out of an exactly balanced design.

    Row m is a pure function of (seed, m, N), so a pool grows without redrawing. The bits come from Philox's raw
    output, a stream that NumPy guarantees not to change.

    Raises:
        ValueError: `num_models` is odd or below 4, or `num_examples` or `seed` is negative.
    """
    check_num_models(num_models)
    if num_examples < 0 or seed < 0:
        raise ValueError(f"num_examples and seed must not be negative; got {num_examples} and {seed}")
    keep = np.empty((num_models, num_examples), dtype=bool)
    words = -(-num_examples // 64)
    for pair in range(num_models // 2):
        # Little-endian words, so that the mask is the same on every machine.
        raw = np.random.Philox(key=_key(seed, pair)).random_raw(words).astype("<u8")
        bits = np.unpackbits(raw.view(np.uint8), count=num_examples, bitorder="little")
        keep[2 * pair] = bits
        keep[2 * pair + 1] = ~keep[2 * pair]
    return keep


def independent_mask(seed: int, num_models: int, num_examples: int, fraction: float = 0.5) -> np.ndarray:
    """Draw the keep mask of independent coins: bool `[M, N]`, each bit true with probability `fraction`.

    Row m is a pure function of (seed, m, N, fraction); a model's members at a smaller fraction are among those at a larger
    one. The numbers are Philox's raw output, at other counters than those of `keep_mask`.

    Raises:
        ValueError: `fraction` is not within (0, 1), or another number is negative.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be larger than 0 and smaller than 1; got {fraction}")
    if min(num_models, num_examples, seed) < 0:
        raise ValueError(
            f"num_models, num_examples and seed must not be negative; got {num_models}, {num_examples} and {seed}"
        )
    keep = np.empty((num_models, num_examples), dtype=bool)
    for model in range(num_models):
        # 53 bits are the fractions that float64 holds exactly.
        keep[model] = (_raw(seed, model, COINS, num_examples) >> np.uint64(11)) * 2.0**-53 < fraction
    return keep


def canary_mask(seed: int, num_models: int, num_canaries: int) -> np.ndarray:
    """Draw the memberships of canaries: bool `[M, C]`, a fair coin for each model and canary, whatever the pool's design.

    Row m is a pure function of (seed, m, C), of a stream that nothing else is drawn from.

    Raises:
        ValueError: a number is negative.
    """
    if min(num_models, num_canaries, seed) < 0:
        raise ValueError(
            f"seed, num_models and num_canaries must not be negative; got {seed}, {num_models} and {num_canaries}"
        )
    rows = [_raw(seed, model, CANARIES, num_canaries) >> np.uint64(63) == 1 for model in range(num_models)]
    return np.array(rows).reshape(num_models, num_canaries)


def imitator_mask(seed: int, target: int, num_models: int, num_examples: int) -> np.ndarray:
    """Draw the keep mask of models that imitate a target: bool `[K, N]`, complementary pairs of fair coins.

    The target's own membership is drawn by another stream, whatever the seeds, so this one knows nothing of it. Row k is a
    pure function of (seed, target, k, N).

    Raises:
        ValueError: `num_models` is odd or below 4, or another number is negative.
    """
    check_num_models(num_models)
    if min(seed, target, num_examples) < 0:
        raise ValueError(
            f"seed, target and num_examples must not be negative; got {seed}, {target} and {num_examples}"
        )
    first = np.array(
        [
            _raw(seed, (target << 32) + pair, IMITATORS, num_examples) >> np.uint64(63) == 1
            for pair in range(num_models // 2)
        ]
    )
    return np.stack([first, ~first], axis=1).reshape(num_models, num_examples)


def audited_half(seed: int, num_examples: int) -> np.ndarray:
    """The random half of the examples, floor(N / 2) of them, that disjoint pools are attacked on: bool `[N]`."""
    order = np.argsort(_raw(seed, 0, HALVES, num_examples), kind="stable")
    half = np.zeros(num_examples, dtype=bool)
    half[order[: num_examples // 2]] = True
    return half


def disjoint_mask(
    seed: int, num_models: int, num_examples: int, num_targets: int, fraction: float = 0.5
) -> np.ndarray:
    """Draw the keep mask of a disjoint pool: bool `[M, N]`; no shadow model sees an example that a target may have seen.

    The first `num_targets` models are the targets, whose members are independent coins over `audited_half(seed, N)`, true
    with probability `fraction`; those of the other models, the shadow models, are such coins over the other half. All sets
    are alike in size, and the target's membership is independent of everything that the shadow models know. Row m is a pure
    function of (seed, m, N, num_targets, fraction).

    Raises:
        ValueError: as `independent_mask`.
    """
    keep = independent_mask(seed, num_models, num_examples, fraction)
    half = audited_half(seed, num_examples)
    keep[:num_targets] &= half
    keep[num_targets:] &= ~half
    return keep


def _raw(seed: int, key: int, purpose: int, count: int) -> np.ndarray:
    """Philox's raw output, uint64 `[count]`, of a stream of its own for every seed, key and purpose.

    Raises:
        ValueError: the seed has more than 64 bits.
    """
    counter = np.array([0, 0, 0, purpose], dtype=np.uint64)
    return np.random.Philox(counter=counter, key=_key(seed, key)).random_raw(count)


def _key(seed: int, stream: int) -> np.ndarray:
    """Philox's key of a seed's stream; ValueError where the seed has more than 64 bits."""
    if seed >= 1 << 64:
        raise ValueError(f"a seed of memberships must be smaller than 2^64; got {seed}")
    return np.array([seed, stream], dtype=np.uint64)


def is_paired(keep: np.ndarray) -> bool:
    """Whether the rows of `keep` (bool `[M, N]`) are complementary pairs (2p, 2p + 1)."""
    return len(keep) % 2 == 0 and bool((keep[1::2] != keep[::2]).all())


def pair_rows(keep: np.ndarray) -> np.ndarray:
    """Indices that arrange the rows of `keep` (bool `[M, N]`) as complementary pairs; rows without a mate are left out.

    A pool of another design has none: int `[0]`. Where only some rows have a mate the others must go, because a
    target whose mate stays in the pool is given away by it.

    >>> pair_rows(np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1]], bool))
    array([0, 2])
    """
    waiting: dict[bytes, list[int]] = {}
    pairs = []
    for row, (bits, complement) in enumerate(
        zip(np.packbits(keep, axis=1), np.packbits(~keep, axis=1), strict=True)
    ):
        if mates := waiting.get(complement.tobytes()):
            pairs.append((mates.pop(0), row))
        else:
            waiting.setdefault(bits.tobytes(), []).append(row)
    return np.array(sorted(pairs), dtype=int).ravel()


def have_independent_counts(keep: np.ndarray) -> bool:
    """Whether the examples' counts of IN models spread as those of independent coins do; `keep` is bool `[M, N]`.

    Counts that are equal, or nearly so, know of each model what the others do not have: an example with one IN model
    less among the others is a member. Counts that spread more (examples that many models hold, and others that few do)
    give members away, too. Each model's coin may have a probability p_m of its own: then the counts' variance is the sum
    of p_m (1 - p_m), and twice the sum of the models' covariances is what is beyond it.
    """
    keep = as_array(keep)
    N = keep.shape[1]
    rates = keep.mean(axis=1)
    variances = rates * (1 - rates)
    counts = keep.sum(axis=0)
    # The sum over pairs i < j of v_i v_j.
    products = (variances.sum() ** 2 - np.square(variances).sum()) / 2
    beyond = counts.var() - variances.sum()
    return bool(abs(beyond) <= SPREAD_LIMIT * 2 * np.sqrt(products / N) + 1e-12)


def related_rows(keep: np.ndarray, member: np.ndarray | None = None) -> tuple[int, int] | None:
    """Two models one of which gives the other's memberships away, such as twins, or mates that are not paired.

    Their memberships are correlated, or opposite, by more than those of other models are: by .3, and by six standard
    errors. All models alike may be correlated, as they are in an exactly balanced pool.

    Args:
        keep: bool `[M, N]`.
        member: bool `[T, N]` of outside targets; None relates the models of the pool to each other.

    Returns:
        The rows of the most related two: of the target (or of a model) and of a model of the pool; None without any.
    """
    rows = _standardised(keep)
    others = rows if member is None else _standardised(member)
    correlations = others @ rows.T / keep.shape[1]
    # A model that holds all or nothing tells nothing.
    compared = np.outer(others.any(axis=1), rows.any(axis=1))
    if member is None:
        compared = np.triu(compared, 1)
    if not compared.any():
        return None
    away = np.where(compared, np.abs(correlations - np.median(correlations[compared])), 0)
    first, second = np.unravel_index(np.argmax(away), away.shape)
    limit = max(RELATION, RELATION_LIMIT / np.sqrt(keep.shape[1]))
    return (int(first), int(second)) if away[first, second] > limit else None


def _standardised(keep: np.ndarray) -> np.ndarray:
    """Memberships with mean 0 and variance 1 over the examples, float32 `[M, N]`; 0 of a model that holds all or none."""
    rates = keep.mean(axis=1, keepdims=True)
    scales = np.sqrt(rates * (1 - rates))
    return ((keep - rates) / np.where(scales > 0, scales, 1)).astype(np.float32)
