"""Laws of group detectors: a fold is the same however its events are cut, and one alert is enough for a while."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.alerts import Alert
from stream.brushed_shops import BrushedShops
from stream.events import Event
from stream.group_detectors import SHOP, Fold, Group, GroupDetector, GroupEvent, Said, hold_back
from stream.order_brushing import OrderBrushing, ShopLog

RULE = OrderBrushing("clicks")
HOUR_MS = 3_600_000
START_MS = 1_577_836_800_000
DAY_MS = 24 * HOUR_MS
SHOP_S = Group(SHOP, "s")


def bought(buyer: str, at_ms: int, order: str, offset: int) -> GroupEvent:
    return GroupEvent(START_MS + at_ms, buyer, "purchase", 0, offset, order_id=order, shop_id="s")


def found_by(detector: GroupDetector, calls: list[tuple[list[GroupEvent], int]]) -> list[Alert]:
    """The alerts of consecutive calls, each with its events and watermark, through stored rows."""
    row: bytes | None = None
    alerts: list[Alert] = []
    for events, watermark_ms in calls:
        fold: Fold = detector.fold(SHOP_S, row, events, watermark_ms)
        assert fold.row is None or len(fold.row) <= detector.max_row_bytes
        assert fold.due_ms is None or fold.due_ms > watermark_ms, "it would be looked at for ever"
        row, alerts = fold.row, alerts + fold.alerts
    return alerts


drawn_orders = st.lists(
    st.tuples(st.integers(0, 16).map(lambda step: step * HOUR_MS // 4), st.sampled_from("abc")), max_size=40
)


@given(drawn_orders, st.data())
@settings(deadline=None, max_examples=50)
def test_brushed_shops_are_those_of_the_offline_rule_however_calls_are_cut(
    drawn: list[tuple[int, str]], data: st.DataObject
) -> None:
    """Out of order up to the limit, some twice, the watermark behind the events, in calls of any size: the same."""
    orders = [bought(buyer, at_ms, f"o{n}", n) for n, (at_ms, buyer) in enumerate(sorted(drawn))]
    arrived = sorted(
        [*orders, *(data.draw(st.lists(st.sampled_from(orders), max_size=5)) if orders else [])],
        key=lambda order: order.event_time_ms + data.draw(st.integers(0, RULE.late_limit_ms)),
    )
    calls: list[tuple[list[GroupEvent], int]] = []
    latest_ms, cuts = 0, data.draw(st.lists(st.integers(0, len(arrived)), max_size=6))
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(arrived)], strict=True):
        part = arrived[start:end]
        latest_ms = max([latest_ms, *(order.event_time_ms for order in part)])
        calls.append((part, latest_ms - data.draw(st.integers(0, HOUR_MS))))
    watermark_ms = 0
    for number, (part, mark) in enumerate(calls):  # it never falls
        watermark_ms = max(watermark_ms, mark)
        calls[number] = (part, watermark_ms)
    log = ShopLog(RULE)
    events = [
        Event(
            user_id=order.user_id,
            event_time_ms=order.event_time_ms,
            action="purchase",
            shop_id="s",
            order_id=order.order_id,
        )
        for order in orders
    ]
    live = found_by(BrushedShops(RULE), [*calls, ([], START_MS + DAY_MS)])
    places = {order.order_id: order.offset for order in orders}
    assert [alert.as_json() for alert in live] == [
        alert.as_json() for alert in log.alerts((places[event.order_id], event) for event in events)
    ]


def test_a_shop_that_was_never_flagged_is_forgotten_and_a_flagged_one_later() -> None:
    """State does not grow with every shop that ever sold; a verdict outlives its windows by weeks."""
    detector = BrushedShops(RULE)
    quiet = detector.fold(SHOP_S, None, [bought("a", 0, "o", 0)], START_MS)
    assert quiet.due_ms == START_MS + HOUR_MS + RULE.late_limit_ms + 1
    assert detector.fold(SHOP_S, quiet.row, [], quiet.due_ms).row is None
    flagged = detector.fold(SHOP_S, None, [bought("a", n, f"o{n}", n) for n in range(3)], START_MS + DAY_MS)
    assert len(flagged.alerts) == 1
    assert flagged.due_ms == START_MS + 2 + detector.remembered_ms
    assert detector.fold(SHOP_S, flagged.row, [], flagged.due_ms).row is None


def alert(number: int, at_ms: int, *members: str) -> Alert:
    return Alert(
        id=f"a{number}",
        kind="k",
        subject_type="shop",
        subject="s",
        score=0.5,
        severity="low",
        event_time_ms=START_MS + at_ms,
        reasons=[],
        evidence=[],
        members=list(members),
    )


def test_one_alert_a_subject_in_a_cool_down_with_the_count_held_back() -> None:
    """The same again is counted, somebody new is said at once, and after the cool-down it is said again."""
    said, first = hold_back(None, alert(0, 0, "a"), HOUR_MS)
    assert first == alert(0, 0, "a")
    for number in (1, 2):
        said, none = hold_back(said, alert(number, number, "a"), HOUR_MS)
        assert none is None
    said, wider = hold_back(said, alert(3, 3, "b"), HOUR_MS)
    assert wider is not None
    assert (wider.supersedes, wider.held_back, said.held_back) == ("a0", 2, 0)
    said, none = hold_back(said, alert(4, 4, "a"), HOUR_MS)  # whom the cool-down's first alert named
    assert none is None
    said, again = hold_back(said, alert(5, 3 + HOUR_MS, "a"), HOUR_MS)
    assert again is not None
    assert (again.supersedes, again.held_back) == ("a3", 1)


def test_what_was_said_is_bounded() -> None:
    """An alert about thousands does not make a row of thousands."""
    said, _ = hold_back(None, alert(0, 0, *(f"u{n}" for n in range(5000))), HOUR_MS)
    assert len(msgspec.msgpack.encode(said)) < 3000
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(said), type=Said) == said
