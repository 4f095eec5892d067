"""What a broker forgot to end: whether it had been decided to commit, from what the other partitions show."""

from __future__ import annotations

from typing import Any, NamedTuple

from stream.engine.unfinished import Tail, decided_to_commit, source_offset
from stream.stage import FENCE_KEY, SOURCE_KEY, SourceMark

NUMBER = 3


class Stored(NamedTuple):
    """A record as a consumer gives it."""

    offset: int
    key: bytes
    value: bytes = b""
    headers: tuple[tuple[str, bytes], ...] = ()


def mark(offset: int, next_offset: int) -> Stored:
    return Stored(offset, SOURCE_KEY, SourceMark(next_offset, b"t" * 16, 0).encode())


def output(offset: int, source: int, partition: int = NUMBER) -> Stored:
    return Stored(offset, b"u", b"{}", (("ce_id", f"id/{partition}/{source}/prediction/u/1".encode()),))


def tail(
    written: list[Any] | None = None, seen: list[Any] | None = None, unended: list[Any] | None = None
) -> Tail:
    return Tail(written or seen or [], seen or [], unended or [])


def test_outputs_whose_rows_are_committed_were_decided_to_be_committed() -> None:
    """Position 20 is seen, outputs of 10 to 19 are open."""
    rows = tail(seen=[mark(5, 10), mark(9, 20)])
    assert decided_to_commit(
        rows, [tail(seen=[output(1, 9)], unended=[output(2, 10), output(3, 19)])], NUMBER
    )


def test_outputs_whose_rows_are_aborted_were_not() -> None:
    """The newest position was written and is not seen."""
    rows = tail(written=[mark(5, 10), mark(9, 20)], seen=[mark(5, 10)])
    assert not decided_to_commit(rows, [tail(unended=[output(2, 5)])], NUMBER)


def test_outputs_beyond_the_position_never_had_rows() -> None:
    """Their rows did not even reach the broker."""
    rows = tail(seen=[mark(5, 10)])
    assert not decided_to_commit(rows, [tail(unended=[output(2, 9), output(3, 10)])], NUMBER)


def test_rows_whose_outputs_are_seen_were_decided_to_be_committed() -> None:
    """Outputs from position 10 on are there; rows with position 20 are open."""
    rows = tail(seen=[mark(5, 10)], unended=[Stored(8, b"u"), mark(9, 20)])
    assert decided_to_commit(rows, [tail(seen=[output(1, 9), output(2, 10)])], NUMBER)
    assert not decided_to_commit(rows, [tail(seen=[output(1, 9)])], NUMBER)
    assert not decided_to_commit(rows, [tail(seen=[output(1, 12, partition=1)])], NUMBER)


def test_where_nobody_got_a_marker_nothing_is_committed() -> None:
    """Aborted everywhere, the events are processed again: no loss, no repeat."""
    rows = tail(seen=[mark(5, 10)], unended=[mark(9, 20)])
    assert not decided_to_commit(rows, [tail(seen=[output(1, 9)], unended=[output(2, 10)])], NUMBER)


def test_a_fence_that_was_never_ended_is_no_reason_to_commit() -> None:
    """A takeover that was killed in its cleanse leaves dummies."""
    fence = Stored(9, FENCE_KEY)
    assert not decided_to_commit(tail(seen=[mark(5, 10)]), [tail(unended=[fence])], NUMBER)
    assert not decided_to_commit(tail(seen=[mark(5, 10)], unended=[fence]), [tail()], NUMBER)


def test_an_output_names_its_source() -> None:
    """By its CloudEvents id, or by a dead letter's headers; hostile names and other partitions give nothing."""
    dead = (("__streams.errors.partition", b"3"), ("__streams.errors.offset", b"77"))
    assert source_offset(dead, NUMBER) == 77
    assert source_offset(dead, 4) is None
    assert source_offset(output(0, 12).headers, NUMBER) == 12
    assert source_offset((("ce_id", b"id/x/../prediction"),), NUMBER) is None
    assert source_offset((), NUMBER) is None
