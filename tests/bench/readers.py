"""What a bench reads back: the predictions of a finished run, and their arrival at two readers of a running one."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream.stage import FENCE_KEY
from tests.bench.processes import BenchFailed

READ_TIMEOUT_S = 120.0
COMMITTED_TIMEOUT_S = 60.0
LEADER_TIMEOUT_S = 60.0
_LEADER_ON_ITS_WAY = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError._TIMED_OUT,
}
_PARTITION_FIELD, _OFFSET_FIELD = b'"partition":', b'"offset":'


def consumer_of(client: dict[str, Any], **settings: Any) -> Consumer:
    """A reader without a group of its own to speak of: nothing is committed."""
    return Consumer(
        {**client, "group.id": "foreclick-bench", "enable.auto.commit": False, "log_level": 0, **settings}
    )


def partitions_of(consumer: Consumer, topic: str) -> list[int]:
    return sorted(consumer.list_topics(topic, timeout=LEADER_TIMEOUT_S).topics[topic].partitions)


def ends_of(consumer: Consumer, topic: str) -> dict[int, int]:
    """High watermark of each partition."""
    return {p: _end_of(consumer, TopicPartition(topic, p)) for p in partitions_of(consumer, topic)}


def _end_of(consumer: Consumer, partition: TopicPartition) -> int:
    """High watermark; asked again while the leader of a partition that is new is not known everywhere."""
    deadline = time.monotonic() + LEADER_TIMEOUT_S
    while True:
        try:
            return int(consumer.get_watermark_offsets(partition, timeout=10)[1])
        except KafkaException as error:
            if error.args[0].code() not in _LEADER_ON_ITS_WAY or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _is_end(message: Message) -> bool:
    """Whether this is the word that a partition is read to its end; any other error is raised."""
    error = message.error()
    if error is not None and error.code() != KafkaError._PARTITION_EOF:
        raise KafkaException(error)
    return error is not None


def source_position(value: bytes) -> tuple[int, int]:
    """Where a prediction's event stood, without decoding it: ``"source":{"topic":…,"partition":…,"offset":…}``.

    Not the prediction's own partition: other programs than ours may choose that by another hash of the key.
    """
    start = value.index(_PARTITION_FIELD) + len(_PARTITION_FIELD)
    end = value.index(_OFFSET_FIELD, start)
    offset = end + len(_OFFSET_FIELD)
    return int(value[start : end - 1]), int(value[offset : value.index(b"}", offset)])


@dataclass(frozen=True)
class Written:
    """The predictions of a run, one entry each.

    ``ready`` is how many of them stood in the first transaction: they were finished when the clock started.
    """

    timestamp_ms: np.ndarray
    value_bytes: int
    ready: int

    @property
    def seconds(self) -> float:
        return float(self.timestamp_ms.max() - self.timestamp_ms.min()) / 1000

    @property
    def events_per_s(self) -> float:
        """Events a second between the first and the last output record's timestamps."""
        return (len(self.timestamp_ms) - self.ready) / self.seconds


def read_predictions(client: dict[str, Any], topic: str, events: int) -> Written:
    """Read a topic read_committed to its end.

    Raises:
        BenchFailed: there is not exactly one prediction an event; no figure can be made of that.
    """
    consumer = consumer_of(client, **{"isolation.level": "read_committed", "enable.partition.eof": True})
    numbers = partitions_of(consumer, topic)
    consumer.assign([TopicPartition(topic, number, 0) for number in numbers])
    positions: set[tuple[int, int]] = set()
    timestamps: list[int] = []
    offsets: dict[int, list[tuple[int, int]]] = {number: [] for number in numbers}
    value_bytes, at_end, deadline = 0, set(), time.monotonic() + READ_TIMEOUT_S
    while len(at_end) < len(numbers):
        if time.monotonic() > deadline:
            raise BenchFailed(f"{topic} could not be read to its end within {READ_TIMEOUT_S:.0f} s.")
        for message in consumer.consume(10_000, 0.2):
            partition = message.partition()
            if _is_end(message):
                at_end.add(partition)
            elif message.key() != FENCE_KEY:
                value, timestamp = message.value(), message.timestamp()[1]
                positions.add(source_position(value))
                timestamps.append(timestamp)
                offsets[partition].append((message.offset(), timestamp))
                value_bytes += len(value)
    consumer.close()
    if len(timestamps) != events or len(positions) != events:
        raise BenchFailed(
            f"{topic} holds {len(timestamps)} predictions of {len(positions)} events where {events} events were sent. "
            "Nothing is reported on such a run."
        )
    return Written(np.array(timestamps), value_bytes // events, _first_transaction(list(offsets.values())))


def _first_transaction(partitions: list[list[tuple[int, int]]]) -> int:
    """Records of the first transaction: up to the first offset that its marker took. 1 without transactions."""
    earliest = min((entries for entries in partitions if entries), key=lambda entries: entries[0][1])
    offsets = np.array([offset for offset, _ in earliest])
    gaps = np.flatnonzero(np.diff(offsets) > 1)
    return int(gaps[0]) + 1 if len(gaps) else 1


class Reader(threading.Thread):
    """Notes when the prediction of each source position arrives at a consumer; the first time counts."""

    def __init__(self, client: dict[str, Any], topic: str, isolation: str):
        super().__init__(daemon=True, name=isolation)
        self.arrived_s: dict[tuple[int, int], float] = {}
        self._ended = threading.Event()
        self._consumer = consumer_of(
            client,
            **{
                "isolation.level": isolation,
                # Answered as soon as there is anything; two readers that asked every 5 ms took the broker a third of
                # a core.
                "fetch.wait.max.ms": 200,
                "fetch.min.bytes": 1,
                "check.crcs": False,
            },
        )
        ends = ends_of(self._consumer, topic)
        self._consumer.assign([TopicPartition(topic, number, end) for number, end in ends.items()])

    def run(self) -> None:
        consumer, arrived_s = self._consumer, self.arrived_s
        while not self._ended.is_set():
            first = consumer.poll(0.1)
            if first is None:
                continue
            messages = [first, *consumer.consume(2000, 0)]  # what stands ready beside it
            now_s = time.time()
            for message in messages:
                if message.error() is None and message.key() != FENCE_KEY:
                    arrived_s.setdefault(source_position(message.value()), now_s)
        consumer.close()

    def end(self) -> None:
        self._ended.set()
        self.join(5)


def produced_ms(client: dict[str, Any], topic: str, starts: dict[int, int]) -> dict[tuple[int, int], int]:
    """CreateTime of each record from ``starts`` to the end: when its producer took it."""
    consumer = consumer_of(client, **{"enable.partition.eof": True})
    consumer.assign([TopicPartition(topic, number, start) for number, start in starts.items()])
    found: dict[tuple[int, int], int] = {}
    at_end: set[int] = set()
    while len(at_end) < len(starts):
        for message in consumer.consume(10_000, 0.2):
            if _is_end(message):
                at_end.add(message.partition())
            else:
                found[message.partition(), message.offset()] = message.timestamp()[1]
    consumer.close()
    return found
