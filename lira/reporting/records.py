"""Every example of a pool by itself: one row each, with its vulnerability under every attack, its rank and its names."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lira.metrics import (
    ExampleRates,
    example_gap,
    example_rates,
    jaccard,
    rank_examples,
    scored_part,
    shares_reaching,
    threshold_above,
    top_examples,
    top_in_halves,
)
from lira.metrics._shared import check_fpr
from lira.metrics.counting import allowed_false_positives
from lira.numbers import as_array
from lira.parallel import give_memory_back
from lira.reporting.measured import FPRS, LOW_FPR, headline_attack

__all__ = [
    "INTERVAL",
    "AttackRecords",
    "ExampleRecord",
    "Records",
    "column_meanings",
    "records_csv",
    "records_of",
]

# One example in so many is among the top.
TOP = 100
INTERVAL = (
    "95 %, Clopper and Pearson's, over the models that hold the example; conditional on the example, the shadow models "
    "and the threshold"
)


class AttackRecords(NamedTuple):
    """What one attack says of each example."""

    bar: float  # a score above it calls the example a member; infinity and NaN call nobody one
    ranks: (
        np.ndarray
    )  # float64 [N], 1 = the most vulnerable; ties share the highest, NaN where no target holds it
    rates: ExampleRates  # over targets
    score: np.ndarray | None = None  # float [N], of the one target where there is no other
    fpr: np.ndarray | None = None  # float64 [N], the share of its non-members that reach that score


@dataclass(frozen=True)
class ExampleRecord:
    """What the headline attack says of one example."""

    rank: int  # 1 = the most vulnerable
    index: int  # in the data set
    class_name: str  # else the label; empty where that is not known
    file: str  # empty where it is not known
    tpr: float  # share of the targets that hold the example whose score lies above the bar
    low: float  # the ends of its interval
    high: float
    found: int  # these targets
    held: int  # targets that hold it
    in_top_halves: int  # of `Records.num_halves`
    member: bool | None  # of one target alone: whether it was trained on the example; else None, and NaN
    score: float
    fpr: float  # share of that target's non-members that score as high


@dataclass(frozen=True, eq=False, repr=False)
class Records:
    """One row an example, and beside it what every target's headline score says: see `records_of`."""

    headline: str  # the attack by which examples are ranked
    fpr: float  # of the bars; 0 where none was resolvable: no false positive
    attacks: dict[str, AttackRecords]
    in_top_halves: np.ndarray  # int64 [N], in how many of `num_halves` among the top by the headline attack
    num_halves: int
    agreement: (
        np.ndarray
    )  # float64 [A, A], Jaccard's index of the attacks' top examples; NaN where both have none
    score: np.ndarray  # float [T, N], the headline attack's
    member: np.ndarray  # bool [T, N]
    p_value: np.ndarray | None  # float [T, N], calibrated example by example, where given
    p_value_of: str  # the attack
    models: list[int] | None  # index of each target, ascending
    labels: np.ndarray | None  # int [N], -1 where it is not known
    class_names: Sequence[str]  # by label; empty where they are not known
    files: Sequence[str]  # [N]; empty where they are not known
    indices: np.ndarray | None = None  # int [N], of the examples in a larger data set; None: 0 to N - 1

    def __repr__(self) -> str:
        """Say what there is, not all of it."""
        return (
            f"Records({self.num_examples:,} examples, {self.num_targets:,} targets, {len(self.attacks)} attacks, ranked by "
            f"{self.headline})"
        )

    def most_vulnerable(self, count: int = 10) -> list[ExampleRecord]:
        """The examples that rank highest by the headline attack, at most so many; ties at the end in their order."""
        known = int(np.sum(~np.isnan(self.ranks)))
        order = np.argsort(self.ranks, kind="stable")[: min(max(count, 0), known)]
        return [self._record(example) for example in order.tolist()]

    def _record(self, example: int) -> ExampleRecord:
        attack = self.attacks[self.headline]
        rates, (member, score, fpr) = attack.rates, (None, np.nan, np.nan)
        if attack.score is not None and attack.fpr is not None:
            member, score, fpr = self.member[0, example], attack.score[example], attack.fpr[example]
        return ExampleRecord(
            rank=int(self.ranks[example]),
            index=self.index_of(example),
            class_name=self.class_of(example),
            file=self.file_of(example),
            tpr=float(rates.tpr[example]),
            low=float(rates.low[example]),
            high=float(rates.high[example]),
            found=int(rates.found[example]),
            held=int(rates.held[example]),
            in_top_halves=int(self.in_top_halves[example]),
            member=None if member is None else bool(member),
            score=float(score),
            fpr=float(fpr),
        )

    @property
    def num_examples(self) -> int:
        """N, the number of rows."""
        return self.member.shape[1]

    @property
    def num_targets(self) -> int:
        """T; with a single one there are scores in the place of rates."""
        return len(self.member)

    @property
    def num_top(self) -> int:
        """How many examples are one in TOP, rounded up."""
        return _num_top(self.num_examples)

    @property
    def ranks(self) -> np.ndarray:
        """By the headline attack, float64 `[N]`."""
        return self.attacks[self.headline].ranks

    @property
    def verdict(self) -> np.ndarray:
        """Whom the headline attack calls a member, bool `[T, N]`; none of those that it does not score."""
        return self.score > self.attacks[self.headline].bar

    def index_of(self, example: int) -> int:
        """The index of an example, a row here, in the data set."""
        return example if self.indices is None else int(self.indices[example])

    def class_of(self, example: int) -> str:
        """The name of an example's class, else its label; empty where that is not known."""
        if self.labels is None or self.labels[example] < 0:
            return ""
        label = int(self.labels[example])
        return _plain(self.class_names[label]) if label < len(self.class_names) else str(label)

    def file_of(self, example: int) -> str:
        """The file of an example; empty where it is not known."""
        return _plain(self.files[example]) if self.files else ""

    def title_of(self, example: int) -> str:
        """A title for a picture of an example: its index, its class and its file's name, as far as they are known."""
        name, file = self.class_of(example), self.file_of(example).rpartition("/")[2]
        title = f"example {self.index_of(example)}" + (f", class {name}" if name else "")
        return _shortened(title) + (f"\n{_shortened(file)}" if file else "")


