"""When is a micro-batch released: when it is full, or when its oldest event has waited long enough.

Pure: the clock is an argument. Names as in Ray Serve and Triton.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Release(Enum):
    """Why a micro-batch goes: the label of ``foreclick_batch_released_total``."""

    FULL = "full"
    DEADLINE = "deadline"
    FLUSH = "flush"


@dataclass(slots=True)
class Batching:
    """The waiting room before the model: events of several partitions, none older than the deadline.

    Args:
        max_batch_size: events that release at once.
        max_batch_wait_s: counted from the oldest waiting event.
    """

    max_batch_size: int
    max_batch_wait_s: float
    waiting: int = 0
    oldest_s: float | None = None

    def add(self, events: int, now_s: float) -> None:
        # The deadline belongs to the oldest event. Restarting it on each arrival would let a steady trickle
        # postpone the release for ever.
        if self.oldest_s is None:
            self.oldest_s = now_s
        self.waiting += events

    def due(self, now_s: float, flush: bool = False) -> Release | None:
        """The reason to release now, or None.

        ``flush`` says that nobody else can join: waiting would only add latency.
        """
        if self.oldest_s is None:
            return None
        if self.waiting >= self.max_batch_size:
            return Release.FULL
        if now_s - self.oldest_s >= self.max_batch_wait_s:
            return Release.DEADLINE
        return Release.FLUSH if flush else None

    def remaining_s(self, now_s: float) -> float | None:
        """Seconds until the deadline; None when nothing waits."""
        return None if self.oldest_s is None else max(0.0, self.oldest_s + self.max_batch_wait_s - now_s)

    def clear(self) -> None:
        self.waiting = 0
        self.oldest_s = None
