"""Items that a few users push, live: they come back to it again and again, with other items in between.

That is how two items are made to be recommended together, and what a farm's accounts do that visit on a schedule. The
evidence is ``insistence`` of ``models.fraud.crowds`` from one row: k users of the last week whose fifth return to the
item was told (stream/insistence.py), against how many an item has by itself: .15 users, and one for every 20
of its orders, since best-sellers have more of everything. A sale or a link brings many who come once. Orders are
counted from the first such user on.

The verdict follows the sequence of arrival: it is the same however the records were cut into calls, and the set of
users is the same however they arrived. The row keeps the last users; what finds no room leaves, and alerts from then on
say ``approximate``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import msgspec

from models.fraud.crowds import excess_nats
from stream.alerts import Alert
from stream.crowd_alerts import crowd_alert
from stream.group_detectors import ITEM, MAX_ROW_BYTES, Fold, Group, GroupEvent, Partner
from stream.packed_rows import PackedRows

__all__ = ["KIND", "BoostedItems"]

KIND: Final = "boosted_item"
_ROW_VERSION: Final = 1
_DAY_MS: Final = 24 * 3_600_000
_WEEK_MS: Final = 7 * _DAY_MS
_AT_LEAST: Final = 3  # users, or nobody has anything in common
_ENTRY_BYTES: Final = 40  # of a user beside the id, at most
_USER_BYTES: Final = MAX_ROW_BYTES - 2048


class _Visit(msgspec.Struct, array_like=True, gc=False):
    """The last insistent visit of a user."""

    event_time_ms: int
    partition: int
    offset: int


class _Row(msgspec.Struct, array_like=True, gc=False):
    """Insistent users, the latest to arrive last; orders by day; the newest event time of the group."""

    visits: dict[str, _Visit] = {}
    orders: dict[int, int] = {}
    latest_ms: int = 0
    approximate: bool = False

    def forget(self) -> None:
        """What is older than a week, and of those who find no room the ones who came first."""
        old_ms = self.latest_ms - _WEEK_MS
        for user in [user for user, visit in self.visits.items() if visit.event_time_ms < old_ms]:
            del self.visits[user]
        for day in [day for day in self.orders if (day + 1) * _DAY_MS <= old_ms]:
            del self.orders[day]
        taken = sum(map(_cost, self.visits))
        while taken > _USER_BYTES:
            user = next(iter(self.visits))
            del self.visits[user]
            taken -= _cost(user)
            self.approximate = True


_ROWS = PackedRows(_Row, _ROW_VERSION, "An item's row of visits")


@dataclass(frozen=True, slots=True)
class BoostedItems:
    """A ``GroupDetector`` for items.

    Args:
        topic: that evidence names.
        least_nats: evidence from which on an item is flagged; 9 is four users at an item without orders.
        usual_users: insistent users in a week, at an item without orders.
        order_share: insistent users for each order, at ordinary items at most.
    """

    kind: ClassVar = KIND
    group_types: ClassVar = frozenset({ITEM})
    max_row_bytes: ClassVar = MAX_ROW_BYTES

    topic: str
    least_nats: float = 9.0
    usual_users: float = 0.15
    order_share: float = 0.05

    def fold(self, group: Group, row: bytes | None, events: Sequence[GroupEvent], watermark_ms: int) -> Fold:
        """Take the events one by one, and judge after each insistent visit."""
        known = _Row() if row is None else _ROWS.read(row)
        alerts: list[Alert] = []
        for event in events:
            if event.action == "purchase":
                if not known.visits:
                    continue
                day = event.event_time_ms // _DAY_MS
                known.orders[day] = known.orders.get(day, 0) + 1
                known.latest_ms = max(known.latest_ms, event.event_time_ms)
            else:
                known.visits.pop(event.user_id, None)
                known.visits[event.user_id] = _Visit(event.event_time_ms, event.partition, event.offset)
                known.latest_ms = max(known.latest_ms, event.event_time_ms)
                known.forget()
                alerts += self._judged(group, known, event)
        if not known.visits:  # nearly every item
            return Fold(None, alerts)
        known.forget()
        due_ms = max((visit.event_time_ms for visit in known.visits.values()), default=0) + _WEEK_MS
        if not known.visits or due_ms <= watermark_ms:
            return Fold(None, alerts)
        return Fold(_ROWS.packed(known), alerts, due_ms)

    def erase(self, row: bytes, users: Collection[str]) -> bytes | None:
        """The row without these users; no row where nobody else is left."""
        known = _ROWS.read(row)
        for user in users:
            known.visits.pop(user, None)
        return _ROWS.packed(known) if known.visits else None

    def _judged(self, group: Group, known: _Row, event: GroupEvent) -> list[Alert]:
        """The alert, if the evidence is strong enough."""
        visits = known.visits
        if len(visits) < _AT_LEAST or event.user_id not in visits:
            return []
        expected = self.usual_users + self.order_share * sum(known.orders.values())
        nats = excess_nats(len(visits), expected)
        if nats < self.least_nats:
            return []
        did = [
            Partner(user, visit.event_time_ms, visit.partition, visit.offset)
            for user, visit in sorted(visits.items())
        ]
        text = (
            f"{len(did)} users came back to it again and again within a week, where {expected:.1f} are usual"
        )
        return [
            crowd_alert(
                KIND,
                group,
                self.topic,
                (event.partition, event.offset),
                event_time_ms=known.latest_ms,
                reason=("insistence", text),
                nats=nats,
                expected=expected,
                did=did,
                approximate=known.approximate,
            )
        ]


def _cost(user: str) -> int:
    return _ENTRY_BYTES + len(user.encode())
