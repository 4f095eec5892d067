"""When a micro-batch is released, and how the scorer merges partitions and takes them apart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.batching import Batching, Release
from stream.engine.scorer import Released, Scorer


def test_a_full_batch_goes_at_once() -> None:
    """Size wins over waiting."""
    batching = Batching(max_batch_size=10, max_batch_wait_s=5.0)
    batching.add(6, 0.0)
    assert batching.due(0.1) is None
    batching.add(4, 0.2)
    assert batching.due(0.2) is Release.FULL


@given(st.lists(st.floats(0.0, 0.009), min_size=1, max_size=50))
def test_deadline_counts_from_the_oldest_event(gaps_s: list[float]) -> None:
    """A steady trickle, each arrival well before the deadline of the last, cannot postpone the release."""
    batching = Batching(max_batch_size=10_000, max_batch_wait_s=0.01)
    now_s = 100.0
    batching.add(1, now_s)
    for gap_s in gaps_s:
        now_s += gap_s
        batching.add(1, now_s)
        late = now_s - 100.0 >= 0.01
        assert (batching.due(now_s) is Release.DEADLINE) == late
    assert batching.due(100.011) is Release.DEADLINE
    assert batching.remaining_s(now_s) == pytest.approx(max(0.0, 100.01 - now_s))


def test_nothing_waits_when_nobody_can_join() -> None:
    """Waiting for a partition that has no events would only add latency."""
    batching = Batching(max_batch_size=10, max_batch_wait_s=5.0)
    assert batching.due(0.0, flush=True) is None
    batching.add(1, 0.0)
    assert batching.due(0.0, flush=True) is Release.FLUSH
    batching.clear()
    assert batching.remaining_s(0.0) is None


class Whole:
    """Requests of a scorer are their own fold and their scores the results."""

    def __init__(self, step: Callable[[list[int]], list[int]]):
        self.step = step

    def fold(self, requests: list[int]) -> list[int]:
        return requests

    def weight(self, folded: list[int]) -> int:
        return sum(folded)

    def render(self, folded: list[int], scores: list[int]) -> list[int]:
        return scores


def run_scorer(
    step: Callable[[list[int]], list[int]], requests: list[int], joining: int, **options: float
) -> tuple[list[object], list[Released]]:
    released: list[Released] = []

    async def live() -> list[object]:
        scorer: Scorer[int, int] = Scorer(
            Whole(step),
            max_batch_size=int(options.get("size", 100)),
            max_batch_wait_s=options.get("wait_s", 0.02),
            joining=lambda: joining,
            observe=released.append,
        )
        scorer.start()
        try:
            return await asyncio.gather(*(scorer.score(r, r) for r in requests), return_exceptions=True)
        finally:
            await scorer.stop()

    return asyncio.run(live()), released


def test_scorer_merges_partitions_and_hands_each_its_part() -> None:
    """One step for all that wait, results in the order of the requests."""
    calls: list[list[int]] = []

    def step(requests: list[int]) -> list[int]:
        calls.append(requests)
        return [10 * request for request in requests]

    results, released = run_scorer(step, [1, 2, 3], joining=1)
    assert results == [10, 20, 30]
    assert calls == [[1, 2, 3]]
    assert [entry.reason for entry in released] == [Release.DEADLINE]
    assert released[0].events == 6


def test_scorer_never_splits_a_request_and_leaves_the_rest_for_the_next_step() -> None:
    """A batch is full before the request that would overflow it."""
    calls: list[list[int]] = []

    def step(requests: list[int]) -> list[int]:
        calls.append(requests)
        return requests

    results, _ = run_scorer(step, [60, 60, 500], joining=0)
    assert results == [60, 60, 500]
    assert calls == [[60], [60], [500]]


def test_a_failing_step_fails_every_partition_that_took_part() -> None:
    """Each of them ends the process; none waits for ever."""

    def step(requests: list[int]) -> list[int]:
        raise ValueError("NaN")

    results, _ = run_scorer(step, [1, 2], joining=0)
    assert all(isinstance(result, ValueError) for result in results)
