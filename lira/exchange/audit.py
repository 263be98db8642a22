"""Every attack on anyone's confidences, from arrays or files to a report."""

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lira.attacks.suite import ATTACKS, Attack, Pool, attack_pool, select_attacks
from lira.exchange.reading import Audit, AuditError, Values, read_audit
from lira.reporting.checks import check_pool
from lira.reporting.evaluation import Evaluation, evaluate_pool
from lira.reporting.measured import Subject
from lira.scoring import StoredScores
from lira.store.places import directory_at, new_directory
from lira.store.zarr import open_array, read_store, write_array

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
        confidences: of the label `[M, N]` or `[M, N, Q]`; with `labels` whole vectors `[M, N, C]` or `[M, N, Q, C]`.
        losses: cross-entropy in nats `[M, N]` or `[M, N, Q]`.
        labels: int `[N]`; logits need them.
        target: the same values of the attacked model `[N, ...]`, or of T of them; None attacks every model of the pool.
        member: `[N]` or `[T, N]`, what the target was trained on.
        population: the pool's values of points that none was trained on.
        target_population: the target's values of the same points.
        population_labels: their labels.
        independent: as for `read_audit`.
        attacks: as for `write_audit`.
        headline: as for `write_audit`.
        warnings: as for `write_audit`.

    Returns:
        What was measured.

    Raises:
        AuditError: as `read_audit` and `write_audit`.
        RunError: the directory is not empty, or cannot be written.
    """
    given = {"phi": phi, "logits": logits, "confidences": confidences, "losses": losses, "keep": keep}
    given |= {"labels": labels, "target": target, "member": member, "population": population}
    given |= {"target_population": target_population, "population_labels": population_labels}
    files = {name: path for name, path in given.items() if isinstance(path, str | os.PathLike)}
    named = ", ".join(f"{name.replace('_', '-')} {path}" for name, path in files.items())
    read = read_audit(given, independent=independent)
    facts = {"files": named} if files else {}
    return write_audit(read, out, facts=facts, attacks=attacks, headline=headline, warnings=warnings)


def write_audit(
    audit: Audit,
    out: str | os.PathLike[str],
    *,
    facts: Mapping[str, str] | None = None,
    attacks: Collection[str] | None = None,
    headline: str | None = None,
    warnings: Iterable[str] = (),
) -> Evaluation:
    """Attack the pool and write metrics.json, pictures, report.html, records and scores/ into a new or empty directory.

    Args:
        audit: from `read_audit`, or made of arrays.
        out: the directory; it appears whole or not at all.
        facts: more to say about the audit on the page.
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
    pool, selected = audit.pool, ATTACKS if attacks is None else select_attacks(attacks)
    with new_directory(directory_at(out)) as making:
        # In the order of the files, whatever order pairs were brought into.
        order = np.arange(len(audit.membership)) if audit.models is None else audit.models
        models = sorted(order.tolist())
        scores = _scored(pool, selected, making / "scores", order, {"models": models})
        if not scores:
            raise AuditError("no attack is possible with these models: each was left out for want of others")
        evaluation = evaluate_pool(
            pool,
            scores,
            audit.membership,
            checks=check_pool(pool, audit.labels, audit.member),
            attacks=selected,
            headline=headline,
            models=order.tolist(),
            known={"labels": audit.labels},
            subject=_subject(audit),
            selected=attacks,
            facts={**_facts(pool), **(facts or {})},
            warnings=warnings,
        )
        evaluation.report(making)
    return evaluation


def _subject(audit: Audit) -> Subject:
    M, N, Q = audit.pool.signals["phi"].shape
    inside, outside = audit.accuracies
    attackers = {"num_models": M, "outside": audit.member is not None}
    return Subject(num_examples=N, queries=Q, accuracy_in=inside, accuracy_out=outside, **attackers)


def _scored(
    pool: Pool, attacks: Mapping[str, Attack], path: Path, order: np.ndarray, attributes: dict[str, Any]
) -> StoredScores:
    """Attack the pool and write each attack's scores into a directory, row `order[t]` of them those of target t."""
    path.mkdir()
    names = []
    for name, attack in attacks.items():
        for values in attack_pool(pool, {name: attack}).values():
            write_array(path / name, values[np.argsort(order)], attributes)
            names.append(name)

    def read(attack: str) -> np.ndarray:
        return read_store(open_array(path / attack), str(path / attack))[np.argsort(np.argsort(order))]

    return StoredScores(tuple(names), read)


def _facts(pool: Pool) -> dict[str, str]:
    M, N, Q = pool.signals["phi"].shape
    targets = (
        f"every model of the pool, left out of it {'with its pair' if pool.leave == 'pair' else 'alone'}"
    )
    if pool.target is not None:
        targets = f"{pool.target['phi'].shape[0]} outside the pool"
    coins = "declared" if pool.independent else "not declared"
    facts = {"shadow models": f"{M}", "examples": f"{N:,}", "queries": f"{Q}", "targets": targets}
    return {**facts, "memberships drawn by independent coins": coins}
