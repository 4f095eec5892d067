"""Event to score at a steady rate: two readers of the output, joined with when the producer took the event."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stream.settings import Settings
from tests.bench import pipeline
from tests.bench.bed import Bed
from tests.bench.processes import BenchFailed, BenchWorker, start, stop, wait_until
from tests.bench.readers import Reader, consumer_of, ends_of, produced_ms
from tests.bench.report import samples, stages, table, tell

GRACE_S = 30.0
QUANTILES = (50, 90, 99, 99.9, 100)


@dataclass
class Watched:
    """Paced events and the arrival of their predictions at readers of both isolation levels."""

    produced: dict[tuple[int, int], int]
    readers: list[Reader]
    used_s: dict[str, float]
    seconds: float

    def ages_ms(self, reader: Reader, since_ms: float, until_ms: float = math.inf) -> np.ndarray:
        """From the producer's timestamp to the reader, of events produced within a stretch of time."""
        places = [place for place, at_ms in self.produced.items() if since_ms <= at_ms < until_ms]
        return np.array([reader.arrived_s[place] * 1000 - self.produced[place] for place in places])


def watch_paced(
    bed: Bed,
    settings: Settings,
    worker: BenchWorker,
    part: str,
    seconds: float,
    meanwhile: Callable[[], None] = lambda: None,
) -> Watched:
    """Send paced events into the running worker and watch the predictions arrive.

    Args:
        meanwhile: called again and again while events are sent.

    Raises:
        BenchFailed: a reader did not see the prediction of every event.
    """
    client = bed.client
    worker.wait_ready(lambda text: None)
    probe = consumer_of(client)
    starts = ends_of(probe, settings.clicks_topic)
    probe.close()
    readers = [
        Reader(client, settings.predictions_topic, name) for name in ("read_uncommitted", "read_committed")
    ]
    for reader in readers:
        reader.start()
    tell(f"{part}: {bed.sizes.rate:.0f} events/s for {seconds:.0f} s")
    traffic = bed.traffic(part)
    request = {
        "client": settings.kafka.aiokafka(),
        "topic": settings.clicks_topic,
        "traffic": {
            "users": traffic.users,
            "categories": traffic.categories,
            "part": part,
            "seed": traffic.seed,
        },
        "rate": bed.sizes.rate,
        "seconds": seconds,
    }
    log = bed.folder / f"paced-{part}.log"
    source = start("tests.bench.traffic", json.dumps(request), log=log)
    try:
        with bed.cpu(worker=worker.pid, source=source.pid, readers=os.getpid()) as watch:
            began_s = time.time()
            worker.sample()
            while source.poll() is None:
                worker.check()
                meanwhile()
                time.sleep(0.1)
            ended_s = time.time()
            worker.sample()
    finally:
        stop(source)
    if source.returncode:
        raise BenchFailed(
            f"The paced source ended with code {source.returncode}: {log.read_text(errors='replace')[-500:]}"
        )
    produced = produced_ms(client, settings.clicks_topic, starts)
    deadline = time.monotonic() + GRACE_S
    while any(len(reader.arrived_s) < len(produced) for reader in readers) and time.monotonic() < deadline:
        time.sleep(0.1)
    for reader in readers:
        reader.end()
        missing = len(produced.keys() - reader.arrived_s.keys())
        if missing:
            raise BenchFailed(
                f"The {reader.name} reader missed the predictions of {missing} of {len(produced)} events. "
                "Nothing is reported on such a run."
            )
    return Watched(produced, readers, watch.used_s(began_s + 1, ended_s), ended_s - began_s - 1)


def measure(bed: Bed, settings: Settings, worker: BenchWorker) -> dict[str, float]:
    """Event to score at the bench's rate, after warming up."""
    sizes = bed.sizes
    worker.wait_ready(lambda text: None)
    before, batches_before = worker.stats()["spent_s"], worker.counters()["foreclick_transactions_total"]
    seen = watch_paced(bed, settings, worker, "latency", sizes.warm_up_s + sizes.seconds)
    after = worker.stats()["spent_s"]
    batches = int(worker.counters()["foreclick_transactions_total"] - batches_before)

    since_ms = min(seen.produced.values()) + sizes.warm_up_s * 1000
    rows, figures = [], {}
    for reader, prefix in zip(seen.readers, ("", "committed_"), strict=True):
        ages_ms = seen.ages_ms(reader, since_ms)
        quantiles = np.percentile(ages_ms, QUANTILES).tolist()
        rows.append((reader.name, len(ages_ms), *quantiles))
        figures[f"{prefix}p50_ms"], figures[f"{prefix}p99_ms"] = quantiles[0], quantiles[2]
    table(
        f"latency at {sizes.rate:.0f} events/s, ms from the producer's timestamp to the reader",
        ("reader", "events", *(f"p{q:g}" for q in QUANTILES[:-1]), "max"),
        rows,
    )
    table(
        "latency: load",
        ("what", "value"),
        [
            ("transactions", batches),
            ("events a transaction", len(seen.produced) / batches),
            *((f"CPU seconds a second, {name}", s / seen.seconds) for name, s in seen.used_s.items()),
        ],
    )
    spent_s = {step: after[step] - before[step] for step in after}
    stages("latency: wall time by step, summed over partitions", spent_s, len(seen.produced), batches)
    if worker.samples is not None:
        wait_until("the sampling profile", worker.samples.exists, worker.check, timeout_s=20)
        samples(worker.samples)
    return figures


def run(bed: Bed) -> dict[str, float]:
    """Only this part: a fresh worker that has met every user about once."""
    settings = bed.topics("latency")
    pipeline.fill(bed, settings, "before-latency", bed.sizes.users)
    with bed.worker(settings) as worker:
        worker.wait_ready(lambda text: None)
        bed.wait_drained(settings, worker)
        return measure(bed, settings, worker)
