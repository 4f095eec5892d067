"""Bugs planted on purpose, by subclassing: each breaks one rule of the engine; the oracle must see each.

The engine has more than one defence, and a mutation that another step mends proves nothing about the oracle.
Where that is so, the planted bug takes the other defence along, and says it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from aiokafka import AIOKafkaConsumer

from stream.engine.kafka_log import TopicSet
from stream.engine.partition import Partition, State
from stream.engine.store import Store
from stream.stage import Chunk, Message, Row, SourceMark
from tests.chaos.traps import ProbedLog, say
from tests.chaos.worker import CountingWork

HOLD_S = 2.5  # a step held open so that a fault falls into it in every round, not in one of a thousand


class UnfencedLog(ProbedLog):
    """No fence: every process has a transactional id of its own, so a zombie's commit is accepted."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.transactional_id += f"-{os.getpid()}"


class EarlyOffsetPartition(Partition):
    r"""Position before the fence: offset and rows are read, and only then the predecessor is fenced.

    The committed offset alone would do no harm: the position is ``\0src``, and a stale offset is refetched when
    the two differ. So the restore moves before the fence as well.
    """

    async def prepare(self) -> None:
        early = await self.log.committed()
        self.store.open()
        await self.restore()
        say("position read before the fence", partition=self.number, committed=early)
        await asyncio.sleep(HOLD_S)
        self.state = State.FENCING
        await self.log.fence()
        await self.log.cleanse()
        await self.log.settled()
        self.state = State.VERIFYING
        position, mark = await self.verify(early)
        self.position = self.fetched = position
        self.stage = self._make_stage(position, mark)
        self.state = State.VERIFIED


class UncommittedRestoreLog(ProbedLog):
    """Restores rows of aborted transactions."""

    def _changelog_consumer(self) -> AIOKafkaConsumer:
        consumer = super()._changelog_consumer()
        consumer._isolation_level = "read_uncommitted"
        return consumer


class HastyPartition(Partition):
    """Opens at the committed offset while the restore is still running."""

    async def prepare(self) -> None:
        self.state = State.FENCING
        await self.log.fence()
        await self.log.cleanse()
        await self.log.settled()
        committed = await self.log.committed()
        self.store.open()
        self.position = self.fetched = (
            committed if committed is not None else (await self.log.source_bounds())[0]
        )
        self.stage = self._make_stage(self.position, None)
        self.state = State.VERIFIED
        self._restoring = asyncio.create_task(self._restore_late())

    async def _restore_late(self) -> None:
        await asyncio.sleep(HOLD_S)
        await self.restore()


class EagerApplyLog(ProbedLog):
    """Rows reach the local store before the commit, their position after it.

    The flush stands for a memtable that fills up at that moment; without it an exit would take the rows along,
    as RocksDB's own log is off.
    """

    store: Any = None

    async def commit(
        self, messages: Mapping[str, Iterable[Message]], rows: list[Row], next_offset: int
    ) -> int:
        self._rows = [row for row in rows if not row[0].startswith(b"\0")]
        return await super().commit(messages, rows, next_offset)

    async def before_commit(self) -> None:
        for key, value in self._rows:
            if value is None:
                self.store.database.delete(key)
            else:
                self.store.database.put(key, value)
        self.store.database.flush()
        await super().before_commit()


class EagerApplyPartition(Partition):
    """Hands its store to the log, which has no business with it."""

    def __init__(self, number: int, log: EagerApplyLog, store: Any, *arguments: Any, **options: Any):
        log.store = store
        super().__init__(number, log, store, *arguments, **options)


class LosingPartition(Partition):
    """The records of every twentieth chunk vanish while its range stays: the chain of positions is whole."""

    every = 20
    _chunks = 0

    def put(self, chunk: Chunk) -> None:
        self._chunks += 1
        if self._chunks % self.every == 0:
            say("chunk emptied", partition=self.number, records=len(chunk.records))
            chunk = Chunk([], chunk.start, chunk.end)
        super().put(chunk)


class SkippingPartition(Partition):
    """Every twentieth chunk vanishes whole; the chain of positions ends the process before anything is lost."""

    _chunks = 0

    def put(self, chunk: Chunk) -> None:
        self._chunks += 1
        if self._chunks % 20 == 0:
            say("chunk skipped", partition=self.number, records=len(chunk.records))
            self.fetched = chunk.end
            return
        super().put(chunk)


class UncleansedLog(ProbedLog):
    """No cleanse: a transaction that the broker forgot is published by the next commit of the same id."""

    async def cleanse(self) -> None:
        return


class TornStore(Store):
    """The position is written before the rows that it speaks of, not with them.

    The flush stands for a memtable that fills up at that moment, as with ``EagerApplyLog``.
    """

    def apply(
        self,
        rows: Iterable[Row],
        position: int,
        changelog_id: bytes,
        now_ms: int,
        before: Mapping[bytes, bytes | None] | None = None,
    ) -> None:
        rows = list(rows)
        super().apply(
            [row for row in rows if row[0].startswith(b"\0")], position, changelog_id, now_ms, before
        )
        self.database.flush()
        ProbedLog.probe("torn")
        rest = [row for row in rows if not row[0].startswith(b"\0")]
        super().apply(rest, position, changelog_id, now_ms, before)


class MixedStore(Store):
    """Now and then each user gets the row of the next one."""

    _reads = 0

    def get(self, keys: list[bytes]) -> list[bytes | None]:
        rows = super().get(keys)
        self._reads += len(keys) > 1
        return rows[1:] + rows[:1] if self._reads % 10 == 9 else rows


