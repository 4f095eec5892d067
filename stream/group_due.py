"""Which rows of the second stage are to be looked at, and when; made of the rows when a partition opens. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

__all__ = ["DueRows"]

#: Rows of 2^22 ms, 70 minutes, lie together unsorted: each record moves a row or two, and one list of all rows in
#: their order would be shifted by half its length every time.
_SPAN_BITS: Final = 22


class DueRows:
    """Keys of rows by the watermark at which each is due.

    Args:
        rows: keys, and when each is due: ms, 0 for never.
    """

    def __init__(self, rows: Iterable[tuple[bytes, int]] = ()) -> None:
        self._spans: dict[int, dict[bytes, int]] = {}
        for key, due_ms in rows:
            self.move(key, 0, due_ms)

    def move(self, key: bytes, before_ms: int, due_ms: int) -> None:
        """A row that was due at one time is due at another; 0 is never."""
        if before_ms == due_ms:
            return
        if before_ms:
            span = self._spans[before_ms >> _SPAN_BITS]
            del span[key]
            if not span:
                del self._spans[before_ms >> _SPAN_BITS]
        if due_ms:
            self._spans.setdefault(due_ms >> _SPAN_BITS, {})[key] = due_ms

    def until(self, horizon_ms: int, most: int) -> list[bytes]:
        """Keys of the rows that are due by then, the earliest ``most``, in their order; at one time by key."""
        found: list[bytes] = []
        for number in sorted(number for number in self._spans if number <= horizon_ms >> _SPAN_BITS):
            span = self._spans[number]
            found += [key for _, key in sorted((at, key) for key, at in span.items() if at <= horizon_ms)]
            if len(found) >= most:
                break
        return found[:most]
