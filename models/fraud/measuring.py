"""How well scores tell attackers from everybody else: areas, recall at a rate of false positives, time to the alert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.evaluation.measures import auc
from models.fraud import fusion
from models.fraud.baselines import baseline_scores
from models.fraud.watch import Engagements, watched

__all__ = ["Attack", "Measured", "Truth", "average_precision", "measure", "recall_at"]

SCORE = "score"


@dataclass(frozen=True)
class Truth:
    """What is known of users, (U,) each.

    Attributes:
        kind: name of the attack or of the honest behaviour.
        fake: attackers.
        counted: who counts as honest; neither attackers nor the originals of replays, nor crawlers of the log.
        fake_from_ms: first event of the attack, 0 where it is not known.
        fold: for cross-fitting.
    """

    kind: NDArray[np.str_]
    fake: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    fake_from_ms: NDArray[np.int64]
    fold: NDArray[np.int64]


class Attack(NamedTuple):
    """Figures of one detector on one attack; times are those of ``score`` alone, of the attackers that it found."""

    detector: str
    attack: str
    auc: float
    average_precision: float
    recall: float
    median_seconds: float | None = None
    median_events: float | None = None


class Measured(NamedTuple):
    """All figures of a log.

    Attributes:
        attacks: a figure a detector and attack.
        false_positives: of each honest kind the share above the threshold that the labels give.
        flagged: of each kind, attacks too, and of all honest users, the share that alerts flag: above the threshold
            of the reference population, which knows no labels.
        attackers: of each attack.
        honest: users that count as such.
    """

    attacks: list[Attack]
    false_positives: dict[str, float]
    flagged: dict[str, float]
    attackers: dict[str, int]
    honest: int


def average_precision(label: NDArray[np.bool_], score: NDArray) -> float:
    """Mean precision at each positive; of equal scores the average over their orders is bounded by the group's end."""
    order = np.argsort(-score, kind="stable")
    ranked, hits = score[order], label[order]
    last = np.append(np.diff(ranked) < 0, True)
    true = np.cumsum(hits)[last].astype(np.float64)
    at = np.flatnonzero(last) + 1.0
    gained = np.diff(true, prepend=0.0)
    return float((gained * true / at).sum() / max(1, label.sum()))


def threshold_at(honest: NDArray, target_fpr: float) -> float:
    """The smallest threshold that at most that share of the honest exceeds."""
    ranked = np.sort(honest)[::-1]
    return float(ranked[min(len(ranked) - 1, int(target_fpr * len(ranked)))])


def recall_at(label: NDArray[np.bool_], score: NDArray, target_fpr: float) -> float:
    """Share of the positives above the threshold that at most ``target_fpr`` of the negatives exceed."""
    return float((score[label] > threshold_at(score[~label], target_fpr)).mean())


def measure(
    log: Engagements,
    truth: Truth,
    target_fpr: float = 0.01,
    advance: Callable[[int], object] = lambda _: None,
    memory: int = 1,
) -> Measured:
    """Score a log and its baselines against the truth; ``advance`` and ``memory`` are those of ``watched``."""
    found, _ = watched(log, advance, memory)
    nats, level, _ = fusion.cross_fitted(found.user_R, found.n_R, found.values_RT, truth.fold)
    worst = np.zeros(log.n_users)
    np.maximum.at(worst, found.user_R, nats)
    detectors = {SCORE: worst, **baseline_scores(log, truth.fold)}
    kinds = sorted(set(truth.kind[truth.fake].tolist()))
    attacks = []
    for name, score in detectors.items():
        for kind in kinds:
            positive = truth.fake & (truth.kind == kind)
            those = positive | truth.counted
            label, theirs = positive[those], score[those]
            figures = Attack(
                name,
                kind,
                auc(label, theirs),
                average_precision(label, theirs),
                recall_at(label, theirs, target_fpr),
            )
            if name == SCORE:
                at = threshold_at(score[truth.counted], target_fpr)
                seconds, events = _until_alert(log, truth, positive, found.user_R, found.event_R, nats, at)
                figures = figures._replace(median_seconds=_median(seconds), median_events=_median(events))
            attacks.append(figures)
    at = threshold_at(worst[truth.counted], target_fpr)
    said = np.zeros(log.n_users, np.bool_)
    said[found.user_R[level >= 1 - target_fpr]] = True
    flagged = {kind: _share(said, truth.fake & (truth.kind == kind)) for kind in kinds}
    flagged["honest"] = _share(said, truth.counted)
    return Measured(
        attacks,
        {
            kind: _share(worst > at, truth.counted & (truth.kind == kind))
            for kind in sorted(set(truth.kind[truth.counted].tolist()))
        },
        flagged,
        {kind: int((truth.fake & (truth.kind == kind)).sum()) for kind in kinds},
        int(truth.counted.sum()),
    )


def _share(said: NDArray[np.bool_], those: NDArray[np.bool_]) -> float:
    return round(float(said[those].mean()), 4)


def _until_alert(
    log: Engagements,
    truth: Truth,
    positive: NDArray[np.bool_],
    user_R: NDArray,
    event_R: NDArray,
    nats_R: NDArray,
    at: float,
) -> tuple[list[float], list[float]]:
    """Seconds and own events from the attack's first event to the first row above the threshold."""
    first: dict[int, int] = {}
    for row in np.flatnonzero((nats_R > at) & positive[user_R]).tolist():
        first.setdefault(int(user_R[row]), int(event_R[row]))
    seconds, events = [], []
    for user, event in first.items():
        since_ms = truth.fake_from_ms[user]
        if since_ms:
            seconds.append(max(0.0, (log.time_ms[event] - since_ms) / 1000.0))
            own = log.user[: event + 1] == user
            events.append(float((log.time_ms[: event + 1][own] >= since_ms).sum()))
    return seconds, events


def _median(values: list[float]) -> float | None:
    return round(float(np.median(values)), 1) if values else None
