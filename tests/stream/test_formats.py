"""Laws of the adapters: what becomes of other people's events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import ConfigurationError
from stream.events import REASONS, Event
from stream.formats import (
    FORMATS,
    Rejected,
    adapt_object,
    adapt_record,
    by_columns,
    ga4,
    record_adapter,
    segment,
    tpp,
)
from stream.formats.columns import _FIELDS
from stream.formats.shapes import Delimited

CANONICAL_EVENT = {"user_id": "u", "event_time_ms": 5, "action": "view"}
SEGMENT_ORDER = {
    "type": "track",
    "event": "Order Completed",
    "messageId": "m-7",
    "anonymousId": "anon-1",
    "userId": "u1",
    "timestamp": "2024-05-01T10:00:00.250Z",
    "context": {"ip": "203.0.113.9", "device": {"id": "d1"}},
    "properties": {
        "order_id": "o9",
        "total": 30.5,
        "currency": "EUR",
        "products": [
            {"product_id": "a", "category": "shoes", "price": 10, "quantity": 2},
            {"sku": "b", "price": "10.5"},
        ],
    },
}
GA4_PURCHASE = {
    "event_name": "purchase",
    "event_timestamp": "1714557600250999",
    "user_id": None,
    "user_pseudo_id": "p.1",
    "event_params": [
        {"key": "ga_session_id", "value": {"int_value": "55"}},
        {"key": "currency", "value": {"string_value": "EUR"}},
    ],
    "ecommerce": {"transaction_id": "t1", "purchase_revenue": 12.5},
    "items": [{"item_id": "a", "item_category": "shoes", "price": 12.5, "quantity": 1}],
}


def test_segment_order_keeps_its_lines_and_total() -> None:
    """An order of two products has lines, its total as price, and no single item."""
    assert adapt_object(SEGMENT_ORDER) == {
        "user_id": "u1",
        "event_time_ms": 1714557600250,
        "action": "purchase",
        "event_id": "m-7",
        "order_id": "o9",
        "price": 30.5,
        "currency": "EUR",
        "device_id": "d1",
        "ip": "203.0.113.9",
        "lines": [
            {"item_id": "a", "category_id": "shoes", "price": 10, "quantity": 2},
            {"item_id": "b", "price": 10.5},
        ],
    }


def test_segment_product_view_uses_the_anonymous_user() -> None:
    """Without userId the user is anonymousId; offsets of the timestamp are honoured."""
    call = {
        "event": "Product Viewed",
        "messageId": "m",
        "anonymousId": "anon",
        "timestamp": "2024-05-01T12:00:00+02:00",
        "properties": {"product_id": 77, "category": "hats", "price": 5},
    }
    assert adapt_object(call) == {
        "user_id": "anon",
        "event_time_ms": 1714557600000,
        "action": "view",
        "event_id": "m",
        "item_id": "77",
        "category_id": "hats",
        "price": 5,
    }


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("Products Searched", "search"),
        ("Product Clicked", "click"),
        ("Product Viewed", "view"),
        ("Product Added", "cart"),
        ("Product Removed", "remove"),
        ("Product Added to Wishlist", "favourite"),
        ("Checkout Started", "checkout"),
        ("Order Completed", "purchase"),
        ("Order Refunded", "return"),
        ("Product Reviewed", "review"),
        ("Coupon Applied", "Coupon Applied"),
    ],
)
def test_segment_names_are_mapped_or_kept(name: str, action: str) -> None:
    """Names of the specification become canonical actions; others stay, to be counted as other."""
    call = {"event": name, "messageId": "m", "userId": "u", "timestamp": "2024-05-01T10:00:00Z"}
    adapted = segment.adapt_object(call)
    assert adapted is not None
    assert adapted["action"] == action


def test_ga4_export_row_becomes_a_purchase() -> None:
    """Microseconds are floored to milliseconds; a null user_id falls back on user_pseudo_id."""
    assert adapt_object(GA4_PURCHASE) == {
        "user_id": "p.1",
        "event_time_ms": 1714557600250,
        "action": "purchase",
        "session_id": "p.1.55",
        "item_id": "a",
        "category_id": "shoes",
        "order_id": "t1",
        "price": 12.5,
        "quantity": 1,
        "currency": "EUR",
        "lines": [{"item_id": "a", "category_id": "shoes", "price": 12.5, "quantity": 1}],
    }


def test_ga4_measurement_protocol_payload_of_one_event_is_that_event() -> None:
    """A payload's user and time belong to its only event; several events are refused, not dropped."""
    one = {"name": "view_item", "params": {"value": 3, "items": [{"item_id": "x"}]}}
    payload: dict[str, Any] = {"client_id": "c1", "timestamp_micros": 1714557600250000, "events": [one]}
    assert adapt_object(payload) == {
        "user_id": "c1",
        "event_time_ms": 1714557600250,
        "action": "view",
        "item_id": "x",
        "price": 3,
    }
    with pytest.raises(Rejected, match=r"one event at \$\.events"):
        adapt_object(payload | {"events": [one, one]})


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("view_item", "view"),
        ("select_item", "click"),
        ("view_search_results", "search"),
        ("search", "search"),
        ("add_to_cart", "cart"),
        ("remove_from_cart", "remove"),
        ("add_to_wishlist", "favourite"),
        ("begin_checkout", "checkout"),
        ("purchase", "purchase"),
        ("refund", "return"),
        ("scroll", "scroll"),
    ],
)
def test_ga4_names_are_mapped_or_kept(name: str, action: str) -> None:
    """Recommended e-commerce events become canonical actions; others stay, to be counted as other."""
    adapted = ga4.adapt_object({"event_name": name, "user_id": "u", "event_timestamp": 1714557600250000})
    assert adapted is not None
    assert adapted["action"] == action


