"""``foreclick bench scaling``: what an event, a user and a restart cost as users and workers grow in number.

Costs are CPU seconds of the worker processes, not seconds on the wall: two workers share the cores with each other, the
broker and the source. Memory, disk and restore are of one worker. Rows are made by the worker from one event a user, so
that what is measured is what the pipeline writes. Results are written after each number of users.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from confluent_kafka import Consumer, TopicPartition

from stream.broker.server_settings import free_port
from stream.settings import Settings
from stream.topic_reader import reader
from tests.bench.bed import Bed, Sizes, bed, disk_bytes, now_ms
from tests.bench.peers.machine import machine, said
from tests.bench.peers.race import OUT
from tests.bench.processes import BenchFailed, BenchWorker, wait_until
from tests.bench.readers import COMMITTED_TIMEOUT_S, ends_of
from tests.bench.report import figure, table, tell
from tests.bench.restore import restored
from tests.bench.traffic import Pair, send_backlog

LOOK_INTERVAL_S = 0.2
TIMEOUT_S = 900.0
# The first micro-batches after a pause are small, the last ones too: neither is what a loaded worker does.
BEGUN, ENDING = 0.1, 0.95
RESTED_S, RESTED_CORES = 2.0, 0.15  # a worker without work takes about .05 of a core
LEAST_SEEN = 0.5  # of the events between two looks: in less there is more of the looks' moments than of cost


HEADER = (
    *("users", "workers", "CPU us an event", "events/s", "RSS MiB", "bytes on disk a user"),
    *("restore s", "records restored", "records/s"),
)


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
        BenchFailed: too little lies between the two.
    """
    base = looks[0].events
    begun = next((look for look in looks if look.events - base >= BEGUN * events), None)
    ending = next((look for look in looks if look.events - base >= ENDING * events), None)
    done = ending.events - begun.events if begun is not None and ending is not None else 0
    if begun is None or ending is None or done < LEAST_SEEN * events:
        raise BenchFailed(f"{events} events were over before they could be watched; take more (--events).")
    return Cost((ending.cpu_s - begun.cpu_s) * 1e6 / done, done / (ending.at_s - begun.at_s))


def run(
    users: Sequence[int], events: int, seed: int = 1, model: Path | None = None, out: Path | None = None
) -> dict[str, float]:
    """Measure every number of users with one worker and with two; prints a table and one JSON line.

    Writes scaling.json and scaling.md into ``out``.
    """
    cases: list[Case] = []
    began_s, load_before = time.monotonic(), os.getloadavg()[0]
    # So that a bench that is told to end takes its processes, topics and folder with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with bed(Sizes(seed=seed), model) as ground:
        about = machine(ground.model, ground.broker.status().source or "unknown", load_before)
        for number in sorted(users):
            cases += _users(ground, number, events)
            made = record(cases, events, about, seed, time.monotonic() - began_s)
            write(made, out or OUT)
    table(f"scaling, {events:,} events of users drawn evenly", HEADER, rows(made))
    print(json.dumps(made), flush=True)
    return {"cost_ratio": made["cost_ratio"]}


def record(
    cases: Sequence[Case], events: int, about: Mapping[str, Any], seed: int, took_s: float
) -> dict[str, Any]:
    """All that is written; ``cost_ratio`` is of the most users against the fewest, one worker."""
    alone = [case.cpu_us_per_event for case in cases if case.workers == 1]
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "took_s": round(took_s),
        "seed": seed,
        "events": events,
        "cost_ratio": round(alone[-1] / alone[0], 3),
        "machine": dict(about),
        "cases": [
            {name: round(value, 2) if isinstance(value, float) else value for name, value in case.items()}
            for case in map(asdict, cases)
        ],
    }


def rows(made: Mapping[str, Any]) -> list[list[float | int | str]]:
    """The table, a row a case."""
    return [["-" if value is None else value for value in case.values()] for case in made["cases"]]


