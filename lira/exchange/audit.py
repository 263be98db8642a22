"""Every attack on anyone's confidences, from arrays or files to a run and its report."""

import os
from collections.abc import Collection, Iterable, Iterator

import numpy as np

from lira.attacks.suite import select_attacks
from lira.exchange.reading import Audit, AuditError, Values, read_audit
from lira.reporting.evaluation import Evaluation
from lira.reporting.reports import report
from lira.scoring import score
from lira.store.imported import run_of_models
from lira.store.places import Place, directory_at, new_directory, require_new
from lira.store.run import Run

__all__ = ["Audit", "AuditError", "audit", "read_audit", "write_audit"]


def audit(
    out: str | os.PathLike[str],
    *,
    keep: Values,
    phi: Values | None = None,
    logits: Values | None = None,
    confidences: Values | None = None,
    losses: Values | None = None,
    labels: Values | None = None,
    target: Values | None = None,
    member: Values | None = None,
    population: Values | None = None,
    target_population: Values | None = None,
    population_labels: Values | None = None,
    independent: bool = False,
    trust_order: bool = False,
    attacks: Collection[str] | None = None,
    headline: str | None = None,
    warnings: Iterable[str] = (),
) -> Evaluation:
    """Attack models that anyone trained, and write a report: `read_audit` and `write_audit` in one.

    Args:
        out: a new or empty directory; it appears whole or not at all.
        keep: bool `[M, N]`, which model was trained on which example. All arguments but `out` are arrays or files.
        phi: logit-scaled confidences `[M, N]` or `[M, N, Q]`. Exactly one of the four kinds of values is given.
        logits: `[M, N, C]` or `[M, N, Q, C]`; `[M, N]` or `[M, N, Q, 1]` for one logit of a binary classifier.
        confidences: of the label `[M, N]`, `[M, N, Q]` or `[M, N, Q, 1]`; with `labels`, and as many columns as classes,
            whole vectors `[M, N, C]` or `[M, N, Q, C]`.
        losses: cross-entropy in nats `[M, N]` or `[M, N, Q]`.
        labels: int `[N]`; logits need them.
        target: the same values of the attacked model `[N, ...]`, or of T of them; None attacks every model of the pool.
        member: `[N]` or `[T, N]`, what the target was trained on.
        population: the pool's values of points that none was trained on.
        target_population: the target's values of the same points.
        population_labels: their labels.
        independent: as for `read_audit`.
        trust_order: as for `read_audit`.
        attacks: as for `write_audit`.
        headline: as for `write_audit`.
        warnings: as for `write_audit`.

    Returns:
        What was measured.

    Raises:
        AuditError: as `read_audit` and `write_audit`.
        RunError: the directory is not empty, or cannot be written.
    """
    require_new(directory_at(out))
    given = {"phi": phi, "logits": logits, "confidences": confidences, "losses": losses, "keep": keep}
    given |= {"labels": labels, "target": target, "member": member, "population": population}
    given |= {"target_population": target_population, "population_labels": population_labels}
    files = {name: path for name, path in given.items() if isinstance(path, str | os.PathLike)}
    named = ", ".join(f"{name.replace('_', '-')} {path}" for name, path in files.items())
    read = read_audit(given, independent=independent, trust_order=trust_order)
    source = named or "arrays"
    return write_audit(read, out, source=source, attacks=attacks, headline=headline, warnings=warnings)


def write_audit(
    audit: Audit,
    out: str | os.PathLike[str],
    *,
    source: str = "arrays",
    attacks: Collection[str] | None = None,
    headline: str | None = None,
    warnings: Iterable[str] = (),
) -> Evaluation:
    """Make a run of the audit in a new or empty directory, attack it, and report: `Run.open(out)` is like any other.

    Models stand in the order of the files; where pairs are apart, the run knows who is whose mate. Outside targets come
    first, and the pool's models after them.

    Args:
        audit: from `read_audit`, or made of arrays.
        out: the directory; it appears whole or not at all.
        source: where the arrays come from, for people.
        attacks: names of those to run; None: all.
        headline: the attack that leads; None: by the pool's size and design, see `measured.headline_attack`.
        warnings: shown at the top of the page; read once the checks are done, so that they may still grow until then.

    Returns:
        What was measured.

    Raises:
        AuditError: the pool allows no attack.
        RunError: the directory is not empty, or cannot be written.
        ValueError: there is no such attack, or the headline is none of those that could run.
    """
    selected = None if attacks is None else select_attacks(attacks)
    with new_directory(directory_at(out)) as making:
        run = _run_of(audit, making, source)
        if not score(run, attacks=selected):
            raise AuditError("no attack is possible with these models: each was left out for want of others")
        return report(run, attacks=attacks, headline=headline, warnings=warnings)


def _run_of(audit: Audit, making: Place, files: str) -> Run:
    """The run, in a directory that is being made."""
    pool = audit.pool
    M, N = pool.keep.shape
    T = 0 if audit.member is None else len(audit.member)
    # Where each of the pool's models stands: in the order of the files, those without a mate gone.
    place = np.arange(M) if audit.models is None else np.argsort(np.argsort(audit.models))
    rows = np.empty(M, int)
    rows[place] = np.arange(M)
    keep = pool.keep[rows] if audit.member is None else np.concatenate([audit.member, pool.keep[rows]])
    source = {
        "layout": "audit",
        "path": files,
        "file": "",
        "requested": M + T,
        "independent": pool.independent,
        "targets": T,
    }
    if audit.models is not None:
        source |= {"order": place.tolist(), "rows": np.sort(audit.models).tolist()}
    labels = np.full(N, -1) if audit.labels is None else audit.labels
    test_labels = None
    if _has_population(audit) and pool.population is not None:
        count = pool.population.shape[1]
        test_labels = np.full(count, -1) if audit.population_labels is None else audit.population_labels
        test_labels = test_labels.astype(np.int32)
    models = _models(audit, rows)
    return run_of_models(making, keep, labels, models, source=source, test_labels=test_labels)


def _has_population(audit: Audit) -> bool:
    """Whether all models have answered about points that none was trained on."""
    pool = audit.pool
    return pool.population is not None and (pool.target is None or pool.target_population is not None)


def _models(audit: Audit, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of each model: outside targets first, then the pool's `rows`."""
    pool, M = audit.pool, len(rows)
    names = [name for name in pool.signals if pool.target is None or name in pool.target]
    sides = [(pool.signals, pool.population, row, row) for row in rows.tolist()]
    if pool.target is not None:
        T = pool.target["phi"].shape[0]
        sides = [(pool.target, pool.target_population, row, M + row) for row in range(T)] + sides
    for signals, population, row, number in sides:
        one = slice(row, row + 1)
        arrays = {name: np.asarray(signals[name][one, :], np.float32)[0] for name in names}
        if _has_population(audit) and population is not None:
            arrays["phi_test"] = np.asarray(population[one, :], np.float32)[0]
        inside, outside = (np.nan, np.nan) if audit.accuracies is None else audit.accuracies[:, number]
        figures = {"accuracy_in": inside, "accuracy_out": outside, "accuracy_test": np.nan}
        yield arrays | {name: np.asarray(value, np.float32) for name, value in figures.items()}
