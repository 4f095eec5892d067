"""What one user's own events show: haste, orders at once, again or unlooked, pauses like clockwork, a small world.

All are running statistics of the last events; the largest value so far counts. None is evidence by itself: how
unusual a value is says the reference population (``models.fraud.fusion``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from math import log, log1p, sqrt

__all__ = ["KINDS", "Habits"]

KINDS = ("haste", "orders_at_once", "same_order_again", "regular_pauses", "narrow_interest", "hardly_looks")
_HOUR_MS = 3_600_000
_SESSION_MS = 1_800_000
_EVENTS = 8
_PAUSES = 16


class _User:
    __slots__ = ("bought", "counts", "events", "ordered", "orders", "pauses", "times")

    def __init__(self) -> None:
        self.times: deque[int] = deque(maxlen=_EVENTS)
        self.pauses: deque[float] = deque(maxlen=_PAUSES)
        self.orders: deque[int] = deque(maxlen=32)
        self.bought: dict[Hashable, int] = {}
        self.counts: dict[Hashable, int] = {}
        self.events = self.ordered = 0


class Habits:
    """Statistics of users, from events in time order."""

    def __init__(self, items: int = 64) -> None:
        self._bound = items
        self._users: dict[Hashable, _User] = {}

    def observe(
        self, user: Hashable, time_ms: int, item: Hashable | None, ordered: bool
    ) -> tuple[float, ...]:
        """Take in one event; the statistics now, by place in KINDS; 0 where there is too little to say."""
        me = self._users.get(user)
        if me is None:
            me = self._users[user] = _User()
        me.events += 1
        haste = regular = 0.0
        if me.times:
            pause_s = (time_ms - me.times[-1]) / 1000.0
            if pause_s < _SESSION_MS / 1000.0:
                me.pauses.append(log1p(max(0.0, pause_s)))
            else:
                me.times.clear()
        me.times.append(time_ms)
        if len(me.times) == _EVENTS:
            # Log of events a second; a day between them is nothing.
            haste = max(0.0, 12.0 - log1p((time_ms - me.times[0]) / 100.0))
        n = len(me.pauses)
        if n >= _EVENTS:
            mean = sum(me.pauses) / n
            spread = sqrt(sum((pause - mean) ** 2 for pause in me.pauses) / n)
            regular = max(0.0, 4.0 - 4.0 * spread)
        at_once = again = narrow = 0.0
        me.ordered += ordered
        if ordered:
            me.orders.append(time_ms)
            at_once = log(sum(time_ms - at <= _HOUR_MS for at in me.orders))
            if item is not None:
                again = self._again(me, item)
        if item is not None:
            me.counts[item] = me.counts.get(item, 0) + 1
            if len(me.counts) > self._bound:
                del me.counts[next(iter(me.counts))]
            if me.events >= _EVENTS:
                top = sorted(me.counts.values())[-3:]
                # Most of many events on three items is rarer than most of few.
                narrow = sum(top) / sqrt(me.events)
        # In tenths of the events, and a few more so that one order of two events is nothing yet.
        unlooked = 10.0 * me.ordered / (me.events + 4.0) if ordered else 0.0
        return haste, at_once, again, regular, narrow, unlooked

    def _again(self, me: _User, item: Hashable) -> float:
        me.bought[item] = me.bought.get(item, 0) + 1
        if len(me.bought) > self._bound:
            del me.bought[next(iter(me.bought))]
        return log(1.0 + sum(times - 1 for times in me.bought.values()))
