"""Where the source of an engine ends, and what is behind the last record of a partition."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from aiokafka import TopicPartition
from aiokafka.errors import IllegalStateError

if TYPE_CHECKING:
    from stream.engine.service import Engine


class SourceEnds:
    """Ends and positions of an engine's source; partitions need not be this worker's unless that is said."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def _place(self, number: int) -> TopicPartition:
        return TopicPartition(self._engine.topics.source, number)

    async def end(self, number: int) -> int:
        """High watermark."""
        return await self._engine.offsets.high_watermark(self._place(number))

    async def stable(self, number: int) -> int:
        """End of what is committed."""
        return await self._engine.offsets.last_stable(self._place(number))

    async def committed(self, number: int) -> int | None:
        """The group's offset."""
        return await self._engine.consumer.committed(self._place(number))

    async def pass_markers(self) -> None:
        """Note how far partitions of this worker have come that stand behind all records.

        Markers of transactions occupy offsets that are never delivered: a topic that is written by transactions ends
        with some, and would for ever seem to have records that nobody has read.
        """
        for part in self._engine.open_partitions():
            position = 0
            with contextlib.suppress(IllegalStateError, asyncio.TimeoutError):  # it is being taken away
                position = await asyncio.wait_for(
                    self._engine.consumer.position(self._place(part.number)), 1.0
                )
            # Asked after the position: records that were handed in meanwhile count as unread.
            if part.stage is not None and part.stage.next_offset == part.fetched:
                part.passed = max(part.passed, position)
