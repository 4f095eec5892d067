"""Our own transactions on a real broker, in both ways in which clusters know them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka import Consumer
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin import AdminClient, NewTopic

from stream.broker import Broker
from stream.broker.topics import delete_topics
from stream.engine.batches import Batch, batches_of
from stream.engine.refusals import TakenOver
from stream.engine.transaction import Transactions
from stream.engine.wire import Reader, array, features, text, varint
from stream.errors import BrokenInvariant, Unsupported

pytestmark = pytest.mark.broker

VERSIONS = pytest.mark.parametrize("newest", [1, 2], ids=["explicit", "implicit"])
TIMEOUT_MS = 20_000


@pytest.fixture
def topic(broker: Broker) -> Iterator[str]:
    """Two partitions."""
    name = f"t{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    for future in admin.create_topics([NewTopic(name, 2, 1)]).values():
        future.result(10)
    yield name
    delete_topics({"bootstrap.servers": broker.bootstrap_servers}, [name])


def writer(broker: Broker, topic: str, newest: int = 2, name: str = "writer") -> Transactions:
    options = {"bootstrap_servers": broker.bootstrap_servers}
    return Transactions(options, f"{topic}-{name}", timeout_ms=TIMEOUT_MS, topics=[topic], newest=newest)


def values(*sizes: int) -> list[Batch]:
    return batches_of([(b"k", bytes(size), [("h", b"x")]) for size in sizes], now_ms=1)


async def committed_sizes(broker: Broker, topic: str, partition: int) -> list[int]:
    """Sizes of the values that a read_committed reader finds."""
    place = TopicPartition(topic, partition)
    options = {"bootstrap_servers": broker.bootstrap_servers, "group_id": None}
    any_end = AIOKafkaConsumer(**options)
    consumer = AIOKafkaConsumer(**options, isolation_level="read_committed", auto_offset_reset="earliest")
    await any_end.start()
    await consumer.start()
    try:
        consumer.assign([place])
        end = (await any_end.end_offsets([place]))[place]  # read on until the markers are there as well
        found: list[int] = []
        while await consumer.position(place) < end:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += [len(record.value) for record in records]
        return found
    finally:
        await consumer.stop()
        await any_end.stop()


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(work(), 60)

    asyncio.run(bounded())


@VERSIONS
def test_what_is_committed_is_seen_and_what_is_aborted_is_not(
    broker: Broker, topic: str, newest: int
) -> None:
    """Records of several transactions, positions of a group, and the offsets that are reported."""

    async def work() -> None:
        mine = writer(broker, topic, newest)
        await mine.start(30)
        assert mine.version == newest
        for number in range(6):
            places = {(topic, 0): values(number), (topic, 1): values(number, number)}
            ends = await mine.write(places, (f"{topic}-group", TopicPartition(topic, 0), number))
            assert ends[topic, 1] - ends[topic, 0] == number + 1  # two records here, one there
            await mine.end(commit=number % 2 == 0)
        await mine.stop()
        assert await committed_sizes(broker, topic, 0) == [0, 2, 4]
        assert await committed_sizes(broker, topic, 1) == [0, 0, 2, 2, 4, 4]

    run(work)
    reader = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": f"{topic}-group"})
    assert [place.offset for place in reader.committed([Place(topic, 0)], timeout=10)] == [4]
    reader.close()


@VERSIONS
def test_a_newer_owner_fences_the_older_in_the_middle_of_its_transaction(
    broker: Broker, topic: str, newest: int
) -> None:
    """What the older one had written is aborted by the newer one's start, and it cannot end it any more."""

    async def work() -> None:
        older, newer = writer(broker, topic, newest), writer(broker, topic, newest)
        await older.start(30)
        await older.write({(topic, 0): values(1)})
        await newer.start(30)
        with pytest.raises(TakenOver):
            await older.end(commit=True)
        with pytest.raises(TakenOver):
            await older.write({(topic, 0): values(2)})
        with pytest.raises(TakenOver):
            await older.fence_again()
        await newer.write({(topic, 0): values(3)})
        await newer.end(commit=True)
        await older.stop()
        await newer.stop()
        assert await committed_sizes(broker, topic, 0) == [3]

    run(work)


@VERSIONS
def test_a_fence_that_is_renewed_goes_on(broker: Broker, topic: str, newest: int) -> None:
    """Between two transactions, after trouble; a broken connection is such."""

    async def work() -> None:
        mine = writer(broker, topic, newest)
        await mine.start(30)
        for number in (1, 2):
            assert not mine.disturbed
            await mine.write({(topic, 0): values(number)})
            await mine.end(commit=True)
            for connection in list(mine._client._conns.values()):
                connection.close()
            assert mine.disturbed
            await mine.fence_again()
        await mine.stop()
        assert await committed_sizes(broker, topic, 0) == [1, 2]

    run(work)


