"""Devices and addresses whose accounts order the same, live.

Accounts on one device are a family, a shop's till, or a farm. A family buys different things: what one has ordered
another seldom orders as well. So the evidence of a device is its coincidences of the last week, orders of what another
account there has ordered, beyond what is usual: a tenth of one, and three in a hundred of its orders. An order without
an item counts by its shop.

Where events name no device the group is an address, and many may stand behind one: an office that hears of a sale
orders one item often. There coincidences at one item or two prove nothing, three different ones are needed. Where more
than 16 accounts order, what they share says nothing at all, and nothing is flagged.

The verdict follows the sequence of arrival: it is the same however the records were cut into calls, and an order that
is told again is one. The row keeps the last orders; what finds no room leaves, and alerts from then on say
``approximate``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import ClassVar, Final

import msgspec

from models.fraud.crowds import excess_nats
from stream.alerts import Alert
from stream.crowd_alerts import crowd_alert
from stream.group_detectors import DEVICE, MAX_ROW_BYTES, Fold, Group, GroupEvent, Partner
from stream.packed_rows import PackedRows

__all__ = ["KIND", "SharedDevices"]

KIND: Final = "device_farm"
_ROW_VERSION: Final = 1
_WEEK_MS: Final = 7 * 24 * 3_600_000
_AT_LEAST: Final = 3  # accounts that ordered what others did; two share a taste
_MOST: Final = 16  # accounts; behind an address of more there is a crowd
_OF_ADDRESSES: Final = 3  # different items, where any number of people may meet
_ENTRY_BYTES: Final = 32  # of an order beside its names, at most
_ORDER_BYTES: Final = MAX_ROW_BYTES - 2048


class _Order(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The last order of something by an account."""

    user_id: str
    what: str
    event_time_ms: int
    partition: int
    offset: int


class _Row(msgspec.Struct, array_like=True, gc=False):
    """Orders, the latest to arrive last; the newest event time of the group."""

    orders: list[_Order] = []
    latest_ms: int = 0
    approximate: bool = False

    def take(self, order: _Order) -> None:
        """In place of the same account's order of the same; what is old or finds no room leaves."""
        self.latest_ms = max(self.latest_ms, order.event_time_ms)
        old_ms = self.latest_ms - _WEEK_MS
        if order.event_time_ms < old_ms:
            return
        again = (order.user_id, order.what)
        self.orders = [
            one for one in self.orders if one.event_time_ms >= old_ms and (one.user_id, one.what) != again
        ]
        self.orders.append(order)
        taken = sum(map(_cost, self.orders))
        while taken > _ORDER_BYTES:
            taken -= _cost(self.orders.pop(0))
            self.approximate = True


_ROWS = PackedRows(_Row, _ROW_VERSION, "A device's row")


@dataclass(frozen=True, slots=True)
class SharedDevices:
    """A ``GroupDetector`` for devices and addresses.

    Args:
        topic: that evidence names.
        least_nats: evidence from which on a device is flagged.
        usual: coincidences of a week where hardly anything is ordered.
        usual_share: coincidences for each order.
    """

    kind: ClassVar = KIND
    group_types: ClassVar = frozenset({DEVICE})
    max_row_bytes: ClassVar = MAX_ROW_BYTES

    topic: str
    least_nats: float = 9.0
    usual: float = 0.1
    usual_share: float = 0.03

    def fold(self, group: Group, row: bytes | None, events: Sequence[GroupEvent], watermark_ms: int) -> Fold:
        """Take the orders one by one, and judge after each."""
        known = _Row() if row is None else _ROWS.read(row)
        least_items = _OF_ADDRESSES if _is_address(group.id) else 1
        alerts: list[Alert] = []
        for event in events:
            what = event.item_id or event.shop_id
            if what is not None:
                place = event.event_time_ms, event.partition, event.offset
                known.take(_Order(event.user_id, what, *place))
                alerts += self._judged(group, known, event, least_items)
        due_ms = known.latest_ms + _WEEK_MS
        if not known.orders or due_ms <= watermark_ms:
            return Fold(None, alerts)
        return Fold(_ROWS.packed(known), alerts, due_ms)

    def erase(self, row: bytes, users: Collection[str]) -> bytes | None:
        """The row without these users; no row where nobody else is left."""
        known = _ROWS.read(row)
        known.orders = [one for one in known.orders if one.user_id not in users]
        return _ROWS.packed(known) if known.orders else None

    def _judged(self, group: Group, known: _Row, event: GroupEvent, least_items: int) -> list[Alert]:
        """The alert, if the evidence is strong enough and this order is part of it."""
        buyers: dict[str, list[_Order]] = {}
        for order in known.orders:
            buyers.setdefault(order.what, []).append(order)
        shared = {what: there for what, there in buyers.items() if len(there) > 1}
        if (event.item_id or event.shop_id) not in shared or len(shared) < least_items:
            return []
        last = {order.user_id: order for there in shared.values() for order in there}
        if len(last) < _AT_LEAST or len({order.user_id for order in known.orders}) > _MOST:
            return []
        coincidences = sum(map(len, shared.values())) - len(shared)
        expected = self.usual + self.usual_share * len(known.orders)
        nats = excess_nats(coincidences, expected)
        if nats < self.least_nats:
            return []
        text = (
            f"{len(last)} of its accounts ordered what another had ordered there, {coincidences} times in a week, "
            f"where {expected:.1f} are usual"
        )
        return [
            crowd_alert(
                KIND,
                group,
                self.topic,
                (event.partition, event.offset),
                event_time_ms=known.latest_ms,
                reason=("same_orders", text),
                nats=nats,
                expected=expected,
                did=[
                    Partner(user, order.event_time_ms, order.partition, order.offset)
                    for user, order in sorted(last.items())
                ],
                approximate=known.approximate,
            )
        ]


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _cost(order: _Order) -> int:
    return _ENTRY_BYTES + len(order.user_id.encode()) + len(order.what.encode())
