"""Record batches (magic 2): made of messages, and read back as far as their heads go."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from aiokafka.record.default_records import DefaultRecordBatchBuilder

from stream.engine.wire import Producer
from stream.stage import Message

MAX_BATCH_BYTES = 1_000_000  # of several records; under the broker's default message.max.bytes
# Offset, length, leader epoch, magic, CRC, attributes, last delta, first and newest time, producer, sequence, records.
_BATCH = struct.Struct(">qiibIhiqqqhii")
_LENGTH_FROM = 12  # a batch's length counts from here
_CONTROL = 0x20  # of the attributes: a marker, not records
_MARKER = struct.Struct(">hh")  # key of a marker: version, kind
_MARKER_AT = _BATCH.size + 5  # behind the record's length, attributes, two deltas and key length, a byte each
_COMMIT = 1


class Batch(NamedTuple):
    """Records of one partition that fit a record batch."""

    builder: Any
    records: int


def batches_of(items: Iterable[Message], now_ms: int) -> list[Batch]:
    """Record batches (magic 2, uncompressed), in order; a record larger than a batch goes alone.

    Whether that is too large is the topic's to say: the dead letters' topic takes more than others.
    """
    batches: list[Batch] = []
    builder, count = _builder(), 0
    append = builder.append
    for key, value, headers in items:
        if append(count, now_ms, key, value, headers) is None:
            batches.append(Batch(builder, count))
            builder, count = _builder(), 0
            append = builder.append
            append(0, now_ms, key, value, headers)  # the first is always taken
        count += 1
    if count:
        batches.append(Batch(builder, count))
    return batches


def _builder() -> Any:
    return DefaultRecordBatchBuilder(2, 0, 1, -1, -1, -1, MAX_BATCH_BYTES)


class BatchHead(NamedTuple):
    """A stored record batch without its records.

    Attributes:
        sequence: of its first record, among those of its producer in this partition; -1 of a marker.
        time_ms: of its newest record.
        commit: of a marker whether it commits; None where records are.
    """

    end: int
    producer: Producer
    sequence: int
    time_ms: int
    commit: bool | None


def heads(data: bytes) -> Iterator[BatchHead]:
    """The heads of whole record batches (magic 2)."""
    at = 0
    while at + _BATCH.size <= len(data):
        offset, length, _, _, _, attributes, last, _, time_ms, identity, epoch, sequence, _ = (
            _BATCH.unpack_from(data, at)
        )
        if at + _LENGTH_FROM + length > len(data):
            return
        commit = None
        if attributes & _CONTROL:
            commit = _MARKER.unpack_from(data, at + _MARKER_AT)[1] == _COMMIT
        yield BatchHead(offset + last + 1, Producer(identity, epoch), sequence, time_ms, commit)
        at += _LENGTH_FROM + length
