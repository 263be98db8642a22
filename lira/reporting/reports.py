"""The verbs that end in figures: report a run, or any pool of models, or its examples; compare attacks, or two runs."""

import dataclasses
import json
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple
from warnings import warn

import numpy as np

from lira.attacks.suite import ATTACKS, Pool, pool_p_values, select_attacks
from lira.data.dataset import Dataset
from lira.metrics import Difference, difference
from lira.reporting.canary_figures import canary_figures
from lira.reporting.checks import check_run
from lira.reporting.evaluation import Evaluation, evaluate_pool
from lira.reporting.measured import LOW_FPR, Subject, measure_attacks, strongest_attack
from lira.reporting.page import named_values
from lira.reporting.records import Records, records_of
from lira.reporting.verdict import as_verdict
from lira.reporting.write import stored_scores, write_records
from lira.scoring import pool_of, score, score_each
from lira.store.arrays import DIVERGED, DONE
from lira.store.config import as_dict
from lira.store.files import require_writable
from lira.store.proven import proven_of
from lira.store.run import Run
from lira.store.verify_derived import document_findings

__all__ = ["Differences", "compare", "evaluate", "records", "report", "reported"]

# What a proof does not say, for the page of private training.
CAVEATS = (
    "of one training, its settings fixed beforehand: choosing among settings by their results is not accounted for, and "
    "losses and accuracies are told without noise. Whoever knows a run's seeds, which its configuration holds, knows the "
    "noise: then nothing is proven of models that are given away, and the guarantee is for audits"
)
# Whose p-values are exact example by example.
LIRA_P_VALUES = {name: ATTACKS[name] for name in ("lira_online", "lira_offline")}


def evaluate(
    run: Run,
    dataset: Dataset | None = None,
    *,
    attacks: Collection[str] | None = None,
    headline: str | None = None,
    warnings: Iterable[str] = (),
) -> Evaluation:
    """Attack every model of a run, and measure: the verdict, every attack's figures, every example by itself.

    Scores are stored in the run, and computed only where they are not there yet; nothing else is written.

    Args:
        run: the run.
        dataset: its data, for pictures, the examples' names and `quantile_regression`; None goes without them.
        attacks: names of those to run; None: all.
        headline: the attack that leads; None: by the pool's size and design, see `measured.headline_attack`.
        warnings: for the top of the page; read once all is measured, so that they may still grow until then.

    Returns:
        What was measured; `print` it for the verdict.

    Raises:
        RunError: too few trained models are usable, the data set is not the run's, or another
            process is writing the run.
        ValueError: there is no such attack, or the headline is none of those that could run.
    """
    selected, run = ATTACKS if attacks is None else select_attacks(attacks), run.as_it_stands()
    known = _what_is_known(run, dataset)
    pool = pool_of(run, dataset)
    scores = score(run, dataset, pool=pool, attacks=None if attacks is None else selected)
    evaluation = evaluate_pool(
        pool,
        scores,
        run.membership,
        checks=check_run(run, pool=pool),
        attacks=selected,
        headline=headline,
        models=known.pop("models"),
        run_models=run.models.tolist(),
        known=known,
        images=dataset.x if dataset is not None and dataset.is_image else None,
        subject=_subject(run),
        selected=attacks,
        facts=_facts(run, pool),
        warnings=warnings,
        proven=proven_of(run.path, run.provenance),
    )
    return dataclasses.replace(evaluation, canaries=canary_figures(run, evaluation.headline))


def report(
    run: Run,
    dataset: Dataset | None = None,
    *,
    attacks: Collection[str] | None = None,
    headline: str | None = None,
    warnings: Iterable[str] = (),
) -> Evaluation:
    """`evaluate`, with the same arguments, and write metrics.json, pictures, report.html and records into the run."""
    require_writable(run.path)
    evaluation = evaluate(run, dataset, attacks=attacks, headline=headline, warnings=warnings)
    with run.lock():
        evaluation.report(run.path)
    return evaluation


