"""Dead letters as they stand in their topic, and the way back: each into the input topic again, once ever."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from stream.broker.topics import TopicInfo, describe_topics
from stream.dead_letters import REPLAYED_HEADER, DeadLetter, parse
from stream.errors import TopicError
from stream.settings import Settings
from stream.tool_positions import ToolPositions, produce
from stream.topic_reader import Bounds, CommittedRecord, bounds, read, read_all, reader
from stream.topics import existing

TRANSACTION_RECORDS = 500
ANY_PARTITION = -1


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A dead letter at its place in the topic: original bytes, and what its headers say."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    letter: DeadLetter

    @classmethod
    def read(cls, record: CommittedRecord) -> StoredLetter | None:
        """From a record of the topic; None when it is no dead letter of ours."""
        letter = parse(record.headers)
        if letter is None:
            return None
        return cls(record.partition, record.offset, record.timestamp, record.key, record.value, letter)

    def described(self) -> dict[str, Any]:
        """Plain values; bytes that are no UTF-8 stand in ``*_base64``."""
        letter = self.letter
        return {
            "partition": self.partition,
            "offset": self.offset,
            "timestamp_ms": self.timestamp_ms,
            **described(self.key, self.value, letter),
        }


def described(key: bytes | None, value: bytes | None, letter: DeadLetter) -> dict[str, Any]:
    """A dead letter as plain values; bytes that are no UTF-8 stand in ``*_base64``."""
    shown: dict[str, Any] = {
        "reason": letter.reason,
        "message": letter.message,
        "source": {"topic": letter.topic, "partition": letter.partition, "offset": letter.offset},
    }
    for name, raw in (("key", key), ("value", value)):
        try:
            shown[name] = None if raw is None else raw.decode()
        except UnicodeDecodeError:
            shown[f"{name}_base64"] = base64.b64encode(raw or b"").decode()
    if letter.cut is not None:
        shown["cut"] = letter.cut
    shown["headers"] = {name: (raw or b"").decode(errors="replace") for name, raw in letter.headers}
    return shown


def dead_letters(settings: Settings) -> Iterator[StoredLetter]:
    """All dead letters there are.

    Raises:
        TopicError: the topic is missing.
        BrokerUnreachable: nobody answers.
    """
    topic = existing(settings, settings.dead_letters_topic)
    for record in read_all(settings.kafka.librdkafka(), topic.name, topic.partitions):
        found = StoredLetter.read(record)
        if found is not None:
            yield found


def dead_letter_at(settings: Settings, partition: int, offset: int) -> StoredLetter:
    """One dead letter; raises TopicError when there is none at that place."""
    topic = existing(settings, settings.dead_letters_topic)
    with reader(settings.kafka.librdkafka()) as consumer:
        if 0 <= partition < topic.partitions:
            start, end = bounds(consumer, topic.name, topic.partitions)[partition]
            if start <= offset < end:
                for record in read(consumer, topic.name, {partition: Bounds(offset, offset + 1)}):
                    if found := StoredLetter.read(record):
                        return found
    raise TopicError(
        f"There is no dead letter at {topic.name}[{partition}]@{offset}. `foreclick dlq list` shows where they are."
    )


def replay_dead_letters(
    settings: Settings,
    reason: str | None = None,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, int]:
    """Send dead letters into the topic again that they came from, with their original key and bytes, each once ever.

    Records and the memory of what was sent are one transaction, so a run that is killed or repeated sends nothing
    twice. They carry the header ``clicks.replayed``, for which the limits of lateness do not hold. Letters that do not
    hold their record whole are not sent.

    Args:
        settings: names of the topics.
        reason: only those with this reason.
        limit: at most so many.
        progress: told how many were sent so far.

    Returns:
        Count by reason of what this call sent.
    """
    letters = existing(settings, settings.dead_letters_topic)
    sources = _sources(settings)
    positions = ToolPositions(settings, "dlq-replay")
    topic_id = base64.urlsafe_b64encode(letters.topic_id).decode()
    memory = {
        number: Memory.of(positions.get(f"{topic_id}/{number}")) for number in range(letters.partitions)
    }
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
                for stored in group:
                    # What stood in a topic that is none of ours any more was a click: there was nothing else.
                    source = sources.get(stored.letter.topic) or sources[settings.clicks_topic]
                    produce(producer, source.name, **_again(stored, letters, source))
                    memory[stored.partition].sent(stored.offset, reason)
                    moved[f"{topic_id}/{stored.partition}"] = memory[stored.partition].value()
            for stored in group:
                counts[stored.letter.reason] = counts.get(stored.letter.reason, 0) + 1
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


def _due(
    records: Iterable[CommittedRecord], memory: Mapping[int, Memory], reason: str | None
) -> Iterator[StoredLetter]:
    for record in records:
        stored = StoredLetter.read(record)
        if stored is None or (reason is not None and stored.letter.reason != reason):
            continue
        if stored.letter.cut is not None:
            continue  # not the record that was rejected, and what is left of it is too large still
        if not memory[stored.partition].holds(stored.offset, stored.letter.reason):
            yield stored


def _sources(settings: Settings) -> dict[str, TopicInfo]:
    """The topics whose records are rejected: clicks, and labels where there are any."""
    clicks = existing(settings, settings.clicks_topic)
    labels = describe_topics(settings.kafka.librdkafka(), [settings.labels_topic])
    return {clicks.name: clicks, **labels}


def _again(stored: StoredLetter, letters: TopicInfo, source: TopicInfo) -> dict[str, Any]:
    letter = stored.letter
    origin = f"{letters.name}/{stored.partition}/{stored.offset}".encode()
    # The partition where it stood is where its user's row is, whatever partitioner the producer had.
    known = letter.topic == source.name and 0 <= letter.partition < source.partitions
    return {
        "partition": letter.partition if known else ANY_PARTITION,
        "key": stored.key,
        "value": stored.value,
        "headers": [*letter.headers, (REPLAYED_HEADER, origin)],
    }
