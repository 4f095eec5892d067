"""Timers of silence: who is due to be missed, in the order of time.

Silence is no event, so it needs timers. A user's row says how long the silence after the last event may last until it
is an alert, and whether that was said (``stream.rows``). Beside the rows stands an index that is ordered by time, one
key a user who is waited for, without a value:

    TIMER_PREFIX | deadline, 8 bytes, big-endian | the user's key

In a store that is ordered by its keys the due timers are then one scan from `TIMER_PREFIX` to `due_end(watermark)`.
The index is made of the rows and of nothing else (`timers_of`), so it needs no changelog: a store writes it beside
the rows, in the same step, when a transaction is applied and when rows are restored.

A deadline is dear to find and nearly always in vain, since the user comes back. So a row first holds a silence that is
surely shorter (`stream.rows.LEAST`), and its timer stands a little before the end of that, on a coarse grid of times:
from one event to the next it seldom moves. When it is due the row joins a micro-batch, the deadline itself is asked of
its state vector, and the timer moves there. What follows holds whether or not a deadline was asked for already.

What happens, in the order of the records:

    event of a user        1. the watermark rises to its time, if that is later
                           2. timers that are due are said, once each: the key leaves the index, the row gets `SAID`
                           3. `churn.returned` if the silence had been said; old key out, new key in, `SAID` cleared.
                              The new deadline is at least half an hour beyond the watermark
    tombstone              the user's key leaves the index

Nothing else moves the watermark, so a source that stops altogether alerts nobody: all its users would be silent at
once, and none of them has gone. (Live, a partition that is idle while others go on is moved by ``pass_time``, see
stream/idle_partitions.py.) What is said depends on the records alone, never on how they are cut into micro-batches:
``stream.silence_fold`` does the above for a whole micro-batch at once.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stream.rows import waited_until_ms

__all__ = [
    "EXPECTED",
    "RETURNED",
    "TIMER_PREFIX",
    "PartitionTimers",
    "Said",
    "Silence",
    "SortedIndex",
    "TimerIndex",
    "due_end",
    "moved_timers",
    "read_timer_key",
    "timer_key",
    "timers_of",
]

#: Reserved, as no user id starts with U+0000.
TIMER_PREFIX: Final = b"\0t"
EXPECTED: Final = "churn.expected"
RETURNED: Final = "churn.returned"
#: Timers that join one micro-batch at most; the rest go with the next ones, so that memory is bounded.
MOST_DUE: Final = 4096

_DEADLINE_BYTES: Final = 8
_USER_AT: Final = len(TIMER_PREFIX) + _DEADLINE_BYTES


class Silence(NamedTuple):
    """What a user's row says of the silence after the last applied event.

    Attributes:
        last_ms: the user's time after that event, milliseconds since 1970.
        offset: of that event in its partition.
        deadline_ms: when the silence becomes an alert.
        return_millionths: the chance of coming back within the horizon, at the deadline.
    """

    last_ms: int
    offset: int
    deadline_ms: int
    return_millionths: int = 0


class Said(NamedTuple):
    """An alert about a silence, or about its end.

    Attributes:
        kind: `EXPECTED` or `RETURNED`.
        key: the user's.
        silence: the one that it is about.
        event_time_ms: the deadline, or the time of the event that ended it.
        offset: of the event that began the silence, or of the one that ended it.
    """

    kind: str
    key: bytes
    silence: Silence
    event_time_ms: int
    offset: int

    def id(self, source_prefix: str, subject: str) -> str:
        """The deterministic id: position, kind, subject; of an expected churn the deadline too.

        Args:
            source_prefix: ``{topic id}/{partition}`` of the source.
            subject: the user as text.
        """
        name = f"{source_prefix}/{self.offset}/{self.kind}/{subject}"
        return f"{name}/{self.silence.deadline_ms}" if self.kind == EXPECTED else name


def timer_key(deadline_ms: int, key: bytes) -> bytes:
    """The index's key of a user's timer; deadlines are 1 or more, below 2**63."""
    return TIMER_PREFIX + deadline_ms.to_bytes(_DEADLINE_BYTES, "big") + key


def read_timer_key(timer: bytes) -> tuple[int, bytes]:
    """The deadline and the user's key of a timer."""
    return int.from_bytes(timer[len(TIMER_PREFIX) : _USER_AT], "big"), timer[_USER_AT:]


