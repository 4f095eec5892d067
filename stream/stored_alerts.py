"""Alerts as they stand in their topics or in a file, and what follows from reading several of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from stream.alerts import Alert
from stream.errors import InputFileError
from stream.json_lines import lines_of
from stream.settings import Settings
from stream.stage import RESERVED
from stream.topic_reader import CommittedRecord, bounds, offsets_since, read, reader
from stream.topics import existing
from stream.wording import cut, plain

__all__ = [
    "Chosen",
    "StoredAlert",
    "Unreadable",
    "alert_of",
    "alert_topics",
    "alerts_in",
    "chain_of",
    "stored_alerts",
]

_decode = msgspec.json.Decoder(Alert).decode


@dataclass(frozen=True, slots=True)
class StoredAlert:
    """An alert and where it was read: ``place`` is ``topic[partition]@offset`` or ``file:line``.

    ``written_ms`` is the broker's time of the record; in a file, which has none, that of the event.
    """

    alert: Alert
    place: str
    written_ms: int


@dataclass(slots=True)
class Unreadable:
    """Records that are no alerts: how many, and what is wrong with the first."""

    count: int = 0
    first: str = ""

    def note(self, place: str, why: str) -> None:
        """One more."""
        self.count += 1
        self.first = self.first or f"{place}: {plain(why)}"

    def told(self) -> str:
        """A sentence for people; empty when there are none."""
        if not self.count:
            return ""
        return f"{self.count} records are no alerts and were left out; the first is {self.first}"


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which alerts are wanted; what is None excludes nothing.

    Args:
        kinds: names of detectors, or their beginnings up to a dot (``churn`` takes ``churn.expected``).
        subject: whom the alert is about, or who is one of its members.
        since_ms: written at this time or later.
    """

    kinds: Sequence[str] = ()
    subject: str | None = None
    since_ms: int | None = None

    def holds(self, stored: StoredAlert) -> bool:
        """Whether the alert is one of them."""
        alert = stored.alert
        return (
            (
                not self.kinds
                or any(alert.kind == kind or alert.kind.startswith(kind + ".") for kind in self.kinds)
            )
            and (self.subject is None or alert.subject == self.subject or self.subject in alert.members)
            and (self.since_ms is None or stored.written_ms >= self.since_ms)
        )


def alert_of(value: bytes | None) -> Alert | str:
    """An alert, or what is wrong with the record."""
    if value is None:
        return "a record without a value"
    try:
        return _decode(value)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return f"{error} in {cut(value[:80].decode(errors='replace'), 60)}"


def alerts_in(path: str | Path, unreadable: Unreadable) -> Iterator[StoredAlert]:
    """The alerts of a file that ``score --alerts`` wrote, in its order.

    Raises:
        InputFileError: it cannot be read, or its first line is no alert.
    """
    name = "standard input" if str(path) == "-" else str(path)
    none_yet = True
    for number, line in lines_of(path):
        found = alert_of(line)
        if isinstance(found, str):
            if none_yet:
                raise InputFileError(
                    f"{name}:{number} is no alert: {found}. Name a file that `foreclick score --alerts` wrote."
                )
            unreadable.note(f"{name}:{number}", found)
            continue
        none_yet = False
        yield StoredAlert(found, f"{name}:{number}", found.event_time_ms)


def alert_topics(settings: Settings) -> list[str]:
    """Where alerts go."""
    return [settings.alerts_fraud_topic, settings.alerts_churn_topic]


def of_record(record: CommittedRecord, unreadable: Unreadable) -> StoredAlert | None:
    """The alert of a record; None, and noted, when it is none."""
    if record.key is not None and record.key.startswith(RESERVED):
        return None
    place = f"{record.topic}[{record.partition}]@{record.offset}"
    found = alert_of(record.value)
    if isinstance(found, str):
        unreadable.note(place, found)
        return None
    return StoredAlert(found, place, record.timestamp)


def stored_alerts(
    settings: Settings,
    unreadable: Unreadable,
    since_ms: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
    ends: dict[tuple[str, int], int] | None = None,
) -> list[StoredAlert]:
    """All committed alerts of both topics, by the time at which they were written.

    Args:
        since_ms: none that the broker stamped earlier.
        advance: told how many records were read so far.
        ends: filled with the offset at which each partition was left, for who goes on from there.

    Raises:
        TopicError: a topic is missing.
        BrokerUnreachable: nobody answers.
    """
    client, found, seen = settings.kafka.librdkafka(), [], 0
    for name in alert_topics(settings):
        topic = existing(settings, name)
        with reader(client) as consumer:
            stretches = (
                bounds(consumer, name, topic.partitions)
                if since_ms is None
                else offsets_since(consumer, name, topic.partitions, since_ms)
            )
            if ends is not None:
                ends.update({(name, number): stretch.end for number, stretch in stretches.items()})
            for record in read(consumer, name, stretches):
                seen += 1
                advance(seen)
                if stored := of_record(record, unreadable):
                    found.append(stored)
    return sorted(found, key=lambda stored: stored.written_ms)


def chain_of(alert_id: str, alerts: Iterable[StoredAlert]) -> list[StoredAlert | str]:
    """The alerts that supersede each other, the given one among them, oldest first.

    An id whose alert is not among them (it may be beyond the topic's retention) stands as its text. Empty when the
    given one is not there.
    """
    by_id: dict[str, StoredAlert] = {}
    successor: dict[str, str] = {}
    for stored in alerts:
        by_id[stored.alert.id] = stored
        if stored.alert.supersedes is not None:
            successor[stored.alert.supersedes] = stored.alert.id
    if alert_id not in by_id:
        return []
    chain: list[StoredAlert | str] = []
    met: set[str] = set()  # a foreign producer may have written a ring
    at: str | None = alert_id
    while at is not None and at not in met:
        met.add(at)
        known = by_id.get(at)
        chain.append(known or at)
        at = known.alert.supersedes if known else None
    chain.reverse()
    at = successor.get(alert_id)
    while at is not None and at not in met:
        met.add(at)
        chain.append(by_id[at])
        at = successor.get(at)
    return chain
