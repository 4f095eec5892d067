"""A partition's life under any order of assignments, revocations, failures and pauses, on a simulated log."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any, NoReturn

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stream.engine.partition import Partition, State
from stream.engine.restore import reason_to_wipe
from stream.errors import BrokenInvariant, PositionError
from stream.stage import Chunk, Rendered, SourceMark, Stage
from tests.stream.simulated_log import SimulatedBroker, SimulatedLog, SimulatedStore


class CountingWork:
    """A row is a count and a running hash; each event's output carries both, so a repeat or a gap shows for ever."""

    def decode(self, records: list[Any]) -> Any:
        class Decoded:
            keys = list(dict.fromkeys(record.key for record in records))

        Decoded.records = records  # type: ignore[attr-defined]
        return Decoded

    @staticmethod
    def fold(decoded: Any, rows: list[bytes | None]) -> Any:
        states = {key: row or b"0:" for key, row in zip(decoded.keys, rows, strict=True)}
        outputs = []
        for record in decoded.records:
            count, _, digest = states[record.key].partition(b":")
            digest = hashlib.blake2b(digest + record.value, digest_size=6).hexdigest().encode()
            states[record.key] = b"%d:%s" % (int(count) + 1, digest)
            outputs.append((record.key, b"%d/%s" % (record.offset, states[record.key]), ()))
        return outputs, list(states.items())

    async def score(self, decoded: Any, rows: list[bytes | None], now_ms: int) -> Rendered:
        outputs, states = self.fold(decoded, rows)
        await asyncio.sleep(0)
        return Rendered({"out": outputs}, states, 0)

    def account(self, rendered: Rendered, received_s: float, committed_s: float) -> None: ...


def folded(broker: SimulatedBroker, end: int) -> tuple[list[tuple[bytes, bytes]], dict[bytes, bytes]]:
    """What one patient reader would have made of the first ``end`` records."""
    work = CountingWork()
    records = broker.source[:end]
    decoded = work.decode(records)
    outputs, rows = work.fold(decoded, [None] * len(decoded.keys))
    return [(key, value) for key, value, _ in outputs], dict(rows)


class Ended(Exception):
    """Stands for the end of the process."""


class Worker:
    """One process: a partition, its store on disk, and what ended it."""

    def __init__(self, broker: SimulatedBroker, store: SimulatedStore):
        self.broker, self.store = broker, store
        self.log = SimulatedLog(broker)
        self.ended: BaseException | None = None
        self.partition = Partition(
            0, self.log, store, self._stage, clock=lambda: 0, end_process=self._end, batch_limit=3, wait_s=0.0
        )
        self.partition.start()
        assert self.partition._task is not None
        self.partition._task.add_done_callback(lambda task: task.cancelled() or task.exception())

    def _stage(self, position: int, mark: SourceMark | None) -> Stage[Any]:
        return Stage(CountingWork(), self.log, self.store, lambda: 0, position, b"s" * 16, b"c" * 16)

    def _end(self, where: str, error: BaseException) -> NoReturn:
        self.ended = error
        raise Ended(where)

    def poll(self, most: int) -> None:
        part = self.partition
        if part.closing:
            return
        if part.state is State.VERIFIED:
            part.opened()
        if part.state is State.OPEN and not part.full:
            records = self.broker.source[part.fetched : part.fetched + most]
            if records:
                part.put(Chunk(records, part.fetched, records[-1].offset + 1))

    def crash(self) -> None:
        task = self.partition._task
        if task is not None:
            task.cancel()
        self.store.crash()


