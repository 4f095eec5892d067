"""A transaction that the broker's coordinator has forgotten, made on purpose.

A broker that is killed between the decision to commit and its markers may come back with records of an open
transaction that no coordinator knows. To aim at those milliseconds is hopeless, so the records of some partitions are
written past the coordinator, by a broker that is told that it need not ask it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from aiokafka import TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from stream.engine.batches import Batch, batches_of
from stream.engine.transaction import Transactions
from stream.engine.wire import Place, produce
from stream.errors import BrokenInvariant
from stream.stage import Message

ATTEMPTS = 20
TIMEOUT_MS = 60_000  # a broker that was just started makes the topic of positions first
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


async def half_end(
    bootstrap: str,
    transactional_id: str,
    ended: Sequence[Record],
    unended: Sequence[Record],
    *,
    position: tuple[str, TopicPartition, int] | None = None,
    commit: bool = True,
    newest: int = 2,
) -> None:
    """A transaction of which only some partitions get their marker; nobody knows of the others.

    Args:
        ended: records of the partitions that do; none and the transaction is not ended at all.
        unended: records of those that do not.
        position: group, source partition, next offset.
        newest: transaction version.
    """
    mine = Transactions(
        {"bootstrap_servers": bootstrap},
        transactional_id,
        timeout_ms=TIMEOUT_MS,
        topics={record.topic for record in (*ended, *unended)},
        newest=newest,
    )
    await mine.start(30)
    try:
        now_ms = int(time.time() * 1000)
        if ended:
            await mine.write(_batches(ended, now_ms), position)
        await write_past(bootstrap, mine, transactional_id, unended, now_ms)
        if ended:
            await mine.end(commit=commit)
    finally:
        await mine.stop()


async def write_past(
    bootstrap: str, mine: Transactions, transactional_id: str, records: Sequence[Record], now_ms: int
) -> None:
    """Write to the leaders as clients did that told the coordinator themselves, and do not tell it."""
    batches = {}
    for place, (batch,) in _batches(records, now_ms).items():
        batch.builder.set_producer_state(*mine.producer, 0)
        batches[place] = bytes(batch.builder.build())
    with unverified(bootstrap):
        for attempt in range(ATTEMPTS):
            try:
                await mine.ask_leaders(
                    "Produce to",
                    batches,
                    lambda turn: produce(
                        transactional_id, 9, 20_000, {place: batches[place] for place in turn}
                    ),
                    time.monotonic() + 20,
                )
                return
            except BrokenInvariant:  # the broker has not heard yet that it need not verify
                if attempt + 1 == ATTEMPTS:
                    raise
            await asyncio.sleep(0.2)


def _batches(records: Sequence[Record], now_ms: int) -> dict[Place, list[Batch]]:
    by_place: dict[Place, list[Message]] = {}
    for record in records:
        by_place.setdefault((record.topic, record.partition), []).append(
            (record.key, record.value, record.headers)
        )
    return {place: batches_of(messages, now_ms) for place, messages in by_place.items()}
