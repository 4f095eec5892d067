"""What one partition asks of the broker, over aiokafka: fence, transactions, changelog and offsets.

aiokafka's OffsetFetch knows no ``require_stable``, so ownership hangs on the transactional id alone: one per source
partition, fenced before anything is read. The transactions themselves are those of transaction.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from stream.broker.topics import TopicInfo
from stream.engine.batches import Batch, batches_of
from stream.engine.refusals import TakenOver
from stream.engine.transaction import Transactions
from stream.engine.unfinished import end_before, end_unfinished
from stream.engine.wire import Place
from stream.errors import BrokenInvariant, TopicError
from stream.stage import FENCE_KEY, Message, Row
from stream.wording import FRESH_START

FENCE_TIMEOUT_S = 60.0  # the broker waits out a predecessor's commit in flight
SETTLE_TIMEOUT_S = 40.0  # longer than the broker needs to abort a transaction of 30 s
STALL_TIMEOUT_S = 30.0
RESTORE_FETCH_BYTES = 4 << 20
CLOSE_TIMEOUT_S = 3.0

logger = structlog.get_logger("foreclick.log")


@dataclass(frozen=True)
class TopicSet:
    """The topics of one stage.

    Args:
        source_id, changelog_id: 16 bytes each, so that a recreated topic is noticed.
        outputs: partition count by topic that the stage writes to, each at the partition of its source's number; an
            output ``TOPIC/3`` is partition 3 of that topic, for what is keyed anew (``/`` is in no name of a topic).
        tombstone_retention_ms: ``delete.retention.ms`` of the changelog.
        fresh_start: how to forget rows and position of this stage and no other's, a sentence.
    """

    source: str
    source_id: bytes
    changelog: str
    changelog_id: bytes
    outputs: Mapping[str, int]
    tombstone_retention_ms: int
    fresh_start: str = FRESH_START

    @classmethod
    def over(
        cls, source: TopicInfo, changelog: TopicInfo, outputs: Mapping[str, int], fresh_start: str
    ) -> TopicSet:
        """The topics as the broker has them.

        Args:
            fresh_start: as of the class; the way out when the partitions differ, too.

        Raises:
            TopicError: it has not.
        """
        if source.partitions != changelog.partitions:
            raise TopicError(
                f"Topic {source.name} has {source.partitions} partitions, its changelog {changelog.name} has "
                f"{changelog.partitions}: rows would be looked for where they are not. {fresh_start}"
            )
        return cls(
            source=source.name,
            source_id=source.topic_id,
            changelog=changelog.name,
            changelog_id=changelog.topic_id,
            outputs=outputs,
            tombstone_retention_ms=changelog.delete_retention_ms,
            fresh_start=fresh_start,
        )


def place_of(output: str, partition: int) -> Place:
    """Topic and partition of an output; ``partition`` where it names none."""
    topic, _, number = output.partition("/")
    return topic, int(number) if number else partition


class Offsets:
    """Ends of partitions: two consumers without a group, one of each isolation level, shared by all partitions."""

    def __init__(self, client: dict[str, Any]):
        self._uncommitted = AIOKafkaConsumer(**client, group_id=None, enable_auto_commit=False)
        self._committed = AIOKafkaConsumer(
            **client, group_id=None, enable_auto_commit=False, isolation_level="read_committed"
        )

    async def start(self) -> None:
        await self._uncommitted.start()
        await self._committed.start()

    async def high_watermark(self, partition: TopicPartition) -> int:
        return (await self._uncommitted.end_offsets([partition]))[partition]

    async def last_stable(self, partition: TopicPartition) -> int:
        return (await self._committed.end_offsets([partition]))[partition]

    async def beginning(self, partition: TopicPartition) -> int:
        return (await self._uncommitted.beginning_offsets([partition]))[partition]

    async def at(self, place: Place, time_ms: int) -> int | None:
        """Offset of the first record of that time or later; None when there is none."""
        partition = TopicPartition(*place)
        found = (await self._uncommitted.offsets_for_times({partition: time_ms}))[partition]
        return None if found is None else found.offset

    async def stop(self) -> None:
        await self._uncommitted.stop()
        await self._committed.stop()


class KafkaLog:
    """The log of one source partition; implements ``PartitionLog``.

    Args:
        client: arguments of every aiokafka client.
        consumer: the group consumer, for the committed offset.
        group: whose offsets the transactions carry.
        same_topics: raises when source or changelog is not the topic any more that it was.
    """

    def __init__(
        self,
        number: int,
        topics: TopicSet,
        *,
        client: dict[str, Any],
        consumer: AIOKafkaConsumer,
        offsets: Offsets,
        group: str,
        app_id: str,
        transaction_timeout_ms: int,
        same_topics: Callable[[], Coroutine[Any, Any, None]],
    ):
        self.same_topics = same_topics
        self.source_id = topics.source_id
        self.changelog_id = topics.changelog_id
        self.tombstone_retention_ms = topics.tombstone_retention_ms
        self.transactional_id = f"{app_id}-{topics.source}-{number}"
        self._number = number
        self._client = client
        self._consumer = consumer
        self._offsets = offsets
        self._group = group
        self._transaction_timeout_ms = transaction_timeout_ms
        self._source = TopicPartition(topics.source, number)
        self._changelog = TopicPartition(topics.changelog, number)
        self._places = {output: place_of(output, number % count) for output, count in topics.outputs.items()}
        self._places[topics.changelog] = topics.changelog, number
        self._transactions: Transactions | None = None
        self._written_ms = self._cleansed_ms = 0
        self.aborted_from: int | None = None

    # ------------------------------------------------------------------ taking over

    async def fence(self) -> None:
        self._transactions = Transactions(
            self._client,
            self.transactional_id,
            timeout_ms=self._transaction_timeout_ms,
            topics={topic for topic, _ in self._places.values()},
        )
        self._transactions.before_again = self._end_before
        try:
            await self._transactions.start(FENCE_TIMEOUT_S)
        except TimeoutError as error:
            raise BrokenInvariant(
                f"The broker did not hand {self.transactional_id} over within {FENCE_TIMEOUT_S:.0f} s. Look at its "
                "transaction coordinator, then start again."
            ) from error

        with self._taken_over():
            self.aborted_from = await self._end_unfinished()

    async def _end_unfinished(self, committed_after_ms: int | None = None) -> int | None:
        places = list(dict.fromkeys(self._places.values()))
        return await end_unfinished(
            self._fenced(), places, self._changelog, self._group, self._offsets.at, committed_after_ms
        )

    async def _end_before(self, batches: Mapping[Place, bytes]) -> None:
        await end_before(self._fenced(), self._cleansed_ms, batches)

    async def _end_after_trouble(self) -> None:
        """What the last transaction left open where a broker that was away has forgotten it.

        The next one would publish it, but only where it writes to the same partition; and if it failed, abort it.
        """
        transactions = self._fenced()
        if transactions.disturbed:
            await transactions.fence_again()
            await self._end_unfinished(self._cleansed_ms)

    async def cleanse(self) -> None:
        self._cleansed_ms = now_ms = self._moment_ms()
        with self._taken_over():
            transactions = self._fenced()
            await transactions.write(
                {place: batches_of([(FENCE_KEY, b"", [])], now_ms) for place in self._places.values()}
            )
            await transactions.end(commit=False)

    async def settled(self) -> None:
        deadline = asyncio.get_running_loop().time() + SETTLE_TIMEOUT_S
        while True:
            high = await self._offsets.high_watermark(self._changelog)
            stable = await self._offsets.last_stable(self._changelog)
            if stable >= high:
                return
            if asyncio.get_running_loop().time() > deadline:
                raise BrokenInvariant(
                    f"{self._changelog.topic}[{self._number}] has a transaction that nobody ended: last stable offset "
                    f"{stable}, high watermark {high}. Look for a hanging transaction on the broker "
                    "(kafka-transactions.sh find-hanging)."
                )
            await asyncio.sleep(0.02)

    async def committed(self) -> int | None:
        return await self._consumer.committed(self._source)

    async def source_bounds(self) -> tuple[int, int]:
        return await self._offsets.beginning(self._source), await self._offsets.high_watermark(self._source)

    # ------------------------------------------------------------------ the changelog

    async def changelog_bounds(self) -> tuple[int, int]:
        return await self._offsets.beginning(self._changelog), await self._offsets.last_stable(
            self._changelog
        )

    def _changelog_consumer(self) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            **self._client,
            group_id=None,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=50,
            max_partition_fetch_bytes=RESTORE_FETCH_BYTES,
            retry_backoff_ms=50,
        )

    async def changelog(self, start: int, end: int) -> AsyncIterator[tuple[list[Row], int]]:
        if start >= end:
            return
        consumer = self._changelog_consumer()
        loop = asyncio.get_running_loop()
        try:
            await consumer.start()
            consumer.assign([self._changelog])
            consumer.seek(self._changelog, start)
            at, progressed = start, loop.time()
            while at < end:
                fetched = await consumer.getmany(self._changelog, timeout_ms=200, max_records=8192)
                records = fetched.get(self._changelog, [])
                position = await consumer.position(self._changelog)
                if records and records[0].offset < at:
                    raise BrokenInvariant(
                        f"The changelog answered offset {records[0].offset} at position {at}."
                    )
                if position > at:
                    yield [(record.key, record.value) for record in records], position
                    at, progressed = position, loop.time()
                elif loop.time() - progressed > STALL_TIMEOUT_S:
                    raise BrokenInvariant(
                        f"No progress for {STALL_TIMEOUT_S:.0f} s while restoring {self._changelog.topic}"
                        f"[{self._number}] at {at} of {end}. Look at the broker, then start again."
                    )
        finally:
            with contextlib.suppress(asyncio.TimeoutError, KafkaError):
                await asyncio.wait_for(consumer.stop(), CLOSE_TIMEOUT_S)

    # ------------------------------------------------------------------ transactions

    async def commit(
        self, messages: Mapping[str, Iterable[Message]], rows: list[Row], next_offset: int
    ) -> int:
        now_ms = self._moment_ms()
        batches: dict[Place, list[Batch]] = {}
        for topic, items in messages.items():
            if made := batches_of(items, now_ms):
                batches[self._places[topic]] = made
        changelog = self._changelog.topic, self._number
        batches[changelog] = batches_of(((key, value, []) for key, value in rows), now_ms)
        with self._taken_over():
            await self._end_after_trouble()
            transactions = self._fenced()
            position = (self._group, self._source, next_offset)
            ends = await transactions.write(batches, position, self.on_the_way)
            await self.before_commit()
            await transactions.end(commit=True)
            await self._end_after_trouble()
        return ends[changelog]

    def _moment_ms(self) -> int:
        """The time of the next transaction's records: the clock's, and later than that of the one before.

        By it the next owner knows which record batches were written together (unfinished.py).
        """
        self._written_ms = max(int(time.time() * 1000), self._written_ms + 1)
        return self._written_ms

    @contextlib.contextmanager
    def _taken_over(self) -> Iterator[None]:
        """Say what a refused transactional id means; it may be refused as early as in the cleanse."""
        try:
            yield
        except TakenOver as error:
            raise BrokenInvariant(
                f"Another worker has taken over {self._source.topic}[{self._number}]; this one was paused or cut off "
                "for longer than session_timeout_ms. Its transaction is aborted, nothing is lost."
            ) from error

    async def on_the_way(self) -> None:
        """Everything was sent and nothing is acknowledged: where tests stop or kill the process."""

    async def before_commit(self) -> None:
        """Everything is acknowledged and nothing is committed: where tests stop or kill the process."""

    def _fenced(self) -> Transactions:
        if self._transactions is None:
            raise BrokenInvariant(f"Partition {self._number} writes before its fence.")
        return self._transactions

    async def close(self) -> None:
        transactions, self._transactions = self._transactions, None
        if transactions is not None:
            # The transaction has ended: what closing could still lose is only the goodbye to the broker.
            with contextlib.suppress(asyncio.TimeoutError, KafkaError):
                await asyncio.wait_for(transactions.stop(), CLOSE_TIMEOUT_S)
