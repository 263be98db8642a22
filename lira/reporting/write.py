"""What a run found, for people: metrics.json, the log-log ROC figure and a self-contained page.

Figures are *pooled over targets* unless they are named as means over targets. A TPR that is a measured zero, one that
cannot be resolved and one that is undefined are three different things everywhere.
"""

import io
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from lira.attacks import SignalArray
from lira.metrics import most_and_least_vulnerable, scored_part
from lira.reporting.document import metrics_document, records_document
from lira.reporting.inks import COLORS
from lira.reporting.measured import AttackFigures, Curve, Measured, low_fpr_threshold, strongest_attack
from lira.reporting.page import report_page
from lira.reporting.plots import ROC_SIZE, plot_attack_panels, plot_roc, unstyled
from lira.reporting.records import Records, records_csv
from lira.store.checksums import checksum_of, json_with_checksum
from lira.store.chunks import stored_fingerprint
from lira.store.files import write_atomically, writing
from lira.store.places import directory_at
from lira.store.zarr import write_group

__all__ = [
    "ShownExamples",
    "drawn_curves",
    "png",
    "shown_examples",
    "stored_scores",
    "write_document",
    "write_records",
    "write_report",
]

# Drawn always, because LiRA must beat it.
BASELINE = "global_threshold"
PNG_DPI = 200


class ShownExamples(NamedTuple):
    """What `plot_examples` draws: k examples, the first half the most vulnerable, the second the least."""

    phi: np.ndarray  # float [M, k, Q]
    keep: np.ndarray  # bool [M, k]
    titles: list[str]
    images: np.ndarray | None  # [k, H, W, C]


def shown_examples(
    phi: SignalArray,
    keep: np.ndarray,
    scores: np.ndarray,
    attack: AttackFigures,
    title: Callable[[int], str],
    images: np.ndarray | None = None,
) -> ShownExamples | None:
    """The examples most and least at risk by an attack, for a picture.

    Args:
        phi: float `[M, N, Q]`, anything that slices along N.
        keep: bool `[M, N]`.
        scores: float `[M, N]`, the attack's.
        attack: what was measured of it.
        title: of an example by its number.
        images: `[N, H, W, C]`, drawn as insets.

    Returns:
        None where no example has models on both sides, or there is only one.
    """
    _, threshold = low_fpr_threshold(attack)
    theirs, held, scored = scored_part(scores, keep)
    shown = scored[np.concatenate(most_and_least_vulnerable(theirs, held, threshold))]
    if not len(shown):
        return None
    values = np.stack([np.asarray(phi[:, i : i + 1])[:, 0] for i in shown], axis=1)
    pictures = None if images is None else images[shown]
    return ShownExamples(values, keep[:, shown], [title(i) for i in shown.tolist()], pictures)


def write_report(
    path: str | os.PathLike[str],
    evaluation: Measured,
    *,
    examples: Figure | None = None,
    records: Records | None = None,
    arrays: Mapping[str, str] | None = None,
    facts: Mapping[str, str] | None = None,
    title: str = "Membership inference by LiRA",
) -> None:
    """Write metrics.json, roc.png, attacks.png and report.html into a directory, which is made if need be.

    roc.png has the curves of the strongest attacks, attacks.png the figures of all; the latter needs two attacks.

    Everything is rendered before the first file is touched, and every file is replaced in one step: what a kill
    leaves behind is old or new, never half. metrics.json comes last, so where it is new all of them are. The page
    embeds its pictures and loads nothing from outside itself; with records it links to their table.

    Args:
        path: the directory.
        evaluation: from `measured.measure`.
        examples: from `plot_examples`.
        records: written too, see `write_records`; the most vulnerable examples stand on the page.
        arrays: the fingerprint of each stored array of scores that the figures are of, by its place in the directory.
        facts: what to say about the run, such as data set, recipe, accuracies and versions, in order.
        title: heading of the page.
    """
    document = metrics_document(evaluation)
    attacks, drawn = evaluation.attacks, drawn_curves(evaluation.curves, evaluation.headline)
    figure = Figure(figsize=ROC_SIZE, layout="constrained")
    plot_roc(drawn, figure.add_subplot())
    pictures = {"roc": png(figure)}
    _, resolved = strongest_attack(attacks)
    if len(attacks) > 1 and resolved is not None:
        pictures["attacks"] = png(plot_attack_panels(attacks, resolved, evaluation.headline))
    files = {f"{name}.png": picture for name, picture in pictures.items()}
    if examples is not None:
        pictures["examples"] = png(examples)
    page = report_page(
        evaluation,
        pictures,
        list(drawn),
        records=records,
        facts=dict(facts or {}),
        title=title,
    )
    if records is not None:
        write_records(path, records, arrays=arrays)
    write_document(path, "metrics.json", document, {**files, "report.html": page.encode()}, arrays)


