"""A log with attacks and hard negatives among its events, as canonical lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from models.simulator.dirt import Record
from models.simulator.injection import AccountLabel, inject
from models.simulator.market import LogEvent
from stream.errors import ConfigurationError, InputFileError
from stream.events import Event, decode_events
from stream.files import LogFile

__all__ = ["CleanLog", "InjectedLog", "clean_log", "counts_of", "inject_into"]


class CleanLog(NamedTuple):
    """A file's events in its order, the same as records, and the number of lines that are none, by reason."""

    events: list[Event]
    records: list[Record]
    left_out: dict[str, int]


class InjectedLog(NamedTuple):
    """Records in time order, labels of all users, and how many events, and accounts by kind, were put in."""

    records: list[Record]
    labels: list[AccountLabel]
    events: int
    accounts: dict[str, int]


def counts_of(text: str | None, known: Collection[str], flag: str) -> dict[str, int]:
    """``burst=30,drip=30`` as a mapping; None is empty.

    Raises:
        ConfigurationError: a kind that is not known or given twice, or a count that is no whole number from 1.
    """
    counts: dict[str, int] = {}
    if text is None:
        return counts
    for part in text.split(","):
        kind, _, count = (piece.strip() for piece in part.partition("="))
        if kind not in known:
            raise ConfigurationError(
                f"{flag} has an unknown kind {kind!r}. Use {', '.join(known)}: {flag} {next(iter(known))}=30"
            )
        if kind in counts:
            raise ConfigurationError(f"{flag} names {kind} twice. Give one count for it.")
        if not (count.isascii() and count.isdigit() and int(count) > 0):
            raise ConfigurationError(
                f"{flag} {kind} has the count {count!r}; expected a whole number from 1. "
                f"Write {kind}=30, or leave it out."
            )
        counts[kind] = int(count)
    return counts


def clean_log(log: LogFile) -> CleanLog:
    """What of a file can be put among others.

    Raises:
        InputFileError: no line is an event.
    """
    decoded = decode_events([record.key for record in log.records], [record.value for record in log.records])
    events, records, left_out = [], [], Counter[str]()
    for record, event in zip(log.records, decoded, strict=True):
        if isinstance(event, Event):
            events.append(event)
            records.append(Record(record.key, record.value))
        elif event is not None:
            left_out[event.reason] += 1
    if not events:
        reasons = ", ".join(f"{reason} {count}" for reason, count in left_out.most_common())
        raise InputFileError(
            f"{log.name} holds no event to put others among; its {len(log.records)} lines are no events "
            f"({reasons}). Check --format, or see why with: foreclick score {log.name} --dead-letters OUT"
        )
    return CleanLog(events, records, dict(left_out))


def inject_into(
    records: Sequence[Record],
    events: Iterable[Any],
    attacks: Mapping[str, int],
    negatives: Mapping[str, int],
    seed: int,
    *,
    crawlers: Collection[str] = (),
) -> InjectedLog:
    """Put scripts among records in time order; of equal times, the log's own come first.

    Args:
        records: the log, left unchanged.
        events: what they hold, anything with the fields of a canonical event.
        attacks: see ``models.simulator.injection.inject``, also for the rest.
    """
    own = [msgspec.convert(event, LogEvent, from_attributes=True) for event in events]
    scripted, labels = inject(own, attacks, negatives, seed, crawlers=crawlers)
    encode = msgspec.json.Encoder().encode
    timed = [(event.event_time_ms, record) for event, record in zip(own, records, strict=True)]
    timed += [(event.event_time_ms, Record(event.user_id.encode(), encode(event))) for event in scripted]
    timed.sort(key=lambda pair: pair[0])
    accounts = Counter(label.kind for label in labels if label.group is not None)
    return InjectedLog([record for _, record in timed], labels, len(scripted), dict(sorted(accounts.items())))
