"""One entrant, once: a backlog, two steady rates, and a kill -9 in the middle of a third."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from stream.broker.server_settings import free_port
from stream.broker.topics import TopicSpec, delete_topics, ensure_topics
from stream.errors import ForeclickError
from stream.settings import Settings, Topics, load_settings
from stream.topics import topic_specs
from tests.bench.bed import SCORES_ONLY, Bed, now_ms
from tests.bench.peers.entrants import Entrant, Running
from tests.bench.peers.oracle import judge_topics
from tests.bench.processes import BenchFailed, start, stop, wait_until
from tests.bench.readers import Reader, consumer_of, ends_of, produced_ms, source_position
from tests.bench.report import tell
from tests.bench.traffic import send_backlog
from tests.chaos.oracle import read_committed

START_TIMEOUT_S = 480.0
DRAIN_TIMEOUT_S = 120.0
COMMIT_MARGIN_S = (
    3.0  # what stands in the last, uncommitted transactions is not counted: it lies after the window
)
LOOK_INTERVAL_S = 0.25
FIRST_EVENTS = 100
SILENCE_S = 15.0  # longer than any of them waits with what it has


@dataclass(frozen=True)
class Measures:
    """How long and how much; the defaults are those of published figures.

    Args:
        events: of the backlog that all entrants read; a slow one sees its beginning.
        users: of that backlog; paced events are of a tenth of them, so that all have a history when the kill comes.
        warm_up_s, seconds: of a backlog, from its first output, and what is then measured.
        paced_s: how long each steady rate lasts, after ``paced_warm_up_s``.
        kill_s: how long events are sent around a kill.
        rate: of the first steady stretch, events/s.
    """

    events: int = 600_000
    users: int = 20_000
    warm_up_s: float = 5.0
    seconds: float = 10.0
    paced_warm_up_s: float = 2.0
    paced_s: float = 8.0
    kill_s: float = 10.0
    rate: float = 500.0
    grace_s: float = 10.0
    session_timeout_s: float = 8.0


@dataclass(frozen=True)
class Place:
    """Topics and folder of one entrant's one run."""

    settings: Settings
    folder: Path


def named_after(name: str, clicks: str | None = None) -> dict[str, str]:
    """Every topic named after one run; a prefix would do the same, but the source may be another's."""
    own = {
        f"topics__{field}": f"{name}.{plain}"
        for field, plain in Topics().model_dump().items()
        if isinstance(plain, str) and field != "prefix"
    }
    return own if clicks is None else own | {"topics__clicks": clicks}


@contextmanager
def place(bed: Bed, name: str, clicks: str | None = None) -> Iterator[Place]:
    """Topics of their own, but for a source that is shared; whatever bears the name is deleted afterwards.

    Predictions get the broker's time when they are appended: the frameworks do not agree on what a record's own
    timestamp is.
    """
    settings = load_settings(
        kafka__bootstrap_servers=bed.broker.bootstrap_servers,
        app_id=name,
        **named_after(name, clicks),
        data_dir=bed.folder / name,
        http__port=free_port(),
        model=bed.model,
        **SCORES_ONLY,
    )
    client = settings.kafka.librdkafka()
    own = {settings.predictions_topic: {"message.timestamp.type": "LogAppendTime"}}
    ensure_topics(
        client,
        [
            TopicSpec(
                spec.name, spec.partitions, {**spec.config, **own.get(spec.name, {})}, spec.replication_factor
            )
            for spec in topic_specs(settings)
        ],
    )
    try:
        yield Place(settings, bed.folder)
    finally:
        # What a framework named itself (changelogs) bears the application's name too.
        known = AdminClient({**client, "log_level": 0}).list_topics(timeout=30).topics
        delete_topics(client, [topic for topic in known if name in topic])


def rate_of(timestamp_ms: np.ndarray, warm_up_s: float, seconds: float) -> float:
    """Outputs a second after warming up; of a run that was over sooner, of its last two thirds."""
    first, last = float(timestamp_ms.min()), float(timestamp_ms.max())
    since = first + min(warm_up_s * 1000, (last - first) / 3)
    until = min(since + seconds * 1000, last)
    counted = int(((timestamp_ms > since) & (timestamp_ms <= until)).sum())
    return counted * 1000 / (until - since) if until > since else math.nan


