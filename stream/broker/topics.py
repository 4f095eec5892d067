"""Topics as they should be and as the broker has them.

Every function takes librdkafka's settings (``Settings.kafka.librdkafka()``, or
``{"bootstrap.servers": address}``) and raises BrokerUnreachable when nobody answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from stream.broker.client import connect
from stream.errors import TopicError

REQUEST_TIMEOUT_S = 30.0
BROKER_DEFAULT = -1


@dataclass(frozen=True)
class TopicSpec:
    """A topic as it should be.

    Attributes:
        name: the topic.
        partitions: how many.
        config: Kafka's own topic settings by name, values as text; what is not named is the broker's default.
        replication_factor: copies of each partition; -1 is the broker's default.
    """

    name: str
    partitions: int
    config: Mapping[str, str] = field(default_factory=dict)
    replication_factor: int = BROKER_DEFAULT


@dataclass(frozen=True)
class TopicInfo:
    """A topic as the broker has it.

    Attributes:
        name: the topic.
        topic_id: 16 bytes, new for each topic that is created, also under an old name.
        partitions: how many.
        replication_factor: the fewest copies that a partition has.
        config: the settings in force, by Kafka's names, values as text.
    """

    name: str
    topic_id: bytes
    partitions: int
    replication_factor: int
    config: Mapping[str, str]

    @property
    def cleanup_policy(self) -> str:
        """``delete``, ``compact`` or both, comma separated."""
        return self.config["cleanup.policy"]

    @property
    def min_insync_replicas(self) -> int:
        """Copies that must have a record before it counts as written."""
        return int(self.config["min.insync.replicas"])

    @property
    def max_message_bytes(self) -> int:
        """The largest batch of records that the broker takes."""
        return int(self.config["max.message.bytes"])

    @property
    def delete_retention_ms(self) -> int:
        """How long a compacted topic still shows a tombstone."""
        return int(self.config["delete.retention.ms"])


def describe(client: Mapping[str, Any], name: str) -> TopicInfo:
    """One topic as the broker has it.

    Raises:
        TopicError: there is no such topic, or we may not see it.
    """
    found = describe_topics(client, [name])
    if name not in found:
        raise TopicError(
            f"Topic {name} does not exist at {client['bootstrap.servers']}. "
            f"Create it: foreclick topics create"
        )
    return found[name]


def describe_all(client: Mapping[str, Any], names: Sequence[str], otherwise: str) -> list[TopicInfo]:
    """Topics as the broker has them, in the order of their names.

    Args:
        otherwise: how to do without them, the end of a sentence.

    Raises:
        TopicError: some are missing, or we may not see one.
    """
    found = describe_topics(client, names)
    missing = [name for name in names if name not in found]
    if missing:
        raise TopicError(
            f"Topic {', '.join(missing)} does not exist. Create it: foreclick topics create; or {otherwise}"
        )
    return [found[name] for name in names]


def describe_topics(client: Mapping[str, Any], names: Iterable[str]) -> dict[str, TopicInfo]:
    """Those of the topics that exist, by name.

    Raises:
        TopicError: the broker refuses to describe one of them.
    """
    return _describe(connect(client), list(dict.fromkeys(names)))  # a name twice is refused


def ensure_topics(client: Mapping[str, Any], specs: Iterable[TopicSpec]) -> list[str]:
    """Create the topics that are missing and wait until each partition has a leader.

    Existing topics stay as they are: only their number of partitions is compared, as data is found by it.

    Returns:
        The names of the topics that this call created.

    Raises:
        TopicError: one exists with another number of partitions, or the broker refuses to create one.
    """
    specs = list(specs)
    admin = connect(client)
    found = _describe(admin, [spec.name for spec in specs])
    for spec in specs:
        if spec.name in found and found[spec.name].partitions != spec.partitions:
            raise TopicError(_partitions_differ(spec, found[spec.name]))
    missing = [
        NewTopic(
            spec.name,
            num_partitions=spec.partitions,
            replication_factor=spec.replication_factor,
            config=dict(spec.config),
        )
        for spec in specs
        if spec.name not in found
    ]
    # Two workers that start together may both find a topic missing; the second is told that it exists.
    futures = admin.create_topics(missing, operation_timeout=REQUEST_TIMEOUT_S) if missing else {}
    created = [
        name
        for name, future in futures.items()
        if _settled(future, f"create topic {name}", unless=KafkaError.TOPIC_ALREADY_EXISTS)
    ]
    wanted = {spec.name: spec.partitions for spec in specs}
    _until(lambda: _led(admin, wanted), f"topics {', '.join(wanted)} to get leaders")
    return created


def delete_topics(client: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Delete the topics with all they hold, and wait until they are gone; missing ones are no error.

    Returns:
        The names of the topics that this call deleted.

    Raises:
        TopicError: the broker refuses.
    """
    names = list(names)
    admin = connect(client)
    futures = admin.delete_topics(names, operation_timeout=REQUEST_TIMEOUT_S) if names else {}
    deleted = [
        name
        for name, future in futures.items()
        if _settled(future, f"delete topic {name}", unless=KafkaError.UNKNOWN_TOPIC_OR_PART)
    ]
    _until(lambda: not _describe(admin, names), f"topics {', '.join(names)} to be gone")
    return deleted


