"""Rounds of the product itself: `foreclick worker` with its models, under the same faults.

What it must write is what the same core writes offline for the same records (stream/offline.py), byte for byte and in
the same order in every output topic, whatever happened in between; and the rows in the changelog are those of the
offline fold. What the second stage is told is held against it as well, but for the watermarks, which depend on how the
records were cut into micro-batches; of what it says, that no alert comes twice. In a round in which the model was
exchanged nobody can say which event met which model: there ids, order and everything that no model has a say in are
compared. The offline core is the product's own code, so what it folds wrongly this does not see;
tests/chaos/oracle.py, which knows nothing of the product, is for that.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from models.registry import load_artefact, untrained
from models.runtime import StepEngine
from stream.audit import read_topic
from stream.broker.topics import delete_topics, describe
from stream.group_records import read_record, routed
from stream.groups_app import group_records
from stream.model_store import activate
from stream.offline import OfflineRecord, score_batches
from stream.settings import Settings, load_settings
from stream.topics import create, topic_specs
from tests.broker.test_pipeline import traffic
from tests.chaos.cluster import Round, silent
from tests.chaos.driver import POISON
from tests.chaos.fleet import Fleet, Worker
from tests.chaos.oracle import EXAMPLES, Verdict

CATEGORIES = tuple(f"c{number}" for number in range(12))
MODELS = ("shop/1", "shop/2", "gru/1")
# Of a prediction: what follows from the records alone.
MODEL_FREE = ("schema", "user_id", "event_id", "event_time_ms", "source", "session")
RESERVED = b"\0"


def _key(message: Any) -> bytes:
    return message[0]  # type: ignore[no-any-return]


class ProductWorker(Worker):
    """`foreclick worker`."""

    opens = "partition verified"

    def command(
        self, round_: Round, bootstrap: str, session_timeout_ms: int, switches: list[str]
    ) -> list[str]:
        return [sys.executable, "-m", "stream.cli", "worker"]

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
            "FORECLICK_USER_VECTORS": "topic",
        }


class ProductFleet(Fleet):
    """Workers of the product."""

    worker_class = ProductWorker


class Clicks(threading.Thread):
    """Clicks of 60 users with repeats, late ones, tombstones and rejected ones, until told to end.

    Args:
        rate: records a second, about.
    """

    def __init__(self, settings: Settings, rate: float, seed: int):
        super().__init__(daemon=True, name="clicks")
        self._topic, self._rate, self._chance = settings.clicks_topic, rate, random.Random(seed)
        self._seed = seed
        self._poison = 0
        self._refused: list[str] = []
        self._enough = threading.Event()
        self._producer = Producer(
            {
                **settings.kafka.librdkafka(),
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "message.timeout.ms": 120_000,
                "reconnect.backoff.max.ms": 500,
            },
            logger=silent,
        )

    def poison(self, count: int) -> None:
        """Send so many hostile records next."""
        self._poison = count

    def finish(self, timeout_s: float = 180) -> None:
        """Send no more and wait for the last answer.

        Raises:
            RuntimeError: a record was not accepted; the round proves nothing then.
        """
        self._enough.set()
        self.join(timeout_s)
        if self.is_alive() or self._refused:
            raise RuntimeError(f"The broker did not take every record: {self._refused[:3] or 'no answer'}.")

    def run(self) -> None:
        began_s, sent = time.monotonic(), 0
        while not self._enough.is_set():
            for key, value in traffic(50, first=sent, seed=self._seed):
                self._send(key, value)
            sent += 50
            while self._poison:
                self._poison -= 1
                number = b"%d" % self._chance.randrange(10**9)
                self._send(b"poison", self._chance.choice(POISON).replace(b"X", number))
            self._producer.poll(0)
            self._enough.wait(max(0.0, began_s + sent / self._rate - time.monotonic()))
        self._producer.flush(120)

    def _send(self, key: bytes | None, value: bytes | None) -> None:
        def answered(error: Any, message: Any) -> None:
            if error is not None:
                self._refused.append(str(error))

        self._producer.produce(self._topic, value, key, on_delivery=answered)


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

    def judge(self) -> Verdict:
        """Hold every output topic and the changelog against the offline core."""
        verdict = Verdict()
        client = self.settings.kafka.librdkafka()
        source: dict[int, list[OfflineRecord]] = {number: [] for number in range(self.round.partitions)}
        for message in read_topic(client, self.settings.clicks_topic):
            record = OfflineRecord(message.offset(), message.key(), message.value(), message.headers() or ())
            source[message.partition()].append(record)
            verdict.events += 1
        groups = describe(client, self.settings.groups_topic).partitions
        expected: dict[str, dict[int, list[Any]]] = {}
        rows: dict[bytes, bytes] = {}
        for partition, records in source.items():
            records.sort(key=lambda record: record.offset)
            for rendered in self._offline(records, partition, groups):
                for topic, messages in rendered.messages.items():
                    expected.setdefault(topic, {}).setdefault(partition, []).extend(messages)
                for key, row in rendered.rows:
                    if row is not None:
                        rows[key] = row
                    else:
                        rows.pop(key, None)
        self._compare_told(expected, groups, verdict)
        self._compare_vectors(expected.pop(self.settings.user_vectors_topic, {}), verdict)
        for topic in {self.settings.predictions_topic, self.settings.dead_letters_topic, *expected}:
            written: dict[int, list[Any]] = {}
            for message in read_topic(client, topic):
                said = (message.key(), message.value(), [tuple(pair) for pair in message.headers() or ()])
                written.setdefault(message.partition(), []).append(said)
            for partition in range(self.round.partitions):
                wanted = expected.get(topic, {}).get(partition, [])
                self._compare(topic, partition, wanted, written.get(partition, []), verdict)
        self._compare_rows(rows, verdict)
        self._judge_alerts(verdict)
        return verdict

    def _compare_told(self, expected: dict[str, dict[int, list[Any]]], groups: int, verdict: Verdict) -> None:
        """What each partition of the source told each partition of groups, in the order of each group."""
        told: dict[tuple[int, int], list[Any]] = {}
        for message in read_topic(self.settings.kafka.librdkafka(), self.settings.groups_topic):
            key = message.key()
            # Meetings are what the second stage tells itself.
            if key is None or key.startswith((RESERVED, b"met:")) or not self._sure(key):
                continue
            event = read_record(key, message.value() or b"")
            at = (message.partition(), event.partition)
            told.setdefault(at, []).append((key, message.value(), []))
        for number in range(groups):
            topic = routed(self.settings.groups_topic, number)
            by_source = expected.pop(topic, {})
            for partition in range(self.round.partitions):
                # Watermarks, and tombstones, which stand behind the events of their micro-batch.
                keyed = [m for m in by_source.get(partition, []) if m[0] and not m[0].startswith(RESERVED)]
                wanted = [m for m in keyed if self._sure(m[0])]
                # News of users stand behind the orders of their micro-batch: the order of a group's own records counts.
                both = (
                    sorted(messages, key=_key) for messages in (wanted, told.get((number, partition), []))
                )
                self._compare(topic, partition, *both, verdict)

    def _compare_vectors(self, expected: dict[int, list[Any]], verdict: Verdict) -> None:
        """What compaction leaves of users' vectors; those in between depend on how micro-batches were cut."""
        topic = self.settings.user_vectors_topic
        newest: dict[int, dict[bytes, Any]] = {number: {} for number in range(self.round.partitions)}
        for message in read_topic(self.settings.kafka.librdkafka(), topic):
            newest[message.partition()][message.key()] = message.value()
        for partition, last in newest.items():
            wanted = {key: value for key, value, _ in expected.get(partition, [])}
            both = [sorted(wanted.items()), sorted(last.items())]
            if self.swapped:  # which model made a vector is not known: only whose are there
                both = [[(key, value is None) for key, value in pairs] for pairs in both]
            before, after = ([(*pair, []) for pair in pairs] for pairs in both)
            self._compare(topic, partition, before, after, verdict)

    def _sure(self, key: bytes) -> bool:
        """Whether no model has a say in a record of this key, or only one was in use."""
        return not self.swapped or not key.startswith(b"user:")

    def _judge_alerts(self, verdict: Verdict) -> None:
        """No alert of the second stage twice; those of the clicks stage are compared as all its outputs."""
        said: Counter[bytes] = Counter()
        for message in read_topic(self.settings.kafka.librdkafka(), self.settings.alerts_fraud_topic):
            if message.value() is None:
                continue
            said[json.loads(message.value() or b"")["id"]] += 1
        for identity, count in said.items():
            if count > 1:
                verdict.repeats += count - 1
                verdict.note(f"{self.settings.alerts_fraud_topic}: {identity} is there {count} times")
        verdict.alerts = len(said)

    def _offline(self, records: list[OfflineRecord], partition: int, groups: int) -> Iterator[Any]:
        artefact = load_artefact(self._root / MODELS[0])
        engine = StepEngine(artefact, "cpu")
        client, source = self.settings.kafka.librdkafka(), self.settings.clicks_topic
        return score_batches(
            records,
            self.settings,
            artefact,
            engine,
            source,
            topic_id=describe(client, source).topic_id,
            partition=partition,
            groups=group_records(self.settings, groups),
        )

    def _compare(
        self, topic: str, partition: int, wanted: list[Any], written: list[Any], verdict: Verdict
    ) -> None:
        dead = topic == self.settings.dead_letters_topic
        verdict.predictions += len(written) * (topic == self.settings.predictions_topic)
        verdict.dead_letters += len(written) * dead
        before, after = [self._identity(m) for m in wanted], [self._identity(m) for m in written]
        missing, more = Counter(before) - Counter(after), Counter(after) - Counter(before)
        verdict.lost += missing.total()
        verdict.repeats += sum(count for identity, count in more.items() if identity in set(before))
        verdict.contradicting += sum(count for identity, count in more.items() if identity not in set(before))
        for kind, found in (("is missing", missing), ("is there too often", more)):
            for identity in list(found)[:EXAMPLES]:
                verdict.note(f"{topic}[{partition}]: {identity} {kind}")
        if not missing and not more and before != after:
            verdict.out_of_order += 1
            verdict.note(f"{topic}[{partition}] is in another order")

    def _identity(self, message: Any) -> Any:
        """What has to agree: everything; after an exchange of models what they have no say in."""
        key, value, headers = message
        pairs = tuple((name, bytes(content or b"")) for name, content in headers)
        if not self.swapped or dict(pairs).get("ce_type", b"").find(b"prediction") < 0:
            return key, value, pairs
        said = json.loads(value)
        label = f"{said['model']['name']}/{said['model']['version']}"
        sane = label in MODELS and abs(sum(said["next_action"].values()) - 1) < 1e-3
        return key, json.dumps({name: said[name] for name in MODEL_FREE}), pairs, sane or label

    def _compare_rows(self, rows: dict[bytes, bytes], verdict: Verdict) -> None:
        wanted = {key: row for key, row in rows.items() if not key.startswith(RESERVED)}
        found: dict[bytes, bytes] = {}
        for message in read_topic(self.settings.kafka.librdkafka(), self.settings.changelog_topic):
            key, value = message.key(), message.value()
            if key is None or key.startswith(RESERVED):
                continue
            if value is None:
                found.pop(key, None)
            else:
                found[key] = value
        verdict.users = len(wanted)
        if self.swapped:  # which model a row was last written with is not known: only whose rows there are
            wanted, found = dict.fromkeys(wanted, b""), dict.fromkeys(found, b"")
        different = [key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)]
        verdict.mismatching_rows = len(different)
        for key in different[:EXAMPLES]:
            verdict.note(f"changelog: the row of {key!r} is not that of the offline fold")
