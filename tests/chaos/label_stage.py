"""What the stage of labels should have made of its topic, and what it should have been told.

The topic holds labels that somebody put and notes of the other stages. The notes have to be those of the orders and
alerts, each once, whatever happened to the workers that told them; the join is then the stage's own fold, played again
over the committed positions as tests/chaos/second_stage.py does it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from stream import label_records
from stream.alerts import Alert
from stream.label_join import Tally
from stream.label_records import Order, decode_label, notes_of_alert
from stream.labels_stage import TALLY_KEY, LabelsWork
from stream.offline import OfflineRecord
from stream.stage import Message
from tests.chaos.second_stage import Transaction, applied, differing, micro_batch

LETTERS, AUDITS = "letters", "audits"  # where the work of a replay sends them

_alert = msgspec.json.Decoder(Alert).decode

Note = tuple[bytes, bytes]


@dataclass
class Joined:
    """One partition of labels played again: what it should have sent, rows written otherwise, records not read."""

    letters: list[Message] = field(default_factory=list)
    audits: list[Message] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    unread: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)


def joined(
    records: Sequence[OfflineRecord], committed: Sequence[Transaction], partition: int, **options: Any
) -> Joined:
    """Play one partition of the topic again.

    Args:
        records: of it, by offset.
        committed: what its changelog says.
        options: of ``LabelsWork``.
    """
    found, rows = Joined(), dict[bytes, bytes]()
    offsets = [record.offset for record in records]
    start = 0
    for transaction in committed:
        end = bisect_left(offsets, transaction.mark.next_offset)
        work = LabelsWork(
            partition=partition,
            dead_letters_topic=LETTERS,
            audit_topic=AUDITS,
            tally=rows.get(TALLY_KEY),
            **options,
        )
        rendered = micro_batch(work, records[start:end], rows)
        different = differing(rendered.rows, transaction.rows, rows)
        if different:
            at = f"labels[{partition}], transaction that ends at {transaction.offset}"
            found.different.append(f"{at}: not the fold's are rows {different[:3]}")
        found.letters += rendered.messages.get(LETTERS, ())
        found.audits += rendered.messages.get(AUDITS, ())
        applied(rows, rendered.rows)
        start = end
    found.unread = len(records) - start
    found.outcomes = Tally.of_row(rows.get(TALLY_KEY)).labels
    return found


def alert_notes(alerts: Iterable[bytes]) -> Counter[Note]:
    """What the stage is to be told of these alerts."""
    return Counter(note for value in alerts for note in notes_of_alert(_alert(value)))


def order_notes(orders: Iterable[Order]) -> Counter[Note]:
    """Orders as notes, however they were packed: the user, and the order by itself."""
    return Counter((order.user_id.encode(), msgspec.json.encode(order)) for order in orders)


def notes_told(records: Iterable[OfflineRecord]) -> Counter[Note]:
    """The orders and alerts that the records of the topic tell of."""
    told: Counter[Note] = Counter()
    for record in records:
        found = decode_label(record.key, record.value)
        if isinstance(found, list):
            told.update(order_notes(found))
        elif isinstance(found, label_records.Note) and found.note == "alert":
            told[record.key or b"", record.value or b""] += 1
    return told