def page(made: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        "# More users, more workers",
        "",
        f"Made by `make bench-scaling` on {made['made'][:10]} in {made['took_s'] / 60:.0f} minutes "
        f"(seed {made['seed']}).",
        "",
        said(made["machine"]),
        "",
        f"| {' | '.join(HEADER)} |",
        "|" + "---|" * len(HEADER),
        *(f"| {' | '.join(map(figure, row))} |" for row in rows(made)),
        "",
        f"An event with the most users costs {made['cost_ratio']:.2f} times what it does with the fewest, one worker.",
        "",
        *_METHOD.format(events=made["events"]).strip().splitlines(),
        "",
    ]
    return "\n".join(lines)


_METHOD = """
- Every user's row is made by the worker from one event; then come {events:,} events of users drawn evenly, through one
  worker, and as many through two. Of few users each has more of them, and with that a fuller history.
- Before they come the stores have compacted what filled them; the events' own compaction counts.
- CPU: of the worker processes together, without broker and source, from a tenth of the events to 95 % of them. Two
  workers share the cores with each other, the broker and the source: their events/s are no more than what is left.
- Disk: of the stopped worker's data directory. Restore: an empty data directory filled from the changelog, which
  holds as many records of a user as compaction has left; from the first partition restoring to all open.
"""


def write(made: Mapping[str, Any], out: Path) -> None:
    """scaling.json and scaling.md."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "scaling.json").write_text(json.dumps(made, indent=1) + "\n")
    (out / "scaling.md").write_text(page(made))
    tell(f"written: {out}/scaling.json, scaling.md")


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
        once = _records(ground, "once", users, users, each_user_once=True)
        send_backlog(ground.client, settings.clicks_topic, once)
        ground.wait_drained(settings, worker)
        _rest([worker])
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
        _rest([first, other])
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


def _rest(workers: Sequence[BenchWorker]) -> None:
    """Until the stores have compacted what filled them: that is no cost of the events that come next."""
    processes = [psutil.Process(worker.pid) for worker in workers]

    def cpu_s() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    def rested() -> bool:
        before = cpu_s()
        time.sleep(RESTED_S)
        return cpu_s() - before < RESTED_S * RESTED_CORES * len(processes)

    wait_until("workers at rest", rested, workers[0].check, TIMEOUT_S)


def _records(ground: Bed, part: str, users: int, events: int, each_user_once: bool = False) -> Iterator[Pair]:
    return ground.traffic(f"{part}-{users}", users).records(
        events, now_ms() - 60_000, 50_000 / events, each_user_once
    )


def _watched(
    ground: Bed, settings: Settings, workers: list[BenchWorker], users: int, events: int, part: str
) -> Cost:
    """Send events to workers that have nothing to do, and look at them from then on until all is committed.

    The events are made before the first is sent and sent beside the looks: two workers are about as fast as a source.
    """
    made = list(_records(ground, part, users, events))
    processes = [psutil.Process(worker.pid) for worker in workers]
    with (
        reader(ground.client, committed=False, group_id=settings.app_id) as probe,
        ThreadPoolExecutor(1) as beside,
    ):
        sources = [TopicPartition(settings.clicks_topic, p) for p in ends_of(probe, settings.clicks_topic)]

        def look() -> Look:
            cpu_s = sum(sum(process.cpu_times()[:2]) for process in processes)
            return Look(time.monotonic(), _committed(probe, sources), cpu_s)

        def finished() -> bool:
            looks.append(look())
            return looks[-1].events - looks[0].events >= events

        looks = [look()]
        sending = beside.submit(send_backlog, ground.client, settings.clicks_topic, iter(made))
        wait_until(f"{events} events", finished, workers[0].check, TIMEOUT_S, LOOK_INTERVAL_S)
        sending.result()
    return cost_of(looks, events)


def _committed(probe: Consumer, sources: list[TopicPartition]) -> int:
    return sum(max(0, at.offset) for at in probe.committed(sources, timeout=COMMITTED_TIMEOUT_S))
