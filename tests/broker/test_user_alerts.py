"""Fake accounts in a running pipeline: from clicks through both stages to one alert each, whatever ends a worker."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from models.registry import bundled
from models.simulator.simulate import simulate
from stream.audit import read_topic
from stream.outputs import load_schema
from stream.settings import Settings
from stream.stage import FENCE_KEY
from stream.topics import create
from tests.broker.conftest import Make
from tests.broker.test_groups import alerts
from tests.broker.test_pipeline import drained, send

START_MS = 1_767_225_600_000
ATTACKERS = 8


@pytest.fixture(scope="module")
def model() -> Path:
    return bundled()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    with_groups = settings.groups.model_copy(update={"kinds": "user"})
    settings = settings.model_copy(update={"groups": with_groups})
    create(settings)
    return settings


def log() -> list[dict[str, Any]]:
    """Half a week of a shop's people, and accounts that order the same two things nine times within a minute."""
    simulation = simulate(150, 4000, 3, start_ms=START_MS, days=3.5)
    people = {label.user_id for label in simulation.labels if label.label == "human"}
    events = [msgspec.to_builtins(event) for event in simulation.events if event.user_id in people]
    for number in range(ATTACKERS):
        for n in range(27):
            attack: dict[str, Any] = {
                "user_id": f"attacker-{number}",
                "event_time_ms": START_MS + (number * 9 + 1) * 3_600_000 + n * 1_500,
                "action": ("view", "cart", "purchase")[n % 3],
                "item_id": f"target-{n // 3 % 2}",
            }
            if n % 3 == 2:
                attack["order_id"] = f"o{number}-{n}"
            events.append(attack)
    return sorted(events, key=lambda event: event["event_time_ms"])


@pytest.mark.broker
def test_bursting_orders_are_flagged_once_and_nobody_else_through_a_kill(
    settings: Settings, start: Make, tmp_path: Path
) -> None:
    """Kill -9 in the middle and an empty disk: one alert an attacker, at the same event, and none of the people."""
    records = [(event["user_id"].encode(), json.dumps(event).encode()) for event in log()]
    half = len(records) // 2
    first = start()
    send(settings, records[:half])
    while first.counters().get("foreclick_groups_events_total", 0) == 0:
        first.check()
        time.sleep(0.05)
    first._process.kill()
    first._process.wait()
    send(settings, records[half:])
    second = start(data_dir=tmp_path / "empty")
    drained(settings, second)
    deadline = time.monotonic() + 60
    while second.stats()["groups"]["lag_records"]:
        assert time.monotonic() < deadline, second.stats()
        time.sleep(0.2)
    found = alerts(settings)
    assert sorted(alert["subject"] for alert in found) == [
        f"attacker-{number}" for number in range(ATTACKERS)
    ]
    validator = jsonschema.Draft202012Validator(load_schema("alerts.fraud"))
    for alert in found:
        validator.validate(alert)
        number = int(alert["subject"].removeprefix("attacker-"))
        assert alert["event_time_ms"] - START_MS - (number * 9 + 1) * 3_600_000 <= 30_000
        assert {"haste", "orders_at_once"} <= {reason["code"] for reason in alert["reasons"]}
        assert alert["evidence"][0]["order_id"].startswith(f"o{number}-")
    messages = read_topic(settings.kafka.librdkafka(), settings.predictions_topic)
    scored = [json.loads(each.value()) for each in messages if each.key() != FENCE_KEY]
    assert len(scored) == len(records)
    orders = [one for one in scored if one["fake_order"] is not None]
    assert len(orders) == sum(event["action"] == "purchase" for event in log())
    for one in orders:
        assert one["fake_order"] == {"score": one["anomaly"]["score"], "probability": None}
