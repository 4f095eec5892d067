"""The whole pipeline on one machine for a few minutes: broker, topics, worker, traffic, and a look at every result.

What is shown live comes from the output topics themselves. What the summary says about missing and doubled events
comes from ``stream.audit``, after everything has been written.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Consumer, TopicPartition

from stream.audit import Audit, Position, audit
from stream.broker import Broker
from stream.broker.server_settings import free_port
from stream.broker.topics import delete_topics
from stream.errors import BrokerUnreachable, ForeclickError
from stream.files import FileRecord
from stream.replay import replay
from stream.settings import Settings, load_settings
from stream.stage import FENCE_KEY
from stream.topic_reader import reader
from stream.topics import create, topic_specs

READY_TIMEOUT_S = 90.0
DRAIN_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 20.0


class WorkerDied(ForeclickError):
    """The demo's worker ended by itself."""


@dataclass
class Seen:
    """What a reader of the output topics has seen so far."""

    predictions: int = 0
    dead_letters: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    latest: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=5))
    anomalous: dict[str, float] = field(default_factory=dict)
    arrived_ms: dict[Position, float] = field(default_factory=dict)
    last_arrival_s: float = 0.0


class Tail(threading.Thread):
    """Reads predictions and dead letters as a consumer of the committed results would."""

    def __init__(self, settings: Settings):
        super().__init__(daemon=True, name="tail")
        self.seen = Seen()
        self._settings = settings
        self._ended = threading.Event()

    def run(self) -> None:
        settings = self._settings
        consumer = Consumer(
            {
                **settings.kafka.librdkafka(),
                "group.id": "foreclick-demo-tail",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 10,
                "log_level": 0,
            }
        )
        topics = (settings.predictions_topic, settings.dead_letters_topic)
        known = consumer.list_topics(timeout=10).topics
        consumer.assign([TopicPartition(t, p, 0) for t in topics for p in known[t].partitions])
        while not self._ended.is_set():
            for message in consumer.consume(2000, 0.05):
                if message.error() is None and message.key() != FENCE_KEY:
                    self._take(message.topic() == topics[0], message)
        consumer.close()

    def _take(self, prediction: bool, message: Any) -> None:
        seen, now_ms = self.seen, time.time() * 1000
        seen.last_arrival_s = time.time()
        if not prediction:
            seen.dead_letters += 1
            seen.reasons[dict(message.headers() or [])["clicks.reason"].decode()] += 1
            return
        value = json.loads(message.value())
        seen.predictions += 1
        seen.latest.append(value)
        seen.arrived_ms[value["source"]["partition"], value["source"]["offset"]] = now_ms
        user, score = value["user_id"], value["anomaly"]["score"]
        if score > seen.anomalous.get(user, 0.0):
            seen.anomalous[user] = score

    def end(self) -> None:
        self._ended.set()
        self.join(5)


class Worker:
    """A worker process of the demo, with its own data directory and HTTP port."""

    def __init__(self, settings: Settings, log: Path):
        self.port = settings.http.port
        self.log = log
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FORECLICK_")}
        environment |= {
            name: value for name, value in os.environ.items() if name.startswith("FORECLICK_KAFKA__")
        }
        environment |= {
            "FORECLICK_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
            "FORECLICK_TOPICS__PREFIX": settings.topics.prefix,
            "FORECLICK_APP_ID": settings.app_id,
            "FORECLICK_DATA_DIR": str(settings.data_dir),
            "FORECLICK_HTTP__PORT": str(self.port),
        }
        for group in ("groups", "labels", "churn", "fraud"):
            for name, value in getattr(settings, group).model_dump(exclude_defaults=True).items():
                environment[f"FORECLICK_{group.upper()}__{name.upper()}"] = str(value)
        if settings.model is not None:
            environment["FORECLICK_MODEL"] = str(settings.model)
        with log.open("wb") as out:
            # A session of its own: Ctrl-C is the demo's to handle, in order: worker first, broker last.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "stream.cli", "worker"],
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - it calls one system call and nothing of Python's
            )

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of one of the worker's pages; status 0 while it does not listen."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    def check(self) -> None:
        """Raise WorkerDied with the worker's own last line when it has ended."""
        if self._process.poll() is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines() or ["(it said nothing)"]
            raise WorkerDied(f"The worker ended with code {self._process.returncode}: {lines[-1][:500]}")

    def wait_ready(self, tell: Any) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            self.check()
            status, body = self.get("/readyz")
            if status == 200:
                return
            tell(json.loads(body)["reason"] if body else "starting")
            time.sleep(0.2)
        raise WorkerDied(f"The worker was not ready within {READY_TIMEOUT_S:.0f} s; its log is {self.log}.")

    def stats(self) -> dict[str, Any]:
        status, body = self.get("/state")
        return json.loads(body) if status == 200 else {}

    def counters(self) -> dict[str, float]:
        """Counters and gauges of /metrics without labels."""
        _, body = self.get("/metrics")
        lines = (line for line in body.decode().splitlines() if line and line[0] != "#" and "{" not in line)
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def stop(self) -> None:
        """SIGTERM, and after a while the end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


@dataclass
class Pipeline:
    """What runs: settings with the addresses in use, the worker, and the reader of its results."""

    settings: Settings
    worker: Worker
    tail: Tail
    folder: Path


@contextmanager
def pipeline(tell: Any = lambda text: None, model: Path | None = None) -> Iterator[Pipeline]:
    """Broker, topics and worker, fresh; all of it is gone afterwards, however the block ends."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="foreclick-demo-")))
        tell("starting the broker")
        broker = stack.enter_context(Broker(folder / "broker", say=tell))
        given = bool(os.environ.get("FORECLICK_KAFKA__BOOTSTRAP_SERVERS"))
        # On a broker that is not ours the demo keeps to topics of its own and removes them.
        prefix = f"demo-{os.getpid()}-{int(time.time())}." if given else ""
        settings = load_settings(
            kafka__bootstrap_servers=broker.bootstrap_servers,
            topics__prefix=prefix,
            app_id=f"{prefix.rstrip('.')}-foreclick" if given else "foreclick",
            data_dir=folder / "data",
            http__port=free_port(),
            model=model,
        )
        tell("creating the topics")
        create(settings)
        if given:
            names = [spec.name for spec in topic_specs(settings)]
            stack.callback(delete_topics, settings.kafka.librdkafka(), names)
        worker = Worker(settings, folder / "worker.log")
        stack.callback(worker.stop)
        worker.wait_ready(tell)
        tail = Tail(settings)
        tail.start()
        stack.callback(tail.end)
        yield Pipeline(settings, worker, tail, folder)


