"""The scorer that all partitions of a worker share: merge, step, hand back.

Each partition hands in what it folded and waits. Whenever the model's thread is free, everything that waits goes in
one step if it is full, if its oldest event's deadline has come, or if no partition is left that could still join.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from stream.batching import Batching, Release

# A step of few events is a thousand short operations, each of which gives the interpreter lock away and has to get it
# back from the event loop: beside a busy loop it took 180 ms, inside it takes 4. A step of many events is few long
# ones, and runs beside the loop on another core.
INLINE_EVENTS = 512

Q = TypeVar("Q")
R = TypeVar("R")


@dataclass(slots=True)
class _Waiting(Generic[Q, R]):
    request: Q
    events: int
    future: asyncio.Future[R]


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
        step: from requests to as many results, one call at a time: a short one in the event loop, a long one in the
            scorer's own thread.
        joining: how many partitions have events and could still hand them in; at 0 waiting is useless.
        observe: told of each release, in the event loop.
    """

    def __init__(
        self,
        step: Callable[[list[Q]], list[R]],
        *,
        max_batch_size: int,
        max_batch_wait_s: float,
        joining: Callable[[], int] = lambda: 0,
        observe: Callable[[Released], None] = lambda _: None,
    ):
        self._step = step
        self._joining = joining
        self._observe = observe
        self._batching = Batching(max_batch_size, max_batch_wait_s)
        self._waiting: list[_Waiting[Q, R]] = []
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="scorer")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._thread.shutdown(wait=True)

    async def score(self, request: Q, events: int) -> R:
        """Hand in and wait for the result; an error of the step is raised in every partition that took part."""
        waiting: _Waiting[Q, R] = _Waiting(request, events, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._batching.add(events, time.monotonic())
        self._arrived.set()
        return await waiting.future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            reason = self._batching.due(time.monotonic(), flush=self._joining() == 0)
            if reason is None:
                self._arrived.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._arrived.wait(), self._batching.remaining_s(time.monotonic()))
                continue
            oldest_s = self._batching.oldest_s
            batch = self._take()
            events = sum(waiting.events for waiting in batch)
            began_s = time.monotonic()
            try:
                requests = [waiting.request for waiting in batch]
                if events <= INLINE_EVENTS:
                    results = self._step(requests)
                else:
                    results = await loop.run_in_executor(self._thread, self._step, requests)
            except Exception as error:  # handed on to every partition, whose process it ends
                for waiting in batch:
                    if not waiting.future.done():
                        waiting.future.set_exception(error)
                continue
            for waiting, result in zip(batch, results, strict=True):
                if not waiting.future.done():  # its partition was closed meanwhile
                    waiting.future.set_result(result)
            waited_s = began_s - (began_s if oldest_s is None else oldest_s)
            self._observe(Released(events, reason, waited_s, time.monotonic() - began_s))

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
