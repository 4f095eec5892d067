"""The worker on a real broker: what it writes is what the same core writes offline, byte for byte."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from models.registry import load_artefact, untrained
from models.runtime import StepEngine
from stream.audit import audit, read_topic
from stream.broker.server_settings import free_port
from stream.broker.topics import TopicSpec, delete_topics, describe, recreate_topics
from stream.demo import Pipeline, Tail, Worker, wait_drained
from stream.offline import OfflineRecord, score_batches
from stream.settings import Settings
from stream.stage import FENCE_KEY
from tests.broker.conftest import Make


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("models"), categories=tuple(f"c{n}" for n in range(12)))


def click(rng: random.Random, number: int, user: str, time_ms: int) -> dict[str, Any]:
    return {
        "user_id": user,
        "event_id": f"e{number}",
        "event_time_ms": time_ms,
        "action": rng.choice(["view", "view", "click", "cart", "purchase", "dance"]),
        "item_id": f"i{rng.randrange(40)}",
        # two in three are outside the model's vocabulary: their names must survive a restart
        "category_id": f"c{rng.randrange(36)}",
        "price": rng.randrange(1, 5000) / 100,
    }


def traffic(count: int, first: int = 0, seed: int = 5) -> list[tuple[bytes | None, bytes | None]]:
    """Clicks of 60 users with repeats, late ones, tombstones, and records that are no events."""
    rng = random.Random(seed + first)
    now_ms = 1_735_000_000_000 + first * 700
    records: list[tuple[bytes | None, bytes | None]] = []
    for number in range(first, first + count):
        user = f"u{rng.randrange(60)}"
        now_ms += rng.randrange(1, 1400)
        event = click(rng, number, user, now_ms - (rng.randrange(3_600_000) if rng.random() < 0.03 else 0))
        record = (user.encode(), json.dumps(event).encode())
        records.append(record)
        dice = rng.random()
        if dice < 0.02:
            records.append(record)
        elif dice < 0.03:
            records.append((user.encode(), None))
        elif dice < 0.04:
            records.append((user.encode(), b"\xff not json"))
        elif dice < 0.05:
            records.append((b"somebody else", record[1]))
    return records


def send(settings: Settings, records: list[tuple[bytes | None, bytes | None]]) -> None:
    quiet = {"enable.idempotence": True, "partitioner": "murmur2_random", "log_level": 0}
    producer = Producer({**settings.kafka.librdkafka(), **quiet})
    for key, value in records:
        producer.produce(settings.clicks_topic, value, key)
        producer.poll(0)
    assert producer.flush(30) == 0


def drained(settings: Settings, worker: Worker) -> None:
    wait_drained(Pipeline(settings, worker, Tail(settings), settings.data_dir))


def predictions(settings: Settings, partition: int) -> list[tuple[bytes, bytes, list[tuple[str, bytes]]]]:
    messages = [
        message
        for message in read_topic(settings.kafka.librdkafka(), settings.predictions_topic)
        if message.partition() == partition and message.key() != FENCE_KEY
    ]
    messages.sort(key=lambda message: message.offset())
    return [(message.key(), message.value(), message.headers()) for message in messages]


def offline(settings: Settings, partition: int, output: str) -> list[tuple[Any, Any, Any]]:
    """What the same core makes of the partition's records without a broker: the messages of an output."""
    artefact = load_artefact(settings.model)  # type: ignore[arg-type]
    records = [
        OfflineRecord(m.offset(), m.key(), m.value(), m.headers() or ())
        for m in read_topic(settings.kafka.librdkafka(), settings.clicks_topic)
        if m.partition() == partition
    ]
    records.sort(key=lambda record: record.offset)
    topic_id = describe(settings.kafka.librdkafka(), settings.clicks_topic).topic_id
    batches = score_batches(
        records,
        settings,
        artefact,
        StepEngine(artefact, "cpu"),
        settings.clicks_topic,
        topic_id=topic_id,
        partition=partition,
    )
    return [message for batch in batches for message in batch.messages.get(output, ())]


