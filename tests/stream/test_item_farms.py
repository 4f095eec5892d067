"""Laws of the detector of click farms at one item."""

from __future__ import annotations

import json

import jsonschema
import msgspec
import numpy as np
import pytest

from models.simulator.dirt import Record
from models.simulator.simulate import simulate
from stream.alerts import Alert
from stream.errors import DamagedRow
from stream.events import Event, decode_events
from stream.group_detectors import ITEM, Group, GroupEvent
from stream.group_records import GroupRecords, group_of, read_record
from stream.injecting import inject_into
from stream.item_farms import ItemFarms
from stream.outputs import load_schema

HOUR_MS = 3_600_000
START_MS = 1_700_000_000_000
FARMS = ItemFarms("clicks")
THING = Group(ITEM, "thing")


def seen(user: str, at_ms: int, offset: int, action: str = "view") -> GroupEvent:
    return GroupEvent(START_MS + at_ms, user, action, 0, offset, item_id="thing")


def run(calls: list[list[GroupEvent]], end_ms: int = 400 * HOUR_MS) -> list[Alert]:
    """The alerts of consecutive calls through stored rows, the watermark at the latest event; then all is complete."""
    row, alerts, watermark_ms = None, [], 0
    for events in [*calls, []]:
        watermark_ms = max([watermark_ms, *(event.event_time_ms for event in events)])
        watermark_ms = watermark_ms if events else START_MS + end_ms
        fold = FARMS.fold(THING, row, events, watermark_ms)
        assert fold.row is None or len(fold.row) <= FARMS.max_row_bytes
        assert fold.due_ms is None or fold.due_ms > watermark_ms
        row, alerts = fold.row, alerts + fold.alerts
    return alerts


def farm() -> list[GroupEvent]:
    """Eight accounts over days, each orders thrice, nobody else looks."""
    return [
        seen(f"f{user}", (order * 20 + user * 2) * HOUR_MS, order * 8 + user, "purchase")
        for order in range(3)
        for user in range(8)
    ]


def test_repeated_orders_are_flagged_with_their_buyers() -> None:
    """The farm's accounts are the members, and each alert is as the topic's schema wants it."""
    alerts = run([farm()])
    assert set(alerts[-1].members) == {f"f{user}" for user in range(8)}
    assert alerts[-1].reasons[0]["code"] == "repeated_orders"
    validator = jsonschema.Draft202012Validator(load_schema("alerts.fraud"))
    for alert in alerts:
        validator.validate(json.loads(alert.as_json()))
        assert all(entry["event_time_ms"] <= alert.event_time_ms for entry in alert.evidence)


def test_an_order_told_again_is_one() -> None:
    """Under its id, or a shop that sends each order thrice would be a farm; without ids each counts."""
    twice = [
        msgspec.structs.replace(event, order_id=f"o{event.user_id}-{event.event_time_ms if other else 0}")
        for other in (False, True)
        for event in farm()
    ]
    assert run([twice[:24]]) == []
    assert run([twice[24:]])


def test_sale_and_staple_are_not_flagged() -> None:
    """Fifty who buy once within an hour; half who buy twice a week; and regulars, week after week."""
    assert run([[seen(f"p{n}", n * 60_000, n, "purchase") for n in range(50)]]) == []
    assert run([[seen(f"p{n % 40}", n * 2 * HOUR_MS, n, "purchase") for n in range(60)]]) == []
    weekly = [seen(f"p{n % 6}", n * 27 * HOUR_MS, n, "purchase") for n in range(300)]
    assert run([weekly], end_ms=9000 * HOUR_MS) == []


def test_cuts_and_arrival_change_no_alert() -> None:
    """In calls of any size, and out of order up to the limit, the alerts are the same bytes."""
    log = sorted(farm(), key=lambda event: event.event_time_ms)
    whole = [alert.as_json() for alert in run([log])]
    assert whole
    rng = np.random.default_rng(1)
    for _ in range(5):
        delays = rng.integers(FARMS.late_limit_ms, size=len(log))
        late = [
            event
            for _, event in sorted(zip(delays, log, strict=True), key=lambda p: p[1].event_time_ms + p[0])
        ]
        cut = int(rng.integers(1, len(late)))
        assert [alert.as_json() for alert in run([late[:cut], late[cut:]])] == whole


