"""What poison costs: a backlog of which every second record is rejected, against one of events alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

from stream.events import Rejection, decode_events
from stream.formats import adapt_object
from stream.settings import Settings
from tests.bench.bed import Bed, now_ms
from tests.bench.pipeline import HISTORY_MS
from tests.bench.processes import BenchFailed
from tests.bench.readers import read_predictions
from tests.bench.report import stages, table, tell
from tests.bench.traffic import Pair, send_backlog
from tests.poison.variants import variants

DRAWN = 3_000


def rejected_values(seed: int) -> list[bytes]:
    """Hostile values of all kinds and sizes that are no event under any key."""
    drawn = [record.value for record in variants(DRAWN, seed) if record.value is not None]
    keys = [b"u000000"] * len(drawn)
    # A record that is rejected for its key alone would be an event under its own: it is of no use here.
    return [
        value
        for value, decoded in zip(drawn, decode_events(keys, drawn, adapt_object), strict=True)
        if isinstance(decoded, Rejection) and decoded.reason not in {"key_mismatch", "bad_user_id"}
    ]


def every_second_poisoned(records: Iterator[Pair], poison: list[bytes]) -> Iterator[Pair]:
    """After each event a hostile value under the same key, so that all partitions have as many."""
    for (key, value), hostile in zip(records, cycle(poison), strict=False):
        yield key, value
        yield key, hostile


def records_per_s(bed: Bed, part: str, poison: list[bytes]) -> float:
    """Records a second, rejected ones included, of a fresh worker over ``bed.sizes.events`` of them.

    Raises:
        BenchFailed: not every event has its prediction, or not every hostile record its dead letter.
    """
    settings: Settings = bed.topics(part)
    sent = bed.sizes.events
    events = sent // 2 if poison else sent
    tell(f"{part}: {sent} records, {sent - events} of them poison")
    records = bed.traffic(part).records(events, now_ms() - HISTORY_MS, (HISTORY_MS - 60_000) / events)
    send_backlog(
        bed.client, settings.clicks_topic, every_second_poisoned(records, poison) if poison else records
    )
    with bed.worker(settings, part) as worker:
        worker.wait_ready(lambda text: None)
        bed.wait_drained(settings, worker)
        stats, (_, metrics) = worker.stats(), worker.get("/metrics")
    written = read_predictions(bed.client, settings.predictions_topic, events)
    lines = [
        line for line in metrics.decode().splitlines() if line.startswith("foreclick_dlq_records_total{")
    ]
    letters = sum(int(float(line.rsplit(" ", 1)[1])) for line in lines)
    if letters != sent - events:
        raise BenchFailed(f"{sent - events} hostile records became {letters} dead letters.")
    stages(f"{part}: wall time by step, summed over partitions", stats["spent_s"], sent)
    return written.events_per_s * sent / events


def run(bed: Bed) -> dict[str, float]:
    """Clean, poisoned, clean again: what the machine does meanwhile counts on both sides."""
    poison = rejected_values(bed.sizes.seed)
    before = records_per_s(bed, "clean", [])
    poisoned = records_per_s(bed, "poison", poison)
    after = records_per_s(bed, "clean-again", [])
    ratio = 2 * poisoned / (before + after)
    sizes = sorted(len(value) for value in poison)
    table(
        "poison: a backlog of which every second record is rejected",
        ("what", "value"),
        [
            ("records a second, clean", before),
            ("records a second, 50 % poison", poisoned),
            ("records a second, clean again", after),
            ("ratio", ratio),
            ("bytes of a hostile value, median", sizes[len(sizes) // 2]),
            ("bytes of a hostile value, mean", sum(sizes) / len(sizes)),
        ],
    )
    return {"poison_ratio": ratio}
