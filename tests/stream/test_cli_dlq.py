"""What is remembered of replayed dead letters, and how a record tells its user."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.dead_letter_topic import Memory
from stream.errors import ConfigurationError
from stream.rekeying import key_and_value

REASONS = ("late", "wrong_type", "key_mismatch")


@given(
    letters=st.lists(st.sampled_from(REASONS), max_size=30),
    calls=st.lists(st.tuples(st.sampled_from([None, *REASONS]), st.integers(0, 12)), max_size=12),
)
def test_each_letter_is_sent_once_whatever_is_asked_in_which_order(
    letters: list[str], calls: list[tuple[str | None, int]]
) -> None:
    """Calls with and without a reason and a limit; afterwards a call without either sends what is left."""
    sent: list[int] = []
    stored = Memory.of(None).value()
    for reason, limit in [*calls, (None, len(letters))]:
        memory = Memory.of(json.loads(json.dumps(stored)))
        due = [
            offset
            for offset in range(memory.start(reason), len(letters))
            if letters[offset] == (reason or letters[offset]) and not memory.holds(offset, letters[offset])
        ][:limit]
        for offset in due:
            memory.sent(offset, reason)
        sent += due
        stored = memory.value()
    assert sorted(sent) == list(range(len(letters)))


def test_a_canonical_record_keeps_its_bytes() -> None:
    """Only the key is new."""
    value = b'{"action":"view", "user_id":"u\xc3\xa9", "event_time_ms":1}'
    assert key_and_value("auto")(value) == ("ué".encode(), value)


def test_a_record_of_another_shape_keeps_its_bytes() -> None:
    """The pipeline reads Segment's shape itself."""
    value = json.dumps(
        {
            "type": "track",
            "event": "Product Viewed",
            "anonymousId": "a1",
            "messageId": "m1",
            "timestamp": "2024-01-01T00:00:00Z",
            "properties": {"product_id": "p1"},
        }
    ).encode()
    assert key_and_value("auto")(value) == (b"a1", value)
    assert key_and_value("segment")(value) == (b"a1", value)


def test_a_delimited_line_becomes_a_canonical_event() -> None:
    """The pipeline reads JSON only."""
    found = key_and_value("taobao")(b"17,23,42,pv,1511658000")
    assert found is not None
    assert found[0] == b"17"
    assert json.loads(found[1])["action"] == "view"


@pytest.mark.parametrize("value", [b"", b"not json", b"[1]", b"{}", b'{"user_id": 7}', b"\xff", b"[" * 5000])
def test_a_record_without_a_user_has_no_key(value: bytes) -> None:
    """Random bytes never stop a copy."""
    assert key_and_value("auto")(value) is None


def test_an_unknown_format_is_an_error() -> None:
    """The names that exist are listed."""
    with pytest.raises(ConfigurationError, match="Unknown format 'parquet'"):
        key_and_value("parquet")
