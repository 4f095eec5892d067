"""The model beside the baselines: the same users, the same events, the same resamples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from models import baselines
from models.evaluation.answers import Answers
from models.evaluation.intervals import Estimate
from models.evaluation.measures import best_f1_threshold
from models.evaluation.predictions import Predictions
from models.split import Split, cross_fitted

BASELINES: dict[str, dict[str, baselines.Baseline]] = {
    "next_action": baselines.NEXT_ACTION,
    "purchase": baselines.PURCHASE,
    "gap": baselines.GAP,
    "next_category": baselines.NEXT_CATEGORY,
}
#: By which a head is judged against its baselines, and whether less is better.
HEADLINES = {
    "next_action": (("log_loss", True),),
    "purchase": (("roc_auc", False),),
    "gap": (("mae", True),),
    "next_category": (("recall_at_20", False), ("mrr", False)),
    "fake_order": (("roc_auc", False),),
    "churn": (("roc_auc", False),),
}
FEWEST_USERS = 10  # for baselines fitted on four fifths of the measured users themselves

Tell = Callable[[str], None]


@dataclass
class Figures:
    """Every figure of a model and of what it is compared with.

    ``estimates[head][name]`` are those of the model (its own name) and of each baseline; ``notes`` are sentences that a
    reader of the figures must know.
    """

    model: str
    estimates: dict[str, dict[str, list[Estimate]]] = field(default_factory=dict, kw_only=True)
    notes: list[str] = field(default_factory=list, kw_only=True)

    def add(self, head: str, name: str, estimates: list[Estimate]) -> None:
        """Remember what was measured of a method."""
        self.estimates.setdefault(head, {})[name] = estimates

    def entries(self) -> list[dict[str, Any]]:
        """One a head, method and metric: head, name, metric, value, low, high, n."""
        return [
            entry(head, name, estimate)
            for head, methods in self.estimates.items()
            for name, estimates in methods.items()
            for estimate in estimates
        ]

    def differences(self) -> list[dict[str, Any]]:
        """The model less each other method, paired on the same resamples; keys as ``entries``."""
        return [
            entry(head, f"{self.model} - {name}", mine.minus(other))
            for head, name, mine, other in self._pairs()
        ]

    def verdicts(self) -> list[dict[str, str]]:
        """For each head's first metrics: is the model ahead of, behind, or not told apart from each baseline?"""
        found = []
        for head, name, mine, other in self._pairs():
            for metric, less_is_better in HEADLINES[head]:
                if metric != mine.metric:
                    continue
                interval = mine.minus(other).interval()
                low, high = (
                    (-interval.high, -interval.low) if less_is_better else (interval.low, interval.high)
                )
                verdict = "ahead" if low > 0 else "behind" if high < 0 else "undecided"
                found.append({"head": head, "metric": metric, "baseline": name, "verdict": verdict})
        return found

    def _pairs(self) -> list[tuple[str, str, Estimate, Estimate]]:
        pairs = []
        for head, methods in self.estimates.items():
            own = {estimate.metric: estimate for estimate in methods[self.model]}
            for name, estimates in methods.items():
                pairs += [
                    (head, name, own[other.metric], other)
                    for other in estimates
                    if name != self.model and other.metric in own
                ]
        return pairs


@dataclass
class Comparison(Figures):
    """The figures of a network's heads: ``purchase_by_method`` keeps purchase probabilities (N,) for curves."""

    answers: Answers
    purchase_by_method: dict[str, NDArray] = field(default_factory=dict)


def entry(head: str, name: str, estimate: Estimate) -> dict[str, Any]:
    """An estimate for programs; what is undefined is null."""
    interval = estimate.interval()
    found = {"head": head, **interval.as_dict(name, estimate.metric)}
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in found.items()
    }


def compare_model(
    name: str, answers: Answers, made: Predictions, purchase_threshold: float | None
) -> Comparison:
    """Measure a network's predictions on every head that these events have answers for."""
    comparison = Comparison(name, answers)
    for head in answers.heads():
        comparison.add(head, name, answers.of_model(head, made, purchase_threshold))
    comparison.purchase_by_method[name] = made.purchase
    comparison.notes += [f"{head} is not measured: {why}." for head, why in answers.missing.items()]
    return comparison


def add_baselines(comparison: Comparison, split: Split, crossed: bool, tell: Tell | None = None) -> None:
    """Measure every baseline of the measured heads.

    Args:
        comparison: of the model, gets theirs added.
        split: its test users are the measured ones; if ``crossed``, all users of its log are.
        crossed: fit each baseline on the other users of the log, fold by fold.
        tell: is told what is being fitted.
    """
    if crossed and len(split.log.user_ids) < FEWEST_USERS:
        comparison.notes.append(
            f"Baselines are left out: the log has {len(split.log.user_ids)} users, and baselines fitted on other "
            f"users of the same log need at least {FEWEST_USERS}."
        )
        return
    for head in comparison.answers.heads():
        for name, baseline in BASELINES[head].items():
            if tell is not None:
                tell(f"{name} for {head.replace('_', ' ')}")
            predicted = cross_fitted(split.log, baseline) if crossed else baseline(split)
            comparison.add(head, name, comparison.answers.of_baseline(head, predicted))
            if head == "purchase":
                comparison.purchase_by_method[name] = predicted


def purchase_threshold(answers: Answers, p_N: NDArray) -> float | None:
    """The probability from which on a purchase counts as predicted: the greatest F1 on these (tuning) users.

    None where they cannot tell.
    """
    if "purchase" in answers.missing:
        return None
    at = answers.at["purchase"]
    return best_f1_threshold(p_N[at], answers.purchase_N[at])
