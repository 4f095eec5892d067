"""Notes beside alerts: what a stage tells the join of labels, and the probability that labels gave."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

import pytest

from stream.alert_calibration import AlertCalibration
from stream.clicks_stage import clicks_work
from stream.errors import BrokenInvariant
from stream.group_detectors import GroupEvent
from stream.group_records import Watermark
from stream.groups_stage import DecodedGroups, _Event
from stream.label_notes import Notes, Noting, click_notes, group_notes
from stream.label_records import ORDERS_KEY, Order, packed_orders, seen_note
from stream.partitioner import partition_of
from stream.settings import load_settings
from stream.stage import Rendered, Timed
from tests.stream.test_alert_calibration import spread, tally_of
from tests.stream.test_label_join import alert

NOTHING = Notes([], [])


class Alerting:
    """A stage that renders what it is given."""

    def __init__(self, messages: dict[str, Any]):
        self.messages = messages
        self.accounted = 0

    def decode(self, records: Any) -> Any:
        return records

    async def score(self, decoded: Any, rows: list[bytes | None], now_ms: int) -> Rendered:
        return Rendered(self.messages, [(b"u1", b"row")], 5, "counts")

    def account(self, rendered: Rendered, received_s: float, committed_s: float) -> None:
        self.accounted += 1


def noted(messages: dict[str, Any], **options: Any) -> Rendered:
    outputs = [f"labels/{number}" for number in range(4)]
    options = {"notes_of": lambda decoded, rows: NOTHING} | options
    work = Noting(Alerting(messages), alert_topics=["fraud", "churn"], outputs=outputs, **options)
    return asyncio.run(work.score([], [], 0))


def test_notes_ride_with_the_alert_to_the_partition_of_their_user() -> None:
    """What the stage wrote stays as it is."""
    message = (b"s1", alert().as_json(), [])
    rendered = noted({"fraud": [message], "other": [(b"k", b"v", [])]})
    assert rendered.messages["fraud"] == [message]
    assert rendered.messages["other"] == [(b"k", b"v", [])]
    told = {key: topic for topic, items in rendered.messages.items() if "/" in topic for key, _, _ in items}
    assert told == {user: f"labels/{partition_of(user, 4)}" for user in (b"u1", b"u2", b"u3")}


def test_without_alerts_nothing_is_added() -> None:
    """The hot path of clicks pays one look."""
    messages = {"other": [(b"k", b"v", [])]}
    assert noted(messages).messages is messages


def test_notes_go_before_orders_each_to_the_partition_of_its_user() -> None:
    """Orders of several users of one partition share a record."""
    made = [Order(f"u{number}", "o1", 5) for number in range(9)]
    told = noted({}, notes_of=lambda decoded, rows: Notes([(b"u1", b"note")], made)).messages
    mine = list(told[f"labels/{partition_of(b'u1', 4)}"])
    assert (mine[0][:2], [key for key, _, _ in mine[1:]]) == ((b"u1", b"note"), [ORDERS_KEY])
    for number in range(4):
        there = [order for order in made if partition_of(order.user_id.encode(), 4) == number]
        packed = [value for key, value, _ in told.get(f"labels/{number}", ()) if key == ORDERS_KEY]
        assert packed == packed_orders(there)


def test_what_is_no_alert_in_a_topic_of_alerts_ends_the_process() -> None:
    """The stage that wrote it is broken; guessing would count wrongly for ever."""
    with pytest.raises(BrokenInvariant, match="no alert"):
        noted({"fraud": [(b"s1", b"{}", [])]})


def test_alerts_get_the_probability_of_their_detector_and_keep_their_own() -> None:
    """Filled in the transaction that sends them; all else of the alert is unchanged."""
    made = AlertCalibration.of_counts(tally_of(spread(b16=300), spread(b16=100), "order_brushing"), 200)

    def sent(**changes: float) -> dict[str, object]:
        messages = {"fraud": [(b"s1", alert(**changes).as_json(), [])]}
        ((_, value, _),) = noted(messages, calibration=lambda: made).messages["fraud"]
        found: dict[str, object] = json.loads(value or b"")
        return found

    before = json.loads(alert().as_json())
    assert sent() == before | {"probability": pytest.approx(301 / 402, abs=1e-6)}
    assert sent(probability=0.25)["probability"] == 0.25


# ---- of groups


def in_group(group: str, **fields: Any) -> _Event:
    made = {"event_time_ms": 5, "user_id": "u1", "action": "purchase", "partition": 2, "offset": 9}
    made |= {
        "event_id": None,
        "order_id": None,
        "item_id": None,
        "shop_id": None,
        "gap_ms": 4,
        "session_position": 2,
    }
    return _Event(group.encode(), GroupEvent(**made | fields))


def told(*records: _Event | Watermark, kinds: str = "shop,item") -> list[str]:
    """Ids of the orders."""
    notes = group_notes(kinds.split(","))(DecodedGroups(list(records), [], 0), [])
    assert notes.records == []
    assert all((order.user_id, order.time_ms) == ("u1", 5) for order in notes.orders)
    return [order.order_id for order in notes.orders]


def test_an_order_is_told_once_by_its_user_else_by_its_shop_else_by_its_item() -> None:
    """Its other groups hold the same order; an order without an id is its place, as in the evidence of alerts."""
    mine = [in_group(name, order_id="o1", shop_id="s1") for name in ("shop:s1", "user:u1")]
    assert len(told(*mine, kinds="shop,user")) == len(told(*mine, kinds="shop")) == 1
    order = {"order_id": "o1", "shop_id": "s1", "item_id": "i1"}
    groups = [in_group(name, **order) for name in ("shop:s1", "item:i1", "device:d1")]
    assert told(*groups, Watermark(0, 5)) == ["o1"]
    assert told(in_group("item:i1", **order)) == []
    assert told(in_group("item:i1", item_id="i1", event_id="e1")) == ["e1"]
    assert told(in_group("item:i1", item_id="i1")) == ["2/9"]
    assert told(in_group("shop:s1", shop_id="s1", action="view")) == []
    assert told(in_group("item:i1", item_id="i1", order_id="o" * 600)) == []


# ---- of clicks


def clicked(*events: dict[str, Any], rows: tuple[bytes | None, ...] = (), **options: Any) -> Notes:
    """Notes of a micro-batch of partition 2 that begins at offset 9; an event that is None erases u1."""
    records = [
        Clicked(2, 9 + place, f"u{event.get('user', 1)}".encode(), encoded_event(event))
        for place, event in enumerate(events)
    ]
    work = clicks_work(
        load_settings({}),
        topic="clicks",
        topic_id=b"0" * 16,
        partition=2,
        score=None,  # type: ignore[arg-type]
    )
    decoded = work.decode(records)
    assert not decoded.rejected, decoded.rejected
    return click_notes(*options.values())(decoded, rows or [b"row"] * len(decoded.keys))


class Clicked(NamedTuple):
    partition: int
    offset: int
    key: bytes
    value: bytes | None
    headers: tuple[Any, ...] = ()
    timestamp: int = 5


def encoded_event(event: dict[str, Any]) -> bytes | None:
    if "erased" in event:
        return None
    made = {"user_id": f"u{event.get('user', 1)}", "event_time_ms": 5, "action": "purchase"}
    return json.dumps(made | {name: value for name, value in event.items() if name != "user"}).encode()


def test_clicks_tell_the_orders_that_no_group_tells() -> None:
    """With shops among the groups an order with a shop is told by them; without groups clicks tell all."""
    with_shop, without = {"shop_id": "s1", "order_id": "o1"}, {"item_id": "i1"}
    found = clicked(with_shop, without, kinds=["shop"], rate=0.0)
    assert found == Notes([], [Order("u1", "2/10", 5)])
    assert len(clicked(with_shop, without, kinds=[], rate=0.0).orders) == 2
    assert clicked(with_shop, without, kinds=["shop", "item"], rate=0.0) == NOTHING
    assert clicked({}, kinds=["shop", "user"], rate=0.0) == NOTHING
    # Of an announced crawler users' records tell nothing.
    crawler = clicked(with_shop | {"extra": {"crawler": 1}}, kinds=["shop", "user"], rate=0.0)
    assert len(crawler.orders) == 1


def test_a_first_event_is_told_of_users_whom_the_lot_names() -> None:
    """Users with a row were told before; the others whom the lot leaves out are of no use to the audit."""
    events = [{"action": "view", "user": user, "event_time_ms": 5 + user} for user in (3, 1, 2, 1, 3)]
    found = clicked(*events, rows=(b"row", None, None), kinds=[], rate=1.0)
    assert found == Notes([(b"u1", seen_note("u1", 6)), (b"u2", seen_note("u2", 7))], [])
    assert clicked(*events, rows=(None, None, None), kinds=[], rate=0.0) == NOTHING


def test_an_erased_user_is_erased_from_the_labels_too() -> None:
    """The tombstone goes on to the topic of labels, under the same key."""
    found = clicked({"action": "view", "user": 2}, {"erased": True}, kinds=[], rate=0.0)
    assert found == Notes([(b"u1", None)], [])


class Waiting(Alerting):
    """A stage with timers."""

    passed_ms = 0

    def due(self) -> bool:
        return True

    def pass_time(self, watermark_ms: int) -> None:
        self.passed_ms = watermark_ms


def test_timers_of_a_stage_that_tells_run_on() -> None:
    """What the protocol asks of a stage with timers reaches the wrapped one; a stage without them has none due."""
    wrapped = Waiting({})
    work, without = (
        Noting(each, alert_topics=[], outputs=[], notes_of=lambda decoded, rows: NOTHING)
        for each in (wrapped, Alerting({}))
    )
    assert isinstance(work, Timed)
    work.pass_time(7)
    without.pass_time(7)
    assert (work.due(), wrapped.passed_ms, without.due()) == (True, 7, False)
