"""Transactions whose end a broker has forgotten: what was decided is found out and done.

A coordinator that restarts between the decision to commit and the markers may find no leader for some partitions yet,
takes their topics for deleted and calls the transaction complete (seen on single brokers that were killed together
with the workers): one partition has its marker, another never gets one. Rows without their outputs would be a loss,
outputs without their rows a repeat, and whoever reads committed records waits at the open one for ever.

Right after the fence no transaction of this id can be open by right: the coordinator has ended what it knew of. Each
leader tells which producers have a transaction open in its partition (KIP-664), so a forgotten one is seen at once in
whatever this id writes, though other ids write there too: rows, predictions, dead letters, vectors, alerts, the
partitions of groups and labels, of any stage. What nobody forgot costs one request.

Which transaction a record batch belongs to stands in its head: producer, epoch (another one in each transaction since
transaction version 2, in each life of an owner before) and the time, which is asked once a transaction and never
twice the same. A marker ends what its producer has written before it in that partition. So, of an open transaction:

    another partition shows it committed                      commit
    another partition shows it aborted                        abort
    the changelog shows only a later one committed            commit: what had failed would have ended its owner, and
                                                              the next one ends everything before it writes
    nobody got a marker                                       abort; the events are processed again
    it is no transaction but fences of a killed takeover      abort, as nobody got a marker or all others are aborted

Every transaction writes the position to the changelog, so where that got its marker nothing else need be read. Else
the other partitions are asked, from the time of the transaction on, until one knows.

A commit is told to the leaders themselves (WriteTxnMarkers): one request cannot be cut in half, as a transaction that
names the partitions first could be, whose successor's fence would abort them. That takes the right to alter the
cluster; without it such a transaction it is. The group's position is committed by one in any case. What is to be
aborted is left to the cleanse that follows, but for a producer id that this id had before: epochs end at 32767.

An owner that lives through a broker's restart does the same between two of its own transactions, of which it knows that
they were committed. Where the next one is on its way, what the last one left open in a partition is ended before
anything is written behind it (``end_before``): one marker would end both, and the next one may yet fail.

What had been applied locally and is aborted must not stay: ``aborted_from`` tells whoever opens the rows.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import structlog

from stream.engine.batches import BatchHead, heads
from stream.engine.refusals import NOT_ALLOWED
from stream.engine.transaction import Transactions
from stream.engine.wire import Place, Request
from stream.engine.wire_partitions import (
    Active,
    Fetched,
    Marked,
    Marker,
    describe_producers,
    fetch,
    write_markers,
)
from stream.errors import BrokenInvariant

logger = structlog.get_logger("foreclick.unfinished")

TAIL_RECORDS = 1 << 16  # offsets before the end that are looked through at most, of each partition
TIMEOUT_S = 30.0

#: First offset of a partition at or after a time in ms, None when there is none.
OffsetAt = Callable[[Place, int], Awaitable[int | None]]


class Transaction(NamedTuple):
    """One transaction of a producer; a later one of the same producer is greater."""

    producer_id: int
    epoch: int
    time_ms: int


class Open(NamedTuple):
    """What one producer has left open in one partition, and the newest transaction of it."""

    place: Place
    active: Active
    transaction: Transaction | None


def transaction_of(batch: BatchHead) -> Transaction:
    """The transaction of a batch of records."""
    return Transaction(*batch.producer, batch.time_ms)


def ended(batches: Iterable[BatchHead]) -> dict[Transaction, bool]:
    """The transactions that got their marker among these batches of a partition, and whether it commits."""
    found: dict[Transaction, bool] = {}
    waiting: dict[int, list[Transaction]] = {}
    for batch in batches:
        if batch.commit is None:
            waiting.setdefault(batch.producer.id, []).append(transaction_of(batch))
        else:
            found |= dict.fromkeys(waiting.pop(batch.producer.id, []), batch.commit)
    return found


def newest(batches: Iterable[BatchHead], producer_id: int) -> Transaction | None:
    """The transaction of the last records of a producer."""
    mine = [
        transaction_of(batch)
        for batch in batches
        if batch.producer.id == producer_id and batch.commit is None
    ]
    return mine[-1] if mine else None


def committed(
    transaction: Transaction, known: Mapping[Transaction, bool], changelog: Mapping[Transaction, bool]
) -> bool:
    """Whether a transaction that is open somewhere was decided to be committed.

    Args:
        known: how transactions ended, in any partition.
        changelog: how they ended in that of the changelog.
    """
    if transaction in known:
        return known[transaction]
    return any(
        commits and later.producer_id == transaction.producer_id and later > transaction
        for later, commits in changelog.items()
    )


async def end_unfinished(
    mine: Transactions,
    places: Sequence[Place],
    changelog: Place,
    group: str,
    offset_at: OffsetAt,
    committed_after_ms: int | None = None,
) -> int | None:
    """End what is open of this transactional id, right after its fence; nearly always nothing.

    Args:
        places: all that the id writes to, with the changelog's partition, which no other id writes to.
        group: whose positions its transactions carry.
        committed_after_ms: the caller's own transactions, all of which are committed, are later than this; None where
            they are another owner's.

    Returns:
        Offset in the changelog from which on a transaction was forgotten that is now to be aborted; None for none.
    """
    deadline_s = time.monotonic() + TIMEOUT_S
    producers = await mine.ask_leaders("DescribeProducers of", places, describe_producers, deadline_s)
    # Of producer ids that this one had before, those are known that have written to its changelog within a day.
    ours = {mine.producer.id, *(active.producer.id for active in producers[changelog].active)}
    left: list[Open] = []
    for place in places:
        for active in producers[place].active:
            if active.producer.id in ours and active.open_from >= 0:
                batches = await _stored(mine, place, active.open_from, deadline_s)
                left.append(Open(place, active, newest(batches, active.producer.id)))
    if not left:
        return None

    wanted = {open_.transaction for open_ in left if open_.transaction is not None}
    known = {
        transaction: True
        for transaction in wanted
        if committed_after_ms is not None and transaction.time_ms > committed_after_ms
    }
    rows: dict[Transaction, bool] = {}
    since_ms = min((transaction.time_ms for transaction in wanted), default=0)
    for place in sorted(places, key=lambda place: place != changelog):
        if wanted <= known.keys():
            break
        if ours.isdisjoint(active.producer.id for active in producers[place].active):
            continue
        start = await offset_at(place, since_ms)
        if start is not None:
            found = ended(await _stored(mine, place, start, deadline_s))
            known = found | known
            if place == changelog:
                rows = found

    commits = [
        open_ for open_ in left if open_.transaction is not None and committed(open_.transaction, known, rows)
    ]
    aborts = [open_ for open_ in left if open_ not in commits]
    logger.warning("the broker forgot to end a transaction", commit=_named(commits), abort=_named(aborts))
    if commits:
        await mine.commit_forgotten(await _write_markers(mine, commits, True, deadline_s), group)
    of_others = [open_ for open_ in aborts if open_.active.producer.id != mine.producer.id]
    await _write_markers(mine, of_others, False, deadline_s)
    return min((open_.active.open_from for open_ in aborts if open_.place == changelog), default=None)


async def end_before(mine: Transactions, committed_after_ms: int, batches: Mapping[Place, bytes]) -> None:
    """Commit what the last transaction left open in partitions to which the first of the next is sent again.

    As long as the coordinator still has the last one to end, it lets nobody write there: its own marker comes as well.

    Args:
        committed_after_ms: see ``end_unfinished``.
        batches: a record batch for each partition.

    Raises:
        BrokenInvariant: it may not; the next owner will, since nothing was written behind it.
    """
    deadline_s = time.monotonic() + TIMEOUT_S
    producers = await mine.ask_leaders("DescribeProducers of", batches, describe_producers, deadline_s)
    left = []
    for place, data in batches.items():
        (head,) = heads(data)
        for active in producers[place].active:
            older = active.producer.epoch < head.producer.epoch or active.last_sequence < head.sequence
            is_open = active.open_from >= 0 and active.time_ms > committed_after_ms
            if active.producer.id == head.producer.id and is_open and older:
                left.append(Open(place, active, None))
    if left and await _write_markers(mine, left, True, deadline_s):
        raise BrokenInvariant(
            f"The broker forgot the end of a transaction in {_named(left)}, and this user may not write it. "
            "The next owner ends it; grant Alter on the cluster for it to be done at once."
        )


async def _write_markers(
    mine: Transactions, left: Sequence[Open], commit: bool, deadline_s: float
) -> list[Place]:
    """Write the markers, as the producer that is fenced, so that whatever it still sends is refused.

    Returns:
        Where that is not allowed.
    """
    refused: list[Place] = []
    for producer_id in {open_.active.producer.id for open_ in left}:
        markers = {}
        for place, active, _ in (open_ for open_ in left if open_.active.producer.id == producer_id):
            producer = mine.producer if producer_id == mine.producer.id else active.producer
            markers[place] = Marker(producer, max(0, active.coordinator_epoch), commit)
        request = partial(_marking, markers)
        answers = await mine.ask_leaders("WriteTxnMarkers to", markers, request, deadline_s, [NOT_ALLOWED])
        not_written = [place for place, answer in answers.items() if answer.error]
        if not_written and producer_id != mine.producer.id:
            raise BrokenInvariant(
                f"The broker forgot a transaction of producer {producer_id} in {not_written}, and this user may not "
                "end it. Grant it Alter on the cluster, or end it by kafka-transactions.sh abort."
            )
        refused += not_written
    return refused


def _marking(markers: Mapping[Place, Marker], turn: Iterable[Place]) -> Request[dict[Place, Marked]]:
    return write_markers({place: markers[place] for place in turn})


async def _stored(mine: Transactions, place: Place, start: int, deadline_s: float) -> list[BatchHead]:
    """Heads of the batches from an offset to the end of the partition, or of the last of them."""
    found: list[BatchHead] = []
    high: int | None = None
    while high is None or start < high:
        request = partial(_fetching, {place: start})
        answers = await mine.ask_leaders("Fetch from", [place], request, deadline_s)
        answer = answers[place]
        if high is None:
            high = answer.high
            if start < high - TAIL_RECORDS:
                start = high - TAIL_RECORDS
                continue
        found += heads(answer.data)
        if not found or found[-1].end <= start:
            break
        start = found[-1].end
    return found


def _fetching(offsets: Mapping[Place, int], turn: Iterable[Place]) -> Request[dict[Place, Fetched]]:
    return fetch({place: offsets[place] for place in turn})


def _named(left: Iterable[Open]) -> list[str]:
    return sorted({f"{topic}[{number}]" for (topic, number), _, _ in left})