def records(run: Run, dataset: Dataset | None = None, *, fpr: float = LOW_FPR) -> Records:
    """What every attack says of each example, written to a run's records.csv, records.json and records/ too.

    Attacks are read one at a time; what is not scored yet is scored first.

    Args:
        run: the run.
        dataset: its data, which knows the names of classes and files, and which `quantile_regression` reads.
        fpr: of the vulnerability, a fraction, pooled over targets; see `records_of`.

    Raises:
        RunError: too few trained models are usable, the data set is not the run's, or another
            process is writing the run.
        ValueError: `fpr` is outside [0, 1].
    """
    require_writable(run.path)
    run = run.as_it_stands()
    scores, known = score_each(run, dataset), _what_is_known(run, dataset)
    exact = (
        (name, p.values) for name, p in pool_p_values(pool_of(run), LIRA_P_VALUES) if name in LIRA_P_VALUES
    )
    known["p_value"] = next(exact, None)
    found = records_of(scores, run.membership, fpr=fpr, num_shadows=len(run.shadows), **known)
    with run.lock():
        write_records(run.path, found, arrays=stored_scores(run.path, found.attacks))
    return found


def _what_is_known(run: Run, dataset: Dataset | None) -> dict[str, Any]:
    """Of the targets and of the examples, for `records_of`; files only from the data that the run is of."""
    at = run.audited
    if dataset is not None:
        run.require_same_data(dataset)
    known: dict[str, Any] = {"models": run.targets.tolist(), "labels": run.labels[at]}
    if len(at) < len(run.labels):
        known["indices"] = at
    known["class_names"] = (dataset and dataset.class_names) or run.class_names
    known["files"] = [dataset.files[i] for i in at.tolist()] if dataset and dataset.files else ()
    return known


def reported(
    run: Run, attacks: Collection[str] | None = None, headline: str | None = None
) -> dict[str, Any] | None:
    """metrics.json, where the report on disk is whole, of the models and scores that are there now, and of what is asked for.

    None where it is not; that of an earlier version is not.
    """
    if any(document_findings(run.path, names=("metrics.json", "records.json"))):
        return None
    document = json.loads((run.path / "metrics.json").read_text())
    try:
        verdict = as_verdict(document)  # earlier versions came to none
        models, selected = document["pool"], document["selected"]
    except (KeyError, TypeError):
        return None
    asked = selected == (None if attacks is None else list(attacks)) and headline in (None, verdict.attack)
    return document if asked and models == run.models.tolist() else None


class Differences(NamedTuple):
    """Attacks of a run minus what they are compared with, on the same targets."""

    against: str  # an attack of the same run, or another run's path
    by_attack: dict[str, Difference]


def compare(run: Run, other: Run | None = None, *, fpr: float = LOW_FPR) -> Differences:
    """Each attack minus the strongest of the same run, or each attack of one run minus the same of another.

    Args:
        run: scored where that is not done.
        other: another run of the same memberships; one may be of more models than the other, each attacked by its own pool.
        fpr: of the TPRs, a fraction.

    Raises:
        RunError: too few trained models are usable.
        ValueError: the memberships differ, or no target is in both runs.

    Warns:
        UserWarning: targets are in one run alone, and are left out.
    """
    if other is not None and run.membership.shape[1] != other.membership.shape[1]:
        raise ValueError(
            f"{run.path} is of {run.membership.shape[1]:,} examples and {other.path} of {other.membership.shape[1]:,}: compare "
            f"runs of the same examples and memberships"
        )
    scores, keep = score(run), run.membership
    ours = its = np.arange(len(keep))
    if other is None:
        against, _ = strongest_attack(measure_attacks(scores, keep))
        theirs, keep_b = {name: scores[against] for name in scores if name != against}, keep
    else:
        against, theirs, keep_b = str(other.path), score(other), other.membership
        place = {model: row for row, model in enumerate(other.targets.tolist())}
        # In the order of the run, in which pairs stand side by side whatever their numbers: intervals resample these.
        ours = np.flatnonzero(np.isin(run.targets, other.targets))
        its = np.array([place[model] for model in run.targets[ours].tolist()], int)
        if not len(ours):
            raise ValueError(
                f"no model is usable in both {run.path} and {other.path}: nothing is to be compared"
            )
        if len(ours) < max(len(keep), len(keep_b)):
            warn(
                f"compared are the {len(ours)} targets of both runs, of {len(keep)} and {len(keep_b)}",
                stacklevel=2,
            )

    def of_both(name: str) -> Difference:
        """Of the examples that both score."""
        a, b = scores[name][ours], theirs[name][its]
        both = ~(np.isnan(a) | np.isnan(b)).all(axis=0)
        return difference(a[:, both], b[:, both], keep[ours][:, both], keep_b=keep_b[its][:, both], fpr=fpr)

    return Differences(against, {name: of_both(name) for name in scores if name in theirs})


