"""Order brushing: a shop whose orders of one hour come from suspiciously few buyers. Exact, by event time.

The rule. Each order, at time t, opens the window of all the shop's orders in [t, t + 3600 s], both ends included.
It is judged once, when it is complete. It is suspicious if it has at least 3 orders and at least 3 orders for each
of its buyers. A shop with a suspicious window is flagged; its suspicious buyers are the union, over its suspicious
windows, of each window's most frequent buyers, ties included.

    order ──► repeated?  late?  ──► orders of the last hour ──► oldest window complete? ──► verdict so far ──► alert
              (same id)  (dropped)   (sorted by time)            (by the watermark)          (only if wider)

Time is a watermark, the highest event time seen, and an argument. An order older than the watermark by more than the
lateness limit is late, so a window is complete when the limit has passed beyond its end: whatever order the events
arrive in, and however often the windows are looked at, the verdicts are the same.

Memory is bounded. What a shop keeps is its orders of the last hour (and of the lateness limit) and its verdict; when
they outgrow their bytes, the oldest window is judged on what there is, its orders leave, and every later alert on the
shop says ``approximate``.

Source of the rule: Shopee Code League 2020, "Order Brushing".
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

from stream.alerts import END_MS, Alert, severity_of
from stream.errors import ConfigurationError
from stream.events import Event
from stream.group_detectors import GroupEvent
from stream.packed_rows import PackedRows

__all__ = ["KIND", "Order", "OrderBrushing", "OrderCounts", "ShopLog", "ShopOrders", "order_of"]

#: Kind and reason code of the alerts.
KIND: Final = "order_brushing"

_ROW_VERSION: Final = 1
_ORDER_BYTES: Final = 32  # what an order takes in a row beside its two ids, at most
_EVIDENCE_ORDERS: Final = 8  # a member: enough to look it up, and three make a case

Outcome = Literal["taken", "repeated", "late", "beyond_memory"]


class Order(msgspec.Struct, array_like=True, frozen=True, order=True, gc=False):
    """One order and where it stands in its source; sorts by time, then by id."""

    event_time_ms: int
    order_id: str
    buyer: str
    partition: int
    offset: int

    @property
    def cost_bytes(self) -> int:
        """What it takes in a row, at most."""
        return _ORDER_BYTES + len(self.order_id.encode()) + len(self.buyer.encode())


class ShopOrders(msgspec.Struct, array_like=True):
    """What is known of one shop, and what its row holds.

    Attributes:
        orders: those whose windows are not judged yet, sorted.
        order_bytes: the sum of their costs.
        closed_ms: up to here windows were judged early for want of memory; older orders come too late for them.
        members: the verdict so far: suspicious buyers, each with orders of the window that showed it.
        score: the highest of the suspicious windows.
        alert_id: of the last alert, None before the first.
        held_back: suspicious windows since then that showed nobody new.
        approximate: a window was judged early, or a suspicious buyer found no room.
        full: a suspicious buyer found no room, and an alert said so.
        last_ms: event time of the newest order; live, a shop is forgotten some weeks after it.
    """

    orders: list[Order] = []
    order_bytes: int = 0
    closed_ms: int = 0
    members: dict[str, list[Order]] = {}
    score: float = 0.0
    alert_id: str | None = None
    held_back: int = 0
    approximate: bool = False
    full: bool = False
    last_ms: int = 0

    def row(self) -> bytes:
        """As plain bytes: a version, then MessagePack of the fields in their order."""
        return _ROWS.packed(self)

    @classmethod
    def of_row(cls, row: bytes | None) -> ShopOrders:
        """What `row` wrote; None is a shop that was never seen.

        Raises:
            DamagedRow: another version, or no row at all.
        """
        return cls() if row is None else _ROWS.read(row)


_pack = msgspec.msgpack.Encoder().encode
_ROWS = PackedRows(ShopOrders, _ROW_VERSION, "A shop's row")


@dataclass(frozen=True, slots=True)
class OrderBrushing:
    """The rule and its limits; it keeps nothing, all state is the shop's.

    Args:
        topic: the source that evidence names.
        window_ms: length of a window, both ends included.
        min_orders: of a suspicious window.
        min_orders_per_buyer: of a suspicious window, a whole number.
        late_limit_ms: an order older than this against the watermark is late.
        max_order_bytes: what a shop's orders may take; 64 KiB hold some 1,100 orders with ids of 10 to 15 letters,
            that is 750 an hour when the limit of lateness is half an hour.
        max_member_bytes: what its verdict may take.

    Raises:
        ConfigurationError: a limit is not positive (the lateness limit: negative).
    """

    topic: str
    window_ms: int = 3_600_000
    min_orders: int = 3
    min_orders_per_buyer: int = 3
    late_limit_ms: int = 1_800_000
    max_order_bytes: int = 65_536
    max_member_bytes: int = 32_768

    def __post_init__(self) -> None:
        for name in (
            "window_ms",
            "min_orders",
            "min_orders_per_buyer",
            "max_order_bytes",
            "max_member_bytes",
        ):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"Order brushing: {name} is {getattr(self, name)}. Use 1 or more.")
        if self.late_limit_ms < 0:
            raise ConfigurationError(f"Order brushing: late_limit_ms is {self.late_limit_ms}. Use 0 or more.")

    def take(
        self, shop: str, known: ShopOrders, order: Order, watermark_ms: int
    ) -> tuple[Outcome, list[Alert]]:
        """Fold one order, in the sequence of arrival, into what is known of its shop.

        Args:
            shop: id.
            known: changed in place.
            order: of that shop.
            watermark_ms: the highest event time so far, of this order or of others.

        Returns:
            What became of the order, and the alerts that the watermark made possible.
        """
        watermark_ms = max(watermark_ms, order.event_time_ms)
        alerts = self.judge(shop, known, watermark_ms)
        if order.event_time_ms < watermark_ms - self.late_limit_ms:
            return "late", alerts
        outcome, found = self.add(shop, known, order)
        return outcome, alerts + found

    def add(self, shop: str, known: ShopOrders, order: Order) -> tuple[Outcome, list[Alert]]:
        """Remember one order that is not late; only a want of memory judges windows here. As `take` otherwise."""
        alerts: list[Alert] = []
        if order.order_id in [each.order_id for each in known.orders]:
            return "repeated", alerts
        if order.event_time_ms <= known.closed_ms:
            known.approximate = True
            return "beyond_memory", alerts
        insort(known.orders, order)
        known.order_bytes += order.cost_bytes
        while known.order_bytes > self.max_order_bytes:
            known.closed_ms = known.orders[0].event_time_ms
            known.approximate = True
            alerts += self._judge_oldest(shop, known)
        return "taken", alerts

    def judge(self, shop: str, known: ShopOrders, watermark_ms: int) -> list[Alert]:
        """Judge every window that the watermark has completed; a timer at `deadline_ms` needs nothing else."""
        alerts: list[Alert] = []
        while (deadline_ms := self.deadline_ms(known)) is not None and deadline_ms <= watermark_ms:
            alerts += self._judge_oldest(shop, known)
        return alerts

    def deadline_ms(self, known: ShopOrders) -> int | None:
        """The watermark at which the oldest window is complete; None without one."""
        if not known.orders:
            return None
        # One more: an order as old as the limit allows is not late yet.
        return known.orders[0].event_time_ms + self.window_ms + self.late_limit_ms + 1

    def finish(self, shop: str, known: ShopOrders) -> list[Alert]:
        """Judge what is left: no order will come any more."""
        return self.judge(shop, known, END_MS + self.window_ms + self.late_limit_ms + 1)

    def _judge_oldest(self, shop: str, known: ShopOrders) -> list[Alert]:
        start_ms = known.orders[0].event_time_ms
        end = bisect_right(known.orders, start_ms + self.window_ms, key=_time_ms)
        alert = self._verdict(shop, known, known.orders[:end]) if end >= self.min_orders else None
        # Orders of the same moment open the same window.
        same = bisect_right(known.orders, start_ms, hi=end, key=_time_ms)
        known.order_bytes -= sum(order.cost_bytes for order in known.orders[:same])
        del known.orders[:same]
        return [] if alert is None else [alert]

    def _verdict(self, shop: str, known: ShopOrders, window: list[Order]) -> Alert | None:
        """The alert of a complete window, if it is suspicious and shows somebody new."""
        by_buyer = Counter(order.buyer for order in window)
        if len(window) < self.min_orders_per_buyer * len(by_buyer):
            return None
        known.score = max(known.score, round(1 - len(by_buyer) / len(window), 6))
        most = max(by_buyer.values())
        before, was_full = len(known.members), known.full
        for buyer in sorted(buyer for buyer, orders in by_buyer.items() if orders == most):
            if buyer not in known.members:
                self._remember(known, buyer, window)
        if len(known.members) == before and known.full == was_full:
            known.held_back += 1
            return None
        alert = self._alert(shop, known, window, len(by_buyer))
        known.alert_id, known.held_back = alert.id, 0
        return alert

    def _remember(self, known: ShopOrders, buyer: str, window: list[Order]) -> None:
        evidence = [order for order in window if order.buyer == buyer][:_EVIDENCE_ORDERS]
        if len(_pack(known.members)) + len(_pack({buyer: evidence})) > self.max_member_bytes:
            known.full = known.approximate = True
        else:
            known.members[buyer] = evidence

    def _alert(self, shop: str, known: ShopOrders, window: list[Order], n_buyers: int) -> Alert:
        start_ms = window[0].event_time_ms
        end_ms = min(start_ms + self.window_ms, END_MS - 1)
        ratio = len(window) / n_buyers
        return Alert(
            id=f"{KIND}/shop/{shop}/{end_ms}",
            kind=KIND,
            subject_type="shop",
            subject=shop,
            score=known.score,
            severity=severity_of(known.score),
            event_time_ms=end_ms,
            reasons=[
                {
                    "code": KIND,
                    "text": f"{len(window)} orders of {n_buyers} {'buyer' if n_buyers == 1 else 'buyers'} within "
                    f"{self.window_ms / 1000:g} s from {_moment(start_ms)}: {ratio:.3g} orders a buyer",
                    "orders": len(window),
                    "buyers": n_buyers,
                    "orders_per_buyer": round(ratio, 6),
                    "window_start_ms": start_ms,
                    "window_end_ms": end_ms,
                }
            ],
            evidence=[
                {
                    "order_id": order.order_id,
                    "user_id": order.buyer,
                    "event_time_ms": order.event_time_ms,
                    "source": {"topic": self.topic, "partition": order.partition, "offset": order.offset},
                }
                for order in sorted(order for orders in known.members.values() for order in orders)
            ],
            members=sorted(known.members),
            approximate=known.approximate,
            supersedes=known.alert_id,
            held_back=known.held_back,
        )


def order_of(event: Event | GroupEvent, partition: int, offset: int) -> Order | None:
    """An event as an order of its shop; None when it is no purchase. An order without an id is its place."""
    if event.action != "purchase":
        return None
    order_id = event.order_id or event.event_id or f"{partition}/{offset}"
    return Order(event.event_time_ms, order_id, event.user_id, partition, offset)


@dataclass(slots=True)
class OrderCounts:
    """What became of the orders of a log."""

    taken: int = 0
    repeated: int = 0
    late: int = 0
    beyond_memory: int = 0
    without_shop: int = 0


@dataclass(slots=True)
class ShopLog:
    """All shops of one log, in memory; the watermark is that of its orders."""

    rule: OrderBrushing
    watermark_ms: int = 0
    counts: OrderCounts = field(default_factory=OrderCounts)
    shops: dict[str, ShopOrders] = field(default_factory=dict)

    def take(self, event: Event, partition: int, offset: int) -> list[Alert]:
        """Fold an event, in the sequence of arrival; what is no order passes."""
        order = order_of(event, partition, offset)
        if order is None:
            return []
        if not event.shop_id:
            self.counts.without_shop += 1
            return []
        self.watermark_ms = max(self.watermark_ms, order.event_time_ms)
        known = self.shops.setdefault(event.shop_id, ShopOrders())
        outcome, alerts = self.rule.take(event.shop_id, known, order, self.watermark_ms)
        setattr(self.counts, outcome, getattr(self.counts, outcome) + 1)
        return alerts

    def finish(self) -> Iterator[Alert]:
        """The alerts of the windows that only the log's end completes."""
        for shop, known in self.shops.items():
            yield from self.rule.finish(shop, known)

    def alerts(self, events: Iterable[tuple[int, Event]]) -> list[Alert]:
        """The alerts of a whole log, partition 0 in evidence, by the time at which they were possible.

        Args:
            events: offsets and events, in the sequence of arrival.
        """
        found = [alert for offset, event in events for alert in self.take(event, 0, offset)]
        found += self.finish()
        return sorted(found, key=lambda alert: (alert.event_time_ms, alert.subject))


def _time_ms(order: Order) -> int:
    return order.event_time_ms


def _moment(time_ms: int) -> str:
    """A time as people read it; the number where no calendar reaches."""
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{time_ms} ms"
