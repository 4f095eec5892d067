"""Dead letters: rejected records with their bytes unchanged and the reason beside them.

Header names are those that Kafka Streams writes, so that its tools find them; ``clicks.reason`` is our own.

A dead letter always fits its topic. A record may be larger than what its producer sent, because brokers limit the
compressed size: such a one is cut, and ``clicks.cut`` says how large its parts were.

Source: KIP-1034, "Dead letter queue in Kafka Streams".
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

__all__ = [
    "CUT_HEADER",
    "MAX_DEAD_LETTER_BYTES",
    "REASON_HEADER",
    "REPLAYED_HEADER",
    "DeadLetter",
    "Headers",
    "dead_letter",
    "parse",
]

REASON_HEADER: Final = "clicks.reason"
#: Marks a record sent again from the dead letters: it is never too late.
REPLAYED_HEADER: Final = "clicks.replayed"
#: Sizes of the original's parts, in a letter that does not hold all of it.
CUT_HEADER: Final = "clicks.cut"
MAX_MESSAGE_BYTES: Final = 4096
#: What the topic takes: a record of the source as large as Kafka's default allows, and 64 KiB.
MAX_DEAD_LETTER_BYTES: Final = 1_048_588 + (64 << 10)
# Of these 64 KiB, half are for our headers; the rest is what the original's framing is overestimated by.
_MAX_ORIGINAL_BYTES = MAX_DEAD_LETTER_BYTES - (32 << 10)
_FRAMING_BYTES = 6  # of a header, at most: two lengths

_EXCEPTION = "__streams.errors.exception"
_MESSAGE = "__streams.errors.message"
_TOPIC = "__streams.errors.topic"
_PARTITION = "__streams.errors.partition"
_OFFSET = "__streams.errors.offset"
_OWN_NAMES = frozenset(
    {_EXCEPTION, _MESSAGE, _TOPIC, _PARTITION, _OFFSET, REASON_HEADER, REPLAYED_HEADER, CUT_HEADER}
)

Headers = list[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Where a rejected record stood and why it was rejected; ``headers`` are those that it had there.

    ``cut`` is None when the letter holds the original whole, else how many bytes of key and value and how many headers
    the original had.
    """

    topic: str
    partition: int
    offset: int
    reason: str
    message: str
    headers: tuple[tuple[str, bytes | None], ...] = ()
    cut: dict[str, int] | None = None


def dead_letter(
    topic: str,
    partition: int,
    offset: int,
    key: bytes | None,
    value: bytes | None,
    reason: str,
    message: str,
    headers: Iterable[tuple[str, bytes | None]] | None = None,
) -> tuple[bytes | None, bytes | None, Headers]:
    """The record of the dead letter topic for a rejected record of ``topic``.

    Args:
        topic: where the rejected record stands.
        partition: of that topic.
        offset: in that partition.
        key: of the record, kept as it is unless it is too large for the topic.
        value: of the record, likewise.
        reason: of the ``stream.events.Rejection``.
        message: of the ``stream.events.Rejection``.
        headers: of the record; kept in order, but for those with our names.

    Returns:
        Key, value and headers of the dead letter.
    """
    kept = [(name, content) for name, content in headers or () if name not in _OWN_NAMES]
    if kept or len(key or b"") + len(value or b"") > _MAX_ORIGINAL_BYTES:
        key, value, kept = _cut(key, value, kept)
    if not message.isprintable():
        # It may quote line breaks of the input, or half a surrogate pair, which UTF-8 cannot hold.
        shown = (one if one.isprintable() else ascii(one)[1:-1] for one in message[:MAX_MESSAGE_BYTES])
        message = "".join(shown)
    text = message.encode()
    if len(text) > MAX_MESSAGE_BYTES:
        text = text[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore").encode()
    return (
        key,
        value,
        [
            *kept,
            (_EXCEPTION, b"stream.events.Rejection"),
            (_MESSAGE, text),
            (_TOPIC, topic.encode()),
            (_PARTITION, b"%d" % partition),
            (_OFFSET, b"%d" % offset),
            (REASON_HEADER, reason.encode()),
        ],
    )


def _cut(
    key: bytes | None, value: bytes | None, headers: Headers
) -> tuple[bytes | None, bytes | None, Headers]:
    """What fits: the key first, then the value, then the headers, all or none of them."""
    framed = sum(len(name.encode()) + len(content or b"") + _FRAMING_BYTES for name, content in headers)
    if len(key or b"") + len(value or b"") + framed <= _MAX_ORIGINAL_BYTES:
        return key, value, headers
    whole = json.dumps({"key": len(key or b""), "value": len(value or b""), "headers": len(headers)})
    room = _MAX_ORIGINAL_BYTES
    if key is not None:
        key = key[:room]
        room -= len(key)
    if value is not None:
        value = value[:room]
        room -= len(value)
    return key, value, [*(headers if framed <= room else ()), (CUT_HEADER, whole.encode())]


def parse(headers: Iterable[tuple[str, bytes | None]] | None) -> DeadLetter | None:
    """Read the headers of a dead letter; None when they are not as ``dead_letter`` writes them."""
    own: dict[str, str] = {}
    kept = []
    try:
        for name, content in headers or ():
            if name not in _OWN_NAMES:
                kept.append((name, content))
            elif content is not None:
                own[name] = content.decode()
        return DeadLetter(
            topic=own[_TOPIC],
            partition=int(own[_PARTITION]),
            offset=int(own[_OFFSET]),
            reason=own[REASON_HEADER],
            message=own[_MESSAGE],
            headers=tuple(kept),
            cut=json.loads(own[CUT_HEADER]) if CUT_HEADER in own else None,
        )
    except (KeyError, ValueError):
        return None
