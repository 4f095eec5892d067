"""Transactions that a broker forgot to end, of every stage and in every topic that it writes: taken over whole.

Nobody can aim at the milliseconds in which a kill leaves such a thing behind, so it is made by hand
(tests/chaos/forgotten.py) and taken over by the product's own log of a partition.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from stream.app import topic_set
from stream.broker import Broker
from stream.broker.topics import delete_topics
from stream.engine import unfinished
from stream.engine.kafka_log import KafkaLog, Offsets, TopicSet, place_of
from stream.engine.refusals import NOT_ALLOWED
from stream.engine.wire import Place, Request
from stream.engine.wire_partitions import Marked, describe_producers
from stream.groups_app import groups_topics
from stream.labels_app import label_outputs, labels_topics
from stream.settings import Settings, load_settings
from stream.stage import Message
from stream.topics import create, topic_specs
from tests.chaos.forgotten import Record, half_end, write_past

pytestmark = pytest.mark.broker

GROUP = "group"
STAGES = ("clicks", "groups", "labels")
PARTITIONS = 9

numbers = {stage: itertools.count() for stage in STAGES}  # a partition of its own for each test


@pytest.fixture(scope="module")
def product(broker: Broker) -> Iterator[Settings]:
    """Topics of a pipeline in which everything is on."""
    name = f"t{uuid.uuid4().hex[:8]}"
    made = load_settings(
        {},
        kafka__bootstrap_servers=broker.bootstrap_servers,
        topics__prefix=f"{name}.",
        topics__partitions=PARTITIONS,
        app_id=name,
        user_vectors="topic",
        groups__enabled=True,
        groups__partitions=2,
        labels__enabled=True,
        labels__partitions=2,
    )
    create(made)
    yield made
    delete_topics(made.kafka.librdkafka(), [spec.name for spec in topic_specs(made)])


def topics_of(settings: Settings, stage: str) -> TopicSet:
    """The topics of a stage as its engine has them."""
    if stage == "labels":
        return labels_topics(settings)
    topics = topic_set(settings)[0] if stage == "clicks" else groups_topics(settings)[0]
    return replace(topics, outputs={**topics.outputs, **label_outputs(settings)})


class Taken:
    """A partition of a stage that is about to be taken over."""

    def __init__(self, settings: Settings, stage: str):
        self.settings, self.topics = settings, topics_of(settings, stage)
        self.number = next(numbers[stage])
        self.bootstrap = settings.kafka.bootstrap_servers
        self.source = TopicPartition(self.topics.source, self.number)
        self.transactional_id = f"{settings.app_id}-{self.source.topic}-{self.number}"
        self.changelog: Place = self.topics.changelog, self.number
        outputs = self.topics.outputs.items()
        self.outputs = [place_of(output, self.number % count) for output, count in outputs]
        self.places = [self.changelog, *self.outputs]
        self.value = uuid.uuid4().bytes
        self.aborted_from: int | None = None

    def half_end(self, ended: Iterable[Place], unended: Iterable[Place], **options: Any) -> None:
        """A transaction of this id, or of ``name``, that is forgotten in some places."""
        name = options.pop("name", self.transactional_id)
        records = [[Record(*place, b"k", self.value, []) for place in places] for places in (ended, unended)]
        asyncio.run(half_end(self.bootstrap, name, *records, **options))

    def take_over(
        self, log_class: type[KafkaLog] = KafkaLog, then: Callable[[Any], Awaitable[None]] | None = None
    ) -> int | None:
        """Fence, cleanse and settle, and whatever is done ``then``; the committed position after it."""

        async def work() -> int | None:
            client = {"bootstrap_servers": self.bootstrap}
            consumer, offsets = AIOKafkaConsumer(**client, group_id=GROUP), Offsets(client)
            await consumer.start()
            await offsets.start()
            log = log_class(
                self.number,
                self.topics,
                client=client,
                consumer=consumer,
                offsets=offsets,
                group=GROUP,
                app_id=self.settings.app_id,
                transaction_timeout_ms=20_000,
                same_topics=lambda: asyncio.sleep(0),
            )
            try:
                await log.fence()
                self.aborted_from = log.aborted_from
                await log.cleanse()
                await log.settled()
                if then is not None:
                    await then(log)
                return await log.committed()
            finally:
                await log.close()
                await offsets.stop()
                await consumer.stop()

        return asyncio.run(asyncio.wait_for(work(), 120))

    def seen(self) -> list[Place]:
        """Places in which a committed reader finds what was forgotten; it comes to the end of all of them."""
        return asyncio.run(asyncio.wait_for(_seen(self.bootstrap, self.places, self.value), 60))


async def _seen(bootstrap: str, places: list[Place], value: bytes) -> list[Place]:
    client = {"bootstrap_servers": bootstrap, "group_id": None}
    stored = AIOKafkaConsumer(**client)
    consumer = AIOKafkaConsumer(**client, isolation_level="read_committed", auto_offset_reset="earliest")
    await stored.start()
    await consumer.start()
    try:
        parts = [TopicPartition(*place) for place in places]
        ends = await stored.end_offsets(parts)
        consumer.assign(parts)
        found: list[Place] = []
        while any([await consumer.position(part) < ends[part] for part in parts]):
            for part, records in (await consumer.getmany(timeout_ms=50)).items():
                found += [(part.topic, part.partition) for record in records if record.value == value]
        return sorted(found)
    finally:
        await consumer.stop()
        await stored.stop()


@pytest.mark.parametrize("stage", STAGES)
def test_whatever_got_no_marker_becomes_visible_with_the_rows(product: Settings, stage: str) -> None:
    """Rows and position are committed: so are the records in every other topic of the stage."""
    taken = Taken(product, stage)
    taken.half_end([taken.changelog], taken.outputs, position=(GROUP, taken.source, 5))
    assert taken.take_over() == 5
    assert taken.seen() == sorted(taken.places)
    assert taken.aborted_from is None


@pytest.mark.parametrize("newest", [1, 2], ids=["explicit", "implicit"])
def test_the_marker_of_any_one_partition_tells_what_was_decided(product: Settings, newest: int) -> None:
    """Here of a partition of labels, the last output of clicks, which many ids write to; the rows got none."""
    taken = Taken(product, "clicks")
    *forgotten, told = taken.outputs
    taken.half_end([told], [taken.changelog, *forgotten], newest=newest)
    taken.take_over()
    assert taken.seen() == sorted(taken.places)


def test_what_is_aborted_somewhere_or_ended_nowhere_is_aborted(product: Settings) -> None:
    """And whoever opens the rows is told from where on they may hold what is not to be."""
    aborted = Taken(product, "groups")
    aborted.half_end(aborted.outputs, [aborted.changelog], commit=False)
    aborted.take_over()
    assert aborted.seen() == []
    assert aborted.aborted_from == 0
    nowhere = Taken(product, "labels")
    nowhere.half_end([], nowhere.places)
    nowhere.take_over()
    assert nowhere.seen() == []
    assert nowhere.aborted_from == 0


def test_what_is_open_of_others_in_a_shared_partition_stays_theirs(product: Settings) -> None:
    """It is not aborted by whoever takes over first, though nothing of his says that it was committed."""
    taken, beside = Taken(product, "clicks"), Taken(product, "clicks")
    shared = taken.outputs[-1]
    beside.half_end([beside.changelog], [shared])
    taken.half_end([], [shared])
    taken.take_over()
    beside.take_over()
    assert taken.seen() == []
    assert beside.seen() == sorted([beside.changelog, shared])


def test_what_an_earlier_producer_id_left_is_ended_as_well(product: Settings) -> None:
    """Epochs end at 32767, then a transactional id gets another producer id; the changelog names the one before."""
    taken = Taken(product, "clicks")
    taken.half_end([taken.changelog], taken.outputs, name=f"{taken.transactional_id}-before")
    taken.take_over()
    assert taken.seen() == sorted(taken.places)


def test_without_the_right_to_write_markers_a_transaction_does_it(
    product: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker refuses markers of users that may not alter the cluster."""

    def refused(markers: Iterable[Place]) -> Request[dict[Place, Marked]]:
        asked: Any = describe_producers(markers)
        return replace(asked, read=lambda reader: dict.fromkeys(asked.read(reader), Marked(NOT_ALLOWED)))

    monkeypatch.setattr(unfinished, "write_markers", refused)
    taken = Taken(product, "clicks")
    taken.half_end([taken.changelog], taken.outputs, position=(GROUP, taken.source, 7))
    assert taken.take_over() == 7
    assert taken.seen() == sorted(taken.places)


