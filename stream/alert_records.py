"""An alert as a record: the JSON of files, CloudEvents headers, the subject as key."""

from __future__ import annotations

from typing import Final

import numpy as np

from stream.alerts import Alert
from stream.outputs import constant_headers, printable_subject
from stream.rendering import rfc3339
from stream.stage import Message

__all__ = ["ALERT_TYPE", "alert_message"]

#: Of CloudEvents, for alerts of every kind; the kind stands in the value.
ALERT_TYPE: Final = "foreclick.alert.v1"


def alert_message(alert: Alert, topic_id: str, source: str) -> Message:
    """Key, value and headers of an alert.

    Args:
        alert: what is sent.
        topic_id: of the input, as readable text; a recreated input begins other ids.
        source: CloudEvents source, a URI reference.
    """
    subject = printable_subject(alert.subject)
    # Where the evidence begins, and the moment of the verdict: the same however often the worker starts again.
    first = alert.evidence[0]["source"] if alert.evidence else {"partition": 0, "offset": 0}
    # The kind comes first, since the place is not one in the source of the stage that writes this.
    name = f"{alert.kind}/{topic_id}/{first['partition']}/{first['offset']}/{alert.event_time_ms}/{subject}"
    headers: list[tuple[str, bytes | None]] = [
        *constant_headers(ALERT_TYPE, source),
        ("ce_id", name.encode()),
        ("ce_time", rfc3339(np.array([alert.event_time_ms]))[0]),
        ("ce_subject", subject.encode()),
    ]
    return alert.subject.encode(), alert.as_json(), headers