def records_of(
    scores: Iterable[tuple[str, np.ndarray]],
    keep: np.ndarray,
    *,
    fpr: float = LOW_FPR,
    p_value: tuple[str, np.ndarray] | None = None,
    headline: str | None = None,
    num_shadows: int | None = None,
    models: Sequence[int] | None = None,
    labels: np.ndarray | None = None,
    class_names: Sequence[str] = (),
    files: Sequence[str] = (),
    indices: np.ndarray | None = None,
) -> Records:
    """What every attack says of each example by itself.

    An example's vulnerability is its TPR: the share of the targets that hold it whose score lies above one global bar.
    Examples are ranked by it, ties by the mean score of members minus that of non-members (`metrics.example_gap`). Where
    there is a single target a share says nothing: its scores stand in the place of the TPRs, each with the share of its
    non-members that score as high, and rank the examples.

    Args:
        scores: name and float `[T, N]` of every attack; one or two are held at a time.
        keep: bool `[T, N]`, what each target was trained on.
        fpr: of the bars, a fraction, pooled over targets; where it allows no false positive the lowest of `FPRS` above it
            that does, else none.
        p_value: an attack and its p-values, float `[T, N]`.
        headline: the attack by which examples are ranked; None: `headline_attack` of pools of `num_shadows` models.
        num_shadows: models of the pool that attacks, targets among them; None: the targets alone.
        models: index of each target; rows are stored in their order.
        labels: int `[N]`, -1 where it is not known.
        class_names: by label.
        files: `[N]`.
        indices: of the examples in the data set, int `[N]`, where these are not all of it.

    Raises:
        ValueError: there is no attack, shapes disagree, a score is NaN, or `fpr` is outside [0, 1].
    """
    check_fpr(fpr)
    keep = as_array(keep)
    if p_value is not None and np.shape(p_value[1]) != keep.shape:
        raise ValueError(f"p_value must be {list(keep.shape)} like keep; got {list(np.shape(p_value[1]))}")
    nonmembers = int(np.sum(~keep))
    points = [point for point in (fpr, *FPRS) if point >= fpr > 0]
    resolved = next((point for point in points if allowed_false_positives(point, nonmembers) >= 1), None)
    attacks, first, best = {}, "", np.empty(0)
    for name, values in scores:
        attacks[name] = _attack_records(values, keep, resolved or 0.0)
        # One at a time, so the one that leads is held as long as none comes that goes before it.
        leads = headline or headline_attack((first or name, name), num_shadows or len(keep))
        if name == leads != first:
            first, best = name, values
        del values  # before the next are read
        give_memory_back()
    if not first:
        raise ValueError(
            f"scores holds {f'no {headline}' if attacks else 'no attack'}: give at least one array [targets, examples] by name"
        )
    top = _num_top(keep.shape[1])
    theirs, held, scored = scored_part(best, keep)
    times, halves = top_in_halves(theirs, held, resolved or 0.0, top)
    times = _spread(times, scored, keep.shape[1])
    agreement = jaccard(np.stack([top_examples(each.ranks, top) for each in attacks.values()]))
    order = np.arange(len(keep)) if models is None else np.argsort(models)

    def ordered(values: np.ndarray) -> np.ndarray:
        """By model; not copied where they are so already, for of a large pool each is half a gigabyte."""
        return values if (order[1:] > order[:-1]).all() else values[order]

    return Records(
        first,
        resolved or 0.0,
        attacks,
        times,
        halves,
        agreement,
        ordered(best),
        ordered(keep),
        None if p_value is None else ordered(np.asarray(p_value[1])),
        "" if p_value is None else p_value[0],
        None if models is None else [int(models[row]) for row in order.tolist()],
        labels,
        class_names,
        files,
        indices,
    )


