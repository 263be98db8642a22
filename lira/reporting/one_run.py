"""Audits of one training, or a few, by canaries: scores and coins, lower bounds on epsilon, a page."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lira.data.dataset import Dataset
from lira.engine.fill import train
from lira.epsilon import EpsilonBound, canary_epsilons
from lira.epsilon.bound import auditing, level_of
from lira.learning.accounting import Guarantee
from lira.metrics import Roc, roc
from lira.numbers import as_array
from lira.reporting.document import bound_document
from lira.reporting.figures import known, meaning_of_epsilon
from lira.reporting.page import embedded, named_values, render_page
from lira.reporting.plots import style, unstyled
from lira.reporting.write import png, write_document
from lira.store.errors import RunError
from lira.store.places import Place, directory_at
from lira.store.proven import proven_of
from lira.store.run import Run

__all__ = ["LIMITS", "CanaryAudit", "audit_canaries", "audit_one", "checked_delta"]

DELTA, CONFIDENCE = 1e-5, 0.95
DOCUMENT, PAGE = "canaries.json", "canaries.html"
# What each bound is, for people.
METHODS = {
    "one_run": "holds of any training (Steinke et al. 2023, arXiv 2305.08846)",
    "one_run_fdp": "holds where the training's trade-off curve is a Gaussian mechanism's (arXiv 2410.22235)",
    "gdp": "a reading, not a bound: a Gaussian mechanism's curve, and canaries that do not touch each other",
}
LIMITS = (
    "A bound from below: that little is found proves nothing.",
    "One training may show far less than its epsilon, however many its canaries and however good the attack: each is seen "
    "through what all others do to the model (Keinan et al. 2025, arXiv 2503.07199). Only where the effects of single "
    "examples can be kept apart does a bound from one training come near the truth.",
    "It holds for the coins: each canary was a member by a coin of its own, and neither anything else that the model was "
    "trained on, nor any choice of the recipe or the attack, knew how it fell.",
    "Canaries are as vulnerable as they were made. They say what the training may give away of an example, not what it "
    "gives away of these data.",
)


# What is said besides of canaries that are gradients.
WHITE_BOX = (
    "These canaries are gradients, no examples, and their scores are read from the noised sum of every step. Whoever has the "
    "final model, or its answers, sees less: this is about the implementation of private training, not about what the model "
    "tells of its data.",
    "A step that shortens the sum of all gradients in place of each hides canaries from each other: lira.audit_step, which "
    "looks at what a canary takes from the others too, finds that.",
)


@dataclass(frozen=True, eq=False, repr=False)
class CanaryAudit:
    """What the canaries of one training, or a few, show. `print(audit)` gives it in plain words."""

    scores: np.ndarray
    """float `[T, m]` of T trainings, higher = more likely a member"""
    member: np.ndarray
    """bool `[T, m]`, how the coins fell"""
    bounds: dict[str, EpsilonBound]
    """lower bounds on epsilon by method: one_run, and what is read of a Gaussian mechanism, one_run_fdp and gdp"""
    proven: Guarantee | None = None
    """what the training proves of itself; None where it is not private, or not ours"""
    fair: bool = False
    """whether the coins are known to be fair"""
    attack: str = "the scores as they were given"
    facts: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    gradients: bool = False
    """whether the canaries are gradients, and no examples"""

    @property
    def limits(self) -> tuple[str, ...]:
        """What the audit cannot say, in sentences."""
        return LIMITS + WHITE_BOX * self.gradients

    @cached_property
    def curve(self) -> Roc:
        """The ROC curve of all canaries."""
        return roc(self.scores, self.member)

    @cached_property
    def ceiling(self) -> float:
        """The bound of canaries all of which are told apart: no more can be shown by so many."""
        bound, all_known = self.bounds["one_run"], self.member.astype(float)
        return canary_epsilons(
            all_known, self.member, delta=bound.delta, confidence=bound.confidence, fair=self.fair
        )["one_run"].epsilon

    @property
    def contradicts(self) -> bool:
        """Whether the bound that holds of any training lies above what is proven."""
        return self.proven is not None and self.bounds["one_run"].epsilon > self.proven.epsilon

    @property
    def sentences(self) -> list[str]:
        """What it comes to, in sentences."""
        bound, T = self.bounds["one_run"], len(self.member)
        of = "one training" if T == 1 else f"{T:,} trainings"
        low = f"{bound.epsilon:.2f}"
        found = (
            f"At {100 * bound.confidence:g} % confidence the training's epsilon is at least {low}, at delta {bound.delta:g}."
            if bound.epsilon
            else f"Nothing was found: no epsilon above 0 is claimed at delta {bound.delta:g} and "
            f"{100 * bound.confidence:g} % confidence."
        )
        planted = "gradients" if self.gradients else "examples"
        said = [
            f"{self.member.size:,} canaries, {planted} that are planted to be recognised, of {of}: {int(self.member.sum()):,} "
            f"were trained on, chosen by coins. Of one that was and one that was not, {self.attack} picks the one that was "
            f"{100 * self.curve.auc:.1f} times in 100; guessing 50.",
            found,
        ]
        if self.contradicts:
            assert self.proven is not None
            said.append(
                f"That is MORE than the proven {self.proven.epsilon:.2f}: the implementation or its accounting is wrong, or "
                f"this is one of the {100 * (1 - bound.confidence):g} % of audits in which chance says so."
            )
        elif self.proven is not None:
            said.append(f"Proven: {self.proven}.")
        if bound.epsilon:
            said.append(meaning_of_epsilon(bound.epsilon))
        said.append(f"Whatever the training, so many canaries cannot show more than {self.ceiling:.2f}.")
        gaussian = self.bounds["one_run_fdp"].epsilon, self.bounds["gdp"].epsilon
        said.append(
            f"Were it a Gaussian mechanism, epsilon would be at least {gaussian[0]:.2f} (f-DP, one run), and could be read "
            f"as {gaussian[1]:.2f} were canaries independent besides."
        )
        return said

    def __str__(self) -> str:
        """The sentences."""
        return "\n".join(self.sentences)

    def document(self) -> dict[str, Any]:
        """The content of canaries.json."""
        proven = self.proven
        return {
            "description": "of canaries that were members by coins; epsilon is bounded from below",
            "sentences": self.sentences,
            "num_trainings": len(self.member),
            "num_canaries": self.member.shape[1],
            "num_members": int(self.member.sum()),
            "attack": self.attack,
            "auc": known(self.curve.auc),
            "at_most_shown": self.ceiling,
            "epsilon": {name: bound_document(bound) for name, bound in self.bounds.items()},
            "proven": None
            if proven is None
            else {"epsilon": known(proven.epsilon), "delta": proven.delta, "adjacency": proven.adjacency},
            "contradicts_proof": self.contradicts,
            "limits": list(self.limits),
            "warnings": list(self.warnings),
        }

    def report(self, path: str | os.PathLike[str]) -> Place:
        """Write canaries.html and canaries.json into a directory, which is made if need be; return the page."""
        page = render_page(
            "canaries.html.j2",
            title="What canaries show of one training",
            audit=self,
            methods=METHODS,
            limits=self.limits,
            picture=embedded(png(_histograms(self.scores, self.member))),
            facts=self.facts,
        )
        write_document(path, DOCUMENT, self.document(), {PAGE: page.encode()})
        return directory_at(path) / PAGE


def audit_canaries(
    scores: np.ndarray,
    coins: np.ndarray,
    *,
    delta: float | None = None,
    confidence: float = CONFIDENCE,
    fair: bool = False,
    proven: Guarantee | None = None,
    attack: str = CanaryAudit.attack,
    facts: Mapping[str, str] | None = None,
    warnings: Iterable[str] = (),
    gradients: bool = False,
) -> CanaryAudit:
    """Audit anyone's training from the scores of its canaries, by one attack that was chosen beforehand.

    Args:
        scores: float `[m]`, higher = more likely a member, such as minus the loss; or `[T, m]` of T trainings. They were
            made without the coins.
        coins: bool (or 0 and 1), likewise: which canary the training saw.
        delta: in (0, 1); that of `proven`, with which the bound is compared, else 1e-5.
        confidence: in (0.5, 1), of each bound by itself.
        fair: whether the coins are known to be fair; otherwise they cost a part of the bound, see `epsilon.coin_limit`.
        proven: what the training proves of itself.
        attack: what the scores are, for people.
        facts: what else to say on the page.
        warnings: for the top of it.
        gradients: whether the canaries are gradients, and no examples.

    Raises:
        ValueError: as `epsilon.canary_epsilons`; or epsilon is proven at another delta.
        ImportError: `jax_privacy` is missing.
    """
    delta = checked_delta(delta, confidence, None if proven is None else proven.delta)
    scores, member = np.asarray(as_array(scores), np.float64), as_array(coins)
    if member.dtype != bool:
        if not np.isin(member, (0, 1)).all():
            raise ValueError("coins must be true or false, or 1 and 0: whether the training saw the canary")
        member = member.astype(bool)
    bounds = canary_epsilons(scores, member, delta=delta, confidence=confidence, fair=fair)
    scores, member = (np.atleast_2d(each) for each in (scores, member))
    said = {
        "coins": "known to be fair" if fair else "of one probability, which is estimated",
        **(facts or {}),
    }
    return CanaryAudit(scores, member, bounds, proven, fair, attack, said, tuple(warnings), gradients)


def audit_one(
    run: Run,
    dataset: Dataset,
    *,
    delta: float | None = None,
    confidence: float = CONFIDENCE,
    show_progress: bool = True,
    warnings: Iterable[str] = (),
) -> CanaryAudit:
    """Train a run of `membership.design = "all"`, audit its models by their canaries, and write the page into it.

    Each model is trained on the whole pool and on canaries by coins. The first `membership.num_targets` models (all, if
    0) are audited. Their score of a canary is phi, meaned over the queries, less what the other models say of it on
    average; without others less the model's own mean over held-out examples, or over the canaries where there are none;
    of canaries that are gradients, what the noised sums of all steps have along them. None knows how a coin fell.

    Args:
        run: of the data set with canaries, see `lira.plant`; models that it lacks are trained.
        dataset: its data.
        delta: of the bounds; the recipe's where it is private, else 1e-5.
        confidence: of each bound by itself.
        show_progress: draw a bar.
        warnings: for the top of the page.

    Raises:
        RunError: the run is of another design, or no model to be audited is usable.
        ValueError: `delta` is not that at which epsilon is proven.
        ImportError: `jax_privacy` is missing.
    """
    config = run.config
    if config.membership.design != "all":
        raise RunError(
            f'{run.path}: is of membership.design = "{config.membership.design}", whose canaries its report shows; an audit '
            f'of one training is of "all"'
        )
    privacy = config.recipe.privacy
    delta = checked_delta(delta, confidence, privacy and privacy.delta)
    train(run, dataset, show_progress=show_progress)
    run = run.as_it_stands()
    if not len(run.targets):
        raise RunError(f"{run.path}: has no usable model to audit: all diverged, or none is trained")
    references = run.shadows if run.num_targets else run.models[:0]
    member = run.memberships(run.targets)[:, run.canaries]
    scores, attack = _scores(run, references)
    facts = {
        "data set": f"{config.dataset}, {len(run.labels) - config.num_canaries:,} examples, all trained on",
        "canaries": f"{config.num_canaries:,}, {config.canaries and config.canaries.kind}",
        "models": f"{len(run.targets)} audited, {len(references)} for reference",
        **{
            f"accuracy {side}": f"{100 * values.mean():.2f} %"
            for side in ("in", "test")
            if not np.isnan(values := run.accuracy(side, run.targets)).all()
        },
        "versions": named_values(run.provenance["versions"]),
    }
    audit = audit_canaries(
        scores,
        member,
        delta=delta,
        confidence=confidence,
        fair=True,
        proven=proven_of(run.path, run.provenance),
        attack=attack,
        facts=facts,
        warnings=warnings,
        gradients=run.holds("canary_scores"),
    )
    with run.lock():
        audit.report(run.path)
    return audit


# --- Parts -----------------------------------------------------------------------------------------------------------


def checked_delta(delta: float | None, confidence: float, proven: float | None) -> float:
    """That of the bounds: the one that was asked for, that at which epsilon is proven, or the default.

    At a smaller delta the true epsilon is larger than the proven one, and a bound above that would contradict nothing.

    Raises:
        ValueError: delta or confidence is out of range, or delta not the one of the proof.
        ImportError: `jax_privacy`, by which bounds come, is missing.
    """
    auditing()
    level_of(DELTA if delta is None else delta, confidence, 1)
    if delta is None:
        return DELTA if proven is None else proven
    if proven is not None and delta != proven:
        raise ValueError(
            f"delta is {delta:g}, and epsilon is proven at delta {proven:g}, with which the bound is compared: leave it out"
        )
    return delta


def _scores(run: Run, references: np.ndarray) -> tuple[np.ndarray, str]:
    """Of the audited models' canaries, float64 `[T, m]`, and what they are."""

    def said(models: np.ndarray, name: str = "phi", at: np.ndarray | None = run.canaries) -> np.ndarray:
        return np.asarray(run.signal(name, models, at), np.float64).mean(axis=2)

    if run.holds("canary_scores"):
        along = run.arrays.read("canary_scores", run.targets)
        return along.astype(np.float64), "what the noised sums of all steps have along each canary's gradient"
    scores = said(run.targets)
    if len(references):
        return scores - said(references).mean(
            axis=0
        ), f"confidence less that of {len(references)} other models"
    if run.holds("phi_test"):
        return scores - said(run.targets, "phi_test", None).mean(axis=1, keepdims=True), (
            "confidence less that about held-out examples"
        )
    return scores - scores.mean(axis=1, keepdims=True), "confidence less that about all canaries"


@unstyled
def _histograms(scores: np.ndarray, member: np.ndarray) -> Figure:
    """Of the scores of members and of the others."""
    figure = Figure(figsize=(6.4, 2.6), layout="constrained")
    ax = figure.add_subplot()
    finite = np.clip(scores, *np.quantile(scores, [0.002, 0.998], method="nearest"))
    edges = np.histogram_bin_edges(finite[np.isfinite(finite)], 60)
    for held, color, name in ((True, "#D55E00", "members"), (False, "#0072B2", "not members")):
        ax.hist(finite[member == held], edges.tolist(), color=color, alpha=0.55, label=name)
    ax.set(xlabel="score", ylabel="canaries")
    ax.legend(frameon=False, fontsize=8)
    style(ax, 8)
    return figure
