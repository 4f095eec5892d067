"""What is asked of a partition's leader about the transactions in it, as bytes (the encoding: wire.py).

Who has a transaction open (DescribeProducers, KIP-664), the record batches as they are stored, and markers that end a
transaction which its coordinator has forgotten (WriteTxnMarkers, as ``kafka-transactions.sh abort`` sends it).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from stream.engine.wire import NO_TAGS, Place, Producer, Reader, Request, array, by_topic, text

_I8, _I16, _I32, _I64 = (struct.Struct(f">{kind}") for kind in "bhiq")
FETCH_BYTES = 1 << 20


class Active(NamedTuple):
    """One producer of a partition, as its leader knows it.

    Attributes:
        producer: with the epoch of the newest batch or marker.
        last_sequence: of its newest record, -1 after a marker with a new epoch; ``time_ms`` is when.
        coordinator_epoch: of the newest marker, -1 before the first.
        open_from: offset of the first record of its open transaction, -1 when none is open.
    """

    producer: Producer
    last_sequence: int
    time_ms: int
    coordinator_epoch: int
    open_from: int


class Producers(NamedTuple):
    """Producers that have written to a partition within a day, or have a transaction open there."""

    error: int
    message: str
    active: list[Active]


class Fetched(NamedTuple):
    """Stored record batches; the last may be cut. ``high`` is the high watermark."""

    error: int
    high: int
    data: bytes


class Marked(NamedTuple):
    """Whether a marker was written."""

    error: int


class Marker(NamedTuple):
    """The end of a producer's transaction in one partition."""

    producer: Producer
    coordinator_epoch: int
    commit: bool


def describe_producers(places: Iterable[Place]) -> Request[dict[Place, Producers]]:
    """DescribeProducers: who has written to these partitions, and what is open there. Needs the right to read them."""

    def read(reader: Reader) -> dict[Place, Producers]:
        reader.i32()  # throttle time
        found = {}
        for topic, number in _each(reader):
            error, message, active = reader.i16(), reader.text(), []
            for _ in reader.each():
                producer = Producer(reader.i64(), reader.i32())
                active.append(Active(producer, reader.i32(), reader.i64(), reader.i32(), reader.i64()))
                reader.tags()
            found[topic, number] = Producers(error, message, active)
        return found

    body = by_topic(dict.fromkeys(places), lambda number, _: _I32.pack(number)) + NO_TAGS
    return Request("DescribeProducers", 61, 0, body, read)


def fetch(offsets: Mapping[Place, int]) -> Request[dict[Place, Fetched]]:
    """Fetch: what is stored from these offsets on, up to the high watermark, whatever became of it."""

    def read(reader: Reader) -> dict[Place, Fetched]:
        reader.i32(), reader.i16(), reader.i32()  # throttle time, error of a session, its id: we have none
        found = {}
        for topic, number in _each(reader):
            error, high = reader.i16(), reader.i64()
            reader.i64(), reader.i64()  # last stable offset, start of the log
            for _ in reader.each():
                reader.i64(), reader.i64(), reader.tags()  # aborted transactions
            reader.i32()  # the replica to prefer
            found[topic, number] = Fetched(error, high, reader.data())
        return found

    def partition(number: int, offset: int) -> bytes:
        unknown = _I32.pack(-1)  # leader epochs, start of a follower's log
        place = _I32.pack(number) + unknown + _I64.pack(offset) + unknown + _I64.pack(-1)
        return place + _I32.pack(FETCH_BYTES) + NO_TAGS

    # No follower, no waiting, at least a byte, at most so many, uncommitted as well, no session.
    body = _I32.pack(-1) + _I32.pack(0) + _I32.pack(1) + _I32.pack(FETCH_BYTES * len(offsets)) + _I8.pack(0)
    body += _I32.pack(0) + _I32.pack(-1) + by_topic(offsets, partition) + array(()) + text("") + NO_TAGS
    return Request("Fetch", 1, 12, body, read)


def write_markers(markers: Mapping[Place, Marker]) -> Request[dict[Place, Marked]]:
    """WriteTxnMarkers: end transactions without their coordinator. Needs the right to alter the cluster."""

    def read(reader: Reader) -> dict[Place, Marked]:
        found = {}
        for _ in reader.each():
            reader.i64()
            for topic, number in _each(reader):
                found[topic, number] = Marked(reader.i16())
            reader.tags()
        return found

    def one(place: Place, marker: Marker) -> bytes:
        what = _I64.pack(marker.producer.id) + _I16.pack(marker.producer.epoch) + _I8.pack(marker.commit)
        where = by_topic({place: None}, lambda number, _: _I32.pack(number))
        return what + where + _I32.pack(marker.coordinator_epoch) + NO_TAGS

    body = array(one(place, marker) for place, marker in markers.items()) + NO_TAGS
    return Request("WriteTxnMarkers", 27, 1, body, read)


def _each(reader: Reader) -> Iterator[Place]:
    """Topic and partition of each answer; what is said of it is read in between."""
    for _ in reader.each():
        topic = reader.text()
        for _ in reader.each():
            yield topic, reader.i32()
            reader.tags()
        reader.tags()
