"""The labels stage in real workers: joined once with what was flagged, through a kill -9 and an empty disk."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from prometheus_client.parser import text_string_to_metric_families

from models.registry import untrained
from stream.dead_letters import parse
from stream.demo import Worker
from stream.settings import Settings
from stream.topic_reader import CommittedRecord, read_all
from stream.topics import create, existing
from tests.broker.conftest import Make
from tests.command_line import Ran, foreclick

pytestmark = pytest.mark.broker

START_MS = 1_577_836_800_000
HOUR_MS = 3_600_000
HOSTILE = 'u\x1b[2J"<b>' + "ü" * 100


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("models"))


def order(user: str, shop: str, order_id: str, at_ms: int) -> tuple[str, bytes]:
    event = {
        "user_id": user,
        "event_time_ms": START_MS + at_ms,
        "action": "purchase",
        "event_id": f"e-{order_id}",
    }
    return user, json.dumps(event | {"shop_id": shop, "order_id": order_id}).encode()


def label(user: str, order_id: str, said: str, time_ms: int = 9) -> dict[str, Any]:
    return {
        "subject": "order",
        "id": order_id,
        "user_id": user,
        "label": said,
        "time_ms": time_ms,
        "by": "mary",
    }


def send(settings: Settings, topic: str, records: list[tuple[str, bytes]]) -> None:
    quiet = {"enable.idempotence": True, "partitioner": "murmur2_random", "log_level": 0}
    producer = Producer({**settings.kafka.librdkafka(), **quiet})
    for key, value in records:
        producer.produce(topic, value, key.encode())
    assert producer.flush(30) == 0


def read(settings: Settings, topic: str) -> list[CommittedRecord]:
    return list(read_all(settings.kafka.librdkafka(), topic, existing(settings, topic).partitions))


def command(settings: Settings, *arguments: object) -> Ran:
    """A command beside the worker."""
    return foreclick(
        *arguments,
        KAFKA__BOOTSTRAP_SERVERS=settings.kafka.bootstrap_servers,
        TOPICS__PREFIX=settings.topics.prefix,
        APP_ID=settings.app_id,
        DATA_DIR=settings.data_dir,
        GROUPS__ENABLED="true",
        LABELS__ENABLED="true",
    )


def import_labels(settings: Settings, file: Path, labels: list[dict[str, Any]]) -> Ran:
    file.write_text("".join(json.dumps(each) + "\n" for each in labels))
    return command(settings, "labels", "import", file, "--json")


def put_label(settings: Settings, said: dict[str, Any]) -> Ran:
    by = ("--user", said["user_id"], "--by", said["by"], "--time-ms", said["time_ms"])
    return command(settings, "labels", "put", said["subject"], said["id"], said["label"], *by, "--json")


def told(worker: Worker, name: str) -> dict[tuple[str, ...], float]:
    """Values of a metric by the values of its labels."""
    families = text_string_to_metric_families(worker.get("/metrics")[1].decode())
    return {
        tuple(each.labels.values()): each.value
        for one in families
        for each in one.samples
        if each.name == name
    }


def until(worker: Worker, holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        worker.check()
        assert time.monotonic() < deadline, (what, worker.stats())
        time.sleep(0.2)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    settings = settings.model_copy(
        update={
            "groups": settings.groups.model_copy(update={"enabled": True, "quiet_s": 1.0}),
            "labels": settings.labels.model_copy(
                update={"enabled": True, "audit_rate": 1.0, "calibrate_from": 3}
            ),
        }
    )
    create(settings)
    return settings


def flagged(settings: Settings) -> list[dict[str, Any]]:
    return [json.loads(record.value or b"") for record in read(settings, settings.alerts_fraud_topic)]


def test_labels_are_joined_once_with_alerts_through_a_kill_and_an_empty_disk(
    settings: Settings, start: Make, tmp_path: Path
) -> None:
    """Orders, alerts, audits and labels meet in one row a user; precision, recall and dead letters are exact."""
    brushed = [(HOSTILE, "s1", f"o{number}", number * 60_000) for number in range(4)]
    honest = [(f"u{number}", f"s{number % 3 + 5}", f"h{number}", HOUR_MS * number) for number in range(8)]
    first = start()
    send(settings, settings.clicks_topic, [order(*each) for each in brushed + honest])
    # Two days later, so that every window is complete.
    send(settings, settings.clicks_topic, [order("late", "s9", "l1", 48 * HOUR_MS)])
    until(first, lambda: len(flagged(settings)) == 1, "the alert")
    until(
        first,
        lambda: ("order_brushing",) in told(first, "foreclick_alert_precision"),
        "the note of the alert",
    )
    assert flagged(settings)[0]["probability"] is None
    assert math.isnan(told(first, "foreclick_alert_precision")["order_brushing",])
    assert math.isnan(told(first, "foreclick_alert_recall")["order_brushing", "order"])

    said = [label(HOSTILE, "o0", "fraud"), label(HOSTILE, "o1", "genuine"), label(HOSTILE, "o1", "fraud", 10)]
    said += [label(HOSTILE, "o2", "genuine"), label("u1", "h1", "genuine"), label("u2", "h2", "fraud")]
    said += [label("u1", "nothing", "fraud")]
    assert put_label(settings, said[0]).json["written"] == 1
    # In the middle: the label may be committed, in flight or unread.
    first._process.kill()
    first._process.wait()
    assert import_labels(settings, tmp_path / "labels", said[1:]).json["written"] == len(said) - 1
    send(settings, settings.labels_topic, [("u3", b'{"subject": "order"}')])
    second = start(data_dir=tmp_path / "empty")
    until(second, lambda: len(read(settings, settings.dead_letters_topic)) == 2, "the dead letters")
    until(second, lambda: second.stats()["labels"]["lag_records"] == 0, "the labels' end")

    assert told(second, "foreclick_alert_precision")["order_brushing",] == pytest.approx(2 / 3, abs=1e-6)
    assert told(second, "foreclick_alert_labelled") == {
        ("order_brushing", "right"): 2,
        ("order_brushing", "wrong"): 1,
    }
    # All are drawn: 8 honest orders and the late one, of which half of those labelled are fraud.
    recall = (4 * 2 / 3) / (4 * 2 / 3 + 9 / 2)
    assert told(second, "foreclick_alert_recall")["order_brushing", "order"] == pytest.approx(
        recall, abs=1e-6
    )
    letters = [parse(record.headers) for record in read(settings, settings.dead_letters_topic)]
    assert sorted(letter.reason for letter in letters if letter) == ["missing_field", "unknown_subject"]
    audits = Counter(
        json.loads(record.value or b"")["id"] for record in read(settings, settings.alerts_audit_topic)
    )
    assert set(audits.values()) == {1}
    assert {f"audit/order/h{number}" for number in range(8)} <= set(audits)
    assert {f"audit/user/u{number}" for number in range(8)} <= set(audits)

    waiting = command(settings, "labels", "audit", "--json").out.splitlines()
    # Nine orders and nine users were drawn and are not flagged; two of the orders have a label.
    assert json.loads(waiting[-1]) == {"unlabelled": 16}
    assert {"user_id": "u1", "subject_type": "user", "subject": "u1"} in map(json.loads, waiting)
    assert not any('"h1"' in line for line in waiting)

    # Three labels of what it flagged are enough here: the next alert says how probable it is.
    again = [order("u9", "s2", f"p{number}", 72 * HOUR_MS + number * 60_000) for number in range(4)]
    send(settings, settings.clicks_topic, again)
    send(settings, settings.clicks_topic, [order("later", "s9", "l2", 120 * HOUR_MS)])
    until(second, lambda: len(flagged(settings)) == 2, "the alert with a probability")
    (alert,) = (each for each in flagged(settings) if each["subject"] == "s2")
    assert alert["probability"] == pytest.approx((2 + 1) / (3 + 2))

    # People wrote the labels: a fresh start forgets neither them nor what is known of their alerts.
    second.stop()
    before = command(settings, "labels", "audit", "--json").json
    assert command(settings, "state", "reset", "--to", "latest", "--yes", "--json").code == 0
    assert command(settings, "labels", "audit", "--json").json == before
