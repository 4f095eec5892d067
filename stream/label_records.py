"""Labels: what somebody found out about an order, a user or an event; and what stages tell the join beside them.

Both are records of the topic ``labels``, keyed by their user. A label has the shape that the topic's schema shows, and
nothing else; what is none is a value with a reason, which goes to the dead letters. A note is written by the stages
that see orders and raise alerts, in the transaction of their own outputs. ``stream.label_join`` says what becomes of
them.

Orders are many, and nearly all of what is told: those of one partition go packed, up to 256 in a record under a key
that is no user's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from stream.alerts import Alert
from stream.events import MAX_USER_ID_BYTES, EventTimeMs, Rejection

__all__ = [
    "MAX_LABEL_BYTES",
    "ORDERS_KEY",
    "Label",
    "Note",
    "Order",
    "SubjectType",
    "decode_label",
    "is_churn",
    "label_of",
    "notes_of_alert",
    "packed_orders",
    "seen_note",
]

MAX_LABEL_BYTES: Final = 64 * 1024
MAX_ID_BYTES: Final = 512
#: Key of the records that hold orders.
ORDERS_KEY: Final = b"\0orders"
_MOST_ORDERS: Final = 256  # of one record: 264 KiB with ids of 512 bytes, and as many folds without a pause

Id = Annotated[str, Meta(min_length=1)]
SubjectType = Literal["order", "user", "event"]


class Label(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``by`` found out about a subject of a user, at ``time_ms``."""

    subject: SubjectType
    id: Id
    user_id: str
    label: Literal["fraud", "genuine", "churned", "stayed"]
    time_ms: EventTimeMs
    by: Id

    @property
    def key(self) -> str:
        """Of the subject within its user."""
        return f"{self.subject}/{self.id}"


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a stage tells the join of one user, beside the labels.

    Attributes:
        note: ``seen`` (the user's first event) or ``alert``.
        subjects: type and id of what an alert flagged.
        kind: the detector of an alert.
        score: of an alert.
    """

    note: Literal["seen", "alert"]
    user_id: str
    time_ms: EventTimeMs
    subjects: list[tuple[SubjectType, Id]] = []
    kind: str = ""
    score: Annotated[float, Meta(ge=0, le=1)] = 0.0


class Order(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An order that a user has made; in a record of orders."""

    user_id: Annotated[str, Meta(min_length=1, max_length=MAX_USER_ID_BYTES)]
    order_id: Id
    time_ms: EventTimeMs


_decode_label = msgspec.json.Decoder(Label).decode
_decode_note = msgspec.json.Decoder(Note).decode
_decode_any = msgspec.json.Decoder().decode
_decode_orders = msgspec.msgpack.Decoder(list[Order]).decode
_encode = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode


def decode_label(key: bytes | None, value: bytes | None) -> Label | Note | list[Order] | Rejection | None:
    """A record of the labels' topic; None is a tombstone, which erases what is known of the user. No input raises.

    Args:
        key: the user in UTF-8, or ``ORDERS_KEY``.
        value: a label or a note as JSON, nothing but their fields; or ``packed_orders``.
    """
    if key is None:
        return Rejection("missing_key", "the record has no key; expected the user_id in UTF-8")
    if key == ORDERS_KEY and value is not None:
        return _orders(value)
    if value is None:
        try:
            return _bad_user_id(key.decode())
        except UnicodeDecodeError as error:
            return Rejection("bad_user_id", f"the key is not UTF-8: {error.reason} at byte {error.start}")
    found = label_of(value)
    if not isinstance(found, Rejection) and found.user_id.encode() != key:
        return Rejection(
            "key_mismatch", f"the key is {key[:80]!r}; expected the user_id {found.user_id[:80]!r}"
        )
    return found


def label_of(value: bytes) -> Label | Note | Rejection:
    """What a record's value says, whatever its key is."""
    if len(value) > MAX_LABEL_BYTES:
        return Rejection("too_large", f"the value has {len(value)} bytes; expected at most {MAX_LABEL_BYTES}")
    found = _decoded(value)
    if isinstance(found, Rejection):
        return found
    if rejection := _bad_user_id(found.user_id):
        return rejection
    return found if isinstance(found, Note) else _contradiction(found) or found


def _decoded(value: bytes) -> Label | Note | Rejection:
    try:
        return _decode_label(value)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        said = str(error)
    try:
        document = _decode_any(value)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return Rejection("undecodable", str(error))
    if not isinstance(document, dict):
        return Rejection("wrong_type", f"expected an object, got {type(document).__name__}")
    if "note" in document:
        try:
            return _decode_note(value)
        except msgspec.DecodeError as error:
            return Rejection("wrong_type", f"a note that no stage wrote: {error}")
    lacking = [name for name in Label.__struct_fields__ if document.get(name) is None]
    if lacking:
        return Rejection("missing_field", "the label lacks " + ", ".join(f"`{name}`" for name in lacking))
    return Rejection("wrong_type", said)


def _orders(value: bytes) -> list[Order] | Rejection:
    try:
        orders = _decode_orders(value)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return Rejection("undecodable", f"orders that no stage wrote: {error}")
    for order in orders:
        if order.user_id[0] == "\0":
            return Rejection("bad_user_id", "an order of a user whose id starts with U+0000")
    return orders


def _contradiction(label: Label) -> Rejection | None:
    if len(label.id.encode()) > MAX_ID_BYTES:
        return Rejection(
            "wrong_type", f"the id has {len(label.id.encode())} bytes; expected at most {MAX_ID_BYTES}"
        )
    if label.label in ("churned", "stayed") and label.subject != "user":
        return Rejection(
            "contradictory_label", f"an {label.subject} cannot be {label.label}; only a user can"
        )
    if label.subject == "user" and label.id != label.user_id:
        return Rejection("contradictory_label", "a label about a user has another id than its user_id")
    return None


def _bad_user_id(user_id: str) -> Rejection | None:
    size = len(user_id.encode())
    if 0 < size <= MAX_USER_ID_BYTES and not user_id.startswith("\0"):
        return None
    expected = f"expected 1 to {MAX_USER_ID_BYTES} bytes, the first not U+0000"
    return Rejection("bad_user_id", f"the user_id has {size} bytes or starts with U+0000; {expected}")


# ------------------------------------------------------------------ notes


def packed_orders(orders: Sequence[Order]) -> list[bytes]:
    """Values that tell the join of orders, each at most 256."""
    return [_pack(orders[start : start + _MOST_ORDERS]) for start in range(0, len(orders), _MOST_ORDERS)]


def seen_note(user: str, time_ms: int) -> bytes:
    """The value that tells the join of a user's first event."""
    return _encode(Note("seen", user, time_ms))


def notes_of_alert(alert: Alert) -> list[tuple[bytes, bytes]]:
    """Keys and values that tell the join of an alert: one for each user whom it is about.

    Flagged are the subject itself (a user, order or event), the members of a group as users, and the orders or events
    of the evidence. Ids longer than a label may have are left out. An alert that only says that a user came back flags
    nobody.
    """
    if alert.kind == "churn.returned":
        return []
    flagged: dict[str, dict[tuple[SubjectType, str], None]] = {}
    for member in alert.members:
        flagged.setdefault(member, {})["user", member] = None
    if alert.subject_type == "user":
        flagged.setdefault(alert.subject, {})["user", alert.subject] = None
    for each in () if is_churn(alert.kind) else alert.evidence:
        for subject_type in ("order", "event"):
            user, subject = each.get("user_id"), each.get(f"{subject_type}_id")
            if (
                isinstance(user, str)
                and isinstance(subject, str)
                and 0 < len(subject.encode()) <= MAX_ID_BYTES
            ):
                flagged.setdefault(user, {})[subject_type, subject] = None
    notes = []
    for user, subjects in flagged.items():
        note = Note("alert", user, alert.event_time_ms, list(subjects), alert.kind, alert.score)
        notes.append((user.encode(), _encode(note)))
    return notes


def is_churn(kind: str) -> bool:
    """Whether a detector is about churn, whose labels are churned and stayed instead of fraud and genuine."""
    return kind.partition(".")[0] == "churn"
