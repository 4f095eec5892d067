"""What all parts of a bench share: one broker, one model, and topics of their own for each part."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import TopicPartition

from models.registry import bundled, untrained
from stream.broker import Broker
from stream.broker.server_settings import free_port
from stream.broker.topics import delete_topics
from stream.settings import Settings, load_settings
from stream.topic_reader import reader
from stream.topics import create, topic_specs
from tests.bench.processes import BenchWorker, CpuWatch, wait_until
from tests.bench.readers import COMMITTED_TIMEOUT_S, ends_of
from tests.bench.report import machine, tell
from tests.bench.traffic import Traffic

DRAIN_TIMEOUT_S = 900.0
# The peers' work is scores; what alerts cost on top of them is a part of its own.
SCORES_ONLY: dict[str, Any] = {"groups__enabled": False, "labels__enabled": False, "churn__alerts": False}


@dataclass(frozen=True)
class Sizes:
    """How much of everything; the defaults are those of published figures.

    Args:
        sample: run the worker with the sampling profiler; its figures are then too low.
    """

    users: int = 20_000
    events: int = 400_000
    stock_events: int = 20_000
    rate: float = 5_000.0
    seconds: float = 20.0
    warm_up_s: float = 5.0
    restore_users: int = 200_000
    timers: int = 1_000_000
    seed: int = 1
    sample: bool = False


@dataclass
class Bed:
    """A broker that answers, and a folder that goes away."""

    sizes: Sizes
    broker: Broker
    model: Path
    folder: Path
    _cleanup: ExitStack = field(repr=False)

    @property
    def client(self) -> dict[str, Any]:
        return self.settings_of("any").kafka.librdkafka()

    def settings_of(self, part: str) -> Settings:
        """Settings of one part: topics, group and data directory of its own."""
        return load_settings(
            kafka__bootstrap_servers=self.broker.bootstrap_servers,
            topics__prefix=f"bench-{os.getpid()}-{part}.",
            app_id=f"bench-{os.getpid()}-{part}",
            data_dir=self.folder / part,
            http__port=free_port(),
            model=self.model,
            **SCORES_ONLY,
        )

    def topics(self, part: str, **groups_of_settings: dict[str, Any]) -> Settings:
        """Create the topics of a part; they are removed at the end.

        Args:
            groups_of_settings: what differs from ``settings_of``, such as ``groups={"enabled": True}``.
        """
        settings = self.settings_of(part)
        settings = settings.model_copy(
            update={
                name: getattr(settings, name).model_copy(update=changes)
                for name, changes in groups_of_settings.items()
            }
        )
        create(settings)
        names = [spec.name for spec in topic_specs(settings)]
        self._cleanup.callback(delete_topics, settings.kafka.librdkafka(), names)
        return settings

    def traffic(self, part: str, users: int | None = None) -> Traffic:
        manifest = json.loads((self.model / "manifest.json").read_text())
        categories = tuple(manifest["categories"]) or tuple(f"c{i}" for i in range(100))
        return Traffic(users or self.sizes.users, categories, part, self.sizes.seed)

    @contextmanager
    def worker(self, settings: Settings, name: str = "worker") -> Iterator[BenchWorker]:
        """One worker process, stopped by SIGTERM afterwards."""
        samples = self.folder / f"{name}.samples" if self.sizes.sample else None
        worker = BenchWorker(settings, self.folder / f"{name}.log", samples)
        try:
            yield worker
        finally:
            worker.stop()

    @contextmanager
    def cpu(self, **pids: int | None) -> Iterator[CpuWatch]:
        """Watch the processor time of processes, the broker's too where it runs here."""
        watch = CpuWatch({**pids, "broker": self.broker.status().pid})
        watch.start()
        try:
            yield watch
        finally:
            watch.end()

    def wait_drained(self, settings: Settings, worker: BenchWorker) -> None:
        """Until every record of the input is committed by the worker's group."""
        with reader(self.client, committed=False, group_id=settings.app_id) as probe:
            ends = ends_of(probe, settings.clicks_topic)
            sources = [TopicPartition(settings.clicks_topic, number) for number in ends]

            def drained() -> bool:
                read_to = probe.committed(sources, timeout=COMMITTED_TIMEOUT_S)
                return all(max(0, at.offset) == ends[at.partition] for at in read_to)

            wait_until("the end of the backlog", drained, worker.check, DRAIN_TIMEOUT_S)


@contextmanager
def bed(sizes: Sizes, model: Path | None) -> Iterator[Bed]:
    """A broker (found or started) and a model (given, bundled, or untrained); all is gone afterwards."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="foreclick-bench-")))
        tell("starting the broker")
        broker = stack.enter_context(Broker(folder / "broker", say=tell))
        if model is None:
            model = bundled() if bundled().exists() else untrained(folder / "models")
        machine(f"{model.parent.name}/{model.name}", broker.status().source or "unknown")
        yield Bed(sizes, broker, model, folder, stack)


def now_ms() -> float:
    return time.time() * 1000


def disk_bytes(folder: Path) -> int:
    """What a folder takes on disk, in whole blocks."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
