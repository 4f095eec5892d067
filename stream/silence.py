"""Timers of silence: who is due to be missed, in the order of time, and what an event changes about it.

Silence is no event, so it needs timers. A user's row says when the silence after the last event becomes an alert
(`deadline_ms`, 0 for never) and whether it was said (bit `SAID` of `said`). Beside the rows stands an index that is
ordered by time, one key a user who is waited for, without a value:

    TIMER_PREFIX | deadline, 8 bytes, big-endian | the user's key

In a store that is ordered by its keys the due timers are then one scan from `TIMER_PREFIX` to `due_end(watermark)`.
The index is made of the rows and of nothing else (`timer_of`), so it needs no changelog: a restore writes it beside
the rows that it restores, in the same step.

What happens, in the order of the records:

    event of a user        1. the watermark rises to its time, if that is later
                           2. timers that are due are said, once each: the key leaves the index, the row gets `SAID`.
                              Not this user's own, if the event's time is within the deadline: it only arrived late
                           3. `churn.returned` if the silence had been said; old key out, new key in, `SAID` cleared
    tombstone              the user's key leaves the index

Nothing else moves the watermark, so a source that stops altogether alerts nobody: all its users would be silent at
once, and none of them has gone. (Live, a partition that is idle while others go on may be moved by `pass_time`.)
What is said depends on the records alone, never on how they are cut into micro-batches.

The worker does not run these timers yet. What it has to do for it: let a partition own a ``SilenceTimers`` whose
``index`` reads its store and whose ``rows`` are those of the micro-batch and the store; call ``apply_event`` for each
applied event after the fold, with the model's silence (``models.churn``), and ``pass_time`` when the partition idles;
put what it says into the transaction's outputs, and ``take_changes`` into the WriteBatch of step 8.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple, Protocol

__all__ = [
    "EXPECTED",
    "RETURNED",
    "SAID",
    "TIMER_PREFIX",
    "OrderedIndex",
    "Said",
    "Silence",
    "SilenceTimers",
    "SortedIndex",
    "due_end",
    "read_timer_key",
    "timer_key",
    "timer_of",
]

#: Of the row's ``said``: the silence that lasts now has been said.
SAID: Final = 1
#: Reserved, as no user id starts with U+0000.
TIMER_PREFIX: Final = b"\0t"
EXPECTED: Final = "churn.expected"
RETURNED: Final = "churn.returned"

_DEADLINE_BYTES: Final = 8


class Silence(NamedTuple):
    """What a user's row says of the silence after the last applied event.

    Attributes:
        last_ms: the user's time after that event, milliseconds since 1970.
        offset: of that event in its partition.
        deadline_ms: when the silence becomes an alert; 0 for never.
        said: whether it has become one.
    """

    last_ms: int
    offset: int
    deadline_ms: int
    said: bool = False


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
    start = len(TIMER_PREFIX)
    end = start + _DEADLINE_BYTES
    return int.from_bytes(timer[start:end], "big"), timer[end:]


def due_end(watermark_ms: int) -> bytes:
    """Where a scan of due timers ends, itself left out: a timer is due when the watermark is beyond its deadline.

    An event at the deadline itself is still in time, so it does not matter which of two events of one millisecond
    comes first.
    """
    return TIMER_PREFIX + max(watermark_ms, 0).to_bytes(_DEADLINE_BYTES, "big")


def timer_of(key: bytes, silence: Silence | None) -> bytes | None:
    """The timer that belongs to a row, None where nobody is waited for."""
    if silence is None or silence.said or silence.deadline_ms <= 0:
        return None
    return timer_key(silence.deadline_ms, key)


class OrderedIndex(Protocol):
    """An ordered set of keys, as a store with ordered keys gives it."""

    def add(self, timer: bytes) -> None:
        """Put a key in."""
        ...

    def discard(self, timer: bytes) -> None:
        """Take a key out, if it is in."""
        ...

    def first_before(self, end: bytes) -> bytes | None:
        """The lowest key, if it is below ``end``."""
        ...


class SortedIndex:
    """An ordered set in memory: a heap that forgets lazily."""

    def __init__(self, timers: Iterable[bytes] = ()) -> None:
        self._live = set(timers)
        self._heap = sorted(self._live)

    def __len__(self) -> int:
        return len(self._live)

    def add(self, timer: bytes) -> None:
        """As ``OrderedIndex``."""
        if timer not in self._live:
            self._live.add(timer)
            heappush(self._heap, timer)
            # What was taken out stays in the heap; it may not grow with the number of events.
            if len(self._heap) > 2 * len(self._live) + 1_000:
                self._heap = list(self._live)
                heapify(self._heap)

    def discard(self, timer: bytes) -> None:
        """As ``OrderedIndex``."""
        self._live.discard(timer)

    def first_before(self, end: bytes) -> bytes | None:
        """As ``OrderedIndex``."""
        while self._heap and self._heap[0] < end:
            if self._heap[0] in self._live:
                return self._heap[0]
            heappop(self._heap)
        return None


class SilenceTimers:
    """The timers of one partition.

    Args:
        rows: what the users' rows say, by key; changed in place.
        index: of the timers of these rows.
        watermark_ms: the highest event time applied so far, 0 for none.
    """

    def __init__(
        self, rows: MutableMapping[bytes, Silence], index: OrderedIndex, watermark_ms: int = 0
    ) -> None:
        self.rows, self.index, self.watermark_ms = rows, index, watermark_ms
        self._changes: dict[bytes, bool] = {}

    def apply_event(self, key: bytes, event_time_ms: int, offset: int, silence_ms: int) -> list[Said]:
        """Apply an event: what it makes due, what it ends, and the new deadline.

        Args:
            key: of its user.
            event_time_ms: its time; one before the user's last counts as that.
            offset: in the partition.
            silence_ms: how long the silence after it lasts until it is an alert; 0 for ever.
        """
        before = self.rows.get(key)
        timer = timer_of(key, before)
        if before is not None and timer is not None and event_time_ms <= before.deadline_ms:
            self._take_out(timer)
        said = self.pass_time(event_time_ms)
        before = self.rows.get(key)
        if before is not None and before.said:
            said.append(Said(RETURNED, key, before, event_time_ms, offset))
        last_ms = event_time_ms if before is None else max(event_time_ms, before.last_ms)
        after = Silence(last_ms, offset, last_ms + silence_ms if silence_ms else 0)
        self.rows[key] = after
        if (timer := timer_of(key, after)) is not None:
            self.index.add(timer)
            self._changes[timer] = True
        return said

    def pass_time(self, watermark_ms: int) -> list[Said]:
        """Raise the watermark, never lower it, and say what is due, in the order of deadlines and keys."""
        self.watermark_ms = max(self.watermark_ms, watermark_ms)
        end = due_end(self.watermark_ms)
        said: list[Said] = []
        while (timer := self.index.first_before(end)) is not None:
            self._take_out(timer)
            deadline_ms, key = read_timer_key(timer)
            silence = self.rows[key]
            self.rows[key] = silence._replace(said=True)
            said.append(Said(EXPECTED, key, silence, deadline_ms, silence.offset))
        return said

    def erase(self, key: bytes) -> None:
        """Forget a user: no timer, no return."""
        if (timer := timer_of(key, self.rows.pop(key, None))) is not None:
            self._take_out(timer)

    def take_changes(self) -> dict[bytes, bool]:
        """Index keys changed since the last call: True to put, False to delete. What cancels out is a delete."""
        changes, self._changes = self._changes, {}
        return changes

    def _take_out(self, timer: bytes) -> None:
        self.index.discard(timer)
        self._changes[timer] = False
