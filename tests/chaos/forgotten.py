"""A transaction that the broker's coordinator has forgotten, made on purpose.

A broker that is killed between the decision to commit and its markers may come back with records of an open
transaction that no coordinator knows. To aim at those milliseconds is hopeless, so the records are written past the
coordinator: aiokafka is told that it has added the partitions, the broker that it need not verify it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import InvalidTxnState
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

ATTEMPTS = 20
VERIFICATION = "transaction.partition.verification.enable"


class Record(NamedTuple):
    """What the forgotten transaction holds."""

    topic: str
    partition: int
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


@contextlib.contextmanager
def unverified(bootstrap: str) -> Iterator[None]:
    """The broker takes records of transactions that its coordinator does not know."""
    _verify(bootstrap, "false")
    try:
        yield
    finally:
        _verify(bootstrap, "true")


def _verify(bootstrap: str, value: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    nodes = admin.list_topics(timeout=10).brokers
    entry = ConfigEntry(VERIFICATION, value, incremental_operation=AlterConfigOpType.SET)
    resources = [
        ConfigResource(ConfigResource.Type.BROKER, str(node), incremental_configs=[entry]) for node in nodes
    ]
    for future in admin.incremental_alter_configs(resources).values():
        future.result(10)


async def leave_open(bootstrap: str, transactional_id: str, records: Sequence[Record]) -> None:
    """Write the records in a transaction of this id that nobody ends and nobody knows."""
    for attempt in range(ATTEMPTS):
        producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap,
            transactional_id=transactional_id,
            acks="all",
            enable_idempotence=True,
        )
        await producer.start()
        try:
            await producer.begin_transaction()
            for record in records:
                producer._txn_manager._txn_partitions.add(TopicPartition(record.topic, record.partition))
            for record in records:
                await producer.send_and_wait(
                    record.topic, record.value, record.key, record.partition, headers=record.headers
                )
            return
        except InvalidTxnState:  # the broker has not heard yet that it need not verify
            if attempt + 1 == ATTEMPTS:
                raise
        finally:
            await producer.stop()  # ends no transaction
        await asyncio.sleep(0.2)
