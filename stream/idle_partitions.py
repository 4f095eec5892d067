"""Event time of partitions that nothing comes to: who is moved on, and when nobody may be.

Silence is measured by the event time of a partition, which its events move. A partition without events would wait for
ever, though its users are silent, so while others go on it follows them. Only live, when the others' events are of
about now: in a replay the next partition may be an hour behind the first. And never when all are idle: then the source
is silent, and nobody has gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Heard", "left_behind", "silent"]


class Heard(NamedTuple):
    """What an open partition has heard.

    Attributes:
        number: of the partition.
        watermark_ms: its highest event time, 0 for none.
        quiet_s: since its last records were committed, or since it was opened.
        ever: whether records were committed since it was opened.
        caught_up: nothing waits, neither here nor at the broker.
    """

    number: int
    watermark_ms: int
    quiet_s: float
    ever: bool
    caught_up: bool


def silent(partitions: Sequence[Heard], idle_s: float) -> bool:
    """Whether no partition has had a record for ``idle_s``."""
    return bool(partitions) and all(part.quiet_s >= idle_s for part in partitions)


def left_behind(partitions: Sequence[Heard], now_ms: int, idle_s: float, live_ms: int) -> dict[int, int]:
    """The watermark that each idle partition is moved to.

    Args:
        now_ms: the wall clock; no partition is moved beyond it.
        idle_s: without records for so long a partition is idle.
        live_ms: others count only if their watermark is at most so far behind the clock.
    """
    going = [
        part.watermark_ms
        for part in partitions
        if part.ever and part.quiet_s < idle_s and part.watermark_ms >= now_ms - live_ms
    ]
    if not going:
        return {}
    target_ms = min(max(going), now_ms)
    return {
        part.number: target_ms
        for part in partitions
        if part.quiet_s >= idle_s and part.caught_up and part.watermark_ms < target_ms
    }
