"""Decoding: what is an event, what is rejected and why, and that no bytes raise."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stream.events import REASONS, Event, Line, Rejection, decode_events, unknown_fields
from stream.formats import Rejected, adapt_object

NOON = 1_700_000_000_000


def canonical(**given: Any) -> bytes:
    return json.dumps({"user_id": "u1", "event_time_ms": NOON, "action": "view", **given}).encode()


def decode(value: bytes | None, key: bytes | None = b"u1", adapt: Any = None) -> Event | Rejection | None:
    (decoded,) = decode_events([key], [value], adapt)
    return decoded


def reason(value: bytes | None, key: bytes | None = b"u1", adapt: Any = None) -> str:
    decoded = decode(value, key, adapt)
    assert isinstance(decoded, Rejection), decoded
    assert decoded.reason in REASONS
    assert decoded.message
    return decoded.reason


def test_every_field_of_a_canonical_event_is_read() -> None:
    """Strings, numbers, order lines and extra numbers; unknown fields are passed over."""
    event = decode(
        canonical(
            event_id="e",
            session_id="s",
            item_id="i",
            category_id="c",
            shop_id="h",
            order_id="o",
            price=9.5,
            quantity=2,
            currency="EUR",
            dwell_ms=40,
            device_id="d",
            ip="::1",
            lines=[{"item_id": "i", "category_id": "c", "price": 1, "quantity": 2.5}],
            extra={"depth": 3},
            unheard_of=[1, {"a": None}],
        )
    )
    assert event == Event(
        user_id="u1",
        event_time_ms=NOON,
        action="view",
        event_id="e",
        session_id="s",
        item_id="i",
        category_id="c",
        shop_id="h",
        order_id="o",
        price=9.5,
        quantity=2.0,
        currency="EUR",
        dwell_ms=40,
        device_id="d",
        ip="::1",
        lines=[Line(item_id="i", category_id="c", price=1.0, quantity=2.5)],
        extra={"depth": 3.0},
    )


def test_optional_fields_may_be_missing_or_null() -> None:
    """Both mean the same: None, never 0."""
    assert decode(canonical(price=None, item_id=None)) == decode(canonical())
    assert decode(canonical()).price is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", "undecodable"),
        (b"{", "undecodable"),
        (b"\xff\xfe", "undecodable"),
        (b'\xef\xbb\xbf{"user_id":"u1"}', "undecodable"),
        (canonical() + b" trailing", "undecodable"),
        (canonical(item_id="\ud800"), "undecodable"),
        (canonical(item_id="@").replace(b"@", b"\xff"), "undecodable"),
        (b"[" * 30_000 + b"]" * 30_000, "undecodable"),
        (canonical(deep=0).replace(b": 0}", b": " + b"[" * 30_000 + b"]" * 30_000 + b"}"), "undecodable"),
        (b"null", "wrong_type"),
        (b"[]", "wrong_type"),
        (b'"u1"', "wrong_type"),
        (canonical(user_id=1), "wrong_type"),
        (canonical(action=7), "wrong_type"),
        (canonical(event_time_ms="2024-01-01"), "wrong_type"),
        (canonical(event_time_ms=1.5), "wrong_type"),
        (canonical(event_time_ms=True), "wrong_type"),
        (canonical(event_time_ms=0), "wrong_type"),
        (canonical(event_time_ms=-1), "wrong_type"),
        (canonical(event_time_ms=2**53), "wrong_type"),
        (canonical(dwell_ms=10**30), "wrong_type"),
        (canonical(price="9"), "wrong_type"),
        (canonical(extra={"a": "b"}), "wrong_type"),
        (canonical(lines=[1]), "wrong_type"),
        (b"{}", "missing_field"),
        (b'{"user_id": "u1", "action": "view"}', "missing_field"),
        (canonical(action=None), "missing_field"),
        (canonical(price=float("nan")), "not_finite"),
        (canonical(price=float("-inf")), "not_finite"),
        (canonical(extra={"a": float("inf")}), "not_finite"),
        (canonical(unheard_of=float("nan")), "not_finite"),
        (canonical(price=1).replace(b": 1}", b": 1e999}"), "not_finite"),
        (canonical(price=1).replace(b": 1}", b": " + b"9" * 400 + b"}"), "not_finite"),
        (canonical(price=1).replace(b": 1}", b": " + b"9" * 5000 + b"}"), "not_finite"),
        (canonical(extra={"a": 1}).replace(b": 1}}", b": -1e999}}"), "not_finite"),
        (canonical(lines=[{"price": 1}]).replace(b": 1}]", b": 1e999}]"), "not_finite"),
        (canonical(user_id="someone else"), "key_mismatch"),
    ],
)
def test_bytes_that_are_no_event_have_a_reason(value: bytes, expected: str) -> None:
    """Each way to be wrong goes to the dead letters under its own name, with and without adapters."""
    assert reason(value) == expected
    assert reason(value, adapt=adapt_object) == expected


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (canonical(event_time_ms="x"), "Expected `int`, got `str` - at `$.event_time_ms`"),
        (canonical(event_time_ms=2**53), "at `$.event_time_ms`"),
        (canonical(lines=[{"price": "x"}]), "at `$.lines[0].price`"),
        (b'{"user_id": "u1"}', "lacks `event_time_ms`, `action`"),
        (canonical(user_id="u2"), "key is b'u1'; expected the user_id 'u2'"),
        (b"x" * 70_000, "70000 bytes; expected at most 65536"),
        (b"[]", "Expected `object`, got `array`"),
    ],
)
def test_a_rejection_names_the_place_and_what_was_expected(value: bytes, said: str) -> None:
    """The message lets a producer be mended without reading the pipeline's source."""
    decoded = decode(value)
    assert isinstance(decoded, Rejection)
    assert said in decoded.message


