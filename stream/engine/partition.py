"""The life of one owned partition: fence, cleanse, settled, committed, restore, verify, open, run, close.

Written over interfaces (a log, a store, a clock), so that any order of assignments, revocations, failures and pauses
can be tried on a simulated log. Nothing is shared between partitions but the scorer. The order is the product: each
step that was left out or moved in a prototype lost or doubled data on a real broker.

1. **Fence**: a producer with this partition's transactional id starts, so the broker refuses its predecessor and
   aborts what that left open; what a broker forgot to end is ended as it was decided (unfinished.py). Nothing comes
   before it.
2. **Cleanse**: an aborted transaction over every partition that this id writes. A broker killed between
   PrepareCommit and its markers forgets a transaction; our abort marker closes it, or the next commit would publish it.
3. **Settled**: the changelog's last stable offset reaches its high watermark.
4. **Committed**: only now the group's offset is fetched; earlier it may be stale.
5. **Restore** the local rows from the changelog (restore.py).
6. **Verify**: ``\\0src`` in the restored rows is the position; the committed offset is the cross-check.
7. **Open**: the poll loop seeks and resumes.
8. **Run** micro-batches (stage.py).
9. **Close**: the open transaction ends, then the store, then the producer.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NoReturn, Protocol

import structlog

from stream.engine.gate import Gate
from stream.engine.restore import Changelog, restore
from stream.engine.store import Store
from stream.errors import BrokenInvariant, PositionError
from stream.stage import Chunk, Clock, Probe, SourceMark, Stage, TransactionLog, no_probe
from stream.wording import FRESH_START

logger = structlog.get_logger("foreclick.partition")

LOOK_S = 0.05  # while a fuller micro-batch is waited for: it may be full, or the partition be closed


class PartitionLog(TransactionLog, Changelog, Protocol):
    """Everything that one partition asks of the broker."""

    source_id: bytes

    async def fence(self) -> None: ...

    async def cleanse(self) -> None: ...

    async def settled(self) -> None: ...

    async def committed(self) -> int | None: ...

    async def same_topics(self) -> None: ...

    async def source_bounds(self) -> tuple[int, int]: ...

    async def close(self) -> None: ...


class State(Enum):
    """Where a partition stands in its life; the value is what /readyz says."""

    NEW = "assigned"
    FENCING = "fencing the predecessor"
    RESTORING = "restoring rows"
    VERIFYING = "verifying the position"
    VERIFIED = "about to open"
    OPEN = "open"
    CLOSED = "closed"


class Partition:
    """One owned partition.

    Args:
        number: of the source partition.
        make_stage: builds the stage once the position is known: (position, mark or None) -> Stage.
        batch_limit: events in one micro-batch.
        fresh_start: how to forget rows and position of this stage alone, a sentence for errors.
        wait_s: how long the oldest chunk may wait for a fuller micro-batch.
        end_process: called with any failure; never returns.
        gate: where partitions that are ready wait for those at work; a full micro-batch passes by.
    """

    def __init__(
        self,
        number: int,
        log: PartitionLog,
        store: Store,
        make_stage: Callable[[int, SourceMark | None], Stage[Any]],
        *,
        clock: Clock,
        end_process: Callable[[str, BaseException], NoReturn],
        topic: str = "clicks",
        batch_limit: int = 4096,
        queue_limit: int = 8192,
        wait_s: float = 0.008,
        on_position_mismatch: str = "open",
        on_data_loss: str = "exit",
        fresh_start: str = FRESH_START,
        count_mismatch: Callable[[], None] = lambda: None,
        gate: Gate | None = None,
        probe: Probe = no_probe,
    ):
        self.number = number
        self.topic = topic
        self.log = log
        self.store = store
        self.state = State.NEW
        self.closing = False
        self.stage: Stage[Any] | None = None
        self.position: int | None = None
        self.restored = 0
        self.paused = True  # by the poll loop, which alone seeks, pauses and resumes
        self.fetched: int | None = None  # end of the newest chunk handed in
        self.queued = 0
        self.passed = 0  # offsets known to hold nothing more to read, markers of transactions included
        self._nudged = False
        self.last_commit_s: float | None = None
        self.heard_s: float | None = None  # of the last records committed, or of opening without any
        self.has_heard = False
        self.working = False  # on a micro-batch
        self._make_stage = make_stage
        self._clock = clock
        self._end_process = end_process
        self._batch_limit = batch_limit
        self._queue_limit = queue_limit
        self._wait_s = wait_s
        self._on_position_mismatch = on_position_mismatch
        self._on_data_loss = on_data_loss
        self._fresh_start = fresh_start
        self._count_mismatch = count_mismatch
        self._gate = gate
        self._probe = probe
        self._queue: deque[tuple[Chunk, float]] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        self._task = asyncio.create_task(self._life(), name=f"partition {self.number}")

    async def _life(self) -> None:
        try:
            await self.prepare()
            await self.run()
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:
            self._end_process(f"{self.topic}[{self.number}] while {self.state.value}", error)

    async def prepare(self) -> None:
        """Steps 1 to 6; afterwards the poll loop may open the partition at ``position``."""
        self.state = State.FENCING
        await self.log.fence()  # 1
        self._probe("fenced")
        await self.log.cleanse()  # 2
        self._probe("cleansed")
        await self.log.settled()  # 3
        self._probe("settled")
        committed = await self.log.committed()  # 4
        self._probe("committed offset")
        self.state = State.RESTORING
        self.store.open()
        await self.restore()  # 5
        self._probe("restored")
        self.state = State.VERIFYING
        position, mark = await self.verify(committed)  # 6
        self._probe("verified")
        self.position = self.fetched = position
        self.stage = self._make_stage(position, mark)
        self.state = State.VERIFIED
        logger.info(
            "partition verified", partition=self.number, position=position, restored_records=self.restored
        )

    async def restore(self) -> None:
        applied, wiped = await restore(self.store, self.log, self._clock(), self._probe)
        self.restored += applied
        if wiped is not None:
            logger.warning("local rows wiped", partition=self.number, because=wiped)

    async def verify(self, committed: int | None) -> tuple[int, SourceMark | None]:
        """Where to open. State and position stand in one log, so ``\\0src`` is the truth and the group the check."""
        await self.log.same_topics()
        mark = self.store.mark()
        if self._contradict(mark, committed):
            # Prove the fence again: a zombie may have committed between our two looks.
            await self.log.cleanse()
            committed = await self.log.committed()
            await self.restore()
            mark = self.store.mark()
        if self._contradict(mark, committed):
            self.store.wipe()
            await self.restore()
            committed = await self.log.committed()
            mark = self.store.mark()
        if self._contradict(mark, committed):
            self._mismatch(mark, committed)

        beginning, end = await self.log.source_bounds()
        if mark is None:
            return beginning, None
        if mark.topic_id != self.log.source_id:
            logger.warning(
                "source topic was recreated: rows kept, reading from its beginning",
                partition=self.number,
                position=beginning,
            )
            return beginning, mark
        return self._within(mark.next_offset, beginning, end), mark

    def _contradict(self, mark: SourceMark | None, committed: int | None) -> bool:
        if mark is None:
            return committed is not None
        if mark.topic_id != self.log.source_id:
            return False  # a recreated source: the committed offset speaks of the old one
        # A group's offset that expired while nobody ran is no contradiction: the changelog holds the position.
        return committed is not None and committed != mark.next_offset

    def _mismatch(self, mark: SourceMark | None, committed: int | None) -> None:
        if mark is None:
            raise PositionError(
                f"{self.topic}[{self.number}]: the group has committed offset {committed}, but the changelog holds no "
                "state for it (were the topics recreated under an old group?). If a fresh start is meant: "
                f"{self._fresh_start}"
            )
        self._count_mismatch()
        if self._on_position_mismatch == "exit":
            raise PositionError(
                f"{self.topic}[{self.number}]: the state stands at {mark.next_offset}, the group at {committed}, and "
                "on_position_mismatch is exit. Look at the broker's log, then start with on_position_mismatch=open."
            )
        logger.error(
            "position mismatch: opening where the state stands; outputs between the two may repeat with their ce_id",
            partition=self.number,
            state=mark.next_offset,
            committed=committed,
        )

    def _within(self, position: int, beginning: int, end: int) -> int:
        if position < beginning:
            if self._on_data_loss == "skip":
                lost = {"position": position, "beginning": beginning}
                logger.error("records lost to retention", partition=self.number, **lost)
                return beginning
            raise PositionError(
                f"{self.topic}[{self.number}]: retention has removed records that were not processed: the state stands "
                f"at {position}, the topic begins at {beginning}. To go on without them set "
                "FORECLICK_ON_DATA_LOSS=skip."
            )
        if position > end:
            raise PositionError(
                f"{self.topic}[{self.number}]: the state stands at {position}, beyond the topic's end {end}: the "
                f"broker lost records. If a fresh start is meant: {self._fresh_start}"
            )
        return position

    # ------------------------------------------------------------------ chunks

    def opened(self) -> None:
        """Step 7: the poll loop has seeked to ``position`` and resumed reading."""
        self.state = State.OPEN
        self.heard_s = time.monotonic()
        self._probe("opened")

    def put(self, chunk: Chunk) -> None:
        """Hand in the next chunk, from the poll loop."""
        self.fetched = chunk.end
        self.queued += len(chunk.records)
        self._queue.append((chunk, time.monotonic()))
        self._arrived.set()

    def pass_time(self, watermark_ms: int) -> None:
        """Let event time pass though nothing came; timers that this makes due go in a micro-batch of their own."""
        if self.stage is not None:
            self.stage.pass_time(watermark_ms)
            self._arrived.set()

    def nudge(self) -> None:
        """Have a micro-batch even if no records come: something is due."""
        self._nudged = True
        self._arrived.set()

    @property
    def preparing(self) -> bool:
        """Whether it has begun a micro-batch and will hand it to the scorer in a moment."""
        return self.stage is not None and self.stage.preparing

    @property
    def full(self) -> bool:
        return self.queued >= self._queue_limit

    @property
    def drained(self) -> bool:
        return self.queued <= self._queue_limit // 2

    def take(self) -> list[Chunk]:
        """Chunks of the next micro-batch, at most ``batch_limit`` records; a larger chunk is split."""
        chunks: list[Chunk] = []
        room = self._batch_limit
        while self._queue and room > 0:
            chunk, since = self._queue.popleft()
            if len(chunk.records) > room:
                middle = chunk.records[room].offset
                self._queue.appendleft((Chunk(chunk.records[room:], middle, chunk.end), since))
                chunk = Chunk(chunk.records[:room], chunk.start, middle)
            room -= len(chunk.records)
            chunks.append(chunk)
        self.queued -= self._batch_limit - room
        return chunks

    async def run(self) -> None:
        """Step 8: micro-batches until the partition is closed."""
        assert self.stage is not None
        turned = False
        while not self.closing:
            if not self._queue:
                if self._nudged or self.stage.due():
                    self._nudged = False
                    await self._micro_batch(())
                    continue
                self._arrived.clear()
                await self._arrived.wait()
                continue
            # The wait counts from the oldest chunk: a transaction costs the broker the same for ten events as for
            # hundreds, so a fuller one is worth a few milliseconds; a queue that is long already waits no longer.
            wait_s = self._queue[0][1] + self._wait_s - time.monotonic()
            if wait_s > 0 and self.queued < self._batch_limit:
                await asyncio.sleep(min(wait_s, LOOK_S))
                continue
            if self._gate is not None and not turned and self.queued < self._batch_limit:
                await self._gate.turn()
                turned = True
                continue
            turned = False
            await self._micro_batch(self.take())
            self.heard_s, self.has_heard = self.last_commit_s, True

    async def _micro_batch(self, chunks: Sequence[Chunk]) -> None:
        assert self.stage is not None
        self.working = True
        await self.stage.micro_batch(chunks)
        self.working = False
        self.last_commit_s = time.monotonic()
        if self._gate is not None:
            self._gate.look()

    # ------------------------------------------------------------------ close

    async def close(self, transaction_s: float, tidy: bool = False) -> None:
        """Step 9.

        Args:
            transaction_s: how long the open transaction may take to end before the process does.
            tidy: the worker stops; there is time to leave small files.
        """
        self.closing = True
        self._arrived.set()
        if self._task is not None:
            if self.state is not State.OPEN:
                self._task.cancel()  # not open yet: nothing of it was seen by anybody
            # A transaction in flight is never abandoned half way: it ends, or the process does.
            done, _ = await asyncio.wait([self._task], timeout=transaction_s)
            if not done:
                error = BrokenInvariant(f"The open transaction did not end within {transaction_s:.1f} s.")
                self._end_process(f"{self.topic}[{self.number}] while closing", error)
        self._probe("closing")
        self.state = State.CLOSED
        self.store.close(tidy=tidy)
        await self.log.close()