class PartitionLife(RuleBasedStateMachine):
    """Three machines with disks of their own; the group gives the partition to one at a time, often too early."""

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.broker = SimulatedBroker()
        self.stores = [SimulatedStore() for _ in range(3)]
        self.owner: Worker | None = None
        self.owner_machine: int | None = None
        self.zombies: list[Worker] = []
        self.sequence = 0

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.finish()
            self.loop.run_until_complete(asyncio.sleep(0))
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.spin(5)
            self.loop.close()

    def spin(self, turns: int) -> None:
        async def turn() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turn())

    @rule(users=st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=6))
    def produce(self, users: list[bytes]) -> None:
        for user in users:
            self.sequence += 1
            self.broker.produce(user, b"%d" % self.sequence)

    @rule(turns=st.integers(1, 25), most=st.integers(1, 5))
    def work(self, turns: int, most: int) -> None:
        for _ in range(turns):
            if self.owner is not None:
                self.owner.poll(most)
            self.spin(1)

    @rule(machine=st.integers(0, 2))
    @precondition(lambda self: self.owner is None)
    def assign(self, machine: int) -> None:
        if any(zombie.store is self.stores[machine] for zombie in self.zombies):
            return  # that machine's process is paused and holds the lock of its disk
        self._start(machine)

    def _start(self, machine: int) -> None:
        async def start() -> Worker:
            return Worker(self.broker, self.stores[machine])

        self.owner, self.owner_machine = self.loop.run_until_complete(start()), machine

    @rule()
    @precondition(lambda self: self.owner is not None)
    def revoke(self) -> None:
        owner, self.owner = self.owner, None
        assert owner is not None
        self.loop.run_until_complete(owner.partition.close(5.0))

    @rule()
    @precondition(lambda self: self.owner is not None)
    def crash(self) -> None:
        owner, self.owner = self.owner, None
        assert owner is not None
        owner.crash()
        self.spin(2)

    @rule()
    @precondition(lambda self: self.owner is not None)
    def pause_past_the_session_timeout(self) -> None:
        assert self.owner is not None
        self.owner.log.gate.clear()
        self.zombies.append(self.owner)
        self.owner = None

    @rule(turns=st.integers(1, 10))
    @precondition(lambda self: bool(self.zombies))
    def wake_a_zombie(self, turns: int) -> None:
        zombie = self.zombies.pop(0)
        zombie.log.gate.set()
        for _ in range(turns):
            zombie.poll(2)
            self.spin(1)
        zombie.crash()  # whatever it did, the supervisor ends it at last
        self.spin(2)

    def replace_a_fenced_owner(self) -> None:
        """A zombie that was paused before its fence fences the rightful owner when it wakes: that one starts anew."""
        if self.owner is not None and self.owner.ended is not None:
            assert "Another worker has taken over" in str(self.owner.ended), self.owner.ended
            assert self.owner.log.epoch != self.broker.epoch
            self.owner.crash()
            self.owner = None

    @rule(machine=st.integers(0, 2))
    def flush_a_disk(self, machine: int) -> None:
        self.stores[machine].flush()

    @rule(machine=st.integers(0, 2))
    def lose_a_disk(self, machine: int) -> None:
        # Not under a process that lives: it has its files open, and a zombie is one too.
        held = [zombie.store for zombie in self.zombies]
        if self.owner is not None:
            held.append(self.owner.store)
        if not any(store is self.stores[machine] for store in held):
            self.stores[machine].wipe()

    @invariant()
    def what_is_committed_is_exact(self) -> None:
        if not hasattr(self, "broker"):
            return
        end = self.broker.committed or 0
        outputs, rows = folded(self.broker, end)
        assert self.broker.outputs == outputs
        state = {w.key: w.value for w in self.broker.changelog if w.fate == "committed" and w.key != b"\0src"}
        assert state == rows

    @invariant()
    def an_owner_ends_only_when_fenced(self) -> None:
        if hasattr(self, "owner"):
            self.replace_a_fenced_owner()

    def finish(self) -> None:
        """Whatever happened, the next owner catches up and its local rows are the fold of the whole source."""
        for zombie in self.zombies:
            zombie.crash()
        self.spin(2)
        for _ in range(2):
            if self.owner is None:
                self._start(0)
            assert self.owner is not None
            for _ in range(40 + 12 * len(self.broker.source) + 4 * len(self.broker.changelog)):
                self.owner.poll(5)
                self.spin(1)
            owner = self.owner
            self.replace_a_fenced_owner()
            if self.owner is not None:
                break
        assert owner.ended is None, owner.ended
        assert self.owner is not None
        assert (self.broker.committed or 0) == len(self.broker.source)
        outputs, rows = folded(self.broker, len(self.broker.source))
        assert self.broker.outputs == outputs
        assert {k: v for k, v in self.owner.store.rows.items() if not k.startswith(b"\0")} == rows


PartitionLife.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPartitionLife = PartitionLife.TestCase


def run_until_ended(broker: SimulatedBroker, store: SimulatedStore, turns: int = 60) -> Worker:
    async def live() -> Worker:
        worker = Worker(broker, store)
        for _ in range(turns):
            worker.poll(5)
            await asyncio.sleep(0)
        return worker

    return asyncio.run(live())


def test_a_chunk_that_does_not_follow_its_predecessor_ends_the_process() -> None:
    """A hole in what was fetched must never become a hole in what was counted."""
    broker = SimulatedBroker()
    for i in range(6):
        broker.produce(b"a", b"%d" % i)

    async def live() -> Worker:
        worker = Worker(broker, SimulatedStore())
        for _ in range(30):
            worker.poll(0)
            await asyncio.sleep(0)
        worker.partition.put(Chunk(broker.source[:2], 0, 2))
        worker.partition.put(Chunk(broker.source[3:5], 3, 5))
        for _ in range(30):
            await asyncio.sleep(0)
        return worker

    worker = asyncio.run(live())
    assert isinstance(worker.ended, BrokenInvariant)
    assert "starts at 3" in str(worker.ended)
    assert len(broker.outputs) in (0, 2)


def test_committed_offset_without_state_names_the_mending_command() -> None:
    """Topics recreated under an old group are the operator's decision, not ours."""
    broker = SimulatedBroker(committed=5)
    for i in range(9):
        broker.produce(b"a", b"%d" % i)
    worker = run_until_ended(broker, SimulatedStore())
    assert isinstance(worker.ended, PositionError)
    assert "foreclick state reset --to earliest" in str(worker.ended)


