"""The shadow classifier (Shokri et al. 2017): what members look like, learnt from shadow models that are known.

One linear classifier for all examples and classes, fitted *crosswise*: the pairs of models are dealt into two halves,
and each half is attacked by the classifier that the other half has taught. Fitting anew without each single pair would
say the same at M / 4 times the cost.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from lira.attacks._opponents import check_relations
from lira.attacks._pool import (
    Leave,
    SignalArray,
    UnfitPoolError,
    blocks,
    check_pool,
    each_block,
    read_block,
    require_arrays,
)
from lira.numbers import as_array, native_floats

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = ["classifier_features", "shadow_classifier"]

Kind = Literal["logistic", "svc"]

# Rows that a classifier is fitted on, at most: a few weights need no more.
ROWS = {"logistic": 100_000, "svc": 20_000}


def shadow_classifier(
    features: SignalArray,
    keep: np.ndarray,
    *,
    target: SignalArray | None = None,
    leave: Leave = "pair",
    kind: Kind = "logistic",
    seed: int = 0,
) -> np.ndarray:
    """Score by a classifier of members against non-members, fitted on shadow models (Shokri et al. 2017, section V).

    The score is the decision function of standardised features. The support vectors' kernel is linear: a radial one
    falls to a constant away from them, and so would tie the very tail that low false-positive rates live on.

    Args:
        features: float32 `[M, N, F]`, what a model says about an example: see `classifier_features`. Read in blocks
            along N, twice.
        keep: bool `[M, N]`, true where the model was trained on the example.
        target: float32 `[T, N, F]`, the same features of models outside the pool, scored by a classifier fitted on
            all M. None attacks every model of the pool.
        leave: "pair": the halves hold whole pairs (every other pair), so that nothing used depends on the target's
            membership. "one" and "independent", for pools of other designs: every other model.
        kind: "logistic" (regression, on at most 100,000 rows) or "svc" (linear, on at most 20,000). Rows are drawn
            evenly from the models, and from each as many members as non-members.
        seed: of that draw.

    Returns:
        float32 `[T, N]`, higher = more likely a member.

    Raises:
        ValueError: shapes disagree, or a feature is not finite.
        UnfitPoolError: the pool has fewer than two pairs (two models in other designs), or no model of a half has both members
            and non-members.
    """
    if kind not in ROWS:
        raise ValueError(f'kind must be "logistic" or "svc"; got {kind!r}')
    M, N, F = check_pool(features, keep, target, leave, "features", "features")
    keep = as_array(keep)
    every = np.arange(M)
    if not M:
        raise UnfitPoolError(
            "shadow_classifier learns from shadow models, and there are none: use global_threshold"
        )
    if target is not None:
        taught = [every]
        attacked = [np.arange(target.shape[0])]
    else:
        if leave != "pair":
            check_relations(keep)
        half = (every // 2 if leave == "pair" else every) % 2
        attacked = [np.flatnonzero(half == 0), np.flatnonzero(half == 1)]
        taught = attacked[::-1]
        if not len(attacked[1]):
            raise UnfitPoolError(
                f"shadow_classifier needs two {'pairs of models' if leave == 'pair' else 'models'}, one to learn from "
                f"and one to attack, and the pool has one: use global_threshold, which needs none, or more models"
            )
    classifiers = _fit(features, keep, taught, kind, seed)
    scores = np.empty((M if target is None else target.shape[0], N), np.float32)
    source, name = (features, "features") if target is None else (target, "target")

    def score(examples: slice) -> None:
        block = read_block(source, examples, name)
        for rows, classifier in zip(attacked, classifiers, strict=True):
            flat = block[rows].reshape(-1, F).astype(np.float64)
            scores[rows, examples] = classifier.decision_function(flat).reshape(len(rows), -1)

    each_block(score, max(M, len(scores)), N, F)
    return scores


def classifier_features(
    phi: SignalArray, *, entropy: SignalArray | None = None, logits: SignalArray | None = None
) -> SignalArray:
    """The features {logits, entropy, confidence, loss} of Shokri et al.'s attack, computed as they are read.

    Args:
        phi: float32 `[M, N, Q]`.
        entropy: float32 `[M, N, Q]`, of the softmax.
        logits: float32 `[M, N, Q, C]`. They stand in descending order, less the largest, so that no class is singled
            out and a common offset does not count.

    Returns:
        A lazy `[M, N, F]` of float32: for each query phi (the label's own logit, which does not saturate), the
        confidence sigmoid(phi), the loss softplus(-phi), then entropy and logits where they are given. Only what is
        sliced is ever in memory.

    Raises:
        ValueError: `entropy` or `logits` is not of phi's shape.

    >>> classifier_features(np.zeros((4, 5, 2), np.float32)).shape
    (4, 5, 6)
    """
    require_arrays({"phi": phi, "entropy": entropy, "logits": logits})
    shape = tuple(phi.shape)
    if len(shape) != 3:
        raise ValueError(f"phi must be [models, examples, queries]; got shape {shape}")
    if entropy is not None and tuple(entropy.shape) != shape:
        raise ValueError(f"entropy must be of shape {shape} like phi; got {tuple(entropy.shape)}")
    if logits is not None and (len(logits.shape) != 4 or tuple(logits.shape[:3]) != shape):
        raise ValueError(
            f"logits must be {[*shape, 'C']}, phi's shape and classes; got {tuple(logits.shape)}"
        )
    return _Features(phi, entropy, logits)


@dataclass(frozen=True, eq=False)
class _Features:
    """The features of a pool, computed slice by slice."""

    phi: SignalArray
    entropy: SignalArray | None
    logits: SignalArray | None

    @property
    def shape(self) -> tuple[int, int, int]:
        M, N, Q = self.phi.shape
        classes = 0 if self.logits is None else self.logits.shape[3]
        return M, N, Q * (3 + (self.entropy is not None) + classes)

    def __getitem__(self, index: tuple[slice, slice], /) -> np.ndarray:
        phi = _singles(self.phi[index])
        # e = exp(-|phi|) never overflows, and gives both: sigmoid(|phi|) = 1 / (1 + e), softplus = log(1 + e) + max.
        small = np.exp(-np.abs(phi))
        confidence = np.where(phi > 0, 1, small) / (1 + small)
        columns = [phi, confidence, np.log1p(small) + np.maximum(-phi, 0)]
        if self.entropy is not None:
            columns.append(_singles(self.entropy[index]))
        if self.logits is not None:
            ordered = -np.sort(-_singles(self.logits[index]), axis=-1)
            columns.append((ordered - ordered[..., :1]).reshape(*phi.shape[:2], -1))
        return np.concatenate(columns, axis=2)


def _singles(values: object) -> np.ndarray:
    """Numbers as float32; words and complex numbers, which NumPy would convert too, are refused."""
    return native_floats(values).astype(np.float32, copy=False)


def _fit(
    features: SignalArray, keep: np.ndarray, taught: list[np.ndarray], kind: Kind, seed: int
) -> "list[Pipeline]":
    """Fit one classifier to each group of models, all in one pass over the features."""
    # Slow to import, and training needs none of it.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    M, N, F = features.shape
    draws = [_draw(keep, models, ROWS[kind] // (2 * len(models)), seed) for models in taught]
    rows = [np.empty((len(models), F)) for models, _ in draws]
    for examples, fresh in blocks(M, N, F):
        block = read_block(features, examples, "features")
        begin = examples.start + int(np.argmax(fresh))
        for row, (models, drawn) in zip(rows, draws, strict=True):
            here = slice(*np.searchsorted(drawn, [begin, examples.stop]))
            row[here] = block[models[here], drawn[here] - examples.start]
    classifiers = []
    for row, (models, drawn) in zip(rows, draws, strict=True):
        # The random state matters only where there are more features than rows, to liblinear's dual solver.
        classifier = LogisticRegression(max_iter=1000) if kind == "logistic" else LinearSVC(random_state=seed)
        classifiers.append(make_pipeline(StandardScaler(), classifier).fit(row, keep[models, drawn]))
    return classifiers


def _draw(keep: np.ndarray, models: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw up to `count` members and as many non-members of each model: (models, examples), by ascending example."""
    drawn = []
    for model in models:
        # A stream for each model: what is drawn in one half must not depend on the memberships in the other.
        rng = np.random.default_rng([seed, model])
        sides = [np.flatnonzero(keep[model]), np.flatnonzero(~keep[model])]
        each = min(max(count, 1), *map(len, sides))
        chosen = np.concatenate([rng.choice(side, each, replace=False) for side in sides])
        drawn.append(np.stack([np.full(len(chosen), model), chosen]))
    drawn = np.concatenate(drawn, axis=1)
    if not drawn.size:
        raise UnfitPoolError(
            "shadow_classifier needs models with both members and non-members to learn from, and there are none: "
            "use global_threshold, which needs no shadow models"
        )
    models, examples = drawn[:, np.argsort(drawn[1], kind="stable")]
    return models, examples
