"""Churn through real workers: one alert a silence, whatever happens to them, and those of the offline core."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from models.registry import untrained
from stream.audit import read_topic
from stream.broker.server_settings import free_port
from stream.engine.store import Store
from stream.outputs import load_schema
from stream.settings import Settings
from stream.silence import TIMER_PREFIX, moved_timers, said_end, timers_of
from stream.stage import FENCE_KEY
from tests.broker.conftest import Make
from tests.broker.test_pipeline import drained, offline, send

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("models"), categories=("c0", "c1"), hidden=16)


def visits(seed: int) -> list[tuple[bytes | None, bytes | None]]:
    """A year of forty users: visits of two clicks or orders with long breaks between them; some are erased."""
    rng = random.Random(seed)
    events = []
    for user in range(40):
        at_ms = 1_700_000_000_000 + rng.randrange(30 * DAY_MS)
        while at_ms < 1_700_000_000_000 + 365 * DAY_MS:
            at_ms += int(rng.expovariate(1 / 30) * DAY_MS)
            events += [(at_ms, user, "view"), (at_ms + 60_000, user, "purchase" if user % 2 else "cart")]
    records: list[tuple[bytes | None, bytes | None]] = []
    for number, (at_ms, user, action) in enumerate(sorted(events)):
        event = {"user_id": f"u{user}", "event_id": f"e{number}", "event_time_ms": at_ms, "action": action}
        records.append((event["user_id"].encode(), json.dumps(event).encode()))  # type: ignore[attr-defined]
        if rng.random() < 0.01:
            records.append((f"u{rng.randrange(40)}".encode(), None))
    return records


def of_partition(settings: Settings, topic: str, partition: int) -> list[Any]:
    messages = [m for m in read_topic(settings.kafka.librdkafka(), topic) if m.partition() == partition]
    return sorted((m for m in messages if m.key() != FENCE_KEY), key=lambda m: m.offset())


@pytest.mark.broker
def test_one_alert_a_silence_through_kill_rebalance_and_restore(
    settings: Settings, start: Make, tmp_path: Path
) -> None:
    """Key, value and headers of every alert are the offline core's, in its order.

    A worker is killed, its heir begins with an empty disk, another joins and leaves. The timers left in the stores are
    those of the rows, also when alerts were switched off meanwhile.
    """
    churn = settings.churn.model_copy(update={"horizon_s": 5 * 86_400})
    settings = settings.model_copy(update={"churn": churn})
    records = visits(1)
    third = len(records) // 3
    first = start(churn=churn)
    send(settings, records[:third])
    while first.counters().get("foreclick_events_total", 0) == 0:
        time.sleep(0.02)
    first._process.kill()
    first._process.wait()
    second = start(churn=churn, data_dir=tmp_path / "empty")
    send(settings, records[third : 2 * third])
    port = settings.http.model_copy(update={"port": free_port()})
    joined = start(churn=churn, data_dir=tmp_path / "third", http=port)
    send(settings, records[2 * third :])
    joined.stop()
    drained(settings, second)
    counted = second.counters()
    assert counted["foreclick_source_silent"] == 0
    second.stop()

    kinds: Counter[str] = Counter()
    identities: list[bytes] = []
    for partition in range(settings.topics.partitions):
        written = of_partition(settings, settings.alerts_churn_topic, partition)
        assert [(m.key(), m.value(), m.headers()) for m in written] == offline(
            settings, partition, settings.alerts_churn_topic
        )
        identities += [dict(m.headers())["ce_id"] for m in written]
        kinds.update(json.loads(m.value())["kind"] for m in written)
    assert len(set(identities)) == len(identities)
    assert kinds["churn.expected"] > 20
    assert kinds["churn.returned"] > 10
    required = load_schema("alerts.churn")["required"]
    assert all(list(json.loads(m.value())) == required for m in written)

    # Rows go on while nobody is missed, and some are erased: their timers go with them.
    off = start(churn=churn.model_copy(update={"alerts": False}), data_dir=tmp_path / "empty")
    send(
        settings, [(key, None if number % 2 else value) for number, (key, value) in enumerate(records[-30:])]
    )
    drained(settings, off)
    off.stop()
    for partition in range(settings.topics.partitions):
        store = Store(tmp_path / "empty" / "state" / str(partition), moved_timers)
        store.open()
        said = said_end(store.said_before())
        waiting = {entry for entry in timers_of(*map(list, zip(*store.items(), strict=True))) if entry}
        held = set(store.reserved(TIMER_PREFIX))
        assert {entry for entry in waiting if entry[0] >= said} <= held <= waiting
        store.close()


@pytest.mark.broker
def test_an_idle_partition_is_moved_on_while_others_advance_and_a_silent_source_is_not(
    settings: Settings, start: Make
) -> None:
    """Live: a user whose partition has gone quiet is missed as soon as another partition goes on, and not before."""
    churn = settings.churn.model_copy(
        update={"horizon_s": 1_800, "threshold": 0.001, "idle_s": 1}
    )  # everybody who may not be back within half an hour, after half an hour
    worker = start(churn=churn)
    homes: dict[int, str] = {}
    now_ms = int(time.time() * 1000)
    missed = [click(number, f"u{number}", now_ms - 40 * 60_000) for number in range(12)]
    send(settings, missed)
    drained(settings, worker)
    for partition in range(settings.topics.partitions):
        for message in of_partition(settings, settings.clicks_topic, partition):
            homes.setdefault(partition, message.key().decode())
    deadline_s = time.monotonic() + 60
    while worker.counters()["foreclick_source_silent"] == 0:
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
    everywhere = range(settings.topics.partitions)
    assert not any(of_partition(settings, settings.alerts_churn_topic, partition) for partition in everywhere)

    going, *idle = sorted(homes)
    number = 100
    while not all(of_partition(settings, settings.alerts_churn_topic, partition) for partition in idle):
        assert time.monotonic() < deadline_s
        number += 1
        send(settings, [click(number, homes[going], int(time.time() * 1000))])
        time.sleep(0.3)
    subjects = {
        json.loads(message.value())["subject"]
        for partition in idle
        for message in of_partition(settings, settings.alerts_churn_topic, partition)
    }
    assert homes[going] not in subjects
    assert {homes[partition] for partition in idle} <= subjects
    assert 'foreclick_alerts_total{kind="churn.expected"}' in worker.get("/metrics")[1].decode()


def click(number: int, user: str, time_ms: int) -> tuple[bytes | None, bytes | None]:
    event = {"user_id": user, "event_id": f"e{number}", "event_time_ms": time_ms, "action": "view"}
    return user.encode(), json.dumps(event).encode()
