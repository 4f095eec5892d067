"""Bugs planted on purpose, by subclassing: each breaks one rule of the engine; the oracle must see each.

The engine has more than one defence, and a mutation that another step mends proves nothing about the oracle.
Where that is so, the planted bug takes the other defence along, and says it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer

from stream.engine.partition import Partition, State
from stream.stage import Chunk, Message, Row
from tests.chaos.worker import ProbedLog, say

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

    _chunks = 0

    def put(self, chunk: Chunk) -> None:
        self._chunks += 1
        if self._chunks % 20 == 0:
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


PLANTED: dict[str, tuple[type[ProbedLog], type[Partition]]] = {
    "no-fence": (UnfencedLog, Partition),
    "offset-before-fence": (ProbedLog, EarlyOffsetPartition),
    "restore-uncommitted": (UncommittedRestoreLog, Partition),
    "open-before-verify": (ProbedLog, HastyPartition),
    "apply-before-commit": (EagerApplyLog, EagerApplyPartition),
    "drop-chunk": (ProbedLog, LosingPartition),
    "skip-chunk": (ProbedLog, SkippingPartition),
    "no-cleanse": (UncleansedLog, Partition),
}


def plant(bug: str) -> tuple[type[ProbedLog], type[Partition]]:
    """Log and partition of a planted bug."""
    return PLANTED[bug]
