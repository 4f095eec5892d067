"""The control topic as every worker reads it: by itself, without a group, from the beginning and then for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from stream.errors import BrokerUnreachable
from stream.settings import Kafka

logger = structlog.get_logger("foreclick.model_watch")

POLL_MS = 1000
RETRY_S = 2.0
BEGINNING_TIMEOUT_S = 30.0


class ModelWatch:
    """Values of the records of the control topic, in their order.

    Args:
        kafka: how to reach the broker.
        topic: compacted, of one partition.
    """

    def __init__(self, kafka: Kafka, topic: str):
        self._kafka = kafka
        self._partition = TopicPartition(topic, 0)
        self._consumer: AIOKafkaConsumer | None = None

    async def start(self) -> list[bytes | None]:
        """What stands in the topic now.

        Raises:
            BrokerUnreachable: it could not be read to its end.
        """
        consumer = self._consumer = AIOKafkaConsumer(
            **self._kafka.aiokafka(),
            group_id=None,
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset="earliest",  # a topic that was recreated is read anew
            fetch_max_wait_ms=500,
        )
        values: list[bytes | None] = []
        try:
            async with asyncio.timeout(BEGINNING_TIMEOUT_S):
                await consumer.start()
                consumer.assign([self._partition])
                await consumer.seek_to_beginning(self._partition)
                end = (await consumer.end_offsets([self._partition]))[self._partition]
                while await consumer.position(self._partition) < end:
                    values += await self._poll(200)
        except (TimeoutError, KafkaError) as error:
            raise BrokerUnreachable(
                f"Topic {self._partition.topic} could not be read to its end ({error or 'no progress'}), so it is not "
                "known which model is activated. Look at `foreclick broker status`."
            ) from error
        return values

    async def follow(self) -> AsyncIterator[list[bytes | None]]:
        """What is written from now on, as it comes. A broker that does not answer is waited for."""
        while True:
            try:
                values = await self._poll(POLL_MS)
            except KafkaError as error:
                logger.warning("control topic not read, trying again", because=str(error))
                await asyncio.sleep(RETRY_S)
                continue
            if values:
                yield values

    async def _poll(self, timeout_ms: int) -> list[bytes | None]:
        assert self._consumer is not None
        fetched = await self._consumer.getmany(self._partition, timeout_ms=timeout_ms)
        return [record.value for record in fetched.get(self._partition, [])]

    async def stop(self) -> None:
        """Close the connection."""
        if self._consumer is not None:
            await self._consumer.stop()
