"""The gate before a round."""

from __future__ import annotations

import asyncio
import time

from stream.engine.gate import Gate

PAUSE_S = 0.01


class Hall:
    """Partitions that work for a while and come back to the gate."""

    def __init__(self, longest_s: float = 1.0):
        self.at_work = 0
        self.gate = Gate(lambda: self.at_work > 0, pause_s=PAUSE_S, longest_s=longest_s)
        self.began_s: list[float] = []

    async def work(self, seconds: float, times: int = 1, late_s: float = 0.0) -> None:
        await asyncio.sleep(late_s)
        for _ in range(times):
            await self.gate.turn()
            self.at_work += 1
            self.began_s.append(time.monotonic())
            await asyncio.sleep(seconds)
            self.at_work -= 1
            self.gate.look()

    def rounds(self) -> list[int]:
        """How many began together, round by round."""
        sizes: list[int] = []
        last_s = float("-inf")
        for began_s in sorted(self.began_s):
            if began_s - last_s > PAUSE_S / 2:
                sizes.append(0)
            sizes[-1] += 1
            last_s = began_s
        return sizes


def test_those_who_are_ready_wait_for_those_at_work_and_begin_with_them() -> None:
    """Short and long work: each round begins when the longest of the one before has come back."""
    hall = Hall()

    async def all_of_them() -> None:
        await asyncio.gather(*(hall.work(seconds, times=3) for seconds in (0.02, 0.05, 0.12)))

    asyncio.run(all_of_them())
    assert hall.rounds() == [3, 3, 3]


def test_a_newcomer_waits_for_the_round_that_runs() -> None:
    """It does not begin in the middle of it."""
    hall = Hall()

    async def two() -> None:
        await asyncio.gather(hall.work(0.15), hall.work(0.01, late_s=0.05))

    asyncio.run(two())
    assert hall.began_s[1] - hall.began_s[0] >= 0.15


def test_alone_nobody_waits_longer_than_the_pause() -> None:
    """With nobody at work the gate opens by itself."""
    hall = Hall()
    began_s = time.monotonic()
    asyncio.run(hall.work(0.0))
    assert hall.began_s[0] - began_s < 0.5


def test_one_that_does_not_come_back_holds_nobody_for_ever() -> None:
    """A broker that answers one partition slowly must not stop the others."""
    hall = Hall(longest_s=0.05)

    async def two() -> None:
        await asyncio.gather(hall.work(1.0), hall.work(0.0, times=3, late_s=0.05))

    asyncio.run(two())
    assert hall.began_s[-1] - hall.began_s[0] < 0.9
    assert len(hall.began_s) == 4
