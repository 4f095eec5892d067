"""Laws of the detector of devices whose accounts order the same."""

from __future__ import annotations

import json
import random
from itertools import pairwise

import jsonschema
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stream.alerts import Alert
from stream.errors import DamagedRow
from stream.events import Event
from stream.group_detectors import DEVICE, MAX_ROW_BYTES, Group, GroupEvent
from stream.group_records import group_of
from stream.outputs import load_schema
from stream.shared_devices import SharedDevices
from tests.stream.live_shop import ATTACKS, NEGATIVES, alerts_of, shop_log, told_of

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
START_MS = 1_700_000_000_000
DEVICES = SharedDevices("clicks")
PHONE = Group(DEVICE, "d1")
OFFICE = Group(DEVICE, "192.0.2.7")


def order(user: str, what: str | None, at_ms: int, offset: int, shop: str | None = None) -> GroupEvent:
    return GroupEvent(START_MS + at_ms, user, "purchase", 0, offset, item_id=what, shop_id=shop)


def run(calls: list[list[GroupEvent]], group: Group = PHONE) -> tuple[list[Alert], bytes | None]:
    """The alerts of consecutive calls through stored rows, the watermark at the latest event, and the last row."""
    row: bytes | None = None
    alerts: list[Alert] = []
    watermark_ms = 0
    for events in calls:
        watermark_ms = max([watermark_ms, *(event.event_time_ms for event in events)])
        fold = DEVICES.fold(group, row, events, watermark_ms)
        assert fold.row is None or len(fold.row) <= DEVICES.max_row_bytes
        assert fold.due_ms is None or fold.due_ms > watermark_ms
        row, alerts = fold.row, alerts + fold.alerts
    return alerts, row


def farm(accounts: int = 6, items: int = 2) -> list[GroupEvent]:
    return [
        order(f"f{account}", f"i{item}", (item * accounts + account) * HOUR_MS, item * accounts + account)
        for item in range(items)
        for account in range(accounts)
    ]


def family(weeks: int = 2) -> list[GroupEvent]:
    """Four who buy for themselves each second day; once a week one buys what another has."""
    events = []
    for day in range(7 * weeks):
        for member in range(4):
            what = "toy" if day % 7 == member == 2 or day % 7 == member == 1 else f"own{member}-{day}"
            if (day + member) % 2 == 0:
                events.append(order(f"m{member}", what, day * DAY_MS + member * HOUR_MS, len(events)))
    return events


# ---------------------------------------------------------------------- which devices are flagged


def test_accounts_that_order_the_same_on_one_device_are_flagged() -> None:
    """They are the members, and each alert is as the topic's schema wants it."""
    alerts, _ = run([farm()])
    assert set(alerts[-1].members) == {f"f{account}" for account in range(6)}
    assert alerts[-1].reasons[0]["code"] == "same_orders"
    validator = jsonschema.Draft202012Validator(load_schema("alerts.fraud"))
    for alert in alerts:
        validator.validate(json.loads(alert.as_json()))
        assert all(entry["event_time_ms"] <= alert.event_time_ms for entry in alert.evidence)
    assert len({alert.id for alert in alerts}) == len(alerts)


def test_families_two_accounts_and_one_buyer_are_not_flagged() -> None:
    """What people who live together buy is mostly different; two share a taste; one account has nobody."""
    assert run([family()])[0] == []
    assert run([farm(accounts=2, items=12)])[0] == []
    assert run([[order("u", f"i{n % 3}", n * HOUR_MS, n) for n in range(60)]])[0] == []


def test_an_office_that_hears_of_a_sale_is_not_flagged() -> None:
    """Behind an address two items prove nothing, and beyond sixteen accounts no number of items does."""
    sale = [order(f"o{n}", "sale", n * 60_000, n) for n in range(12)]
    assert run([sale], OFFICE)[0] == []
    assert run([sale])[0] != [], "on one device twelve accounts do not meet by chance"
    assert run([farm(items=2)], OFFICE)[0] == []
    assert run([farm(items=3)], OFFICE)[0] != [], "six accounts with three items are flagged there too"
    others = [order(f"o{n}", f"own{n}", 0, 100 + n) for n in range(12)]
    assert run([others, farm(items=3)], OFFICE)[0] == [], "eighteen accounts"


def test_orders_a_week_apart_are_not_together() -> None:
    """Six accounts in twelve weeks have nothing in common."""
    apart = [order(f"f{n}", "i", n * 8 * DAY_MS, n) for n in range(12)]
    assert run([apart])[0] == []


def test_an_order_told_again_is_one_and_one_without_an_item_counts_by_its_shop() -> None:
    """Accounts that did the same are counted, not records; an order that names neither says nothing."""
    assert run([farm(accounts=3, items=1) * 9])[0] == []
    shops = [order(f"f{n % 6}", None, n * HOUR_MS, n, shop=f"s{n // 6}") for n in range(12)]
    assert run([shops])[0] != []
    nameless = [order(f"f{n % 6}", None, n * HOUR_MS, n) for n in range(12)]
    assert run([nameless]) == ([], None)


