"""The canonical event, and what becomes of bytes that are not one.

A record of the input topic becomes one of three values, never an exception:

    Event        canonical JSON, or a shape that an adapter recognises
    Rejection    a reason and a message; the record goes to the dead letters unchanged
    None         a tombstone: the user wants to be forgotten

Nearly all records are canonical, so they are decoded by one typed decoder in one loop. Only a record
that fails there is looked at again, slowly, to find out why: a message names the JSON path.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Annotated, Any, Final

from msgspec import Meta, Struct, ValidationError, convert
from msgspec.json import Decoder

__all__ = [
    "MAX_USER_ID_BYTES",
    "MAX_VALUE_BYTES",
    "REASONS",
    "Event",
    "Line",
    "Rejection",
    "decode_events",
    "unknown_fields",
]

MAX_VALUE_BYTES: Final = 64 * 1024
MAX_USER_ID_BYTES: Final = 512

#: Why a record is no event; ``late`` and ``future`` are found by the fold, the others here.
REASONS: Final = (
    "undecodable",
    "wrong_type",
    "missing_field",
    "too_large",
    "not_finite",
    "missing_key",
    "key_mismatch",
    "bad_user_id",
    "late",
    "future",
)

# Doubles, and so JavaScript, hold integers exactly below 2**53; beyond, the number is already another one.
EventTimeMs = Annotated[int, Meta(gt=0, lt=2**53)]
DurationMs = Annotated[int, Meta(gt=-(2**53), lt=2**53)]


class Line(Struct, kw_only=True, gc=False):
    """One line of an order. ``price`` is of one piece, in the event's currency."""

    item_id: str | None = None
    category_id: str | None = None
    price: float | None = None
    quantity: float | None = None


class Event(Struct, kw_only=True, gc=False):
    """What one user did at one moment (milliseconds since 1970, UTC).

    ``action`` is as the producer wrote it: the model's vocabulary is applied later. All numbers are finite.
    """

    user_id: str
    event_time_ms: EventTimeMs
    action: str
    event_id: str | None = None
    session_id: str | None = None
    item_id: str | None = None
    category_id: str | None = None
    shop_id: str | None = None
    order_id: str | None = None
    price: float | None = None
    quantity: float | None = None
    currency: str | None = None
    dwell_ms: DurationMs | None = None
    device_id: str | None = None
    ip: str | None = None
    lines: list[Line] | None = None
    extra: dict[str, float] | None = None


class Rejection(Struct, frozen=True):
    """Why a record is no event: ``reason`` is one of `REASONS`, ``message`` names place and expectation."""

    reason: str
    message: str


#: Gives a canonical object for an object of a foreign shape, or None when the shape is not its own.
Adapt = Callable[[dict[str, Any]], dict[str, Any] | None]

_decode = Decoder(Event).decode
_decode_any = Decoder().decode
# What only a text with a number beyond all doubles can hold, besides many that do not: the rest need no second look.
# Searching for substrings of this shape of a text is ten times faster than for patterns of the text.
_SHAPE = bytes.maketrans(b"123456789E", b"000000000e")
_INFINITE_SHAPES = (b"NaN", b"Infinity", b"e0", b"e+0", b"0" * 300)
_REQUIRED = ("user_id", "event_time_ms", "action")
_KNOWN = frozenset(Event.__struct_fields__)


def decode_events(
    keys: Sequence[bytes | None], values: Sequence[bytes | None], adapt: Adapt | None = None
) -> list[Event | Rejection | None]:
    """Decode the records of a chunk; entry i of the answer belongs to record i.

    Args:
        keys: the records' keys; each must be its event's user_id in UTF-8.
        values: the records' values; None is a tombstone.
        adapt: tried on JSON objects that are no canonical event (``stream.formats.adapt_object``).

    Returns:
        For each record an Event, a Rejection, or None for a tombstone with a valid key. No input raises.
    """
    decoded: list[Event | Rejection | None] = []
    append = decoded.append
    for key, value in zip(keys, values, strict=True):
        try:
            event = _decode(value)  # type: ignore[arg-type]  # None raises, and is judged below
            # From b"\x01" on: all keys but the empty one and those that start with U+0000.
            if (
                event.user_id.encode() == key
                and key >= b"\x01"
                and len(key) <= MAX_USER_ID_BYTES
                and len(value) <= MAX_VALUE_BYTES  # type: ignore[arg-type]
            ):
                append(event)
                continue
        except (TypeError, ValueError, RecursionError):
            pass
        append(_judge(key, value, adapt))
    return decoded


