"""The order of timers: by time, and at one time by key."""

from __future__ import annotations

from typing import Final, NamedTuple


class Moment(NamedTuple):
    """A place in the order of timers.

    Attributes:
        time_ms: event time, milliseconds since 1970.
        key: of the row that the timer is of; the empty one comes first.
    """

    time_ms: int = 0
    key: bytes = b""

    def ends_ms(self, key: bytes) -> int:
        """Of a key: its timers of earlier times than this come before the moment."""
        return self.time_ms + (key < self.key)


#: No timer is earlier.
FIRST_MOMENT: Final = Moment()
