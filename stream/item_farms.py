"""Click farms at one item, live: the same few users order it again and again.

The evidence is ``repeated_orders`` of ``models.fraud.crowds``, about one item and from one row: k orders of the last
week beyond each buyer's first, against the share of its buyers whom a staple has. A sale, a link or a best-seller has
many buyers of one order each. The share is a limit here, set so high that ordinary items stay below. What more orders
than views would say was tried on a sample of the views and found nothing beyond this on simulated farms; what only
shows at several items is for the offline score.

Orders are taken in the sequence of event time, each as soon as none before it can come any more, so that the verdict
is the same however they arrived and were cut into calls. An order that is told again, under its order id, is one. The
row keeps the last buyers and the orders that wait; what finds no room leaves, the oldest first, and alerts from then
on say ``approximate``.

Whose order came within two hours of those of a few others has met them, and is told so: who keeps meeting the same
ones at other items shows in the own row alone (stream/buyer_rings.py). Where many order, nobody meets anybody.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final
from zlib import crc32

import msgspec

from models.fraud.crowds import excess_nats
from stream.alerts import Alert
from stream.crowd_alerts import crowd_alert
from stream.group_detectors import ITEM, MAX_ROW_BYTES, TOGETHER_MS, Fold, Group, GroupEvent, Meeting, Partner
from stream.packed_rows import PackedRows

__all__ = ["KIND", "ItemFarms"]

KIND: Final = "click_farm"
_ROW_VERSION: Final = 2
_WEEK_MS: Final = 7 * 24 * 3_600_000
_FEW: Final = 12  # others; where more order within two hours, whom one meets says nothing
_AT_LEAST: Final = 3  # users, or nobody has anything in common
_ENTRY_BYTES: Final = 160  # of a buyer beside the id, at most; a waiting order takes less
_OPEN_BYTES: Final = MAX_ROW_BYTES - 4096
_BUYER_BYTES: Final = MAX_ROW_BYTES // 2
_REMEMBERED: Final = 8  # orders of a buyer


class _Buyer(msgspec.Struct, array_like=True, gc=False):
    """Time and hash of the last orders, the latest last, and where that one stands."""

    partition: int = 0
    offset: int = 0
    times_ms: list[int] = []
    hashes: list[int] = []

    def orders(self, now_ms: int) -> int:
        """Of the last week."""
        return sum(now_ms - at <= _WEEK_MS for at in self.times_ms)


class _Order(msgspec.Struct, array_like=True, frozen=True, order=True, gc=False):
    """An order that an earlier one may still precede; ``hash`` is of its id, 0 where it has none."""

    event_time_ms: int
    partition: int
    offset: int
    user_id: str
    hash: int


class _Row(msgspec.Struct, array_like=True, gc=False):
    """Orders that wait, buyers with the latest last, and what both take."""

    open: list[_Order] = []
    buyers: dict[str, _Buyer] = {}
    approximate: bool = False
    open_bytes: int = 0
    buyer_bytes: int = 0


_ROWS = PackedRows(_Row, _ROW_VERSION, "An item's row")


@dataclass(frozen=True, slots=True)
class ItemFarms:
    """A ``GroupDetector`` for items.

    Args:
        topic: that evidence names.
        late_limit_ms: an order may be so much older than the watermark.
        least_nats: evidence from which on an item is flagged; 12 is one item in 160,000 by chance.
        repeat_share: repeated orders a buyer, at ordinary items at most: a staple is bought twice a week by a third.
    """

    kind: ClassVar = KIND
    group_types: ClassVar = frozenset({ITEM})
    max_row_bytes: ClassVar = MAX_ROW_BYTES

    topic: str
    late_limit_ms: int = 30 * 60_000
    least_nats: float = 12.0
    repeat_share: float = 0.3

    def fold(self, group: Group, row: bytes | None, events: Sequence[GroupEvent], watermark_ms: int) -> Fold:
        """Take what is complete in the sequence of event time, and judge after each order."""
        known = _Row() if row is None else _ROWS.read(row)
        for event in events:
            if event.action == "purchase":
                number = crc32(event.order_id.encode()) or 1 if event.order_id else 0
                order = _Order(event.event_time_ms, event.partition, event.offset, event.user_id, number)
                insort(known.open, order)
                known.open_bytes += _cost(event.user_id)
        complete_ms = watermark_ms - self.late_limit_ms
        alerts: list[Alert] = []
        meetings: list[Meeting] = []
        taken = 0
        for order in known.open:
            if order.event_time_ms > complete_ms:
                if known.open_bytes <= _OPEN_BYTES:
                    break
                known.approximate = True  # no room to wait for what may come before: it is taken as it is
            taken += 1
            known.open_bytes -= _cost(order.user_id)
            alerts += self._take(group, known, order, meetings)
        del known.open[:taken]
        if known.open:
            due_ms = known.open[0].event_time_ms + self.late_limit_ms
        else:
            due_ms = max((buyer.times_ms[-1] for buyer in known.buyers.values()), default=0) + _WEEK_MS
            if due_ms <= watermark_ms:
                return Fold(None, alerts, meetings=meetings)
        return Fold(_ROWS.packed(known), alerts, due_ms, meetings)

    def erase(self, row: bytes, users: Collection[str]) -> bytes:
        """The row without these users: neither their ids nor their orders."""
        known = _ROWS.read(row)
        for user in users:
            if known.buyers.pop(user, None) is not None:
                known.buyer_bytes -= _cost(user)
        known.open = [each for each in known.open if each.user_id not in users]
        known.open_bytes = sum(_cost(each.user_id) for each in known.open)
        return _ROWS.packed(known)

    def _take(self, group: Group, known: _Row, order: _Order, meetings: list[Meeting]) -> list[Alert]:
        buyer = known.buyers.pop(order.user_id, None)
        if buyer is None:
            buyer = _Buyer()
            known.buyer_bytes += _cost(order.user_id)
        known.buyers[order.user_id] = buyer
        if order.hash and order.hash in buyer.hashes:
            return []
        buyer.partition, buyer.offset = order.partition, order.offset
        buyer.times_ms = [*buyer.times_ms[1 - _REMEMBERED :], order.event_time_ms]
        buyer.hashes = [*buyer.hashes[1 - _REMEMBERED :], order.hash]
        self._forget(known, order.event_time_ms)
        meetings += _met(group, known, order)
        return self._judged(group, known, order)

    @staticmethod
    def _forget(known: _Row, now_ms: int) -> None:
        """Buyers of more than a week ago, and the oldest of those who find no room; they stand in that order."""
        gone = []
        left = known.buyer_bytes
        for user, there in known.buyers.items():
            old = now_ms - there.times_ms[-1] > _WEEK_MS
            if not old and left <= _BUYER_BYTES:
                break
            known.approximate |= not old
            left -= _cost(user)
            gone.append(user)
        for user in gone:
            del known.buyers[user]
        known.buyer_bytes = left

    def _judged(self, group: Group, known: _Row, order: _Order) -> list[Alert]:
        """The alert, if the evidence is strong enough and this buyer is part of it."""
        buyers, now_ms = known.buyers, order.event_time_ms
        if buyers[order.user_id].orders(now_ms) == 1:
            return []
        orders = {user: there.orders(now_ms) for user, there in buyers.items()}
        members = sorted(user for user, count in orders.items() if count > 1)
        if len(members) < _AT_LEAST:
            return []
        repeats = sum(orders.values()) - len(buyers)
        expected = len(buyers) * self.repeat_share
        nats = excess_nats(repeats, expected)
        if nats < self.least_nats:
            return []
        text = f"{len(members)} users repeated their order {repeats} times, where {expected:.1f} are usual at most"
        return [
            crowd_alert(
                KIND,
                group,
                self.topic,
                (order.partition, order.offset),
                event_time_ms=now_ms,
                reason=("repeated_orders", text),
                nats=nats,
                expected=expected,
                did=[_partner(user, buyers[user]) for user in members],
                approximate=known.approximate,
            )
        ]


def _met(group: Group, known: _Row, order: _Order) -> list[Meeting]:
    """The order's buyer beside those who ordered within two hours before, if they are a few."""
    partners: list[Partner] = []
    for user, there in reversed(known.buyers.items()):
        if order.event_time_ms - there.times_ms[-1] > TOGETHER_MS or len(partners) > _FEW:
            break
        if user != order.user_id:
            partners.append(_partner(user, there))
    if not 0 < len(partners) <= _FEW:
        return []
    at = order.event_time_ms, order.user_id, "met", order.partition, order.offset
    return [Meeting(*at, item_id=group.id, partners=partners)]


def _partner(user: str, there: _Buyer) -> Partner:
    """The buyer's last order."""
    return Partner(user, there.times_ms[-1], there.partition, there.offset)


def _cost(user: str) -> int:
    return _ENTRY_BYTES + len(user.encode())
