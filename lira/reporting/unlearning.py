"""What an unlearning found, for people: metrics.json, figures, a table and a self-contained page."""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Column, Table
from rich.text import Text

from lira.attacks import lira_online_fixed
from lira.data.dataset import Dataset
from lira.forgetting import (
    Attack,
    RetrainedValues,
    exposure_threshold,
    measure,
    retrained_values,
    u_lira,
)
from lira.metrics import most_and_least_vulnerable, roc
from lira.reporting.evaluate import interval_note
from lira.reporting.page import embedded, render_page
from lira.reporting.plots import percent, plot_examples
from lira.reporting.tables import rate_cells
from lira.reporting.unlearning_plots import plot_methods, plot_requests
from lira.reporting.unlearning_tables import (
    Document,
    figure_cells,
    page_cards,
    page_tables,
    percentage_cells,
    worst_rows,
)
from lira.reporting.write import png, write_files
from lira.unlearning.directory import Unlearning, measurements

__all__ = [
    "exposed_figure",
    "headline_fpr",
    "report_unlearning",
    "unlearning_metrics",
    "verdict",
    "verdicts_table",
    "write_unlearning_report",
]


def report_unlearning(
    unlearning: Unlearning, dataset: Dataset, *, warnings: Iterable[str] = ()
) -> dict[str, Any]:
    """Measure every method at every request, and write the report into the directory.

    Args:
        unlearning: complete.
        dataset: its data, for pictures and facts.
        warnings: shown at the top of the page.

    Returns:
        The content of metrics.json.

    Raises:
        RunError: models are missing.
    """
    names = unlearning.config.methods
    requests = range(len(unlearning.requests))
    documents: dict[str, list[Document]] = {name: [] for name in names}
    costs, examples, keep = {}, {}, np.empty((0, 0), bool)
    for k in requests:
        references: dict[bytes, RetrainedValues] = {}
        for name in names:
            found = measurements(unlearning, name, k)
            keep = found.keep
            # The same for all methods, unless one diverged and has fewer models.
            models = found.keep.tobytes()
            if models not in references:
                references[models] = retrained_values(found.retrained, found.keep, found.forget)
            accuracy = {
                side: (found.accuracies["after"][side], found.accuracies["retrained"][side])
                for side in ("retain", "forget", "test")
            }
            documents[name].append(
                measure(
                    found.before,
                    found.after,
                    found.retrained,
                    found.keep,
                    found.forget,
                    previous=found.previous,
                    latest=found.requests[-1],
                    features=found.features,
                    accuracy=accuracy,
                    chance=references[models],
                )
            )
            if k == requests[-1]:
                costs[name] = found.seconds / found.seconds_retrained
                examples[name] = exposed_figure(
                    found.after,
                    found.retrained,
                    found.keep,
                    found.forget,
                    labels=found.labels,
                    images=dataset.x if dataset.is_image else None,
                )
    metrics = unlearning_metrics(documents, keep, costs=costs)
    write_unlearning_report(
        unlearning.path, metrics=metrics, examples=examples, facts=_facts(unlearning), warnings=warnings
    )
    return metrics


def verdicts_table(metrics: Mapping[str, Any]) -> Table:
    """What became of each method at the last request, as a table for a terminal."""
    last = {name: method["requests"][-1] for name, method in metrics["methods"].items()}
    first = next(iter(last.values()))
    fpr = headline_fpr(first)
    attack, psi_fpr = _headline_psi(first)
    columns = ["U-LiRA\nAUC", f"TPR at\n{100 * float(fpr or 0):g} % FPR", "normalised\npsi"]
    columns += ["forgetting\nquality", "retain\naccuracy", "test\naccuracy", "cost"]
    result = Table(
        Column("method", no_wrap=True),
        *(Column(name, justify="right", no_wrap=True) for name in columns),
        Column("verdict", no_wrap=True),
        title=f"Unlearning {first['num_forgotten']} examples in {metrics['num_models']} models",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )

    def row(name: str, document: Document, side: str) -> None:
        curve = document["u_lira"][side]
        normalised = {"value": 0.0, "low": None, "high": None}
        if side == "after":
            normalised = document["classical"][attack][psi_fpr]["psi_normalised"]
        cells = [figure_cells(curve["auc"])]
        cells.append(
            ("unresolvable", "") if fpr is None else rate_cells({"status": "ok", **curve["tpr_at_fpr"][fpr]})
        )
        cells += [figure_cells(normalised, 2), figure_cells(document["epsilon"]["forgetting_quality"][side])]
        # Their intervals are on the page: there is no room for them here.
        cells += [
            (percentage_cells(document["accuracy"][group][side])[0], "") for group in ("retain", "test")
        ]
        cost = 1.0 if side == "retrained" else metrics["methods"][name]["cost"]
        cells.append(("unknown" if cost is None else percent(cost), ""))
        verdict_cell = document["verdict"] if side == "after" else "the reference"
        result.add_row(Text(name), *("\n".join(filter(None, cell)) for cell in cells), verdict_cell)

    row("retrained", first, "retrained")
    for name, document in last.items():
        row(name, document, "after")
    return result


