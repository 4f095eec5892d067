"""Laws of order brushing: equal to the rule as it is written, in whatever order the orders arrive."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.alerts import Alert
from stream.errors import ConfigurationError, DamagedRow
from stream.events import Event
from stream.order_brushing import Order, OrderBrushing, ShopLog, ShopOrders
from stream.outputs import load_schema
from tests.command_line import foreclick

START_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
RULE = OrderBrushing("orders")


def purchase(shop: str | None, buyer: str, at_ms: int, order: str | None = None) -> Event:
    return Event(
        user_id=buyer, event_time_ms=START_MS + at_ms, action="purchase", order_id=order, shop_id=shop
    )


def alerts_of(events: list[Event], rule: OrderBrushing = RULE) -> list[Alert]:
    return ShopLog(rule).alerts(enumerate(events))


def verdicts(alerts: list[Alert]) -> dict[str, set[str]]:
    """The members of each shop's last alert."""
    return {alert.subject: set(alert.members) for alert in alerts}


def by_the_rule(events: list[Event]) -> dict[str, set[str]]:
    """The rule as it is written: every order's window, every order of the shop looked at."""
    found: dict[str, set[str]] = {}
    for first in events:
        window = [
            event.user_id
            for event in events
            if event.shop_id == first.shop_id
            and first.event_time_ms <= event.event_time_ms <= first.event_time_ms + HOUR_MS
        ]
        counts = Counter(window)
        if len(window) >= 3 and len(window) / len(counts) >= 3:
            most = {buyer for buyer, count in counts.items() if count == max(counts.values())}
            found.setdefault(str(first.shop_id), set()).update(most)
    return found


