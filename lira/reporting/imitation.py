"""A target attacked by models that imitate it: they are trained, what they say is scored and measured beside LiRA.

Layout under DIR: imitation.toml (of which target, how), target/ (Zarr: logits [C, N], phi [Q, N], member [1, N]), a run
directory of imitators for each method, scores/<attack> (Zarr [1, N]) and metrics.json. Every imitator's `done` is written
last, so that the same call goes on with what was interrupted.
"""

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from lira.attacks import (
    FewModelsWarning,
    UnfitPoolError,
    attack_r,
    lira_offline,
    lira_offline_fixed,
    lira_online,
    lira_online_fixed,
)
from lira.attacks.imitation import imia, imia_nonadaptive
from lira.data.dataset import Dataset
from lira.engine.imitate import SAME_PHI, Teacher, imitate_target, outside_teacher, teacher_of
from lira.engine.progress import Progress
from lira.learning.imitation import Imitation, pivots_of
from lira.membership import imitator_mask, related_rows
from lira.numbers import as_array
from lira.reporting.document import metrics_document
from lira.reporting.evaluation import Evaluation
from lira.reporting.measured import measure
from lira.reporting.mending import answers_of, mend_imitation, write_target
from lira.reporting.write import stored_scores, write_document
from lira.store.checksums import toml_with_checksum
from lira.store.config import read_checked_table
from lira.store.errors import RunError, TakenError
from lira.store.files import require_writable, write_atomically
from lira.store.places import Place, directory_at, new_directory
from lira.store.run import Run
from lira.store.zarr import open_array, read_store, write_array

__all__ = ["METHODS", "Imitated", "imitate"]

# IMIA of its paper, and what its non-adaptive form needs beside: the same models, from the end of the warm-up on trained
# further on pivots. GLiRA of its authors' code: squared differences of logits after 5 % of labels alone, or the divergence of
# Kullback and Leibler from the start, which is plain distillation too.
METHODS = {
    "imia": Imitation(),
    "imia_pivots": Imitation("pivots"),
    "glira_mse": Imitation("mse", warmup=0.05),
    "glira_kl": Imitation("kl", warmup=0.0),
}
LIRA = {each.__name__: each for each in (lira_online, lira_online_fixed, lira_offline, lira_offline_fixed)}


class Imitated(NamedTuple):
    """What was measured of one target."""

    path: Place
    evaluation: Evaluation
    scores: dict[str, np.ndarray]  # float32 [N] by attack
    member: np.ndarray  # bool [N]
    # Root of the mean square of phi less the target's, over models and examples that these were not trained on: of the
    # imitators by method, and of "shadows", ordinary models; None where all of them diverged.
    distances: dict[str, float | None]