class RememberingStore(Store):
    """Rows once read or written are remembered, also when the partition has been somewhere else meanwhile."""

    remembered: ClassVar[dict[tuple[Path, bytes], bytes | None]] = {}
    _restoring = True

    def open(self) -> None:
        self._restoring = True
        super().open()

    def get(self, keys: list[bytes]) -> list[bytes | None]:
        rows = super().get(keys)
        if any(key.startswith(b"\0") for key in keys):
            return rows
        self._restoring = False
        return [
            self.remembered.setdefault((self.folder, key), row) for key, row in zip(keys, rows, strict=True)
        ]

    def apply(
        self,
        rows: Iterable[Row],
        position: int,
        changelog_id: bytes,
        now_ms: int,
        before: Mapping[bytes, bytes | None] | None = None,
    ) -> None:
        rows = list(rows)
        if not self._restoring:
            self.remembered.update({(self.folder, key): value for key, value in rows})
        super().apply(rows, position, changelog_id, now_ms, before)


class EarlyOffsetsLog(ProbedLog):
    """Rows and position are committed, and the outputs after them in a transaction of their own."""

    async def commit(
        self, messages: Mapping[str, Iterable[Message]], rows: list[Row], next_offset: int
    ) -> int:
        await super().commit({}, rows, next_offset)
        self.probe("between transactions")
        return await super().commit(messages, rows[-1:], next_offset)


class BackwardsLog(ProbedLog):
    """The outputs of a micro-batch, last first."""

    async def commit(
        self, messages: Mapping[str, Iterable[Message]], rows: list[Row], next_offset: int
    ) -> int:
        turned = {topic: list(items)[::-1] for topic, items in messages.items()}
        return await super().commit(turned, rows, next_offset)


class OnePartitionLog(ProbedLog):
    """Every output goes to partition 0 of its topic."""

    def __init__(self, number: int, topics: TopicSet, **options: Any):
        super().__init__(number, replace(topics, outputs=dict.fromkeys(topics.outputs, 1)), **options)


class UndyingLog(ProbedLog):
    """The restore passes tombstones over, so erased users come back."""

    async def changelog(self, start: int, end: int) -> AsyncIterator[tuple[list[Row], int]]:
        async for rows, position in super().changelog(start, end):
            yield [row for row in rows if row[1] is not None], position


class OvershootingPartition(Partition):
    """Opens one record too late."""

    async def verify(self, committed: int | None) -> tuple[int, SourceMark | None]:
        position, mark = await super().verify(committed)
        return position + (mark is not None), mark


class RepeatingPartition(Partition):
    """Every tenth chunk is handed in with its records twice."""

    _chunks = 0

    def put(self, chunk: Chunk) -> None:
        self._chunks += 1
        if self._chunks % 10 == 0:
            chunk = Chunk([*chunk.records, *chunk.records], chunk.start, chunk.end)
        super().put(chunk)


class CarelessWork(CountingWork):
    """Knows no duplicates: with them a chunk in twice would be dropped again."""

    def _read(self, key: bytes, raw: bytes | None) -> tuple[int, bytes, tuple[int, ...]]:
        count, digest, _ = super()._read(key, raw)
        return count, digest, (0,) * 16


class ForgetfulWork(CountingWork):
    """The newest sequences of a user are remembered in memory and not stored."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._rings: dict[bytes, tuple[int, ...]] = {}

    def _read(self, key: bytes, raw: bytes | None) -> tuple[int, bytes, tuple[int, ...]]:
        count, digest, _ = super()._read(key, raw)
        return count, digest, self._rings.get(key, (0,) * 16)

    def _row(self, key: bytes, row: tuple[int, int, int, bytes], ring: tuple[int, ...]) -> bytes:
        self._rings[key] = ring
        return super()._row(key, row, (0,) * 16)


@dataclass(frozen=True)
class Bug:
    """What a worker with a planted bug is made of."""

    log: type[ProbedLog] = ProbedLog
    partition: type[Partition] = Partition
    store: type[Store] = Store
    work: type[CountingWork] = CountingWork


PLANTED: dict[str, Bug] = {
    "no-fence": Bug(log=UnfencedLog),
    "offset-before-fence": Bug(partition=EarlyOffsetPartition),
    "restore-uncommitted": Bug(log=UncommittedRestoreLog),
    "open-before-verify": Bug(partition=HastyPartition),
    "apply-before-commit": Bug(log=EagerApplyLog, partition=EagerApplyPartition),
    "drop-chunk": Bug(partition=LosingPartition),
    "skip-chunk": Bug(partition=SkippingPartition),
    "no-cleanse": Bug(log=UncleansedLog),
    "rows-outside-batch": Bug(store=TornStore),
    "row-of-another": Bug(store=MixedStore),
    "stale-row": Bug(store=RememberingStore),
    "offsets-before-outputs": Bug(log=EarlyOffsetsLog),
    "outputs-backwards": Bug(log=BackwardsLog),
    "wrong-partition": Bug(log=OnePartitionLog),
    "no-tombstones": Bug(log=UndyingLog),
    "open-too-late": Bug(partition=OvershootingPartition),
    "chunk-twice": Bug(partition=RepeatingPartition, work=CarelessWork),
    "ring-not-stored": Bug(work=ForgetfulWork),
}


def plant(bug: str) -> Bug:
    """The planted bug of this name."""
    return PLANTED[bug]