def unknown_fields(value: bytes) -> set[str]:
    """Names in a JSON object that the canonical event does not have; empty when it is none, or too large."""
    if len(value) > MAX_VALUE_BYTES:
        return set()
    try:
        document = _decode_any(value)
    except (ValueError, RecursionError):
        return set()
    return set(document) - _KNOWN if isinstance(document, dict) else set()


def _judge(key: bytes | None, value: bytes | None, adapt: Adapt | None) -> Event | Rejection | None:
    """Decode one record, slowly, with the reason when it is no event."""
    if key is None:
        return Rejection("missing_key", "the record has no key; expected the user_id in UTF-8")
    if value is None:
        try:
            return _bad_user_id(key.decode())
        except UnicodeDecodeError as error:
            return Rejection("bad_user_id", f"the key is not UTF-8: {error.reason} at byte {error.start}")
    if len(value) > MAX_VALUE_BYTES:
        return Rejection("too_large", f"the value has {len(value)} bytes; expected at most {MAX_VALUE_BYTES}")
    event = _event_of(value, adapt)
    if isinstance(event, Rejection):
        return event
    rejection = _bad_user_id(event.user_id)
    if rejection is not None:
        return rejection
    if event.user_id.encode() != key:
        return Rejection(
            "key_mismatch", f"the key is {_short(key)}; expected the user_id {_short(event.user_id)} in UTF-8"
        )
    return event


def _event_of(value: bytes, adapt: Adapt | None) -> Event | Rejection:
    try:
        return _decode(value)
    except (ValueError, RecursionError) as error:
        message = str(error)
    try:
        document = _decode_any(value)
    except (ValueError, RecursionError) as error:
        # Python's own json writes NaN and Infinity, which are no JSON: say what is wrong, not that all is.
        reason = "not_finite" if _holds_not_finite(value) else "undecodable"
        return Rejection(reason, str(error))
    if isinstance(document, dict):
        if adapt is not None:
            adapted = _adapted(document, adapt)
            if adapted is not None:
                return adapted
        missing = _missing(document)
        if missing is not None:
            return missing
    return Rejection("not_finite" if _holds_not_finite(value) else "wrong_type", message)


def _adapted(document: dict[str, Any], adapt: Adapt) -> Event | Rejection | None:
    from stream.formats import Rejected  # here, because the adapters may import this module

    try:
        canonical = adapt(document)
    except Rejected as error:
        return Rejection(error.reason, error.message)
    if canonical is None:
        return None
    try:
        event = convert(canonical, Event)
    except ValidationError as error:
        return _missing(canonical) or Rejection("wrong_type", str(error))
    numbers = [event.price, event.quantity, *(event.extra or {}).values()]
    for line in event.lines or ():
        numbers += (line.price, line.quantity)
    # The typed decoder refuses 1e999 itself; an adapter may have made infinity of a string.
    if not all(number is None or isfinite(number) for number in numbers):
        return Rejection("not_finite", "a number is NaN or infinite; expected finite numbers")
    return event


def _missing(document: dict[str, Any]) -> Rejection | None:
    names = [name for name in _REQUIRED if document.get(name) is None]
    if not names:
        return None
    return Rejection("missing_field", "the object lacks " + ", ".join(f"`{name}`" for name in names))


def _bad_user_id(user_id: str) -> Rejection | None:
    size = len(user_id.encode())
    if user_id.startswith("\0"):
        found = "starts with U+0000"
    elif size == 0:
        found = "is empty"
    elif size > MAX_USER_ID_BYTES:
        found = f"has {size} bytes"
    else:
        return None
    expected = f"expected 1 to {MAX_USER_ID_BYTES} bytes, the first not U+0000"
    return Rejection("bad_user_id", f"the user_id {found}; {expected}")


def _short(name: bytes | str) -> str:
    shown = repr(name)
    return shown if len(shown) <= 80 else shown[:77] + "..."


class _NotFiniteError(Exception):
    """Found while reading leniently; never leaves this module."""


def _number(literal: str) -> float:
    number = float(literal)
    if not isfinite(number):
        raise _NotFiniteError
    return number


def _holds_not_finite(value: bytes) -> bool:
    """Whether the text is JSON but for a number that no double can hold, NaN and Infinity included."""
    shape = value.translate(_SHAPE)
    if not any(part in shape for part in _INFINITE_SHAPES):
        return False
    try:
        # Integers too: one of 400 digits is no float, and Python refuses to read one of 5,000.
        json.loads(value.decode(), parse_float=_number, parse_int=_number, parse_constant=_number)
    except _NotFiniteError:
        return True
    except (ValueError, RecursionError):
        return False
    return False