def recreate_topics(client: Mapping[str, Any], specs: Iterable[TopicSpec]) -> None:
    """Delete what is there and create it anew: empty topics with new topic ids."""
    specs = list(specs)
    delete_topics(client, [spec.name for spec in specs])
    ensure_topics(client, specs)


def _describe(admin: AdminClient, names: list[str]) -> dict[str, TopicInfo]:
    if not names:
        return {}
    descriptions = {}
    futures = admin.describe_topics(TopicCollection(names), request_timeout=REQUEST_TIMEOUT_S)
    for name, future in futures.items():
        if _settled(future, f"describe topic {name}", unless=KafkaError.UNKNOWN_TOPIC_OR_PART):
            descriptions[name] = future.result()
    if not descriptions:
        return {}
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in descriptions]
    configs = {}
    for resource, future in admin.describe_configs(resources, request_timeout=REQUEST_TIMEOUT_S).items():
        # A topic deleted between the two requests has no settings any more: it does not exist.
        if _settled(
            future, f"read the settings of topic {resource.name}", unless=KafkaError.UNKNOWN_TOPIC_OR_PART
        ):
            configs[resource.name] = {entry.name: entry.value for entry in future.result().values()}
    return {
        name: TopicInfo(
            name=name,
            topic_id=_id_bytes(description.topic_id),
            partitions=len(description.partitions),
            replication_factor=min(len(partition.replicas) for partition in description.partitions),
            config=configs[name],
        )
        for name, description in descriptions.items()
        if name in configs
    }


def _id_bytes(topic_id: Any) -> bytes:
    # Kafka's Uuid is two signed 64-bit halves, most significant first.
    halves = (topic_id.get_most_significant_bits(), topic_id.get_least_significant_bits())
    return b"".join((half & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "big") for half in halves)


def _led(admin: AdminClient, wanted: Mapping[str, int]) -> bool:
    """Whether each partition has a leader: before that, producers and consumers are sent away."""
    topics = admin.list_topics(timeout=REQUEST_TIMEOUT_S).topics
    return all(
        name in topics
        and len(topics[name].partitions) == partitions
        and all(partition.leader >= 0 for partition in topics[name].partitions.values())
        for name, partitions in wanted.items()
    )


def _partitions_differ(spec: TopicSpec, info: TopicInfo) -> str:
    return (
        f"Topic {spec.name} has {info.partitions} partitions, expected {spec.partitions}: keys would move "
        f"between partitions and lose their state. Set FORECLICK_TOPICS__PARTITIONS={info.partitions}, or "
        f"delete the topic and create it again: foreclick topics create"
    )


def _settled(future: Future[Any], what: str, unless: int) -> bool:
    """True when the broker has done it, False when it answered with the code ``unless``."""
    try:
        future.result(timeout=REQUEST_TIMEOUT_S + 5)
    except KafkaException as problem:
        error = problem.args[0]
        if error.code() == unless:
            return False
        raise TopicError(f"The broker did not {what}: {error.str()} ({error.name()}).") from problem
    return True


def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + REQUEST_TIMEOUT_S
    while not holds():
        if time.monotonic() > deadline:
            raise TopicError(f"Waited {REQUEST_TIMEOUT_S:.0f} s in vain for {what}. See the broker's log.")
        time.sleep(0.05)
