"""Is it safe to believe the figures? Checks of a pool, each a name, a status and a sentence.

A check that *fails* makes the figures meaningless, one that *warns* makes them weaker or other than they look.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lira.attacks import Leave, SignalArray, UnfitPoolError, global_threshold
from lira.attacks._pool import FEW_MODELS, advice_on_few
from lira.attacks.suite import ATTACKS, Attack, Pool
from lira.data.copies import Copies, as_copies
from lira.engine.trained import LIMIT, Check, check_trained
from lira.learning.augment import Queries
from lira.learning.recipe import Recipe
from lira.membership import is_paired
from lira.numbers import as_array
from lira.scoring import pool_of
from lira.store.arrays import DIVERGED, DONE
from lira.store.making import COPIES
from lira.store.run import Run

__all__ = [
    "Check",
    "check_classes",
    "check_confidences",
    "check_copies",
    "check_counts",
    "check_direction",
    "check_models",
    "check_null",
    "check_pool",
    "check_queries",
    "check_run",
]

BLOCK = 4096
# Scores that a statistic is computed of; of larger pools every k-th target is taken.
SCORES = 1 << 21


def check_run(run: Run, attacks: Mapping[str, Attack] = ATTACKS, *, pool: Pool | None = None) -> list[Check]:
    """All checks of a run, as far as it has come: those that need trained models are absent without any.

    Args:
        run: the run.
        attacks: as in `check_pool`.
        pool: the run's, where it is there already.
    """
    run = run.as_it_stands()
    config = run.config
    requested = run.provenance["source"]["requested"] if run.is_imported else config.num_models
    checks = [check_models(run.done, requested, paired=config.membership.design == "pairs")]
    if (found := as_copies(run.provenance.get(COPIES))) is not None:
        checks.append(check_copies(found))
    if run.is_imported:
        sentence = (
            "whether training flipped or shifted its examples is not known of imported models: where it did, and the models "
            "were not asked about such copies, too, the attack is weaker than it could be"
        )
        checks.append(Check("queries", "warn", sentence))
    elif run.is_foreign:
        sentence = (
            "each example is asked as it is: where training augments, the attack is weaker than it could be"
        )
        checks.append(Check("queries", "ok", sentence))
    else:
        checks.append(check_queries(config.recipe, config.queries))
    if not len(run.models):
        return checks
    trained = check_trained(run, run.models)
    member = run.membership if run.num_targets else None
    outsiders_miss = run.num_targets and not (len(run.targets) and len(run.shadows))
    if outsiders_miss or not len(run.audited):  # of the pool nothing is attacked
        return checks + trained
    hard = run.is_foreign and run.provenance["source"].get("kind") == "probabilities"
    of_pool = check_pool(
        pool or pool_of(run),
        run.labels[run.audited],
        member,
        attacks=attacks,
        class_names=run.class_names,
        hard=hard,
    )
    return checks + trained + of_pool


def check_pool(
    pool: Pool,
    labels: np.ndarray | None = None,
    member: np.ndarray | None = None,
    *,
    attacks: Mapping[str, Attack] = ATTACKS,
    class_names: Sequence[str] = (),
    hard: bool = False,
) -> list[Check]:
    """The checks that need arrays alone.

    Args:
        pool: what is attacked and with what.
        labels: int `[N]`, if known (-1: not).
        member: bool `[T, N]`, what the outside targets were trained on. Without it the pool's own models stand in for
            them where memberships are asked about, and a warning says so.
        attacks: by name; the null is that of the first which these models allow.
        class_names: by label, where they are known.
        hard: as of `check_confidences`.

    Raises:
        ValueError: `member` is not of the shape of the outside targets, or there are none.
    """
    phi, keep = pool.signals["phi"], np.asarray(pool.keep)
    target = None if pool.target is None else pool.target["phi"]
    checks = [check_counts(keep)]
    if labels is not None and (labels >= 0).all():
        checks.append(check_classes(labels, keep, class_names))
    for name, signal in (("confidences", phi), ("target's confidences", target)):
        if signal is not None:
            checks.append(check_confidences(signal, name, hard=hard))
    if any(check.status == "fail" for check in checks if check.name.endswith("confidences")):
        return checks
    if member is not None:
        member = _membership(target, member)
    elif target is not None:
        sentence = (
            "what the outside targets were trained on is not given: direction and shuffled memberships are those of the "
            "pool's own models"
        )
        checks.append(Check("target's members", "warn", sentence))
        target = None
    membership = keep if target is None or member is None else member
    if membership.all() or not membership.any():
        return checks  # nothing to tell apart
    checks.append(check_direction(global_threshold(phi, keep, target=target, leave=pool.leave), membership))
    for name, attack in attacks.items():
        if attack.signal != "phi" or attack.needs:
            continue
        try:
            null = check_null(
                name, attack.function, phi, keep, target=target, member=member, leave=pool.leave
            )
            return [*checks, null]
        except UnfitPoolError:
            continue
    return checks


# --- One check each -------------------------------------------------------------------------------------------------


def check_models(done: np.ndarray, requested: int, *, paired: bool = True) -> Check:
    """Models trained against requested; `done` is the run's, uint8 `[M]`; `paired`: the mates of those that diverged go, too."""
    trained, diverged = int(np.sum(done == DONE)), int(np.sum(done == DIVERGED))
    status, sentence = "ok", f"all {requested} models are there"
    if trained + diverged < requested:
        status = "fail"
        sentence = f"{trained} of {requested} models are there: figures of fewer models are others"
    elif diverged == requested:
        status = "fail"
        sentence = f"all {requested} models diverged: lower the learning rate, or standardise the features"
    elif diverged:
        status = "warn"
        sentence = (
            f"{diverged} of {requested} models diverged; they {'and their mates ' * paired}are left out"
        )
    return Check("models", status, sentence)


