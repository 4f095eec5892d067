"""What the stage of labels costs a worker, beside the same work without it; no broker.

Two workers' stages in one process, all but the transactions: clicks with groups and churn timers, the second stage, and
in one of them the notes of orders and the stage that joins them. They take the same micro-batches in turns, a tenth of
a second each, and processor time is counted, so whatever else the machine does meanwhile counts on both sides. What is
written is made into record batches as for the broker, and what a later stage reads is read from those.

Left out is what transactions cost: two of labels a second, and as many partitions more in each of those of groups.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from aiokafka.record.memory_records import MemoryRecords

from models.registry import load_artefact
from models.runtime import StepEngine
from stream.alert_calibration import AlertCalibration
from stream.app import spare_the_collector
from stream.clicks_stage import clicks_rounds, clicks_work
from stream.engine.batches import batches_of
from stream.engine.store import Store
from stream.group_erasure import ERASING_KEY, Erasures
from stream.group_sources import Sources
from stream.groups_app import detectors_of, group_records, told_kinds
from stream.groups_stage import GroupsWork
from stream.label_notes import NotesOf, click_notes, group_notes
from stream.labels_app import noting
from stream.labels_stage import LabelsWork
from stream.model_step import ServedModel
from stream.scoring import ClicksRequest
from stream.settings import Settings
from stream.silence import PartitionTimers, moved_timers
from stream.stage import Chunk, Message, Rendered, Row, Stage, Work
from tests.bench.alerts import with_shops
from tests.bench.pipeline import HISTORY_MS
from tests.bench.report import table, tell
from tests.bench.traffic import Traffic

AT_ONCE = 2048  # events of a micro-batch, as of a worker with a backlog
A_SECOND = 10  # micro-batches of clicks between two of the later stages, which wait for a second
CHANGELOG_ID = b"c" * 16
TELL_S = 5.0


class Fetched(NamedTuple):
    """A record as stages see it."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[Any, ...] = ()
    timestamp: int = 0


class BatchingLog:
    """Makes record batches as for the broker, and keeps those of the topics that a later stage reads."""

    def __init__(self, read: Iterable[str]) -> None:
        self.position = self.bytes = 0
        self.kept: dict[str, list[bytes]] = {topic: [] for topic in read}

    async def commit(
        self, messages: Mapping[str, Iterable[Message]], rows: list[Row], next_offset: int
    ) -> int:
        del next_offset  # an offset's commit is the broker's work
        written = {**messages, "changelog": [(key, row, []) for key, row in rows]}
        for topic, items in written.items():
            for batch in batches_of(items, 0):
                sealed = bytes(batch.builder.build())
                self.bytes += len(sealed)
                if topic in self.kept:
                    self.kept[topic].append(sealed)
        self.position += len(rows)
        return self.position


class Worker:
    """The stages of a worker with one partition each.

    Args:
        folder: for the stores; empty.
        labels: with the notes and the stage of labels.
    """

    def __init__(self, settings: Settings, served: ServedModel, folder: Path, now_ms: int, *, labels: bool):
        self.settings, self.now_ms, self.labels = settings, now_ms, labels
        self.cpu_s = {"clicks": 0.0, "groups": 0.0, "labels": 0.0}
        self.orders = 0
        self._stores = {
            name: Store(folder / name, moved_timers if name == "clicks" else None) for name in self.cpu_s
        }
        for store in self._stores.values():
            store.open()
        told = {f"{settings.groups_topic}/0": "groups", f"{settings.labels_topic}/0": "labels"}
        self._told = told
        self._log = BatchingLog(told)
        kinds = told_kinds(settings)
        self._stages = {
            "clicks": self._stage(
                "clicks", self._clicks(served), click_notes(kinds, settings.labels.audit_rate)
            ),
            "groups": self._stage("groups", self._groups(), group_notes(kinds)),
            "labels": self._stage("labels", self._labels()),
        }

    async def take(self, records: list[Fetched]) -> None:
        """A micro-batch of clicks."""
        await self._timed("clicks", records)

    async def catch_up(self) -> None:
        """The later stages read what they were told."""
        for topic, name in self._told.items():
            began_s = time.process_time()
            batches, self._log.kept[topic] = self._log.kept[topic], []
            stage = self._stages[name]
            records = list(_records(batches, stage.next_offset))
            self.cpu_s[name] += time.process_time() - began_s
            if records:
                await self._timed(name, records)

    async def _timed(self, name: str, records: list[Fetched]) -> None:
        began_s = time.process_time()
        stage = self._stages[name]
        await stage.micro_batch([Chunk(records, stage.next_offset, stage.next_offset + len(records))])
        self.cpu_s[name] += time.process_time() - began_s

    def close(self) -> None:
        for store in self._stores.values():
            store.close()

    # ------------------------------------------------------------------ stages

    def _stage(self, name: str, work: Work[Any], notes: NotesOf | None = None) -> Stage[Any]:
        if self.labels and notes is not None:
            outputs = {f"{self.settings.labels_topic}/0": 1}
            work = noting(self.settings, outputs, work, notes, AlertCalibration)
        return Stage(work, self._log, self._stores[name], lambda: self.now_ms, 0, bytes(16), CHANGELOG_ID)

    def _clicks(self, served: ServedModel) -> Work[Any]:
        settings = self.settings
        rounds = clicks_rounds(settings, lambda: served, topic=settings.clicks_topic, topic_id=bytes(16))

        async def score(request: ClicksRequest) -> Rendered:
            folded = rounds.fold([request])
            return rounds.render(folded, rounds.step(folded))[0]

        return clicks_work(
            settings,
            topic=settings.clicks_topic,
            topic_id=bytes(16),
            partition=0,
            score=score,
            timers=PartitionTimers(self._stores["clicks"], 0),
            groups=group_records(settings, 1),
        )

    def _groups(self) -> Work[Any]:
        settings, store = self.settings, self._stores["groups"]
        return GroupsWork(
            detectors=detectors_of(settings, settings.clicks_topic),
            sources=Sources(1),
            late_limit_ms=settings.late_limit_s * 1000,
            cool_down_ms=settings.groups.cool_down_s * 1000,
            alerts_topic=settings.alerts_fraud_topic,
            topic_id="bench",
            source="/foreclick/clicks",
            fetch=store.get,
            erasures=Erasures((key for key, _ in store.reserved(ERASING_KEY)), store.page),
        )

    def _labels(self) -> Work[Any]:
        settings = self.settings

        def count(counts: Any, *_: float) -> None:
            self.orders += counts.orders

        return LabelsWork(
            topic=settings.labels_topic,
            topic_id="bench",
            source="/foreclick/labels",
            partition=0,
            dead_letters_topic=settings.dead_letters_topic,
            audit_topic=settings.alerts_audit_topic,
            audit_rate=settings.labels.audit_rate,
            tally=None,
            observe=count,
        )


