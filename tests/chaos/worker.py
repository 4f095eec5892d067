"""One worker process of the chaos rounds: the product's engine in a Faust app, with work that has no model.

    python -m tests.chaos.worker --name A --bootstrap 127.0.0.1:9092 --app-id x --prefix x- --data-dir DIR

A row is a user's count, last sequence, last source offset, a running hash and the newest sequences, by which repeated
events are dropped; every prediction carries them, so one lost, repeated or reordered event shows in everything that
follows. Switches end or stop the process at a
named step of the protocol; ``--planted`` swaps in one bug of tests/chaos/planted.py, to prove that the oracle
would see it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import faust
from faust.app.base import BootStrategy

from stream.broker.topics import describe
from stream.engine import requirements, service
from stream.engine.kafka_log import TopicSet
from stream.engine.service import Engine, EngineMetrics, Plan
from stream.engine.store import Store
from stream.logs import configure_logs
from stream.settings import Settings, load_settings
from stream.stage import Message, Rendered
from tests.chaos.traps import ProbedLog, ShiftedClock, add_switches, end_with_parent, say, set_traps

ROW = struct.Struct("<qqq8s")  # count, last sequence, last source offset, running hash
RING = struct.Struct("<16q")  # the newest sequences of a user
PADDING = bytes(40)  # a row of about 200 bytes: enough to fill segments, so that compaction has work


def sequence_of(value: bytes) -> int | None:
    """The sequence number of an event; None of what is no event."""
    try:
        sequence = json.loads(value)["seq"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    return sequence if type(sequence) is int and 0 < sequence < 1 << 62 else None


class CountingWork:
    """Counts and hashes the events of each user; implements ``stream.stage.Work`` without a model."""

    def __init__(self, topics: TopicSet, partition: int, predictions: str, dead_letters: str, sleep_s: float):
        self._source = f"{topics.source_id.hex()}/{partition}"
        self._partition = partition
        self._predictions, self._dead_letters = predictions, dead_letters
        self._sleep_s = sleep_s

    @dataclass
    class Records:
        """The records, with each user once."""

        keys: list[bytes]
        records: Sequence[Any]

    def decode(self, records: Sequence[Any]) -> Records:
        return self.Records(list({record.key for record in records}), records)

    async def score(self, decoded: Records, rows: list[bytes | None], now_ms: int) -> Rendered:
        rendered = self._fold(decoded, rows)
        await asyncio.sleep(self._sleep_s)  # the model's time: faults hit in the middle of batches
        return rendered

    def _fold(self, decoded: Records, rows: list[bytes | None]) -> Rendered:
        state = dict(zip(decoded.keys, rows, strict=True))
        predictions: list[Message] = []
        dead: list[Message] = []
        for record in decoded.records:
            key, value = record.key, record.value
            if value is None:
                state[key] = None
                continue
            place = f"{self._source}/{record.offset}"
            sequence = sequence_of(value)
            if sequence is None:
                dead.append((key, value, [("ce_id", f"{place}/dead/{key.hex()}".encode())]))
                continue
            count, digest, ring = self._read(key, state[key])
            if sequence in ring:
                continue
            digest = blake2b(digest + key + sequence.to_bytes(8, "little"), digest_size=8).digest()
            count += 1
            state[key] = self._row(key, (count, sequence, record.offset, digest), (*ring[1:], sequence))
            said = {
                "partition": self._partition,
                "offset": record.offset,
                "user": key.decode(),
                "seq": sequence,
                "count": count,
                "hash": digest.hex(),
            }
            identity = ("ce_id", f"{place}/prediction/{key.decode()}".encode())
            predictions.append((key, json.dumps(said).encode(), [identity]))
        watermark_ms = max(record.timestamp for record in decoded.records) if decoded.records else 0
        messages = {self._predictions: predictions, self._dead_letters: dead}
        return Rendered(messages, list(state.items()), watermark_ms, counts=len(decoded.records))

    def _read(self, key: bytes, raw: bytes | None) -> tuple[int, bytes, tuple[int, ...]]:
        """Count, hash and newest sequences."""
        if raw is None:
            return 0, bytes(8), (0,) * 16
        count, _, _, digest = ROW.unpack_from(raw)
        return count, digest, RING.unpack_from(raw, ROW.size)

    def _row(self, key: bytes, row: tuple[int, int, int, bytes], ring: tuple[int, ...]) -> bytes:
        return ROW.pack(*row) + RING.pack(*ring) + PADDING

    def account(self, rendered: Rendered, received_s: float, committed_s: float) -> None:
        pass


class SaidMetrics(EngineMetrics):
    """The counter that excuses a repeat, as a line in the log."""

    def __init__(self) -> None:
        self.mismatches = 0

    def position_mismatch(self) -> None:
        self.mismatches += 1
        say("foreclick_position_mismatch_total", value=self.mismatches)


class Boot(BootStrategy):  # type: ignore[misc]
    """As the product's: the engine after Faust's own services, Faust's consumer off."""

    enable_kafka_consumer = False

    def server(self) -> Iterable[Any]:
        yield from super().server()
        yield self.app.engine