#: Times on a coarse grid, so that both ends of the hour are met often.
orders = st.lists(
    st.tuples(
        st.integers(0, 16).map(lambda step: step * HOUR_MS // 4),
        st.sampled_from("abc"),
        st.sampled_from("st"),
    ),
    max_size=40,
)


@given(orders)
@settings(deadline=None)
def test_verdicts_are_those_of_the_rule(drawn: list[tuple[int, str, str]]) -> None:
    """On any log: the same shops and the same buyers as by looking at every window."""
    events = [purchase(shop, buyer, at, f"o{n}") for n, (at, buyer, shop) in enumerate(sorted(drawn))]
    assert verdicts(alerts_of(events)) == by_the_rule(events)


@given(orders, st.data())
@settings(deadline=None)
def test_late_and_repeated_orders_change_nothing(
    drawn: list[tuple[int, str, str]], data: st.DataObject
) -> None:
    """Orders that come up to the limit late, some of them again, give the same alerts but for their positions."""
    events = [purchase(shop, buyer, at, f"o{n}") for n, (at, buyer, shop) in enumerate(sorted(drawn))]
    delays = st.integers(0, RULE.late_limit_ms)
    arrivals = [(event.event_time_ms + data.draw(delays), event) for event in events]
    if events:
        again = data.draw(st.lists(st.sampled_from(events), max_size=10))
        arrivals += [(event.event_time_ms + data.draw(delays), event) for event in again]
    arrived = [event for _, event in sorted(arrivals, key=lambda each: each[0])]
    log = ShopLog(RULE)
    assert without_positions(log.alerts(enumerate(arrived))) == without_positions(alerts_of(events))
    assert log.counts.taken == len(events)
    assert log.counts.repeated == len(arrived) - len(events)


def without_positions(alerts: list[Alert]) -> list[object]:
    plain = [json.loads(alert.as_json()) for alert in alerts]
    for each in plain:
        for order in each["evidence"]:
            del order["source"]
    return plain


@given(orders)
@settings(deadline=None)
def test_a_row_between_any_two_orders_changes_nothing(drawn: list[tuple[int, str, str]]) -> None:
    """The state is its row: stored and read again after each order, the alerts are the same bytes."""
    events = [purchase("s", buyer, at, f"o{n}") for n, (at, buyer, _) in enumerate(sorted(drawn))]
    row: bytes | None = None
    found: list[Alert] = []
    for offset, event in enumerate(events):
        known = ShopOrders.of_row(row)
        order = Order(event.event_time_ms, str(event.order_id), event.user_id, 0, offset)
        found += RULE.take("s", known, order, event.event_time_ms)[1]
        row = known.row()
    found += RULE.finish("s", ShopOrders.of_row(row))
    assert [alert.as_json() for alert in found] == [alert.as_json() for alert in alerts_of(events)]


def test_both_ends_of_the_hour_are_inside() -> None:
    """Orders exactly 3600 s apart share a window; a millisecond more and they do not."""
    assert alerts_of([purchase("s", "a", at) for at in (0, 5, HOUR_MS)])
    assert not alerts_of([purchase("s", "a", at) for at in (0, 5, HOUR_MS + 1)])


def test_ties_are_all_suspicious_and_the_rest_is_not() -> None:
    """Of nine orders by three buyers, 4, 4 and 1, the two with four are named."""
    alert = alerts_of([purchase("s", buyer, n) for n, buyer in enumerate("aaaabbbbc")])[-1]
    assert alert.members == ["a", "b"]


def test_two_orders_are_never_suspicious() -> None:
    """However few their buyers."""
    assert not alerts_of([purchase("s", "a", 0), purchase("s", "a", 1)])


def test_a_wider_verdict_supersedes_and_an_equal_one_is_held_back() -> None:
    """A second buyer gives a second alert that names the first; the same buyer again gives none."""
    events = [purchase("s", "a", n) for n in range(4)]
    events += [purchase("s", "b", 2 * HOUR_MS + n) for n in range(3)]
    first, second = alerts_of(events)
    assert (first.members, first.supersedes, first.held_back) == (["a"], None, 0)
    assert (second.members, second.supersedes, second.held_back) == (["a", "b"], first.id, 1)
    assert {order["user_id"] for order in second.evidence} == {"a", "b"}
    assert first.evidence[0]["source"] == {"topic": "orders", "partition": 0, "offset": 0}
    validator = jsonschema.Draft202012Validator(load_schema("alerts.fraud"))
    for alert in (first, second):
        validator.validate(json.loads(alert.as_json()))


def test_a_window_is_judged_when_no_order_can_come_any_more() -> None:
    """One millisecond before, an order at the window's end is still in time; then the alert is there."""
    known = ShopOrders()
    for n in range(3):
        assert RULE.take("s", known, Order(START_MS + n, f"o{n}", "a", 0, n), START_MS) == ("taken", [])
    due_ms = START_MS + HOUR_MS + RULE.late_limit_ms + 1
    assert RULE.deadline_ms(known) == due_ms
    assert RULE.judge("s", known, due_ms - 1) == []
    assert len(RULE.judge("s", known, due_ms)) == 1


def test_an_order_beyond_the_limit_is_late() -> None:
    """It is counted and changes nothing; one that is as old as the limit is taken."""
    log = ShopLog(RULE)
    log.take(purchase("s", "a", RULE.late_limit_ms + 1), 0, 0)
    log.take(purchase("s", "a", 0), 0, 1)
    log.take(purchase("s", "a", 1), 0, 2)
    assert (log.counts.late, log.counts.taken) == (1, 2)


def test_orders_without_a_shop_are_counted() -> None:
    """They are no shop's; other actions are no orders."""
    log = ShopLog(RULE)
    view = Event(user_id="a", event_time_ms=START_MS, action="view", shop_id="s")
    assert log.alerts(enumerate([purchase(None, "a", 0), purchase("", "a", 1), view])) == []
    assert (log.counts.without_shop, log.counts.taken) == (2, 0)


def test_memory_is_bounded_and_the_alert_says_so() -> None:
    """A million orders would not grow the row; a brusher among them is found, approximately."""
    rule = OrderBrushing("orders", max_order_bytes=2_000)
    known = ShopOrders()
    found: list[Alert] = []
    for n in range(500):
        order = Order(START_MS + n, f"o{n:03}", "a", 0, n)
        found += rule.take("s", known, order, START_MS + n)[1]
        assert len(known.row()) < 3_000
    assert [(alert.members, alert.approximate) for alert in found] == [(["a"], True)]
    late = Order(START_MS, "another", "a", 0, 501)
    assert rule.take("s", known, late, START_MS + 500)[0] == "beyond_memory"


def test_a_full_verdict_says_so_once() -> None:
    """Where members find no room the alert is approximate, and does not come again and again."""
    rule = OrderBrushing("orders", max_member_bytes=200)
    events = [purchase("s", f"buyer-{n:02}", 2 * n * HOUR_MS + k) for n in range(20) for k in range(3)]
    alerts = alerts_of(events, rule)
    assert [alert.approximate for alert in alerts] == [False] * (len(alerts) - 1) + [True]
    assert len(alerts) < 5


def test_a_strange_row_or_limit_is_an_error() -> None:
    """A row of another build, a damaged one, and a window of no length."""
    with pytest.raises(DamagedRow, match="reads version 1"):
        ShopOrders.of_row(b"\x07")
    with pytest.raises(DamagedRow, match="damaged"):
        ShopOrders.of_row(ShopOrders().row()[:-1])
    with pytest.raises(ConfigurationError, match="window_ms is 0"):
        OrderBrushing("orders", window_ms=0)


def test_rows_are_read_as_they_were_first_written() -> None:
    """The layout of version 1 only grows at its end."""
    known = ShopOrders([Order(1000, "o", "b", 2, 3)], 34, 5, {"m": []}, 0.5, "i", 6, True, False)
    first = "01999195cd03e8a16fa1620203220581a16d90cb3fe0000000000000a16906c3c2"
    assert ShopOrders.of_row(bytes.fromhex(first)) == known
    assert known.row().hex() == "019a" + first[4:] + "00"
    assert ShopOrders.of_row(known.row()) == known


LOG = """orderid,shopid,userid,event_time
1,7,70,2020-01-01 00:00:00
2,7,70,2020-01-01 00:30:00
3,7,70,2020-01-01 01:00:00
3,7,70,2020-01-01 01:00:00
4,8,80,2020-01-01 00:00:00
5,,80,2020-01-01 00:00:00
"""


def test_score_writes_alerts_without_a_model(tmp_path: Path) -> None:
    """A line an alert; what is no order is a dead letter, and the repeated one is counted."""
    log, out, letters = tmp_path / "orders.csv", tmp_path / "alerts.jsonl", tmp_path / "rejected.jsonl"
    log.write_text(LOG)
    ran = foreclick("score", log, "--format", "shopee", "--alerts", out, "--dead-letters", letters, "--json")
    assert ran.code == 0
    (alert,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert list(alert) == load_schema("alerts.fraud")["required"]
    assert (alert["subject"], alert["members"]) == ("7", ["70"])
    assert [each["order_id"] for each in alert["evidence"]] == ["1", "2", "3"]
    assert (ran.json["alerts"], ran.json["model"], ran.json["predictions"]) == (1, None, 0)
    assert (ran.json["orders"]["taken"], ran.json["orders"]["repeated"]) == (4, 1)
    assert sum(ran.json["dead_letters"].values()) == len(letters.read_text().splitlines()) == 1


def test_predictions_and_alerts_come_from_one_run(tmp_path: Path) -> None:
    """Both files are written, and standard output cannot be both."""
    log, out, alerts = tmp_path / "orders.csv", tmp_path / "p.jsonl", tmp_path / "a.jsonl"
    log.write_text(LOG)
    ran = foreclick("score", log, "--format", "auto", "--out", out, "--alerts", alerts, "--json")
    assert ran.json["format"] == "shopee"
    assert (ran.json["predictions"], ran.json["duplicates_dropped"]) == (4, 1)
    assert len(out.read_text().splitlines()) == 4
    assert len(alerts.read_text().splitlines()) == 1
    ran = foreclick("score", log, "--out", "-", "--alerts", "-")
    assert ran.code == 1
    assert "both standard output" in ran.error
