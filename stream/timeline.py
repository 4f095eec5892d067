"""A user's timeline: predictions in the order of their events, beside what the user did and what was said about it.

A prediction says how surprising its event was, not what the event was: that stands in the source record which it
names. Both may come from topics or from files; where the source record is gone, the step stands without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import msgspec

from stream.alerts import Alert
from stream.events import Event

__all__ = ["Place", "Step", "Timeline", "prediction_of", "timeline"]

Place = tuple[str, int, int]  # topic, partition, offset


class Term(NamedTuple):
    """A part of the surprisal: ``action``, ``category`` or ``gap``, in nats."""

    name: str
    nats: float


class _Source(msgspec.Struct):
    topic: str
    partition: int
    offset: int


class _Session(msgspec.Struct):
    index: int
    position: int


class _Reason(msgspec.Struct):
    code: str
    nats: float


class _Anomaly(msgspec.Struct):
    score: float
    surprisal_nats: float
    too_predictable: float
    reasons: list[_Reason]


class Prediction(msgspec.Struct):
    """What of a prediction a timeline needs."""

    user_id: str
    event_id: str
    event_time_ms: int
    source: _Source
    session: _Session
    next_action: dict[str, float]
    median_gap_s: float
    anomaly: _Anomaly

    @property
    def place(self) -> Place:
        """Of the source record."""
        return self.source.topic, self.source.partition, self.source.offset


@dataclass(frozen=True, slots=True)
class Step:
    """One event of the user.

    Attributes:
        event: None when its record was not read.
        gap_s: since the step before, None for the first.
        expected: the probability that the prediction before gave to this action; None where either is unknown.
        usual_gap_s: the median gap that the prediction before expected.
        terms: most nats first; they add up to the surprisal.
    """

    prediction: Prediction
    event: Event | None
    gap_s: float | None
    expected: float | None
    usual_gap_s: float | None

    @property
    def surprisal_nats(self) -> float:
        return self.prediction.anomaly.surprisal_nats

    @property
    def terms(self) -> list[Term]:
        return [
            Term(each.code.removeprefix("unlikely_"), each.nats) for each in self.prediction.anomaly.reasons
        ]

    def described(self) -> dict[str, Any]:
        """Plain values, for programs."""
        made, event = self.prediction, self.event
        return {
            "event_id": made.event_id,
            "event_time_ms": made.event_time_ms,
            "source": {
                "topic": made.source.topic,
                "partition": made.source.partition,
                "offset": made.source.offset,
            },
            "session": {"index": made.session.index, "position": made.session.position},
            "action": event.action if event else None,
            "item_id": event.item_id if event else None,
            "category_id": event.category_id if event else None,
            "surprisal_nats": made.anomaly.surprisal_nats,
            "terms": {term.name: term.nats for term in self.terms},
            "score": made.anomaly.score,
            "too_predictable": made.anomaly.too_predictable,
            "expected_probability": self.expected,
            "gap_s": self.gap_s,
        }


@dataclass(frozen=True)
class Timeline:
    """Steps by event time, and the alerts that name the user as subject, member or in their evidence.

    Attributes:
        earlier: steps that were read and are not shown.
        read: what was read, in words.
    """

    user: str
    steps: list[Step]
    alerts: list[Alert]
    earlier: int = 0
    read: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def most_nats(self) -> float:
        """The greatest surprisal."""
        return max((step.surprisal_nats for step in self.steps), default=0.0)

    @property
    def evidence(self) -> set[Place]:
        """Places of the records that some alert rests on."""
        return {place for alert in self.alerts for place in evidence_places(alert)}

    def sessions(self) -> list[tuple[int, list[Step]]]:
        """Index and steps of each session."""
        return [
            (index, list(steps)) for index, steps in groupby(self.steps, lambda s: s.prediction.session.index)
        ]

    def told(self) -> list[Step | Alert]:
        """Steps and alerts in one order: an alert stands after the events that had happened when it was possible."""
        both: list[tuple[int, int, Step | Alert]] = [
            *((step.prediction.event_time_ms, 0, step) for step in self.steps),
            *((alert.event_time_ms, 1, alert) for alert in self.alerts),
        ]
        return [each for _, _, each in sorted(both, key=lambda item: item[:2])]

    def described(self) -> dict[str, Any]:
        """Plain values, for programs."""
        return {
            "user_id": self.user,
            "events": len(self.steps),
            "earlier_events": self.earlier,
            "sessions": len(self.sessions()),
            "most_surprising_nats": self.most_nats,
            "steps": [step.described() for step in self.steps],
            "alerts": [msgspec.to_builtins(alert) for alert in self.alerts],
            "read": self.read,
            "notes": self.notes,
        }


_decode = msgspec.json.Decoder(Prediction).decode


def prediction_of(value: bytes) -> Prediction | None:
    """The prediction of a record or a line; None when it is none."""
    try:
        return _decode(value)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def evidence_places(alert: Alert) -> set[Place]:
    """Places of the records that the alert rests on."""
    found = set()
    for each in alert.evidence:
        source = each.get("source")
        if isinstance(source, Mapping) and {"topic", "partition", "offset"} <= source.keys():
            found.add((source["topic"], source["partition"], source["offset"]))
    return found


def concerns(alert: Alert, user: str) -> bool:
    """Whether the alert is about the user: as subject, as member, or by an event of the user in its evidence."""
    return (
        (alert.subject_type == "user" and alert.subject == user)
        or user in alert.members
        or any(each.get("user_id") == user for each in alert.evidence)
    )


def timeline(
    user: str,
    predictions: Sequence[Prediction],
    events: Mapping[Place, Event],
    alerts: Iterable[Alert],
    *,
    last: int,
    read: str = "",
    notes: Sequence[str] = (),
) -> Timeline:
    """Put together what was read about a user.

    Args:
        predictions: all of the user's, in the order of their source.
        events: by the place of their record; those missing are shown without action.
        alerts: any; those about others are left out, and one that stands there twice is shown once.
        last: show at most so many steps, the newest.
    """
    steps: list[Step] = []
    before: Prediction | None = None
    for made in predictions:
        event = events.get(made.place)
        steps.append(
            Step(
                made,
                event,
                None if before is None else max(0, made.event_time_ms - before.event_time_ms) / 1000,
                None if before is None or event is None else before.next_action.get(event.action),
                None if before is None else before.median_gap_s,
            )
        )
        before = made
    about = {alert.id: alert for alert in alerts if concerns(alert, user)}
    shown = steps[max(0, len(steps) - last) :]
    return Timeline(user, shown, list(about.values()), len(steps) - len(shown), read, list(notes))
