"""Who takes part, in which environment, and how a process of each is started, watched and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from stream.broker.topics import describe
from stream.settings import Settings
from tests.bench.peers.settings import PeerSettings
from tests.bench.processes import ROOT, BenchFailed, start, worker_environment
from tests.bench.stock_agent import StockSettings

ENVIRONMENTS = ROOT / ".peers"
LAST_LINES = 3


@dataclass(frozen=True)
class Entrant:
    """One program that does the work.

    Args:
        module: what is run; None is the pipeline's own worker.
        environment: folder under ``.peers``, made by the Makefile; None is the project's own.
        exactly_once: run with the framework's strongest guarantee.
        peer: whether it counts among the Python frameworks that the pipeline is compared with.
        how: one sentence for the report.
    """

    name: str
    module: str | None
    environment: str | None
    exactly_once: bool
    peer: bool
    how: str

    @property
    def python(self) -> Path:
        """The interpreter that it runs in."""
        return (
            Path(sys.executable)
            if self.environment is None
            else ENVIRONMENTS / self.environment / "bin/python"
        )

    def missing(self) -> str | None:
        """Why it cannot run here, in the words of its installation; None when it can."""
        if self.environment is None or (ENVIRONMENTS / self.environment / ".stamp").exists():
            return None
        log = ENVIRONMENTS / f"{self.environment}.log"
        said = log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:] if log.exists() else []
        return "not installed: " + (" ".join(said)[-500:] or "run `make peers`")

    def start(self, settings: Settings, model: Path, log: Path) -> Running:
        """A fresh process over these settings; what an earlier one left in the data directory is found again."""
        if self.module is None:
            process = start("stream.cli", "worker", log=log, environment=worker_environment(settings))
            return Running(self.name, process, log)
        kind = StockSettings if self.module == "tests.bench.stock_agent" else PeerSettings
        told = kind(
            bootstrap_servers=settings.kafka.bootstrap_servers,
            app_id=settings.app_id,
            clicks_topic=settings.clicks_topic,
            topic_id=describe(settings.kafka.librdkafka(), settings.clicks_topic).topic_id.hex(),
            predictions_topic=settings.predictions_topic,
            dead_letters_topic=settings.dead_letters_topic,
            partitions=settings.topics.partitions,
            source=f"/{settings.app_id}/{settings.clicks_topic}",
            model=str(model),
            data_dir=str(settings.data_dir),
            exactly_once=self.exactly_once,
            session_timeout_s=settings.kafka.session_timeout_ms / 1000,
            jars=str(ENVIRONMENTS / self.environment / "jars") if self.environment else "",
        )
        # The environment's own programs first: PyFlink looks for `python` there.
        environment = os.environ | {"PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"}
        process = start(
            self.module,
            msgspec.json.encode(told).decode(),
            log=log,
            environment=environment,
            python=self.python,
        )
        return Running(self.name, process, log)


class Running:
    """A process with all that it started."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path):
        self.name, self._process, self._log = name, process, log

    def check(self) -> None:
        """Raise BenchFailed with its last words when it has ended by itself."""
        if self._process.poll() is not None:
            lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
            said = " | ".join(lines[-LAST_LINES:])[-500:] or "(it said nothing)"
            raise BenchFailed(f"{self.name} ended with code {self._process.returncode}: {said}")

    def rss_mib(self) -> float:
        """Resident memory of the process and its children; pages that they share count in each."""
        total = 0
        for process in self._family():
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total / 2**20

    def kill(self) -> None:
        """SIGKILL to the process and everything that it started, at once."""
        family = self._family()
        for process in family:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        self._process.wait()
        psutil.wait_procs(family, timeout=10)

    def _family(self) -> list[psutil.Process]:
        try:
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


_QUIX = "a stateful function on a StreamingDataFrame, RocksDB with changelog, a checkpoint a second"
_FLINK = (
    "KeyedProcessFunction between Kafka tables in a local cluster of one slot, RocksDB, a checkpoint a second"
)
ENTRANTS = (
    Entrant(
        "faust", "tests.bench.stock_agent", None, False, True, "one agent, a table in RocksDB with changelog"
    ),
    Entrant("quix", "tests.bench.peers.quix_app", "quix", False, True, f"{_QUIX}, at least once"),
    Entrant(
        "quix-exactly-once", "tests.bench.peers.quix_app", "quix", True, True, f"{_QUIX}, its exactly-once"
    ),
    Entrant(
        "bytewax",
        "tests.bench.peers.bytewax_flow",
        "bytewax",
        False,
        True,
        "stateful_flat_map between Kafka operators, a snapshot to its recovery store a second",
    ),
    Entrant("flink", "tests.bench.peers.flink_job", "flink", False, True, f"{_FLINK}, at least once"),
    Entrant(
        "flink-exactly-once",
        "tests.bench.peers.flink_job",
        "flink",
        True,
        True,
        f"{_FLINK}, exactly-once sink",
    ),
    Entrant(
        "ceiling",
        "tests.bench.peers.ceiling_loop",
        None,
        False,
        False,
        "confluent-kafka and torch in one loop, micro-batches of up to 4,096, rows in a dict: nothing is durable",
    ),
    Entrant(
        "foreclick",
        None,
        None,
        True,
        False,
        "one worker, exactly once; alerts and groups, which no other has, are off",
    ),
)
