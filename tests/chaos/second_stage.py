r"""What the second stage should have made of what it was told: its own fold, driven transaction by transaction.

Every transaction of a partition of groups leaves its rows and, as the last of them, ``\0src`` in the changelog: the
position in the topic of groups up to which it went, and the watermark. So the committed positions say how the records
were cut into micro-batches. The fold is played again over exactly those cuts, each time by work that is made anew of
the rows before: rows, alerts and erasures have to come out byte for byte, by whichever workers and in however many
lives they were written.

What the topics do not say is which partitions of the input counted as quiet in a micro-batch: that is a matter of the
wall clock. None is assumed; where the rows say otherwise, all, then any choice that explains the whole transaction.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple, cast

from stream.group_detectors import GroupDetector
from stream.group_erasure import AGAIN_KEY, ERASING_KEY, Erasures
from stream.group_records import routed
from stream.group_sources import Sources
from stream.groups_stage import SOURCES_KEY, GroupsWork
from stream.offline import OfflineRecord
from stream.stage import RESERVED, SOURCE_KEY, Message, Rendered, Row, SourceMark

ALERTS, ITSELF = "alerts", "groups"  # where the work of a replay sends alerts, and what it tells itself

Rows = dict[bytes, bytes | None]


class Transaction(NamedTuple):
    """What one transaction left in the changelog: rows by key, ``\0src`` decoded, and the offset of that."""

    rows: Rows
    mark: SourceMark
    offset: int


def transactions(changelog: Sequence[Any]) -> list[Transaction]:
    """The transactions of one partition of a changelog that was never compacted."""
    found, rows = [], Rows()
    for message in changelog:
        if message.key() != SOURCE_KEY:
            rows[message.key()] = message.value()
            continue
        found.append(Transaction(rows, SourceMark.decode(message.value()), message.offset()))
        rows = {}
    return found


@dataclass
class Replayed:
    """One partition played again.

    Attributes:
        alerts: it should have sent, in their order.
        told: to the partitions of groups, by their numbers.
        different: rows that a transaction wrote otherwise, or not, or that nobody should have written.
        unread: records beyond the last committed position.
        quiet: transactions that are explained only by partitions of the input that counted as quiet.
        examples: of what is different, in words.
    """

    alerts: list[Message] = field(default_factory=list)
    told: dict[int, list[Message]] = field(default_factory=dict)
    different: int = 0
    unread: int = 0
    quiet: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SecondStage:
    """The second stage as it was configured in a round.

    Args:
        detectors: that ran.
        partitions: of groups, which the stage tells of meetings and of users whom it has erased.
        sources: partitions of the input; ``topic_id`` and ``source`` name it in headers of alerts.
        late_limit_ms, cool_down_ms: as of ``GroupsWork``.
    """

    detectors: Sequence[GroupDetector]
    partitions: int
    sources: int
    topic_id: str
    source: str
    late_limit_ms: int
    cool_down_ms: int

    def replay(self, records: Sequence[OfflineRecord], committed: Sequence[Transaction]) -> Replayed:
        """Play one partition again.

        Args:
            records: of that partition of groups, by offset.
            committed: what its changelog says.
        """
        replayed, rows = Replayed(), dict[bytes, bytes]()
        offsets = [record.offset for record in records]
        start, watermark_ms = 0, 0
        for transaction in committed:
            end = bisect_left(offsets, transaction.mark.next_offset)
            rendered = self._explain(records[start:end], rows, transaction, watermark_ms, replayed)
            replayed.alerts += rendered.messages.get(ALERTS, ())
            for number in range(self.partitions):
                told = rendered.messages.get(routed(ITSELF, number), ())
                replayed.told.setdefault(number, []).extend(told)
            applied(rows, rendered.rows)
            start, watermark_ms = end, transaction.mark.watermark_ms
        replayed.unread = len(records) - start
        return replayed

    def _explain(
        self,
        records: Sequence[OfflineRecord],
        rows: dict[bytes, bytes],
        transaction: Transaction,
        watermark_ms: int,
        replayed: Replayed,
    ) -> Rendered:
        """What the fold makes of the records: of all choices of quiet partitions the first that fits, or none quiet."""
        plain: tuple[Rendered, list[bytes]] | None = None
        for quiet in self._choices():
            rendered = self._micro_batch(records, rows, quiet)
            mark_ms = max(watermark_ms, rendered.watermark_ms)
            different = differing(rendered.rows, transaction.rows, rows)
            if not different and mark_ms == transaction.mark.watermark_ms:
                replayed.quiet += bool(quiet)
                return rendered
            if plain is None:
                plain = rendered, different
            if replayed.different:
                break  # what follows a difference differs as well
        assert plain is not None
        rendered, different = plain
        replayed.different += max(1, len(different))
        mark, folded_ms = transaction.mark, max(watermark_ms, rendered.watermark_ms)
        replayed.examples.append(
            f"changelog of groups, transaction that ends at {transaction.offset} (position {mark.next_offset}, "
            f"watermark {mark.watermark_ms}, by the fold {folded_ms}): not the fold's are rows {different[:3]}"
        )
        return rendered

    def _choices(self) -> Iterator[frozenset[int]]:
        numbers = range(self.sources)
        yield frozenset()
        yield frozenset(numbers)
        for size in range(1, self.sources):
            yield from map(frozenset, combinations(numbers, size))

    def work(self, rows: dict[bytes, bytes]) -> GroupsWork:
        """Work made anew of the rows of a partition, which it reads and does not change."""

        def page(first: bytes, most: int) -> list[tuple[bytes, bytes]]:
            return [(key, rows[key]) for key in sorted(rows) if key >= first][:most]

        return GroupsWork(
            detectors=self.detectors,
            sources=Sources(self.sources, rows.get(SOURCES_KEY)),
            late_limit_ms=self.late_limit_ms,
            cool_down_ms=self.cool_down_ms,
            alerts_topic=ALERTS,
            topic_id=self.topic_id,
            source=self.source,
            fetch=lambda keys: [rows.get(key) for key in keys],
            stored=[(key, row) for key, row in rows.items() if not key.startswith(RESERVED)],
            erasures=Erasures(
                (key for key in sorted(rows) if key.startswith((ERASING_KEY, AGAIN_KEY))), page
            ),
            told_to=(ITSELF, self.partitions),
        )

    def _micro_batch(
        self, records: Sequence[OfflineRecord], rows: dict[bytes, bytes], quiet: frozenset[int]
    ) -> Rendered:
        work = self.work(rows)
        work.sources.quiet = quiet
        return micro_batch(work, records, rows)


def differing(wanted: Iterable[Row], found: Rows, rows: Mapping[bytes, bytes]) -> list[bytes]:
    """Keys of which two transactions over the same rows do not leave the same; erasing nothing leaves it as it is."""
    left = [
        {key: value for key, value in written.items() if value is not None or key in rows}
        for written in (dict(wanted), found)
    ]
    return sorted(
        key for key in left[0].keys() | left[1].keys() if left[0].get(key, b"") != left[1].get(key, b"")
    )


def micro_batch(work: Any, records: Sequence[OfflineRecord], rows: Mapping[bytes, bytes]) -> Rendered:
    """What some work makes of records and the rows before them; it waits for nothing but its next turn."""
    decoded = work.decode(records)
    coroutine = work.score(decoded, [rows.get(key) for key in decoded.keys], int(time.time() * 1000))
    while True:
        try:
            coroutine.send(None)
        except StopIteration as ended:
            return cast(Rendered, ended.value)


def applied(rows: dict[bytes, bytes], written: Iterable[Row]) -> None:
    """Write rows over others, as a store does."""
    for key, row in written:
        if row is None:
            rows.pop(key, None)
        else:
            rows[key] = row
