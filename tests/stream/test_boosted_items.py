"""Laws of the detector of items that a few users push, and of the visits that it is told of."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import pairwise

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.alerts import Alert
from stream.boosted_items import BoostedItems
from stream.errors import DamagedRow
from stream.events import Event
from stream.group_detectors import ITEM, MAX_ROW_BYTES, Group, GroupEvent
from stream.group_records import read_record
from stream.insistence import RETURNS, insistent_visits
from stream.outputs import load_schema
from tests.stream.live_shop import ATTACKS, NEGATIVES, alerts_of, shop_log, told_of

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
START_MS = 1_700_000_000_000
BOOSTED = BoostedItems("clicks")
THING = Group(ITEM, "thing")


def visit(user: str, at_ms: int, offset: int, action: str = "click") -> GroupEvent:
    return GroupEvent(START_MS + at_ms, user, action, 0, offset, item_id="thing")


def run(calls: list[list[GroupEvent]]) -> tuple[list[Alert], bytes | None]:
    """The alerts of consecutive calls through stored rows, the watermark at the latest event, and the last row."""
    row: bytes | None = None
    alerts: list[Alert] = []
    watermark_ms = 0
    for events in calls:
        watermark_ms = max([watermark_ms, *(event.event_time_ms for event in events)])
        fold = BOOSTED.fold(THING, row, events, watermark_ms)
        assert fold.row is None or len(fold.row) <= BOOSTED.max_row_bytes
        assert fold.due_ms is None or fold.due_ms > watermark_ms
        row, alerts = fold.row, alerts + fold.alerts
    return alerts, row


def farm(users: int = 6) -> list[GroupEvent]:
    return [visit(f"f{user}", user * HOUR_MS, user) for user in range(users)]


# ---------------------------------------------------------------------- which visits are told


def told(items: Sequence[str | None], **more: object) -> list[int]:
    """Places of the visits that are insistent, among those of one user."""
    events = [
        Event(user_id="u", event_time_ms=START_MS + n * 1000, action="view", item_id=item, **more)  # type: ignore[arg-type]
        for n, item in enumerate(items)
    ]
    records = told_of(events, (ITEM,))
    return [read_record(one.key, one.value).offset for one in records if one.key]  # type: ignore[union-attr]


def test_the_fifth_return_is_told_once() -> None:
    """Returns, not looks: one who stays at an item is told of as little as one who comes back four times."""
    back = ["a", "b"] * (RETURNS + 3)
    assert told(back) == [2 * RETURNS, 2 * RETURNS + 1]
    assert told(["a", "b"] * RETURNS) == []
    assert told(["a"] * 30) == []
    assert told(["a", "a", None, "a"] * RETURNS) == [4 * RETURNS - 1]
    assert told([f"i{n}" for n in range(200)]) == []


def test_of_crawlers_that_say_so_nothing_is_told() -> None:
    """Their visits are nobody's push."""
    assert told(["a", "b"] * 20, extra={"crawler": 1.0}) == []


@settings(deadline=None)
@given(st.lists(st.sampled_from([None, "a", "b", "c"]), max_size=80))
def test_told_visits_are_those_of_a_plain_count(items: list[str | None]) -> None:
    """What the arrays say is what counting the stays in the last 32 events says."""
    expected = []
    for place, item in enumerate(items):
        last = items[max(0, place - 31) : place + 1]
        stays = [one for one, before in zip(last, [None, *last], strict=False) if one == item != before]
        if item is not None and last[-2:-1] != [item] and len(stays) == RETURNS + 1:
            expected.append(place)
    assert told(items) == expected


def test_an_order_is_told_as_an_order_alone() -> None:
    """An order that begins a fifth return is one record of its item, or it would count twice there."""
    items = ["a", "b"] * RETURNS + ["a"]
    events = [
        Event(
            user_id="u",
            event_time_ms=START_MS + n,
            action="purchase" if n == len(items) - 1 else "view",
            item_id=i,
        )
        for n, i in enumerate(items)
    ]
    assert [read_record(one.key, one.value).action for one in told_of(events, (ITEM,)) if one.key] == [  # type: ignore[union-attr]
        "purchase"
    ]
    assert len([one for one in told_of(events, ()) if one.key]) == 0, "nobody wants to hear of items"


def test_windows_that_are_empty_tell_nothing() -> None:
    """An event without an item is no visit, though its place in the window is empty as others are."""
    columns = {
        "item": np.zeros(3, np.uint32),
        "repeat_item": np.zeros(3, np.bool_),
        "window_item": np.zeros((3, 32), np.uint32),
    }
    assert not insistent_visits(columns).any()


