"""The alerts of a file, without a broker: its records in, alerts and rejected records out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stream.alerts import Alert
from stream.dead_letters import Headers, dead_letter
from stream.events import Event, Rejection, decode_events
from stream.files import FileRecord
from stream.formats import adapt_object
from stream.order_brushing import OrderBrushing, OrderCounts, ShopLog
from stream.settings import Settings

__all__ = ["LogAlerts", "log_alerts"]


@dataclass(frozen=True, slots=True)
class LogAlerts:
    """What a log gave.

    Attributes:
        alerts: by the event time at which each was possible.
        orders: what became of the purchases.
        rejected: records that are no events, as dead letters: key, value, headers.
        events: how many were read, rejected ones included.
    """

    alerts: list[Alert]
    orders: OrderCounts
    rejected: list[tuple[bytes | None, bytes | None, Headers]]
    events: int


def log_alerts(records: Sequence[FileRecord], settings: Settings, topic: str) -> LogAlerts:
    """Judge the shops of a log; the end of the log completes every window.

    Args:
        records: in the sequence of arrival; the place of each, from 0, is its offset in partition 0.
        settings: the limit of lateness.
        topic: that evidence and dead letters name.
    """
    shops = ShopLog(OrderBrushing(topic, late_limit_ms=settings.late_limit_s * 1000))
    rejected: list[tuple[bytes | None, bytes | None, Headers]] = []

    def events() -> Iterator[tuple[int, Event]]:
        decoded = decode_events(
            [record.key for record in records], [record.value for record in records], adapt_object
        )
        for offset, (record, event) in enumerate(zip(records, decoded, strict=True)):
            if isinstance(event, Event):
                yield offset, event
            elif isinstance(event, Rejection):
                rejected.append(
                    dead_letter(topic, 0, offset, record.key, record.value, event.reason, event.message)
                )

    return LogAlerts(shops.alerts(events()), shops.counts, rejected, len(records))
