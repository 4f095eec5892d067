"""The gate before a round: partitions that are ready wait for those at work, and take their events together.

What a partition takes too early keeps everything that is fetched a moment later waiting for a whole round more: under
load an event waited for two rounds instead of half of one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

PAUSE_S = 0.002  # what came in while the event loop was at work is handed in first
LONGEST_S = 0.15


class Gate:
    """Opens for everybody who waits, a moment after the last one at work has come back.

    Args:
        busy: whether any partition is at work.
        pause_s: between the last one's return and the opening.
        longest_s: nobody waits longer for the others, seconds.
    """

    def __init__(self, busy: Callable[[], bool], *, pause_s: float = PAUSE_S, longest_s: float = LONGEST_S):
        self._busy = busy
        self._pause_s = pause_s
        self._longest_s = longest_s
        self._waiting: list[asyncio.Future[None]] = []
        self._opening: asyncio.TimerHandle | None = None

    async def turn(self) -> None:
        """Wait until the gate opens."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self.look()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(turn, self._longest_s)

    def look(self) -> None:
        """To be called when somebody has come back from work."""
        if self._waiting and self._opening is None and not self._busy():
            self._opening = asyncio.get_running_loop().call_later(self._pause_s, self._open)

    def _open(self) -> None:
        self._opening = None
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)
