"""The requests of a transaction as bytes: what aiokafka's protocol classes do not speak.

All in the flexible encoding (KIP-482): lengths as unsigned varints of n + 1, a byte of tagged fields after each
structure. Versions and fields are those of Kafka's message definitions (KIP-98 transactions, KIP-447 offsets in them,
KIP-890 without a request to add partitions). A ``Request`` is sent through aiokafka's connections, which know hosts,
TLS and SASL.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Generic, NamedTuple, TypeVar

from stream.errors import Unsupported

A = TypeVar("A")

Place = tuple[str, int]  # topic and partition
Places = Mapping[Place, Any]  # what is said of each

_I16, _I32, _I64 = struct.Struct(">h"), struct.Struct(">i"), struct.Struct(">q")
_PRODUCER = struct.Struct(">qh")  # id, epoch
_HEADER = struct.Struct(">hhi")  # API key, version, correlation id
_TOPIC_ID_BYTES = 16
NO_TAGS = b"\0"
_NO_TEXT = b"\0"


class Producer(NamedTuple):
    """Who writes, as the coordinator knows it; a higher epoch fences a lower one."""

    id: int
    epoch: int


class Written(NamedTuple):
    """What the leader says of one record batch; ``offset`` is that of its first record, or -1."""

    error: int
    offset: int
    message: str


class Ended(NamedTuple):
    """The coordinator's answer to the end of a transaction; from version 5 with the producer of the next one."""

    error: int
    producer: Producer | None


class TopicSeen(NamedTuple):
    """A topic as a broker sees it: its id, 16 bytes that are zeros for one that is not there, and its partitions."""

    id: bytes
    partitions: int


class Reader:
    """Reads an answer from its start to its end."""

    def __init__(self, data: bytes):
        self._data, self._at = data, 0

    def _take(self, layout: struct.Struct) -> Any:
        value = layout.unpack_from(self._data, self._at)
        self._at += layout.size
        return value[0] if len(value) == 1 else value

    def i16(self) -> int:
        return int(self._take(_I16))

    def i32(self) -> int:
        return int(self._take(_I32))

    def i64(self) -> int:
        return int(self._take(_I64))

    def producer(self) -> Producer:
        return Producer(*self._take(_PRODUCER))

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def raw(self, length: int) -> bytes:
        """So many bytes."""
        self._at += length
        return self._data[self._at - length : self._at]

    def data(self) -> bytes:
        """Compact bytes; null reads as empty."""
        return self.raw(max(0, self.varint() - 1))

    def text(self) -> str:
        """A compact string; null reads as empty."""
        return self.data().decode()

    def each(self) -> range:
        """One turn for each element of a compact array."""
        return range(self.varint() - 1)

    def tags(self) -> dict[int, bytes]:
        found = {}
        for _ in range(self.varint()):
            tag, size = self.varint(), self.varint()
            found[tag] = self._data[self._at : self._at + size]
            self._at += size
        return found


@dataclass(frozen=True, slots=True)
class _Header:
    data: bytes

    def encode(self) -> bytes:
        return self.data


@dataclass(frozen=True, slots=True)
class _Answered:
    correlation_id: int


@dataclass(frozen=True)
class Request(Generic[A]):
    """One request, and how its answer is read; the methods are what aiokafka's connection asks of one.

    Raises:
        Unsupported: when it is sent to a broker that does not know this version.
    """

    name: str
    api_key: int
    version: int
    body: bytes = field(repr=False)
    read: Callable[[Reader], A] = field(repr=False)
    tagged_header: bool = True

    def prepare(self, versions: Mapping[int, tuple[int, int]]) -> Request[A]:
        low, high = versions.get(self.api_key, (0, -1))
        if not low <= self.version <= high:
            raise Unsupported(
                f"The broker knows {self.name} in versions {low} to {high}, {self.version} is needed: exactly once "
                "needs Kafka 2.8 or newer."
            )
        return self

    def build_request_header(self, correlation_id: int, client_id: str) -> _Header:
        name = client_id.encode()
        fixed = _HEADER.pack(self.api_key, self.version, correlation_id)
        return _Header(fixed + _I16.pack(len(name)) + name + NO_TAGS)

    def encode(self) -> bytes:
        return self.body

    def parse_response_header(self, buffer: BytesIO) -> _Answered:
        correlation_id = _I32.unpack(buffer.read(4))[0]
        if self.tagged_header and buffer.read(1) != NO_TAGS:
            raise ValueError(f"The answer to {self.name} has a header that is not known.")
        return _Answered(correlation_id)

    @property
    def RESPONSE_TYPE(self) -> Request[A]:  # noqa: N802 - as aiokafka calls it
        return self

    def decode(self, buffer: BytesIO) -> A:
        return self.read(Reader(buffer.read()))