def _facts(unlearning: Unlearning) -> dict[str, str]:
    config = unlearning.config
    requests = unlearning.requests
    return {
        "data set": f"{config.dataset}, {requests.shape[1]:,} examples",
        "models": f"{config.num_models} of each kind and request, from {unlearning.before.path}",
        "forget set": f"{config.forget.kind}, {', '.join(str(each.sum()) for each in requests)} examples",
        "recipe": ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(config.recipe).items()),
        **{
            f"method {name}": ", ".join(f"{key} {value}" for key, value in config.method[name].items())
            for name in config.methods
            if config.method.get(name)
        },
        "versions": ", ".join(
            f"{name} {number}" for name, number in unlearning.before.provenance["versions"].items()
        ),
    }


def unlearning_metrics(
    methods: Mapping[str, Sequence[Document]],
    keep: np.ndarray,
    *,
    costs: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Gather what was measured into the content of metrics.json.

    Args:
        methods: by name, a document of `forgetting.measure` for each request, in order, of everything forgotten so far.
        keep: bool `[M, N]`, what the original models held.
        costs: of each method relative to retraining, such as 0.05; a method that is not there has none.

    Raises:
        ValueError: there is no method or no request, or the methods have measured different numbers of them.
    """
    counts = {name: len(requests) for name, requests in methods.items()}
    if not counts or not min(counts.values()):
        raise ValueError("methods holds nothing measured: give each at least one request's document")
    if len(set(counts.values())) > 1:
        raise ValueError(f"methods must have the same number of requests; got {counts}")
    return {
        "description": "of everything forgotten up to each request; rates are fractions; higher attack = less forgotten",
        "interval": interval_note(keep),
        "num_models": keep.shape[0],
        "num_examples": keep.shape[1],
        "num_requests": next(iter(counts.values())),
        "methods": {
            name: {"cost": (costs or {}).get(name), "requests": [_with_verdict(each) for each in requests]}
            for name, requests in methods.items()
        },
    }


def headline_fpr(document: Document) -> str | None:
    """The lowest of U-LiRA's FPRs that can be resolved, as its key; None where none can."""
    points = document["u_lira"]["after"]["tpr_at_fpr"]
    return next((fpr for fpr, point in points.items() if point["status"] == "ok"), None)


def verdict(document: Document) -> str:
    """What is said of a method: "over-forgotten", "exposed" or "as retrained".

    Over-forgotten: see `forgetting.Direction`. Exposed: U-LiRA's AUC, or its TPR at the lowest resolvable FPR, lies
    above the range that holds 95 % of exact retrainings; of two such figures about one retraining in twenty has one
    above. "As retrained" says that neither shows a difference, with so many models and examples, and no more.
    """
    if document["direction"]["over_forgotten"]:
        return "over-forgotten"
    found, own = (document["u_lira"][name] for name in ("after", "retrained"))
    fpr = headline_fpr(document)
    pairs = [(found["auc"]["value"], own["auc"]["high"])]
    if fpr is not None:
        pairs.append((found["tpr_at_fpr"][fpr]["tpr"], own["tpr_at_fpr"][fpr]["high"]))
    return "exposed" if any(value > high for value, high in pairs) else "as retrained"


def exposed_figure(
    after: np.ndarray,
    retrained: np.ndarray,
    keep: np.ndarray,
    forget: np.ndarray,
    *,
    attack: Attack = lira_online_fixed,
    labels: np.ndarray | None = None,
    images: np.ndarray | None = None,
    count: int = 3,
) -> Figure | None:
    """Draw phi of the forgotten examples that U-LiRA finds most often, and least often: see `plots.plot_examples`.

    Args:
        after: float `[M, N, Q]`, phi of the unlearned models.
        retrained: float `[M, N, Q]`.
        keep: bool `[M, N]`.
        forget: bool `[N]`.
        attack: the one that `forgetting.measure` took.
        labels: int `[N]`, for the titles.
        images: `[N, H, W, C]`, drawn as insets.
        count: how many of each.

    Returns:
        The figure; None where one example is forgotten.
    """
    scores, held = u_lira(after, retrained, keep, forget, attack=attack)
    _, threshold = exposure_threshold(roc(scores, held))
    shown = np.concatenate(most_and_least_vulnerable(scores, held, threshold, count))
    if not len(shown):
        return None
    among = np.flatnonzero(forget)[shown]
    pool = np.where(held[:, shown, None], after[:, among], retrained[:, among])
    titles = [f"example {i}" + ("" if labels is None else f", class {labels[i]}") for i in among]
    return plot_examples(
        pool,
        held[:, shown],
        titles,
        None if images is None else images[among],
        sides=("unlearned it", "retrained without it"),
        rows=("most exposed", "least exposed"),
    )


def write_unlearning_report(
    path: str | os.PathLike[str],
    *,
    metrics: Mapping[str, Any],
    examples: Mapping[str, Figure | None] | None = None,
    facts: Mapping[str, str] | None = None,
    warnings: Iterable[str] = (),
    title: str = "Does unlearning forget?",
) -> None:
    """Write unlearning.png, report.html and metrics.json into a directory, which is made if need be.

    Everything is rendered before the first file is touched, and every file is replaced in one step, metrics.json last.
    The page embeds its pictures and refers to nothing outside itself.

    Args:
        path: the directory.
        metrics: from `unlearning_metrics`.
        examples: from `exposed_figure`, by method; None is left out.
        facts: what to say about the run, in order.
        warnings: shown at the top of the page.
        title: heading of the page.
    """
    content = json.dumps(metrics, indent=2, allow_nan=False).encode()
    last = {name: method["requests"][-1] for name, method in metrics["methods"].items()}
    first = next(iter(last.values()))
    key = headline_fpr(first)
    fpr = None if key is None else float(key)
    attack, psi_fpr = _headline_psi(first)
    rows = {
        name: [_row(each, key, attack, psi_fpr) for each in method["requests"]]
        for name, method in metrics["methods"].items()
    }
    picture = png(plot_methods({name: each[-1] for name, each in rows.items()}, fpr=fpr))
    over_time = png(plot_requests(rows, fpr=fpr)) if metrics["num_requests"] > 1 else None
    page = render_page(
        "unlearning.html.j2",
        title=title,
        warnings=list(warnings),
        metrics=metrics,
        forgotten=first["num_forgotten"],
        attack=first["attack"],
        cards=page_cards(last),
        picture=embedded(picture),
        over_time=None if over_time is None else embedded(over_time),
        tables=page_tables(metrics, last, attack, psi_fpr),
        worst=worst_rows(last),
        worst_fpr=f"{100 * first['worst_fpr']:g} %",
        examples={name: embedded(png(each)) for name, each in (examples or {}).items() if each},
        largest_epsilon=f"{first['epsilon']['largest_finite']:.2f}",
        facts=dict(facts or {}),
    )
    write_files(path, {"unlearning.png": picture, "report.html": page.encode(), "metrics.json": content})


# --- From the documents to rows and cells ---------------------------------------------------------------------------


def _with_verdict(document: Document) -> dict[str, Any]:
    return {"verdict": verdict(document), **document}


def _headline_psi(document: Document) -> tuple[str, str]:
    """The classical attack and FPR at which psi is shown: the first at which normalised psi is defined.

    Whether it is depends on the original and retrained models alone, and so is the same for all methods.
    """
    choices = [(name, fpr) for name, by_fpr in document["classical"].items() for fpr in by_fpr]
    return next(
        (
            (name, fpr)
            for name, fpr in choices
            if document["classical"][name][fpr]["psi_normalised"]["status"] == "ok"
        ),
        choices[0],
    )


def _row(document: Document, fpr: str | None, attack: str, psi_fpr: str) -> dict[str, Any]:
    """What the figures draw of one method at one request."""
    after, own = document["u_lira"]["after"], document["u_lira"]["retrained"]
    unknown = {"value": None, "low": None, "high": None}
    tpr, retrained_tpr = (
        unknown if fpr is None else _as_figure(curve["tpr_at_fpr"][fpr]) for curve in (after, own)
    )
    return {
        "verdict": document["verdict"],
        "tpr": tpr,
        "auc": after["auc"],
        "psi_n": document["classical"][attack][psi_fpr]["psi_normalised"],
        "retrained_tpr": retrained_tpr,
        "retrained_auc": own["auc"],
    }


def _as_figure(point: Mapping[str, Any]) -> dict[str, Any]:
    return {"value": point["tpr"], "low": point["low"], "high": point["high"]}