def write_records(
    path: str | os.PathLike[str], records: Records, *, arrays: Mapping[str, str] | None = None
) -> None:
    """Write records.csv, records.json and the Zarr group records/ into a directory, which is made if need be.

    The group has a row for each target: score, member and verdict `[T, N]` of the headline attack, p_value where there
    is one; its attributes name the attack, what it called a member above, the targets, and the examples where they are
    not all of the data set. All is rendered before the
    first is touched, each is replaced in one step, and records.json comes last. `arrays` as in `write_report`.
    """
    files, document = {"records.csv": records_csv(records)}, records_document(records)
    columns = {"score": records.score, "member": records.member, "verdict": records.verdict}
    bar = records.attacks[records.headline].bar
    attributes = {"attack": records.headline, "fpr": records.fpr, "models": records.models}
    attributes["called_above"] = bar if np.isfinite(bar) else None
    if records.p_value is not None:
        columns["p_value"], attributes["p_value_of"] = records.p_value, records.p_value_of
    if records.indices is not None:
        attributes["examples"] = records.indices.tolist()
    place = directory_at(path)
    place.mkdir(parents=True, exist_ok=True)
    write_group(place / "records", columns, attributes)
    files["records/zarr.json"] = (place / "records/zarr.json").read_bytes()
    written = {each: stored_fingerprint(place, each) for each in (f"records/{name}" for name in columns)}
    write_document(path, "records.json", document, files, {**(arrays or {}), **written})


def stored_scores(path: str | os.PathLike[str], attacks: Iterable[str]) -> dict[str, str]:
    """The fingerprint of each array of scores that a directory holds, by its place there, of those of some attacks."""
    directory, places = directory_at(path), [f"scores/{name}" for name in attacks]
    return {place: stored_fingerprint(directory, place) for place in places if (directory / place).exists()}


def drawn_curves(curves: Mapping[str, Curve], headline: str) -> dict[str, Curve]:
    """The curves for one picture, as many as there are colours: the strongest, the headline's, and the threshold to beat."""
    ranked = sorted(
        curves,
        key=lambda name: (
            name in (BASELINE, headline),
            np.nan_to_num(curves[name].low_fpr_tpr),
            curves[name].auc,
        ),
    )
    chosen = ranked[-len(COLORS) :]
    return {name: curve for name, curve in curves.items() if name in chosen}


# --- What every report is made of -----------------------------------------------------------------------------------


@unstyled
def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=PNG_DPI)
    return file.getvalue()


def write_document(
    path: str | os.PathLike[str],
    name: str,
    document: Mapping[str, Any],
    files: Mapping[str, bytes],
    arrays: Mapping[str, str] | None = None,
) -> None:
    """Write files into a directory, made if need be, and last a JSON document by which it can be told whether all are whole.

    Each is replaced in one step, in their order: where the document is new, all are.

    Args:
        path: the directory.
        name: of the document.
        document: its content; its own checksum comes on top, `files`, the SHA-256 of each, and `arrays`.
        files: their contents, by name.
        arrays: the fingerprint of each array that all this is of, by its place in the directory.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    sums = {each: checksum_of(content) for each, content in files.items()}
    content = json_with_checksum({**document, "files": sums, "arrays": dict(arrays or {})})
    directory = directory_at(path)
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    for each, contents in {**files, name: content}.items():
        write_atomically(directory / each, contents)
