"""The alert that a detector of crowds gives: who did the same in a group, how unlikely that is, and where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.fraud.fusion import scores_of
from stream.alerts import Alert, severity_of
from stream.group_detectors import Group, Partner

__all__ = ["crowd_alert", "evidence_entry", "score_of"]


def crowd_alert(
    kind: str,
    group: Group,
    topic: str,
    at: tuple[int, int],
    *,
    event_time_ms: int,
    reason: tuple[str, str],
    nats: float,
    expected: float,
    did: Sequence[Partner],
    approximate: bool,
) -> Alert:
    """An alert about a group whose users did something more often than is expected.

    Args:
        kind: of the detector.
        group: the subject.
        topic: that evidence names.
        at: partition and offset of the event with which the evidence became strong enough.
        event_time_ms: when the verdict was possible.
        reason: its code and its words.
        nats: of evidence; ``expected`` is what would be usual.
        did: the members, by their ids.
        approximate: whether something found no room in the row.
    """
    score = score_of(nats)
    code, text = reason
    partition, offset = at
    return Alert(
        id=f"{kind}/{group.type}/{group.id}/{topic}/{partition}/{offset}",
        kind=kind,
        subject_type=group.type,
        subject=group.id,
        score=score,
        severity=severity_of(score),
        event_time_ms=event_time_ms,
        reasons=[{"code": code, "text": text, "nats": round(nats, 3), "expected": round(expected, 3)}],
        evidence=[evidence_entry(topic, each) for each in did],
        members=[each.user_id for each in did],
        approximate=approximate,
    )


def evidence_entry(topic: str, who: Partner) -> dict[str, Any]:
    """One event as evidence: its user, time and source position."""
    return {
        "user_id": who.user_id,
        "event_time_ms": who.event_time_ms,
        "source": {"topic": topic, "partition": who.partition, "offset": who.offset},
    }


def score_of(nats: float) -> float:
    """Evidence as a score from 0 to 1."""
    return round(float(scores_of(np.array(nats))), 6)
