"""Which partitions of the input nobody has to wait for.

The second stage waits until every partition of the input has reached a moment before it calls that moment complete. One
that nobody writes to would hold it for ever. It is quiet when three things are known of it, none of them guessed from
silence alone (a worker that was killed is silent as well, and its partitions are not done):

1. its end has not moved for some seconds,
2. the clicks' group has committed up to that end, so all that it had to tell stands in the topic of groups,
3. the partition of groups in question has read everything that stood there then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn, cast

from aiokafka.errors import ConsumerStoppedError, IllegalStateError, KafkaError

from stream.engine.partition import Partition
from stream.engine.service import Engine
from stream.groups_stage import GroupsWork

LOOK_S = 1.0
MARKERS = 2  # a transactional producer's marker stands after its last record, and is never a committed offset


class QuietPartitions:
    """Points 1 and 2, looked at now and then.

    Args:
        partitions: of the input.
        end: high watermark of one of them; ``committed`` the group's offset there, None for none.
        quiet_s: how long an end must not have moved.
    """

    def __init__(
        self,
        partitions: int,
        end: Callable[[int], Awaitable[int]],
        committed: Callable[[int], Awaitable[int | None]],
        quiet_s: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._numbers = range(partitions)
        self._end, self._committed = end, committed
        self._quiet_s, self._clock = quiet_s, clock
        self._since: dict[int, tuple[int, float]] = {}
        self._done: dict[int, int] = {}

    async def look(self) -> frozenset[int]:
        """Those that are quiet now."""
        ends = dict(zip(self._numbers, await asyncio.gather(*map(self._end, self._numbers)), strict=True))
        now = self._clock()
        still = []
        for number, end in ends.items():
            if self._since.get(number, (None, 0.0))[0] != end:
                self._since[number] = end, now
            elif now - self._since[number][1] >= self._quiet_s:
                still.append(number)
        for number in still:
            if self._done.get(number) != ends[number] and await self._is_done(number, ends[number]):
                self._done[number] = ends[number]
        return frozenset(number for number in still if self._done.get(number) == ends[number])

    async def _is_done(self, number: int, end: int) -> bool:
        if end == 0:
            return True
        committed = await self._committed(number)
        return committed is not None and committed >= end - MARKERS


class Applicable:
    """Point 3, for one partition of groups: which quiet partitions it may count as such.

    A partition that became quiet counts from the moment at which everything is read that stood in the topic then.
    """

    def __init__(self) -> None:
        self._from: dict[int, int] = {}

    def of(self, quiet: frozenset[int], stands: int, position: int) -> frozenset[int]:
        """Those of the quiet ones that count.

        Args:
            quiet: of the input, now.
            stands: end of what is committed in this partition of groups, asked after ``quiet`` was known.
            position: up to where it is read and applied.
        """
        self._from = {number: self._from.get(number, stands) for number in quiet}
        return frozenset(number for number, needed in self._from.items() if position >= needed)


async def wait_for_nobody_quiet(
    clicks: Engine,
    groups: Engine,
    partitions: int,
    quiet_s: float,
    end_process: Callable[[str, BaseException], NoReturn],
) -> None:
    """Tell the groups' partitions of this worker who is quiet, and wake those where something is due; for ever.

    Args:
        clicks, groups: the engines.
        partitions: of the input.
        quiet_s: see ``QuietPartitions``.
    """
    quiet = QuietPartitions(partitions, clicks.ends.end, clicks.ends.committed, quiet_s)
    applicable: dict[GroupsWork, Applicable] = {}
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            applicable = await _tell(groups, quiet, applicable)
        except (KafkaError, ConsumerStoppedError, IllegalStateError, TimeoutError):
            for work in applicable:  # the broker is away, or the worker stops: nobody counts as quiet for now
                work.sources.quiet = frozenset()
            applicable = {}
        except Exception as error:
            if clicks.should_stop or groups.should_stop:
                return  # their clients are being closed
            end_process("watching for quiet partitions", error)


async def _tell(
    groups: Engine, quiet: QuietPartitions, before: dict[GroupsWork, Applicable]
) -> dict[GroupsWork, Applicable]:
    told: dict[GroupsWork, Applicable] = {}
    parts: list[tuple[Partition, GroupsWork]] = [
        (part, cast(GroupsWork, part.stage.work))
        for part in groups.open_partitions()
        if part.stage is not None
    ]
    if not parts:
        return told
    awakenings = {part.number: work.sources.awakenings for part, work in parts}
    still = await quiet.look()
    stands = {part.number: await groups.ends.stable(part.number) for part, _ in parts}
    await groups.ends.pass_markers()
    for part, work in parts:
        if part.closing or part.stage is None:
            continue
        told[work] = before.get(work) or Applicable()
        counted = told[work].of(still, stands[part.number], max(part.stage.next_offset, part.passed))
        # One that spoke while we asked is not quiet, whatever was true when the question was put.
        if work.sources.awakenings == awakenings[part.number]:
            work.sources.quiet = counted
        if work.has_due(groups.now_ms()):
            part.nudge()
    return told