def test_bounded_row_says_so() -> None:
    """A thousand buyers find no room: the row stays below its limit, and what is said later is approximate."""
    crowd = [seen(f"buyer-{n:040d}", n * 60_000, n, "purchase") for n in range(1000)]
    orders = [seen(f"f{n % 40}", (20 + n) * HOUR_MS, 2000 + n, "purchase") for n in range(160)]
    alerts = run([crowd[k : k + 50] for k in range(0, 1000, 50)] + [[order] for order in orders])
    assert alerts
    assert all(alert.approximate for alert in alerts)


def test_forgets_an_item_after_a_week() -> None:
    """A row without orders for a week is no row, and a view makes none."""
    assert FARMS.fold(THING, None, [seen("a", 0, 0)], START_MS).row is None
    fold = FARMS.fold(THING, None, [seen("a", 0, 0, "purchase")], START_MS)
    fold = FARMS.fold(THING, fold.row, [], START_MS + FARMS.late_limit_ms)
    assert fold.row is not None
    assert FARMS.fold(THING, fold.row, [], fold.due_ms or 0).row is None


def test_an_erased_user_is_in_no_row() -> None:
    """Neither as a buyer nor as one whose order waits; the others stay."""
    events = [seen(f"f{user}", user * HOUR_MS, user, "purchase") for user in range(4)]
    fold = FARMS.fold(THING, None, events, START_MS + 2 * HOUR_MS)
    assert fold.row is not None
    left = FARMS.erase(fold.row, {"f0", "f3"})
    for user in range(4):
        assert (f"f{user}".encode() in fold.row, f"f{user}".encode() in left) == (True, user in (1, 2))
    assert left == FARMS.fold(THING, None, events[1:3], START_MS + 2 * HOUR_MS).row


def test_damaged_row_is_said() -> None:
    """Bytes of another build are no row."""
    with pytest.raises(DamagedRow):
        FARMS.fold(THING, b"\x09abc", [], START_MS)
    with pytest.raises(DamagedRow):
        FARMS.fold(THING, b"\x02abc", [], START_MS)


def flagged(attacks: dict[str, int]) -> list[set[str]]:
    """Labels of the members of each alert on a fortnight with hard negatives, as the second stage hears it."""
    simulation = simulate(400, 12_000, 3, days=14.0)
    encode = msgspec.json.Encoder().encode
    records = [Record(event.user_id.encode(), encode(event)) for event in simulation.events]
    crawlers = {label.user_id for label in simulation.labels if label.label == "crawler"}
    crowds = {"flash_sale": 5, "celebrity": 3, "families": 5, "crawlers": 5, "heavy_buyers": 10}
    records, truth, *_ = inject_into(records, simulation.events, attacks, crowds, 3, crawlers=crawlers)
    decoded = decode_events([record.key for record in records], [record.value for record in records], None)
    events = sorted((each for each in decoded if isinstance(each, Event)), key=lambda e: e.event_time_ms)
    later = np.full(len(events), 9)
    told = GroupRecords("groups", 1, (ITEM,)).messages(events, 0, np.arange(len(events)), later, later)
    label_of = {label.user_id: label.label for label in truth}
    of_item: dict[bytes, list[GroupEvent]] = {}
    for key, value, _ in told["groups/0"]:
        found = read_record(key, value or b"")
        if key is not None and isinstance(found, GroupEvent):
            of_item.setdefault(key, []).append(found)
    return [
        {label_of[user] for user in alert.members}
        for key, mine in of_item.items()
        for alert in FARMS.fold(group_of(key), None, mine, mine[-1].event_time_ms + HOUR_MS).alerts
    ]


def test_simulated_farms_are_flagged_and_honest_crowds_are_not() -> None:
    """Sales, links, families, crawlers and heavy buyers: none; beside them bursts and drips, and no honest member."""
    assert flagged({}) == []
    farms = flagged({"burst": 20, "drip": 20})
    assert farms
    assert set().union(*farms) == {"fake"}
