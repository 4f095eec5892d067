"""Labels joined with what was flagged. Pure: records and rows in, rows and counts out.

    label         ──► known subject? ──► newest wins ──┐
    note, order   ──► flagged, seen, ordered ──────────┴──► the user's row ──► counts by detector

Labels and notes come through one topic, so everything about a user comes in one order with one position, and the join
is a fold over a user's row, exactly once for the reason for which everything else here is. A second source beside the
labels would need a second position and an order between the two.

Precision is of subjects (an order, a user, an event): of those that a detector flagged and that have a label, the share
whose label agrees. Recall cannot be known from what was flagged: orders and users are drawn by the hash of their id,
sent to ``alerts.audit`` unless flagged, and what the labels of those say stands for everybody who was not flagged.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from math import nan
from typing import Final, Literal

import msgspec

from stream.events import Rejection
from stream.label_records import Label, Note, Order, SubjectType, is_churn
from stream.packed_rows import PackedRows

__all__ = [
    "SCORE_BINS",
    "Audit",
    "Detector",
    "Outcome",
    "Subject",
    "Tally",
    "UserLabels",
    "drawn",
    "fold",
    "fold_order",
    "tallied",
]

SCORE_BINS: Final = 20
ANY: Final = "any"  # stands for all detectors of fraud together

_ROW_VERSION: Final = 1
_MAX_SUBJECTS: Final = 128  # of a user: with ids of 512 bytes a row stays under 128 KiB
_MAX_ORDERS: Final = 1024  # hashes of orders that a user is known to have made
_MAX_DETECTORS: Final = 64

Outcome = Literal["joined", "waiting", "older"]


class Subject(msgspec.Struct, array_like=True, gc=False):
    """What is known of one order, user or event.

    Attributes:
        scores: the highest score of each detector that flagged it.
        label: the newest, None before the first.
        label_ms: its time.
        audit_rate: the share with which it was drawn for the audit, 0 when it was not.
    """

    scores: dict[str, float] = {}
    label: str | None = None
    label_ms: int = 0
    audit_rate: float = 0.0


class UserLabels(msgspec.Struct, array_like=True, gc=False):
    """One user's row: subjects that were flagged, drawn or labelled, and hashes of the orders made.

    ``forgot`` says that a bound was met: an order may have been made that is no longer known.
    """

    subjects: dict[str, Subject] = {}
    orders: list[int] = []
    forgot: bool = False

    def row(self) -> bytes:
        """As plain bytes: a version, then MessagePack of the fields in their order."""
        return _USERS.packed(self)

    @classmethod
    def of_row(cls, row: bytes | None) -> UserLabels:
        """What ``row`` wrote; None is a user of whom nothing is known.

        Raises:
            DamagedRow: another version, or no row at all.
        """
        return cls() if row is None else _USERS.read(row)


class Detector(msgspec.Struct, array_like=True):
    """Subjects of one type that one detector flagged: how many, and by score those with a label that agrees or not."""

    flagged: int = 0
    right: list[int] = msgspec.field(default_factory=lambda: [0] * SCORE_BINS)
    wrong: list[int] = msgspec.field(default_factory=lambda: [0] * SCORE_BINS)

    @property
    def precision(self) -> float:
        """NaN without a label."""
        labelled = sum(self.right) + sum(self.wrong)
        return sum(self.right) / labelled if labelled else nan


class Audit(msgspec.Struct, array_like=True):
    """Subjects of one type that were drawn and that nothing flagged.

    ``stands_for`` is how many unflagged ones they stand for: the sum of one over the share with which each was drawn.
    """

    drawn: int = 0
    stands_for: float = 0.0
    fraud: int = 0
    genuine: int = 0


class Tally(msgspec.Struct, array_like=True):
    """Counts over all users of a partition; those of several partitions add up.

    Attributes:
        detectors: by ``kind/subject type``; the kind ``any`` counts subjects that some fraud detector flagged.
        audits: by subject type.
        labels: accepted ones by outcome.
    """

    detectors: dict[str, Detector] = {}
    audits: dict[str, Audit] = {}
    labels: dict[str, int] = {}

    def row(self) -> bytes:
        """As `UserLabels.row`."""
        return _TALLIES.packed(self)

    @classmethod
    def of_row(cls, row: bytes | None) -> Tally:
        """What ``row`` wrote; None counts nothing. Raises DamagedRow."""
        return cls() if row is None else _TALLIES.read(row)

    def count(self, key: str, subject: Subject, sign: int) -> None:
        """Add (1) or take away (-1) what one subject says."""
        kind_of_subject = key.partition("/")[0]
        fraud = {kind: score for kind, score in subject.scores.items() if not is_churn(kind)}
        scores = dict(subject.scores) | ({ANY: max(fraud.values())} if fraud else {})
        for kind, score in scores.items():
            name = f"{kind}/{kind_of_subject}"
            if name not in self.detectors and len(self.detectors) >= _MAX_DETECTORS:
                name = f"other/{kind_of_subject}"
            detector = self.detectors.setdefault(name, Detector())
            detector.flagged += sign
            agrees = _agrees(kind, subject.label)
            if agrees is not None:
                bins = detector.right if agrees else detector.wrong
                bins[min(int(score * SCORE_BINS), SCORE_BINS - 1)] += sign
        if subject.audit_rate and not fraud:
            audit = self.audits.setdefault(kind_of_subject, Audit())
            audit.drawn += sign
            audit.stands_for += sign / subject.audit_rate
            audit.fraud += sign * (subject.label == "fraud")
            audit.genuine += sign * (subject.label == "genuine")

    def add(self, other: Tally) -> None:
        """Add the counts of another partition."""
        for name, detector in other.detectors.items():
            mine = self.detectors.setdefault(name, Detector())
            mine.flagged += detector.flagged
            mine.right = [a + b for a, b in zip(mine.right, detector.right, strict=True)]
            mine.wrong = [a + b for a, b in zip(mine.wrong, detector.wrong, strict=True)]
        for name, audit in other.audits.items():
            ours = self.audits.setdefault(name, Audit())
            ours.drawn += audit.drawn
            ours.stands_for += audit.stands_for
            ours.fraud += audit.fraud
            ours.genuine += audit.genuine
        for outcome, count in other.labels.items():
            self.labels[outcome] = self.labels.get(outcome, 0) + count

    @property
    def all_labelled(self) -> dict[str, tuple[int, int]]:
        """By name of a detector: subjects whose label agrees, and those whose label does not."""
        return {name: (sum(each.right), sum(each.wrong)) for name, each in self.detectors.items()}

    def labelled(self, kind: str) -> tuple[int, int]:
        """Subjects that the detector flagged and whose label agrees, and those whose label does not."""
        parts = [detector for name, detector in self.detectors.items() if name.rpartition("/")[0] == kind]
        return sum(sum(each.right) for each in parts), sum(sum(each.wrong) for each in parts)

    def precision(self, kind: str) -> float:
        """Of all labelled subjects that the detector flagged, the share whose label agrees; NaN without a label."""
        right, wrong = self.labelled(kind)
        return right / (right + wrong) if right + wrong else nan

    def recall(self, kind: str, subject_type: str) -> float:
        """Of all fraud of that type, estimated, the share that the detector flagged.

        Found is the number of flagged subjects times their precision; missed is the share of fraud among the labelled
        audits, times the subjects for which the audits stand. NaN before one audit has a label, before one of those
        has that the detector or any other flagged, and while the labels know of no fraud at all; and of detectors of
        churn, about which audits say nothing.
        """
        audit = self.audits.get(subject_type)
        if audit is None or not audit.fraud + audit.genuine or is_churn(kind):
            return nan
        missed = audit.stands_for * audit.fraud / (audit.fraud + audit.genuine)
        found, all_found = (self._found(f"{name}/{subject_type}") for name in (kind, ANY))
        return found / (all_found + missed) if all_found + missed else nan

    def _found(self, name: str) -> float:
        """How many of the subjects that were flagged are what they were flagged for; NaN if no label tells."""
        detector = self.detectors.get(name)
        return detector.flagged * detector.precision if detector is not None and detector.flagged else 0.0

    @property
    def kinds(self) -> list[str]:
        """Names of the detectors, ``any`` not among them."""
        return sorted({name.rpartition("/")[0] for name in self.detectors} - {ANY})


_USERS = PackedRows(UserLabels, _ROW_VERSION, "A user's row of labels")
_TALLIES = PackedRows(Tally, _ROW_VERSION, "The row of counts of labels")


def drawn(subject_type: str, subject_id: str, rate: float) -> bool:
    """Whether a subject belongs to the audit sample: a property of its id, the same wherever it is asked."""
    lot = _hash(subject_id) if subject_type == "order" else _hash(f"audit/{subject_type}/{subject_id}")
    return _wins(lot, rate)


def fold(
    known: UserLabels, tally: Tally, record: Label | Note, audit_rate: float
) -> tuple[Outcome | None, Rejection | None, list[tuple[SubjectType, str]]]:
    """Fold one record into its user's row and into the counts; both are changed in place.

    Args:
        known: of the record's user.
        tally: of the partition.
        audit_rate: the share of users that are drawn for the audit.

    Returns:
        What became of a label, or why it joins nothing; and the subjects that go to the audit now.
    """
    if isinstance(record, Label):
        return *_fold_label(known, tally, record), []
    if record.note == "alert":
        for subject_type, subject_id in record.subjects:
            with_alert = _subject(known, f"{subject_type}/{subject_id}")
            tally.count(f"{subject_type}/{subject_id}", with_alert, -1)
            with_alert.scores[record.kind] = max(with_alert.scores.get(record.kind, 0.0), record.score)
            tally.count(f"{subject_type}/{subject_id}", with_alert, 1)
        return None, None, []
    return None, None, _drawn_user(known, tally, record.user_id, audit_rate)


def fold_order(
    known: UserLabels, tally: Tally, order: Order, audit_rate: float
) -> list[tuple[SubjectType, str]]:
    """Fold an order as `fold` does a record; gives the subjects that go to the audit now.

    A user is drawn with the first event, or with the first order of those who were there before the labels were.
    """
    lot, found = _hash(order.order_id), []
    if lot in known.orders:
        return []
    if not known.orders:
        found += _drawn_user(known, tally, order.user_id, audit_rate)
    known.orders.append(lot)
    if len(known.orders) > _MAX_ORDERS:
        del known.orders[0]
        known.forgot = True
    if _wins(lot, audit_rate) and _draw(known, tally, "order", order.order_id, audit_rate):
        found.append(("order", order.order_id))
    return found


def _drawn_user(known: UserLabels, tally: Tally, user: str, rate: float) -> list[tuple[SubjectType, str]]:
    won = drawn("user", user, rate) and _draw(known, tally, "user", user, rate)
    return [("user", user)] if won else []


def _fold_label(known: UserLabels, tally: Tally, label: Label) -> tuple[Outcome | None, Rejection | None]:
    subject = known.subjects.get(label.key)
    if subject is None:
        made = label.subject == "order" and _hash(label.id) in known.orders
        someone = label.subject == "user" and bool(known.subjects or known.orders)
        if not (made or someone or known.forgot):
            return None, Rejection(
                "unknown_subject",
                f"{_named(label)}. Check the id; if that is still to come, send the label again: foreclick dlq replay",
            )
        subject = _subject(known, label.key)
    if subject.label is not None and label.time_ms < subject.label_ms:
        return _counted(tally, "older"), None
    tally.count(label.key, subject, -1)
    subject.label, subject.label_ms = label.label, label.time_ms
    tally.count(label.key, subject, 1)
    return _counted(tally, "joined" if subject.scores or subject.audit_rate else "waiting"), None


def _named(label: Label) -> str:
    """What is not known of a label's subject."""
    if label.subject == "user":
        return f"user {label.user_id[:80]!r} has ordered nothing, was not flagged and is not in the audit"
    known = "made" if label.subject == "order" else "flagged"
    return f"{label.subject} {label.id[:80]!r} of user {label.user_id[:80]!r} was never {known}"


