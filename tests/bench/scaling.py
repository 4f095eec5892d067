"""``foreclick bench scaling``: what an event, a user and a restart cost as users and workers grow in number.

Costs are CPU seconds of the worker processes, not seconds on the wall: two workers share the cores with each other, the
broker and the source. Memory, disk and restore are of one worker.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
from confluent_kafka import Consumer, TopicPartition

from stream.broker.server_settings import free_port
from stream.settings import Settings
from tests.bench.bed import Bed, Sizes, bed, disk_bytes, now_ms
from tests.bench.peers.machine import machine
from tests.bench.peers.race import OUT
from tests.bench.processes import BenchFailed, BenchWorker, wait_until
from tests.bench.readers import consumer_of, ends_of
from tests.bench.report import table, tell
from tests.bench.restore import restored
from tests.bench.traffic import send_backlog

LOOK_INTERVAL_S = 0.2
TIMEOUT_S = 900.0
# The first micro-batches after a pause are small, the last ones too: neither is what a loaded worker does.
BEGUN, ENDING = 0.1, 0.95


class Look(NamedTuple):
    """Events committed and CPU seconds used by all workers at a moment of ``time.monotonic``."""

    at_s: float
    events: int
    cpu_s: float


class Cost(NamedTuple):
    """What an event cost between two looks."""

    us_per_event: float
    events_per_s: float


@dataclass(frozen=True)
class Case:
    """One number of users with one number of workers; what only one worker is asked is None for two."""

    users: int
    workers: int
    cpu_us_per_event: float
    events_per_s: float
    rss_mib: float
    disk_bytes_per_user: float | None = None
    restore_s: float | None = None
    restored_records: int | None = None
    restored_records_per_s: float | None = None


def cost_of(looks: Sequence[Look], events: int) -> Cost:
    """Cost of an event, from the first look that saw a tenth of the events done to the first that saw nearly all.

    Raises:
        BenchFailed: nothing lies between the two.
    """
    base = looks[0].events
    begun = next((look for look in looks if look.events - base >= BEGUN * events), None)
    ending = next((look for look in looks if look.events - base >= ENDING * events), None)
    if begun is None or ending is None or ending.events <= begun.events:
        raise BenchFailed(f"{events} events were over before they could be watched; take more (--events).")
    done = ending.events - begun.events
    return Cost((ending.cpu_s - begun.cpu_s) * 1e6 / done, done / (ending.at_s - begun.at_s))


def run(
    users: Sequence[int], events: int, seed: int = 1, model: Path | None = None, out: Path | None = None
) -> dict[str, float]:
    """Measure every number of users with one worker and with two; prints a table and one JSON line."""
    cases: list[Case] = []
    with bed(Sizes(seed=seed), model) as ground:
        about = machine(ground.model, ground.broker.status().source or "unknown")
        for number in sorted(users):
            cases += _users(ground, number, events)
    table(
        f"scaling, {events:,} events of users drawn evenly",
        (
            *("users", "workers", "CPU us an event", "events/s", "RSS MiB", "bytes on disk a user"),
            *("restore s", "records", "records/s"),
        ),
        [["-" if value is None else value for value in asdict(case).values()] for case in cases],
    )
    alone = [case.cpu_us_per_event for case in cases if case.workers == 1]
    ratio = alone[-1] / alone[0]
    folder = out or OUT
    folder.mkdir(parents=True, exist_ok=True)
    made = {"cost_ratio": round(ratio, 3), "machine": about, "cases": [_plain(case) for case in cases]}
    (folder / "scaling.json").write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(made), flush=True)
    return {"cost_ratio": ratio}


def _plain(case: Case) -> dict[str, float | int | None]:
    return {
        name: round(value, 2) if isinstance(value, float) else value for name, value in asdict(case).items()
    }


def _users(ground: Bed, users: int, events: int) -> list[Case]:
    settings = ground.topics(f"scaling-{users}")
    second = settings.model_copy(
        update={
            "data_dir": settings.data_dir.with_name(f"{settings.data_dir.name}-second"),
            "http": settings.http.model_copy(update={"port": free_port()}),
        }
    )
    with ground.worker(settings, f"scaling-{users}") as worker:
        worker.wait_ready(lambda text: None)
        tell(f"{users:,} users: one event each")
        _send(ground, settings, "once", users, users, each_user_once=True)
        ground.wait_drained(settings, worker)
        tell(f"{users:,} users: {events:,} events through one worker")
        alone = _watched(ground, settings, [worker], users, events, "one")
        rss_mib = worker.rss_mib
    disk = disk_bytes(settings.data_dir) / users
    shutil.rmtree(settings.data_dir)
    with ExitStack() as stack:
        tell(f"{users:,} users: restore")
        first = stack.enter_context(ground.worker(settings, f"scaling-{users}-restored"))
        began_s, ended_s, records, _ = restored(first)
        other = stack.enter_context(ground.worker(second, f"scaling-{users}-second"))
        wait_until("two workers with open partitions", lambda: _shared(first, other), first.check, TIMEOUT_S)
        tell(f"{users:,} users: {events:,} events through two workers")
        both = _watched(ground, settings, [first, other], users, events, "two")
        rss_of_both_mib = first.rss_mib + other.rss_mib
    seconds = ended_s - began_s
    return [
        Case(users, 1, *alone, rss_mib, disk, seconds, records, records / seconds),
        Case(users, 2, *both, rss_of_both_mib),
    ]


def _shared(*workers: BenchWorker) -> bool:
    """Whether all partitions are open and each worker has some."""
    parts = [worker.stats().get("partitions", {}) for worker in workers]
    states = [part["state"] for found in parts for part in found.values()]
    return all(parts) and len(states) == 8 and set(states) == {"open"}


def _send(
    ground: Bed, settings: Settings, part: str, users: int, events: int, each_user_once: bool = False
) -> None:
    records = ground.traffic(f"{part}-{users}", users).records(
        events, now_ms() - 60_000, 50_000 / events, each_user_once
    )
    send_backlog(ground.client, settings.clicks_topic, records)


def _watched(
    ground: Bed, settings: Settings, workers: list[BenchWorker], users: int, events: int, part: str
) -> Cost:
    """Send events to workers that have nothing to do, and look at them until all is committed."""
    probe = consumer_of(ground.client, **{"group.id": settings.app_id})
    processes = [psutil.Process(worker.pid) for worker in workers]

    def look() -> Look:
        cpu_s = sum(sum(process.cpu_times()[:2]) for process in processes)
        return Look(time.monotonic(), _committed(probe, sources), cpu_s)

    try:
        sources = [TopicPartition(settings.clicks_topic, p) for p in ends_of(probe, settings.clicks_topic)]
        before = look().events
        _send(ground, settings, part, users, events)
        looks = [look()._replace(events=before), look()]

        def finished() -> bool:
            looks.append(look())
            return looks[-1].events - before >= events

        wait_until(f"{events} events", finished, workers[0].check, TIMEOUT_S, LOOK_INTERVAL_S)
    finally:
        probe.close()
    return cost_of(looks, events)


def _committed(probe: Consumer, sources: list[TopicPartition]) -> int:
    return sum(max(0, at.offset) for at in probe.committed(sources, timeout=10))