def assert_exact(settings: Settings) -> None:
    client = settings.kafka.librdkafka()
    found = audit(client, settings.clicks_topic, settings.predictions_topic, settings.dead_letters_topic)
    assert (found.missing, found.twice) == ([], [])
    assert found.predictions > 0
    for partition in range(settings.topics.partitions):
        assert predictions(settings, partition) == offline(settings, partition, settings.predictions_topic)


@pytest.mark.broker
def test_predictions_are_those_of_the_offline_core_byte_for_byte(settings: Settings, start: Make) -> None:
    """Value, key and headers; across a restart, which must remember states, windows and names of categories."""
    worker = start()
    send(settings, traffic(1500))
    drained(settings, worker)
    worker.stop()
    again = start()
    send(settings, traffic(1500, first=1500))
    drained(settings, again)
    counters = again.counters()
    assert_exact(settings)
    assert counters["foreclick_duplicates_dropped_total"] > 0
    assert counters["foreclick_late_events_total"] > 0
    assert counters["foreclick_position_mismatch_total"] == 0


@pytest.mark.broker
def test_predictions_survive_a_kill_and_an_empty_data_directory(
    settings: Settings, start: Make, tmp_path: Path
) -> None:
    """SIGKILL in the middle of the traffic, then a worker on another machine's empty disk: not one bit differs."""
    first = start()
    send(settings, traffic(2000, seed=11))
    while first.counters().get("foreclick_events_total", 0) == 0:
        time.sleep(0.02)
    first._process.kill()
    first._process.wait()
    send(settings, traffic(500, first=2000, seed=11))
    second = start(data_dir=tmp_path / "another")
    drained(settings, second)
    assert_exact(settings)


@pytest.mark.broker
def test_two_workers_share_the_partitions_and_lose_nothing(
    settings: Settings, start: Make, tmp_path: Path
) -> None:
    """A second worker joins under load and leaves again; every partition moves and none is counted twice."""
    first = start()
    send(settings, traffic(1200, seed=21))
    second = start(data_dir=tmp_path / "second", http=settings.http.model_copy(update={"port": free_port()}))
    send(settings, traffic(1200, first=1200, seed=21))
    second.stop()
    send(settings, traffic(300, first=2400, seed=21))
    drained(settings, first)
    assert_exact(settings)


@pytest.mark.broker
def test_state_pages_and_metrics_tell_what_the_worker_knows(settings: Settings, start: Make) -> None:
    """Operators ask for one user's row, for all partitions, and for Prometheus' page."""
    worker = start()
    send(settings, traffic(400, seed=31))
    drained(settings, worker)
    user = json.loads(predictions(settings, 0)[-1][1])["user_id"]
    status, body = worker.get(f"/state/{user}")
    assert status == 200
    assert json.loads(body)["user_id"] == user
    assert worker.get("/state/nobody")[0] == 404
    assert worker.get("/healthz")[0] == 200
    stats = worker.stats()
    assert stats["open"] == 3
    assert stats["lag_records"] == 0
    page = worker.get("/metrics")[1].decode()
    for name in ("event_to_score_seconds_bucket", "batch_released_total", "dlq_records_total", "model_info"):
        assert f"foreclick_{name}" in page
    assert user not in page


def run_faust(settings: Settings, module: str, log: Path, **more: str) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FORECLICK_")}
    environment |= {
        "FORECLICK_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "FORECLICK_TOPICS__PREFIX": settings.topics.prefix,
        "FORECLICK_APP_ID": settings.app_id,
        "FORECLICK_DATA_DIR": str(settings.data_dir),
        "FORECLICK_HTTP__PORT": str(settings.http.port),
        "FORECLICK_MODEL": str(settings.model),
        **more,
    }
    command = [sys.executable, "-m", "faust", "-A", module, "worker", "-l", "warn", "--without-web"]
    with log.open("wb") as out:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)