def _records(batches: Iterable[bytes], offset: int) -> Iterable[Fetched]:
    for sealed in batches:
        found = MemoryRecords(sealed)
        while (batch := found.next_batch()) is not None:
            for record in batch:
                yield Fetched(0, offset, record.key, record.value)
                offset += 1


def run(
    settings: Settings, model: Path, folder: Path, users: int, events: int, seed: int
) -> dict[str, float]:
    """The same backlog through both, in turns.

    Args:
        settings: of a worker, everything on.
        folder: for the stores; empty.
    """
    artefact = load_artefact(model)
    served = ServedModel(artefact, StepEngine(artefact, "cpu"))
    now_ms = int(time.time() * 1000)
    workers = [
        Worker(settings, served, folder / name, now_ms, labels=name == "with") for name in ("without", "with")
    ]
    categories = tuple(artefact.categories.names) or tuple(f"c{i}" for i in range(100))
    pairs = with_shops(
        Traffic(users, categories, "labels", seed).records(events, now_ms - HISTORY_MS, HISTORY_MS / events)
    )
    records = [Fetched(0, offset, key, value) for offset, (key, value) in enumerate(pairs)]
    spare_the_collector()  # as a worker does
    asyncio.run(_through(workers, records, tell))
    for worker in workers:
        worker.close()
    without, with_ = ({part: s * 1e6 / events for part, s in each.cpu_s.items()} for each in workers)
    table(
        f"labels: processor time of a worker, {events} events, without the transactions",
        ("microseconds an event", "without", "with"),
        [
            *((part, without[part], with_[part]) for part in without),
            ("all", sum(without.values()), sum(with_.values())),
        ],
    )
    cost = sum(without.values()) / sum(with_.values())
    orders = workers[1].orders
    table(
        "labels: what they cost",
        ("what", "value"),
        [
            ("left of the rate", cost),
            ("orders an event", orders / events),
            (
                "microseconds an order",
                (sum(with_.values()) - sum(without.values())) * events / max(1, orders),
            ),
            ("bytes written an event, without", workers[0]._log.bytes / events),
            ("bytes written an event, with", workers[1]._log.bytes / events),
        ],
    )
    return {"labels_cost": cost}


async def _through(workers: list[Worker], records: list[Fetched], say: Callable[[str], None]) -> None:
    told_s = time.perf_counter()
    for number, start in enumerate(range(0, len(records), AT_ONCE)):
        mine = records[start : start + AT_ONCE]
        last = start + AT_ONCE >= len(records)
        for worker in workers if number % 2 else reversed(workers):
            await worker.take(mine)
            if last or number % A_SECOND == A_SECOND - 1:
                await worker.catch_up()
        if (now_s := time.perf_counter()) - told_s > TELL_S:
            told_s = now_s
            say(f"labels: {start + len(mine)} of {len(records)} events")