class ChaosApp(faust.App):  # type: ignore[misc]
    """A Faust app whose hot path is the engine."""

    BootStrategy = Boot
    engine: Engine


def topic_set(settings: Settings) -> TopicSet:
    """The four topics of a round, as the broker has them."""
    client = settings.kafka.librdkafka()
    source, changelog = describe(client, settings.clicks_topic), describe(client, settings.changelog_topic)
    outputs = [describe(client, name) for name in (settings.predictions_topic, settings.dead_letters_topic)]
    return TopicSet(
        source=source.name,
        source_id=source.topic_id,
        changelog=changelog.name,
        changelog_id=changelog.topic_id,
        outputs={topic.name: topic.partitions for topic in outputs},
        tombstone_retention_ms=changelog.delete_retention_ms,
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.worker", description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--app-id", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--session-timeout-ms", type=int, default=4000)
    parser.add_argument("--on-position-mismatch", default="open")
    parser.add_argument("--sleep-ms", type=float, default=5)
    parser.add_argument("--batch", type=int, default=4096, help="events in a micro-batch at most")
    add_switches(parser)
    return parser.parse_args(arguments)


def create_app(options: argparse.Namespace) -> ChaosApp:
    """The app of one worker, composed as stream/app.py does it."""
    requirements.check()
    configure_logs("json", "info")
    settings = load_settings(
        {},
        app_id=options.app_id,
        topics__prefix=options.prefix,
        kafka__bootstrap_servers=options.bootstrap,
        kafka__session_timeout_ms=options.session_timeout_ms,
        data_dir=options.data_dir,
        max_batch_size=options.batch,
        on_position_mismatch=options.on_position_mismatch,
    )
    settings.data_dir.mkdir(parents=True, exist_ok=True)  # Faust makes only the last folder of a path
    probe = set_traps(options)
    work_class: type[CountingWork] = CountingWork

    async def prepare() -> Plan:
        topics = await asyncio.to_thread(topic_set, settings)

        def make_work(partition: int, rows: Store) -> CountingWork:
            return work_class(
                topics,
                partition,
                settings.predictions_topic,
                settings.dead_letters_topic,
                options.sleep_ms / 1000,
            )

        return Plan(topics, make_work)

    app = ChaosApp(
        f"{settings.app_id}-low",
        broker="aiokafka://" + settings.kafka.bootstrap_servers,
        store="memory://",
        datadir=settings.data_dir / "faust",
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        stream_wait_empty=False,
    )
    engine = app.engine = Engine(
        settings, prepare, metrics=SaidMetrics(), probe=probe, clock=ShiftedClock(options.clock)
    )
    log_class: type[ProbedLog] = ProbedLog
    if options.planted:
        from tests.chaos.planted import plant

        bug = plant(options.planted)
        log_class, engine.partition_class, work_class = bug.log, bug.partition, bug.work
        service.Store = bug.store  # type: ignore[misc]
    engine.log_class = log_class
    return app


def main() -> None:
    """Run the worker as `faust -A ... worker` would."""
    end_with_parent()
    app = create_app(parse(sys.argv[1:]))
    sys.argv = [sys.argv[0], "worker", "-l", "error", "--without-web"]
    app.main()


if __name__ == "__main__":
    # planted.py subclasses what is defined here: under its own name, not a second time as __main__
    from tests.chaos.worker import main as run

    run()