def backlog(bed: Bed, entrant: Entrant, place: Place, measures: Measures) -> dict[str, float]:
    """Let a fresh process work at the backlog for a while: events/s, and its memory at the end."""
    settings = place.settings
    probe = consumer_of(bed.client)
    running = entrant.start(settings, bed.model, place.folder / f"{settings.app_id}.log")
    try:

        def written() -> int:
            return sum(ends_of(probe, settings.predictions_topic).values())

        wait_until("the first prediction", written, running.check, START_TIMEOUT_S, LOOK_INTERVAL_S)
        ends_s = time.monotonic() + measures.warm_up_s + measures.seconds + COMMIT_MARGIN_S
        while time.monotonic() < ends_s and written() < measures.events:
            running.check()
            time.sleep(LOOK_INTERVAL_S)
        time.sleep(LOOK_INTERVAL_S)
        rss_mib = running.rss_mib()
    finally:
        running.kill()
        probe.close()
    first: dict[tuple[int, int], int] = {}
    for message in read_committed(
        settings.kafka.bootstrap_servers, settings.predictions_topic, settings.topics.partitions
    ):
        if not message.key().startswith(b"\0"):
            first.setdefault(source_position(message.value()), message.timestamp()[1])
    if not first:
        raise BenchFailed(f"{entrant.name} committed no prediction within {measures.seconds:.0f} s.")
    timestamps = np.fromiter(first.values(), np.int64, len(first))
    events_per_s = rate_of(timestamps, measures.warm_up_s, measures.seconds)
    if not events_per_s > 0:
        raise BenchFailed(
            f"{entrant.name} wrote {len(first)} predictions, none of them while they were counted. Take more --seconds "
            "and --events, or a machine that is less busy."
        )
    return {"events_per_s": events_per_s, "rss_mib": rss_mib}


