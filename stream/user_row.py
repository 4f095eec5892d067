"""What is remembered of one user for alerts: a week of orders, fast stretches and oddities, bounded. Pure.

Lists are sorted by time, so that within the bounds it does not matter in which order times arrive. What finds no room
leaves, the oldest first. Purchases of one ``order_id``, or without one of one moment, are one order with several lines,
of which the first stays. A user who begins anew after a tombstone, whose count of events falls, has a new row.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, Self
from zlib import crc32

import msgspec

from models.fraud.own_terms import unlooked
from stream.packed_rows import PackedRows
from stream.user_news import TEMPO_EVENTS, TOO_PREDICTABLE, UserEvent

__all__ = ["MAX_ROW_BYTES", "MOST_MARKS", "MOST_ORDERS", "WINDOW", "Odd", "Order", "Seen", "Tempo", "UserRow"]

MOST_ORDERS: Final = 64
MOST_MARKS: Final = 32
#: Events that one look at predictability sees.
WINDOW: Final = 32
#: Of a row with all its lists full of the longest ids; with what was said it is one piece of a stored row.
MAX_ROW_BYTES: Final = 31 << 9
_VERSION: Final = 1
_MOST_ODD: Final = 16
_HOUR_MS: Final = 3_600_000
_WEEK_MS: Final = 7 * 24 * _HOUR_MS
_LONGEST_ID: Final = 40  # bytes; of a longer one the source position says enough


class Seen(msgspec.Struct, array_like=True, gc=False):
    """An event and where it stands in the source."""

    event_time_ms: int
    partition: int
    offset: int
    order_id: str | None
    event_id: str | None

    @classmethod
    def of_event(cls, event: UserEvent, *more: int) -> Self:
        """With its ids, if they are not long, and the fields that a kind has beside."""
        ids = _short(event.order_id), _short(event.event_id)
        return cls(event.event_time_ms, event.partition, event.offset, *ids, *more)


class Order(Seen, array_like=True, gc=False):
    """``number`` is of the order, whatever its lines; ``thing`` what was bought, 0 unknown. Both are hashes.

    ``pace_ms`` as of ``stream.user_news.UserEvent``.
    """

    number: int
    thing: int
    pace_ms: int


class Tempo(Seen, array_like=True, gc=False):
    """The 16 events that end with the user's ``life``-th took so long."""

    life: int
    took_ms: int

    @property
    def began_ms(self) -> int:
        """Time of the first of them."""
        return self.event_time_ms - self.took_ms


class Odd(Seen, array_like=True, gc=False):
    """The user's ``life``-th event; ``oddity`` as of ``stream.user_news.UserEvent``."""

    life: int
    oddity: int


