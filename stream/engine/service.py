"""The engine: one group consumer, one task per owned partition, one scorer. A Service that the Faust app starts.

Only the poll loop seeks, pauses, resumes and reads the source. The rebalance listener must be quick (aiokafka sends no
heartbeat until it returns) and must not raise (aiokafka swallows that), so it only pauses and starts tasks, and ends
the process when anything goes wrong in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError, NoOffsetForPartitionError
from mode import Service

from stream.engine.exit import end_process
from stream.engine.gate import Gate
from stream.engine.kafka_log import KafkaLog, Offsets, TopicSet
from stream.engine.partition import Partition, State
from stream.engine.source_ends import SourceEnds
from stream.engine.store import MovedTimers, Store, lock_data_dir
from stream.engine.topic_watch import TopicWatch
from stream.errors import BrokenInvariant, BrokerUnreachable
from stream.idle_partitions import Heard, left_behind, silent
from stream.moments import FIRST_MOMENT
from stream.settings import Settings
from stream.stage import STEPS, Chunk, Probe, SourceMark, Stage, Work, no_probe

logger = structlog.get_logger("foreclick.engine")

IDLE_POLL_MS = 200
OPENING_POLL_MS = 20
GOODBYE_S = 5.0
FEW_RECORDS = 512
REST_S = 0.005


class EngineMetrics:
    """What the engine tells of itself; the default tells nobody. See stream/metrics.py for the real one."""

    def position_mismatch(self) -> None: ...

    def partitions(self, owned: int, open_: int) -> None: ...

    def lag(self, partition: int, records: int) -> None: ...

    def source_silent(self, silent: bool) -> None: ...

    def unanswered(self, seconds: float) -> None: ...

    def rows(self, rows: int) -> None: ...

    def forget(self, partition: int) -> None: ...


@dataclass(frozen=True)
class Plan:
    """What an engine needs to know of its stage before it joins the group.

    Args:
        topics: names, ids and partition counts, read from the broker.
        make_work: the stage's work for one partition: (partition, open store) -> Work.
        moved_timers: of the store, where the stage has timers.
    """

    topics: TopicSet
    make_work: Callable[[int, Store], Work[Any]]
    moved_timers: MovedTimers | None = None


class Engine(Service):
    """One stage over all partitions of its source that the group gives to this worker.

    Args:
        prepare: awaited before the group is joined: checks topics, loads the model, gives the plan.
        release: awaited after the group was left.
        table: name of the table, and of its folder under the data directory.
        group: the consumer group; the app id unless told otherwise.
        wait_ms: how long a partition's oldest chunk may wait for a fuller micro-batch; as the settings say for clicks
            unless told otherwise; so is ``batch_limit``, records in a micro-batch of one partition.
        rest_s: pause after few records were read.
    """

    partition_class: type[Partition] = Partition
    log_class: type[KafkaLog] = KafkaLog

    def __init__(
        self,
        settings: Settings,
        prepare: Callable[[], Awaitable[Plan]],
        *,
        release: Callable[[], Awaitable[None]] | None = None,
        table: str = "state",
        group: str | None = None,
        wait_ms: float | None = None,
        batch_limit: int | None = None,
        rest_s: float = REST_S,
        metrics: EngineMetrics | None = None,
        probe: Probe = no_probe,
        clock: Callable[[], int] = lambda: int(time.time() * 1000),
        **options: Any,
    ):
        super().__init__(**options)
        self.settings = settings
        self.parts: dict[int, Partition] = {}
        self.spent_s = dict.fromkeys(STEPS, 0.0)  # one sum over all partitions: where a worker's time goes
        self.generation = 0
        self.group = group or settings.app_id
        self.folder: Path = settings.data_dir / table
        self._batch_limit = batch_limit or settings.max_batch_size
        self._wait_ms = settings.partition_wait_ms if wait_ms is None else wait_ms
        self._rest_s = rest_s
        self._prepare, self._release = prepare, release
        self._plan: Plan | None = None
        self._metrics = metrics or EngineMetrics()
        self._probe = probe
        self._clock = clock
        self._gate = Gate(lambda: any(part.working for part in self.parts.values()))
        self._closing = False
        self._lock: Any = None
        self._consumer: AIOKafkaConsumer | None = None
        self.ends = SourceEnds(self)
        self._offsets: Offsets | None = None  # its clients need a running event loop
        self._watch: TopicWatch | None = None

    @property
    def plan(self) -> Plan:
        if self._plan is None:
            raise BrokenInvariant("The engine was asked for its topics before it was started.")
        return self._plan

    @property
    def consumer(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise BrokenInvariant("The engine was asked for its consumer before it was started.")
        return self._consumer

    @property
    def offsets(self) -> Offsets:
        if self._offsets is None:
            raise BrokenInvariant("The engine was asked for offsets before it was started.")
        return self._offsets

    @property
    def watch(self) -> TopicWatch:
        if self._watch is None:
            raise BrokenInvariant("The engine was asked for its watch before it was started.")
        return self._watch

    @property
    def topics(self) -> TopicSet:
        return self.plan.topics

    # ------------------------------------------------------------------ start and stop

    async def on_start(self) -> None:
        try:
            await self._start()
        except KafkaConnectionError as error:
            # mode would log a traceback and go on stopping half-started services
            address = self.settings.kafka.bootstrap_servers
            end_process("start", BrokerUnreachable(_unreachable(address, error)))
        except Exception as error:
            end_process("start", error)

    async def _start(self) -> None:
        self._lock = lock_data_dir(self.folder)
        self._plan = await self._prepare()
        kafka = self.settings.kafka
        self._consumer = AIOKafkaConsumer(
            **kafka.aiokafka(),
            client_id=f"{self.settings.app_id}-{self.topics.source}",
            group_id=self.group,
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset="none",
            session_timeout_ms=kafka.session_timeout_ms,
            heartbeat_interval_ms=kafka.session_timeout_ms // 4,
            rebalance_timeout_ms=kafka.rebalance_timeout_ms,
            fetch_max_wait_ms=100,
            max_partition_fetch_bytes=kafka.max_partition_fetch_bytes,
            retry_backoff_ms=50,
        )
        self._offsets = Offsets(kafka.aiokafka())
        await self._offsets.start()
        self._watch = TopicWatch(kafka.aiokafka(), self.topics)
        await self.watch.start()
        self._consumer.subscribe([self.topics.source], listener=_Listener(self))
        await self._consumer.start()
        self.add_future(self._poll())
        self.add_future(self._report())
        self.add_future(self._watch_topics())

    async def on_stop(self) -> None:
        self._closing = True
        try:
            await self.revoke("stopping", tidy=True)
            # Everything is committed: what a goodbye can still lose is the session timeout of the next owner.
            for client in (self._consumer, self._offsets, self._watch):
                if client is not None:
                    with contextlib.suppress(asyncio.TimeoutError, KafkaError):
                        await asyncio.wait_for(client.stop(), GOODBYE_S)
        except Exception as error:
            end_process("stop", error)
        if self._release is not None:
            await self._release()

    # ------------------------------------------------------------------ ownership

    def assign(self, numbers: list[int]) -> None:
        """Start the life of each partition; they open by themselves."""
        if self.parts:
            raise BrokenInvariant("Partitions were assigned while others were still open.")
        self.generation += 1
        for number in numbers:
            self.parts[number] = self._partition(number)
            self.parts[number].start()
        logger.info("partitions assigned", group=self.group, generation=self.generation, partitions=numbers)

    def _partition(self, number: int) -> Partition:
        settings = self.settings
        log = self.log_class(
            number,
            self.topics,
            client=settings.kafka.aiokafka(),
            consumer=self.consumer,
            offsets=self.offsets,
            group=self.group,
            app_id=settings.app_id,
            transaction_timeout_ms=settings.kafka.transaction_timeout_ms,
            same_topics=self.watch.look,
        )
        store = Store(self.folder / str(number), self.plan.moved_timers)

        def make_stage(position: int, mark: SourceMark | None) -> Stage[Any]:
            return Stage(
                work=self.plan.make_work(number, store),
                log=log,
                store=store,
                clock=self._clock,
                next_offset=position,
                topic_id=self.topics.source_id,
                changelog_id=self.topics.changelog_id,
                watermark_ms=mark.watermark_ms if mark else 0,
                said_before=mark.said_before if mark else FIRST_MOMENT,
                probe=self._probe,
                spent_s=self.spent_s,
            )

        return self.partition_class(
            number,
            log,
            store,
            make_stage,
            clock=self._clock,
            end_process=end_process,
            topic=self.topics.source,
            batch_limit=self._batch_limit,
            queue_limit=settings.queue_size,
            wait_s=self._wait_ms / 1000,
            on_position_mismatch=settings.on_position_mismatch,
            on_data_loss=settings.on_data_loss,
            fresh_start=self.topics.fresh_start,
            count_mismatch=self._metrics.position_mismatch,
            gate=self._gate,
            probe=self._probe,
        )

    async def revoke(self, why: str, tidy: bool = False) -> None:
        """Close every partition: all are marked first, so that none begins another micro-batch."""
        parts = list(self.parts.values())
        if not parts:
            return
        began = time.monotonic()
        for part in parts:
            part.closing = True
        transaction_s = 0.6 * self.settings.kafka.session_timeout_ms / 1000
        await asyncio.gather(*(part.close(transaction_s, tidy) for part in parts))
        self.parts.clear()
        for part in parts:
            self._metrics.forget(part.number)
        logger.info(
            "partitions released", why=why, count=len(parts), seconds=round(time.monotonic() - began, 3)
        )

    async def _watch_topics(self) -> None:
        try:
            await self.watch.run()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            end_process("watching the topics", error)

    # ------------------------------------------------------------------ reading

    async def _poll(self) -> None:
        try:
            while not self._closing:
                await self._poll_once()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            end_process("reading the source", error)

    async def _poll_once(self) -> None:
        consumer, opening = self.consumer, self._steer()
        if not any(part.state is State.OPEN for part in self.parts.values()):
            await asyncio.sleep(OPENING_POLL_MS / 1000)
            return
        try:
            fetched = await consumer.getmany(
                timeout_ms=OPENING_POLL_MS if opening else IDLE_POLL_MS,
                max_records=self.settings.max_batch_size,
            )
        except NoOffsetForPartitionError:
            return  # a paused partition without a committed offset; opening seeks
        if self._closing:
            return
        for source, records in fetched.items():
            part = self.parts.get(source.partition)
            if part is None or part.closing or part.state is not State.OPEN:
                continue  # fetched for an assignment that has ended: whoever opens it next seeks
            if part.fetched is None or records[0].offset < part.fetched:
                raise BrokenInvariant(
                    f"{source.topic}[{source.partition}] answered offset {records[0].offset} at {part.fetched}."
                )
            part.put(Chunk(records, part.fetched, records[-1].offset + 1))
        if 0 < sum(map(len, fetched.values())) < FEW_RECORDS:
            # aiokafka asks again as soon as a partition is read empty; at some thousand events a second that was a
            # thousand requests of a record or two, and the broker's main cost. Reading a little later takes more.
            await asyncio.sleep(self._rest_s)

    def _steer(self) -> bool:
        """Open what is verified, pause what is full, resume what has drained; whether any is still on its way."""
        consumer, opening = self.consumer, False
        for part in list(self.parts.values()):
            source = TopicPartition(self.topics.source, part.number)
            if part.closing:
                continue
            if part.state is State.VERIFIED:
                consumer.seek(source, part.position)
                consumer.resume(source)
                part.paused = False
                part.opened()
            elif part.state is not State.OPEN:
                opening = True
            elif not part.paused and part.full:
                consumer.pause(source)
                part.paused = True
            elif part.paused and part.drained:
                consumer.resume(source)
                part.paused = False
        return opening

    # ------------------------------------------------------------------ seen from outside

    def now_ms(self) -> int:
        """The wall clock."""
        return self._clock()

    def row(self, key: bytes) -> tuple[Partition, bytes] | None:
        """The partition here that holds a row under a key, and the row."""
        for part in self.open_partitions():
            raw = part.store.get([key])[0] if part.store.is_open else None
            if raw is not None:
                return part, raw
        return None

    def open_partitions(self) -> list[Partition]:
        return [part for part in self.parts.values() if part.state is State.OPEN]

    def described(self) -> dict[str, Any]:
        """Where every partition stands, and how far behind the open ones are."""
        parts = self.parts.values()
        return {
            "partitions": {
                part.number: {
                    "state": part.state.value,
                    "next_offset": part.stage.next_offset if part.stage else None,
                    "rows": part.store.count() if part.store.is_open else None,
                    "restored_records": part.restored,
                }
                for part in parts
            },
            "open": sum(part.state is State.OPEN for part in parts),
            "lag_records": sum(self.lag().values()),
        }

    def joining(self) -> int:
        """Partitions that have begun a micro-batch and will hand it to the scorer in a moment.

        The gate lets them begin together, and partitions that went through the model together stay together: it runs
        once a round instead of once a partition.
        """
        return sum(1 for part in self.parts.values() if part.preparing)

    def lag(self) -> dict[int, int]:
        """Records between what is committed and the newest known to the broker, by partition."""
        lag = {}
        for part in self.open_partitions():
            assert part.stage is not None
            high = self.consumer.highwater(TopicPartition(self.topics.source, part.number))
            at = max(part.stage.next_offset, part.passed)
            lag[part.number] = max(0, (high or at) - at)
        return lag

    async def _report(self) -> None:
        """Gauges once a second; never on the hot path."""
        while not self._closing:
            await asyncio.sleep(1.0)
            self._metrics.unanswered(self.watch.unanswered_s)
            await self.ends.pass_markers()
            self._metrics.partitions(len(self.parts), len(self.open_partitions()))
            lag = self.lag()
            for partition, records in lag.items():
                self._metrics.lag(partition, records)
            if self.plan.moved_timers is not None:
                self._pass_time(lag)
            self._metrics.rows(
                sum(part.store.count() for part in self.open_partitions() if part.store.is_open)
            )

    def _pass_time(self, lag: dict[int, int]) -> None:
        """Move idle partitions on while others advance; tell when none does."""
        now_s, settings = time.monotonic(), self.settings
        heard = [
            Heard(
                part.number,
                part.stage.watermark_ms,
                now_s - part.heard_s,
                part.has_heard,
                caught_up=not (part.queued or lag.get(part.number)),
            )
            for part in self.open_partitions()
            if part.stage is not None and part.heard_s is not None
        ]
        self._metrics.source_silent(silent(heard, settings.churn.idle_s))
        moves = left_behind(heard, self._clock(), settings.churn.idle_s, settings.late_limit_s * 1000)
        for number, watermark_ms in moves.items():
            self.parts[number].pass_time(watermark_ms)


class _Listener(ConsumerRebalanceListener):
    def __init__(self, engine: Engine):
        self._engine = engine

    async def on_partitions_revoked(self, revoked: list[TopicPartition]) -> None:  # noqa: ARG002
        try:
            await self._engine.revoke("revoked")
        except BaseException as error:
            end_process("revoked", error)

    async def on_partitions_assigned(self, assigned: list[TopicPartition]) -> None:
        engine = self._engine
        try:
            mine = sorted(source for source in assigned if source.topic == engine.topics.source)
            engine._consumer.pause(*mine)  # type: ignore[union-attr]
            engine.assign([source.partition for source in mine])
        except BaseException as error:
            end_process("assigned", error)


def _unreachable(address: str, error: BaseException) -> str:
    return (
        f"No Kafka broker answers at {address} ({error}). Start one with `foreclick broker start`, or set "
        "FORECLICK_KAFKA__BOOTSTRAP_SERVERS."
    )