def test_event_times_at_their_edges() -> None:
    """From one millisecond after 1970 to the largest integer that a double holds exactly."""
    for edge in (1, 2**53 - 1):
        assert decode(canonical(event_time_ms=edge)).event_time_ms == edge  # type: ignore[union-attr]


def test_values_up_to_64_kib_are_taken() -> None:
    """65,536 bytes are an event, one more is too large, whatever is in it."""
    short = canonical(pad="")
    full = canonical(pad="x" * (65_536 - len(short)))
    assert len(full) == 65_536
    assert isinstance(decode(full), Event)
    assert reason(full + b" ") == "too_large"
    assert reason(b"\xff" * 65_537) == "too_large"


@pytest.mark.parametrize("user_id", ["", "\0fence", "x" * 513, "é" * 257])
def test_user_ids_outside_their_limits_are_rejected(user_id: str) -> None:
    """Empty, starting with U+0000 (keys of our own) or over 512 bytes; events and tombstones alike."""
    assert reason(canonical(user_id=user_id), user_id.encode()) == "bad_user_id"
    assert reason(None, user_id.encode()) == "bad_user_id"


@pytest.mark.parametrize("user_id", ["x", "x" * 512, "é" * 256, "a\0b", "\x01", "日本", "𐍈"])
def test_user_ids_within_their_limits_are_taken(user_id: str) -> None:
    """1 to 512 bytes of UTF-8; the key is the same bytes."""
    assert decode(canonical(user_id=user_id), user_id.encode()).user_id == user_id  # type: ignore[union-attr]
    assert decode(None, user_id.encode()) is None


def test_a_record_without_a_key_is_rejected() -> None:
    """Events and tombstones: without a key nobody knows whose they are."""
    assert reason(canonical(), None) == "missing_key"
    assert reason(None, None) == "missing_key"


def test_a_tombstone_needs_a_key_in_utf8() -> None:
    """A key that cannot be a user_id erases nobody."""
    assert reason(None, b"\xff") == "bad_user_id"
    assert decode(None, b"u1") is None


def test_bad_records_do_not_disturb_their_neighbours() -> None:
    """Entry i belongs to record i, whatever the others are."""
    values = [canonical(event_id="a"), b"{", None, canonical(event_id="b"), b"", canonical(event_id="c")]
    decoded = decode_events([b"u1"] * 6, values)
    assert [type(entry).__name__ for entry in decoded] == [
        "Event",
        "Rejection",
        "NoneType",
        "Event",
        "Rejection",
        "Event",
    ]
    assert [entry.event_id for entry in decoded if isinstance(entry, Event)] == ["a", "b", "c"]


def test_values_that_only_join_to_json_are_rejected_apart() -> None:
    """No decoding in bulk: halves of events, or two in one value, never make one."""
    halves = [
        b'{"user_id":"u1","event_time_ms":1,',
        b'"action":"view"}',
        canonical() + b"," + canonical(),
        b"",
    ]
    assert [type(entry) for entry in decode_events([b"u1"] * 4, halves)] == [Rejection] * 4


