"""Ids, times and spans as a person reads them; whatever a producer wrote, it stays one line of plain text."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from stream.errors import ConfigurationError

__all__ = ["FRESH_START", "cut", "moment", "moment_of", "plain", "span"]

#: How an operator forgets the rows of users and begins anew; what other stages say instead: stream/topics.py.
FRESH_START: Final = "Run `foreclick state reset --to earliest` or `--to latest`."

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def plain(text: str) -> str:
    """The text with everything that a terminal would obey, hide or turn around written as an escape.

    >>> plain("u1\\x1b[31m\\u202e")
    'u1\\\\x1b[31m\\\\u202e'
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def cut(text: str, length: int) -> str:
    """``plain`` text of at most so many characters; what was longer ends with an ellipsis."""
    shown = plain(text[: length + 1])
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def moment(time_ms: int) -> str:
    """Milliseconds since 1970 as UTC; the number where no calendar reaches."""
    try:
        return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return f"{time_ms} ms"


def span(seconds: float) -> str:
    """A stretch of time in the largest unit of which it has two, such as ``3 days`` or ``90 s``."""
    for unit, length_s in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def moment_of(text: str, now_ms: int) -> int:
    """A moment as a flag names it, in milliseconds since 1970.

    Args:
        text: a span before now (``90s``, ``15m``, ``2h``, ``7d``), or an ISO date or time; without a zone it is UTC.
        now_ms: the clock.

    Raises:
        ConfigurationError: it is neither.
    """
    if found := re.fullmatch(r"(\d{1,9})([smhd])", text):
        return now_ms - int(found[1]) * _UNITS_S[found[2]] * 1000
    try:
        at = datetime.fromisoformat(text)
        return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise ConfigurationError(
            f"{plain(text)!r} is no moment. Write a span before now (15m, 2h, 7d) or a time (2024-05-01T12:00)."
        ) from None
