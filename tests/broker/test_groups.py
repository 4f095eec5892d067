"""The second stage in real workers: each shop's alerts once, whatever ends a worker meanwhile."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from models.registry import untrained
from stream.alerts import Alert
from stream.audit import read_topic
from stream.broker.server_settings import free_port
from stream.buyer_rings import BuyerRings
from stream.demo import Worker
from stream.events import Event
from stream.group_detectors import Group, GroupEvent, hold_back
from stream.item_farms import ItemFarms
from stream.order_brushing import OrderBrushing, ShopLog
from stream.outputs import load_schema
from stream.settings import Settings
from stream.stage import FENCE_KEY
from stream.topics import create
from tests.broker.conftest import Make
from tests.broker.test_pipeline import send

START_MS = 1_577_836_800_000
DAY_MS = 86_400_000
SLICE, SLICE_S = 20, 0.7  # records, seconds: lasts for a minute


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("models"))


@pytest.fixture
def settings(settings: Settings) -> Settings:
    with_groups = settings.groups.model_copy(update={"kinds": "shop,item", "quiet_s": 4.0})
    settings = settings.model_copy(update={"groups": with_groups})
    create(settings)
    return settings


def orders(seed: int, count: int = 3000) -> list[dict[str, Any]]:
    """Orders of two days in eight shops, three brushed now and then; some come up to 20 min late, some twice.

    Eight accounts order one item four times, in shops of their own; the others' items are rarely ordered twice.
    """
    rng = random.Random(seed)
    found = []
    for number in range(32):
        at_ms = START_MS + number * 3_600_000
        farmed = {
            "user_id": f"farmer-{number % 8}",
            "event_id": f"f{number}",
            "event_time_ms": at_ms,
            "action": "purchase",
            "shop_id": f"farm-{number}",
            "order_id": f"farm-{number}",
            "item_id": "farmed",
        }
        found.append((at_ms, farmed))
    for number in range(count):
        shop = rng.randrange(8)
        at_ms = START_MS + int(2 * DAY_MS * number / count)
        hour = (at_ms - START_MS) // 3_600_000
        brushed = shop < 3 and hour % 6 == shop
        order = {
            "user_id": f"u{shop}-{hour}-{rng.randrange(2)}" if brushed else f"u{rng.randrange(4000)}",
            "event_id": f"e{number}",
            "event_time_ms": at_ms,
            "action": "purchase",
            "shop_id": f"s{shop}",
            "order_id": f"o{number}",
            "item_id": f"i{number % 500}",
        }
        found.append((at_ms + rng.randrange(1_200_000), order))
        if rng.random() < 0.05:
            found.append((at_ms + rng.randrange(1_200_000), {**order, "event_id": f"again-{number}"}))
    return [order for _, order in sorted(found, key=lambda pair: pair[0])]


def by_the_rule(log: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The alerts of the offline rule, by id, positions left out."""
    rule = OrderBrushing("clicks")
    events = [Event(**order) for order in log]
    found = [json.loads(alert.as_json()) for alert in ShopLog(rule).alerts(enumerate(events))]
    return without_positions([*found, *by_the_farm(log)])


