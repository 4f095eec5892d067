"""The silences of a round: what its events and the passing of time end, say and begin, for many users at once.

The rules are those of ``stream.silence``, which tells them event by event. Here they are array operations over the M
applied events of R partitions, because nearly every event only moves its user's deadline:

- a silence lasts from an event to the user's next one; it was said if the watermark passed its deadline before or with
  that next event. So each silence needs one comparison, with the watermark at the event that ends it, or at the end;
- the deadline is dear, a silence that is surely shorter is cheap. Of a user's last event here only that is asked for,
  and nothing at all of one whose silence another event ends within a session. The deadline itself is asked for when the
  time of the partition comes near to the lesser silence (``stream.rows.looked_at_ms``): of the event where it does so
  at once, else, later, of the row. When it is asked does not change what it is: the row's state vector says the same;
- a user who is heard of late was not silent meanwhile: no timer runs out within half an hour of the watermark that
  stood when its event came, or every event of a delayed upload would be missed and welcomed;
- timers are said in their order up to one moment a partition: the watermark, or less when too many are due at once. A
  row whose deadline comes before it was said, so it need not be written for that;
- only what is said is looked at one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress, repeat
from operator import itemgetter
from typing import Final, Protocol

import numpy as np

from stream.moments import FIRST_MOMENT, Moment
from stream.rows import LEAST, SAID, looked_at_ms
from stream.silence import EXPECTED, RETURNED, Said, Silence, Silences

__all__ = ["FIRST_SILENCE_MS", "Deadlines", "Part", "fold_silences"]

#: No deadline comes earlier after its event (``models.churn.FIRST_SILENCE_S``).
FIRST_SILENCE_MS: Final = 1_800_000
#: A row keeps seconds in 32 bits; 136 years.
MOST_SILENCE_S: Final = 2**32 - 1

#: Seconds of silence until the alert, 0 for never, and the chance of a return then in millionths, (K,) each.
Found = tuple[np.ndarray, np.ndarray]


class Deadlines(Protocol):
    """What the model says of silences; each is asked once a round at most."""

    def least(self, events: np.ndarray) -> np.ndarray:
        """Seconds (K,) that are surely fewer than those of ``after``; 0 where only that can tell."""

    def after(self, events: np.ndarray) -> Found:
        """Of the silences that events of the round begin."""

    def carried(self, rows: np.ndarray) -> Found:
        """Of the silences that rows brought along, from their states before the round."""


@dataclass(frozen=True, slots=True)
class Part:
    """One partition's share of a round.

    Attributes:
        keys: of its rows, one for each life of a user.
        rows, events: where they begin and end among all rows and all applied events.
        watermark_ms: before the round.
        ended: by row, how many of the partition's applied events came before the tombstone that ended that life.
        said_before: all timers before this moment were said before the round.
        bound: no timer from this moment on is said in this round, unless an event or a tombstone ends its silence.
        waiting: silences of users who have no row here.
    """

    keys: Sequence[bytes]
    rows: slice
    events: slice
    watermark_ms: int
    ended: dict[int, int] = field(default_factory=dict)
    said_before: Moment = FIRST_MOMENT
    bound: Moment | None = None
    waiting: Silences | None = None


def fold_silences(
    rows: np.ndarray,
    last_ms: np.ndarray,
    position: np.ndarray,
    columns: dict[str, np.ndarray],
    after_ms: np.ndarray,
    offset: np.ndarray,
    parts: Sequence[Part],
    deadlines: Deadlines,
) -> tuple[list[list[Said]], np.ndarray, list[Moment]]:
    """Apply the events to the silences of their users, and time to those of all rows.

    Args:
        rows: (B,) after the fold of events; what they say of silences is changed in place.
        last_ms, position: (B,) as the rows had them before the fold.
        columns: of the applied events, (M,): ``row`` and ``event_time_ms``.
        after_ms: (M,) the user's last time after each of them.
        offset: (M,) in the source.
        deadlines: of this round's events and rows.

    Returns:
        What each partition says, in the order of records and, at one record, of deadlines; the rows without events that
        changed, rising; and the moment before which all timers of each partition are said now.
    """
    row, times_ms = columns["row"], columns["event_time_ms"]
    watermark_ms = np.empty(len(row), np.int64)  # with each event
    until_ms = np.empty(
        len(rows), np.int64
    )  # before it the silence of each row is over, or that of each life
    told_ms = np.empty(len(rows), np.int64)  # before it that was said before the round
    reached: list[Moment] = []
    for part in parts:
        mine = np.maximum.accumulate(np.maximum(times_ms[part.events], part.watermark_ms))
        watermark_ms[part.events] = mine
        end = Moment(int(mine[-1]) if len(mine) else part.watermark_ms)
        reached.append(max(part.said_before, end if part.bound is None else min(end, part.bound)))
        until_ms[part.rows] = _ends_ms(reached[-1], part.keys)
        told_ms[part.rows] = _ends_ms(part.said_before, part.keys)
        for slot, count in part.ended.items():
            until_ms[part.rows.start + slot] = mine[count - 1] if count else part.watermark_ms

    # The events of each user as a chain: which one comes next, and which is the first.
    order = np.argsort(row.astype(np.uint16) if len(rows) <= 2**16 else row, kind="stable")
    same = row[order][1:] == row[order][:-1]
    following = np.full(len(row), -1, np.int64)
    following[order[:-1][same]] = order[1:][same]
    first = np.full(len(rows), -1, np.int64)
    opens = np.ones(len(row), np.bool_)
    opens[order[1:][same]] = False
    first[row[opens]] = np.flatnonzero(opens)
    last = following < 0
    ends_ms = np.where(last, until_ms[row], watermark_ms[following]) if len(row) else watermark_ms

    # Silences that the rows brought along end with the first event here, or not at all.
    carried_ends_ms = np.where(first < 0, until_ms, watermark_ms[first]) if len(row) else until_ms
    carried_s = rows["silence_s"].astype(np.int64)
    asked = np.flatnonzero(((rows["said"] & LEAST) > 0) & (carried_s > 0))
    asked = asked[looked_at_ms(last_ms[asked], carried_s[asked]) < carried_ends_ms[asked]]
    if len(asked):
        found_s, rows["return_millionths"][asked] = deadlines.carried(asked)
        carried_s[asked] = rows["silence_s"][asked] = _lasting(found_s, carried_s[asked])
        rows["said"][asked] = 0
    carried_ms = last_ms + carried_s * 1000
    told = ((rows["said"] & LEAST) == 0) & (carried_ms < told_ms)
    said_before = (carried_s > 0) & (((rows["said"] & SAID) > 0) | told)
    # Of a silence that is only the least one the deadline is later still.
    runs_out = (carried_s > 0) & ~said_before & (carried_ms < carried_ends_ms)

    # Silences that begin here. No timer runs out within half an hour of the watermark.
    begun = np.flatnonzero(last | (ends_ms - watermark_ms > FIRST_SILENCE_MS))
    heard_s = (watermark_ms[begun] + (FIRST_SILENCE_MS + 999) - after_ms[begun]) // 1000
    least_s = deadlines.least(begun)
    silence_s, millionths = np.zeros(len(row), np.int64), np.zeros(len(row), np.int64)
    silence_s[begun] = np.where(least_s > 0, _lasting(least_s, heard_s), 0)
    open_ = silence_s[begun] > 0
    open_ &= looked_at_ms(after_ms[begun], np.maximum(silence_s[begun], 1)) >= ends_ms[begun]
    is_least = np.zeros(len(row), np.bool_)
    is_least[begun[open_]] = True
    if not open_.all():
        asked_of = begun[~open_]
        found_s, millionths[asked_of] = deadlines.after(asked_of)
        silence_s[asked_of] = _lasting(found_s, heard_s[~open_])
    deadline_ms = after_ms + silence_s * 1000
    runs_out_here = (silence_s > 0) & ~is_least & (deadline_ms < ends_ms)

    said: list[list[Said]] = [[] for _ in parts]
    over = np.flatnonzero(runs_out | (said_before & (first >= 0)))
    over_here = np.flatnonzero(runs_out_here)
    if len(over) or len(over_here) or any(part.waiting is not None for part in parts):
        # What a silence of either kind is: last time, offset, deadline, chance.
        of_rows = (last_ms, position, carried_ms, rows["return_millionths"])
        of_events = (after_ms, offset, deadline_ms, millionths)
        for number, part in enumerate(parts):
            tells = _Told(part, watermark_ms, times_ms, offset)
            mine = over[_within(over, part.rows)]
            keys = [part.keys[slot] for slot in (mine - part.rows.start).tolist()]
            tells.over(keys, [column[mine] for column in of_rows], runs_out[mine], first[mine])
            mine = over_here[_within(over_here, part.events)]
            keys = [part.keys[slot] for slot in (row[mine] - part.rows.start).tolist()]
            tells.over(keys, [column[mine] for column in of_events], runs_out_here[mine], following[mine])
            if part.waiting is not None:
                due = part.waiting.before(reached[number])
                tells.over(due.keys, due.columns)
            said[number] = tells.in_order()

    newest = row[last]
    rows["silence_s"][newest] = silence_s[last]
    rows["return_millionths"][newest] = millionths[last]
    rows["said"][newest] = np.where(is_least[last], LEAST, 0)
    changed = np.zeros(len(rows), np.bool_)
    changed[asked] = first[asked] < 0
    for part in parts:
        for slot in part.ended:
            changed[part.rows.start + slot] = False  # a tombstone follows
    return said, np.flatnonzero(changed), reached


def _ends_ms(moment: Moment, keys: Sequence[bytes]) -> list[int] | int:
    """``Moment.ends_ms`` of each key."""
    return [moment.ends_ms(key) for key in keys] if moment.key else moment.time_ms


def _lasting(found_s: np.ndarray, least_s: np.ndarray) -> np.ndarray:
    """How long silences last of which the model and the watermark say something; 0 for ever."""
    lasts_s = np.maximum(found_s, least_s)
    # Beyond what a row can say: a clock ran ages ahead of this user's.
    return np.where((found_s > 0) & (lasts_s <= MOST_SILENCE_S), lasts_s, 0)


class _Told:
    """What one partition says, with the places at which it is said."""

    def __init__(
        self, part: Part, watermark_ms: np.ndarray, times_ms: np.ndarray, offset: np.ndarray
    ) -> None:
        self._part, self._watermark_ms = part, watermark_ms[part.events]
        self._times_ms, self._offset = times_ms, offset
        self._said: list[tuple[tuple[int, int, int, bytes], Said]] = []

    def over(
        self,
        keys: Sequence[bytes],
        silence: Sequence[np.ndarray],
        runs_out: np.ndarray | None = None,
        ended_by: np.ndarray | None = None,
    ) -> None:
        """Silences that ran out here, or were ended here by an event, or both.

        Args:
            keys: the users'.
            silence: the columns of a ``Silence``.
            runs_out: None where all do.
            ended_by: the event, -1 for none; None where none was.
        """
        columns = [column.tolist() for column in silence]
        silences = list(map(Silence._make, zip(*columns, strict=True)))
        _, offsets, deadlines_ms, _ = columns
        place = np.searchsorted(self._watermark_ms, silence[2], side="right").tolist()
        # A million may run out at once: a pair for each silence, of which those are taken that do.
        order = zip(place, repeat(0), deadlines_ms, keys)
        said = map(Said._make, zip(repeat(EXPECTED), keys, silences, deadlines_ms, offsets))
        told = zip(order, said, strict=True)
        self._said += told if runs_out is None else compress(told, runs_out.tolist())
        if ended_by is None:
            return
        for at in np.flatnonzero(ended_by >= 0).tolist():
            event = int(ended_by[at])
            returned = Said(
                RETURNED, keys[at], silences[at], int(self._times_ms[event]), int(self._offset[event])
            )
            self._said.append(((event - self._part.events.start, 1, 0, keys[at]), returned))

    def in_order(self) -> list[Said]:
        """By record, and at one record the expected ones by deadline and key before the return."""
        return [said for _, said in sorted(self._said, key=itemgetter(0))]


def _within(places: np.ndarray, bounds: slice) -> slice:
    """Which of rising places lie within bounds."""
    start, end = np.searchsorted(places, [bounds.start, bounds.stop]).tolist()
    return slice(start, end)
