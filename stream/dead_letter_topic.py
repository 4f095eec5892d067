"""Dead letters as they stand in their topic, and the way back: each into the input topic again, once ever."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from confluent_kafka import Message

from stream.broker.topics import TopicInfo
from stream.dead_letters import REPLAYED_HEADER
from stream.errors import TopicError
from stream.settings import Settings
from stream.stage import FENCE_KEY
from stream.tool_positions import ToolPositions, produce
from stream.topic_reader import Bounds, bounds, read, read_all, reader
from stream.topics import existing

REASON = "clicks.reason"
ERRORS = "__streams.errors."  # KIP-1034: exception, message, topic, partition, offset
TRANSACTION_RECORDS = 500
ANY_PARTITION = -1


@dataclass(frozen=True)
class DeadLetter:
    """One rejected record: where it lies, why, where it came from, and its original bytes."""

    partition: int
    offset: int
    timestamp_ms: int
    reason: str
    message: str
    source: str
    source_partition: int
    source_offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]  # the original record's own

    @classmethod
    def read(cls, message: Message) -> DeadLetter:
        """From the record in the dead letters' topic; headers that are missing read as empty or -1."""
        headers = [(name, value or b"") for name, value in message.headers() or ()]
        by_name = {name: value.decode(errors="replace") for name, value in headers}
        return cls(
            partition=message.partition(),
            offset=message.offset(),
            timestamp_ms=message.timestamp()[1],
            reason=by_name.get(REASON, ""),
            message=by_name.get(ERRORS + "message", ""),
            source=by_name.get(ERRORS + "topic", ""),
            source_partition=_number(by_name.get(ERRORS + "partition")),
            source_offset=_number(by_name.get(ERRORS + "offset")),
            key=message.key(),
            value=message.value(),
            headers=tuple(
                (name, value)
                for name, value in headers
                if name not in (REASON, REPLAYED_HEADER) and not name.startswith(ERRORS)
            ),
        )

    def described(self) -> dict[str, Any]:
        """Plain values; bytes that are no UTF-8 stand in ``*_base64``."""
        shown: dict[str, Any] = {
            "partition": self.partition,
            "offset": self.offset,
            "timestamp_ms": self.timestamp_ms,
            "reason": self.reason,
            "message": self.message,
            "source": {"topic": self.source, "partition": self.source_partition, "offset": self.source_offset},
        }
        for name, raw in (("key", self.key), ("value", self.value)):
            try:
                shown[name] = None if raw is None else raw.decode()
            except UnicodeDecodeError:
                shown[f"{name}_base64"] = base64.b64encode(raw or b"").decode()
        shown["headers"] = {name: value.decode(errors="replace") for name, value in self.headers}
        return shown


def dead_letters(settings: Settings) -> Iterator[DeadLetter]:
    """All dead letters there are.

    Raises:
        TopicError: the topic is missing.
        BrokerUnreachable: nobody answers.
    """
    topic = existing(settings, settings.dead_letters_topic)
    for message in read_all(settings.kafka.librdkafka(), topic.name, topic.partitions):
        if message.key() != FENCE_KEY:
            yield DeadLetter.read(message)


def dead_letter_at(settings: Settings, partition: int, offset: int) -> DeadLetter:
    """One dead letter; raises TopicError when there is none at that place."""
    topic = existing(settings, settings.dead_letters_topic)
    with reader(settings.kafka.librdkafka()) as consumer:
        if 0 <= partition < topic.partitions:
            start, end = bounds(consumer, topic.name, topic.partitions)[partition]
            if start <= offset < end:
                for message in read(consumer, topic.name, {partition: Bounds(offset, offset + 1)}):
                    return DeadLetter.read(message)
    raise TopicError(
        f"There is no dead letter at {topic.name}[{partition}]@{offset}. `foreclick dlq list` shows where they are."
    )