@pytest.mark.parametrize(
    ("layout", "line", "expected"),
    [
        (
            "retailrocket",
            b"1430636062541,285933,transaction,298009,17",
            {
                "user_id": "285933",
                "event_time_ms": 1430636062541,
                "action": "purchase",
                "item_id": "298009",
                "order_id": "17",
            },
        ),
        (
            "retailrocket",
            b"1430636062541,285933,addtocart,298009,\r\n",
            {"user_id": "285933", "event_time_ms": 1430636062541, "action": "cart", "item_id": "298009"},
        ),
        (
            "rees46",
            b"2019-10-01 00:00:02 UTC,remove_from_cart,5,210,a.b,acme,33.20,7,s-1",
            {
                "user_id": "7",
                "event_time_ms": 1569888002000,
                "action": "remove",
                "session_id": "s-1",
                "item_id": "5",
                "category_id": "210",
                "price": 33.2,
            },
        ),
        (
            "shopee",
            b"31075208826809,147941492,195903090,2019-12-27 00:00:08",
            {
                "user_id": "195903090",
                "event_time_ms": 1577404808000,
                "action": "purchase",
                "event_id": "31075208826809",
                "order_id": "31075208826809",
                "shop_id": "147941492",
            },
        ),
        (
            "taobao",
            b"100,4572582,2188684,fav,1511550516",
            {
                "user_id": "100",
                "event_time_ms": 1511550516000,
                "action": "favourite",
                "item_id": "4572582",
                "category_id": "2188684",
            },
        ),
    ],
)
def test_a_delimited_record_becomes_its_canonical_event(
    layout: str, line: bytes, expected: dict[str, Any]
) -> None:
    """One line of a known layout is decoded by the format's name alone."""
    assert adapt_record(layout)(line) == expected


@pytest.mark.parametrize("layout", ["segment", "ga4", "canonical"])
def test_a_json_record_is_decoded_by_the_format_name(layout: str) -> None:
    """JSON formats are decoded from bytes as well, and refuse another shape with a reason."""
    objects = {
        "segment": SEGMENT_ORDER,
        "ga4": GA4_PURCHASE,
        "canonical": CANONICAL_EVENT,
    }
    read = adapt_record(layout)
    assert read(msgspec.json.encode(objects[layout]))["action"] in ("purchase", "view")
    with pytest.raises(Rejected) as refused:
        read(b'{"kind": 1}')
    assert refused.value.reason == "missing_field"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\xff,1,2,pv,1511550516", "undecodable"),
        (b"1,2,pv,1511550516", "undecodable"),
        (b'1,"2,3,pv,1511550516', "undecodable"),
        (b",2,3,pv,1511550516", "missing_field"),
        (b"1,2,3,,1511550516", "missing_field"),
        (b"1,2,3,pv,", "missing_field"),
        (b"1,2,3,pv,yesterday", "wrong_type"),
        (b"1,2,3,pv,-5", "wrong_type"),
        (b"1,2,3,pv,1e999", "not_finite"),
    ],
)
def test_a_bad_line_is_rejected_with_its_reason(line: bytes, reason: str) -> None:
    """Each way in which a line can be wrong has the reason that its dead letter will carry."""
    with pytest.raises(Rejected) as refused:
        adapt_record("taobao")(line)
    assert refused.value.reason == reason


