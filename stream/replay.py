"""A log into the input topic: as fast as the broker takes it, at a rate, or in the log's own rhythm.

The producer is idempotent, and its partitioner is that of Java clients (murmur2), so that a user's records land in
the partition where other producers put them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from stream.errors import BrokerUnreachable, TopicError
from stream.files import FileRecord

POLL_EVERY = 1000  # records between two looks at what the broker acknowledged
TICK_S = 0.005  # paced records are sent in groups: a sleep a record would limit the rate
MAX_MESSAGE_BYTES = 8 << 20  # the broker judges what is too large, not the client
DELIVERY_TIMEOUT_S = 60.0

Progress = Callable[[int], None]


def producer_of(client: dict[str, Any], **settings: Any) -> Producer:
    """A producer that repeats nothing, loses nothing and chooses partitions as Java clients do."""
    return Producer(
        {
            **client,
            "enable.idempotence": True,
            "acks": "all",
            "partitioner": "murmur2_random",
            "linger.ms": 5,
            "batch.num.messages": 10_000,
            "queue.buffering.max.messages": 100_000,
            "message.max.bytes": MAX_MESSAGE_BYTES,
            "message.timeout.ms": int(DELIVERY_TIMEOUT_S * 1000),
            "delivery.report.only.error": True,
            "log_level": 0,  # errors are raised here, in our words
            **settings,
        }
    )


def replay(
    records: Iterable[FileRecord],
    client: dict[str, Any],
    topic: str,
    rate: float | None = None,
    speed: float | None = None,
    progress: Progress = lambda _: None,
) -> dict[str, float]:
    """Produce the records in their order, key = user id, and wait until the broker has all of them.

    Args:
        records: in the order in which they are to be sent.
        client: librdkafka settings that reach the broker.
        topic: where to; it must exist.
        rate: records a second.
        speed: event seconds a second: 60 replays an hour in a minute. A record without a time follows the one before.
        progress: told the number of records sent so far, about every 1,000.

    Returns:
        ``sent``, ``seconds`` and ``records_per_s``.

    Raises:
        TopicError: the broker refused a record; those before it stand in the topic.
        BrokerUnreachable: no broker acknowledged within a minute.
    """
    refused: list[KafkaError] = []

    def report(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            refused.append(error)

    producer = producer_of(client, on_delivery=report)
    sent, began = 0, time.monotonic()
    try:
        for group in paced(records, rate, speed, wait=producer.poll):
            for record in group:
                _put(producer, topic, record)
            sent += len(group)
            producer.poll(0)
            progress(sent)
            if refused:
                break
    except KafkaException as error:
        refused.append(error.args[0])
    left = producer.flush(DELIVERY_TIMEOUT_S)
    seconds = time.monotonic() - began
    if refused or left:
        raise _refusal(refused, left, sent, topic, client)
    return {"sent": sent, "seconds": round(seconds, 3), "records_per_s": round(sent / max(seconds, 1e-9), 1)}


def paced(
    records: Iterable[FileRecord],
    rate: float | None,
    speed: float | None,
    *,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], Any] = time.sleep,
) -> Iterator[list[FileRecord]]:
    """The records in groups that are handed out when they are due.

    Args:
        records: in order.
        rate: records a second; without a rate and a speed nothing waits.
        speed: event seconds a second of the clock.
        clock: gives seconds.
        wait: waits for so many seconds; it may return early.
    """
    group: list[FileRecord] = []
    began, first_ms, due_s, now_s = clock(), None, 0.0, 0.0
    for index, record in enumerate(records):
        if rate is not None:
            due_s = index / rate
        elif speed is not None and record.event_time_ms is not None:
            first_ms = record.event_time_ms if first_ms is None else first_ms
            # A log in file order goes back in time: what is overdue is sent at once.
            due_s = max(due_s, (record.event_time_ms - first_ms) / 1000 / speed)
        if group and (due_s > now_s or len(group) == POLL_EVERY):
            yield group
            group = []
            now_s = clock() - began
        while due_s > now_s:
            wait(max(TICK_S, due_s - now_s) if due_s - now_s < 1.0 else 1.0)
            now_s = clock() - began
        group.append(record)
    if group:
        yield group


def _put(producer: Producer, topic: str, record: FileRecord) -> None:
    while True:
        try:
            producer.produce(topic, value=record.value, key=record.key)
            return
        except BufferError:
            producer.poll(0.1)  # the broker is slower than the file


def _refusal(
    refused: list[KafkaError], left: int, sent: int, topic: str, client: dict[str, Any]
) -> BrokerUnreachable | TopicError:
    address = client.get("bootstrap.servers")
    unreachable = (KafkaError._MSG_TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN)
    if not refused or refused[0].code() in unreachable:
        return BrokerUnreachable(
            f"The broker at {address} acknowledged no more records ({left + len(refused)} of {sent} are missing). "
            "Look at `foreclick broker status` and replay again: repeated event ids are dropped."
        )
    if refused[0].code() in (
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    ):
        return TopicError(
            f"Topic {topic} does not exist at {address}. Create it with `foreclick topics create`."
        )
    return TopicError(f"The broker refused {len(refused)} of {sent} records for {topic}: {refused[0].str()}.")