def replay_dead_letters(
    settings: Settings,
    reason: str | None = None,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, int]:
    """Send dead letters into the input topic again, with their original key and bytes, each once ever.

    Records and the memory of what was sent are one transaction, so a run that is killed or repeated sends nothing
    twice. They carry the header ``clicks.replayed``, for which the limits of lateness do not hold.

    Args:
        settings: names of the topics.
        reason: only those with this reason.
        limit: at most so many.
        progress: told how many were sent so far.

    Returns:
        Count by reason of what this call sent.
    """
    letters = existing(settings, settings.dead_letters_topic)
    source = existing(settings, settings.clicks_topic)
    positions = ToolPositions(settings, "dlq-replay")
    topic_id = base64.urlsafe_b64encode(letters.topic_id).decode()
    memory = {number: Memory.of(positions.get(f"{topic_id}/{number}")) for number in range(letters.partitions)}
    counts: dict[str, int] = {}
    with reader(settings.kafka.librdkafka()) as consumer:
        stretches = {
            number: Bounds(max(found.start, memory[number].start(reason)), found.end)
            for number, found in bounds(consumer, letters.name, letters.partitions).items()
        }
        due = islice(_due(read(consumer, letters.name, stretches), memory, reason), limit)
        while group := list(islice(due, TRANSACTION_RECORDS)):
            moved: dict[str, Any] = {}
            with positions.transaction(moved) as producer:
                for letter in group:
                    produce(producer, source.name, **_again(letter, letters, source))
                    memory[letter.partition].sent(letter.offset, reason)
                    moved[f"{topic_id}/{letter.partition}"] = memory[letter.partition].value()
            for letter in group:
                counts[letter.reason] = counts.get(letter.reason, 0) + 1
            progress(sum(counts.values()))
    return counts


@dataclass
class Memory:
    """What of one partition was sent: all below ``next``, and of single reasons further on."""

    next: int
    ahead: dict[str, int]

    @classmethod
    def of(cls, value: Mapping[str, Any] | None) -> Memory:
        """From what ``value`` gave."""
        return cls(0, {}) if value is None else cls(value["next"], dict(value["ahead"]))

    def value(self) -> dict[str, Any]:
        """As JSON values."""
        return {"next": self.next, "ahead": self.ahead}

    def start(self, reason: str | None) -> int:
        """The first offset that may not have been sent."""
        return self.next if reason is None else max(self.next, self.ahead.get(reason, 0))

    def holds(self, offset: int, reason: str) -> bool:
        """Whether the letter was sent."""
        return offset < max(self.next, self.ahead.get(reason, 0))

    def sent(self, offset: int, only: str | None) -> None:
        """Everything up to the offset was sent, or everything of one reason."""
        if only is not None:
            self.ahead[only] = offset + 1
            return
        self.next = offset + 1
        self.ahead = {reason: end for reason, end in self.ahead.items() if end > self.next}


def _due(messages: Iterable[Message], memory: Mapping[int, Memory], reason: str | None) -> Iterator[DeadLetter]:
    for message in messages:
        letter = DeadLetter.read(message)
        if message.key() == FENCE_KEY or (reason is not None and letter.reason != reason):
            continue
        if not memory[letter.partition].holds(letter.offset, letter.reason):
            yield letter


def _again(letter: DeadLetter, letters: TopicInfo, source: TopicInfo) -> dict[str, Any]:
    origin = f"{letters.name}/{letter.partition}/{letter.offset}".encode()
    # The partition where it stood is where its user's row is, whatever partitioner the producer had.
    known = letter.source == source.name and 0 <= letter.source_partition < source.partitions
    return {
        "partition": letter.source_partition if known else ANY_PARTITION,
        "key": letter.key,
        "value": letter.value,
        "headers": [*letter.headers, (REPLAYED_HEADER, origin)],
    }


def _number(text: str | None) -> int:
    try:
        return int(text or "")
    except ValueError:
        return -1