def _attack_records(scores: np.ndarray, keep: np.ndarray, fpr: float) -> AttackRecords:
    """Of the examples that the attack scores; the others have no rank, and NaN for rates and scores."""
    N, all_held = keep.shape[1], keep.sum(axis=0)
    scores, keep, scored = scored_part(scores, keep)
    bar = threshold_above(scores, keep, fpr)
    rates = example_rates(scores, keep, bar)
    ranks = rank_examples(rates.tpr, example_gap(scores, keep)) if len(keep) > 1 else rank_examples(scores[0])
    all_rates = rates._make(_spread(each, scored, N) for each in rates)._replace(held=all_held)
    if len(keep) > 1:
        return AttackRecords(bar, _spread(ranks, scored, N), all_rates)
    fpr_of = shares_reaching(scores[0], keep[0])
    return AttackRecords(
        bar,
        *(_spread(ranks, scored, N), all_rates),
        *(_spread(each, scored, N) for each in (scores[0], fpr_of)),
    )


def _spread(values: np.ndarray, scored: np.ndarray, num_examples: int) -> np.ndarray:
    """Values `[n]` of the examples `scored` among all; others have NaN, or 0 where values are counts."""
    if len(scored) == num_examples:
        return values
    everywhere = np.full(num_examples, np.nan if values.dtype.kind == "f" else 0, values.dtype)
    everywhere[scored] = values
    return everywhere


def _shortened(text: str) -> str:
    """At most 35 characters, the ends of what is longer."""
    return text if len(text) <= 35 else f"{text[:17]}…{text[-17:]}"


