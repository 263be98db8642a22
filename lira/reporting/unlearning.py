"""What an unlearning found, for people: metrics.json, figures, a table and a self-contained page."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from lira.attacks import lira_online_fixed
from lira.data.dataset import Dataset
from lira.forgetting import (
    Attack,
    Ensemble,
    MethodFigures,
    RetrainedValues,
    exposure_threshold,
    measure,
    of_forgotten,
    retrained_values,
    u_lira,
)
from lira.metrics import most_and_least_vulnerable, roc
from lira.reporting.document import unlearning_document
from lira.reporting.page import embedded, named_values, render_page
from lira.reporting.plots import example_titles, plot_examples
from lira.reporting.unlearning_evaluation import UnlearningEvaluation, evaluate_unlearning
from lira.reporting.unlearning_plots import method_row, plot_methods, plot_requests
from lira.reporting.unlearning_tables import page_cards
from lira.reporting.write import png, write_document
from lira.store.config import as_dict
from lira.store.files import require_writable
from lira.store.proven import proven_of
from lira.store.run import Run
from lira.unlearning.directory import Measurements, Unlearning, measurements

__all__ = ["exposed_figure", "report_unlearning", "write_unlearning_report"]


def report_unlearning(
    unlearning: Unlearning, dataset: Dataset, *, warnings: Iterable[str] = ()
) -> UnlearningEvaluation:
    """Measure every method at every request, and write the report into the directory.

    Args:
        unlearning: complete.
        dataset: its data, for pictures.
        warnings: shown at the top of the page.

    Returns:
        What was measured.

    Raises:
        RunError: models are missing.
    """
    require_writable(unlearning.path)
    names = unlearning.config.methods
    last = len(unlearning.requests) - 1
    figures: dict[str, list[MethodFigures]] = {name: [] for name in names}
    costs, examples, keep = {}, {}, np.empty((0, 0), bool)
    images = dataset.x if dataset.is_image else None
    for k in range(last + 1):
        references: dict[bytes, RetrainedValues] = {}
        for name in names:
            arrays = measurements(unlearning, name, k)
            keep, forget = arrays.keep, arrays.forget
            # The same for all methods, unless one diverged and has fewer models.
            models = keep.tobytes()
            if models not in references:
                references[models] = retrained_values(arrays.retrained, keep, forget)
            figures[name].append(_measure(arrays, references[models]))
            if k == last:
                costs[name] = arrays.seconds / arrays.seconds_retrained
                examples[name] = exposed_figure(
                    arrays.after,
                    arrays.retrained,
                    keep,
                    forget,
                    labels=arrays.labels,
                    images=images,
                    class_names=dataset.class_names,
                )
    evaluation = evaluate_unlearning(figures, keep, costs=costs)
    write_unlearning_report(
        unlearning.path, evaluation, examples=examples, facts=_facts(unlearning), warnings=warnings
    )
    return evaluation


def _measure(arrays: Measurements, reference: RetrainedValues) -> MethodFigures:
    accuracy = {
        side: (arrays.accuracies["after"][side], arrays.accuracies["retrained"][side])
        for side in ("retain", "forget", "test")
    }
    return measure(
        arrays.before,
        arrays.after,
        arrays.retrained,
        arrays.keep,
        arrays.forget,
        previous=arrays.previous,
        latest=arrays.requests[-1],
        features=arrays.features,
        accuracy=accuracy,
        reference=reference,
    )


def _facts(unlearning: Unlearning) -> dict[str, str]:
    config = unlearning.config
    requests, before = unlearning.requests, unlearning.before
    forgotten = config.forget.kind
    if forgotten == "class":
        labels = [int(before.labels[request][0]) for request in requests]
        forgotten += f" {', '.join(before.class_names[y] if before.class_names else str(y) for y in labels)}"
    return {
        "data set": f"{config.pool.dataset}, {requests.shape[1]:,} examples",
        "models": f"{config.pool.num_models} of each kind and request, from {before.path}",
        "forget set": f"{forgotten}, {', '.join(str(each.sum()) for each in requests)} examples",
        "recipe": named_values(as_dict(config.pool.recipe)),
        **_proven(before),
        **{
            f"method {name}": named_values(config.method[name])
            for name in config.methods
            if config.method.get(name)
        },
        "versions": named_values(before.provenance["versions"]),
    }


def _proven(before: Run) -> dict[str, str]:
    """What is proven where the recipe is private, and of what it is not."""
    proven = proven_of(before.path, before.provenance)
    if proven is None:
        return {}
    if math.isinf(proven.epsilon):
        return {"proven": str(proven)}
    return {
        "proven": f"{proven}. It holds of each original model and of each retrained one. Of both together, before and after, it "
        f"is twice as much ({2 * proven.epsilon:.4g} at {2 * proven.delta:g}) for an example that both hold, and no more than "
        f"once for one that was forgotten. It is of one example: that models which forgot nothing are like retrained ones "
        f"follows of a request of k examples to k times epsilon alone"
    }


def exposed_figure(
    after: Ensemble,
    retrained: Ensemble,
    keep: np.ndarray,
    forget: np.ndarray,
    *,
    attack: Attack = lira_online_fixed,
    labels: np.ndarray | None = None,
    class_names: Sequence[str] = (),
    images: np.ndarray | None = None,
    count: int = 3,
) -> Figure | None:
    """Draw phi of the forgotten examples that U-LiRA finds most often, and least often: see `plots.plot_examples`.

    Args:
        after: float `[M, N, Q]`, phi of the unlearned models, read a model at a time.
        retrained: float `[M, N, Q]`, as well.
        keep: bool `[M, N]`.
        forget: bool `[N]`.
        attack: the one that `forgetting.measure` took.
        labels: int `[N]`, for the titles.
        class_names: by label, for the titles.
        images: `[N, H, W, C]`, drawn as insets.
        count: how many of each.

    Returns:
        The figure; None where one example is forgotten.
    """
    held, every, unlearned, scratch = of_forgotten(keep, forget, after=after, retrained=retrained)
    scores, _ = u_lira(unlearned, scratch, held, every, attack=attack)
    _, threshold = exposure_threshold(roc(scores, held))
    shown = np.concatenate(most_and_least_vulnerable(scores, held, threshold, count))
    if not len(shown):
        return None
    among = np.flatnonzero(forget)[shown]
    pool = np.where(held[:, shown, None], unlearned[:, shown], scratch[:, shown])
    return plot_examples(
        pool,
        held[:, shown],
        example_titles(among, labels, class_names),
        None if images is None else images[among],
        sides=("unlearned it", "retrained without it"),
        rows=("most exposed", "least exposed"),
    )


def write_unlearning_report(
    path: str | os.PathLike[str],
    evaluation: UnlearningEvaluation,
    *,
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
        evaluation: from `evaluate_unlearning`.
        examples: from `exposed_figure`, by method; None is left out.
        facts: what to say about the run, in order.
        warnings: shown at the top of the page.
        title: heading of the page.
    """
    document = unlearning_document(evaluation)
    fpr = evaluation.first.lowest_fpr
    rows = {
        name: [method_row(each, fpr, evaluation.classical(each)) for each in requests]
        for name, requests in evaluation.methods.items()
    }
    picture = png(plot_methods({name: each[-1] for name, each in rows.items()}, fpr=fpr))
    over_time = png(plot_requests(rows, fpr=fpr)) if evaluation.num_requests > 1 else None
    page = render_page(
        "unlearning.html.j2",
        title=title,
        warnings=[*evaluation.doubts, *warnings],
        metrics=evaluation,
        cards=page_cards(evaluation),
        picture=embedded(picture),
        over_time=None if over_time is None else embedded(over_time),
        examples={name: embedded(png(each)) for name, each in (examples or {}).items() if each},
        facts=dict(facts or {}),
    )
    write_document(path, "metrics.json", document, {"unlearning.png": picture, "report.html": page.encode()})
