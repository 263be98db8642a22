"""`lira audit`: every attack on anyone's confidences, from files to a report.

Axes are read by position, so nothing is guessed: models, examples, then what the kind of values says (see
`confidences.to_phi`). Without an outside target every model of the pool is attacked by the others.
"""

import argparse
import dataclasses
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lira.attacks.suite import Pool, attack_pool
from lira.data.files import Rows, read_array
from lira.exchange.confidences import KINDS, as_keep, as_labels, to_entropies, to_phi
from lira.membership import pair_rows
from lira.metrics.alignment import member_z, require_aligned
from lira.reporting import evaluate, page, write
from lira.reporting.checks import check_pool
from lira.signals import replace_saturated
from lira.store.zarr import new_directory, write_array

__all__ = ["Audit", "AuditError", "add_arguments", "read_audit", "write_audit"]


class AuditError(ValueError):
    """Files that cannot be audited; the message names the file and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Audit:
    """A pool to attack, and what is known about it besides."""

    pool: Pool
    labels: np.ndarray | None = None  # int32 [N]
    member: np.ndarray | None = None  # bool [T, N], of the outside targets
    models: np.ndarray | None = None  # int [M], the row of each in the files, where they were paired

    @property
    def membership(self) -> np.ndarray:
        """Of what is attacked: bool `[T, N]`, or `[M, N]` without an outside target."""
        return self.pool.keep if self.member is None else self.member


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `lira audit`."""
    values = parser.add_mutually_exclusive_group(required=True)
    shapes = {
        "phi": "logit-scaled confidences [M, N] or [M, N, Q]",
        "logits": "[M, N, C] or [M, N, Q, C]; [M, N] or [M, N, Q, 1] for one logit of a binary classifier",
        "confidences": "of the label [M, N] or [M, N, Q]; with --labels whole vectors [M, N, C] or [M, N, Q, C]",
        "losses": "cross-entropy in nats [M, N] or [M, N, Q]",
    }
    for kind in KINDS:
        values.add_argument(f"--{kind}", metavar="F", help=shapes[kind])
    parser.add_argument(
        "--keep", metavar="F", required=True, help="[M, N], which model was trained on which example"
    )
    parser.add_argument("--labels", metavar="F", help="[N], needed for logits")
    parser.add_argument(
        "--target", metavar="F", help="the same values of the attacked model [N, ...], or of T of them"
    )
    parser.add_argument("--member", metavar="F", help="[N] or [T, N], what the target was trained on")
    parser.add_argument(
        "--population", metavar="F", help="the pool's values of points that none was trained on"
    )
    parser.add_argument("--target-population", metavar="F", help="the target's values of the same points")
    parser.add_argument("--population-labels", metavar="F", help="their labels, needed for logits")
    parser.add_argument("--out", metavar="DIR", required=True, help="a new or empty directory for the report")


def read_audit(files: Mapping[str, str | None]) -> Audit:
    """Open, check and convert the files of an audit.

    Rows of `keep` that are complementary pairs are brought together, so that a target's mate can be left out with it.

    Args:
        files: by the names of the flags, with underscores; one of `KINDS`, and keep.

    Raises:
        AuditError: files do not fit each other, or hold what cannot be: NaN, probabilities in place of logits, one
            class or one side of membership only, labels or memberships that the values contradict.
        FileError: a file cannot be read.
    """
    kind = next(kind for kind in KINDS if files.get(kind))
    given = {name: _File(str(place), read_array(place)) for name, place in files.items() if place}
    needs = [("target", "member"), ("member", "target"), ("population_labels", "population")]
    needs += [("target_population", "target"), ("target_population", "population")]
    if "target" in given:
        needs.append(("population", "target_population"))
    for one, other in needs:
        if one in given and other not in given:
            one, other = one.replace("_", "-"), other.replace("_", "-")
            raise AuditError(f"--{one} is given without --{other}: it needs that too")
    values = given[kind]
    shape = values.array.shape
    if len(shape) < 2:
        raise AuditError(f"{values.place}: must be [models, examples, ...]; got shape {tuple(shape)}")
    M, N = shape[:2]
    labels = _labels(given.get("labels"), N)
    keep = _membership(given["keep"], (M, N))
    member, sources = None, [values]
    if "target" in given:
        target = _as_rows(given["target"], len(shape))
        member = _membership(given["member"], (target.array.shape[0], N))
        sources.append(target)
    _check_sides(keep, member, given["keep"].place)
    signals = _convert(kind, sources, labels, keep, member)
    target_signals = None if member is None else {name: rows[M:] for name, rows in signals.items()}
    pool = Pool({name: rows[:M] for name, rows in signals.items()}, keep, target_signals)
    if "population" in given:
        points = [given["population"]]
        if points[0].array.shape[0] != M:
            raise AuditError(
                f"{points[0].place}: must hold the pool's {M} models; got {points[0].array.shape[0]} rows"
            )
        if "target_population" in given:
            points.append(_as_rows(given["target_population"], len(shape)))
        known = _labels(given.get("population_labels"), points[0].array.shape[1])
        answers = _convert(kind, points, known)["phi"]
        theirs = answers[M:] if len(points) > 1 else None
        pool = dataclasses.replace(pool, population=answers[:M], target_population=theirs)
    audit = Audit(pool, labels, member)
    return audit if member is not None else _paired(audit)


