"""Topics of one round on a real broker, and where they and the group stand. Knows Kafka, not the engine."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
)

TIMEOUT_S = 10

# librdkafka tells of every refused connection while a broker is down, which here is what is meant to happen.
silent = logging.getLogger("tests.chaos.librdkafka")
silent.addHandler(logging.NullHandler())
silent.propagate = False

# Segments of seconds, cleaned at once: compaction then happens within a round.
COMPACTING = {
    "cleanup.policy": "compact",
    "segment.ms": "3000",
    "segment.bytes": "1048576",
    "min.cleanable.dirty.ratio": "0.01",
    "max.compaction.lag.ms": "4000",
}


@dataclass(frozen=True)
class Round:
    """Names of one round: every test and every round has topics, a group and transactional ids of its own."""

    bootstrap: str
    app_id: str
    partitions: int

    @property
    def prefix(self) -> str:
        return f"{self.app_id}-"

    @property
    def source(self) -> str:
        return self.prefix + "clicks"

    @property
    def changelog(self) -> str:
        return f"{self.prefix}{self.app_id}-state-changelog"

    @property
    def predictions(self) -> str:
        return self.prefix + "predictions"

    @property
    def dead_letters(self) -> str:
        return self.prefix + "clicks.dlq"

    def admin(self) -> AdminClient:
        """A new client each time: an old one remembers leader epochs from before a restart of the broker.

        It has to be held in a variable: one that is collected while it still owes an answer fails it.
        """
        return AdminClient({"bootstrap.servers": self.bootstrap}, logger=silent)

    def create(self) -> None:
        self._create(
            {self.source: {}, self.predictions: {}, self.dead_letters: {}, self.changelog: COMPACTING}
        )

    def recreate_source(self) -> None:
        """Delete the source topic and create it anew: the same name, another id, offsets from 0."""
        before = self.topic_id(self.source)
        admin = self.admin()
        for future in admin.delete_topics([self.source]).values():
            future.result(TIMEOUT_S)
        self._create({self.source: {}})
        if self.topic_id(self.source) == before:
            raise RuntimeError(f"Topic {self.source} kept its id {before.hex()} although it was deleted.")

    def _create(self, configs: Mapping[str, Mapping[str, str]]) -> None:
        topics = [NewTopic(name, self.partitions, 1, config=dict(config)) for name, config in configs.items()]
        deadline = time.monotonic() + TIMEOUT_S
        waiting = {topic.topic: topic for topic in topics}
        admin = self.admin()
        while waiting:
            for name, future in admin.create_topics(list(waiting.values())).items():
                try:
                    future.result(TIMEOUT_S)
                    del waiting[name]
                except KafkaException:  # its deletion is not through yet
                    if time.monotonic() > deadline:
                        raise
            time.sleep(0.1 if waiting else 0)
        while True:
            with contextlib.suppress(KafkaException):
                self.topic_id(self.source)
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"Topic {self.source} was created but is not described.")
            time.sleep(0.1)

    def compact(self, seconds: float, wait: Callable[[float], object] = time.sleep) -> None:
        """Have the changelog be compacted as fast as the broker can for a while; ``wait`` passes the time."""
        self._alter(self.changelog, {"segment.ms": "100", "max.compaction.lag.ms": "1"})
        wait(seconds)
        self._alter(
            self.changelog, {name: COMPACTING[name] for name in ("segment.ms", "max.compaction.lag.ms")}
        )

    def _alter(self, name: str, config: Mapping[str, str]) -> None:
        entries = [
            ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
            for key, value in config.items()
        ]
        admin = self.admin()
        resource = ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=entries)
        for future in admin.incremental_alter_configs([resource]).values():
            future.result(TIMEOUT_S)

    def delete(self) -> None:
        """Give the broker its disk and memory back."""
        names = [self.source, self.changelog, self.predictions, self.dead_letters]
        admin = self.admin()
        for future in admin.delete_topics(names).values():
            with contextlib.suppress(KafkaException):
                future.result(TIMEOUT_S)

    def topic_id(self, name: str) -> bytes:
        """The 16 bytes that tell a recreated topic from the old one."""
        admin = self.admin()
        described = admin.describe_topics(TopicCollection([name]))[name].result(TIMEOUT_S)
        identity = described.topic_id
        bits = (identity.get_most_significant_bits(), identity.get_least_significant_bits())
        return b"".join((half & (1 << 64) - 1).to_bytes(8, "big") for half in bits)

    def ends(self, name: str, committed: bool = False) -> list[int]:
        """High watermark of each partition, or its last stable offset."""
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        asked = {TopicPartition(name, p): OffsetSpec.latest() for p in range(self.partitions)}
        admin = self.admin()
        found = admin.list_offsets(asked, isolation_level=level, request_timeout=TIMEOUT_S)
        by_partition = {key.partition: future.result(TIMEOUT_S).offset for key, future in found.items()}
        return [by_partition[p] for p in range(self.partitions)]

    def committed(self) -> list[int]:
        """The group's offset in each partition; 0 where there is none."""
        reader = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": self.app_id,
                "enable.auto.commit": False,
                # read_committed would wait for the open transaction of a worker that is dead
                "isolation.level": "read_uncommitted",
            },
            logger=silent,
        )
        try:
            asked = [TopicPartition(self.source, p) for p in range(self.partitions)]
            return [max(0, answer.offset) for answer in reader.committed(asked, timeout=TIMEOUT_S)]
        finally:
            reader.close()

    def caught_up(self) -> bool:
        """Whether everything in the source is committed; False while the broker does not answer."""
        try:
            return self.committed() == self.ends(self.source)
        except KafkaException:
            return False
