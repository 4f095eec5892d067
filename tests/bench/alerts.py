"""What alerts cost: the same backlog without any, with churn timers, and with the second stage as well, on one broker.

A figure is of clicks: events a second from the first to the last prediction, while the second stage works beside. How
long that takes to read the rest of what it was told is said too. Kinds of run follow one another and then come in the
opposite order, so what the machine does meanwhile counts on all sides.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from tests.bench.bed import Bed, now_ms
from tests.bench.pipeline import HISTORY_MS
from tests.bench.processes import wait_until
from tests.bench.readers import read_predictions
from tests.bench.report import stages, table, tell
from tests.bench.traffic import Pair, send_backlog

ITEMS_A_SHOP = 50


def with_shops(records: Iterator[Pair]) -> Iterator[Pair]:
    """Each event names the shop of its item and a device of its user, so all kinds of groups have work."""
    item = re.compile(rb'"item_id":"i(\d+)"')
    for key, value in records:
        found = item.search(value)
        shop = int(found[1]) // ITEMS_A_SHOP if found else 0
        yield key, b'%b,"shop_id":"s%d","device_id":"d-%b"}' % (value[:-1], shop, key)


#: Without alerts, with churn timers, with churn timers and groups.
KINDS = ("without", "churn", "all")


def events_per_s(bed: Bed, part: str, kind: str) -> tuple[float, dict[str, float]]:
    """Events a second of a fresh worker over the backlog, and what its second stage took."""
    enabled = kind == "all"
    # The topics of the second stage are made only where it is on.
    settings = bed.topics(part, groups={"enabled": enabled}, churn={"alerts": kind != "without"})
    events = bed.sizes.events
    tell(f"{part}: {events} events of {bed.sizes.users} users into {settings.clicks_topic}")
    records = bed.traffic(part).records(events, now_ms() - HISTORY_MS, (HISTORY_MS - 60_000) / events)
    send_backlog(bed.client, settings.clicks_topic, with_shops(records))
    with bed.worker(settings, part) as worker:
        worker.wait_ready(lambda text: None)
        bed.wait_drained(settings, worker)
        drained_s = time.monotonic()
        if enabled:
            tell(f"{part}: waiting for the second stage")
            wait_until(
                "the second stage",
                lambda: worker.stats()["groups"]["lag_records"] == 0,
                worker.check,
                timeout_s=300,
            )
        late_s = time.monotonic() - drained_s
        stats, counters = worker.stats(), worker.counters()
    written = read_predictions(bed.client, settings.predictions_topic, bed.sizes.events)
    stages(f"{part}: wall time by step, summed over partitions", stats["spent_s"], bed.sizes.events)
    return written.events_per_s, {
        "records": counters.get("foreclick_groups_events_total", 0.0),
        "late_s": late_s,
    }


def run(bed: Bed) -> dict[str, float]:
    """Each kind of run twice."""
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    told: list[dict[str, float]] = []
    for number, kind in enumerate((*KINDS, *reversed(KINDS))):
        rate, second_stage = events_per_s(bed, f"{kind}-{number}", kind)
        tell(f"alerts: {kind}, {rate:,.0f} events a second")
        rates[kind].append(rate)
        told.append(second_stage)
    figures = shares(rates)
    table(
        "alerts: a backlog without them, with churn timers, and with groups too",
        ("what", "first", "second"),
        [(f"events a second, {kind}", *rates[kind]) for kind in KINDS],
    )
    table(
        "alerts: what is left of the rate",
        ("what", "value"),
        [
            ("with churn timers", figures["churn_cost"]),
            ("with groups, of that", figures["groups_cost"]),
            ("with everything", figures["alerts_cost"]),
            ("records of groups an event", max(one["records"] for one in told) / bed.sizes.events),
            ("seconds until the second stage had read the rest", max(one["late_s"] for one in told)),
        ],
    )
    return figures


def shares(rates: dict[str, list[float]]) -> dict[str, float]:
    """What each kind leaves of the rate without alerts, and groups of that with churn timers."""
    without, churn, everything = (sum(rates[kind]) for kind in KINDS)
    return {
        "alerts_cost": everything / without,
        "churn_cost": churn / without,
        "groups_cost": everything / churn,
    }
