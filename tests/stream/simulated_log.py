"""A broker of one source partition in memory: offsets, transactions, fencing, and the aborted records between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field

from stream.errors import BrokenInvariant
from stream.stage import FENCE_KEY, Message, Row, SourceMark


@dataclass
class SimulatedRecord:
    offset: int
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp: int = 0


@dataclass
class Written:
    """One offset of the changelog; ``fate`` is open, committed, aborted or marker."""

    key: bytes
    value: bytes | None
    epoch: int
    fate: str = "open"


@dataclass
class SimulatedBroker:
    """What survives every worker: the source, the changelog, the outputs, the group's offset, the fence."""

    source: list[SimulatedRecord] = field(default_factory=list)
    changelog: list[Written] = field(default_factory=list)
    outputs: list[tuple[bytes | None, bytes | None]] = field(default_factory=list)
    committed: int | None = None
    epoch: int = 0
    source_id: bytes = b"s" * 16
    changelog_id: bytes = b"c" * 16

    def produce(self, key: bytes, value: bytes) -> None:
        self.source.append(SimulatedRecord(len(self.source), key, value))

    def end_transaction(self, epoch: int, fate: str) -> None:
        for written in self.changelog:
            if written.epoch == epoch and written.fate == "open":
                written.fate = fate
        self.changelog.append(Written(b"", None, epoch, "marker"))

    def last_stable(self) -> int:
        return next(
            (i for i, written in enumerate(self.changelog) if written.fate == "open"), len(self.changelog)
        )


class SimulatedLog:
    """One worker's connection to the broker. Every await passes the gate, so a worker can be paused anywhere."""

    tombstone_retention_ms = 10**15
    aborted_from: int | None = None

    def __init__(self, broker: SimulatedBroker):
        self.broker = broker
        self.source_id, self.changelog_id = broker.source_id, broker.changelog_id
        self.epoch: int | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.closed = False

    async def _reach(self) -> None:
        await asyncio.sleep(0)
        await self.gate.wait()

    def _refuse_zombies(self) -> None:
        if self.epoch != self.broker.epoch:
            raise BrokenInvariant("Another worker has taken over")

    async def fence(self) -> None:
        await self._reach()
        if any(written.fate == "open" for written in self.broker.changelog):
            self.broker.end_transaction(self.broker.epoch, "aborted")
        self.broker.epoch += 1
        self.epoch = self.broker.epoch

    async def cleanse(self) -> None:
        await self._reach()
        self._refuse_zombies()
        self.broker.changelog.append(Written(FENCE_KEY, b"", self.broker.epoch))
        await self._reach()
        self._refuse_zombies()
        self.broker.end_transaction(self.broker.epoch, "aborted")

    async def settled(self) -> None:
        await self._reach()

    async def committed(self) -> int | None:
        await self._reach()
        return self.broker.committed

    async def same_topics(self) -> None: ...

    async def source_bounds(self) -> tuple[int, int]:
        await self._reach()
        return 0, len(self.broker.source)

    async def changelog_bounds(self) -> tuple[int, int]:
        await self._reach()
        return 0, self.broker.last_stable()

    async def changelog(self, start: int, end: int) -> AsyncIterator[tuple[list[Row], int]]:
        for begin in range(start, end, 3):
            await self._reach()
            part = self.broker.changelog[begin : min(end, begin + 3)]
            yield [(w.key, w.value) for w in part if w.fate == "committed"], min(end, begin + 3)

    async def commit(
        self, messages: Mapping[str, Iterable[Message]], rows: list[Row], next_offset: int
    ) -> int:
        await self._reach()
        self._refuse_zombies()
        epoch = self.broker.epoch
        for key, value in rows:
            self.broker.changelog.append(Written(key, value, epoch))
        position = len(self.broker.changelog) - 1
        outputs = [(key, value) for items in messages.values() for key, value, _ in items]
        await self._reach()
        self._refuse_zombies()
        self.broker.end_transaction(epoch, "committed")
        self.broker.outputs += outputs
        self.broker.committed = next_offset
        # The broker has committed; whether this worker lives to hear of it is another matter.
        await self._reach()
        return position

    async def close(self) -> None:
        self.closed = True


class SimulatedStore:
    """A store in memory with RocksDB's behaviour at a crash: an older state with its own older position."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.flushed: dict[bytes, bytes] = {}
        self.is_open = False

    def open(self) -> None:
        self.is_open = True

    def get(self, keys: list[bytes]) -> list[bytes | None]:
        return [self.rows.get(key) for key in keys]

    def apply(
        self,
        rows: Iterable[Row],
        position: int,
        changelog_id: bytes,
        now_ms: int,
        before: Mapping[bytes, bytes | None] | None = None,
    ) -> None:
        for key, row in (before or {}).items():
            assert self.rows.get(key) == row, "the stage says what stands here, and it does not"
        for key, value in rows:
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = value
        self.rows[b"\0pos"], self.rows[b"\0log"] = str(position).encode(), changelog_id

    def position(self) -> int | None:
        raw = self.rows.get(b"\0pos")
        return None if raw is None else int(raw)

    def changelog_id(self) -> bytes | None:
        return self.rows.get(b"\0log")

    def written_ms(self) -> int:
        return 0

    def mark(self) -> SourceMark | None:
        raw = self.rows.get(b"\0src")
        return None if raw is None else SourceMark.decode(raw)

    def count(self) -> int:
        return len(self.rows)

    def wipe(self) -> None:
        self.rows, self.flushed = {}, {}

    def flush(self) -> None:
        self.flushed = dict(self.rows)

    def crash(self) -> None:
        self.rows = dict(self.flushed)

    def close(self, flush: bool = True, tidy: bool = False) -> None:
        if flush and self.is_open:
            self.flush()
        self.is_open = False
