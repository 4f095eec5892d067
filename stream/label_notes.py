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
from typing import Any, Final

import msgspec

from stream.alert_calibration import AlertCalibration
from stream.alerts import Alert
from stream.engagements import announced
from stream.errors import BrokenInvariant
from stream.events import Event
from stream.group_detectors import ITEM, SHOP, USER, GroupEvent
from stream.group_records import Erasure, Watermark, group_of
from stream.groups_stage import DecodedGroups
from stream.label_join import drawn
from stream.label_records import MAX_ID_BYTES, notes_of_alert, order_note, seen_note
from stream.partitioner import partition_of
from stream.scoring import DecodedClicks
from stream.stage import Message, Rendered, Timed, Work

__all__ = ["Noting", "click_notes", "group_notes"]

#: A note as a record: its user in UTF-8, and its JSON; None erases the user.
Told = tuple[bytes, bytes | None]
#: Of a stage's decoded records and their rows: the notes that they give.
NotesOf = Callable[[Any, Sequence[bytes | None]], Sequence[Told]]

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
        notes: list[Told] = [note for alert in self._alerts(rendered) for note in notes_of_alert(alert)]
        notes += self._notes_of(decoded, rows)
        if notes:
            messages: dict[str, Any] = dict(rendered.messages)
            for key, value in notes:
                output = self._outputs[partition_of(key, len(self._outputs))]
                told: list[Message] = messages.setdefault(output, [])
                told.append((key, value, []))
            rendered.messages = messages
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

    def notes_of(decoded: DecodedClicks, rows: Sequence[bytes | None]) -> list[Told]:
        notes: list[Told] = [(key, None) for key in sorted(decoded.erased)]
        new = {slot for slot, row in enumerate(rows) if row is None}
        for place, event in enumerate(decoded.events):
            if new and (slot := int(decoded.slots[place])) in new:
                new.discard(slot)
                if drawn("user", event.user_id, audit_rate):
                    notes.append((event.user_id.encode(), seen_note(event.user_id, event.event_time_ms)))
            if event.action == _PURCHASE and (_teller(event, told_kinds) is None or announced(event)):
                record = decoded.records[decoded.event_records[place]]
                notes += _order(event, record.partition, record.offset)
        return notes

    return notes_of


def group_notes(told_kinds: Collection[str]) -> NotesOf:
    """The notes that records of groups give: each order once, though it stands in several groups."""

    def notes_of(decoded: DecodedGroups, rows: Sequence[bytes | None]) -> list[Told]:  # noqa: ARG001
        notes: list[Told] = []
        for record in decoded.records:
            if isinstance(record, Watermark | Erasure) or record.event.action != _PURCHASE:
                continue
            if _teller(record.event, told_kinds) == group_of(record.group).type:
                notes += _order(record.event, record.event.partition, record.event.offset)
        return notes

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


def _order(event: Event | GroupEvent, partition: int, offset: int) -> list[Told]:
    """The note of an order, under the id that evidence of alerts has; none where no label could have it."""
    order_id = event.order_id or event.event_id or f"{partition}/{offset}"
    if len(order_id.encode()) > MAX_ID_BYTES:
        return []
    return [(event.user_id.encode(), order_note(event.user_id, order_id, event.event_time_ms))]