class Steady:
    """A process that lives through paced events, and may be killed and started again.

    Args:
        seed: of the traffic, and of the moment of the kill.
    """

    def __init__(self, bed: Bed, entrant: Entrant, place: Place, measures: Measures, seed: int):
        self._bed, self._entrant, self._place, self._measures = bed, entrant, place, measures
        self._seed = seed
        self._starts = 0
        settings = place.settings
        self._reader = Reader(bed.client, settings.predictions_topic, "read_committed")
        self._produced: dict[tuple[int, int], int] = {}
        self._running = self._start()

    def _start(self) -> Running:
        self._starts += 1
        log = self._place.folder / f"{self._place.settings.app_id}-{self._starts}.log"
        return self._entrant.start(self._place.settings, self._bed.model, log)

    def run(self, maximum: float) -> dict[str, Any]:
        """Latency at both rates, then the kill and the oracle's verdict.

        Args:
            maximum: the entrant's events/s from a backlog, in this round.
        """
        measures, figures = self._measures, {}
        self._reader.start()
        try:
            self._first_events()
            if not self._answered(START_TIMEOUT_S):
                raise BenchFailed(f"{self._entrant.name} answered nothing within {START_TIMEOUT_S:.0f} s.")
            seconds = measures.paced_warm_up_s + measures.paced_s
            for name, rate in (("half", maximum / 2), ("rate", measures.rate)):
                figures[f"{name}_events_per_s"] = rate
                # Beyond its maximum there is nothing to measure but the length of the queue.
                ages = self._ages(name, rate, seconds) if rate <= maximum else None
                figures[f"{name}_saturated"] = ages is None
                if ages is not None:
                    figures[f"{name}_p50_ms"], figures[f"{name}_p99_ms"] = np.percentile(
                        ages, (50, 99)
                    ).tolist()
            figures |= self._killed(min(measures.rate, maximum / 2))
        finally:
            self._running.kill()
            self._reader.end()
        return figures

    def _first_events(self) -> None:
        """A few events at once, to see when the process is there."""
        bed, clicks = self._bed, self._place.settings.clicks_topic
        traffic = bed.traffic("first", self._measures.users // 10)
        send_backlog(bed.client, clicks, traffic.records(FIRST_EVENTS, now_ms() - FIRST_EVENTS, 1.0))
        probe = consumer_of(bed.client)
        starts = dict.fromkeys(ends_of(probe, clicks), 0)
        probe.close()
        self._produced |= produced_ms(bed.client, clicks, starts)

    def _ages(self, name: str, rate: float, seconds: float) -> np.ndarray | None:
        """Milliseconds from the producer to the reader; None when the process fell behind."""
        produced = self._stretch(name, rate, seconds)
        kept_up = self._answered(self._measures.grace_s)
        if not kept_up:
            self._answered(DRAIN_TIMEOUT_S)
            return None
        since_ms = min(produced.values(), default=0) + self._measures.paced_warm_up_s * 1000
        arrived_s = self._reader.arrived_s
        ages = np.array([arrived_s[p] * 1000 - at_ms for p, at_ms in produced.items() if at_ms >= since_ms])
        if not len(ages):
            raise BenchFailed(
                f"At {rate:.2g} events/s, nothing was due in {seconds:.0f} s. Take more --paced-seconds."
            )
        return ages

    def _killed(self, rate: float) -> dict[str, Any]:
        """Kill -9 while events come in, start again at once, wait for the answers, ask the oracle."""
        measures, settings = self._measures, self._place.settings
        share = 0.3 + 0.2 * np.random.default_rng(self._seed).random()
        at_s = 1.5 + share * measures.kill_s  # the source takes that long to begin
        killed_ms = math.inf
        began_s = time.monotonic()

        def kill_in_time() -> None:
            nonlocal killed_ms
            if killed_ms == math.inf and time.monotonic() - began_s >= at_s:
                self._running.kill()
                killed_ms = time.time() * 1000
                self._running = self._start()

        produced = self._stretch("kill", rate, measures.kill_s, kill_in_time)
        self._settled([place for place, at_ms in produced.items() if at_ms > killed_ms])
        time.sleep(COMMIT_MARGIN_S)  # a second answer may still come
        verdict = judge_topics(
            settings.kafka.bootstrap_servers,
            settings.clicks_topic,
            settings.predictions_topic,
            settings.topics.partitions,
        )
        arrived_s = self._reader.arrived_s
        back_s = [arrived_s[p] for p, at_ms in produced.items() if at_ms > killed_ms and p in arrived_s]
        return {
            "kill_events": verdict.events,
            "lost": verdict.lost,
            "doubled": verdict.doubled,
            "contradicting": verdict.contradicting,
            "back_after_s": min(back_s) - killed_ms / 1000 if back_s else math.nan,
        }

    def _stretch(
        self, name: str, rate: float, seconds: float, meanwhile: Any = lambda: None
    ) -> dict[tuple[int, int], int]:
        """Send paced events to their end; where each stood, and when its producer took it, ms."""
        bed, settings = self._bed, self._place.settings
        traffic = bed.traffic(name, self._measures.users // 10)
        request = {
            "client": settings.kafka.aiokafka(),
            "topic": settings.clicks_topic,
            "traffic": {
                "users": traffic.users,
                "categories": traffic.categories,
                "part": name,
                "seed": self._seed,
            },
            "rate": rate,
            "seconds": seconds,
        }
        probe = consumer_of(bed.client)
        starts = ends_of(probe, settings.clicks_topic)
        probe.close()
        log = self._place.folder / f"source-{settings.app_id}.log"
        source = start("tests.bench.traffic", json.dumps(request), log=log)
        try:
            while source.poll() is None:
                self._running.check()
                meanwhile()
                time.sleep(0.05)
        finally:
            stop(source)
        if source.returncode:
            raise BenchFailed(f"The paced source ended: {log.read_text(errors='replace')[-500:]}")
        produced = produced_ms(bed.client, settings.clicks_topic, starts)
        self._produced |= produced
        return produced

    def _answered(self, timeout_s: float) -> bool:
        """Wait until every event so far has its prediction; whether that came about in time."""
        deadline = time.monotonic() + timeout_s
        while len(self._reader.arrived_s) < len(self._produced):
            self._running.check()
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def _settled(self, later: list[tuple[int, int]]) -> None:
        """Wait for the answers after a kill: for all, or until it is at work again and says nothing more.

        Args:
            later: where the events stand that were sent after the kill.

        Raises:
            BenchFailed: it never came to an end; what it lost would be what it had not done yet.
        """
        arrived_s, said = self._reader.arrived_s, -1
        began_s = last_s = time.monotonic()
        while len(arrived_s) < len(self._produced):
            self._running.check()
            if len(arrived_s) > said:
                said, last_s = len(arrived_s), time.monotonic()
            silent = time.monotonic() - last_s > SILENCE_S
            if silent and any(place in arrived_s for place in later) and not self._uncommitted():
                return
            if time.monotonic() - began_s > START_TIMEOUT_S:
                raise BenchFailed(
                    f"{self._entrant.name} was not at rest {START_TIMEOUT_S:.0f} s after the kill, "
                    f"{len(arrived_s)} of {len(self._produced)} events answered."
                )
            time.sleep(0.1)

    def _uncommitted(self) -> int:
        """Predictions that wait for the end of a transaction, an abandoned one too."""
        ends = []
        for isolation in ("read_uncommitted", "read_committed"):
            probe = consumer_of(self._bed.client, **{"isolation.level": isolation})
            ends.append(sum(ends_of(probe, self._place.settings.predictions_topic).values()))
            probe.close()
        return ends[0] - ends[1]


def measure(
    bed: Bed,
    entrant: Entrant,
    round_number: int,
    clicks: str,
    measures: Measures,
    seed: int,
    steady: bool = True,
) -> dict[str, Any]:
    """All figures of one entrant in one round; ``error`` where it could not finish.

    Args:
        clicks: the topic with the backlog.
        steady: also at steady rates, and killed; otherwise events/s and memory alone.
    """
    missing = entrant.missing()
    if missing:
        return {"error": missing}
    name = f"bench-{bed.folder.name[-8:]}-{round_number}-{entrant.name}".replace("_", "x").lower()
    figures: dict[str, Any] = {}
    try:
        tell(f"{entrant.name}: backlog")
        with place(bed, f"{name}-b", clicks) as ground:
            figures |= backlog(bed, entrant, ground, measures)
        if steady:
            tell(f"{entrant.name}: {figures['events_per_s']:,.0f} events/s; now at steady rates, and killed")
            with place(bed, f"{name}-s") as ground:
                figures |= Steady(bed, entrant, ground, measures, seed).run(figures["events_per_s"])
    except (ForeclickError, KafkaException, TimeoutError) as failed:
        figures["error"] = str(failed) or f"{type(failed).__name__}: the broker did not answer"
    tell(f"{entrant.name}: {json.dumps(figures)}")
    return figures
