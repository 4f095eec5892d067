"""The alerts of a file, without a broker: its records in, alerts and rejected records out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from models.fraud.fusion import Reference
from stream.alerts import Alert
from stream.dead_letters import Headers, dead_letter
from stream.events import Event, Rejection, decode_events
from stream.files import FileRecord
from stream.formats import adapt_object
from stream.fraud_alerts import fraud_alerts
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


def log_alerts(
    records: Sequence[FileRecord],
    settings: Settings,
    topic: str,
    *,
    target_fpr: float = 0.01,
    limits: Mapping[str, int] | None = None,
    reference: Reference | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> LogAlerts:
    """Judge the shops of a log, and its users where it says what they do to which items.

    The end of the log completes every window. A log of orders that names shops only is judged by the rule for shops.

    Args:
        records: in the sequence of arrival; the place of each, from 0, is its offset in partition 0.
        settings: the limit of lateness.
        topic: that evidence and dead letters name.
        target_fpr, limits, reference, advance: see ``stream.fraud_alerts``.
    """
    shops = ShopLog(OrderBrushing(topic, late_limit_ms=settings.late_limit_s * 1000))
    rejected: list[tuple[bytes | None, bytes | None, Headers]] = []
    events: list[tuple[int, Event]] = []
    decoded = decode_events(
        [record.key for record in records], [record.value for record in records], adapt_object
    )
    for offset, (record, event) in enumerate(zip(records, decoded, strict=True)):
        if isinstance(event, Event):
            events.append((offset, event))
        elif isinstance(event, Rejection):
            rejected.append(
                dead_letter(topic, 0, offset, record.key, record.value, event.reason, event.message)
            )
    alerts = shops.alerts(events)
    if any(event.item_id or event.lines for _, event in events):
        in_time = sorted(events, key=lambda pair: pair[1].event_time_ms)
        alerts += fraud_alerts(
            in_time, topic, target_fpr=target_fpr, limits=limits, reference=reference, advance=advance
        ).alerts
        alerts.sort(key=lambda alert: alert.event_time_ms)
    return LogAlerts(alerts, shops.counts, rejected, len(records))
