"""Topics created, checked and described on a real broker."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from confluent_kafka import TopicCollection
from confluent_kafka.admin import AdminClient

from stream.broker.server_settings import free_port
from stream.broker.topics import (
    TopicSpec,
    delete_topics,
    describe,
    describe_topics,
    ensure_topics,
    recreate_topics,
)
from stream.engine.kafka_log import TopicSet
from stream.engine.topic_watch import TopicWatch
from stream.errors import BrokerUnreachable, TopicError

Kafka = dict[str, Any]
Topics = Callable[..., str]


def test_topics_are_created_once_as_specified(kafka: Kafka, topics: Topics) -> None:
    """The first call creates what is missing, with its settings; a second call creates nothing."""
    name = topics("made", partitions=0)
    spec = TopicSpec(name, partitions=3, config={"cleanup.policy": "compact", "max.message.bytes": "131072"})
    assert ensure_topics(kafka, [spec]) == [name]
    assert ensure_topics(kafka, [spec]) == []
    found = describe(kafka, name)
    assert (found.partitions, found.replication_factor, found.min_insync_replicas) == (3, 1, 1)
    assert (found.cleanup_policy, found.max_message_bytes) == ("compact", 131_072)
    assert found.delete_retention_ms == 86_400_000


def test_topic_id_is_the_one_that_kafka_prints(kafka: Kafka, topics: Topics) -> None:
    """The 16 bytes of a topic id are those behind Kafka's own text of it."""
    name = topics("known", partitions=1)
    admin = AdminClient(kafka)
    printed = admin.describe_topics(TopicCollection([name]))[name].result().topic_id
    assert base64.b64decode(f"{printed}==") == describe(kafka, name).topic_id


def test_recreated_topic_has_another_id(kafka: Kafka, topics: Topics) -> None:
    """A topic deleted and created under the same name is told apart by its id."""
    name = topics("again", partitions=1)
    before = describe(kafka, name)
    recreate_topics(kafka, [TopicSpec(name, partitions=1)])
    after = describe(kafka, name)
    assert len(before.topic_id) == len(after.topic_id) == 16
    assert before.topic_id != after.topic_id


def test_a_topic_that_is_another_one_now_is_named(kafka: Kafka, topics: Topics) -> None:
    """The ids that the wire gives are those of the description; a topic that is gone tells nothing."""
    source, changelog = topics("watched", partitions=2), topics("kept", partitions=2)
    of = TopicSet.over(describe(kafka, source), describe(kafka, changelog), {}, "")

    async def looks(at: TopicSet) -> None:
        watch = TopicWatch({"bootstrap_servers": kafka["bootstrap.servers"]}, at)
        await watch.start()
        try:
            await watch.look()
        finally:
            await watch.stop()

    asyncio.run(looks(of))
    asyncio.run(looks(replace(of, source=f"{source}-that-never-was")))
    with pytest.raises(TopicError, match=f"Topic {source} was deleted and created anew"):
        asyncio.run(looks(replace(of, source_id=of.changelog_id)))
    with pytest.raises(TopicError, match=f"Changelog {changelog} was deleted and created anew"):
        asyncio.run(looks(replace(of, changelog_id=of.source_id)))


def test_another_partition_count_is_an_error(kafka: Kafka, topics: Topics) -> None:
    """An existing topic with other partitions is refused, with both numbers, and stays as it is."""
    name = topics("fixed", partitions=2)
    with pytest.raises(TopicError, match=rf"{name} has 2 partitions, expected 3"):
        ensure_topics(kafka, [TopicSpec(name, partitions=3)])
    assert describe(kafka, name).partitions == 2


def test_missing_topic_is_named_with_the_command_that_creates_it(kafka: Kafka, topics: Topics) -> None:
    """To describe a topic that is not there is an error; asked for several, only those that exist are described."""
    there, missing = topics("there", partitions=1), topics("missing", partitions=0)
    with pytest.raises(TopicError, match=rf"{missing} does not exist.*foreclick topics create"):
        describe(kafka, missing)
    assert list(describe_topics(kafka, [missing, there])) == [there]


def test_deleted_topic_is_gone_when_the_call_returns(kafka: Kafka, topics: Topics) -> None:
    """Deletion waits for the broker, and deleting what is not there is no error."""
    name = topics("short-lived", partitions=1)
    assert delete_topics(kafka, [name]) == [name]
    assert describe_topics(kafka, [name]) == {}
    assert delete_topics(kafka, [name]) == []


def test_refused_setting_is_an_error_of_the_topic(kafka: Kafka, topics: Topics) -> None:
    """When the broker refuses a setting, its reason is told and the topic is not there."""
    name = topics("refused", partitions=0)
    with pytest.raises(TopicError, match=rf"create topic {name}.*shred"):
        ensure_topics(kafka, [TopicSpec(name, partitions=1, config={"cleanup.policy": "shred"})])
    assert describe_topics(kafka, [name]) == {}


def test_topics_of_an_unreachable_broker_name_its_address() -> None:
    """Without a broker every question about topics is answered by the same error."""
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(BrokerUnreachable, match=rf"{address}.*refused"):
        describe({"bootstrap.servers": address}, "any")
