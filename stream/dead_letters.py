"""Dead letters: rejected records with their bytes unchanged and the reason beside them.

Header names are those that Kafka Streams writes, so that its tools find them; ``clicks.reason`` is our own.

Source: KIP-1034, "Dead letter queue in Kafka Streams".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

__all__ = ["REASON_HEADER", "REPLAYED_HEADER", "DeadLetter", "Headers", "dead_letter", "parse"]

REASON_HEADER: Final = "clicks.reason"
#: Marks a record sent again from the dead letters: it is never too late.
REPLAYED_HEADER: Final = "clicks.replayed"
#: Headers must fit in the 64 KiB that the dead letter topic takes beyond the source's limit.
MAX_MESSAGE_BYTES: Final = 4096

_EXCEPTION = "__streams.errors.exception"
_MESSAGE = "__streams.errors.message"
_TOPIC = "__streams.errors.topic"
_PARTITION = "__streams.errors.partition"
_OFFSET = "__streams.errors.offset"
_OWN_NAMES = frozenset({_EXCEPTION, _MESSAGE, _TOPIC, _PARTITION, _OFFSET, REASON_HEADER, REPLAYED_HEADER})

Headers = list[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Where a rejected record stood and why it was rejected; ``headers`` are those that it had there."""

    topic: str
    partition: int
    offset: int
    reason: str
    message: str
    headers: tuple[tuple[str, bytes | None], ...] = ()


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
        key: of the record, kept as it is.
        value: of the record, kept as it is.
        reason: of the ``stream.events.Rejection``.
        message: of the ``stream.events.Rejection``.
        headers: of the record; kept in order, but for those with our names.

    Returns:
        Key, value and headers of the dead letter.
    """
    kept = [(name, content) for name, content in headers or () if name not in _OWN_NAMES]
    # A message may quote half a surrogate pair of the input, which UTF-8 cannot hold.
    text = message.encode("utf-8", "backslashreplace")
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
        )
    except (KeyError, ValueError):
        return None
