"""Transactions of one transactional id, with as few round trips as the broker allows.

aiokafka's producer asks five to seven times a transaction and lets a task wait for each; with eight partitions a
worker spent more on that than on the model. Here records and source position leave side by side and the end follows:
two round trips where the cluster has transaction version 2 (KIP-890, Kafka 4.0), in which brokers add partitions to a
transaction by themselves, four where it has not.

What a broker answers while leaders or coordinators move is asked again until the deadline, with the same bytes: the
sequence numbers make the repeat harmless. Everything else ends the transaction's owner: nobody retries a transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import KafkaError

from stream.engine import wire
from stream.engine.batches import Batch
from stream.engine.refusals import (
    DUPLICATE_SEQUENCE,
    ELSEWHERE,
    FENCED,
    LATER,
    TakenOver,
    name_of,
    worst,
)
from stream.engine.wire import Place
from stream.errors import BrokenInvariant

PAUSE_S = 0.005  # after "the transaction before is still being ended": a few milliseconds
LONG_PAUSE_S = 0.05  # after anything that takes an election
METADATA_S = 2.0
SEQUENCES = 2**31

A = TypeVar("A")


class Answer(Protocol):
    """Of a leader about one partition."""

    @property
    def error(self) -> int: ...


L = TypeVar("L", bound=Answer)
BeforeAgain = Callable[[Mapping[Place, bytes]], Awaitable[None]]


class Transactions:
    """One transaction after another of one transactional id.

    Args:
        options: of aiokafka's client: addresses and security.
        timeout_ms: after which the coordinator aborts a transaction by itself; nothing here waits longer.
        topics: that are written to.
        newest: the highest transaction version to use, for tests of the older one.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        transactional_id: str,
        *,
        timeout_ms: int,
        topics: Iterable[str],
        newest: int = 2,
    ):
        self._options = dict(options)
        self._id = transactional_id
        self._timeout_ms = timeout_ms
        self._topics = list(topics)
        self._newest = newest
        self._client: Any = None
        self._producer = wire.NOBODY
        self._sequences: dict[Place, int] = {}
        self._coordinators: dict[str, int] = {}
        self._moved = False
        #: Awaited with the first record batches of a transaction that are to be sent again after a broker was away.
        self.before_again: BeforeAgain | None = None
        self.version = 1

    # ------------------------------------------------------------------ start and stop

    async def start(self, timeout_s: float) -> None:
        """Fence: from here on the broker refuses whoever wrote under this id before.

        Raises:
            TimeoutError: no broker, or the coordinator was still ending the predecessor's transaction.
        """
        # The whole of it is bounded: aiokafka's wait for metadata never returns if its own task has died meanwhile.
        await asyncio.wait_for(self._start(time.monotonic() + timeout_s), timeout_s)

    async def _start(self, deadline_s: float) -> None:
        self._client = AIOKafkaClient(**(self._options | {"client_id": self._id, "retry_backoff_ms": 20}))
        await self._client.bootstrap()
        await self._client.set_topics(self._topics)
        node = self._client.get_random_node()
        found = await self._client.send(node, wire.features())
        self.version = min(self._newest, max(1, found.get("transaction.version", 1)))
        await self._fence(deadline_s)

    async def _fence(self, deadline_s: float) -> None:
        request = wire.init_producer(self._id, self._timeout_ms, self._producer)
        _, self._producer = await self._ask(
            CoordinationType.TRANSACTION, self._id, request, lambda answer: answer[0], deadline_s
        )
        self._sequences.clear()
        self._moved = False

    @property
    def disturbed(self) -> bool:
        """Whether a broker was away or a connection broke since the last fence: what it had to end may be forgotten."""
        return self._moved or not all(each.connected() for each in self._client._conns.values())

    async def fence_again(self) -> None:
        """Between two transactions: returns when the coordinator has ended the last one, as far as it knows of it.

        Raises:
            TakenOver: another producer of this id has started: the fence is not to be won back.
        """
        await self._fence(time.monotonic() + self._timeout_ms / 1000)

    async def stop(self) -> None:
        """Close the connections. An open transaction stays open: the next owner's fence aborts it."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    @property
    def producer(self) -> wire.Producer:
        """Who writes, as the coordinator knows it."""
        return self._producer

    # ------------------------------------------------------------------ a transaction

    async def write(
        self,
        batches: Mapping[Place, Sequence[Batch]],
        offsets: tuple[str, TopicPartition, int] | None = None,
        on_the_way: Callable[[], Awaitable[None]] | None = None,
    ) -> dict[Place, int]:
        """Open a transaction with these records, and the source position for a group.

        Args:
            batches: by topic and partition.
            offsets: group, source partition, next offset.
            on_the_way: awaited when everything was sent and nothing is acknowledged yet.

        Returns:
            The offset of the last record, by topic and partition.

        Raises:
            TakenOver: another producer of this id has started.
            BrokenInvariant: the broker refused, or did not answer in time.
        """
        deadline_s = time.monotonic() + self._timeout_ms / 1000
        if self.version == 1:
            await self._add(batches, offsets, deadline_s)
        writing = asyncio.ensure_future(self._produce(batches, deadline_s))
        work: list[asyncio.Future[Any]] = [writing]
        if offsets is not None:
            work.append(asyncio.ensure_future(self._commit_offsets(*offsets, deadline_s)))
        try:
            if on_the_way is not None:
                await asyncio.sleep(0)
                await on_the_way()
            await asyncio.gather(*work)
        finally:
            for task in work:
                task.cancel()
        return writing.result()

    async def end(self, *, commit: bool) -> None:
        """End it; returns when the coordinator has written the decision down.

        Asked again after a lost answer, the coordinator says the same once more.
        """
        deadline_s = time.monotonic() + self._timeout_ms / 1000
        request = wire.end(self._id, 5 if self.version > 1 else 3, self._producer, commit=commit)
        ended = await self._ask(
            CoordinationType.TRANSACTION, self._id, request, lambda answer: answer.error, deadline_s
        )
        if ended.producer is not None and ended.producer != self._producer:
            self._producer = ended.producer
            self._sequences.clear()

    async def commit_forgotten(self, places: Sequence[Place], group: str) -> None:
        """A transaction without records that commits: its markers end what was left open of positions and partitions.

        In the explicit form, which every version knows, since there is nothing to write that would add them.
        """
        deadline_s = time.monotonic() + self._timeout_ms / 1000
        if places:
            await self._add(dict.fromkeys(places, ()), None, deadline_s)
        await self._add_offsets(group, deadline_s)
        request = wire.end(self._id, 3, self._producer, commit=True)
        await self._ask(
            CoordinationType.TRANSACTION, self._id, request, lambda answer: answer.error, deadline_s
        )

    async def _add(
        self,
        batches: Mapping[Place, Sequence[Batch]],
        offsets: tuple[str, TopicPartition, int] | None,
        deadline_s: float,
    ) -> None:
        """Tell the coordinator what the transaction will touch, as clusters before transaction version 2 ask."""
        partitions = dict.fromkeys(batches)
        request = wire.add_partitions(self._id, self._producer, partitions)
        await self._ask(CoordinationType.TRANSACTION, self._id, request, worst, deadline_s)
        if offsets is not None:
            await self._add_offsets(offsets[0], deadline_s)

    async def _add_offsets(self, group: str, deadline_s: float) -> None:
        request = wire.add_offsets(self._id, self._producer, group)
        await self._ask(CoordinationType.TRANSACTION, self._id, request, int, deadline_s)

    async def _commit_offsets(
        self, group: str, source: TopicPartition, offset: int, deadline_s: float
    ) -> None:
        version = 5 if self.version > 1 else 3
        request = wire.commit_offsets(self._id, version, self._producer, group, {source: offset})
        await self._ask(CoordinationType.GROUP, group, request, worst, deadline_s)

    # ------------------------------------------------------------------ records

    async def _produce(self, batches: Mapping[Place, Sequence[Batch]], deadline_s: float) -> dict[Place, int]:
        """Write all batches: of each partition one a request, the next when the one before is acknowledged."""
        ends: dict[Place, int] = {}
        for wave in range(max(map(len, batches.values()), default=0)):
            turn = {place: mine[wave] for place, mine in batches.items() if wave < len(mine)}
            unwritten = {place: self._sealed(place, batch) for place, batch in turn.items()}
            first = await self._write_wave(unwritten, deadline_s, None if wave else self.before_again)
            ends |= {place: offset + turn[place].records - 1 for place, offset in first.items()}
        return ends

    def _sealed(self, place: Place, batch: Batch) -> bytes:
        sequence = self._sequences.get(place, 0)
        self._sequences[place] = (sequence + batch.records) % SEQUENCES
        batch.builder.set_producer_state(*self._producer, sequence)
        return bytes(batch.builder.build())

    async def _write_wave(
        self, unwritten: Mapping[Place, bytes], deadline_s: float, before_again: BeforeAgain | None
    ) -> dict[Place, int]:
        """One batch a partition, each to its leader; offset of the first record of each."""
        version = 12 if self.version > 1 else 9

        def of(places: Iterable[Place]) -> dict[Place, bytes]:
            return {
                place: unwritten[place] for place in places
            }  # the same bytes, however often they are sent

        def request(turn: Sequence[Place]) -> wire.Request[dict[Place, wire.Written]]:
            return wire.produce(self._id, version, self._timeout_ms, of(turn))

        async def again(left: Iterable[Place]) -> None:
            if before_again is not None:
                await before_again(of(left))

        written = await self.ask_leaders("Produce to", unwritten, request, deadline_s, again=again)
        if repeated := [place for place, answer in written.items() if answer.offset < 0]:
            raise _repeated(_places(repeated))
        return {place: answer.offset for place, answer in written.items()}

    # ------------------------------------------------------------------ leaders

    async def ask_leaders(
        self,
        what: str,
        places: Iterable[Place],
        request_of: Callable[[Sequence[Place]], wire.Request[dict[Place, L]]],
        deadline_s: float,
        final: Collection[int] = (),
        again: Callable[[Collection[Place]], Awaitable[None]] | None = None,
    ) -> dict[Place, L]:
        """Ask the leaders of partitions, one request each, until all have answered without an error.

        Args:
            what: is asked, for messages.
            request_of: the request about some of the places.
            final: errors that are an answer.
            again: awaited with the places that are left when a broker was away, before it is asked again.

        Raises:
            TakenOver, BrokenInvariant, TimeoutError: as of ``write``.
        """
        found: dict[Place, L] = {}
        left = dict.fromkeys(places)
        while left:
            trouble, moved = "", False
            by_leader: dict[int, list[Place]] = {}
            for place in left:
                leader = self._client.cluster.leader_for_partition(TopicPartition(*place))
                if leader is None or leader < 0:
                    trouble, moved = f"{_places([place])} has no leader", True
                else:
                    by_leader.setdefault(leader, []).append(place)
            answers = await asyncio.gather(
                *(self._client.send(leader, request_of(turn)) for leader, turn in by_leader.items()),
                return_exceptions=True,
            )
            for answer in answers:
                if isinstance(answer, KafkaError | OSError):
                    trouble, moved = repr(answer), True
                    continue
                if isinstance(answer, BaseException):
                    raise answer
                for place, said in answer.items():
                    if not said.error or said.error in final:
                        found[place] = said
                        del left[place]
                    else:
                        self._refuse(said.error, f"{what} {_places([place])}", getattr(said, "message", ""))
                        trouble = name_of(said.error)
                        moved = moved or said.error in ELSEWHERE
            if left:
                await self._pause(f"{what} {_places(left)}", trouble, deadline_s, moved)
                if moved and again is not None:
                    await again(list(left))
        return found

    # ------------------------------------------------------------------ coordinators

    async def _ask(
        self,
        kind: CoordinationType,
        key: str,
        request: wire.Request[A],
        error_of: Callable[[A], int],
        deadline_s: float,
    ) -> A:
        """Ask the coordinator of a transactional id or a group until it answers without an error."""
        while True:
            moved = False
            try:
                if key not in self._coordinators:
                    self._coordinators[key] = await self._client.coordinator_lookup(kind, key)
                answer: A = await self._client.send(self._coordinators[key], request)
            except (KafkaError, OSError) as error:
                errno = getattr(error, "errno", None)
                if isinstance(error, KafkaError) and errno:
                    self._refuse(errno, request.name, "")
                trouble, moved = repr(error), True
            else:
                code = error_of(answer)
                if not code:
                    return answer
                self._refuse(code, request.name, "")
                trouble, moved = name_of(code), code in ELSEWHERE
            if moved:
                self._coordinators.pop(key, None)
            await self._pause(request.name, trouble, deadline_s, moved)

    # ------------------------------------------------------------------ trouble

    def _refuse(self, code: int, what: str, message: str) -> None:
        """Raise unless asking again may help."""
        if code in FENCED:
            raise TakenOver(f"Another worker has started to write as {self._id} ({what}: {name_of(code)}).")
        if code == DUPLICATE_SEQUENCE:
            raise _repeated(what)
        if code not in ELSEWHERE | LATER:
            raise BrokenInvariant(
                f"The broker refused {what} of {self._id}: {name_of(code)} {message}".rstrip()
                + ". Nothing of this "
                "transaction is visible; look at the broker's log, then start again."
            )

    async def _pause(self, what: str, trouble: str, deadline_s: float, moved: bool) -> None:
        pause_s = LONG_PAUSE_S if moved else PAUSE_S
        if time.monotonic() + pause_s > deadline_s:
            raise TimeoutError(
                f"{what} of {self._id} was not answered in time; the last trouble was: {trouble}. Nothing is lost; "
                "`foreclick doctor` looks at brokers and topics, then start again."
            )
        await asyncio.sleep(pause_s)
        self._moved = self._moved or moved
        if moved:
            # Brokers that were added or came back under another address; the deadline is ours, not aiokafka's.
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                await asyncio.wait_for(self._client.force_metadata_update(), METADATA_S)


def _repeated(where: str) -> BrokenInvariant:
    return BrokenInvariant(
        f"The broker took a batch of {where} for a repeat and gave no offset: what it holds is not known to be ours."
    )


def _places(places: Iterable[Place]) -> str:
    return ", ".join(f"{topic}[{number}]" for topic, number in places)