def check_copies(found: Copies) -> Check:
    """Examples that stand in the data more than once, or in the pool and among the held-out ones."""
    if found.any:
        return Check("copies", "warn", found.sentence())
    held_out = ", and no held-out one of an example of the pool" if found.held_out_total else ""
    return Check("copies", "ok", f"no example is a copy of another{held_out}")


def check_counts(keep: np.ndarray) -> Check:
    """IN and OUT models of every example; `keep` is bool `[M, N]`."""
    inside = keep.sum(axis=0)
    outside = len(keep) - inside
    counted = [
        f"{low} {side}" if low == high else f"{low} to {high} {side}"
        for side, low, high in (("IN", inside.min(), inside.max()), ("OUT", outside.min(), outside.max()))
    ]
    text = f"examples have {' and '.join(counted)} models"
    design = "in complementary pairs" if is_paired(keep) else "in no pairs"
    name = "IN and OUT models"
    if not outside.min():
        return Check(name, "fail", f"{text}: one without an OUT model cannot be attacked")
    if not inside.min():
        return Check(name, "warn", f"{text}: one without an IN model allows offline attacks only")
    if (fewest := min(inside.min(), outside.min())) < FEW_MODELS:
        return Check(name, "warn", f"{text}, {design}: {advice_on_few(fewest)}")
    return Check(name, "ok", f"{text}, {design}")


def check_classes(labels: np.ndarray, keep: np.ndarray, class_names: Sequence[str] = ()) -> Check:
    """Classes that no example has, or that a model has not seen; `labels` is int `[N]`, `keep` bool `[M, N]`."""
    classes = max(int(labels.max()) + 1, len(class_names))
    absent = np.flatnonzero(np.bincount(labels, minlength=classes) == 0)
    seen = np.stack([np.bincount(labels[row], minlength=classes) > 0 for row in keep])
    unseen = int((~seen).sum()) - len(absent) * len(keep)
    if len(absent):
        missing = ", ".join(class_names[label] if class_names else str(label) for label in absent.tolist())
        return Check("classes", "warn", f"no example has class {missing} of 0 to {classes - 1}")
    if unseen and keep.any():
        most = int((~seen).sum(axis=0).argmax())
        rarest = f"most often class {class_names[most] if class_names else most}"
        return Check(
            "classes", "warn", f"{unseen} times a model was trained on no example of a class, {rarest}"
        )
    return Check(
        "classes", "ok", f"all {classes} classes have examples{' in every model' if keep.any() else ''}"
    )