def write_audit(
    audit: Audit,
    out: str | os.PathLike[str],
    *,
    facts: Mapping[str, str] | None = None,
    said: Iterable[str] = (),
) -> dict[str, Any]:
    """Attack the pool and write metrics.json, pictures, report.html and scores/ into a new or empty directory.

    Args:
        audit: from `read_audit`, or made of arrays.
        out: the directory; it appears whole or not at all.
        facts: more to say about the audit on the page.
        said: warnings for the page; read once the attacks are done, so that it may still grow until then.

    Returns:
        The content of metrics.json.

    Raises:
        AuditError: the pool allows no attack.
        RunError: the directory is not empty, or cannot be written.
    """
    pool = audit.pool
    with new_directory(Path(out).expanduser().absolute()) as making:
        scores = attack_pool(pool)
        if not scores:
            raise AuditError("no attack is possible with these models: each was left out for want of others")
        metrics, curves = evaluate.evaluate(scores, audit.membership)
        # In the order of the files, whatever order pairs were brought into.
        order = np.arange(len(audit.membership)) if audit.models is None else audit.models
        metrics = {**metrics, "models": sorted(order.tolist())}
        (making / "scores").mkdir()
        for name, values in scores.items():
            write_array(making / "scores" / name, values[np.argsort(order)], {"models": metrics["models"]})
        first = next(iter(scores))
        write.write_report(
            making,
            metrics=metrics,
            curves=curves,
            examples=None
            if pool.target is not None
            else write.example_figure(
                pool.signals["phi"], pool.keep, scores[first], metrics["attacks"][first], audit.labels
            ),
            facts={**_facts(pool), **(facts or {})},
            checks=check_pool(pool, audit.labels, audit.member),
            warnings=said,
        )
    return metrics


def _facts(pool: Pool) -> dict[str, str]:
    M, N, Q = pool.signals["phi"].shape
    facts = {"shadow models": f"{M}", "examples": f"{N:,}", "queries": f"{Q}"}
    if pool.target is None:
        design = "with its pair" if pool.leave == "pair" else "alone"
        facts["targets"] = f"every model of the pool, left out of it {design}"
    else:
        facts["targets"] = f"{pool.target['phi'].shape[0]} outside the pool"
    return {**facts, **page.attacks_left_out(pool)}


# --- From files to arrays -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _File:
    """An opened array and where it is, for messages."""

    place: str
    array: Rows


def _as_rows(file: _File, axes: int) -> _File:
    """A target as one of T: where it has an axis less than the pool it is the only one."""
    if len(file.array.shape) == axes - 1:
        return _File(file.place, np.asarray(file.array)[None])
    if len(file.array.shape) != axes:
        raise AuditError(
            f"{file.place}: must have the {axes} axes of the pool, or one less for a single target; got shape "
            f"{tuple(file.array.shape)}"
        )
    return file