def test_columns_keep_the_names_of_the_log() -> None:
    """A described layout maps no action, and gives extras as numbers."""
    layout = by_columns("user=who,time=when,action=what,price=cost,extra.width=w", time_format="%d/%m/%Y")
    row = {"who": "u", "when": "02/01/2024", "what": "pv", "cost": "", "w": "3.5"}
    assert layout.adapt_row(row) == {
        "event_time_ms": 1704153600000,
        "user_id": "u",
        "action": "pv",
        "extra": {"width": 3.5},
    }


def test_columns_take_the_names_of_the_canonical_event() -> None:
    """Whoever knows an event's fields need not learn others."""
    layout = by_columns("user_id=who,event_time_ms=when,event_type=what,item_id=thing")
    event = layout.adapt_row({"who": "u", "when": "5", "what": "view", "thing": "i"})
    assert event == {"user_id": "u", "event_time_ms": 5000, "action": "view", "item_id": "i"}
    with pytest.raises(ConfigurationError, match="user is given twice"):
        by_columns("user_id=a,user=b,time=t,action=c")


@pytest.mark.parametrize(
    "written",
    [
        *("1569888000", "1569888000000", "1569888000000000", "1569888000000000000"),
        *("2019-10-01 00:00:00 UTC", "2019-10-01T00:00:00Z", "2019-10-01", "2019-10-01 02:00:00+02:00"),
    ],
)
def test_a_time_is_told_by_its_size_or_its_shape(written: str) -> None:
    """One moment in seconds, milli-, micro- and nanoseconds and as people write it."""
    layout = by_columns("user=u,time=t,action=a")
    assert layout.adapt_row({"u": "u", "t": written, "a": "a"})["event_time_ms"] == 1_569_888_000_000


def test_columns_without_a_header_count_from_one() -> None:
    """Positions are as people count them, and 0 is refused with the reason."""
    layout = by_columns("user=1,time=02,action=3", header=False, delimiter="tab")
    assert layout.columns == ("1", "2", "3")
    assert layout.delimiter == "\t"
    with pytest.raises(ConfigurationError, match="position from 1"):
        by_columns("user=0,time=1,action=2", header=False)


def test_columns_of_an_order_log_need_no_action() -> None:
    """A log of orders has only purchases."""
    layout = by_columns("user=u,time=t,order=o", time_format="s")
    assert layout.adapt_row({"u": "7", "t": "5", "o": "x"}) == {
        "event_time_ms": 5000,
        "user_id": "7",
        "order_id": "x",
        "action": "purchase",
    }


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        ("1511550516", 1511550516000),
        ("1511550516123", 1511550516123),
        ("2017-11-24T19:08:36Z", 1511550516000),
    ],
)
def test_a_time_without_a_format_goes_by_its_value(value: str, ms: int) -> None:
    """Seconds, milliseconds and ISO 8601 are told apart by the value."""
    layout = by_columns("user=u,time=t,action=a")
    assert layout.adapt_row({"u": "7", "t": value, "a": "x"})["event_time_ms"] == ms


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ("user=u,time=t", {}, "action is missing"),
        ("user=u,time=t,action=a,colour=c", {}, "'colour=c' is not FIELD=COLUMN"),
        ("user=u,user=v,time=t,action=a", {}, "user is given twice"),
        ("user=u,time=t,action=a", {"time_format": "unix"}, "unknown time format 'unix'"),
        ("user=u,time=t,action=a", {"delimiter": "||"}, "not one character"),
    ],
)
def test_a_wrong_description_says_what_is_wrong(columns: str, options: dict[str, Any], message: str) -> None:
    """A mistyped flag is an error at once, with the fields that exist or an example."""
    with pytest.raises(ConfigurationError, match=message):
        by_columns(columns, **options)


def test_an_unknown_format_names_the_known_ones() -> None:
    """The message lists what can be asked for."""
    with pytest.raises(ConfigurationError, match="canonical, segment, ga4, retailrocket, rees46, taobao"):
        adapt_record("csv")


def test_a_topic_of_a_named_format_takes_objects_with_its_columns() -> None:
    """A configured delimited format adapts JSON objects that have its column names, and leaves others alone."""
    row = {"user": 7, "item": 1, "category": 2, "behaviour": "pv", "timestamp": 1511550516}
    adapted = record_adapter("taobao")(row)
    assert adapted == adapt_record("taobao")(b"7,1,2,pv,1511550516")
    assert record_adapter("taobao")({"user_id": "u"}) is None
    assert record_adapter("auto") is adapt_object