class Forgetful(KafkaLog):
    """Its broker forgets what stands in ``unended``, of the next transaction."""

    unended: tuple[Record, ...] = ()
    fails = False

    async def before_commit(self) -> None:
        if self.fails:
            raise RuntimeError("failed")
        mine, records = self._fenced(), self.unended
        self.unended = ()
        if records:
            bootstrap = self._client["bootstrap_servers"]
            await write_past(bootstrap, mine, self.transactional_id, records, self._written_ms)

    def refuse_once(self) -> None:
        """The next request to write does not reach its broker."""
        client = self._fenced()._client
        send = client.send

        async def refused(node: int, request: Any, **options: Any) -> Any:
            if request.name == "Produce":
                client.send = send
                raise ConnectionResetError("away")
            return await send(node, request, **options)

        client.send = refused

    def cut(self) -> None:
        """Its connections break, as when a broker is restarted."""
        for connection in list(self._fenced()._client._conns.values()):
            connection.close()


def test_an_owner_that_lives_on_ends_what_was_forgotten(product: Settings) -> None:
    """Before its next transaction, which here writes elsewhere: nobody waits for the next alert to see the last."""
    taken = Taken(product, "clicks")

    async def live(log: Forgetful) -> None:
        log.unended = tuple(Record(*place, b"k", taken.value, []) for place in taken.outputs)
        await log.commit({}, [(b"row", taken.value)], 1)
        log.cut()
        await log.commit({}, [(b"row", b"")], 2)

    assert taken.take_over(Forgetful, live) == 2
    assert taken.seen() == sorted(taken.places)


def test_nothing_is_written_behind_what_was_forgotten(product: Settings) -> None:
    """The broker was away in the next transaction, which fails later: what was committed is not aborted with it."""
    taken = Taken(product, "clicks")
    messages: dict[str, list[Message]] = {output: [(b"k", b"failed", [])] for output in taken.topics.outputs}

    async def live(log: Forgetful) -> None:
        log.unended = tuple(Record(*place, b"k", taken.value, []) for place in taken.outputs)
        await log.commit({}, [(b"row", taken.value)], 1)
        log.refuse_once()
        log.fails = True
        with pytest.raises(RuntimeError, match="failed"):
            await log.commit(messages, [(b"row", b"failed")], 2)

    taken.take_over(Forgetful, live)
    assert taken.take_over() == 1
    assert taken.seen() == sorted(taken.places)
    taken.value = b"failed"
    assert taken.seen() == []