def due_end(watermark_ms: int) -> bytes:
    """Where a scan of due timers ends, itself left out: a timer is due when the watermark is beyond its deadline.

    An event at the deadline itself is still in time, so it does not matter which of two events of one millisecond
    comes first.
    """
    return TIMER_PREFIX + max(watermark_ms, 0).to_bytes(_DEADLINE_BYTES, "big")


def timers_of(keys: Sequence[bytes], rows: Sequence[bytes | None]) -> list[bytes | None]:
    """The timer that belongs to each stored row, None where nobody is waited for."""
    return [
        timer_key(at_ms, key) if at_ms > 0 else None
        for key, at_ms in zip(keys, waited_until_ms(rows).tolist(), strict=True)
    ]


def moved_timers(
    keys: Sequence[bytes], before: Sequence[bytes | None], after: Sequence[bytes | None]
) -> tuple[list[bytes], list[bytes]]:
    """The timers that leave the index and those that enter it when rows are written over others; few of a visit's."""
    old_ms, new_ms = waited_until_ms(before), waited_until_ms(after)
    moved = old_ms != new_ms

    def chosen(at_ms: NDArray[np.int64]) -> list[bytes]:
        places = np.flatnonzero(moved & (at_ms > 0))
        pairs = zip(places.tolist(), at_ms[places].tolist(), strict=True)
        return [timer_key(at, keys[place]) for place, at in pairs]

    return chosen(old_ms), chosen(new_ms)


class TimerIndex(Protocol):
    """The timers of one partition's rows, as a store with ordered keys gives them."""

    def timers_before(self, end: bytes, most: int) -> list[bytes]:
        """The earliest ``most`` timers below ``end``, in their order."""


class SortedIndex:
    """A `TimerIndex` in memory, for rows that are in memory too or carry their timers elsewhere."""

    def __init__(self, timers: Iterable[bytes] = ()) -> None:
        self._timers = sorted(timers)

    def __len__(self) -> int:
        return len(self._timers)

    def move(self, out: Iterable[bytes], into: Iterable[bytes]) -> None:
        """Take some timers out and put others in."""
        for timer in out:
            del self._timers[bisect_left(self._timers, timer)]
        for timer in into:
            insort(self._timers, timer)

    def timers_before(self, end: bytes, most: int) -> list[bytes]:
        """As ``TimerIndex``."""
        return list(islice(self._timers, min(most, bisect_left(self._timers, end))))


class PartitionTimers:
    """What a partition knows of time: its watermark and its timers.

    Args:
        index: of the rows that are committed.
        watermark_ms: the highest event time applied so far, 0 for none.
    """

    def __init__(self, index: TimerIndex, watermark_ms: int = 0) -> None:
        self.watermark_ms = watermark_ms
        self._index = index

    def due(self) -> bool:
        """Whether a timer waits to be said."""
        return bool(self._index.timers_before(due_end(self.watermark_ms), 1))

    def pass_time(self, watermark_ms: int) -> None:
        """Raise the watermark, never lower it."""
        self.watermark_ms = max(self.watermark_ms, watermark_ms)

    def keys_before(self, latest_ms: int) -> list[bytes]:
        """The users whose timers would be due if the watermark rose to a time, the earliest first."""
        end = due_end(max(self.watermark_ms, latest_ms))
        return [timer[_USER_AT:] for timer in self._index.timers_before(end, MOST_DUE)]