def rejected_for_a_known_reason(adapt: Callable[[Any], Any], value: Any) -> bool:
    """Whether adapt rejects the value; any other exception comes through."""
    try:
        adapt(value)
    except Rejected as refused:
        return refused.reason in REASONS
    return False


SEGMENT_KEYS = [
    "type", "event", "messageId", "userId", "anonymousId", "timestamp", "properties", "context", "products",
    "product_id", "sku", "category", "price", "total", "device", "id", "ip",
]  # fmt: skip
GA4_KEYS = [
    "event_name", "name", "events", "client_id", "event_timestamp", "timestamp_micros", "user_id", "params",
    "items", "user_pseudo_id", "event_params", "key", "value", "int_value", "ecommerce", "item_id", "device",
]  # fmt: skip
LIKELY = [
    "track",
    "page",
    "Product Viewed",
    "view_item",
    "2024-05-01T10:00:00Z",
    "u",
    1714557600250000,
    10**400,
]
names = st.sampled_from(SEGMENT_KEYS + GA4_KEYS)
leaves = st.sampled_from(LIKELY) | st.none() | st.booleans() | st.floats() | st.text(max_size=5)
inner = st.dictionaries(
    names, leaves | st.lists(st.dictionaries(names, leaves, max_size=3), max_size=2), max_size=5
)
objects = st.dictionaries(names, leaves | inner | st.lists(inner, max_size=2), max_size=12)


@given(objects)
def test_json_adapters_raise_nothing_but_rejected(event: dict[str, Any]) -> None:
    """Any object is of another shape, or rejected with a known reason, or converts to the canonical event."""
    if not rejected_for_a_known_reason(adapt_object, event):
        msgspec.convert(adapt_object(event) or CANONICAL_EVENT, Event)


delimited = [layout for layout in FORMATS.values() if isinstance(layout, Delimited)]
delimited.append(by_columns(",".join(f"{field}={field}" for field in [*_FIELDS, "time"]) + ",extra.x=item"))
cells = st.sampled_from(["", "7", "pv", "1511550516", "1e400", "2019-10-01 00:00:00 UTC"]) | st.text(
    max_size=5
)


@given(st.data())
def test_row_adapters_raise_nothing_but_rejected(data: st.DataObject) -> None:
    """Any cells are rejected with a known reason or convert to the event; absent columns count as empty."""
    layout = data.draw(st.sampled_from(delimited))
    row = data.draw(st.dictionaries(st.sampled_from(layout.columns), cells))
    if not rejected_for_a_known_reason(layout.adapt_row, row):
        msgspec.convert(layout.adapt_row(row), Event)


@given(st.sampled_from(sorted(FORMATS)), st.binary(max_size=60))
def test_record_decoders_raise_nothing_but_rejected(layout: str, value: bytes) -> None:
    """Random bytes are a rejection in every format."""
    assert rejected_for_a_known_reason(adapt_record(layout), value)


def test_a_sequence_is_a_user_and_its_clock_goes_by_the_gaps() -> None:
    """Types are actions of their number, a unit is ten thousand seconds, a jump of the times does not count."""
    sequence = {"seq": 4, "events": [[8, 151156.8853, 0], [16, 151156.9205, 0.0352], [8, 151180.0, 0.0001]]}
    assert tpp.events_of(sequence) == [
        {"user_id": "4", "event_time_ms": 1_511_568_853_000, "action": "8"},
        {"user_id": "4", "event_time_ms": 1_511_569_205_000, "action": "16"},
        {"user_id": "4", "event_time_ms": 1_511_569_206_000, "action": "8"},
    ]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([[1, 2.0]], r"expected \[type, time, gap\] at \$\.events\[0\]"),
        ([[1, 2.0, 0], [1, 2.0, -0.5]], r"expected a gap of 0 or more at \$\.events\[1\]"),
        ([[1, "noon", 0]], "expected a number as time"),
        ([[1, 0.0, 0]], "expected a time after 1970"),
        ([[None, 2.0, 0]], "missing value"),
        ([[1, float("inf"), 0]], "expected a finite time"),
    ],
)
def test_a_sequence_that_cannot_be_read_is_rejected_with_its_place(steps: list[Any], words: str) -> None:
    """As a whole: a sequence with a hole would have another history."""
    with pytest.raises(Rejected, match=words):
        tpp.events_of({"seq": 1, "events": steps})
