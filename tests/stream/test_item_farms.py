"""Laws of the detector of click farms at one item."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest

from stream.alerts import Alert
from stream.errors import DamagedRow
from stream.group_detectors import ITEM, Group, GroupEvent
from stream.item_farms import ItemFarms
from stream.outputs import load_schema

HOUR_MS = 3_600_000
START_MS = 1_700_000_000_000
FARMS = ItemFarms("clicks")
THING = Group(ITEM, "thing")


def seen(user: str, at_ms: int, offset: int, action: str = "view", position: int = 1) -> GroupEvent:
    return GroupEvent(START_MS + at_ms, user, action, 0, offset, item_id="thing", session_position=position)


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


def test_orders_that_nobody_looks_at_are_flagged_with_their_buyers() -> None:
    """The farm's accounts are the members, and each alert is as the topic's schema wants it."""
    alerts = run([farm()])
    assert set(alerts[-1].members) == {f"f{user}" for user in range(8)}
    validator = jsonschema.Draft202012Validator(load_schema("alerts.fraud"))
    for alert in alerts:
        validator.validate(json.loads(alert.as_json()))
        assert all(entry["event_time_ms"] <= alert.event_time_ms for entry in alert.evidence)


def test_sale_and_best_seller_are_not_flagged() -> None:
    """Fifty who buy once within an hour, and three hundred visitors of whom one in twelve buys: nothing."""
    sale = [seen(f"p{n}", n * 60_000, n, "purchase", position=2) for n in range(50)]
    assert run([sale]) == []
    visits = [seen(f"p{n}", n * HOUR_MS // 4, n, "view" if n % 12 else "purchase") for n in range(300)]
    assert run([visits]) == []


def test_cuts_and_arrival_change_no_alert() -> None:
    """In calls of any size, and out of order up to the limit, the alerts are the same bytes."""
    whole = [alert.as_json() for alert in run([farm()])]
    rng = np.random.default_rng(1)
    for _ in range(5):
        events = farm()
        delays = rng.integers(FARMS.late_limit_ms, size=len(events))
        late = [
            event
            for _, event in sorted(zip(delays, events, strict=True), key=lambda p: p[1].event_time_ms + p[0])
        ]
        cut = int(rng.integers(1, len(late)))
        assert [alert.as_json() for alert in run([late[:cut], late[cut:]])] == whole


def test_bounded_row_says_so() -> None:
    """A thousand visitors find no room: the row stays below its limit, and what is said later is approximate."""
    crowd = [seen(f"visitor-{n:040d}", n * 60_000, n) for n in range(1000)]
    orders = [seen(f"f{n % 4}", (20 + n) * HOUR_MS, 2000 + n, "purchase") for n in range(40)]
    alerts = run([crowd[k : k + 50] for k in range(0, 1000, 50)] + [[order] for order in orders])
    assert alerts
    assert all(alert.approximate for alert in alerts)


def test_forgets_an_item_after_a_week() -> None:
    """A row without visitors for a week is no row."""
    fold = FARMS.fold(THING, None, [seen("a", 0, 0)], START_MS)
    fold = FARMS.fold(THING, fold.row, [], START_MS + FARMS.late_limit_ms)
    assert fold.row is not None
    assert FARMS.fold(THING, fold.row, [], fold.due_ms or 0).row is None


def test_damaged_row_is_said() -> None:
    """Bytes of another build are no row."""
    with pytest.raises(DamagedRow):
        FARMS.fold(THING, b"\x09abc", [], START_MS)
    with pytest.raises(DamagedRow):
        FARMS.fold(THING, b"\x01abc", [], START_MS)