@VERSIONS
def test_records_beyond_one_batch_keep_their_order(broker: Broker, topic: str, newest: int) -> None:
    """A partition takes one record batch a request; the next goes when the one before is there."""
    sizes = [400_000 + number for number in range(7)]

    async def work() -> None:
        mine = writer(broker, topic, newest)
        await mine.start(30)
        made = values(*sizes)
        assert len(made) == 4
        ends = await mine.write({(topic, 0): made, (topic, 1): values(5)})
        assert ends[topic, 0] == 6
        await mine.end(commit=True)
        await mine.stop()
        assert await committed_sizes(broker, topic, 0) == sizes

    run(work)


@VERSIONS
@pytest.mark.parametrize("lost", ["Produce", "TxnOffsetCommit", "EndTxn", "AddPartitionsToTxn"])
def test_an_answer_that_is_lost_is_asked_for_again(
    broker: Broker, topic: str, newest: int, lost: str
) -> None:
    """The request reached the broker, the connection broke: asked again, nothing is written twice."""

    async def work() -> None:
        mine = writer(broker, topic, newest)
        await mine.start(30)
        cuts = 0
        send = mine._client.send

        async def cut(node: int, request: Any, **options: Any) -> Any:
            nonlocal cuts
            answer = await send(node, request, **options)
            if getattr(request, "name", "") == lost and cuts < 2:
                cuts += 1
                for connection in list(mine._client._conns.values()):
                    connection.close()
                raise ConnectionResetError("cut")
            return answer

        mine._client.send = cut
        for number in (1, 2, 3):
            await mine.write(
                {(topic, 0): values(number)}, (f"{topic}-group", TopicPartition(topic, 0), number)
            )
            await mine.end(commit=True)
        assert cuts == (2 if newest == 1 or lost != "AddPartitionsToTxn" else 0)
        await mine.stop()
        assert await committed_sizes(broker, topic, 0) == [1, 2, 3]

    run(work)


def test_a_record_larger_than_a_batch_goes_alone() -> None:
    """Dead letters are as large as their topic takes; the broker refuses what is larger."""
    assert [batch.records for batch in values(5, 1_040_000, 5, 5)] == [1, 1, 2]


def test_what_the_broker_refuses_for_good_ends_the_transaction(broker: Broker, topic: str) -> None:
    """A topic with a smaller limit: said at once, with Kafka's own name for it."""
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    small = f"{topic}-small"
    for future in admin.create_topics([NewTopic(small, 1, 1, config={"max.message.bytes": "1000"})]).values():
        future.result(10)

    async def work() -> None:
        mine = Transactions(
            {"bootstrap_servers": broker.bootstrap_servers}, small, timeout_ms=TIMEOUT_MS, topics=[small]
        )
        await mine.start(30)
        with pytest.raises(BrokenInvariant, match=r"refused Produce to .*-small\[0\].*MessageSizeTooLarge"):
            await mine.write({(small, 0): values(5_000)})
        await mine.stop()

    run(work)
    delete_topics({"bootstrap.servers": broker.bootstrap_servers}, [small])


def test_a_partition_that_is_not_there_is_given_up_at_the_deadline(broker: Broker, topic: str) -> None:
    """Leaders may be away for a while; nothing waits longer than the coordinator would."""

    async def work() -> None:
        options = {"bootstrap_servers": broker.bootstrap_servers}
        mine = Transactions(options, f"{topic}-away", timeout_ms=1500, topics=[topic])
        await mine.start(30)
        with pytest.raises(
            TimeoutError, match=rf"Produce to {topic}\[9\] .* was not answered in time.*foreclick doctor"
        ):
            await mine.write({(topic, 9): values(1)})
        await mine.stop()

    run(work)


def test_metadata_that_never_come_do_not_hold_the_fence_for_ever(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose own task died while a broker was restarted waits for ever; the process must end instead."""

    async def work() -> None:
        monkeypatch.setattr(
            "aiokafka.client.AIOKafkaClient.set_topics",
            lambda self, topics: asyncio.get_running_loop().create_future(),
        )
        mine = writer(broker, topic)
        with pytest.raises(TimeoutError):
            await mine.start(1.0)
        await mine.stop()

    run(work)


def test_lengths_and_texts_read_back_as_they_were_written() -> None:
    """The compact encoding (KIP-482): n + 1 in seven bits a byte, lowest first."""
    assert varint(0) == b"\x00"
    assert varint(127) == b"\x7f"
    assert varint(300) == b"\xac\x02"
    assert text("ab") == b"\x03ab"
    assert array([b"x", b"y"]) == b"\x03xy"
    reader = Reader(varint(300) + text("häuser") + array([text("a"), text("")]) + b"\x01\x02\x01z")
    assert reader.varint() == 300
    assert reader.text() == "häuser"
    assert [reader.text() for _ in reader.each()] == ["a", ""]
    assert reader.tags() == {2: b"z"}


def test_a_broker_that_is_too_old_is_refused() -> None:
    """Better one clear line than a request that it does not understand."""
    with pytest.raises(Unsupported, match=r"knows ApiVersions in versions 0 to 2, 3 is needed"):
        features().prepare({18: (0, 2)})
