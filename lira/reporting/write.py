"""What a run found, for people: metrics.json, the log-log ROC figure and a self-contained page.

Figures are *pooled over targets* unless they are named as means over targets. A TPR that is a measured zero, one that
cannot be resolved and one that is undefined are three different things everywhere.
"""

import io
import os
from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.figure import Figure

from lira.attacks import SignalArray
from lira.metrics import most_and_least_vulnerable
from lira.reporting.document import as_json, metrics_document, records_document
from lira.reporting.evaluate import AttackFigures, Curve, Evaluation, low_fpr_threshold, strongest_attack
from lira.reporting.page import report_page
from lira.reporting.plots import COLORS, ROC_SIZE, example_titles, plot_attacks, plot_examples, plot_roc
from lira.reporting.published import Comparison
from lira.reporting.records import Records, records_csv
from lira.store.places import directory_at, write_atomically
from lira.store.zarr import write_group

__all__ = ["example_figure", "png", "write_files", "write_records", "write_report"]

# Drawn always, because LiRA must beat it.
BASELINE = "global_threshold"
PNG_DPI = 200


def example_figure(
    phi: SignalArray,
    keep: np.ndarray,
    scores: np.ndarray,
    attack: AttackFigures,
    labels: np.ndarray | None = None,
    images: np.ndarray | None = None,
) -> Figure | None:
    """Draw the examples most and least at risk by an attack: see `plot_examples`.

    Args:
        phi: float `[M, N, Q]`, anything that slices along N.
        keep: bool `[M, N]`.
        scores: float `[M, N]`, the attack's.
        attack: what was measured of it.
        labels: int `[N]`, for the titles; -1 where it is not known.
        images: `[N, H, W, C]`, drawn as insets.

    Returns:
        The figure; None where no example has models on both sides, or there is only one.
    """
    _, threshold = low_fpr_threshold(attack)
    shown = np.concatenate(most_and_least_vulnerable(scores, keep, threshold))
    if not len(shown):
        return None
    values = np.stack([np.asarray(phi[:, i : i + 1])[:, 0] for i in shown], axis=1)
    pictures = None if images is None else images[shown]
    return plot_examples(values, keep[:, shown], example_titles(shown, labels), pictures)


def write_report(
    path: str | os.PathLike[str],
    evaluation: Evaluation,
    *,
    examples: Figure | None = None,
    records: Records | None = None,
    facts: Mapping[str, str] | None = None,
    warnings: Iterable[str] = (),
    checks: Iterable[tuple[str, str, str]] = (),
    published: Iterable[Comparison] = (),
    title: str = "Membership inference by LiRA",
) -> None:
    """Write metrics.json, roc.png, attacks.png and report.html into a directory, which is made if need be.

    roc.png has the curves of the strongest attacks, attacks.png the figures of all; the latter needs two attacks.

    Everything is rendered before the first file is touched, and every file is replaced in one step: what a kill
    leaves behind is old or new, never half. metrics.json comes last, so where it is new all of them are. The page
    embeds its pictures and loads nothing from outside itself; with records it links to their table.

    Args:
        path: the directory.
        evaluation: from `evaluate`.
        examples: from `plot_examples`.
        records: written too, see `write_records`; the most vulnerable examples stand on the page.
        facts: what to say about the run, such as data set, recipe, accuracies and versions, in order.
        warnings: shown at the top of the page.
        checks: name, status ("ok", "warn" or "fail") and a sentence of each, see `engine.trained.Check`; failed ones stand among
            the warnings too.
        published: from `compare_published`.
        title: heading of the page.
    """
    content = as_json(metrics_document(evaluation))
    attacks, drawn = evaluation.attacks, _drawn(evaluation.curves)
    figure = Figure(figsize=ROC_SIZE, layout="constrained")
    plot_roc(drawn, figure.add_subplot())
    pictures = {"roc": png(figure)}
    _, resolved = strongest_attack(attacks)
    if len(attacks) > 1 and resolved is not None:
        pictures["attacks"] = png(plot_attacks(attacks, resolved))
    files = {f"{name}.png": picture for name, picture in pictures.items()}
    if examples is not None:
        pictures["examples"] = png(examples)
    checks = list(checks)
    failed = [f"check failed: {name}: {sentence}" for name, status, sentence in checks if status == "fail"]
    page = report_page(
        evaluation,
        pictures,
        list(drawn),
        records=records,
        facts=dict(facts or {}),
        warnings=[*failed, *warnings],
        checks=checks,
        published=list(published),
        title=title,
    )
    if records is not None:
        write_records(path, records)
    write_files(path, {**files, "report.html": page.encode(), "metrics.json": content})


def write_records(path: str | os.PathLike[str], records: Records) -> None:
    """Write records.csv, records.json and the Zarr group records/ into a directory, which is made if need be.

    The group has a row for each target: score, member and verdict `[T, N]` of the headline attack, p_value where there
    is one; its attributes name the attack, what it called a member above, the targets, and the examples where they are
    not all of the data set. All is rendered before the
    first is touched, each is replaced in one step, and records.json comes last.
    """
    files = {"records.csv": records_csv(records), "records.json": as_json(records_document(records))}
    arrays = {"score": records.score, "member": records.member, "verdict": records.verdict}
    bar = records.attacks[records.headline].bar
    attributes = {"attack": records.headline, "fpr": records.fpr, "models": records.models}
    attributes["called_above"] = bar if np.isfinite(bar) else None
    if records.p_value is not None:
        arrays["p_value"], attributes["p_value_of"] = records.p_value, records.p_value_of
    if records.indices is not None:
        attributes["examples"] = records.indices.tolist()
    place = directory_at(path)
    place.mkdir(parents=True, exist_ok=True)
    write_group(place / "records", arrays, attributes)
    write_files(path, files)


def _drawn(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """The curves for one picture, as many as there are colours: the strongest, and the global threshold to beat."""
    ranked = sorted(
        curves, key=lambda name: (name == BASELINE, np.nan_to_num(curves[name].low_fpr_tpr), curves[name].auc)
    )
    chosen = ranked[-len(COLORS) :]
    return {name: curve for name, curve in curves.items() if name in chosen}


# --- What every report is made of -----------------------------------------------------------------------------------


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=PNG_DPI)
    return file.getvalue()


def write_files(path: str | os.PathLike[str], contents: Mapping[str, bytes]) -> None:
    """Replace files of a directory, made if need be, in their order, each in one step: where the last is new, all are."""
    place = directory_at(path)
    place.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_atomically(place / name, content)
