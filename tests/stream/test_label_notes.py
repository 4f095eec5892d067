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
from stream.label_notes import Noting, click_notes, group_notes
from stream.label_records import Note, decode_label
from stream.partitioner import partition_of
from stream.settings import load_settings
from stream.stage import Rendered, Timed
from tests.stream.test_alert_calibration import spread, tally_of
from tests.stream.test_label_join import alert


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
    options = {"notes_of": lambda decoded, rows: []} | options
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
    assert noted({}, notes_of=lambda decoded, rows: [(b"u", b"note")]).messages.keys() == {
        f"labels/{partition_of(b'u', 4)}"
    }


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


def told(*records: _Event | Watermark, kinds: str = "shop,item") -> list[Note]:
    return decoded(group_notes(kinds.split(","))(DecodedGroups(list(records), [], 0), []))


def decoded(notes: Any) -> list[Note]:
    found = [decode_label(key, value) for key, value in notes]
    assert all(isinstance(each, Note) for each in found), found
    return found  # type: ignore[return-value]


def test_an_order_is_told_once_by_its_user_else_by_its_shop_else_by_its_item() -> None:
    """Its other groups hold the same order; an order without an id is its place, as in the evidence of alerts."""
    mine = [in_group(name, order_id="o1", shop_id="s1") for name in ("shop:s1", "user:u1")]
    assert len(told(*mine, kinds="shop,user")) == len(told(*mine, kinds="shop")) == 1
    order = {"order_id": "o1", "shop_id": "s1", "item_id": "i1"}
    groups = [in_group(name, **order) for name in ("shop:s1", "item:i1", "device:d1")]
    assert [each.subjects for each in told(*groups, Watermark(0, 5))] == [[("order", "o1")]]
    assert told(in_group("item:i1", **order)) == []
    assert [each.subjects for each in told(in_group("item:i1", item_id="i1", event_id="e1"))] == [
        [("order", "e1")]
    ]
    assert [each.subjects for each in told(in_group("item:i1", item_id="i1"))] == [[("order", "2/9")]]
    assert told(in_group("shop:s1", shop_id="s1", action="view")) == []
    assert told(in_group("item:i1", item_id="i1", order_id="o" * 600)) == []


# ---- of clicks


def clicked(*events: dict[str, Any], rows: tuple[bytes | None, ...] = (), **options: Any) -> list[Any]:
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
    return list(click_notes(*options.values())(decoded, rows or [b"row"] * len(decoded.keys)))


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
    found = decoded(clicked(with_shop, without, kinds=["shop"], rate=0.0))
    assert [each.subjects for each in found] == [[("order", "2/10")]]
    assert len(decoded(clicked(with_shop, without, kinds=[], rate=0.0))) == 2
    assert clicked(with_shop, without, kinds=["shop", "item"], rate=0.0) == []
    assert clicked({}, kinds=["shop", "user"], rate=0.0) == []
    # Of an announced crawler users' records tell nothing.
    assert len(clicked(with_shop | {"extra": {"crawler": 1}}, kinds=["shop", "user"], rate=0.0)) == 1


def test_a_first_event_is_told_of_users_whom_the_lot_names() -> None:
    """Users with a row were told before; the others whom the lot leaves out are of no use to the audit."""
    events = [{"action": "view"}, {"action": "view", "user": 2}, {"action": "view"}]
    found = decoded(clicked(*events, rows=(None, b"row"), kinds=[], rate=1.0))
    assert [(each.note, each.user_id) for each in found] == [("seen", "u1")]
    assert clicked(*events, rows=(None, None), kinds=[], rate=0.0) == []


def test_an_erased_user_is_erased_from_the_labels_too() -> None:
    """The tombstone goes on to the topic of labels, under the same key."""
    assert clicked({"action": "view", "user": 2}, {"erased": True}, kinds=[], rate=0.0) == [(b"u1", None)]


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
        Noting(each, alert_topics=[], outputs=[], notes_of=lambda decoded, rows: [])
        for each in (wrapped, Alerting({}))
    )
    assert isinstance(work, Timed)
    work.pass_time(7)
    without.pass_time(7)
    assert (work.due(), wrapped.passed_ms, without.due()) == (True, 7, False)
