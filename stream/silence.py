"""Timers of silence: who is due to be missed, in the order of time.

Silence is no event, so it needs timers. A user's row says how long the silence after the last event may last until it
is an alert (``stream.rows``). Beside the rows stands an index that is ordered by time, one entry a user:

    TIMER_PREFIX | deadline, 8 bytes, big-endian | the user's key    ->    what the alert says of the silence

In a store that is ordered by its keys the due timers are then one scan up to `due_end(watermark)`. The index is made of
the rows and of nothing else (`timers_of`), so it needs no changelog: a store writes it beside the rows, in the same
step, when a transaction is applied and when rows are restored, and does so also while nobody is missed. Entries that
were said may be gone from it.

Timers are said in their order, so one `Moment` in the source's mark (``stream.stage``) says of each whether it was:
all before it were. When a user falls silent for good neither the row is read nor is it written again: alert, mark and
the index are enough. Rows are scattered over the store, entries that are due lie side by side; that is three times as
fast.

A deadline is dear to find and nearly always in vain, since the user comes back. So a row first holds a silence that is
surely shorter (`stream.rows.LEAST`), and its timer stands a little before the end of that, without a value, on a
coarse grid of times: from one event to the next it seldom moves. When it is due the row joins a micro-batch, the
deadline itself is asked of its state vector, and the timer moves there. What follows holds whether or not a deadline
was asked for already.

What happens, in the order of the records:

    event of a user        1. the watermark rises to its time, if that is later
                           2. timers that are due are said, once each, and the moment moves beyond them
                           3. `churn.returned` if the silence had been said; old key out, new key in. The new deadline
                              is at least half an hour beyond the watermark, so never before the moment
    tombstone              the user's key leaves the index

Nothing else moves the watermark, so a source that stops altogether alerts nobody: all its users would be silent at
once, and none of them has gone. (Live, a partition that is idle while others go on is moved by ``pass_time``, see
stream/idle_partitions.py.) What is said depends on the records alone, never on how they are cut into micro-batches:
``stream.silence_fold`` does the above for a whole micro-batch at once. Only where more than `MOST_DUE` timers are due
at once, an event may have its own user's said before those of others that wait for the next micro-batch.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stream.moments import FIRST_MOMENT, Moment
from stream.rows import Waits, positions_of, waits_of

__all__ = [
    "EXPECTED",
    "RETURNED",
    "TIMER_PREFIX",
    "Due",
    "Entry",
    "PartitionTimers",
    "Said",
    "Silence",
    "Silences",
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

#: A timer and its value: with an empty one the row is to be looked at.
Entry = tuple[bytes, bytes]

_DEADLINE_BYTES: Final = 8
_USER_AT: Final = len(TIMER_PREFIX) + _DEADLINE_BYTES
_VALUE: Final = np.dtype([("silence_s", "<u4"), ("return_millionths", "<u4"), ("offset", "<i8")])


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
    return said_end(Moment(watermark_ms))


def said_end(said_before: Moment) -> bytes:
    """Where a scan of timers that were not said begins."""
    return timer_key(max(said_before.time_ms, 0), said_before.key)


@dataclass(frozen=True, slots=True)
class Silences:
    """K silences whose deadlines are known, as the index holds them: columns of ``Silence`` with the users' keys."""

    keys: list[bytes]
    last_ms: NDArray[np.int64]
    offset: NDArray[np.int64]
    deadline_ms: NDArray[np.int64]
    return_millionths: NDArray[np.int64]

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Silences:
        """Read entries that have values."""
        values = np.frombuffer(b"".join([value for _, value in entries]), _VALUE)
        times = b"".join([timer[len(TIMER_PREFIX) : _USER_AT] for timer, _ in entries])
        deadline_ms = np.frombuffer(times, ">i8").astype(np.int64)
        return cls(
            [timer[_USER_AT:] for timer, _ in entries],
            deadline_ms - values["silence_s"].astype(np.int64) * 1000,
            values["offset"],
            deadline_ms,
            values["return_millionths"].astype(np.int64),
        )

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def columns(self) -> tuple[NDArray[np.int64], ...]:
        """In the order of ``Silence``."""
        return self.last_ms, self.offset, self.deadline_ms, self.return_millionths

    def where(self, chosen: NDArray[np.bool_]) -> Silences:
        """Some of them, (K,) bool."""
        return Silences(
            list(compress(self.keys, chosen.tolist())), *(column[chosen] for column in self.columns)
        )

    def before(self, moment: Moment) -> Silences:
        """Those whose deadlines come before a moment."""
        chosen = self.deadline_ms < moment.time_ms
        for place in np.flatnonzero(self.deadline_ms == moment.time_ms).tolist():
            chosen[place] = moment.time_ms < moment.ends_ms(self.keys[place])
        return self.where(chosen)