@pytest.mark.parametrize("seed", range(5))
def test_cuts_change_nothing_and_arrival_not_who_is_flagged(seed: int) -> None:
    """In calls of any size the bytes are the same; in any order the last verdict has the same members."""
    chance = random.Random(seed)
    events = farm()
    whole, row = run([events])
    cuts = sorted(chance.sample(range(1, len(events)), 3))
    cut, cut_row = run([events[a:b] for a, b in pairwise([0, *cuts, len(events)])])
    assert [alert.as_json() for alert in cut] == [alert.as_json() for alert in whole]
    assert cut_row == row
    assert run([chance.sample(events, len(events))])[0][-1].members == whole[-1].members


_ORDERS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 12 * 24)), min_size=1, max_size=40
)


#: An order too old to count comes behind one of the same account and item that does.
_TOO_OLD = [(0, 0, 1), (0, 1, 169), (0, 0, 0), *((user, item, 1) for user in (1, 2, 3) for item in (0, 1))]


@settings(deadline=None)
@given(_ORDERS)
@example(_TOO_OLD)
def test_evidence_is_that_of_a_plain_count(drawn: list[tuple[int, int, int]]) -> None:
    """Every alert's coincidences are pairs of account and item of the last week, less one an item."""
    events = [order(f"u{u}", f"i{i}", hour * HOUR_MS, n) for n, (u, i, hour) in enumerate(drawn)]
    alerts = {alert.id.rsplit("/", 1)[1]: alert for alert in run([events])[0]}
    seen: dict[tuple[str, str], int] = {}
    latest_ms = 0
    for n, event in enumerate(events):
        latest_ms = max(latest_ms, event.event_time_ms)
        seen = {pair: at for pair, at in seen.items() if at >= latest_ms - 7 * DAY_MS}
        if event.event_time_ms >= latest_ms - 7 * DAY_MS:
            seen[event.user_id, event.item_id or ""] = event.event_time_ms
        if str(n) in alerts:
            items = [item for _, item in seen]
            shared = {user for user, item in seen if items.count(item) > 1}
            assert set(alerts[str(n)].members) == shared
            assert f"{len(items) - len(set(items))} times" in str(alerts[str(n)].reasons[0]["text"])


# ---------------------------------------------------------------------- the row


def test_bounded_row_says_so() -> None:
    """Long names find no room: the row stays below its limit, and alerts are approximate."""
    crowd = [order(f"{n % 9:0300d}", f"{n // 9:0300d}", n * 1000, n) for n in range(300)]
    alerts, row = run([crowd[k : k + 50] for k in range(0, 300, 50)])
    assert 8 << 10 < len(row or b"") <= MAX_ROW_BYTES
    assert alerts[-1].approximate
    assert not alerts[0].approximate


def test_a_device_is_forgotten_a_week_after_its_last_order() -> None:
    """Then there is no row."""
    _, row = run([farm()])
    due_ms = DEVICES.fold(PHONE, row, [], START_MS).due_ms
    assert due_ms == START_MS + 11 * HOUR_MS + 7 * DAY_MS
    assert DEVICES.fold(PHONE, row, [], due_ms).row is None


def test_an_erased_account_is_in_no_row() -> None:
    """The others stay as they are; where nobody is left there is no row."""
    _, row = run([farm(3)])
    assert row is not None
    left = DEVICES.erase(row, {"f0"})
    assert left is not None
    assert b"f0" not in left
    assert b"f1" in left
    assert DEVICES.erase(row, {"f0", "f1", "f2"}) is None


def test_damaged_rows_are_said() -> None:
    """Bytes of another build are no row."""
    for damaged in (b"\x09abc", b"\x01abc"):
        with pytest.raises(DamagedRow):
            DEVICES.fold(PHONE, damaged, [], START_MS)


# ---------------------------------------------------------------------- what is told of devices


def test_orders_are_told_to_their_device_or_else_their_address() -> None:
    """Orders alone; where neither is named nothing is told."""
    events = [
        Event(user_id="u", event_time_ms=START_MS + n, action=action, item_id="i", device_id=device, ip=ip)
        for n, (action, device, ip) in enumerate(
            [
                ("purchase", "d1", "192.0.2.7"),
                ("purchase", None, "192.0.2.7"),
                ("view", "d1", None),
                ("purchase", None, None),
            ]
        )
    ]
    groups = [group_of(record.key) for record in told_of(events, (DEVICE,)) if record.key]
    assert groups == [PHONE, OFFICE]


def test_simulated_farms_are_flagged_and_families_are_not() -> None:
    """Of a shop with every attack and hard negative: some of those who share a device, and nobody honest."""
    events, labels = shop_log(500, 15_000, 5, dict.fromkeys(ATTACKS, 30))
    kinds = {label.user_id: label.kind for label in labels}
    assert set(NEGATIVES) <= set(kinds.values())
    flagged = [kinds[user] for user in {u for a in alerts_of(events, [DEVICES]) for u in a["members"]}]
    assert len(flagged) >= 8
    assert not set(flagged) & {*NEGATIVES, "normal"}
