"""The verbs that end in figures: report a run, or any pool of models, or its examples; compare attacks, or two runs."""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lira.attacks.suite import ATTACKS, Pool, missing_signals, pool_p_values
from lira.data.dataset import Dataset
from lira.metrics import Difference, difference
from lira.reporting.checks import check_run
from lira.reporting.evaluate import (
    LOW_FPR,
    Evaluation,
    calibrate,
    evaluate,
    measure_attacks,
    strongest_attack,
)
from lira.reporting.page import named_values
from lira.reporting.published import Comparison, compare_published
from lira.reporting.records import Records, records_of
from lira.reporting.write import example_figure, write_records, write_report
from lira.scoring import pool_of, score, score_each
from lira.store.arrays import DIVERGED, DONE
from lira.store.errors import RunError
from lira.store.run import Run

__all__ = ["Differences", "compare", "is_reported", "records", "report", "report_pool"]

# Whose p-values are exact example by example.
LIRA_P_VALUES = {name: ATTACKS[name] for name in ("lira_online", "lira_offline")}


def report(run: Run, dataset: Dataset | None = None, *, warnings: Iterable[str] = ()) -> Evaluation:
    """Score a run where that is not done, and write metrics.json, pictures, report.html and records into it.

    Args:
        run: the run.
        dataset: its data, for pictures, the examples' names and `quantile_regression`; None goes without them.
        warnings: shown at the top of the page; read once the attacks are done, so that they may still grow until then.

    Returns:
        What was measured.

    Raises:
        RunError: too few trained models are usable, the data set has names and is not the run's, or another
            process is writing the run.
    """
    run = run.as_it_stands()
    known = _what_is_known(run, dataset)
    pool = pool_of(run, dataset)
    scores = score(run, dataset, pool=pool)
    member = run.membership
    # In this order, so that little is held when a large curve is.
    checks = check_run(run, pool=pool)
    evaluation = evaluate(scores, member, known["models"], independent=pool.independent)
    calibrated, p_value = calibrate(pool_p_values(pool), member)
    evaluation = dataclasses.replace(evaluation, pool=run.models.tolist(), calibrated=calibrated)
    examples = records_of(scores.items(), member, p_value=p_value, **known)
    with run.lock():
        report_pool(
            run.path,
            pool,
            scores,
            evaluation,
            labels=known["labels"],
            images=dataset.x if dataset is not None and dataset.is_image else None,
            facts=_facts(run),
            records=examples,
            checks=checks,
            published=_published(run, evaluation),
            warnings=warnings,
        )
    return evaluation


def records(run: Run, dataset: Dataset | None = None, *, fpr: float = LOW_FPR) -> Records:
    """What every attack says of each example, written to a run's records.csv, records.json and records/ too.

    Attacks are read one at a time; what is not scored yet is scored first.

    Args:
        run: the run.
        dataset: its data, which knows the names of classes and files, and which `quantile_regression` reads.
        fpr: of the vulnerability, a fraction, pooled over targets; see `records_of`.

    Raises:
        RunError: too few trained models are usable, the data set has names and is not the run's, or another
            process is writing the run.
        ValueError: `fpr` is outside [0, 1].
    """
    run = run.as_it_stands()
    scores = score_each(run, dataset)
    exact = (
        (name, p.values) for name, p in pool_p_values(pool_of(run), LIRA_P_VALUES) if name in LIRA_P_VALUES
    )
    known = _what_is_known(run, dataset)
    found = records_of(scores, run.membership, fpr=fpr, p_value=next(exact, None), **known)
    with run.lock():
        write_records(run.path, found)
    return found


def _what_is_known(run: Run, dataset: Dataset | None) -> dict[str, Any]:
    """Of the targets and of the examples, for `records_of`; names only from the data that the run is of."""
    at = run.audited
    known: dict[str, Any] = {"models": run.targets.tolist(), "labels": run.labels[at]}
    if run.is_disjoint:
        known["indices"] = at
    if dataset is None or not (dataset.class_names or dataset.files):
        return known
    if run.is_imported:  # of its examples no more is known than their labels
        is_the_runs = len(dataset.y) == len(run.labels) and np.array_equal(
            dataset.y[run.labels >= 0], run.labels[run.labels >= 0]
        )
    else:
        is_the_runs = dataset.fingerprint == run.provenance["fingerprints"]["dataset"]
    if not is_the_runs:
        raise RunError(
            f"{run.path}: is a run of other data than {dataset.name}: contents, labels or order differ, so its names "
            f"are not these examples'"
        )
    files = [dataset.files[i] for i in at.tolist()] if dataset.files else dataset.files
    return {**known, "class_names": dataset.class_names, "files": files}