def _subject(run: Run) -> Subject:
    """What the verdict says about the run; of models of other code what their source says."""
    config, Q = run.config, run.phi.shape[2]
    N = len(run.labels) - config.num_canaries
    means = {}
    for side in ("in", "out", "test"):
        values = run.accuracy(side, run.targets)
        means[f"accuracy_{side}"] = (
            float(values[~np.isnan(values)].mean()) if np.isfinite(values).any() else np.nan
        )
    names = {"dataset": config.dataset, "model": config.recipe.model, "design": config.membership.design}
    if run.is_foreign:
        source = run.provenance["source"]
        names = {"dataset": source.get("data", ""), "model": source.get("model", "")}
        names |= {} if run.is_imported else {"design": config.membership.design}
    attackers = {"num_models": len(run.shadows), "outside": bool(run.num_targets)}
    return Subject(num_examples=N, queries=Q, **attackers, **names, **means)


def _accuracies(run: Run) -> dict[str, str]:
    """By side, of the attacked models; of those that they are attacked with by themselves, where these are others."""
    groups = {"": run.targets, " of the others": run.shadows} if run.num_targets else {"": run.targets}
    facts = {}
    for of, models in groups.items():
        for side in ("in", "out", "test"):
            values = run.accuracy(side, models)
            if not len(values) or np.isnan(values).all():
                continue
            spread = f" (models' standard deviation {100 * values.std():.2f} %)" if len(values) > 1 else ""
            facts[f"accuracy {side}{of}"] = f"{100 * values.mean():.2f} %{spread}"
    return facts


def _facts(run: Run, pool: Pool) -> dict[str, str]:
    """What the page says about the run."""
    config, done = run.config, run.done
    _, N, Q = run.phi.shape
    N -= config.num_canaries
    attacked = f", {len(run.audited):,} of them attacked" if len(run.audited) < N else ""
    by = f" by {len(run.shadows)} others" if run.num_targets else ""
    facts = {
        "data set": f"{config.dataset}, {N:,} examples{attacked}",
        "shadow models": f"{len(run.targets)} attacked{by}; {np.sum(done == DONE)} done and {np.sum(done == DIVERGED)} "
        f"diverged of {config.num_models} requested",
    }
    if config.canaries is not None:
        facts["canaries"] = f"{config.canaries.count:,} more, {config.canaries.kind}, reported by themselves"
    if run.class_names:
        facts["classes"] = ", ".join(run.class_names)
    facts |= _accuracies(run)
    if run.is_imported:
        source = run.provenance["source"]
        left_out = f"left out of it {'with its pair' if pool.leave == 'pair' else 'alone'}"
        outside = f"{len(run.targets)} outside the pool"
        facts["targets"] = outside if run.num_targets else f"every model of the pool, {left_out}"
        facts["source"] = f"{', '.join(filter(None, (source['path'], source['file'])))} ({source['layout']})"
        facts["queries"] = f"{Q}"
        facts["memberships drawn by independent coins"] = "declared" if run.independent else "not declared"
    else:
        facts["memberships"] = config.membership.in_words()
        if run.is_foreign:
            source = run.provenance["source"]
            facts |= {"data set": f"{source['data'] or 'in memory'}, {N:,} examples", "queries": f"{Q}"}
            known = {"model": source["model"], "settings": source["settings"], "answers": source["kind"]}
            facts |= {name: value for name, value in known.items() if value}
        else:
            queries = config.queries
            facts["queries"] = f"{Q} ({named_values(as_dict(queries))})"
            facts["recipe"] = named_values(as_dict(config.recipe))
            if (proven := proven_of(run.path, run.provenance)) is not None:
                doubt = proven.doubt(N * config.share(N))
                facts["privacy"] = "; ".join(filter(None, (str(proven), doubt, CAVEATS)))
        facts["training"] = "; ".join(
            f"{s['models']} models in {s['seconds']:.0f} s on {s['device']}"
            for s in run.provenance["sessions"]
        )
    return {**facts, "versions": named_values(run.provenance["versions"])}