def check_queries(recipe: Recipe, queries: Queries) -> Check:
    """The queries against the training augmentation: their mismatch costs most (Carlini et al. 2022, section VI-B)."""
    mismatches = []
    if recipe.flip != queries.mirror:
        training, asked = "at random" if recipe.flip else "nothing", "" if queries.mirror else "not "
        mismatches.append(f"training mirrors {training}, and the queries do {asked}mirror")
    if (recipe.crop_pad > 0) != (queries.shift > 0):
        shifts = f"training shifts by up to {recipe.crop_pad} pixels, and the queries by {queries.shift}"
        mismatches.append(shifts)
    if queries.convention == "original":
        sentence = (
            "by the released code's convention, each batch of 5,000 examples normalised by itself, members or not: to "
            "match its numbers, not to attack a model as it is used"
        )
        return Check("queries", "warn", sentence)
    if mismatches:
        return Check("queries", "warn", f"{'; '.join(mismatches)}: the attack is weaker than it could be")
    count = len(queries.views)
    match = "the one query matches" if count == 1 else f"the {count} queries match"
    return Check("queries", "ok", f"{match} the training augmentation")


def check_confidences(phi: SignalArray, name: str = "confidences", *, hard: bool = False) -> Check:
    """Confidences that are NaN, infinite, constant, or tied at an end of their range; `phi` is float `[M, N, Q]`.

    Ties are a fault of how models were asked, unless these may be `hard`, with probabilities of 0 and 1 by themselves, as
    trees and nearest neighbours are.
    """
    wrong = "warn" if hard else "fail"
    M, N, Q = phi.shape
    top, bottom = (-np.inf, 0), (np.inf, 0)  # the value, and how often it occurs
    broken, constant = 0, 0
    low, high = np.full(M, np.inf), np.full(M, -np.inf)
    for start in range(0, N, BLOCK):
        block = np.asarray(phi[:, start : start + BLOCK])
        broken += int(np.sum(~np.isfinite(block)))
        if broken:
            continue
        top, bottom = _extreme(np.max, block, *top), _extreme(np.min, block, *bottom)
        constant += int(np.sum((block == block[:1]).all(axis=(0, 2)))) if M > 1 else 0
        low, high = np.minimum(low, block.min(axis=(1, 2))), np.maximum(high, block.max(axis=(1, 2)))
    if broken:
        return Check(name, "fail", f"{broken:,} of {M * N * Q:,} values are NaN or infinite")
    stuck = np.flatnonzero(low == high)
    if len(stuck) and N > 1:
        models = ", ".join(map(str, stuck[:8])) + (", ..." if len(stuck) > 8 else "")
        return Check(name, "fail", f"{len(stuck)} of {M} models say the same of every example: {models}")
    value, count = max(top, bottom, key=lambda end: end[1])
    tied = count / (M * N * Q) if count > 1 else 0.0
    span = f"phi from {low.min():.1f} to {high.max():.1f}"
    status, sentence = "ok", f"{span}, finite, neither saturated nor constant"
    if tied > 1e-4:
        status = wrong if tied > 0.05 else "warn"
        sentence = (
            f"{100 * tied:.2f} % of the values are {value:.4g} exactly: saturated, and tied for attacks"
        )
    elif constant:
        status = wrong if constant > N / 2 else "warn"
        sentence = f"of {constant:,} of {N:,} examples all models say the same, whatever the query"
    return Check(name, status, sentence)


def _extreme(end: Callable, block: np.ndarray, value: float, count: int) -> tuple[float, int]:
    """The largest (or smallest) value so far, and how often it has occurred."""
    here = end(block)
    if here == value or end((here, value)) != here:
        return value, count + int(np.sum(block == value))
    return float(here), int(np.sum(block == here))


def check_direction(scores: np.ndarray, keep: np.ndarray) -> Check:
    """Members must not look less like members than the others: AUC of the global threshold, `[T, N]` both."""
    auc, error, _ = _figures(scores, keep)
    text = f"AUC of the global threshold {auc:.3f} +- {1.96 * error:.3f}"
    if auc + LIMIT * error < 0.5:
        text += ", below 0.5: wrong sign, inverted membership, or rows in another order"
        return Check("direction", "fail", text)
    if auc + 1.96 * error < 0.5:
        return Check("direction", "warn", f"{text}, below 0.5: look at the sign and at the order of rows")
    return Check("direction", "ok", text)


