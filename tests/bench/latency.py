"""Event to score at a steady rate: two readers of the output, joined with when the producer took the event."""

from __future__ import annotations

import json
import time

import numpy as np

from stream.settings import Settings
from tests.bench import pipeline
from tests.bench.bed import Bed
from tests.bench.processes import BenchFailed, BenchWorker, start, stop
from tests.bench.readers import Reader, consumer_of, ends_of, produced_ms
from tests.bench.report import stages, table, tell

GRACE_S = 30.0
QUANTILES = (50, 90, 99, 99.9, 100)


def measure(bed: Bed, settings: Settings, worker: BenchWorker) -> dict[str, float]:
    """Send paced events into the running worker and watch the predictions arrive.

    Raises:
        BenchFailed: a reader did not see the prediction of every event.
    """
    sizes, client = bed.sizes, bed.client
    worker.wait_ready(lambda text: None)
    probe = consumer_of(client)
    starts = ends_of(probe, settings.clicks_topic)
    probe.close()
    readers = [
        Reader(client, settings.predictions_topic, name) for name in ("read_uncommitted", "read_committed")
    ]
    for reader in readers:
        reader.start()
    seconds = sizes.warm_up_s + sizes.seconds
    tell(f"latency: {sizes.rate:.0f} events/s for {seconds:.0f} s")
    traffic = bed.traffic("latency")
    request = {
        "client": client,
        "topic": settings.clicks_topic,
        "traffic": {
            "users": traffic.users,
            "categories": traffic.categories,
            "part": "latency",
            "seed": traffic.seed,
        },
        "rate": sizes.rate,
        "seconds": seconds,
    }
    log = bed.folder / "paced.log"
    before, batches_before = worker.stats()["spent_s"], worker.counters()["foreclick_transactions_total"]
    source = start("tests.bench.traffic", json.dumps(request), log=log)
    try:
        with bed.cpu(worker=worker.pid, source=source.pid) as watch:
            began_s = time.time()
            while source.poll() is None:
                worker.check()
                time.sleep(0.1)
            ended_s = time.time()
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
    after = worker.stats()["spent_s"]
    batches = int(worker.counters()["foreclick_transactions_total"] - batches_before)

    measured_from_ms = min(produced.values()) + sizes.warm_up_s * 1000
    places = [place for place, at_ms in produced.items() if at_ms >= measured_from_ms]
    rows, figures = [], {}
    for reader, prefix in zip(readers, ("", "committed_"), strict=True):
        missing = len(produced.keys() - reader.arrived_s.keys())
        if missing:
            raise BenchFailed(
                f"The {reader.name} reader missed the predictions of {missing} of {len(produced)} events. "
                "Nothing is reported on such a run."
            )
        ages_ms = np.array([reader.arrived_s[place] * 1000 - produced[place] for place in places])
        quantiles = np.percentile(ages_ms, QUANTILES).tolist()
        rows.append((reader.name, len(places), *quantiles))
        figures[f"{prefix}p50_ms"], figures[f"{prefix}p99_ms"] = quantiles[0], quantiles[2]
    table(
        f"latency at {sizes.rate:.0f} events/s, ms from the producer's timestamp to the reader",
        ("reader", "events", *(f"p{q:g}" for q in QUANTILES[:-1]), "max"),
        rows,
    )
    used_s = watch.used_s(began_s + 1, ended_s)
    table(
        "latency: load",
        ("what", "value"),
        [
            ("transactions", batches),
            ("events a transaction", len(produced) / batches),
            *((f"CPU seconds a second, {name}", s / (ended_s - began_s - 1)) for name, s in used_s.items()),
        ],
    )
    spent_s = {step: after[step] - before[step] for step in after}
    stages("latency: wall time by step, summed over partitions", spent_s, len(produced), batches)
    return figures


def run(bed: Bed) -> dict[str, float]:
    """Only this part: a fresh worker that has met every user about once."""
    settings = bed.topics("latency")
    pipeline.fill(bed, settings, "before-latency", bed.sizes.users)
    with bed.worker(settings) as worker:
        worker.wait_ready(lambda text: None)
        bed.wait_drained(settings, worker)
        return measure(bed, settings, worker)
