"""A backlog through one worker: events a second, exactly once, one full prediction an event."""

from __future__ import annotations

from stream.settings import Settings
from tests.bench.bed import Bed, disk_bytes, now_ms
from tests.bench.processes import BenchWorker, wait_until
from tests.bench.readers import Written, read_predictions
from tests.bench.report import samples, stages, table, tell
from tests.bench.traffic import send_backlog

HISTORY_MS = 6 * 3_600_000  # the backlog's events lie in the last six hours


def fill(bed: Bed, settings: Settings, part: str, events: int) -> None:
    """Put a backlog into the input topic."""
    tell(f"{part}: {events} events of {bed.sizes.users} users into {settings.clicks_topic}")
    records = bed.traffic(part).records(events, now_ms() - HISTORY_MS, (HISTORY_MS - 60_000) / events)
    send_backlog(bed.client, settings.clicks_topic, records)


def measure(bed: Bed, settings: Settings, worker: BenchWorker) -> dict[str, float]:
    """Let a worker that was just started work off the backlog that stands in its topic."""
    events = bed.sizes.events
    worker.wait_ready(lambda text: None)
    worker.sample()
    tell("pipeline: the worker is at the backlog")
    with bed.cpu(worker=worker.pid) as watch:
        bed.wait_drained(settings, worker)
    worker.sample()
    rss_mib, threads = worker.rss_mib, worker.threads_cpu_s()
    stats, counters = worker.stats(), worker.counters()
    written = read_predictions(bed.client, settings.predictions_topic, events)
    batches = int(counters["foreclick_transactions_total"])

    since_s = written.timestamp_ms.min() / 1000
    used_s = watch.used_s(since_s, since_s + written.seconds)
    others = sum(threads.values()) - threads.get(worker.pid, 0.0)
    table(
        "pipeline: one worker, exactly once",
        ("what", "value"),
        [
            *rate_rows(written),
            *cpu_rows(used_s, written),
            ("CPU seconds of the worker's main thread, all in all", threads.get(worker.pid, 0.0)),
            ("CPU seconds of its other threads (model, RocksDB)", others),
            ("transactions", batches),
            ("events a transaction", events / batches),
            ("RSS of the worker, MiB", rss_mib),
            ("bytes a prediction", written.value_bytes),
        ],
    )
    stages("pipeline: wall time by step, summed over partitions", stats["spent_s"], events, batches)
    if worker.samples is not None:
        wait_until("the sampling profile", worker.samples.exists, worker.check, timeout_s=20)
        samples(worker.samples)
    return {"events_per_s": written.events_per_s}


def footprint(bed: Bed, settings: Settings) -> dict[str, float]:
    """What the rows take on disk once their worker has stopped, whatever else lies in the data directory included.

    These users have a history; rows of users with a single event, as the restore makes them, compress to half.
    """
    bytes_per_user = disk_bytes(settings.data_dir) / bed.sizes.users
    table(
        "pipeline: data directory after a clean stop", ("what", "value"), [("bytes a user", bytes_per_user)]
    )
    return {"bytes_per_user": bytes_per_user}


def rate_rows(written: Written) -> list[tuple[str, float | int]]:
    """What both sides print of their rate."""
    return [
        ("events", len(written.timestamp_ms)),
        ("seconds, first to last output", written.seconds),
        ("of these ready when the clock started", written.ready),
        ("events a second", written.events_per_s),
        ("microseconds an event", 1e6 / written.events_per_s),
    ]


def cpu_rows(used_s: dict[str, float], written: Written) -> list[tuple[str, float]]:
    """What processes used while the outputs were written: the machine's load changes seconds, these hardly."""
    events = len(written.timestamp_ms) - written.ready
    return [(f"CPU seconds a second, {name}", s / written.seconds) for name, s in used_s.items()] + [
        (f"CPU microseconds an event, {name}", s * 1e6 / events) for name, s in used_s.items()
    ]


def run(bed: Bed) -> dict[str, float]:
    """Only this part."""
    settings = bed.topics("pipeline")
    fill(bed, settings, "pipeline", bed.sizes.events)
    with bed.worker(settings) as worker:
        figures = measure(bed, settings, worker)
    return figures | footprint(bed, settings)