def check_null(
    name: str,
    attack: Callable[..., np.ndarray],
    phi: SignalArray,
    keep: np.ndarray,
    *,
    target: SignalArray | None = None,
    member: np.ndarray | None = None,
    leave: Leave = "pair",
    seed: int = 0,
) -> Check:
    """Attack memberships that the models know nothing of: AUC and TPR at 0.1 % FPR must be chance.

    The examples' memberships, columns of `keep` (and of `member`), are shuffled jointly. That leaves the design as it
    is, pairs and counts, and makes membership independent of phi, so whatever the attack still finds leaks from its
    own arithmetic, such as from how many IN models remain. The attack is run anew: under scores that were computed
    before, any shuffle is at chance.

    Chance is 4 standard errors wide. They are of sums over examples, the units that were shuffled: scores of one
    example are not independent, because its targets are one another's shadow models.

    Raises:
        UnfitPoolError: the attack cannot run on such a pool.
        ValueError: one of `target` and `member` is missing, or their shapes disagree.
    """
    if target is not None and member is None:
        raise ValueError(
            "target is given without member, and its scores say nothing about keep: pass what it was trained on"
        )
    if member is not None:
        member = _membership(target, member)
    order = np.random.default_rng(seed).permutation(keep.shape[1])
    keep = keep[:, order]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said already, of the real memberships
        scores = attack(phi, keep, target=target, leave=leave)
    auc, error, low = _figures(scores, keep if member is None else member[:, order])
    sentence = f"{name} on shuffled memberships: AUC {auc:.4f}, chance is 0.5 +- {LIMIT * error:.4f}"
    far = abs(auc - 0.5) > LIMIT * error
    if low is None:
        sentence += "; too few non-members for TPR at 0.1 % FPR"
    else:
        tpr, expected, tpr_error = low
        sentence += f"; TPR at 0.1 % FPR {100 * tpr:.3f} %, chance is {100 * expected:.3f} % +- {100 * (LIMIT * tpr_error):.3f} %"
        far |= abs(tpr - expected) > LIMIT * tpr_error
    return Check(
        "shuffled memberships", "fail" if far else "ok", sentence + (": the attack leaks" if far else "")
    )


def _membership(target: SignalArray | None, member: np.ndarray) -> np.ndarray:
    """What outside targets were trained on, bool `[T, N]`; raise ValueError where it is not of their shape."""
    member = as_array(member)
    expected = None if target is None else tuple(target.shape[:2])
    if member.dtype != bool or member.shape != expected:
        raise ValueError(
            f"member must be bool [targets, examples] like the outside targets, "
            f"{'of which there are none' if expected is None else expected}; got {member.dtype} of shape {member.shape}"
        )
    return member


def _figures(scores: np.ndarray, keep: np.ndarray) -> tuple[float, float, tuple[float, float, float] | None]:
    """AUC, its standard error under chance, and (TPR, expected, standard error) at 0.1 % FPR if k >= 10 is allowed.

    Standard errors by the delta method with examples as clusters (DeLong et al. 1988; Obuchowski 1997).
    """
    step = -(-scores.size // SCORES)
    scores, keep = scores[::step], keep[::step]
    order = np.argsort(scores, axis=None)
    ordered, member, example = scores.ravel()[order], keep.ravel()[order], order % scores.shape[1]
    members = int(member.sum())
    others = len(member) - members
    if not members or not others:
        return float("nan"), float("nan"), None
    # A group of ties from `first` to `end`, of which half count as below.
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(ordered))))
    first, end = starts[group], np.append(starts, len(ordered))[group + 1]
    inside = np.append(0, np.cumsum(member))
    below_in = (inside[first] + inside[end]) / 2
    below_out = (first + end) / 2 - below_in
    wins = np.where(member, below_out / others, 1 - below_in / members)
    auc = float(wins[member].mean())
    share = np.where(member, 1 / members, 1 / others)
    error = _clustered((wins - auc) * share, example)
    allowed = int(0.001 * others * (1 + 1e-12))
    if allowed < 10:
        return auc, error, None
    false = others - (first - inside[first])  # non-members that score as high
    taken = false <= allowed
    tpr = float(member[taken].sum() / members)
    tpr_error = _clustered(np.where(member, 1, -1)[taken] * share[taken], example[taken])
    # At least a Poisson count's: a top that one example fills has no spread of its own.
    tpr_error = max(tpr_error, np.sqrt(allowed) / others)
    return auc, error, (tpr, (allowed + 1) / (others + 1), tpr_error)


def _clustered(values: np.ndarray, cluster: np.ndarray) -> float:
    """Standard error of a sum whose terms are independent between clusters."""
    return float(np.sqrt(np.sum(np.square(np.bincount(cluster, weights=values)))))
