"""What one partition asks of the broker, over aiokafka: fence, transactions, changelog and offsets.

aiokafka's OffsetFetch knows no ``require_stable`` and its transactions no group generation (KIP-447), so ownership
hangs on the transactional id alone: one per source partition, fenced before anything is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, ProducerFenced

from stream.errors import BrokenInvariant
from stream.stage import FENCE_KEY, Message, Row

FENCE_TIMEOUT_S = 60.0  # the broker waits out a predecessor's commit in flight
SETTLE_TIMEOUT_S = 40.0  # longer than the broker needs to abort a transaction of 30 s
STALL_TIMEOUT_S = 30.0
MAX_BATCH_BYTES = 1_000_000  # under the broker's default message.max.bytes
RESTORE_FETCH_BYTES = 4 << 20
CLOSE_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class TopicSet:
    """The topics of one stage.

    Args:
        source_id, changelog_id: 16 bytes each, so that a recreated topic is noticed.
        outputs: partition count by topic that the stage writes to.
        tombstone_retention_ms: ``delete.retention.ms`` of the changelog.
    """

    source: str
    source_id: bytes
    changelog: str
    changelog_id: bytes
    outputs: Mapping[str, int]
    tombstone_retention_ms: int


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

    async def stop(self) -> None:
        await self._uncommitted.stop()
        await self._committed.stop()


class KafkaLog:
    """The log of one source partition; implements ``PartitionLog``.

    Args:
        client: arguments of every aiokafka client.
        consumer: the group consumer, for the committed offset.
        group: whose offsets the transactions carry.
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
    ):
        self.source_id = topics.source_id
        self.changelog_id = topics.changelog_id
        self.tombstone_retention_ms = topics.tombstone_retention_ms
        self.transactional_id = f"{app_id}-{topics.source}-{number}"
        self._number = number
        self._topics = topics
        self._client = client
        self._consumer = consumer
        self._offsets = offsets
        self._group = group
        self._transaction_timeout_ms = transaction_timeout_ms
        self._source = TopicPartition(topics.source, number)
        self._changelog = TopicPartition(topics.changelog, number)
        self._targets = {topic: number % count for topic, count in topics.outputs.items()}
        self._targets[topics.changelog] = number
        self._producer: AIOKafkaProducer | None = None

    # ------------------------------------------------------------------ taking over

    async def fence(self) -> None:
        self._producer = AIOKafkaProducer(
            **self._client,
            client_id=self.transactional_id,
            transactional_id=self.transactional_id,
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_batch_size=MAX_BATCH_BYTES,
            max_request_size=4 * MAX_BATCH_BYTES,
            transaction_timeout_ms=self._transaction_timeout_ms,
            retry_backoff_ms=3,
        )
        try:
            await asyncio.wait_for(self._producer.start(), FENCE_TIMEOUT_S)
        except TimeoutError as error:
            raise BrokenInvariant(
                f"The broker did not hand {self.transactional_id} over within {FENCE_TIMEOUT_S:.0f} s. Look at its "
                "transaction coordinator, then start again."
            ) from error

    async def cleanse(self) -> None:
        producer = self._open_producer()
        with self._taken_over():
            await producer.begin_transaction()
            acknowledged = [
                await producer.send(topic, key=FENCE_KEY, value=b"", partition=partition)
                for topic, partition in self._targets.items()
            ]
            for future in acknowledged:
                await future
            await producer.abort_transaction()

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
        producer = self._open_producer()
        with self._taken_over():
            await producer.begin_transaction()
            acknowledged = []
            for topic, items in messages.items():
                for batch in self._batches(items):
                    future = await producer.send_batch(batch, topic, partition=self._targets[topic])
                    acknowledged.append((future, batch.record_count()))
            for batch in self._batches((key, value, []) for key, value in rows):
                future = await producer.send_batch(batch, self._changelog.topic, partition=self._number)
                acknowledged.append((future, batch.record_count()))
            await producer.send_offsets_to_transaction({self._source: next_offset}, self._group)
            position = -1
            for future, count in acknowledged:
                metadata = await future
                if metadata.offset < 0:
                    raise BrokenInvariant(
                        f"The broker took a batch of {metadata.topic}[{metadata.partition}] for a repeat and gave no "
                        "offset: what it holds is not known to be ours."
                    )
                position = metadata.offset + count - 1  # the changelog's batches are the last
            await self.before_commit()
            await producer.commit_transaction()
        return position

    @contextlib.contextmanager
    def _taken_over(self) -> Iterator[None]:
        """Say what a refused transactional id means; it may be refused as early as in the cleanse."""
        try:
            yield
        except ProducerFenced as error:
            raise BrokenInvariant(
                f"Another worker has taken over {self._source.topic}[{self._number}]; this one was paused or cut off "
                "for longer than session_timeout_ms. Its transaction is aborted, nothing is lost."
            ) from error

    async def before_commit(self) -> None:
        """Everything is acknowledged and nothing is committed: where tests stop or kill the process."""

    def _batches(self, items: Iterable[Message]) -> Iterable[Any]:
        producer = self._open_producer()
        batch = producer.create_batch()
        append = batch.append
        now_ms = int(time.time() * 1000)  # asked once: what is written together was made together
        for key, value, headers in items:
            if append(timestamp=now_ms, key=key, value=value, headers=headers) is None:
                yield batch
                batch = producer.create_batch()
                append = batch.append
                if append(timestamp=now_ms, key=key, value=value, headers=headers) is None:
                    raise BrokenInvariant(f"A record of {len(value or b'')} bytes does not fit any batch.")
        if batch.record_count():
            batch.close()
            yield batch

    def _open_producer(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise BrokenInvariant(f"Partition {self._number} writes before its fence.")
        return self._producer

    async def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            # The transaction has ended: what stop() could still lose is only the goodbye to the broker.
            with contextlib.suppress(asyncio.TimeoutError, KafkaError):
                await asyncio.wait_for(producer.stop(), CLOSE_TIMEOUT_S)