@pytest.mark.broker
def test_fausts_own_command_runs_the_worker_and_an_agent_reads_the_table(
    settings: Settings, tmp_path: Path
) -> None:
    """``faust -A ... worker``: the engine beside an agent on a low-rate topic that asks ``table[user]``."""
    admin = AdminClient(settings.kafka.librdkafka())
    asked, answered = f"{settings.topics.prefix}asked", f"{settings.topics.prefix}answered"
    for future in admin.create_topics([NewTopic(asked, 1, 1), NewTopic(answered, 1, 1)]).values():
        future.result()
    log = tmp_path / "faust.log"
    process = run_faust(settings, "tests.broker.agent_app", log, ASKED_TOPIC=asked, ANSWERED_TOPIC=answered)
    try:
        rng = random.Random(1)
        events = [click(rng, n, "u1", 1_735_000_000_000 + n * 1000) for n in range(5)]
        send(settings, [(b"u1", json.dumps(event).encode()) for event in events])
        deadline = time.monotonic() + 60
        while not any(predictions(settings, partition) for partition in range(3)):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
        producer = Producer({**settings.kafka.librdkafka(), "log_level": 0})
        answers: list[Any] = []
        while not answers:
            assert time.monotonic() < deadline, log.read_text()
            producer.produce(asked, b"u1", b"u1")
            producer.flush(5)
            time.sleep(0.5)
            answers = list(read_topic(settings.kafka.librdkafka(), answered))
        assert json.loads(answers[-1].value()) == {
            "user": "u1",
            "events": 5,
            "unknown": None,
            "writable": False,
        }
    finally:
        process.terminate()
        process.wait(20)
        delete_topics(settings.kafka.librdkafka(), [asked, answered])


def last_line(worker: Worker) -> tuple[int, str]:
    code = worker._process.wait(60)
    return code, worker.log.read_text().strip().splitlines()[-1]


@pytest.mark.broker
def test_records_lost_to_retention_end_the_worker_with_both_numbers(settings: Settings, start: Make) -> None:
    """Going on in silence would be data loss; ``on_data_loss=skip`` is the operator's word."""
    worker = start()
    send(settings, traffic(300, seed=41))
    drained(settings, worker)
    worker.stop()
    send(settings, traffic(300, first=300, seed=41))
    client = settings.kafka.librdkafka()
    ends: dict[int, int] = {}
    for message in read_topic(client, settings.clicks_topic):
        ends[message.partition()] = max(ends.get(message.partition(), 0), message.offset() + 1)
    to_delete = [TopicPartition(settings.clicks_topic, partition, end) for partition, end in ends.items()]
    admin = AdminClient(client)
    for future in admin.delete_records(to_delete).values():
        future.result(30)
    code, line = last_line(start(ready=False))
    assert code != 0
    assert "retention has removed records" in line
    assert "FORECLICK_ON_DATA_LOSS=skip" in line


@pytest.mark.broker
def test_a_changelog_with_other_partitions_is_refused(settings: Settings, start: Make) -> None:
    """Rows would be looked for in partitions where they are not."""
    recreate_topics(settings.kafka.librdkafka(), [TopicSpec(settings.changelog_topic, 5)])
    code, line = last_line(start(ready=False))
    assert code != 0
    assert "has 3 partitions" in line
    assert "foreclick state reset" in line


@pytest.mark.broker
def test_a_missing_topic_names_the_command_that_creates_it(settings: Settings, start: Make) -> None:
    """A worker creates no topics: their partitions are a decision."""
    delete_topics(settings.kafka.librdkafka(), [settings.predictions_topic])
    code, line = last_line(start(ready=False))
    assert code != 0
    assert settings.predictions_topic in line
    assert "foreclick topics create" in line
