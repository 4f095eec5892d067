"""Reading a stretch of a topic for tools: committed records, from given offsets to the end as it stands at the start.

No group is joined and nothing is committed, so no tool disturbs a worker.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream.errors import BrokerUnreachable

REQUEST_TIMEOUT_S = 15.0
IDLE_TIMEOUT_S = 30.0


class CommittedRecord(NamedTuple):
    """A record as it stands in its topic; ``timestamp`` is the broker's, in ms."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    timestamp: int


class Bounds(NamedTuple):
    """First offset of a partition, and the one after its last committed record (markers included)."""

    start: int
    end: int


@contextlib.contextmanager
def reader(
    client: Mapping[str, Any], *, committed: bool = True, group_id: str = "foreclick-reader"
) -> Iterator[Consumer]:
    """A consumer that joins no group, read_committed unless told otherwise.

    Whoever asks for the positions of ``group_id`` says ``committed=False``: librdkafka otherwise wants stable ones
    (KIP-447), and while a transaction is open, which under load one always is, asks again until its time is over.
    The answer is the last position that a transaction has ended with either way.
    """
    consumer = Consumer(
        {
            **client,
            "group.id": group_id,  # librdkafka wants a name; nothing is ever committed under it
            "enable.auto.commit": False,
            "isolation.level": "read_committed" if committed else "read_uncommitted",
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )
    try:
        yield consumer
    finally:
        consumer.close()


def bounds(consumer: Consumer, topic: str, partitions: int) -> dict[int, Bounds]:
    """Where each partition begins and ends now; the end is the last stable offset for a read_committed reader.

    Raises:
        BrokerUnreachable: nobody answered.
    """
    found = {}
    for number in range(partitions):
        try:
            found[number] = Bounds(
                *consumer.get_watermark_offsets(
                    TopicPartition(topic, number), timeout=REQUEST_TIMEOUT_S, cached=False
                )
            )
        except KafkaException as error:
            raise BrokerUnreachable(
                f"The broker does not say where {topic}[{number}] ends: {error.args[0].str()}. "
                "Look at `foreclick broker status`."
            ) from error
    return found


def read(consumer: Consumer, topic: str, stretches: Mapping[int, Bounds]) -> Iterator[CommittedRecord]:
    """Every record of the stretches, in order within a partition; partitions are interleaved as they arrive.

    Args:
        consumer: from ``reader``; it is assigned here.
        topic: the topic.
        stretches: from and to (exclusive) by partition.

    Raises:
        BrokerUnreachable: no progress for 30 s.
    """
    left = {number: stretch for number, stretch in stretches.items() if stretch.start < stretch.end}
    consumer.assign([TopicPartition(topic, number, stretch.start) for number, stretch in left.items()])
    progressed = time.monotonic()
    while left:
        messages = consumer.consume(1000, 0.1)
        if messages:
            progressed = time.monotonic()
        elif time.monotonic() - progressed > IDLE_TIMEOUT_S:
            waiting = ", ".join(f"{topic}[{number}]" for number in left)
            raise BrokerUnreachable(
                f"No progress for {IDLE_TIMEOUT_S:.0f} s while reading {waiting}. Look at `foreclick broker status`."
            )
        for message in messages:
            number, offset, error = int(message.partition() or 0), int(message.offset() or 0), message.error()
            stretch = left.get(number)
            if stretch is None:
                continue  # beyond the end that was asked for
            if error is None:
                if offset < stretch.end:
                    yield _record(message, number, offset)
                if offset >= stretch.end - 1:
                    del left[number]
            elif error.code() == KafkaError._PARTITION_EOF:
                # Only here is the end known where markers of transactions are the last entries.
                if offset >= stretch.end:
                    del left[number]
            else:
                raise BrokerUnreachable(f"Reading {topic}[{number}] failed: {error.str()}.")


def read_all(client: Mapping[str, Any], topic: str, partitions: int) -> Iterator[CommittedRecord]:
    """Every committed record of a topic."""
    with reader(client) as consumer:
        yield from read(consumer, topic, bounds(consumer, topic, partitions))


def offsets_since(consumer: Consumer, topic: str, partitions: int, time_ms: int) -> dict[int, Bounds]:
    """As ``bounds``, from the first record that the broker has stamped with the time or a later one.

    Raises:
        BrokerUnreachable: nobody answered.
    """
    whole = bounds(consumer, topic, partitions)
    try:
        found = consumer.offsets_for_times(
            [TopicPartition(topic, number, time_ms) for number in whole], timeout=REQUEST_TIMEOUT_S
        )
    except KafkaException as error:
        raise BrokerUnreachable(
            f"The broker does not say where {topic} was at {time_ms} ms: {error.args[0].str()}. "
            "Look at `foreclick broker status`."
        ) from error
    # Nothing as late as that: the broker answers the end, which librdkafka writes as -1.
    starts = {each.partition: each.offset for each in found}
    return {
        number: Bounds(min(end, max(start, starts[number])) if starts[number] >= 0 else end, end)
        for number, (start, end) in whole.items()
    }


def follow(consumer: Consumer, starts: Mapping[tuple[str, int], int]) -> Iterator[CommittedRecord | None]:
    """Committed records from the given offsets on, for ever; None whenever there was nothing for half a second.

    Args:
        consumer: from ``reader``; it is assigned here.
        starts: first offset by topic and partition.

    Raises:
        BrokerUnreachable: the broker refuses to go on. One that is away is waited for.
    """
    consumer.assign([TopicPartition(topic, number, offset) for (topic, number), offset in starts.items()])
    while True:
        quiet = True
        for message in consumer.consume(500, 0.5):
            error = message.error()
            if error is None:
                quiet = False
                yield _record(message, int(message.partition() or 0), int(message.offset() or 0))
            elif error.code() != KafkaError._PARTITION_EOF and not error.retriable():
                raise BrokerUnreachable(f"Reading {message.topic()} failed: {error.str()}.")
        if quiet:
            yield None


def _record(message: Message, partition: int, offset: int) -> CommittedRecord:
    headers: Any = message.headers() or []
    return CommittedRecord(
        str(message.topic()),
        partition,
        offset,
        message.key(),
        message.value(),
        headers,
        message.timestamp()[1],
    )