def test_position_mismatch_opens_where_the_state_stands() -> None:
    """A broker that lost a commit marker leaves the group ahead of the state: the state is right."""
    broker = SimulatedBroker()
    for i in range(9):
        broker.produce(b"a", b"%d" % i)
    run_until_ended(broker, SimulatedStore())
    broker.committed = 7
    worker = run_until_ended(broker, SimulatedStore())
    assert worker.ended is None
    assert worker.partition.position == 9


def test_recreated_source_keeps_the_rows_and_starts_at_its_beginning() -> None:
    """Offsets of another topic mean nothing, what is known of the users does."""
    broker = SimulatedBroker()
    for i in range(4):
        broker.produce(b"a", b"%d" % i)
    store = SimulatedStore()
    run_until_ended(broker, store)
    broker.source_id, broker.source, broker.committed = b"t" * 16, [], None
    worker = run_until_ended(broker, store)
    assert worker.ended is None
    assert worker.partition.position == 0
    assert store.rows[b"a"].startswith(b"4:")


@pytest.mark.parametrize("position", [7])
def test_local_rows_ahead_of_the_changelog_are_wiped(position: int) -> None:
    """A store beyond the last stable offset holds what nobody committed."""
    broker = SimulatedBroker()
    store = SimulatedStore()
    store.apply([(b"ghost", b"1:")], position, b"c" * 16, 0)
    broker.produce(b"a", b"1")
    worker = run_until_ended(broker, store)
    assert worker.ended is None
    assert b"ghost" not in store.rows


@pytest.mark.parametrize(("aborted_from", "stays"), [(None, True), (3, True), (2, False)])
def test_local_rows_of_a_transaction_that_is_aborted_as_forgotten_are_wiped(
    aborted_from: int | None, stays: bool
) -> None:
    """This machine applied them when the broker said that they were committed."""
    log, store = SimulatedLog(SimulatedBroker()), SimulatedStore()
    store.apply([(b"ghost", b"1:")], 2, b"c" * 16, 0)
    log.aborted_from = aborted_from
    wiped = reason_to_wipe(store, log, (0, 5), 0)  # type: ignore[arg-type]
    assert (wiped is None) == stays


class Reminders(CountingWork):
    """Each event asks to be told when event time passes it by ten; what is due is said in a row of its own."""

    def __init__(self) -> None:
        self.waits: list[int] = []
        self.watermark_ms = 0

    def due(self) -> bool:
        return any(time < self.watermark_ms for time in self.waits)

    def pass_time(self, watermark_ms: int) -> None:
        self.watermark_ms = max(self.watermark_ms, watermark_ms)

    async def score(self, decoded: Any, rows: list[bytes | None], now_ms: int) -> Rendered:
        rendered = await super().score(decoded, rows, now_ms)
        said = [time for time in self.waits if time < self.watermark_ms]
        self.waits = [time for time in self.waits if time not in said]
        self.waits += [int(record.value) + 10 for record in decoded.records]
        outputs = [*rendered.messages["out"], *((b"said", b"%d" % time, ()) for time in said)]
        return Rendered({"out": outputs}, rendered.rows, self.watermark_ms)


def test_a_partition_that_waits_for_a_fuller_micro_batch_closes_without_waiting() -> None:
    """A stage that commits once a second, or once an hour, does not hold a rebalance up for as long."""
    broker = SimulatedBroker()
    broker.produce(b"a", b"1")

    async def close_while_it_waits() -> Worker:
        worker = Worker(broker, SimulatedStore())
        worker.partition._wait_s = 3600.0
        for _ in range(100):
            await asyncio.sleep(0)
        assert worker.partition.state is State.VERIFIED
        worker.poll(1)
        await asyncio.sleep(0.01)
        assert worker.partition.queued == 1
        await asyncio.wait_for(worker.partition.close(1.0), 2.0)
        return worker

    assert asyncio.run(close_while_it_waits()).ended is None
    assert broker.committed is None, "the next owner reads it again"


def test_timers_fall_due_without_a_record() -> None:
    """Time makes a transaction of its own: the position stays, the watermark is in it, nothing is said twice."""
    broker = SimulatedBroker()
    for time in (3, 5, 40):
        broker.produce(b"a", b"%d" % time)
    work = Reminders()

    class Reminded(Worker):
        def _stage(self, position: int, mark: SourceMark | None) -> Stage[Any]:
            return Stage(work, self.log, self.store, lambda: 0, position, b"s" * 16, b"c" * 16)

    async def live() -> None:
        worker = Reminded(broker, SimulatedStore())
        for turn in range(120):
            worker.poll(5)
            await asyncio.sleep(0)
            if turn in (60, 80):
                worker.partition.pass_time(20)
        assert worker.ended is None

    asyncio.run(live())
    assert [value for key, value in broker.outputs if key == b"said"] == [b"13", b"15"]
    assert broker.committed == 3
    mark = [written.value for written in broker.changelog if written.key == b"\0src"][-1]
    assert mark is not None
    assert SourceMark.decode(mark) == SourceMark(3, b"s" * 16, 20)
    assert SourceMark.decode(mark[:32]) == SourceMark(3, b"s" * 16, 20), "as builds without moments wrote it"
