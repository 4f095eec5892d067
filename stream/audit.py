"""An independent look at what was promised: every input position answered exactly once.

A read_committed reader of its own joins each position of the source with the ``source`` of the predictions and with
the dead letters' origin. It asks nothing of the worker and believes no counter.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream.events import Event, decode_events
from stream.formats import adapt_object
from stream.stage import FENCE_KEY

Position = tuple[int, int]

_PATIENCE_S = 30.0  # without a record, before a topic's end


@dataclass
class Audit:
    """What became of every record of the source.

    Attributes:
        missing: positions in neither topic that are neither a tombstone nor a repeat of an earlier event id.
        twice: positions in one topic twice, or in both.
        repeats: positions whose event id the user had sent before.
    """

    events_in: int = 0
    predictions: int = 0
    dead_letters: int = 0
    tombstones: int = 0
    repeats: int = 0
    missing: list[Position] = field(default_factory=list)
    twice: list[Position] = field(default_factory=list)
    produced_ms: dict[Position, int] = field(default_factory=dict)


def read_topic(client: dict[str, Any], topic: str) -> Iterator[Message]:
    """Every committed record of a topic up to its end as it stands now, partition by partition interleaved."""
    consumer = Consumer(
        {
            **client,
            "group.id": "foreclick-audit",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )
    try:
        partitions = list(consumer.list_topics(topic, timeout=10).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        reading, since = set(partitions), time.monotonic()
        while reading:
            messages = consumer.consume(5000, 0.5)
            if messages:
                since = time.monotonic()
            elif time.monotonic() - since > _PATIENCE_S:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"{topic} did not reach its end"))
            for message in messages:
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    reading.discard(message.partition())
                else:
                    raise KafkaException(error)
    finally:
        consumer.close()


def audit(client: dict[str, Any], source: str, predictions: str, dead_letters: str) -> Audit:
    """Join every position of the source with what was made of it."""
    found = Audit()
    answered: dict[Position, int] = {}
    for message in read_topic(client, predictions):
        if message.key() == FENCE_KEY:
            continue
        origin = json.loads(message.value() or b"")["source"]
        position = (origin["partition"], origin["offset"])
        answered[position] = answered.get(position, 0) + 1
        found.predictions += 1
    for message in read_topic(client, dead_letters):
        # A hostile record may have had that key too; a fence has no headers.
        if message.key() == FENCE_KEY and not message.headers():
            continue
        headers = {name: bytes(value or b"") for name, value in message.headers() or []}  # type: ignore[arg-type,str-unpack]
        position = (int(headers["__streams.errors.partition"]), int(headers["__streams.errors.offset"]))
        answered[position] = answered.get(position, 0) + 1
        found.dead_letters += 1
    found.twice = sorted(position for position, count in answered.items() if count > 1)
    seen: set[tuple[bytes | None, str]] = set()
    for message in read_topic(client, source):
        position = (message.partition() or 0, message.offset() or 0)
        found.events_in += 1
        found.produced_ms[position] = message.timestamp()[1]
        repeat = _repeats(message, seen)
        if position in answered:
            continue
        if message.value() is None:
            found.tombstones += 1
        elif repeat:
            found.repeats += 1
        else:
            found.missing.append(position)
    return found


def _repeats(message: Message, seen: set[tuple[bytes | None, str]]) -> bool:
    """Whether this user has sent this event id before; records that are no event have no id."""
    value = message.value()
    if value is None:
        # What comes after a tombstone is a new life: its ids are unknown again.
        gone = {entry for entry in seen if entry[0] == message.key()}
        seen -= gone
        return False
    (event,) = decode_events([message.key()], [value], adapt_object)
    if not isinstance(event, Event) or not event.event_id:
        return False
    entry = (message.key(), event.event_id)
    if entry in seen:
        return True
    seen.add(entry)
    return False
