"""The alert: one object, the same on a topic and as a line of a file.

An alert says who (``subject``), how sure (``score``), why (``reasons`` in codes and words) and from what
(``evidence``: orders or events with their places in the source). Ids are made of what the alert is about, never of
when it was noticed: the same input gives the same ids, so a consumer can drop a repetition.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

__all__ = ["END_MS", "Alert", "severity_of"]

#: Times of events end here: beyond, a double no longer holds whole milliseconds.
END_MS: Final = 2**53


class Alert(msgspec.Struct, kw_only=True, frozen=True):
    """What an analyst reads. The JSON has exactly these keys, in this order.

    Attributes:
        id: deterministic.
        kind: the detector.
        subject_type: what the subject is: user, order, event, shop or item.
        subject: its id; the key of the record.
        score: 0 to 1, comparable within a kind.
        probability: None until enough labels have calibrated it.
        severity: low, medium or high; follows from the score.
        event_time_ms: the event time at which the verdict was possible, milliseconds since 1970, UTC.
        reasons: objects with ``code``, ``text`` and the numbers behind them.
        evidence: objects with the id of the order or event, its user, time and source position.
        members: users that a group's alert is about, sorted.
        approximate: a bound on memory was met; the verdict may miss members or events.
        supersedes: id of the earlier alert on the same subject that this one replaces, None for the first.
        held_back: findings since that alert that said nothing new and were not sent.
    """

    id: str
    kind: str
    subject_type: str
    subject: str
    score: float
    probability: float | None = None
    severity: str
    event_time_ms: int
    reasons: list[dict[str, Any]]
    evidence: list[dict[str, Any]]
    members: list[str] = []
    approximate: bool = False
    supersedes: str | None = None
    held_back: int = 0

    def as_json(self) -> bytes:
        """One line of JSON, without its end."""
        return _encode(self)


_encode = msgspec.json.Encoder().encode


def severity_of(score: float) -> str:
    """``high`` from 0.9, ``medium`` from 0.7, else ``low``."""
    if score >= 0.9:
        return "high"
    return "medium" if score >= 0.7 else "low"
