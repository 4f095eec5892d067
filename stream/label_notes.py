"""Notes to the stage of labels, put beside what another stage writes, in the same transaction.

A stage that raises alerts need not know of labels: its work is wrapped, and what it renders is looked at once more.

    clicks   alerts; users erased by a tombstone; the first event of a user whom the audit's lot names; orders that no
             record of a group tells of
    groups   alerts; orders, whose records stand there anyway

Few partitions write most orders then, a few times a second: among the outputs of clicks they would take part in nearly
every transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from stream.alert_calibration import AlertCalibration
from stream.alerts import Alert
from stream.engagements import announced
from stream.errors import BrokenInvariant
from stream.events import Event
from stream.group_detectors import ITEM, SHOP, USER, GroupEvent
from stream.group_records import Erasure, Watermark
from stream.groups_stage import DecodedGroups
from stream.label_join import drawn
from stream.label_records import (
    MAX_ID_BYTES,
    ORDERS_KEY,
    Order,
    notes_of_alert,
    packed_orders,
    seen_note,
)
from stream.partitioner import partition_of
from stream.scoring import DecodedClicks
from stream.stage import Message, Rendered, Timed, Work

__all__ = ["Notes", "Noting", "click_notes", "group_notes"]


class Notes(NamedTuple):
    """What a micro-batch tells the join.

    Attributes:
        records: notes of one user each: the user in UTF-8, and the JSON; None erases the user.
        orders: told after those.
    """

    records: list[tuple[bytes, bytes | None]]
    orders: list[Order]


#: Of a stage's decoded records and their rows: the notes that they give.
NotesOf = Callable[[Any, Sequence[bytes | None]], Notes]

_decode = msgspec.json.Decoder(Alert).decode
_PURCHASE: Final = "purchase"


class Noting:
    """A stage's work, telling the stage of labels; implements ``stream.stage.Work`` and ``Timed`` as the wrapped one.

    Args:
        work: of the stage.
        alert_topics: names of the outputs that hold alerts.
        outputs: names of the outputs that are the partitions of the topic of labels, in their order.
        notes_of: further notes, of the decoded records.
        calibration: asked for each micro-batch with alerts; fills the probability of those that have none.
    """

    def __init__(
        self,
        work: Work[Any],
        *,
        alert_topics: Collection[str],
        outputs: Sequence[str],
        notes_of: NotesOf,
        calibration: Callable[[], AlertCalibration] = AlertCalibration,
    ) -> None:
        self._work = work
        self._alert_topics = frozenset(alert_topics)
        self._outputs = outputs
        self._notes_of = notes_of
        self._calibration = calibration

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)

    def decode(self, records: Sequence[Any]) -> Any:
        return self._work.decode(records)

    async def score(self, decoded: Any, rows: list[bytes | None], now_ms: int) -> Rendered:
        """As the wrapped work, with the notes."""
        rendered = await self._work.score(decoded, rows, now_ms)
        # Alerts before orders: who is flagged in the moment of the order is not drawn for the audit.
        told: dict[str, list[Message]] = {}
        for alert in self._alerts(rendered):
            for key, value in notes_of_alert(alert):
                told.setdefault(self._output(key), []).append((key, value, []))
        records, orders = self._notes_of(decoded, rows)
        for key, note in records:
            told.setdefault(self._output(key), []).append((key, note, []))
        made: dict[str, list[Order]] = {}
        for order in orders:
            made.setdefault(self._output(order.user_id.encode()), []).append(order)
        for output, mine in made.items():
            told.setdefault(output, []).extend((ORDERS_KEY, value, []) for value in packed_orders(mine))
        if told:
            rendered.messages = {**rendered.messages, **told}
        return rendered

    def account(self, rendered: Rendered, received_s: float, committed_s: float) -> None:
        self._work.account(rendered, received_s, committed_s)

    def due(self) -> bool:
        """Whether a timer of the wrapped work is due."""
        return isinstance(self._work, Timed) and self._work.due()

    def pass_time(self, watermark_ms: int) -> None:
        """Raise the watermark of the wrapped work's timers."""
        if isinstance(self._work, Timed):
            self._work.pass_time(watermark_ms)

    def _output(self, user: bytes) -> str:
        return self._outputs[partition_of(user, len(self._outputs))]

    def _alerts(self, rendered: Rendered) -> list[Alert]:
        """The alerts that were rendered, with their probability where labels know it."""
        found = []
        for topic in sorted(self._alert_topics & rendered.messages.keys()):
            calibration, messages = self._calibration(), []
            for key, value, headers in rendered.messages[topic]:
                try:
                    alert = _decode(value or b"")
                except msgspec.DecodeError as error:
                    raise BrokenInvariant(f"A stage wrote to {topic} what is no alert: {error}.") from error
                probability = calibration.probability(alert.kind, alert.score)
                if alert.probability is None and probability is not None:
                    alert = msgspec.structs.replace(alert, probability=probability)
                    value = alert.as_json()  # noqa: PLW2901 - the same alert, with one more number
                found.append(alert)
                messages.append((key, value, headers))
            rendered.messages = {**rendered.messages, topic: messages}
        return found