def _num_top(num_examples: int) -> int:
    return -(-num_examples // TOP)


# --- The table of text, and what its columns are ---------------------------------------------------------------------


def records_csv(records: Records) -> bytes:
    """The content of records.csv: UTF-8, a header, a row an example; what is not known or not defined is empty."""
    N, T = records.num_examples, records.num_targets
    examples = range(N)
    labels = records.labels
    columns: dict[str, list[str]] = {
        "index": [str(records.index_of(i)) for i in examples],
        "label": [""] * N if labels is None else ["" if label < 0 else str(label) for label in labels],
        "class_name": [_quoted(records.class_of(i)) if records.class_names else "" for i in examples],
        "file": [_quoted(records.file_of(i)) for i in examples],
    }
    first = records.attacks[records.headline]
    if T > 1:
        columns["models_in"] = _numbers(first.rates.held)
        columns["rank"] = _numbers(first.ranks)
        columns["top_halves"] = _numbers(records.in_top_halves) if records.num_halves else [""] * N
    else:
        columns["member"] = _numbers(records.member[0])
        columns["rank"] = _numbers(first.ranks)
        columns["verdict"] = _numbers(np.where(np.isnan(records.score[0]), np.nan, records.verdict[0]))
        if records.p_value is not None:
            columns["p_value"] = _numbers(records.p_value[0])
    for name, each in records.attacks.items():
        if each.score is not None and each.fpr is not None:
            columns |= {f"{name}_score": _numbers(each.score), f"{name}_fpr": _numbers(each.fpr, 6)}
        else:
            ends = {"tpr": each.rates.tpr, "low": each.rates.low, "high": each.rates.high}
            columns |= {f"{name}_{end}": _numbers(values, 6) for end, values in ends.items()}
    lines = [",".join(columns), *map(",".join, zip(*columns.values(), strict=True))]
    return ("\n".join(lines) + "\n").encode()


def column_meanings(records: Records) -> dict[str, str]:
    """What each column of records.csv is; ATTACK stands for the name of every attack."""
    at = f"{100 * records.fpr:g} % FPR" if records.fpr else "no false positive"
    meanings = {
        "index": "of the example, the column of all arrays of scores",
        "label": "of the example; empty where it is not known",
        "class_name": "of the label; empty where it is not known",
        "file": "that the example comes from; empty where it is not known",
    }
    if records.num_targets > 1:
        return meanings | {
            "models_in": "targets that hold the example",
            "rank": f"by {records.headline}_tpr, ties by the mean score of members minus that of non-members; 1 = the most "
            f"vulnerable",
            "top_halves": f"in how many of {records.num_halves} halves of the targets, five random splits that keep "
            f"pairs together, the example is among the {records.num_top} most vulnerable by {records.headline}, each "
            f"half with a threshold of its own",
            "ATTACK_tpr": f"share of the targets that hold the example whose score for it lies above the threshold of "
            f"{at}, one for all examples and targets",
            "ATTACK_low": "lower end of its interval",
            "ATTACK_high": "upper end of its interval",
        }
    exact = f"of {records.p_value_of}, exact for this example alone"
    given = {} if records.p_value is None else {"p_value": exact}
    return meanings | {
        "member": "1 where the target was trained on the example",
        "rank": f"by {records.headline}_score; 1 = the highest",
        "verdict": f"1 where {records.headline} calls the example a member at {at}",
        **given,
        "ATTACK_score": "higher = more likely a member",
        "ATTACK_fpr": "share of the target's non-members with at least that score: what it costs to call the example a "
        "member",
    }


def _numbers(values: np.ndarray, figures: int | None = None) -> list[str]:
    """Numbers as text, NaN as nothing, fractions with so many figures or all; of equal ones, which are many, once."""
    distinct, inverse = np.unique(values, return_inverse=True)
    texts = [_number(value, figures) for value in distinct]
    return [texts[i] for i in inverse.tolist()]


def _number(value: np.generic, figures: int | None) -> str:
    if not isinstance(value, np.floating):
        return str(int(value))
    if np.isnan(value):
        return ""
    if float(value).is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value) if figures is None else f"{value:.{figures}g}"


def _quoted(text: str) -> str:
    """A field of CSV: in quotes where it holds a comma, a quote, the end of a line or space at an end."""
    if text.strip() != text or any(sign in text for sign in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


def _plain(name: str) -> str:
    """A name that can be written as UTF-8: what is no character, as in names of files in other encodings, is escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
