"""A topic with missing or foreign keys, copied to one keyed by user, exactly once.

State lives where the key leads, so the pipeline needs the user as key. Records of all partitions are merged by their
timestamps: one user's events may have been spread over partitions, and out of order they would come too late.
"""

from __future__ import annotations

import base64
import heapq
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgspec

from stream.broker.topics import TopicInfo
from stream.errors import ConfigurationError
from stream.formats import FORMATS, JsonLines, Rejected, adapt_object, adapt_record
from stream.settings import Settings
from stream.tool_positions import ToolPositions, produce
from stream.topic_reader import Bounds, CommittedRecord, bounds, read, reader
from stream.topics import existing

TRANSACTION_RECORDS = 5000
# A reader a partition: what each of them may hold in advance.
READER = {"queued.max.messages.kbytes": 4096, "fetch.max.bytes": 4 << 20}


class _User(msgspec.Struct):
    user_id: str


_decode_user = msgspec.json.Decoder(_User).decode
_decode = msgspec.json.Decoder().decode


@dataclass
class Rekeyed:
    """What became of the records.

    Attributes:
        keyed: had another key or none, have their user's now.
        kept: had their user's key already.
        not_keyed: have no user that the format can find; copied as they are, for the dead letters to name them.
        tombstones: left out, because under a foreign key they would erase somebody else.
    """

    keyed: int = 0
    kept: int = 0
    not_keyed: int = 0
    tombstones: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def read(self) -> int:
        """Records read."""
        return self.keyed + self.kept + self.not_keyed + self.tombstones


def key_and_value(format_name: str) -> Callable[[bytes], tuple[bytes, bytes] | None]:
    """How a record's value tells its user: (value) -> key and value to write, or None when it does not.

    JSON keeps its bytes, as the pipeline reads all its shapes. A delimited line becomes a canonical event.

    Raises:
        ConfigurationError: the format is unknown.
    """
    if format_name not in ("auto", "canonical"):
        adapt = adapt_record(format_name)
        delimited = not isinstance(FORMATS[format_name], JsonLines)

        def by_format(value: bytes) -> tuple[bytes, bytes] | None:
            try:
                event = adapt(value)
            except Rejected:
                return None
            return _key(event.get("user_id")), msgspec.json.encode(event) if delimited else value

        return by_format

    def by_shape(value: bytes) -> tuple[bytes, bytes] | None:
        try:
            return _key(_decode_user(value).user_id), value
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            pass
        try:
            document = _decode(value)
            event = adapt_object(document) if type(document) is dict else None
        except (msgspec.DecodeError, UnicodeError, RecursionError, Rejected):
            return None
        return None if event is None else (_key(event.get("user_id")), value)

    return by_shape


def rekey(
    settings: Settings,
    source: str,
    target: str,
    format_name: str = "auto",
    progress: Callable[[int], None] = lambda _: None,
) -> Rekeyed:
    """Copy what the source holds now; a later call goes on where this one ended.

    Args:
        settings: where the broker is.
        source: topic to read.
        target: topic to write, other than the source; it must exist.
        format_name: of the values, as in ``stream.formats``.
        progress: told how many records were read so far.

    Raises:
        ConfigurationError: source and target are one topic, or the format is unknown.
        TopicError: a topic is missing, or the broker refuses.
    """
    if source == target:
        raise ConfigurationError(f"--from and --to are both {source}: a topic cannot be rekeyed into itself.")
    find = key_and_value(format_name)
    reading, writing = existing(settings, source), existing(settings, target)
    positions = ToolPositions(settings, "rekey")
    # Ids, not names: a recreated topic is another one.
    pair = "/".join(base64.urlsafe_b64encode(topic.topic_id).decode() for topic in (reading, writing))
    found = Rekeyed()
    with ExitStack() as stack:
        merged = _merged(settings, reading, lambda number: positions.get(f"{pair}/{number}") or 0, stack)
        while group := list(islice(merged, TRANSACTION_RECORDS)):
            moved: dict[str, Any] = {}
            with positions.transaction(moved) as producer:
                for record in group:
                    keyed = _keyed(record, find, found)
                    if keyed is not None:
                        produce(producer, target, partition=-1, **keyed)
                    moved[f"{pair}/{record.partition}"] = record.offset + 1
            progress(found.read)
    return found


def _merged(
    settings: Settings, topic: TopicInfo, start: Callable[[int], int], stack: ExitStack
) -> Iterator[CommittedRecord]:
    client = settings.kafka.librdkafka()
    with reader(client) as consumer:
        ends = bounds(consumer, topic.name, topic.partitions)
    streams = []
    for number, whole in ends.items():
        stretch = Bounds(max(whole.start, start(number)), whole.end)
        if stretch.start < stretch.end:
            consumer = stack.enter_context(reader({**client, **READER}))
            streams.append(read(consumer, topic.name, {number: stretch}))
    return heapq.merge(*streams, key=lambda record: record.timestamp)


def _keyed(
    record: CommittedRecord, find: Callable[[bytes], tuple[bytes, bytes] | None], found: Rekeyed
) -> dict[str, Any] | None:
    value, key = record.value, record.key
    if value is None:
        found.tombstones += 1
        return None
    kept = {"headers": record.headers, "timestamp": record.timestamp}
    named = find(value)
    if named is None or not named[0]:
        found.not_keyed += 1
        if len(found.examples) < 5:
            found.examples.append(f"{record.topic}[{record.partition}]@{record.offset}")
        return {"key": key, "value": value, **kept}
    if named[0] == key:
        found.kept += 1
    else:
        found.keyed += 1
    return {"key": named[0], "value": named[1], **kept}


def _key(user_id: Any) -> bytes:
    return user_id.encode(errors="replace") if type(user_id) is str else b""