def click_notes(told_kinds: Collection[str], audit_rate: float) -> NotesOf:
    """The notes that clicks give.

    Args:
        told_kinds: types of groups whose records carry orders; `group_notes` tells of those.
        audit_rate: the share of users that are drawn.
    """

    def notes_of(decoded: DecodedClicks, rows: Sequence[bytes | None]) -> Notes:
        told = Notes([(key, None) for key in sorted(decoded.erased)], [])
        events = decoded.events
        for place in _first_events(decoded, rows):
            event = events[place]
            if drawn("user", event.user_id, audit_rate):
                told.records.append((event.user_id.encode(), seen_note(event.user_id, event.event_time_ms)))
        for place in [place for place, event in enumerate(events) if event.action == _PURCHASE]:
            event = events[place]
            if _teller(event, told_kinds) is None or announced(event):
                record = decoded.records[decoded.event_records[place]]
                _add_order(event, record.partition, record.offset, told.orders)
        return told

    return notes_of


def _first_events(decoded: DecodedClicks, rows: Sequence[bytes | None]) -> list[int]:
    """Places of the first event of each user who has no row yet."""
    new = [slot for slot, row in enumerate(rows) if row is None]
    if not new:
        return []
    # Slots are numbered as they come: the first event of one is where the highest so far reaches it.
    places = np.searchsorted(np.maximum.accumulate(decoded.slots), new)
    return [place for place in places.tolist() if place < len(decoded.events)]


def group_notes(told_kinds: Collection[str]) -> NotesOf:
    """The notes that records of groups give: each order once, though it stands in several groups."""
    begins = {kind: f"{kind}:".encode() for kind in told_kinds}

    def notes_of(decoded: DecodedGroups, rows: Sequence[bytes | None]) -> Notes:  # noqa: ARG001
        told = Notes([], [])
        for record in decoded.records:
            if isinstance(record, Watermark | Erasure):
                continue
            event = record.event
            if event.action != _PURCHASE:
                continue
            teller = _teller(event, told_kinds)
            if teller is not None and record.group.startswith(begins[teller]):
                _add_order(event, event.partition, event.offset, told.orders)
        return told

    return notes_of


def _teller(event: Event | GroupEvent, told_kinds: Collection[str]) -> str | None:
    """The type of the group whose record tells of an order; None where none does.

    A user's records hold every order but those of announced crawlers, which clicks tell themselves.
    """
    if USER in told_kinds:
        return USER
    if event.shop_id and SHOP in told_kinds:
        return SHOP
    return ITEM if event.item_id and ITEM in told_kinds else None


def _add_order(event: Event | GroupEvent, partition: int, offset: int, orders: list[Order]) -> None:
    """Tell of an order, under the id that evidence of alerts has; not where no label could have it."""
    order_id = event.order_id or event.event_id or f"{partition}/{offset}"
    if len(order_id) <= MAX_ID_BYTES and len(order_id.encode()) <= MAX_ID_BYTES:
        orders.append(Order(event.user_id, order_id, event.event_time_ms))
