"""One micro-batch of one partition, from fetched chunks to a committed transaction.

The protocol knows a log, a store, a clock and some work; it knows nothing of clicks, of Kafka or of RocksDB, so that
another stage (orders by shop) and a simulated log run through the same nine steps.

Invariants, each of which lost or doubled data in a prototype when it was broken:

- a chunk is processed only if it starts where the one before ended;
- rows are written locally only after the transaction that carries them is committed;
- every transaction carries ``\\0src``, the next source offset, beside the rows, so state and position cannot disagree;
- any failure between steps 2 and 8 ends the process; nothing is retried in place.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

from stream.errors import BrokenInvariant
from stream.moments import FIRST_MOMENT, Moment

RESERVED = b"\0"  # no user id starts with it
SOURCE_KEY = b"\0src"
FENCE_KEY = b"\0fence"

_MARK = struct.Struct("<q16sq")
_SAID_MS = struct.Struct("<q")

D = TypeVar("D", bound="Decoded")


class SourceMark(NamedTuple):
    """Value of ``\\0src``: where this partition's state stands in its source.

    ``watermark_ms`` is the highest event time that was applied; timers are due against it. All timers before
    ``said_before`` were said: one moment for the whole partition, so that none of them has to rewrite its row.
    """

    next_offset: int
    topic_id: bytes
    watermark_ms: int
    said_before: Moment = FIRST_MOMENT

    def encode(self) -> bytes:
        at_ms, key = self.said_before
        return _MARK.pack(self.next_offset, self.topic_id, self.watermark_ms) + _SAID_MS.pack(at_ms) + key

    @classmethod
    def decode(cls, raw: bytes) -> SourceMark:
        """Also of builds that noted in each row whether its timer was said, and no moment here."""
        said, mark = raw[_MARK.size :], _MARK.unpack_from(raw)
        if not said:
            return cls(*mark)
        next_offset, topic_id, watermark_ms = mark
        said_before = Moment(_SAID_MS.unpack_from(said)[0], said[_SAID_MS.size :])
        return cls(next_offset, topic_id, watermark_ms, said_before)


class Chunk(NamedTuple):
    """Consecutive records; ``end`` is the position after them (markers and compaction leave gaps inside).

    A record is aiokafka's, or a simulated one with the same offset, key, value, headers and timestamp.
    """

    records: Sequence[Any]
    start: int
    end: int


#: Key, value and headers; aiokafka takes these as a list only.
Message = tuple[bytes | None, bytes | None, Sequence[tuple[str, bytes | None]]]
#: Key and value; None erases.
Row = tuple[bytes, bytes | None]


class Decoded(Protocol):
    """What decoding makes of the records; ``keys`` are those of the rows that the fold needs."""

    keys: list[bytes]


@dataclass(slots=True)
class Rendered:
    """What a micro-batch writes: messages by topic, last row of each key (None erases), and where time stands after it.

    ``said_before`` is None where the micro-batch says nothing of timers.
    """

    messages: Mapping[str, Iterable[Message]]
    rows: list[Row]
    watermark_ms: int
    counts: Any = None
    said_before: Moment | None = None


class Work(Protocol[D]):
    """What one stage does with a micro-batch. Only ``score`` may wait."""

    def decode(self, records: Sequence[Any]) -> D: ...

    async def score(self, decoded: D, rows: list[bytes | None], now_ms: int) -> Rendered:
        """Fold in offset order, score, and render outputs, dead letters and rows: steps 4 to 6.

        They are one call because partitions that wait for the same model go through them together: every array
        operation costs the same for one partition's few events as for those of eight.
        """

    def account(self, rendered: Rendered, received_s: float, committed_s: float) -> None: ...


@runtime_checkable
class Timed(Protocol):
    """A work with timers: something may fall due without a record, and joins the next micro-batch, or an empty one."""

    def due(self) -> bool:
        """Whether anything is."""

    def pass_time(self, watermark_ms: int) -> None:
        """Raise the watermark that timers are due against, though no event did."""


class TransactionLog(Protocol):
    """Where a micro-batch is committed."""

    async def commit(
        self, messages: Mapping[str, Iterable[Message]], rows: list[Row], next_offset: int
    ) -> int:
        """Write messages, rows and the source position in one transaction; the changelog offset of the last row."""


class RowStore(Protocol):
    """Rows of this partition on this machine, with the changelog offset they stand at."""

    def get(self, keys: list[bytes]) -> list[bytes | None]: ...

    def apply(
        self,
        rows: Iterable[Row],
        position: int,
        changelog_id: bytes,
        now_ms: int,
        before: Mapping[bytes, bytes | None] | None = None,
    ) -> None:
        """Write rows as one; ``before`` are rows as they stand, where they were read for the micro-batch."""


Clock = Callable[[], int]
Probe = Callable[[str], None]


def no_probe(step: str) -> None:
    """The probe of production: tests pass one that ends or stops the process at a named step."""


STEPS = ("receive", "decode", "load", "fold", "score", "render", "commit", "apply", "account")


@dataclass(slots=True)
class Stage(Generic[D]):
    """The protocol over one partition.

    Args:
        next_offset: where the first chunk must start.
        topic_id: 16 bytes of the source topic; a recreated topic has another one.
        spent_s: wall seconds by step, shared by the partitions of a worker; score and commit include waiting. Who
            merges partitions adds fold and render.

    Attributes:
        preparing: a micro-batch has begun and is not handed in for scoring yet.
    """

    work: Work[D]
    log: TransactionLog
    store: RowStore
    clock: Clock
    next_offset: int
    topic_id: bytes
    changelog_id: bytes
    watermark_ms: int = 0
    said_before: Moment = FIRST_MOMENT
    probe: Probe = no_probe
    spent_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))
    preparing: bool = field(default=False, init=False)

    def due(self) -> bool:
        """Whether a micro-batch without chunks has something to do."""
        return isinstance(self.work, Timed) and self.work.due()

    def pass_time(self, watermark_ms: int) -> None:
        """Raise the watermark of a work that has timers."""
        if isinstance(self.work, Timed):
            self.work.pass_time(watermark_ms)

    async def micro_batch(self, chunks: Sequence[Chunk]) -> Rendered:
        """Take chunks through the nine steps; on return they are committed and applied.

        Without chunks it is for what falls due by time alone, and the position stays.
        """
        lap = self._stopwatch()
        received_s = time.time()
        self.preparing = True

        # Step 1: receive. A gap or an overlap means that something upstream dropped or repeated records.
        records: list[Any] = []
        end = self.next_offset
        for chunk in chunks:
            if chunk.start != end:
                raise BrokenInvariant(f"A chunk starts at {chunk.start}, but the one before ended at {end}.")
            records += chunk.records
            end = chunk.end
        lap("receive")

        # Step 2: decode each record to an event or a rejection.
        decoded = self.work.decode(records)
        lap("decode")

        # Step 3: load the rows by one multi-get.
        rows = self.store.get(decoded.keys)
        lap("load")

        # Steps 4 to 6: fold in offset order, score and render, merged with what other partitions hand in.
        now_ms = self.clock()
        self.preparing = False  # nothing is awaited until the request is handed in
        rendered = await self.work.score(decoded, rows, now_ms)
        lap("score")
        self.probe("scored")

        # The position rides with the rows.
        self.watermark_ms = max(self.watermark_ms, rendered.watermark_ms)
        self.said_before = max(self.said_before, rendered.said_before or self.said_before)
        mark = SourceMark(end, self.topic_id, self.watermark_ms, self.said_before)
        rendered.rows.append((SOURCE_KEY, mark.encode()))

        # Step 7: commit. Returns only when the broker has acknowledged the end of the transaction.
        position = await self.log.commit(rendered.messages, rendered.rows, end)
        lap("commit")
        self.probe("committed")

        # Step 8: apply locally. Never before 7: a store ahead of the changelog would stay so for ever.
        before = dict(zip(decoded.keys, rows, strict=True))
        self.store.apply(rendered.rows, position, self.changelog_id, now_ms, before)
        self.next_offset = end
        lap("apply")
        self.probe("applied")

        # Step 9: account, once a batch.
        self.work.account(rendered, received_s, time.time())
        lap("account")
        return rendered

    def _stopwatch(self) -> Callable[[str], None]:
        spent, last = self.spent_s, time.perf_counter()

        def lap(step: str) -> None:
            nonlocal last
            now = time.perf_counter()
            spent[step] += now - last
            last = now

        return lap
