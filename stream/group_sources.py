"""How far every partition of the input has come, as the second stage hears of it."""

from __future__ import annotations

import struct

from stream.errors import BrokenInvariant

__all__ = ["Sources"]

_TIME_BYTES = 8


class Sources:
    """How far every partition of the source has come, in event time.

    Args:
        count: of partitions.
        raw: as the reserved row holds it; None at the very beginning.

    Attributes:
        awakenings: how often one of them spoke again; then all are waited for, until it is known who is quiet still.
    """

    def __init__(self, count: int, raw: bytes | None = None) -> None:
        held = struct.unpack(f"<{len(raw) // _TIME_BYTES}q", raw) if raw else ()
        self._reached_ms = [*held, *[0] * (count - len(held))]
        self._quiet: frozenset[int] = frozenset()
        self._watermark_ms: int | None = None  # as known; asked for at nearly every record
        self.awakenings = 0

    @property
    def quiet(self) -> frozenset[int]:
        """Partitions from which nothing more comes for now (stream/engine/quiet.py): nobody waits for them."""
        return self._quiet

    @quiet.setter
    def quiet(self, partitions: frozenset[int]) -> None:
        self._quiet, self._watermark_ms = partitions, None

    @property
    def watermark_ms(self) -> int:
        """What all have reached that are not quiet; what the furthest has reached when all are. It may fall."""
        if self._watermark_ms is None:
            awake = [at for number, at in enumerate(self._reached_ms) if number not in self._quiet]
            self._watermark_ms = min(awake) if awake else self.latest_ms
        return self._watermark_ms

    @property
    def latest_ms(self) -> int:
        """What the furthest partition has reached."""
        return max(self._reached_ms)

    @property
    def silent(self) -> bool:
        """Whether all are quiet."""
        return len(self.quiet) == len(self._reached_ms)

    def advance(self, partition: int, event_time_ms: int) -> bool:
        """Take note of an event time; whether it is news."""
        if partition >= len(self._reached_ms):
            raise BrokenInvariant(
                f"A record of groups names partition {partition} of a source that has {len(self._reached_ms)}."
            )
        if partition in self.quiet:
            # Where one begins to speak after a pause, the others may be about to: a replay begins everywhere at once.
            self.quiet = frozenset()
            self.awakenings += 1
        before_ms = self._reached_ms[partition]
        if event_time_ms <= before_ms:
            return False
        self._reached_ms[partition] = event_time_ms
        if before_ms == self._watermark_ms:  # who is ahead of the slowest moves nothing
            self._watermark_ms = None
        return True

    def row(self) -> bytes:
        """For the changelog."""
        return struct.pack(f"<{len(self._reached_ms)}q", *self._reached_ms)
