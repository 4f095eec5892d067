"""Click farms at one item, live: orders without an audience, the same orders again, and visitors who keep coming back.

The evidence is that of ``models.fraud.crowds``, about one item and from one row. A crowd that comes at once makes it
weak; what only shows at several items is for the offline score. The shares that all items have are limits here, set
so high that ordinary items stay below.

Events are taken in the sequence of event time, each as soon as none before it can come any more, so that the verdict
is the same however they arrived and were cut into calls. The row keeps the last visitors and what is still open; what
finds no room leaves, the oldest first, and alerts from then on say ``approximate``.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from models.fraud.crowds import excess_nats
from models.fraud.fusion import scores_of
from stream.alerts import Alert, severity_of
from stream.errors import DamagedRow
from stream.group_detectors import ITEM, MAX_ROW_BYTES, Fold, Group, GroupEvent

__all__ = ["KIND", "ItemFarms"]

KIND: Final = "click_farm"
_ROW_VERSION: Final = 1
_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS
_WEEK_MS: Final = 7 * _DAY_MS
_AT_LEAST: Final = 3
_MOST_ARRIVALS: Final = 64
_ENTRY_BYTES: Final = 48  # of a visitor or an open event beside its ids, at most
_TEXTS: Final = {
    "unseen_orders": "{k} orders by {members} users, where its audience explains {expected:.1f}",
    "repeated_orders": "{members} users repeated their order {k} times, where {expected:.1f} are usual",
    "insistence": "{k} users came back again and again, where {expected:.1f} are usual",
}


class _Visitor(msgspec.Struct, array_like=True):
    last_ms: int
    partition: int
    offset: int
    orders: int = 0
    returns: int = 0
    position: int = 0


class _Open(msgspec.Struct, array_like=True, frozen=True, order=True):
    """An event that an earlier one may still precede."""

    event_time_ms: int
    partition: int
    offset: int
    user_id: str
    ordered: bool
    position: int


class _Row(msgspec.Struct, array_like=True):
    open: list[_Open] = []
    visitors: dict[str, _Visitor] = {}
    arrivals: list[int] = []
    rush: float = 1.0
    approximate: bool = False
    row_bytes: int = 0


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(_Row).decode


@dataclass(frozen=True, slots=True)
class ItemFarms:
    """A ``GroupDetector`` for items.

    Args:
        topic: that evidence names.
        late_limit_ms: an event may be so much older than the watermark.
        least_nats: evidence from which on an item is flagged; 12 is one item in 160,000 by chance.
        order_share: orders a visitor, at ordinary items at most.
        repeat_share: repeated orders a buyer, likewise.
        return_share: visitors who come back once more, of those who came back so often.
    """

    topic: str
    late_limit_ms: int = 30 * 60_000
    least_nats: float = 12.0
    order_share: float = 0.1
    repeat_share: float = 0.1
    return_share: float = 0.4

    @property
    def kind(self) -> str:
        """Of its alerts and rows."""
        return KIND

    @property
    def group_types(self) -> frozenset[str]:
        """Items alone."""
        return frozenset({ITEM})

    @property
    def bucket_ms(self) -> int:
        """One row: it forgets by itself."""
        return 0

    @property
    def max_row_bytes(self) -> int:
        """One piece."""
        return MAX_ROW_BYTES

    def fold(self, group: Group, row: bytes | None, events: Sequence[GroupEvent], watermark_ms: int) -> Fold:
        """Take what is complete in the sequence of event time, and judge after each order and return."""
        known = _read(row)
        for event in events:
            insort(
                known.open,
                _Open(
                    event.event_time_ms,
                    event.partition,
                    event.offset,
                    event.user_id,
                    event.action == "purchase",
                    event.session_position,
                ),
            )
            known.row_bytes += _cost(event.user_id)
        alerts: list[Alert] = []
        complete_ms = watermark_ms - self.late_limit_ms
        while known.open and known.open[0].event_time_ms <= complete_ms:
            alerts += self._take(group, known, known.open.pop(0))
        while known.open and known.row_bytes > MAX_ROW_BYTES - 4096:
            # No room to wait for what may come before: it is taken as it is.
            known.approximate = True
            alerts += self._take(group, known, known.open.pop(0))
        if known.open:
            return Fold(
                bytes([_ROW_VERSION]) + _pack(known), alerts, known.open[0].event_time_ms + self.late_limit_ms
            )
        last_ms = max((visitor.last_ms for visitor in known.visitors.values()), default=0)
        forget_ms = last_ms + _WEEK_MS
        if forget_ms <= watermark_ms:
            return Fold(None, alerts)
        return Fold(bytes([_ROW_VERSION]) + _pack(known), alerts, forget_ms)

    def _take(self, group: Group, known: _Row, event: _Open) -> list[Alert]:
        now_ms = event.event_time_ms
        known.row_bytes -= _cost(event.user_id)
        visitor = known.visitors.pop(event.user_id, None)
        if visitor is None:
            visitor = _Visitor(now_ms, event.partition, event.offset)
            known.row_bytes += _cost(event.user_id)
            known.arrivals = [at for at in known.arrivals if now_ms - at <= _DAY_MS][-_MOST_ARRIVALS:]
            known.arrivals.append(now_ms)
            hour = sum(now_ms - at <= _HOUR_MS for at in known.arrivals)
            known.rush = max(known.rush, hour / 5, len(known.arrivals) / 8)
        elif event.position != visitor.position + 1:
            visitor.returns += 1
        visitor.last_ms, visitor.partition, visitor.offset = now_ms, event.partition, event.offset
        visitor.position = event.position
        visitor.orders += event.ordered
        known.visitors[event.user_id] = visitor
        for user in [user for user, there in known.visitors.items() if now_ms - there.last_ms > _WEEK_MS]:
            self._forget(known, user)
        while known.row_bytes > MAX_ROW_BYTES // 2 and len(known.visitors) > 1:
            known.approximate = True
            self._forget(known, next(iter(known.visitors)))
        return self._judged(group, known, event)

    @staticmethod
    def _forget(known: _Row, user: str) -> None:
        del known.visitors[user]
        known.row_bytes -= _cost(user)

    def _judged(self, group: Group, known: _Row, event: _Open) -> list[Alert]:
        """The alert on the strongest of the three evidences, if it is strong enough and has somebody new."""
        visitors = known.visitors
        buyers = [user for user, there in visitors.items() if there.orders]
        again = [user for user in buyers if visitors[user].orders > 1]
        orders = sum(visitors[user].orders for user in buyers)
        returns = visitors[event.user_id].returns
        insist = (
            [user for user, there in visitors.items() if there.returns >= returns] if returns >= 2 else []
        )
        softened = 1 / known.rush**2
        tried = (
            ("unseen_orders", buyers, orders, len(visitors) * self.order_share, softened),
            ("repeated_orders", again, orders - len(buyers), len(buyers) * self.repeat_share, 1.0),
            ("insistence", insist, len(insist), len(visitors) * self.return_share**returns, softened),
        )
        found = [
            (excess_nats(k, expected) * weight, code, members, k, expected)
            for code, members, k, expected, weight in tried
            if len(members) >= _AT_LEAST
        ]
        if not found or event.user_id not in max(found)[2]:
            return []
        nats, code, members, k, expected = max(found)
        if nats < self.least_nats:
            return []
        score = round(float(scores_of(np.array(nats))), 6)
        text = _TEXTS[code].format(k=k, members=len(members), expected=expected)
        return [
            Alert(
                id=f"{KIND}/{group.type}/{group.id}/{self.topic}/{event.partition}/{event.offset}",
                kind=KIND,
                subject_type=group.type,
                subject=group.id,
                score=score,
                severity=severity_of(score),
                event_time_ms=event.event_time_ms,
                reasons=[
                    {"code": code, "text": text, "nats": round(nats, 3), "expected": round(expected, 3)}
                ],
                evidence=[
                    {
                        "user_id": user,
                        "event_time_ms": visitors[user].last_ms,
                        "source": {
                            "topic": self.topic,
                            "partition": visitors[user].partition,
                            "offset": visitors[user].offset,
                        },
                    }
                    for user in sorted(members)
                ],
                members=sorted(members),
                approximate=known.approximate,
            )
        ]


def _cost(user: str) -> int:
    return _ENTRY_BYTES + len(user.encode())


def _read(row: bytes | None) -> _Row:
    if row is None:
        return _Row()
    if row[:1] != bytes([_ROW_VERSION]):
        raise DamagedRow(
            f"An item's row starts with {row[:1]!r}; this build reads version {_ROW_VERSION}. Use the build that wrote "
            "it, or let the changelog restore the store."
        )
    try:
        return _unpack(memoryview(row)[1:])
    except msgspec.DecodeError as error:
        raise DamagedRow(
            f"An item's row of {len(row)} bytes is damaged: {error}. Restore the store."
        ) from None
