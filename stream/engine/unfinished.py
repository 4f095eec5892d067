"""Transactions whose end a broker has forgotten: what was decided is found out and done.

A coordinator that restarts between the decision to commit and the markers may find no leader for some partitions yet,
takes their topics for deleted and calls the transaction complete (seen on single brokers that were killed together
with the workers): one partition has its marker, another never gets one. Rows without their outputs would be a loss,
outputs without their rows a repeat. Right after the fence no transaction of this id can be open by right, so one that
is still open is a forgotten one, and only the newest can be.

Whether it was decided to commit shows in the partitions that did get their marker: the rows' position against the
source offsets of the outputs. If so, a commit marker for the others makes them visible as well; else, or if nobody got
a marker, the cleanse that follows aborts them all, and the events are processed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition

from stream.stage import SOURCE_KEY, SourceMark

logger = structlog.get_logger("foreclick.unfinished")

CE_ID = "ce_id"
DEAD_LETTER_PARTITION, DEAD_LETTER_OFFSET = "__streams.errors.partition", "__streams.errors.offset"
TAIL_RECORDS = 512  # markers and fences of many takeovers may stand behind the newest data
POLL_MS = 500


class Tail(NamedTuple):
    """The newest records of a partition that this id writes.

    Attributes:
        written: records before the last stable offset, newest last: committed and aborted ones.
        seen: those of them that a committed reader sees.
        open: records from there on, whatever becomes of them.
    """

    written: Sequence[Any]
    seen: Sequence[Any]
    open: Sequence[Any]


def source_offset(headers: Iterable[tuple[str, bytes]], number: int) -> int | None:
    """The source offset that an output speaks of, from its CloudEvents id or its dead letter's headers.

    Args:
        number: of the source partition; outputs of another one give None.
    """
    named = dict(headers)
    if CE_ID in named:
        parts = named[CE_ID].split(b"/", 3)
        place = parts[1:3]
    else:
        place = [named.get(DEAD_LETTER_PARTITION, b""), named.get(DEAD_LETTER_OFFSET, b"")]
    if len(place) != 2 or not (place[0].isdigit() and place[1].isdigit()):
        return None
    return int(place[1]) if int(place[0]) == number else None


def decided_to_commit(changelog: Tail, outputs: Sequence[Tail], number: int) -> bool:
    """Whether the newest transaction of this id, open in some of its partitions, was committed in the others.

    Args:
        number: of the source partition.
    """
    if changelog.open:
        # Rows without a marker: were their outputs committed? Then one that is seen lies beyond the position before.
        position = _position(changelog.seen)
        ahead = _position(changelog.open)
        return ahead is not None and any(
            (position or 0) <= offset < ahead for tail in outputs for offset in _offsets(tail.seen, number)
        )
    # Outputs without a marker: they were committed if the rows that went with them were. Every transaction writes the
    # position, so the newest one that was written tells; outputs beyond it never had rows.
    marks = [row for row in changelog.written if row.key == SOURCE_KEY]
    position = _position(changelog.seen)
    if not marks or position is None or marks[-1].offset not in {row.offset for row in changelog.seen}:
        return False
    offsets = [offset for tail in outputs for offset in _offsets(tail.open, number)]
    return bool(offsets) and max(offsets) < position


def _position(rows: Sequence[Any]) -> int | None:
    marks = [row.value for row in rows if row.key == SOURCE_KEY and row.value]
    return SourceMark.decode(marks[-1]).next_offset if marks else None


def _offsets(records: Sequence[Any], number: int) -> list[int]:
    found = (source_offset(record.headers, number) for record in records)
    return [offset for offset in found if offset is not None]


async def tail_of(
    consumer_of: Callable[[str], AIOKafkaConsumer], partition: TopicPartition, stable: int, high: int
) -> Tail:
    """Read the newest records: what a committed reader sees before ``stable``, everything from it to ``high``.

    Args:
        consumer_of: makes a consumer, not started, without a group, for an isolation level.
    """
    start = max(0, stable - TAIL_RECORDS)
    written = await _read(consumer_of("read_uncommitted"), partition, start, high)
    seen = await _read(consumer_of("read_committed"), partition, start, stable)
    return Tail(
        [record for record in written if record.offset < stable],
        seen,
        [record for record in written if record.offset >= stable],
    )


async def _read(consumer: AIOKafkaConsumer, partition: TopicPartition, start: int, end: int) -> list[Any]:
    await consumer.start()
    try:
        consumer.assign([partition])
        beginning = (await consumer.beginning_offsets([partition]))[partition]
        consumer.seek(partition, max(start, beginning))
        found: list[Any] = []
        while await consumer.position(partition) < end:
            for records in (await consumer.getmany(partition, timeout_ms=POLL_MS)).values():
                found += [record for record in records if record.offset < end]
        return found
    finally:
        await consumer.stop()
