"""Order brushing live: the rule of stream/order_brushing.py as a detector of groups of the kind shop."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from stream.alerts import Alert
from stream.group_detectors import SHOP, Fold, Group, GroupEvent
from stream.order_brushing import KIND, OrderBrushing, ShopOrders, order_of

__all__ = ["BrushedShops"]

_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class BrushedShops:
    """A ``GroupDetector`` over the rule: the same alerts, however the orders are cut into calls.

    Args:
        rule: with its limits; its orders and members together are what a row may take.
        remembered_ms: how long after its last order a flagged shop's verdict is known.
    """

    kind: ClassVar = KIND
    group_types: ClassVar = frozenset({SHOP})

    rule: OrderBrushing
    remembered_ms: int = 30 * _DAY_MS

    @property
    def max_row_bytes(self) -> int:
        """Orders whose windows are open, suspicious buyers, and a few numbers."""
        return self.rule.max_order_bytes + self.rule.max_member_bytes + 1024

    def fold(self, group: Group, row: bytes | None, events: Sequence[GroupEvent], watermark_ms: int) -> Fold:
        """Remember the orders among the events, then judge every window that is complete."""
        known, alerts = ShopOrders.of_row(row), list[Alert]()
        for event in events:
            if (order := order_of(event, event.partition, event.offset)) is not None:
                known.last_ms = max(known.last_ms, order.event_time_ms)
                alerts += self.rule.add(group.id, known, order)[1]
        alerts += self.rule.judge(group.id, known, watermark_ms)
        due_ms = self.rule.deadline_ms(known)
        if due_ms is None:
            due_ms = known.last_ms + self.remembered_ms
            if due_ms <= watermark_ms or not known.members:
                return Fold(None, alerts)
        return Fold(known.row(), alerts, due_ms)

    def erase(self, row: bytes, users: Collection[str]) -> bytes:
        """The row without orders and verdicts of these users."""
        known = ShopOrders.of_row(row)
        known.orders = [order for order in known.orders if order.buyer not in users]
        known.order_bytes = sum(order.cost_bytes for order in known.orders)
        known.members = {
            member: [order for order in orders if order.buyer not in users]
            for member, orders in known.members.items()
            if member not in users
        }
        return known.row()