def _counted(tally: Tally, outcome: Outcome) -> Outcome:
    tally.labels[outcome] = tally.labels.get(outcome, 0) + 1
    return outcome


def _draw(known: UserLabels, tally: Tally, subject_type: SubjectType, subject_id: str, rate: float) -> bool:
    """Take a subject into the audit, unless it is flagged or there already."""
    key = f"{subject_type}/{subject_id}"
    there = known.subjects.get(key)
    if there is not None and (there.scores or there.audit_rate):
        return False
    subject = _subject(known, key)
    tally.count(key, subject, -1)
    subject.audit_rate = rate
    tally.count(key, subject, 1)
    return True


def _subject(known: UserLabels, key: str) -> Subject:
    """The subject, made when it is new; the oldest makes way when there are too many, and stays counted."""
    subject = known.subjects.get(key)
    if subject is None:
        if len(known.subjects) >= _MAX_SUBJECTS:
            del known.subjects[next(iter(known.subjects))]
            known.forgot = True
        subject = known.subjects[key] = Subject()
    return subject


def _hash(text: str) -> int:
    """Of an order's id what a row remembers, and its lot in the audit."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _wins(lot: int, rate: float) -> bool:
    return lot < rate * 2**64 - 2**63


def _agrees(kind: str, label: str | None) -> bool | None:
    """Whether a label says that the detector was right; None when it says nothing about it."""
    yes, no = ("churned", "stayed") if is_churn(kind) else ("fraud", "genuine")
    return True if label == yes else False if label == no else None


def tallied(parts: Iterable[Tally]) -> Tally:
    """The counts of several partitions as one."""
    whole = Tally()
    for part in parts:
        whole.add(part)
    return whole