def report_pool(
    path: str | os.PathLike[str],
    pool: Pool,
    scores: Mapping[str, np.ndarray],
    evaluation: Evaluation,
    *,
    labels: np.ndarray | None = None,
    images: np.ndarray | None = None,
    facts: Mapping[str, str],
    **parts: Any,
) -> None:
    """Write the report of any pool: see `write_report`.

    Args:
        path: the directory.
        pool: what is attacked, and with what.
        scores: float `[T, N]` by attack; examples are judged by the first.
        evaluation: of these scores.
        labels: int `[N]`, for the examples' titles; -1 where it is not known.
        images: `[N, H, W, C]`, drawn as insets.
        facts: what to say about the pool; the attacks that read what it does not hold are added.
        **parts: see `write_report`.
    """
    first, missing = next(iter(scores)), missing_signals(pool)
    left_out = ", ".join(f"{name} (no {signal})" for name, signal in missing.items())
    examples = None
    if pool.target is None:
        attack = evaluation.attacks[first]
        examples = example_figure(pool.signals["phi"], pool.keep, scores[first], attack, labels, images)
    facts = {**facts, **({"attacks left out": left_out} if missing else {})}
    write_report(path, evaluation, examples=examples, facts=facts, **parts)


def is_reported(run: Run) -> bool:
    """Whether the report on disk is of the models that are there now."""
    try:
        document = json.loads((run.path / "metrics.json").read_text())
        models = document.get("pool", document["models"])  # earlier versions attacked all models
    except (OSError, ValueError, KeyError):
        return False
    return models == run.models.tolist() and all(
        (run.path / name).exists() for name in ("roc.png", "report.html", "records.json")
    )


class Differences(NamedTuple):
    """Attacks of a run less what they are compared with, on the same targets."""

    against: str  # an attack of the same run, or another run's path
    by_attack: dict[str, Difference]


def compare(run: Run, other: Run | None = None, *, fpr: float = LOW_FPR) -> Differences:
    """Each attack less the strongest of the same run, or each attack of one run less the same of another.

    Args:
        run: scored where that is not done.
        other: another run of the same memberships.
        fpr: of the TPRs, a fraction.

    Raises:
        RunError: too few trained models are usable.
        ValueError: the memberships differ.
    """
    scores, keep = score(run), run.membership
    if other is None:
        against, _ = strongest_attack(measure_attacks(scores, keep))
        theirs, keep_b = {name: scores[against] for name in scores if name != against}, keep
    else:
        against, theirs, keep_b = str(other.path), score(other), other.membership
    differences = {
        name: difference(scores[name], theirs[name], keep, keep_b=keep_b, fpr=fpr)
        for name in scores
        if name in theirs
    }
    return Differences(against, differences)


def _published(run: Run, evaluation: Evaluation) -> list[Comparison]:
    config = run.config
    # Data set and model of an import are not known by name, and all that is published is of models of half the examples.
    if run.is_imported or config.membership.design != "pairs":
        return []
    M, N, Q = run.phi.shape
    return compare_published(
        evaluation.attacks,
        dataset=config.dataset,
        num_examples=N,
        model=config.recipe.model,
        models=M,
        queries=Q,
    )


def _facts(run: Run) -> dict[str, str]:
    """What the page says about the run."""
    config, done = run.config, run.done
    _, N, Q = run.phi.shape
    attacked = f", {len(run.audited):,} of them attacked" if run.is_disjoint else ""
    by = f" by {len(run.shadows)} others" if run.is_disjoint else ""
    facts = {
        "data set": f"{config.dataset}, {N:,} examples{attacked}",
        "shadow models": f"{len(run.targets)} attacked{by}; {np.sum(done == DONE)} done and {np.sum(done == DIVERGED)} "
        f"diverged of {config.num_models} requested",
    }
    for side in ("in", "out", "test"):
        values = run.accuracy(side)
        if len(values) and not np.isnan(values).all():
            facts[f"accuracy {side}"] = f"{values.mean():.2%} (models' standard deviation {values.std():.2%})"
    if run.is_imported:
        source = run.provenance["source"]
        facts["source"] = f"{source['path']}, {source['file']} ({source['layout']})"
        facts["queries"] = f"{Q}"
        facts["memberships drawn by independent coins"] = "declared" if run.independent else "not declared"
    else:
        queries = config.queries
        facts["queries"] = f"{Q} (mirror {queries.mirror}, shift {queries.shift})"
        facts["memberships"] = config.membership.in_words()
        facts["recipe"] = named_values(dataclasses.asdict(config.recipe))
        facts["training"] = "; ".join(
            f"{s['models']} models in {s['seconds']:.0f} s on {s['device']}"
            for s in run.provenance["sessions"]
        )
    return {**facts, "versions": named_values(run.provenance["versions"])}
