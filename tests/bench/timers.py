"""A partition in which everybody falls silent: how fast timers are said, and what one costs on disk.

The real store, fold, model and rendering in the real nine steps; the transaction alone is left out: what a log writes
is counted and thrown away, so this is the worker's own part. All timers are due at once, the worst that a partition
can meet.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.registry import load_artefact
from models.runtime import StepEngine
from stream.app import spare_the_collector
from stream.clicks_stage import clicks_rounds, clicks_work
from stream.engine.store import Store
from stream.model_step import ServedModel
from stream.rows import RowLayout
from stream.scoring import ClicksRequest
from stream.settings import Settings
from stream.silence import PartitionTimers, moved_timers, timer_key
from stream.stage import Message, Rendered, Row, Stage
from tests.bench.bed import disk_bytes
from tests.bench.processes import BenchFailed
from tests.bench.report import table, tell

AT_ONCE = 4096
CHANGELOG_ID = b"c" * 16
BEGAN_MS = 1_735_000_000_000
DAY_S = 86_400
TELL_S = 2.0


class CountingLog:
    """Counts what would be written."""

    def __init__(self) -> None:
        self.position = -1
        self.messages = self.value_bytes = 0

    async def commit(
        self,
        messages: Mapping[str, Iterable[Message]],
        rows: list[Row],
        next_offset: int,
    ) -> int:
        for _, value, _ in (message for items in messages.values() for message in items):
            self.messages += 1
            self.value_bytes += len(value or b"")
        self.position += len(rows)
        return self.position


def run(settings: Settings, model: Path, folder: Path, count: int, seed: int) -> dict[str, float]:
    """Arm, then let time pass.

    Args:
        settings: of a worker.
        folder: for the stores; empty.
        count: timers.
        seed: draws their deadlines.
    """
    artefact = load_artefact(model)
    served = ServedModel(artefact, StepEngine(artefact, "cpu"))
    layout = RowLayout(len(artefact.actions), artefact.state_width, artefact.window)
    silences_s = np.random.default_rng(seed).integers(DAY_S, 90 * DAY_S, count)
    store = Store(folder / "timers", moved_timers)
    store.open()
    began_s = time.perf_counter()
    arm(store, layout, int(artefact.fingerprint), silences_s)
    armed_s = time.perf_counter() - began_s
    index_bytes = bytes_of_index(folder / "index", silences_s)
    stage, log = partition(settings, served, store)
    stage.pass_time(BEGAN_MS + 91 * DAY_S * 1000)
    tell("timers: all of them are due")
    spare_the_collector()  # as a worker does
    seconds, cpu_s = fire(stage, log, count)
    if log.messages != count:
        raise BenchFailed(f"{log.messages} alerts were made of {count} timers.")
    store.close()
    figures = {"timers_fired_per_s": count / seconds, "timer_bytes": index_bytes / count}
    table(
        f"{count} armed timers of one partition, all due at once, without the transaction",
        ("what", "value"),
        [
            ("seconds to arm them, with their rows", armed_s),
            ("alerts a second", figures["timers_fired_per_s"]),
            ("CPU microseconds an alert, the worker's thread", cpu_s / count * 1e6),
            ("bytes of a timer on disk", figures["timer_bytes"]),
            ("bytes of an alert", log.value_bytes / count),
            *((f"wall microseconds an alert, {step}", s / count * 1e6) for step, s in stage.spent_s.items()),
        ],
    )
    return figures


def fire(stage: Stage[Any], log: CountingLog, count: int) -> tuple[float, float]:
    """Micro-batches until nothing is due; wall seconds, and CPU seconds of this thread."""
    return asyncio.run(_fire(stage, log, count))


async def _fire(stage: Stage[Any], log: CountingLog, count: int) -> tuple[float, float]:
    # One loop for all of them: asyncio.run gives the finished task to signal.signal, which makes text of it, rows and
    # all, and that took half of the time.
    began_s, began_cpu_s, told_s = time.perf_counter(), time.thread_time(), time.perf_counter()
    while stage.due():
        await stage.micro_batch(())
        if (now_s := time.perf_counter()) - told_s > TELL_S:
            told_s = now_s
            tell(f"timers: {log.messages} of {count} said, {log.messages / (now_s - began_s):,.0f} a second")
    return time.perf_counter() - began_s, time.thread_time() - began_cpu_s


def arm(store: Store, layout: RowLayout, fingerprint: int, silences_s: np.ndarray) -> None:
    """Write a row for each silence, with states and windows that do not compress."""
    rng, told_s = np.random.default_rng(0), time.perf_counter()
    rows = layout.blank(AT_ONCE)
    for name in rows.dtype.names or ():
        if name.startswith(("state", "w_", "ring")) and name not in ("state_width", "ring_next"):
            drawn = np.frombuffer(rng.bytes(rows[name].nbytes), np.uint8)
            rows[name] = np.ascontiguousarray(drawn).view(rows[name].dtype.base).reshape(rows[name].shape)
    rows["state"] = rng.uniform(-1, 1, rows["state"].shape)
    rows["w_log_gap"], rows["w_action"] = 1, 0
    rows["w_log_price"] = 1
    rows["fingerprint"], rows["window_count"], rows["life_events"] = fingerprint, 1, 1
    rows["last_ms"] = rows["first_ms"] = BEGAN_MS
    rows["return_millionths"] = 400_000
    for start in range(0, len(silences_s), AT_ONCE):
        mine = silences_s[start : start + AT_ONCE]
        keys = [b"u%07d" % (start + number) for number in range(len(mine))]
        some = rows[: len(mine)]
        some["silence_s"], some["position"] = mine, np.arange(start, start + len(mine))
        written = list(zip(keys, layout.pack(some), strict=True))
        store.apply(written, start + len(mine), CHANGELOG_ID, 0, dict.fromkeys(keys))
        if (now_s := time.perf_counter()) - told_s > TELL_S:
            told_s = now_s
            tell(f"timers: {start + len(mine)} of {len(silences_s)} armed")


def bytes_of_index(folder: Path, silences_s: np.ndarray) -> int:
    """A store of the timers alone, without the rows that they are made of."""
    store = Store(folder)
    store.open()
    for start in range(0, len(silences_s), AT_ONCE):
        mine = silences_s[start : start + AT_ONCE].tolist()
        timers = [
            timer_key(BEGAN_MS + silence_s * 1000, b"u%07d" % (start + number))
            for number, silence_s in enumerate(mine)
        ]
        values = [
            struct.pack("<IIq", silence_s, 400_000, start + number) for number, silence_s in enumerate(mine)
        ]
        store.apply(zip(timers, values, strict=True), start, CHANGELOG_ID, 0)
    store.close(tidy=True)
    return disk_bytes(folder)


def partition(settings: Settings, served: ServedModel, store: Store) -> tuple[Stage[Any], CountingLog]:
    """The nine steps over the store, with the clicks stage's own work."""
    rounds = clicks_rounds(settings, lambda: served, topic="clicks", topic_id=bytes(16))

    async def score(request: ClicksRequest) -> Rendered:
        folded = rounds.fold([request])
        return rounds.render(folded, rounds.step(folded))[0]

    work = clicks_work(
        settings,
        topic="clicks",
        topic_id=bytes(16),
        partition=0,
        score=score,
        timers=PartitionTimers(store, BEGAN_MS),
    )
    log = CountingLog()
    return Stage(work, log, store, lambda: BEGAN_MS, 0, bytes(16), CHANGELOG_ID), log
