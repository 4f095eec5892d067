"""When nobody waits for a partition of the input: its end rests, it is processed, and what it told is read."""

from __future__ import annotations

import asyncio

from stream.engine.quiet import Applicable, QuietPartitions


class Source:
    """Ends and committed offsets that a test moves, and a manual clock."""

    def __init__(self, ends: dict[int, int]) -> None:
        self.ends = ends
        self.offsets: dict[int, int | None] = dict.fromkeys(ends)
        self.now_s = 0.0
        self.quiet = QuietPartitions(len(ends), self._end, self._committed, 10.0, lambda: self.now_s)

    async def _end(self, number: int) -> int:
        return self.ends[number]

    async def _committed(self, number: int) -> int | None:
        return self.offsets[number]

    def look(self, now_s: float) -> set[int]:
        self.now_s = now_s
        return set(asyncio.run(self.quiet.look()))


def test_a_partition_that_is_behind_is_not_quiet_however_long_it_says_nothing() -> None:
    """Its worker may have been killed: what it has not told yet would be late."""
    source = Source({0: 0, 1: 100})
    assert source.look(0) == set()
    assert source.look(9.9) == set()
    assert source.look(10) == {0}, "nobody ever wrote to it"
    source.offsets[1] = 60
    assert source.look(1000) == {0}
    source.offsets[1] = 100
    assert source.look(1001) == {0, 1}


def test_a_partition_that_is_written_to_is_not_quiet() -> None:
    """Its seconds count from the last record."""
    source = Source({0: 5})
    source.offsets[0] = 5
    source.look(0)
    assert source.look(10) == {0}
    source.ends[0] = source.offsets[0] = 6
    assert source.look(11) == set()
    assert source.look(20.9) == set()
    assert source.look(21) == {0}


def test_a_transactions_marker_at_the_end_is_no_record_that_waits() -> None:
    """The committed offset of a partition that a transactional producer wrote stays one below its end."""
    source = Source({0: 8})
    source.offsets[0] = 7
    source.look(0)
    assert source.look(10) == {0}


def test_a_quiet_partition_counts_when_everything_it_told_is_read() -> None:
    """Each from its own moment on; one that spoke again begins anew."""
    counts = Applicable()
    assert counts.of(frozenset({0}), 50, 40) == set()
    assert counts.of(frozenset({0, 1}), 70, 50) == {0}
    assert counts.of(frozenset({0, 1}), 90, 70) == {0, 1}
    assert counts.of(frozenset({1}), 90, 70) == {1}
    assert counts.of(frozenset({0, 1}), 90, 70) == {1}