class UserRow(msgspec.Struct, array_like=True):
    """What is kept of a user.

    Attributes:
        user_id: whose it is.
        unlooked: the highest so far (``models.fraud.own_terms``).
        labelled: the highest of ``stream.user_news.UserEvent``, and where it was.
        life: events of the user so far.
        latest_ms: the highest event time.
        approximate: an order found no room.
    """

    user_id: str = ""
    orders: list[Order] = []
    marks: list[Tempo] = []
    predictable: list[Odd] = []
    surprising: list[Odd] = []
    unlooked: float = 0.0
    life: int = 0
    latest_ms: int = 0
    approximate: bool = False
    labelled: float = 0.0
    labelled_at: Seen | None = None

    @property
    def forget_ms(self) -> int:
        """The watermark at which nothing of it counts any more."""
        return self.latest_ms + _WEEK_MS

    @property
    def plain(self) -> bool:
        """Whether it holds one order at most, without a pace, and nothing else."""
        if self.marks or self.predictable or self.surprising or self.labelled or len(self.orders) > 1:
            return False
        return not self.orders or self.orders[0].pace_ms < 0

    def take(self, event: UserEvent) -> None:
        """Remember an event."""
        self.user_id, self.life = event.user_id, event.life_events
        self.latest_ms = max(self.latest_ms, event.event_time_ms)
        if event.labelled > self.labelled:
            self.labelled, self.labelled_at = event.labelled, Seen.of_event(event)
        if event.action == "purchase":
            self.unlooked = max(self.unlooked, unlooked(event.orders, event.life_events))
            number = crc32(event.order_id.encode()) if event.order_id else -event.event_time_ms
            thing = event.item_id or event.shop_id
            order = Order.of_event(event, number, crc32(thing.encode()) if thing else 0, event.pace_ms)
            if self._is_first_line(order) and _keep(self.orders, order, MOST_ORDERS):
                self.approximate = True
        if event.took_ms >= 0:
            _keep(self.marks, Tempo.of_event(event, event.life_events, event.took_ms), MOST_MARKS)
        if event.oddity == TOO_PREDICTABLE:
            # Windows that share no event: one odd stretch would count for every event in it.
            if all(abs(event.life_events - each.life) >= WINDOW for each in self.predictable):
                _keep(self.predictable, Odd.of_event(event, event.life_events, event.oddity), _MOST_ODD)
        elif event.oddity >= 0:
            _keep(self.surprising, Odd.of_event(event, event.life_events, event.oddity), _MOST_ODD)
        oldest_ms = self.latest_ms - _WEEK_MS
        kept: list[Any]
        for kept in (self.orders, self.marks, self.predictable, self.surprising):
            while kept and kept[0].event_time_ms < oldest_ms:
                del kept[0]

    def _is_first_line(self, order: Order) -> bool:
        for place, other in enumerate(self.orders):
            if other.number == order.number:
                if _place(order) < _place(other):
                    del self.orders[place]
                    return True
                return False
        return True

    def most_orders(self, span_ms: int) -> Sequence[Order]:
        """The longest run of orders within a span."""
        return _longest(self.orders, span_ms)

    def most_orders_of_a_thing(self, span_ms: int) -> Sequence[Order]:
        """The longest run of orders of one thing within a span."""
        by_thing: dict[int, list[Order]] = {}
        for order in self.orders:
            if order.thing:
                by_thing.setdefault(order.thing, []).append(order)
        return max((_longest(orders, span_ms) for orders in by_thing.values()), key=len, default=())

    def ordered_again(self) -> tuple[int, Sequence[Order]]:
        """How often a thing was ordered that had been before, and all orders of such things."""
        bought = [order.thing for order in self.orders if order.thing]
        repeats = len(bought) - len(set(bought))
        if not repeats:
            return 0, ()
        times = Counter(bought)
        return repeats, [order for order in self.orders if times[order.thing] > 1]

    def most_events(self, span_ms: int) -> tuple[int, Sequence[Tempo]]:
        """How many events there were within a span at least, and the blocks of 16 that tell it."""
        most, told, start = 0, self.marks[:0], 0
        for end, mark in enumerate(self.marks, 1):
            while start < end and mark.event_time_ms - self.marks[start].began_ms > span_ms:
                start += 1
            if start < end and (times := mark.life - self.marks[start].life + TEMPO_EVENTS) > most:
                most, told = times, self.marks[start:end]
        return most, told

    def packed(self) -> bytes:
        """As plain bytes: a version, then MessagePack of the fields in their order."""
        return _ROWS.packed(self)

    @classmethod
    def of_row(cls, row: bytes | None) -> UserRow:
        """What ``packed`` wrote; None is a user of whom nothing is known.

        Raises:
            DamagedRow: another version, or no row at all.
        """
        return cls() if row is None else _ROWS.read(row)


_ROWS = PackedRows(UserRow, _VERSION, "A user's row of alerts")


def _longest(orders: Sequence[Order], span_ms: int) -> Sequence[Order]:
    """Of equal ones the first."""
    if len(orders) < 2:
        return orders
    start = best_start = best_end = 0
    for end, order in enumerate(orders, 1):
        while order.event_time_ms - orders[start].event_time_ms > span_ms:
            start += 1
        if end - start > best_end - best_start:
            best_start, best_end = start, end
    return orders[best_start:best_end]


def _keep(kept: list[Any], new: Seen, most: int) -> bool:
    """Put an event in its place in time; whether the oldest had to leave for it."""
    if not kept or kept[-1].event_time_ms < new.event_time_ms:
        kept.append(new)
    else:
        insort(kept, new, key=_place)
    if len(kept) <= most:
        return False
    del kept[0]
    return True


def _place(seen: Seen) -> tuple[int, int, int]:
    return seen.event_time_ms, seen.partition, seen.offset


def _short(name: str | None) -> str | None:
    return name if name and len(name.encode()) <= _LONGEST_ID else None
