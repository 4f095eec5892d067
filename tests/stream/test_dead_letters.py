"""Laws of dead letters."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from stream.dead_letters import MAX_MESSAGE_BYTES, REPLAYED_HEADER, DeadLetter, dead_letter, parse

_headers = st.lists(st.tuples(st.text(max_size=8), st.none() | st.binary(max_size=8)), max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.none() | st.binary(), st.none() | st.binary(), _headers)
def test_key_value_and_foreign_headers_survive_unchanged(key, value, headers):
    """Whatever was rejected can be sent again as it was."""
    sent_key, sent_value, sent = dead_letter(
        "clicks", 3, 18842, key, value, "undecodable", "not JSON", headers
    )
    assert (sent_key, sent_value) == (key, value)
    assert sent[: len(headers)] == headers
    assert parse(sent) == DeadLetter("clicks", 3, 18842, "undecodable", "not JSON", tuple(headers))


def test_headers_have_the_names_of_kip_1034():
    """Tools for Kafka Streams find the origin of a dead letter under the names that they know."""
    _, _, headers = dead_letter("clicks", 3, 18842, b"u", b"{", "undecodable", "JSON is malformed (byte 1)")
    assert headers == [
        ("__streams.errors.exception", b"stream.events.Rejection"),
        ("__streams.errors.message", b"JSON is malformed (byte 1)"),
        ("__streams.errors.topic", b"clicks"),
        ("__streams.errors.partition", b"3"),
        ("__streams.errors.offset", b"18842"),
        ("clicks.reason", b"undecodable"),
    ]


def test_a_second_rejection_replaces_what_the_first_one_wrote():
    """A replayed record that fails again tells of its last place only."""
    _, _, first = dead_letter("clicks", 3, 1, b"u", b"{", "late", "an hour late", [("trace", b"a")])
    replayed = [*first, (REPLAYED_HEADER, b"1")]
    _, _, second = dead_letter("clicks", 3, 9, b"u", b"{", "wrong_type", "at $.price", replayed)
    assert parse(second) == DeadLetter("clicks", 3, 9, "wrong_type", "at $.price", (("trace", b"a"),))
    assert len({name for name, _ in second}) == len(second)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(), max_size=3000))
def test_any_message_becomes_utf8_of_bounded_size(message):
    """A message that quotes hostile input neither fails nor outgrows the topic."""
    _, _, headers = dead_letter("clicks", 0, 0, b"u", b"{", "wrong_type", message + "\ud800" + "é" * 3000)
    text = dict(headers)["__streams.errors.message"]
    assert len(text) <= MAX_MESSAGE_BYTES
    assert text.decode().isprintable()
    if message.isprintable():
        assert text.decode().startswith(message[:50])


def test_a_foreign_record_is_no_dead_letter():
    """Records that others put into the topic are told apart, not guessed at."""
    _, _, headers = dead_letter("clicks", 3, 1, b"u", b"{", "late", "an hour late")
    assert parse(None) is None
    assert parse([("trace", b"a")]) is None
    for i in range(1, len(headers)):
        assert parse(headers[:i] + headers[i + 1 :]) is None
    assert (
        parse([(name, b"\xff" if name.endswith("offset") else content) for name, content in headers]) is None
    )
    assert parse([(name, None if name.endswith("offset") else content) for name, content in headers]) is None
