"""Poison through a real worker: it stays up, answers every record, and keeps the same rows as without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from models.registry import load_artefact, untrained
from models.runtime import StepEngine
from stream.audit import audit, read_topic
from stream.broker.topics import describe
from stream.dead_letters import parse
from stream.events import REASONS
from stream.offline import OfflineRecord, score_batches
from stream.settings import Settings
from tests.broker.conftest import Make
from tests.broker.test_pipeline import drained, offline, predictions
from tests.poison.corpus import CORPUS
from tests.poison.makings import MARK, Poison
from tests.poison.test_poison import good
from tests.poison.variants import variants

POISON = 3_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("models"), categories=tuple(f"c{n}" for n in range(12)))


def hostile_records() -> list[Poison]:
    """The corpus and variants, but for what no producer can send: an unpacked record is packed here."""
    records = [*CORPUS, *variants(POISON - len(CORPUS), seed=2)]
    return [record for record in records if len(record.value or b"") < 6_000_000]


def send(settings: Settings, records: list[Poison]) -> None:
    """Packed, so that records larger than the topic's limit pass the broker as they do from careless producers."""
    options = {
        "message.max.bytes": 50_000_000,
        "compression.type": "gzip",
        "queue.buffering.max.messages": 10_000,
    }
    quiet = {"enable.idempotence": True, "partitioner": "murmur2_random", "log_level": 0, **options}
    refused: list[Any] = []
    producer = Producer(
        {
            **settings.kafka.librdkafka(),
            **quiet,
            "on_delivery": lambda error, _: error and refused.append(error),
        }
    )
    for record in records:
        producer.produce(settings.clicks_topic, record.value, record.key, headers=list(record.headers))
        producer.poll(0)
    assert producer.flush(60) == 0
    assert refused == []


def good_alone(settings: Settings) -> dict[bytes | None, bytes | None]:
    """Rows of the offline core over the good records alone, at the places where they stand among the others."""
    artefact = load_artefact(settings.model)  # type: ignore[arg-type]
    client = settings.kafka.librdkafka()
    topic_id = describe(client, settings.clicks_topic).topic_id
    rows: dict[bytes | None, bytes | None] = {}
    records = [m for m in read_topic(client, settings.clicks_topic) if is_good(m.key())]
    for partition in range(settings.topics.partitions):
        mine = sorted((m for m in records if m.partition() == partition), key=lambda m: m.offset())
        for rendered in score_batches(
            [OfflineRecord(m.offset(), m.key(), m.value()) for m in mine],
            settings,
            artefact,
            StepEngine(artefact, "cpu"),
            settings.clicks_topic,
            topic_id=topic_id,
            partition=partition,
        ):
            rows |= dict(rendered.rows)
    return {key: row for key, row in rows.items() if is_good(key)}


def is_good(key: bytes | None) -> bool:
    return key is not None and key.startswith(b"good")


@pytest.mark.broker
@pytest.mark.slow
def test_poison_is_answered_record_by_record_and_leaves_others_alone(settings: Settings, start: Make) -> None:
    """Each input position is in predictions or in the dead letters, once; predictions are the offline core's."""
    hostile = hostile_records()
    friendly = [Poison("good", key, value) for key, value in good(len(hostile))]
    worker = start()
    send(settings, [record for pair in zip(hostile, friendly, strict=True) for record in pair])
    drained(settings, worker)
    assert worker._process.poll() is None
    assert worker.get("/healthz")[0] == 200

    client = settings.kafka.librdkafka()
    found = audit(client, settings.clicks_topic, settings.predictions_topic, settings.dead_letters_topic)
    assert (found.missing, found.twice) == ([], [])
    assert found.events_in == 2 * len(hostile)
    assert found.dead_letters > len(hostile) // 2
    for partition in range(settings.topics.partitions):
        assert predictions(settings, partition) == offline(settings, partition, settings.predictions_topic)

    changelog = sorted(read_topic(client, settings.changelog_topic), key=lambda message: message.offset())
    assert {m.key(): m.value() for m in changelog if is_good(m.key())} == good_alone(settings)

    letters = 0
    cut = 0
    for message in read_topic(client, settings.dead_letters_topic):
        letter = parse(message.headers())
        assert letter is not None
        assert letter.reason in REASONS
        cut += letter.cut is not None
        letters += 1
    assert cut == sum(
        1 for record in hostile if len(record.key or b"") + len(record.value or b"") > 2_000_000
    )
    assert letters == found.dead_letters

    said = worker.log.read_text()
    assert not any(line.startswith(MARK) for line in said.splitlines())
    assert not any(ord(character) < 32 for line in said.split("\n") for character in line)