def adapt_visits(document: dict[str, Any]) -> dict[str, Any] | None:
    """An adapter of the tests: objects with ``who`` and ``when_s``."""
    if "who" not in document:
        return None
    if "when_s" not in document:
        raise Rejected("missing_field", "a visit without `when_s`")
    return {
        "user_id": document["who"],
        "event_time_ms": document["when_s"] * 1000,
        "action": "view",
        "price": float(document["price"]) if "price" in document else None,
    }


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"who": "u1"}, "missing_field"),
        ({"who": 3, "when_s": 5}, "wrong_type"),
        ({"who": None, "when_s": 5}, "missing_field"),
        ({"who": "u1", "when_s": -5}, "wrong_type"),
        ({"who": "u1", "when_s": 5, "price": "1e999"}, "not_finite"),
        ({"who": "u1", "when_s": 5, "price": "nan"}, "not_finite"),
        ({"who": "u2", "when_s": 5}, "key_mismatch"),
        ({"who": "", "when_s": 5}, "bad_user_id"),
        ({"someone": "u1"}, "missing_field"),
    ],
)
def test_adapted_objects_are_cleaned_like_canonical_ones(document: dict[str, Any], expected: str) -> None:
    """What an adapter makes is held to the same rules, and its own rejections pass on."""
    assert (
        reason(json.dumps(document).encode(), b"" if document.get("who") == "" else b"u1", adapt_visits)
        == expected
    )


def test_an_adapter_sees_only_what_is_not_canonical() -> None:
    """Canonical events pass by it; a foreign shape becomes an event."""
    assert decode(canonical(who="u9"), adapt=adapt_visits) == decode(canonical())
    assert decode(b'{"who": "u1", "when_s": 5}', adapt=adapt_visits) == Event(
        user_id="u1", event_time_ms=5000, action="view"
    )


def test_a_segment_event_is_recognised() -> None:
    """The pipeline's own adapters fit this seam."""
    value = {
        "type": "track",
        "event": "Product Viewed",
        "messageId": "m1",
        "userId": "u1",
        "timestamp": "2024-01-01T00:00:00Z",
        "properties": {"product_id": "p1", "price": 3.5},
    }
    event = decode(json.dumps(value).encode(), adapt=adapt_object)
    assert isinstance(event, Event), event
    assert (event.action, event.item_id, event.event_id) == ("view", "p1", "m1")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
segment_fields = ("userId", "anonymousId", "timestamp", "event", "properties", "type", "messageId")
ga4_fields = ("user_pseudo_id", "event_name", "event_timestamp", "event_params", "items", "ecommerce")
fields_of_all_shapes = st.sampled_from([*Event.__struct_fields__, *segment_fields, *ga4_fields, "\ud800"])


@settings(max_examples=250, deadline=None)
@given(
    st.none() | st.binary(max_size=20) | st.just(b"u1"),
    st.one_of(
        st.none(),
        st.binary(max_size=300),
        st.dictionaries(fields_of_all_shapes, json_values, max_size=8).map(
            lambda document: json.dumps(document).encode()
        ),
        st.dictionaries(fields_of_all_shapes, json_values, max_size=4).map(
            lambda document: canonical(**document)
        ),
        st.tuples(st.integers(0, 80), st.integers(0, 255)).map(
            lambda at: canonical()[: at[0]] + bytes([at[1]]) + canonical()[at[0] + 1 :]
        ),
    ),
)
@example(b"u1", b'{"userId": "\\ud800"}')
def test_no_bytes_raise(key: bytes | None, value: bytes | None) -> None:
    """Whatever a topic holds becomes an Event, a Rejection with a known reason, or a tombstone."""
    for adapt in (None, adapt_object):
        decoded = decode(value, key, adapt)
        if decoded is None:
            assert value is None
        elif isinstance(decoded, Rejection):
            assert decoded.reason in REASONS
            decoded.message.encode()
        else:
            assert decoded.user_id.encode() == key
    if value is not None:
        unknown_fields(value)


def test_unknown_fields_are_named() -> None:
    """Names that the canonical event lacks; none of anything that is no JSON object."""
    assert unknown_fields(canonical(colour="red", price=1, size=3)) == {"colour", "size"}
    assert unknown_fields(b"[1]") == unknown_fields(b"{") == unknown_fields(b"[" * 100_000) == set()
