"""Rounds of the product itself: `foreclick worker` with its models, under the same faults.

What its workers are held against says tests/chaos/product_oracle.py.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, TopicPartition

from models.registry import load_artefact, untrained
from stream.audit import read_topic
from stream.broker.topics import delete_topics
from stream.model_store import activate
from stream.settings import load_settings
from stream.topics import create, topic_specs
from tests.chaos.cluster import Round, silent
from tests.chaos.fleet import Fleet, Worker
from tests.chaos.product_oracle import ProductOracle
from tests.chaos.verdict import Verdict

CATEGORIES = tuple(f"c{number}" for number in range(12))
MODELS = ("shop/1", "shop/2", "gru/1")
QUIET_S = 3.0  # until a source without news is not waited for: windows that are open at the end of a round are judged
HORIZON_S, STAYS_AWAY = 3600, 0.5  # by an unlearned model somebody is missed after half an hour of event time
LAST_WINDOWS_S = 120.0
NEVER = 10**9  # labels; from when on alerts have a probability depends on when a worker heard of the counts


class ProductWorker(Worker):
    """`foreclick worker`, with traps."""

    def command(
        self, round_: Round, bootstrap: str, session_timeout_ms: int, switches: list[str]
    ) -> list[str]:
        return [sys.executable, "-m", "tests.chaos.product_worker", *switches]

    def environment(self, round_: Round, bootstrap: str, session_timeout_ms: int) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FORECLICK_")}
        root = self.data_dir.parent / "models"
        return kept | {
            "FORECLICK_KAFKA__BOOTSTRAP_SERVERS": bootstrap,
            "FORECLICK_KAFKA__SESSION_TIMEOUT_MS": str(session_timeout_ms),
            "FORECLICK_TOPICS__PREFIX": round_.prefix,
            "FORECLICK_APP_ID": round_.app_id,
            "FORECLICK_DATA_DIR": str(self.data_dir),
            "FORECLICK_HTTP__PORT": "0",
            "FORECLICK_LOG_FORMAT": "json",
            "FORECLICK_MODEL": str(root / MODELS[0]),
            "FORECLICK_GROUPS__ENABLED": "true",
            "FORECLICK_GROUPS__QUIET_S": str(QUIET_S),
            "FORECLICK_USER_VECTORS": "topic",
            "FORECLICK_CHURN__HORIZON_S": str(HORIZON_S),
            "FORECLICK_CHURN__THRESHOLD": str(STAYS_AWAY),
            "FORECLICK_LABELS__ENABLED": "true",
            "FORECLICK_LABELS__CALIBRATE_FROM": str(NEVER),
        }


class ProductFleet(Fleet):
    """Workers of the product."""

    worker_class = ProductWorker


class Product:
    """What a round of the product needs besides faults: settings, topics, models, and the judgement."""

    def __init__(self, round_: Round, folder: Path):
        self.round, self._root = round_, folder / "models"
        for label, options in zip(MODELS, ({}, {"seed": 2}, {"seed": 3, "architecture": "gru"}), strict=True):
            name, version = label.split("/")
            untrained(self._root, categories=CATEGORIES, name=name, version=version, **options)  # type: ignore[arg-type]
        self.settings = load_settings(
            {},
            kafka__bootstrap_servers=round_.bootstrap,
            topics__prefix=round_.prefix,
            topics__partitions=round_.partitions,
            app_id=round_.app_id,
            model=self._root / MODELS[0],
            groups__enabled=True,
            user_vectors="topic",
            churn__horizon_s=HORIZON_S,
            churn__threshold=STAYS_AWAY,
            labels__enabled=True,
        )
        self.swapped = 0

    def create(self) -> None:
        create(self.settings)

    def delete(self) -> None:
        delete_topics(self.settings.kafka.librdkafka(), [spec.name for spec in topic_specs(self.settings)])
        shutil.rmtree(self._root, ignore_errors=True)

    def swap(self, number: int) -> None:
        """Ask for another model."""
        self.swapped += 1
        activate(self.settings, MODELS[number % len(MODELS)], self._root, "chaos")

    def finish_windows(self, fleet: Fleet) -> bool:
        """Once all clicks are processed: wait until the later stages have read all, and for what silence ends."""
        read = self.read_by_all(fleet)
        fleet.tend_for(QUIET_S + 4)  # a look a second, and micro-batches that wait for one
        return read and self.read_by_all(fleet)

    def read_by_all(self, fleet: Fleet) -> bool:
        """Once all clicks are processed: wait until the later stages have read what they were told."""
        settings = self.settings
        groups = self._await_read(fleet, settings.groups_topic, settings.groups_group)
        return groups and self._await_read(fleet, settings.labels_topic, settings.labels_group)

    def _await_read(self, fleet: Fleet, topic: str, group: str) -> bool:
        return fleet.tend_for(LAST_WINDOWS_S, self._has_read(topic, group))

    def _has_read(self, topic: str, group: str) -> Callable[[], bool]:
        """Asks whether a group has committed beyond every record that stands in a topic now."""
        ends: dict[int, int] = {}
        for message in read_topic(self.settings.kafka.librdkafka(), topic):
            ends[message.partition()] = max(ends.get(message.partition(), 0), message.offset() + 1)

        def has_read() -> bool:
            client = {**self.settings.kafka.librdkafka(), "group.id": group}
            reader = Consumer({**client, "isolation.level": "read_uncommitted"}, logger=silent)
            try:
                answers = reader.committed([TopicPartition(topic, number) for number in ends], timeout=10)
            except KafkaException:
                return False
            finally:
                reader.close()
            return all(answer.offset >= ends[answer.partition] for answer in answers)

        return has_read

    def judge(self, data_dirs: Sequence[Path] = ()) -> Verdict:
        """Hold every output topic, the changelogs and the local stores against the offline core.

        The workers must have stopped when local stores are named.
        """
        return ProductOracle(
            self.settings, load_artefact(self._root / MODELS[0]), MODELS, bool(self.swapped)
        ).judge(data_dirs)