def imitate(
    run: Run,
    dataset: Dataset,
    *,
    target: int | None = None,
    logits: np.ndarray | None = None,
    member: np.ndarray | None = None,
    methods: Sequence[str] | Mapping[str, Imitation] = ("imia", "glira_kl"),
    num_imitators: int = 10,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    show_progress: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> Imitated:
    """Attack one target by models that imitate it, and by LiRA with as many ordinary models; resumable.

    Attacks: `imia` (the paper's adaptive form: IN values are those of ordinary models, as many an example as there are
    imitators, so that it consults three times as many models in all), `imia_nonadaptive` (IN values are those of models that
    were trained further on pivots, other examples of the class; by the methods `imia` and `imia_pivots` together, twice as
    many models), `glira_mse` and `glira_mse_fixed` (offline LiRA against OUT models that were
    distilled from the target), `glira_kl`, `glira_kl_fixed` and `attack_d` (the rank of the target's loss among those of
    plain distillation, arXiv 2111.09679); and LiRA's four forms with as many models of the run as there are imitators, and
    with three times as many, as `imia` consults (twice as many, too, where its non-adaptive form is asked for). Ordinary models are the first of the run but the target's pair; a smaller
    run gives fewer.

    Where this differs from IMIA's authors' code (zealscott/IMIA): squares weigh w and not w^2; the last epoch is taken and
    not the one of the best accuracy; scores are not set to 0 where the mean of IN lies below that of OUT; w = 5, T = 2 and
    a quarter of the epochs as in the paper, where the configurations there have 1, 1 and half to four fifths. GLiRA's
    authors' code (AIRI-Institute/GLiRA) ranks by the two-sided density about the median; here z is one-sided, as
    `lira_offline` is.

    Args:
        run: a trained run, whose recipe, queries and data the imitators have. At least a pair beside the target's.
        dataset: its data.
        target: the number of a model of the run; or, in its place, the two that follow.
        logits: of anyone's model about the N examples, float32 or float64, see `engine.imitate.outside_teacher`.
        member: bool `[N]`, what that model was trained on.
        methods: of `METHODS`, by name; or with another `Imitation` each.
        num_imitators: of each method, even.
        seed: of the imitators' memberships, which have nothing to do with the target's.
        out: the directory; RUN/imitations/target_T, or logits_ and eight letters of their fingerprint, by default.
        show_progress: draw a bar.
        progress: called as by `train`.

    Raises:
        ValueError: an argument is none of these, or arrays do not fit the run.
        RunError: the run was imported, mixes examples or masks confidences, the target is not usable, no other models
            are, or the directory is of another imitation.
        UnfitPoolError: the memberships of a model of the run give `member` away.

    Warns:
        UserWarning: naming each attack that is not possible with these models, and why; and each thing that was broken
            among the imitators and is made again.
    """
    methods = _methods(methods)
    _require_imitable(run)
    run = Run.open(run.path, dataset)
    asked = _asked(run, dataset, target, logits, member)
    if len(asked.others) < 2:
        raise RunError(f"{run.path}: has no models but the target's pair: train more, lira train {run.path}")
    keep = imitator_mask(seed, asked.number, num_imitators, dataset.num_examples)
    path = run.path / "imitations" / asked.place if out is None else directory_at(out)
    require_writable(path)
    _open(
        path,
        {"target": asked.place, "answers": asked.answers, "num_imitators": num_imitators, "seed": seed},
        {name: dataclasses.asdict(each) for name, each in methods.items()},
        run.path,
    )
    known = None if target is None else np.asarray(run.signal("phi", np.array([target])))[0]
    for sentence in mend_imitation(path, dataset, keep, asked.find, known, asked.member):
        warnings.warn(f"{path}: {sentence}", stacklevel=2)
    teacher = _teacher(path, run, dataset, methods, asked)
    said = {"show_progress": show_progress, "progress": progress}
    imitators = {
        name: imitate_target(path / name, run, dataset, teacher, how, keep, verb=f"imitating, {name}", **said)
        for name, how in methods.items()
    }
    others = asked.others[: 3 * num_imitators]
    return _measured(path, run, dataset.y, imitators, teacher, asked.member, others, target)


# --- What is asked for -----------------------------------------------------------------------------------------------


def _methods(methods: Sequence[str] | Mapping[str, Imitation]) -> dict[str, Imitation]:
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        raise ValueError(f"methods must be among {', '.join(METHODS)}; got {', '.join(unknown) or 'none'}")
    if "imia_pivots" in methods and "imia" not in methods:
        raise ValueError(
            "imia_pivots are the IN models of imia_nonadaptive, whose OUT models are imia's: name imia too"
        )
    return dict(methods) if isinstance(methods, Mapping) else {name: METHODS[name] for name in methods}


def _require_imitable(run: Run) -> None:
    """Raise RunError where models of such a run cannot be imitated."""
    run.require_trained_pairs(
        "imitators are trained on half of the examples, by its recipe, beside complementary pairs"
    )
    if run.config.recipe.mixup or run.config.queries.masked:
        raise RunError(
            f"{run.path}: its recipe mixes examples, or its queries mask confidences, and imitators learn from a target's "
            f"own logits of one example each: imitate a run without recipe.mixup and queries.temperature, decimals and top_k"
        )


class _Asked(NamedTuple):
    """Who is to be attacked, and who serves."""

    place: str  # what its directory is called
    answers: str  # their fingerprint
    number: int  # of the target's draws
    member: np.ndarray  # bool [N]
    others: np.ndarray  # int [m], the ordinary models that may serve
    find: Callable[[], Teacher]


def _asked(
    run: Run, dataset: Dataset, target: int | None, logits: np.ndarray | None, member: np.ndarray | None
) -> _Asked:
    """A model of the run, or anyone's."""
    if target is not None and logits is None and member is None:
        row = np.array([target])
        others = _others(run, target)
        answers, held = answers_of(run.signal("phi", row)), run.memberships(row)[0]
        return _Asked(
            f"target_{target}", answers, target, held, others, partial(teacher_of, run, dataset, target)
        )
    if target is not None or logits is None or member is None:
        raise ValueError("give either target, a model of the run, or logits and member of another model")
    teacher, held = outside_teacher(run, dataset, logits), _member(member, dataset.num_examples)
    others, answers = run.models, answers_of(logits)
    if (related := related_rows(run.memberships(others), held[None])) is not None:
        raise UnfitPoolError(
            f"model {others[related[1]]} of {run.path} gives member away: it was trained on much the same, or the "
            f"opposite; make a run with another membership_seed"
        )
    return _Asked(f"logits_{answers[:8]}", answers, 0, held, others, lambda: teacher)


def _others(run: Run, target: int) -> np.ndarray:
    """The usable models of the run but the target and its mate, int `[m]`."""
    M = run.config.num_models
    if not 0 <= target < M:
        raise ValueError(f"target must be a model of {run.path}, 0 to {M - 1}; got {target}")
    models = run.models
    if target not in models:
        raise RunError(
            f"{run.path}: model {target} cannot be attacked: it or its mate is not trained yet, or diverged; take another "
            f"target, or lira train {run.path}"
        )
    return models[models // 2 != target // 2]


def _member(member: np.ndarray, num_examples: int) -> np.ndarray:
    values = as_array(member)
    if values.shape != (num_examples,) or not np.isin(values, (0, 1)).all():
        raise ValueError(
            f"member must be [{num_examples}], true or false, or 1 or 0; got {values.dtype} of shape {values.shape}"
        )
    if values.all() or not values.any():
        raise ValueError("member is the same everywhere: an attack is measured on members and non-members")
    return values.astype(bool)


def _open(path: Place, what: dict[str, Any], methods: dict[str, dict[str, Any]], run: Place) -> None:
    """Make the directory, or go on with the one that is there, with other methods too.

    Elsewhere than in RUN/imitations it names the run, wherever that is by now: who it is the target's answers tell.

    Raises:
        RunError: it is of another target, number or seed, or of another form of a method.
    """
    file = path / "imitation.toml"
    place = {} if path.parent == run / "imitations" else {"run": str(run)}
    if not file.exists():
        try:
            with new_directory(path) as making:
                write_atomically(
                    making / file.name, toml_with_checksum({**what, **place, "methods": methods})
                )
            return
        except TakenError:
            if not file.exists():  # made by another process meanwhile
                raise
    try:
        old, whole = read_checked_table(file)
        if whole is False:
            raise ValueError("it is not as it was written, by its checksum; restore it from a copy")
        theirs = old.pop("methods")
    except (ValueError, KeyError) as error:
        raise RunError(f"{path}: the directory of imitators is damaged: {file.name}: {error}") from error
    pairs = [("", old, what)]
    pairs += [(f"methods.{name}.", theirs[name], methods[name]) for name in methods if name in theirs]
    changes = [
        f"{prefix}{key} is {before.get(key)!r} there and {value!r} here"
        for prefix, before, now in pairs
        for key, value in now.items()
        if before.get(key) != value
    ]
    if changes:
        raise RunError(f"{path}: is another imitation: {'; '.join(changes)}; name another directory")
    if methods.keys() - theirs.keys() or old.get("run") != place.get("run"):
        write_atomically(file, toml_with_checksum({**what, **place, "methods": {**theirs, **methods}}))


def _teacher(
    path: Place,
    run: Run,
    dataset: Dataset,
    methods: Mapping[str, Imitation],
    asked: _Asked,
) -> Teacher:
    """The target as it was when its imitation began; found anew only where it is asked in training."""
    store, recipe = path / "target", run.config.recipe
    stored = None
    if store.exists():
        logits, phi = (read_store(open_array(store / name), str(store)).T for name in ("logits", "phi"))
        stored = Teacher(logits, phi)
        complete = all((path / name).exists() and (Run.open(path / name).done > 0).all() for name in methods)
        if complete:
            return stored
    run.require_same_models(dataset)
    if stored is not None and not (recipe.flip or recipe.crop_pad):
        return stored
    found = asked.find()
    if stored is None:
        write_target(path, found, asked.member)
        return found
    if np.abs(found.phi - stored.phi).max() > SAME_PHI:
        raise RunError(
            f"{path}: the target answers otherwise than when its imitation began; remove the directory, or name another"
        )
    return stored._replace(variables=found.variables)


# --- What it comes to ------------------------------------------------------------------------------------------------


def _measured(
    path: Place,
    run: Run,
    labels: np.ndarray,
    imitators: dict[str, Run],
    teacher: Teacher,
    member: np.ndarray,
    others: np.ndarray,
    target: int | None,
) -> Imitated:
    """Score, measure and write; `others` are the ordinary models that serve."""
    shadows, held = np.asarray(run.signal("phi", others)), run.memberships(others)
    said = {name: (np.asarray(each.phi), each.keep) for name, each in imitators.items()}
    scores, consulted = {}, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewModelsWarning)  # LiRA with one variance stands beside
        for name, models, attack in _attacks(teacher.phi, labels, said, shadows, held):
            try:
                scores[name] = np.asarray(attack(), np.float32).reshape(-1)
                consulted[name] = models
            except UnfitPoolError as error:
                warnings.warn(f"{name} is left out: {error}", stacklevel=3)
    by_row = {name: values[None] for name, values in scores.items()}
    models = None if target is None else [target]
    coins = target is not None and run.independent
    evaluation = Evaluation(**vars(measure(by_row, member[None], models, independent=coins)))
    distances = {
        name: _distance(phi, keep, teacher.phi)
        for name, (phi, keep) in {**said, "shadows": (shadows, held)}.items()
    }
    for name, values in by_row.items():
        (path / "scores").mkdir(exist_ok=True)
        write_array(path / "scores" / name, values, {"target": target, "models": consulted[name]})
    document = {**metrics_document(evaluation), "consulted": consulted, "distances": distances}
    write_document(path, "metrics.json", document, {}, stored_scores(path, by_row))
    return Imitated(path, evaluation, scores, member, distances)


def _attacks(
    phi: np.ndarray,
    labels: np.ndarray,
    imitators: Mapping[str, tuple[np.ndarray, np.ndarray]],
    shadows: np.ndarray,
    held: np.ndarray,
) -> Iterator[tuple[str, dict[str, int], Callable[[], np.ndarray]]]:
    """Name, models that are consulted, and the attack on a target's `phi [N, Q]`: `imitators` are (phi, keep) by method."""
    most = max((len(each) for each, _ in imitators.values()), default=0)
    for name, (theirs, keep) in imitators.items():
        models = {"imitators": len(theirs)}
        if name == "imia":
            few = slice(2 * len(theirs))  # half of them IN
            yield (
                name,
                {**models, "shadows": len(shadows[few])},
                partial(imia, phi, theirs, keep, shadows[few], held[few]),
            )
            continue
        if name == "imia_pivots":
            pivots = pivots_of(phi[:, 0], labels)
            attack = partial(imia_nonadaptive, phi, *imitators["imia"], theirs, keep, pivots, labels)
            yield "imia_nonadaptive", {"imitators": len(imitators["imia"][0]) + len(theirs)}, attack
            continue
        arguments = {"phi": theirs, "keep": keep, "target": phi[None]}
        yield name, models, partial(lira_offline, **arguments)
        yield f"{name}_fixed", models, partial(lira_offline_fixed, **arguments)
        if name == "glira_kl":
            yield "attack_d", models, partial(attack_r, **arguments)
    pivoted = {2 * most} if "imia_pivots" in imitators else set()  # as imia_nonadaptive consults
    for count in sorted({min(each, len(shadows)) for each in (most, len(shadows), *pivoted)}):
        few = slice(count)
        for name, attack in LIRA.items():
            arguments = {"phi": shadows[few], "keep": held[few], "target": phi[None]}
            yield f"{name}_of_{count}", {"shadows": count}, partial(attack, **arguments)


def _distance(phi: np.ndarray, keep: np.ndarray, target: np.ndarray) -> float | None:
    """Root mean square of phi `[K, N, Q]` less the target's `[N, Q]`, where `keep [K, N]` is false; None without models."""
    if not len(phi):
        return None
    return float(np.sqrt(np.square(phi.astype(np.float64) - target)[~keep].mean()))