# ---------------------------------------------------------------------- which items are flagged


def test_an_item_that_few_push_is_flagged_with_them() -> None:
    """The accounts are the members, and each alert is as the topic's schema wants it."""
    alerts, _ = run([farm()])
    assert set(alerts[-1].members) == {f"f{user}" for user in range(6)}
    assert alerts[-1].reasons[0]["code"] == "insistence"
    validator = jsonschema.Draft202012Validator(load_schema("alerts.fraud"))
    for alert in alerts:
        validator.validate(json.loads(alert.as_json()))
        assert all(entry["event_time_ms"] <= alert.event_time_ms for entry in alert.evidence)
    assert len({alert.id for alert in alerts}) == len(alerts)


def test_two_users_a_best_seller_and_regulars_are_not_flagged() -> None:
    """Two have nothing in common yet; where 300 ordered, six come back again and again; and one user who does daily."""
    assert run([farm(2)])[0] == []
    orders = [visit(f"p{n}", n * 60_000, 100 + n, "purchase") for n in range(300)]
    assert run([farm(1), orders, farm(6)[1:]])[0] == []
    assert run([[visit("u", n * DAY_MS, n) for n in range(60)]])[0] == []
    apart = [visit(f"f{n}", n * 5 * DAY_MS, n) for n in range(12)]
    assert run([apart])[0] == [], "two of them in a week"


@pytest.mark.parametrize("seed", range(5))
def test_cuts_change_nothing_and_arrival_not_who_is_flagged(seed: int) -> None:
    """In calls of any size the bytes are the same; in any order the last verdict has the same members."""
    chance = random.Random(seed)
    events = [*farm(8), *(visit(f"p{n}", n * HOUR_MS, 50 + n, "purchase") for n in range(3))]
    whole, row = run([events])
    cuts = sorted(chance.sample(range(1, len(events)), 3))
    cut, cut_row = run([events[a:b] for a, b in pairwise([0, *cuts, len(events)])])
    assert [alert.as_json() for alert in cut] == [alert.as_json() for alert in whole]
    assert cut_row == row
    orders_first = sorted(chance.sample(events, len(events)), key=lambda event: event.action != "purchase")
    assert run([orders_first])[0][-1].members == whole[-1].members


def test_a_visit_told_again_is_one() -> None:
    """Users are counted, not visits."""
    assert run([farm(3) * 5])[0] == []


def test_bounded_row_says_so() -> None:
    """A thousand users with long names find no room: the row stays below its limit, and the alert is approximate."""
    crowd = [visit(f"{n:0500d}", n * 1000, n) for n in range(1000)]
    alerts, row = run([crowd[k : k + 100] for k in range(0, 1000, 100)])
    assert 8 << 10 < len(row or b"") <= MAX_ROW_BYTES
    assert alerts[-1].approximate
    assert not alerts[0].approximate


def test_an_item_is_forgotten_a_week_after_the_last_visit() -> None:
    """Then there is no row; orders alone make none."""
    _, row = run([farm(3)])
    fold = BOOSTED.fold(THING, row, [], START_MS + 3 * HOUR_MS)
    assert BOOSTED.fold(THING, fold.row, [], fold.due_ms or 0).row is None
    assert BOOSTED.fold(THING, None, [visit("a", 0, 0, "purchase")], START_MS).row is None


def test_an_erased_user_is_in_no_row() -> None:
    """The others stay as they are; where nobody is left there is no row."""
    _, row = run([farm(3)])
    assert row is not None
    left = BOOSTED.erase(row, {"f0"})
    assert left is not None
    assert b"f0" not in left
    assert left == run([farm(3)[1:]])[1]
    assert BOOSTED.erase(row, {"f0", "f1", "f2"}) is None


def test_damaged_rows_are_said() -> None:
    """Bytes of another build are no row."""
    for damaged in (b"\x09abc", b"\x01abc"):
        with pytest.raises(DamagedRow):
            BOOSTED.fold(THING, damaged, [], START_MS)


def test_simulated_coattails_are_flagged_and_honest_crowds_are_not() -> None:
    """Of a shop with every attack and hard negative: a good part of the coattail, and of the honest one in 200."""
    events, labels = shop_log(500, 15_000, 5, dict.fromkeys(ATTACKS, 20))
    kinds = {label.user_id: label.kind for label in labels}
    assert set(NEGATIVES) <= set(kinds.values())
    flagged = {user for alert in alerts_of(events, [BOOSTED]) for user in alert["members"]}
    assert sum(kinds[user] == "coattail" for user in flagged) >= 5
    assert sum(kinds[user] not in ATTACKS for user in flagged) <= len(kinds) / 200
