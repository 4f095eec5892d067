"""What a broker forgot to end: whether it had been decided to commit, from what the other partitions show."""

from __future__ import annotations

from stream.engine.batches import BatchHead, batches_of, heads
from stream.engine.unfinished import Transaction, committed, ended, newest
from stream.engine.wire import Producer

MINE, OTHER = 7, 8
COMMIT, ABORT = True, False


def records(epoch: int, time_ms: int, producer_id: int = MINE) -> BatchHead:
    return BatchHead(1, Producer(producer_id, epoch), 0, time_ms, None)


def marker(commit: bool, epoch: int, producer_id: int = MINE) -> BatchHead:
    return BatchHead(1, Producer(producer_id, epoch), -1, 99, commit)


def test_a_marker_ends_what_its_producer_wrote_before_it() -> None:
    """And nothing of others, whose records stand in between."""
    found = ended(
        [
            records(1, 10),
            records(4, 11, OTHER),
            records(1, 10),
            marker(COMMIT, 2),
            records(2, 20),
            marker(ABORT, 3),
        ]
    )
    assert found == {Transaction(MINE, 1, 10): True, Transaction(MINE, 2, 20): False}


def test_transactions_are_told_apart_by_epoch_or_by_time() -> None:
    """Before transaction version 2 all of a life have the same epoch; the clock may stand where it stood."""
    found = ended([records(1, 10), marker(COMMIT, 1), records(1, 11), marker(ABORT, 1)])
    assert found == {Transaction(MINE, 1, 10): True, Transaction(MINE, 1, 11): False}


def test_the_newest_transaction_is_that_of_the_last_records() -> None:
    """Markers and other producers have none."""
    log = [records(1, 10), marker(COMMIT, 2), records(2, 20), records(5, 30, OTHER)]
    assert newest(log, MINE) == Transaction(MINE, 2, 20)
    assert newest([marker(COMMIT, 2)], MINE) is None


def test_what_another_partition_shows_was_decided() -> None:
    """Either way."""
    mine = Transaction(MINE, 2, 20)
    assert committed(mine, {mine: True}, {})
    assert not committed(mine, {mine: False}, {Transaction(MINE, 3, 30): True})


def test_what_was_followed_by_a_committed_one_was_committed() -> None:
    """An owner whose transaction fails ends; only in the changelog, which every transaction writes to."""
    mine, later = Transaction(MINE, 2, 20), Transaction(MINE, 3, 30)
    assert committed(mine, {later: True}, {later: True})
    assert not committed(mine, {later: False}, {later: False})
    assert not committed(later, {mine: True}, {mine: True})
    assert not committed(mine, {}, {Transaction(OTHER, 3, 30): True})


def test_where_nobody_got_a_marker_nothing_is_committed() -> None:
    """Aborted everywhere, the events are processed again: no loss, no repeat."""
    assert not committed(Transaction(MINE, 2, 20), {}, {Transaction(MINE, 1, 10): True})


def test_heads_are_read_from_stored_batches() -> None:
    """Producer, time, end; a batch that was cut is left out."""
    (batch,) = batches_of([(b"k", b"v", []), (None, None, [("h", b"x")])], now_ms=1234)
    batch.builder.set_producer_state(MINE, 3, 40)
    data = bytes(batch.builder.build())
    assert list(heads(data + data[:-1])) == [BatchHead(2, Producer(MINE, 3), 40, 1234, None)]
