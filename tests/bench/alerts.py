"""What alerts cost: the same backlog without any, with churn timers, with the second stage, and with both.

A rate is of clicks: events a second from the first to the last prediction, while the second stage works beside. Rates
of a busy or throttled machine say little by themselves, so every round runs each way once, the next round in the
opposite order, and a figure is the median over rounds of two rates of one round. Processor time an event is said
beside it: of the worker and of the broker, until the last prediction, and until the second stage has read the rest.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from tests.bench.bed import Bed, now_ms
from tests.bench.pipeline import HISTORY_MS
from tests.bench.processes import wait_until
from tests.bench.readers import read_predictions
from tests.bench.report import samples, stages, table, tell
from tests.bench.traffic import Pair, send_backlog

ITEMS_A_SHOP = 50
ROUNDS = 3
#: Without alerts, with churn timers, with groups, with both.
WAYS = ("without", "churn", "groups", "all")


class Ran(NamedTuple):
    """One way of one round.

    Attributes:
        events_per_s: of clicks.
        worker_us, broker_us: processor time an event until the last prediction; 0 of a process elsewhere.
        worker_whole_us, broker_whole_us: until the second stage had read everything.
        records: of groups, an event.
        late_s: from the last prediction until the second stage had read the rest.
    """

    events_per_s: float
    worker_us: float = 0.0
    broker_us: float = 0.0
    worker_whole_us: float = 0.0
    broker_whole_us: float = 0.0
    records: float = 0.0
    late_s: float = 0.0


def with_shops(records: Iterator[Pair]) -> Iterator[Pair]:
    """Each event names the shop of its item and a device of its user, as a shop's own events do."""
    item = re.compile(rb'"item_id":"i(\d+)"')
    for key, value in records:
        found = item.search(value)
        shop = int(found[1]) // ITEMS_A_SHOP if found else 0
        yield key, b'%b,"shop_id":"s%d","device_id":"d-%b"}' % (value[:-1], shop, key)


def ran(bed: Bed, part: str, way: str) -> Ran:
    """A fresh worker over the backlog."""
    groups, events = way in ("groups", "all"), bed.sizes.events
    # The topics of the second stage are made only where it is on.
    settings = bed.topics(part, groups={"enabled": groups}, churn={"alerts": way in ("churn", "all")})
    tell(f"{part}: {events} events of {bed.sizes.users} users into {settings.clicks_topic}")
    records = bed.traffic(part).records(events, now_ms() - HISTORY_MS, (HISTORY_MS - 60_000) / events)
    send_backlog(bed.client, settings.clicks_topic, with_shops(records))
    with bed.worker(settings, part) as worker, bed.cpu(worker=worker.pid) as watch:
        worker.wait_ready(lambda text: None)
        worker.sample()
        bed.wait_drained(settings, worker)
        if groups:
            wait_until(
                "the second stage",
                lambda: worker.stats()["groups"]["lag_records"] == 0,
                worker.check,
                timeout_s=300,
            )
        rest_s = time.time()
        worker.sample()
        stats, counters = worker.stats(), worker.counters()
        if worker.samples is not None:
            wait_until("the sampling profile", worker.samples.exists, worker.check, timeout_s=20)
            samples(worker.samples)
    written = read_predictions(bed.client, settings.predictions_topic, events)
    stages(f"{part}: wall time by step, summed over partitions", stats["spent_s"], events)
    first_s, last_s = (float(end) / 1000 for end in (written.timestamp_ms.min(), written.timestamp_ms.max()))
    counted = events - written.ready
    used, whole = watch.used_s(first_s, last_s), watch.used_s(first_s, rest_s)
    return Ran(
        events_per_s=written.events_per_s,
        worker_us=1e6 * used.get("worker", 0.0) / counted,
        broker_us=1e6 * used.get("broker", 0.0) / counted,
        worker_whole_us=1e6 * whole.get("worker", 0.0) / counted,
        broker_whole_us=1e6 * whole.get("broker", 0.0) / counted,
        records=counters.get("foreclick_groups_events_total", 0.0) / events,
        late_s=rest_s - last_s if groups else 0.0,
    )


def run(bed: Bed) -> dict[str, float]:
    """Each way once a round."""
    found: dict[str, list[Ran]] = {way: [] for way in WAYS}
    for number in range(ROUNDS):
        for way in reversed(WAYS) if number % 2 else WAYS:
            found[way].append(ran(bed, f"{way}-{number}", way))
            last = found[way][-1]
            tell(
                f"round {number + 1} of {ROUNDS}, {way}: {last.events_per_s:,.0f} events a second, "
                f"processor us an event: worker {last.worker_us:.1f}, broker {last.broker_us:.1f}"
            )
    _tables(found)
    return figures(found)


def _tables(found: Mapping[str, Sequence[Ran]]) -> None:
    table(
        "alerts: events a second, by round",
        ("way", *(f"round {number + 1}" for number in range(ROUNDS))),
        [(way, *(one.events_per_s for one in rounds)) for way, rounds in found.items()],
    )
    table(
        "alerts: processor us an event, median",
        ("way", "worker", "broker", "worker, with the rest", "broker, with the rest"),
        [
            (way, *(statistics.median(column) for column in list(zip(*rounds, strict=True))[1:5]))
            for way, rounds in found.items()
        ],
    )
    table(
        "alerts: what is left of the rate, of two runs of one round",
        ("what", "median", "least", "most"),
        [
            (what, statistics.median(shares), min(shares), max(shares))
            for what, shares in (
                ("with churn timers", _rates(found, "churn", "without")),
                ("with groups", _rates(found, "groups", "without")),
                ("with everything", _rates(found, "all", "without")),
                ("with everything, of that with churn timers", _rates(found, "all", "churn")),
            )
        ],
    )
    table(
        "alerts: the second stage",
        ("what", "value"),
        [
            ("records an event", max(one.records for one in found["all"])),
            ("seconds until it had read the rest", max(one.late_s for one in found["all"])),
        ],
    )


def figures(found: Mapping[str, Sequence[Ran]]) -> dict[str, float]:
    """Medians over rounds: what each way leaves of the rate without alerts, and the worker's processor time."""
    return {
        "alerts_cost": statistics.median(_rates(found, "all", "without")),
        "churn_cost": statistics.median(_rates(found, "churn", "without")),
        "groups_cost": statistics.median(_rates(found, "all", "churn")),
        **{
            f"{way}_worker_us": statistics.median(one.worker_us for one in rounds)
            for way, rounds in found.items()
        },
    }


def _rates(found: Mapping[str, Sequence[Ran]], way: str, against: str) -> list[float]:
    """The rate of one way over that of another, by round."""
    return [
        one.events_per_s / other.events_per_s for one, other in zip(found[way], found[against], strict=True)
    ]
