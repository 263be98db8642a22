"""Which shadow model is trained on which example: keep masks made of complementary pairs."""

import numpy as np

__all__ = ["check_num_models", "is_paired", "keep_mask", "pair_rows"]


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
        raw = np.random.Philox(key=np.array([seed, pair], dtype=np.uint64)).random_raw(words).astype("<u8")
        bits = np.unpackbits(raw.view(np.uint8), count=num_examples, bitorder="little")
        keep[2 * pair] = bits
        keep[2 * pair + 1] = ~keep[2 * pair]
    return keep


def is_paired(keep: np.ndarray) -> bool:
    """Whether the rows of `keep` (bool `[M, N]`) are complementary pairs (2p, 2p + 1)."""
    return len(keep) % 2 == 0 and bool(np.array_equal(keep[1::2], ~keep[::2]))


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