def _membership(file: _File, shape: tuple[int, int]) -> np.ndarray:
    """Bool of that shape, `[T, N]`; `[N]` is a single target's."""
    values = np.asarray(file.array)
    if values.ndim == 1 and shape[0] == 1:
        values = values[None]
    if values.shape != shape:
        turned = ": transpose it" if values.shape == shape[::-1] else ""
        raise AuditError(
            f"{file.place}: must be [{shape[0]}, {shape[1]}], models and examples as in the values; got shape "
            f"{values.shape}{turned}"
        )
    try:
        return as_keep(values, "membership")
    except ValueError as error:
        raise AuditError(f"{file.place}: {error}") from error


def _labels(file: _File | None, num_examples: int) -> np.ndarray | None:
    if file is None:
        return None
    try:
        return as_labels(np.asarray(file.array), num_examples)
    except ValueError as error:
        raise AuditError(f"{file.place}: {error}") from error


def _check_sides(keep: np.ndarray, member: np.ndarray | None, place: str) -> None:
    """What is attacked needs members and non-members, and an attack needs models that have not seen an example."""
    if keep.all():
        raise AuditError(f"{place}: is true everywhere: no example has a model that was not trained on it")
    if member is None and not keep.any():
        raise AuditError(f"{place}: is false everywhere: give the attacked model by --target and --member")
    attacked, what = (keep, "model") if member is None else (member, "target")
    for row, held in enumerate(attacked):
        if held.all() or not held.any():
            raise AuditError(
                f"{place if member is None else '--member'}: {what} {row} has {'only' if held.all() else 'no'} members: "
                f"an audit needs members and non-members"
            )


def _convert(
    kind: str,
    sources: list[_File],
    labels: np.ndarray | None,
    keep: np.ndarray | None = None,
    member: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Phi of all rows of the sources, and the entropies where they say what all classes get.

    Each finite float32 `[rows, N, Q]`; one row of the sources is in memory at a time.
    """
    shape, precision = sources[0].array.shape, np.dtype(np.float64)
    count = sum(each.array.shape[0] for each in sources)
    signals: dict[str, np.ndarray] = {}
    start = 0
    for file, membership in zip(sources, (keep, member), strict=False):
        accuracy, z = [], []
        if file.array.shape[1:] != shape[1:]:
            raise AuditError(
                f"{file.place}: has shape {tuple(file.array.shape)}, and {sources[0].place} {tuple(shape)}: all axes but "
                f"the first must agree"
            )
        for row in range(file.array.shape[0]):
            values = np.asarray(file.array[row])
            try:
                phi, correct = to_phi(kind, values, labels)
                rows = {"phi": phi, **to_entropies(kind, values, labels)}
            except ValueError as error:
                raise AuditError(f"{file.place}: model {row}: {error}") from error
            if not start + row:
                signals = {name: np.empty((count, *phi.shape), np.float32) for name in rows}
                precision = values.dtype if values.dtype.kind == "f" else precision
            for name, converted in rows.items():
                signals[name][start + row] = converted
            if membership is not None:
                held = membership[row] if membership[row].any() else ~membership[row]
                accuracy.append(np.nan if correct is None else correct[held].mean())
                z.append(member_z(phi, membership[row]))
        start += file.array.shape[0]
        if membership is not None:
            try:
                require_aligned(np.array(accuracy), np.array(z), membership, labels)
            except ValueError as error:
                raise AuditError(f"{file.place}: {error}") from error
    return {**signals, "phi": replace_saturated(signals["phi"], precision)}


def _paired(audit: Audit) -> Audit:
    """The audit with complementary rows side by side; rows without a mate are left out."""
    pool = audit.pool
    order = pair_rows(pool.keep)
    if not len(order):
        return audit
    if len(order) < len(pool.keep):
        lost = sorted(set(range(len(pool.keep))) - set(order.tolist()))
        warnings.warn(
            f"models {', '.join(map(str, lost))} are left out, because the others are complementary pairs and the mate is "
            f"missing",
            stacklevel=3,
        )
    elif (order == np.arange(len(order))).all():
        return audit
    paired = dataclasses.replace(
        pool,
        signals={name: np.asarray(rows)[order] for name, rows in pool.signals.items()},
        keep=pool.keep[order],
        population=None if pool.population is None else np.asarray(pool.population)[order],
    )
    return dataclasses.replace(audit, pool=paired, models=order)