class Sender(threading.Thread):
    """Sends the records beside the live table, and keeps what went wrong for the main thread."""

    def __init__(self, settings: Settings, records: Sequence[FileRecord], rate: float | None):
        super().__init__(daemon=True, name="sender")
        self.sent = 0
        self.error: BaseException | None = None
        self._arguments = (records, settings.kafka.librdkafka(), settings.clicks_topic, rate)

    def run(self) -> None:
        records, client, topic, rate = self._arguments
        try:
            replay(records, client, topic, rate, None, self._advance)
        except BaseException as error:
            self.error = error

    def _advance(self, done: int) -> None:
        self.sent = done


def wait_drained(running: Pipeline) -> None:
    """Until every record that was sent is committed."""
    deadline = time.monotonic() + DRAIN_TIMEOUT_S
    settings = running.settings
    with reader(settings.kafka.librdkafka(), committed=False, group_id=settings.app_id) as probe:
        topic = probe.list_topics(settings.clicks_topic, timeout=10).topics[settings.clicks_topic]
        sources = [TopicPartition(settings.clicks_topic, number) for number in topic.partitions]
        while time.monotonic() < deadline:
            running.worker.check()
            committed = {
                entry.partition: max(0, entry.offset) for entry in probe.committed(sources, timeout=10)
            }
            ends = {s.partition: probe.get_watermark_offsets(s, timeout=10)[1] for s in sources}
            if committed == ends:
                return
            time.sleep(0.1)
    raise BrokerUnreachable(f"The worker did not finish within {DRAIN_TIMEOUT_S:.0f} s; look at its log.")


def summarise(running: Pipeline, began_s: float) -> dict[str, Any]:
    """What the demo ends with. ``missing`` and ``twice`` are the audit's, never a counter's."""
    settings, seen = running.settings, running.tail.seen
    deadline = time.monotonic() + 10
    counters = running.worker.counters()
    while seen.predictions < counters["foreclick_predictions_total"] and time.monotonic() < deadline:
        time.sleep(0.05)
    found: Audit = audit(
        settings.kafka.librdkafka(),
        settings.clicks_topic,
        settings.predictions_topic,
        settings.dead_letters_topic,
    )
    produced_ms = found.produced_ms
    ages = [
        arrived - produced_ms[place] for place, arrived in seen.arrived_ms.items() if place in produced_ms
    ]
    p50, p99 = np.percentile(ages, [50, 99]) if ages else (0.0, 0.0)
    seconds = max(1e-3, seen.last_arrival_s - began_s)
    return {
        "events_in": found.events_in,
        "predictions": found.predictions,
        "dead_letters": found.dead_letters,
        "dead_letters_by_reason": dict(seen.reasons),
        "duplicates_dropped": int(counters["foreclick_duplicates_dropped_total"]),
        "late": int(counters["foreclick_late_events_total"]),
        "tombstones": found.tombstones,
        "missing": len(found.missing),
        "twice": len(found.twice),
        "events_per_s": round(found.events_in / seconds, 1),
        "event_to_score_p50_ms": round(float(p50), 1),
        "event_to_score_p99_ms": round(float(p99), 1),
        "seconds": round(seconds, 1),
    }


def _end_with_parent() -> None:
    """A worker must not outlive a demo that was killed: Linux sends it SIGTERM then."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
