"""The labels stage: records of the topic ``labels`` in; dead letters, audits, and rows of the join out.

What stage.py asks of a stage, for ``stream.label_join``. Users' rows stand under their ids; the counts of the partition
in one reserved row, which every transaction that changes them carries, so they are as exact as the rows are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np

from stream.alert_calibration import LabelledScores
from stream.dead_letters import dead_letter
from stream.events import Rejection
from stream.label_join import Tally, UserLabels, fold, fold_order
from stream.label_records import Label, Note, Order, decode_label
from stream.outputs import constant_headers, printable_subject
from stream.rendering import rfc3339
from stream.stage import Message, Rendered, Row

__all__ = ["TALLY_KEY", "DecodedLabels", "LabelCounts", "LabelsWork"]

#: Reserved row: the counts of this partition.
TALLY_KEY: Final = b"\0n"  # not \0t: timers stand under that, and `state verify` leaves them out
AUDIT_TYPE: Final = "foreclick.audit.v1"

_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class DecodedLabels:
    """The records of a micro-batch, each with what it is; ``keys`` are the users whose rows are needed."""

    records: Sequence[Any]
    found: list[Label | Note | list[Order] | Rejection | None]
    keys: list[bytes]


@dataclass(slots=True)
class LabelCounts:
    """What a micro-batch tells the metrics."""

    records: int
    orders: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    dead_letters: dict[str, int] = field(default_factory=dict)
    audits: int = 0
    erased: int = 0


class LabelsWork:
    """The labels stage of one partition; implements ``stream.stage.Work``.

    Args:
        topic: of the labels; ``topic_id`` is its id as readable text, ``source`` the URI reference of audits' headers.
        partition: of that topic.
        dead_letters_topic, audit_topic: where rejected records and audits go.
        audit_rate: the share of orders and users that are drawn.
        control: the output that every worker reads; None tells nobody of the counts.
        tally: the reserved row, None at the very beginning.
        observe: told of each committed micro-batch, with the times of its receipt and its commit.

    Attributes:
        tally: counts over all users of the partition, as of the newest micro-batch.
    """

    def __init__(
        self,
        *,
        topic: str,
        topic_id: str,
        source: str,
        partition: int,
        dead_letters_topic: str,
        audit_topic: str,
        audit_rate: float,
        tally: bytes | None,
        control: str | None = None,
        observe: Callable[[LabelCounts, float, float], None] = lambda *_: None,
    ) -> None:
        self.tally = Tally.of_row(tally)
        self._topic, self._topic_id, self._source = topic, topic_id, source
        self._partition = partition
        self._dead_letters_topic, self._audit_topic = dead_letters_topic, audit_topic
        self._audit_rate = audit_rate
        self._control = control
        self._observe = observe

    # ------------------------------------------------------------------ step 2

    def decode(self, records: Sequence[Any]) -> DecodedLabels:
        found = [decode_label(record.key, record.value) for record in records]
        users: dict[bytes, None] = {}
        for record, each in zip(records, found, strict=True):
            if isinstance(each, list):
                users.update(dict.fromkeys([order.user_id.encode() for order in each]))
            elif isinstance(each, Label | Note):
                users[record.key] = None
        return DecodedLabels(records, found, list(users))

    # ------------------------------------------------------------------ steps 4 to 6

    async def score(self, decoded: DecodedLabels, rows: list[bytes | None], now_ms: int) -> Rendered:  # noqa: ARG002
        """Fold in the order of offsets; between records of many orders the clicks have their turn."""
        counts = LabelCounts(len(decoded.records))
        before = dict(zip(decoded.keys, rows, strict=True))
        known = {key: UserLabels.of_row(row) for key, row in before.items()}
        erased: dict[bytes, None] = {}
        letters: list[Message] = []
        audits: list[Message] = []
        watermark_ms = 0
        tally_before, labelled_before = self.tally.row(), self.tally.all_labelled
        for record, found in zip(decoded.records, decoded.found, strict=True):
            rejection: Rejection | None = None
            if found is None:
                # What the counts know of the user stays: they name nobody.
                erased[record.key] = None
                known[record.key] = UserLabels()
                counts.erased += 1
            elif isinstance(found, Rejection):
                rejection = found
            elif isinstance(found, list):
                counts.orders += len(found)
                for order in found:
                    drawn = fold_order(known[order.user_id.encode()], self.tally, order, self._audit_rate)
                    audits += [self._audit(order, *subject, record.offset) for subject in drawn]
                    watermark_ms = max(watermark_ms, order.time_ms)
                await asyncio.sleep(0)
            else:
                outcome, rejection, drawn = fold(known[record.key], self.tally, found, self._audit_rate)
                if outcome is not None:
                    counts.outcomes[outcome] = counts.outcomes.get(outcome, 0) + 1
                audits += [self._audit(found, *subject, record.offset) for subject in drawn]
                watermark_ms = max(watermark_ms, found.time_ms)
            if rejection is not None:
                counts.dead_letters[rejection.reason] = counts.dead_letters.get(rejection.reason, 0) + 1
                letters.append(self._dead_letter(record, rejection))
        counts.audits = len(audits)
        written: list[Row] = []
        for key, labels in known.items():
            row = labels.row() if labels.subjects or labels.orders or labels.forgot else None
            if row != before.get(key) or key in erased:
                written.append((key, row))
        if (tally := self.tally.row()) != tally_before:
            written.append((TALLY_KEY, tally))
        messages = {self._dead_letters_topic: letters, self._audit_topic: audits}
        if self._control is not None and self.tally.all_labelled != labelled_before:
            told = LabelledScores(self._partition, self.tally.detectors)
            messages[self._control] = [(told.key, _encode(told), [])]
        return Rendered(
            {topic: items for topic, items in messages.items() if items}, written, watermark_ms, counts
        )

    def _dead_letter(self, record: Any, why: Rejection) -> Message:
        return dead_letter(
            self._topic,
            self._partition,
            record.offset,
            record.key,
            record.value,
            why.reason,
            why.message,
            record.headers,
        )

    def _audit(self, found: Label | Note | Order, subject_type: str, subject: str, offset: int) -> Message:
        name = printable_subject(f"{subject_type}/{subject}")
        value = {
            "id": f"audit/{subject_type}/{subject}",
            "subject_type": subject_type,
            "subject": subject,
            "user_id": found.user_id,
            "event_time_ms": found.time_ms,
            "rate": self._audit_rate,
        }
        headers: list[tuple[str, bytes | None]] = [
            *constant_headers(AUDIT_TYPE, self._source),
            ("ce_id", f"{self._topic_id}/{self._partition}/{offset}/audit/{name}".encode()),
            ("ce_time", rfc3339(np.array([found.time_ms]))[0]),
            ("ce_subject", printable_subject(subject).encode()),
        ]
        return found.user_id.encode(), _encode(value), headers

    # ------------------------------------------------------------------ step 9

    def account(self, rendered: Rendered, received_s: float, committed_s: float) -> None:
        self._observe(rendered.counts, received_s, committed_s)
