"""The scorer that all partitions of a worker share: merge, fold, step, render, hand back.

Each partition hands in what it decoded and loaded, and waits. Everything that waits goes together if it is full, if its
oldest event's deadline has come, or if no partition is left that could still join: an array operation costs the same
for one partition's few events as for those of eight. Folding and rendering happen in the event loop; a long step of the
model runs beside it, and what comes next is folded meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from stream.batching import Batching, Release

# A step of few events is a thousand short operations, each of which gives the interpreter lock away and has to get it
# back from the event loop: beside a busy loop it took 180 ms, inside it takes 4. A step of many events is few long
# ones, and runs beside the loop on another core.
INLINE_EVENTS = 1024

Q = TypeVar("Q")
R = TypeVar("R")


class Together(Protocol[Q, R]):
    """What requests of several partitions go through together."""

    def fold(self, requests: list[Q]) -> Any: ...

    def weight(self, folded: Any) -> int:
        """Events that the model goes through."""

    def step(self, folded: Any) -> Any:
        """The model, one call at a time; the only part that may run in another thread."""

    def render(self, folded: Any, scores: Any) -> list[R]:
        """As many results as there were requests, in their order."""


@dataclass(slots=True)
class _Waiting(Generic[Q, R]):
    request: Q
    events: int
    future: asyncio.Future[R]

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class Released:
    """One step of the model, for the metrics."""

    events: int
    reason: Release
    waited_s: float
    inference_s: float


class Scorer(Generic[Q, R]):
    """Micro-batches across partitions.

    Args:
        work: what they go through; its step runs in the event loop when it is short, else in the scorer's own thread.
        joining: how many partitions have events and could still hand them in; at 0 waiting is useless.
        observe: told of each release, in the event loop.
        spent_s: wall seconds by step, to which fold and render are added.
    """

    def __init__(
        self,
        work: Together[Q, R],
        *,
        max_batch_size: int,
        max_batch_wait_s: float,
        joining: Callable[[], int] = lambda: 0,
        observe: Callable[[Released], None] = lambda _: None,
        spent_s: dict[str, float] | None = None,
    ):
        self._work = work
        self._joining = joining
        self._observe = observe
        self._spent_s = {"fold": 0.0, "render": 0.0} if spent_s is None else spent_s
        self._batching = Batching(max_batch_size, max_batch_wait_s)
        self._waiting: list[_Waiting[Q, R]] = []
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._task: asyncio.Task[None] | None = None
        self._stepping: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="scorer")

    async def stop(self) -> None:
        for task in (self._task, self._stepping):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        self._thread.shutdown(wait=True)

    async def score(self, request: Q, events: int) -> R:
        """Hand in and wait for the result; an error is raised in every partition that took part."""
        waiting: _Waiting[Q, R] = _Waiting(request, events, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._batching.add(events, time.monotonic())
        self._arrived.set()
        return await waiting.future

    async def _run(self) -> None:
        while True:
            reason = self._batching.due(time.monotonic(), flush=self._joining() == 0)
            if reason is None:
                self._arrived.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._arrived.wait(), self._batching.remaining_s(time.monotonic()))
                continue
            oldest_s = self._batching.oldest_s
            batch = self._take()
            began_s = time.monotonic()
            try:
                folded = self._work.fold([waiting.request for waiting in batch])
            except Exception as error:  # handed on to every partition, whose process it ends
                for waiting in batch:
                    waiting.fail(error)
                continue
            folded_s = time.monotonic()
            self._spent_s["fold"] += folded_s - began_s
            if self._stepping is not None:
                await asyncio.wait([self._stepping])  # one step at a time
            waited_s = began_s - (began_s if oldest_s is None else oldest_s)
            self._stepping = asyncio.create_task(
                self._finish(batch, folded, reason, waited_s), name="model step"
            )

    async def _finish(
        self, batch: list[_Waiting[Q, R]], folded: Any, reason: Release, waited_s: float
    ) -> None:
        events = sum(waiting.events for waiting in batch)
        began_s = time.monotonic()
        try:
            if self._work.weight(folded) <= INLINE_EVENTS:
                scores = self._work.step(folded)
            else:
                scores = await asyncio.get_running_loop().run_in_executor(
                    self._thread, self._work.step, folded
                )
            stepped_s = time.monotonic()
            results = self._work.render(folded, scores)
        except Exception as error:  # handed on to every partition, whose process it ends
            for waiting in batch:
                waiting.fail(error)
            return
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.future.done():  # its partition was closed meanwhile
                waiting.future.set_result(result)
        self._spent_s["render"] += time.monotonic() - stepped_s
        self._observe(Released(events, reason, waited_s, stepped_s - began_s))

    def _take(self) -> list[_Waiting[Q, R]]:
        """The oldest requests up to the batch size; a request is never split."""
        taken: list[_Waiting[Q, R]] = []
        events = 0
        limit = self._batching.max_batch_size
        while self._waiting and (not taken or events + self._waiting[0].events <= limit):
            waiting = self._waiting.pop(0)
            events += waiting.events
            taken.append(waiting)
        self._batching.clear()
        now = time.monotonic()
        for waiting in self._waiting:
            self._batching.add(waiting.events, now)
        return taken