def _values(waits: Waits, rows: Sequence[bytes | None], places: NDArray[np.int64]) -> list[bytes]:
    """What the index holds for some rows whose deadlines are known."""
    values = np.empty(len(places), _VALUE)
    values["silence_s"] = waits.silence_s[places]
    values["return_millionths"] = waits.return_millionths[places]
    values["offset"] = positions_of([rows[place] or b"" for place in places.tolist()])
    return values.view(f"V{_VALUE.itemsize}").tolist()


def timers_of(keys: Sequence[bytes], rows: Sequence[bytes | None]) -> list[Entry | None]:
    """The entry that belongs to each stored row, None where nobody is waited for."""
    waits = waits_of(rows)
    known = np.flatnonzero(waits.known)
    values = dict(zip(known.tolist(), _values(waits, rows, known), strict=True))
    return [
        (timer_key(at_ms, key), values.get(place, b"")) if at_ms > 0 else None
        for place, (key, at_ms) in enumerate(zip(keys, waits.until_ms.tolist(), strict=True))
    ]


def moved_timers(
    keys: Sequence[bytes], before: Sequence[bytes | None], after: Sequence[bytes | None]
) -> tuple[list[bytes], list[Entry]]:
    """The timers that leave the index and the entries that it gets when rows are written over others.

    Few of a visit's: a timer that stays where it is stays as it is, unless its deadline is known.
    """
    old, new = waits_of(before), waits_of(after)
    moved = old.until_ms != new.until_ms
    out = np.flatnonzero(moved & (old.until_ms > 0))
    bare = np.flatnonzero((moved | old.known) & (new.until_ms > 0) & ~new.known)
    known = np.flatnonzero(new.known)

    def timers(places: NDArray[np.int64], at_ms: NDArray[np.int64]) -> list[bytes]:
        pairs = zip(places.tolist(), at_ms[places].tolist(), strict=True)
        return [timer_key(at, keys[place]) for place, at in pairs]

    into = [(timer, b"") for timer in timers(bare, new.until_ms)]
    into += zip(timers(known, new.until_ms), _values(new, after, known), strict=True)
    return timers(out, old.until_ms), into


class TimerIndex(Protocol):
    """The timers of one partition's rows, as a store with ordered keys gives them."""

    def timers_between(self, first: bytes, end: bytes, most: int) -> list[Entry]:
        """The earliest ``most`` entries from ``first`` on and below ``end``."""


class SortedIndex:
    """A `TimerIndex` in memory, for rows that are in memory too or carry their timers elsewhere."""

    def __init__(self) -> None:
        self._timers: list[bytes] = []
        self._values: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._timers)

    def move(self, out: Iterable[bytes], into: Iterable[Entry]) -> None:
        """Take some timers out and put entries in, or over those that are there."""
        for timer in out:
            del self._timers[bisect_left(self._timers, timer)]
            del self._values[timer]
        for timer, value in into:
            if timer not in self._values:
                insort(self._timers, timer)
            self._values[timer] = value

    def timers_between(self, first: bytes, end: bytes, most: int) -> list[Entry]:
        """As ``TimerIndex``."""
        start = bisect_left(self._timers, first)
        found = self._timers[start : min(start + most, bisect_left(self._timers, end))]
        return [(timer, self._values[timer]) for timer in found]


class Due(NamedTuple):
    """Timers that may be due.

    Attributes:
        looked_at: users whose rows are to be looked at.
        silences: those that need no rows.
        bound: before this moment they are all that wait; None: before any.
    """

    looked_at: list[bytes]
    silences: Silences
    bound: Moment | None


class PartitionTimers:
    """What a partition knows of time: its watermark and its timers.

    Args:
        index: of the rows that are committed.
        watermark_ms: the highest event time applied so far, 0 for none.
        said_before: all timers before it were said.
    """

    def __init__(self, index: TimerIndex, watermark_ms: int = 0, said_before: Moment = FIRST_MOMENT) -> None:
        self.watermark_ms = watermark_ms
        self.said_before = said_before
        self._index = index

    def due(self) -> bool:
        """Whether a timer waits to be said."""
        return bool(self._between(self.watermark_ms, 1))

    def pass_time(self, watermark_ms: int, said_before: Moment = FIRST_MOMENT) -> None:
        """Raise the watermark and the moment, never lower them."""
        self.watermark_ms = max(self.watermark_ms, watermark_ms)
        self.said_before = max(self.said_before, said_before)

    def due_by(self, latest_ms: int) -> Due:
        """The timers that would be due if the watermark rose to a time; of many the earliest."""
        entries = self._between(max(self.watermark_ms, latest_ms), MOST_DUE)
        bound = None
        if len(entries) == MOST_DUE:
            last_ms, last = read_timer_key(entries[-1][0])
            bound = Moment(last_ms, last + b"\0")  # next after it
        looked_at = [timer[_USER_AT:] for timer, value in entries if not value]
        return Due(looked_at, Silences.of([entry for entry in entries if entry[1]]), bound)

    def _between(self, latest_ms: int, most: int) -> list[Entry]:
        return self._index.timers_between(said_end(self.said_before), due_end(latest_ms), most)