# ---------------------------------------------------------------------- pieces


def varint(value: int) -> bytes:
    """An unsigned varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def text(value: str) -> bytes:
    """A compact string."""
    raw = value.encode()
    return varint(len(raw) + 1) + raw


def array(items: Iterable[bytes]) -> bytes:
    """A compact array of encoded elements."""
    elements = list(items)
    return varint(len(elements) + 1) + b"".join(elements)


def by_topic(said: Places, encode: Callable[[int, Any], bytes]) -> bytes:
    """An array of topics, each with an array of its partitions."""
    topics: dict[str, list[bytes]] = {}
    for (topic, number), value in said.items():
        topics.setdefault(topic, []).append(encode(number, value))
    return array(text(topic) + array(partitions) + NO_TAGS for topic, partitions in topics.items())


def _errors_by_topic(reader: Reader) -> dict[Place, int]:
    found = {}
    for _ in reader.each():
        topic = reader.text()
        for _ in reader.each():
            number = reader.i32()
            found[topic, number] = reader.i16()
            reader.tags()
        reader.tags()
    return found


def _error(reader: Reader) -> int:
    reader.i32()  # throttle time
    return reader.i16()


def _errors(reader: Reader) -> dict[Place, int]:
    reader.i32()
    return _errors_by_topic(reader)


# ---------------------------------------------------------------------- requests


def features() -> Request[dict[str, int]]:
    """ApiVersions: what the cluster has finalized, by name, as the highest level."""

    def read(reader: Reader) -> dict[str, int]:
        reader.i16()
        for _ in reader.each():
            reader.i16(), reader.i16(), reader.i16(), reader.tags()
        reader.i32()
        finalized = reader.tags().get(2)
        found: dict[str, int] = {}
        if finalized is not None:
            inner = Reader(finalized)
            for _ in inner.each():
                name = inner.text()
                found[name] = inner.i16()
                inner.i16(), inner.tags()
        return found

    body = text("foreclick") + text("1") + NO_TAGS
    return Request("ApiVersions", 18, 3, body, read, tagged_header=False)


def topics_seen(names: Iterable[str]) -> Request[dict[str, TopicSeen]]:
    """Metadata: the ids of topics (KIP-516) and how many partitions they have, by name."""

    def read(reader: Reader) -> dict[str, TopicSeen]:
        reader.i32()  # throttle time
        for _ in reader.each():
            reader.i32(), reader.text(), reader.i32(), reader.text(), reader.tags()  # a broker
        reader.text(), reader.i32()  # cluster, controller
        found = {}
        for _ in reader.each():
            reader.i16()
            name, topic_id = reader.text(), reader.raw(_TOPIC_ID_BYTES)
            reader.raw(1)  # whether it is internal
            partitions = reader.each()
            for _ in partitions:
                reader.i16(), reader.i32(), reader.i32(), reader.i32()  # error, number, leader, its epoch
                for _ in range(3):  # replicas, those in sync, those offline
                    for _ in reader.each():
                        reader.i32()
                reader.tags()
            reader.i32(), reader.tags()
            found[name] = TopicSeen(topic_id, len(partitions))
        return found

    topics = array(bytes(_TOPIC_ID_BYTES) + text(name) + NO_TAGS for name in names)
    # Nothing is created for being asked, and nobody's rights are told.
    return Request("Metadata", 3, 10, topics + bytes(3) + NO_TAGS, read)


NOBODY = Producer(-1, -1)


def init_producer(
    transactional_id: str, timeout_ms: int, still: Producer = NOBODY
) -> Request[tuple[int, Producer]]:
    """InitProducerId: fences whoever wrote under this id, and ends what that left open.

    Args:
        still: refused unless this is the one who writes (KIP-360).
    """

    def read(reader: Reader) -> tuple[int, Producer]:
        return _error(reader), reader.producer()

    body = text(transactional_id) + _I32.pack(timeout_ms) + _PRODUCER.pack(*still) + NO_TAGS
    return Request("InitProducerId", 22, 4, body, read)


def add_partitions(
    transactional_id: str, producer: Producer, partitions: Places
) -> Request[dict[Place, int]]:
    """AddPartitionsToTxn; the broker does it by itself from transaction version 2 on. Answers an error each."""
    body = text(transactional_id) + _PRODUCER.pack(*producer)
    body += by_topic(partitions, lambda number, _: _I32.pack(number))
    # Its partitions are bare numbers, without tags of their own.
    return Request("AddPartitionsToTxn", 24, 3, body + NO_TAGS, _errors)


def add_offsets(transactional_id: str, producer: Producer, group: str) -> Request[int]:
    """AddOffsetsToTxn; the broker does it by itself from transaction version 2 on. Answers an error."""
    body = text(transactional_id) + _PRODUCER.pack(*producer) + text(group) + NO_TAGS
    return Request("AddOffsetsToTxn", 25, 3, body, _error)


def produce(
    transactional_id: str, version: int, timeout_ms: int, batches: Places
) -> Request[dict[Place, Written]]:
    """Produce, with acks=all and one record batch a partition."""

    def read(reader: Reader) -> dict[Place, Written]:
        found = {}
        for _ in reader.each():
            topic = reader.text()
            for _ in reader.each():
                number, error, offset = reader.i32(), reader.i16(), reader.i64()
                reader.i64(), reader.i64()  # append time, start of the log
                for _ in reader.each():
                    reader.i32(), reader.text(), reader.tags()
                found[topic, number] = Written(error, offset, reader.text())
                reader.tags()
            reader.tags()
        return found

    def batch(number: int, records: bytes) -> bytes:
        return b"".join((_I32.pack(number), varint(len(records) + 1), records, NO_TAGS))

    body = text(transactional_id) + _I16.pack(-1) + _I32.pack(timeout_ms) + by_topic(batches, batch)
    return Request("Produce", 0, version, body + NO_TAGS, read)


def commit_offsets(
    transactional_id: str, version: int, producer: Producer, group: str, offsets: Places
) -> Request[dict[Place, int]]:
    """TxnOffsetCommit: source positions that hold if the transaction does. Answers an error each."""

    def position(number: int, offset: int) -> bytes:
        return _I32.pack(number) + _I64.pack(offset) + _I32.pack(-1) + text("") + NO_TAGS

    body = text(transactional_id) + text(group) + _PRODUCER.pack(*producer)
    body += _I32.pack(-1) + text("") + _NO_TEXT  # no generation, no member: the transactional id is the fence
    body += by_topic(offsets, position)
    return Request("TxnOffsetCommit", 28, version, body + NO_TAGS, _errors)


def end(transactional_id: str, version: int, producer: Producer, *, commit: bool) -> Request[Ended]:
    """EndTxn: commit or abort. From version 5 on each transaction leaves a higher epoch behind."""

    def read(reader: Reader) -> Ended:
        error = _error(reader)
        return Ended(error, reader.producer() if version >= 5 else None)

    body = text(transactional_id) + _PRODUCER.pack(*producer) + bytes([commit]) + NO_TAGS
    return Request("EndTxn", 26, version, body, read)