def by_the_farm(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those about the farmed item and its buyers' meetings: of one fold over each, what says something new."""
    orders = sorted(
        (order for order in log if order["item_id"] == "farmed"), key=lambda order: order["event_time_ms"]
    )
    events = [
        GroupEvent(
            order["event_time_ms"], order["user_id"], "purchase", 0, number, order_id=order["order_id"]
        )
        for number, order in enumerate(orders)
    ]
    fold = ItemFarms("").fold(Group("item", "farmed"), None, events, START_MS + 3 * DAY_MS)
    sent = new_ones(fold.alerts)
    assert sent
    for farmer in sorted({meeting.user_id for meeting in fold.meetings}):
        told = [meeting for meeting in fold.meetings if meeting.user_id == farmer]
        ring = BuyerRings("").fold(Group("met", farmer), None, told, START_MS + 3 * DAY_MS)
        assert ring.alerts
        sent += new_ones(ring.alerts)
    return sent


def new_ones(alerts: list[Alert]) -> list[dict[str, Any]]:
    """What of a detector's alerts on one subject says something new."""
    said, sent = None, []
    for found in alerts:
        said, alert = hold_back(said, found, 7 * DAY_MS)
        sent += [] if alert is None else [json.loads(alert.as_json())]
    return sent


def without_positions(alerts: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    for alert in alerts:
        for each in alert["evidence"]:
            del each["source"]
        if alert["kind"] in {"click_farm", "buyer_ring"}:  # whose ids name positions
            alert["id"] = f"{alert['subject']} at {alert['event_time_ms']}"
            alert["supersedes"] = alert["supersedes"] is not None
    found = {alert["id"]: alert for alert in alerts}
    assert len(found) == len(alerts), "an alert stands twice in the topic"
    return found


def alerts(settings: Settings) -> list[dict[str, Any]]:
    messages = read_topic(settings.kafka.librdkafka(), settings.alerts_fraud_topic)
    return [json.loads(message.value()) for message in messages if message.key() != FENCE_KEY]


def complete(settings: Settings, worker: Worker, expected: int) -> list[dict[str, Any]]:
    """The alerts when there are as many as expected, and some seconds later, when there might be more."""
    deadline = time.monotonic() + 120
    while len(alerts(settings)) < expected:
        worker.check()
        assert time.monotonic() < deadline, (len(alerts(settings)), expected, worker.stats())
        time.sleep(0.5)
    time.sleep(2)
    return alerts(settings)


@contextlib.contextmanager
def steadily(settings: Settings, records: list[tuple[bytes, bytes]]) -> Iterator[None]:
    """Send some records a moment, and what is left on leaving: a log that pauses is taken for one that has ended."""
    left, hurry = records, threading.Event()

    def send_all() -> None:
        nonlocal left
        while left:
            most = len(left) if hurry.wait(SLICE_S) else SLICE
            send(settings, left[:most])
            left = left[most:]

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send_all)
        try:
            yield
        finally:
            hurry.set()
            sending.result()


def forgotten(settings: Settings, user: bytes) -> bool:
    """Whether the newest rows of groups hold nothing of a user."""
    rows: dict[bytes, bytes | None] = {}
    for message in read_topic(settings.kafka.librdkafka(), settings.groups_changelog_topic):
        rows[message.key()] = message.value()
    return not any(row is not None and (user in key or user in row) for key, row in rows.items())


@pytest.mark.broker
def test_each_shop_and_item_is_said_once_through_a_kill_a_rebalance_and_an_empty_disk(
    settings: Settings, start: Make, tmp_path: Path
) -> None:
    """Late and repeated orders, a kill -9 and a second machine: the alerts are those of the offline core, once each.

    Then a tombstone: what a user did is in no row of groups any more.
    """
    log = orders(1)
    expected = by_the_rule(log)
    assert len(expected) > 5
    records = [(order["user_id"].encode(), json.dumps(order).encode()) for order in log]
    first = start()
    send(settings, records[:1000])
    while first.counters().get("foreclick_groups_events_total", 0) == 0:
        time.sleep(0.05)
    first._process.kill()
    first._process.wait()
    with steadily(settings, records[1000:]):
        second = start(data_dir=tmp_path / "empty")
        third = start(
            data_dir=tmp_path / "third",
            http=settings.http.model_copy(update={"port": free_port()}),
        )
        third.stop()
    found = complete(settings, second, len(expected))
    validator = jsonschema.Draft202012Validator(load_schema("alerts.fraud"))
    for alert in found:
        validator.validate(alert)
    assert without_positions(found) == expected
    counters = second.counters()
    assert counters["foreclick_groups_late_events_total"] == 0
    assert counters["foreclick_groups_position_mismatch_total"] == 0
    assert second.stats()["groups"]["open"] == settings.groups.partitions
    assert second.get("/readyz")[0] == 200
    assert not forgotten(settings, b"farmer-3")
    send(settings, [(b"farmer-3", None)])
    deadline = time.monotonic() + 60
    while not forgotten(settings, b"farmer-3"):
        second.check()
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert not forgotten(settings, b"farmer-4")


@pytest.mark.broker
def test_without_groups_no_second_stage_runs_and_none_of_its_topics_is_needed(
    settings: Settings, start: Make
) -> None:
    """The switch is one setting."""
    worker = start(groups=settings.groups.model_copy(update={"enabled": False}))
    assert worker.stats()["groups"] is None
    assert not any(read_topic(settings.kafka.librdkafka(), settings.groups_topic))
