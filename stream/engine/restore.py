"""Filling the local store from the changelog: step 5 of owning a partition.

The changelog is read ``read_committed`` from the local position + 1 until the *position* reaches the last stable
offset taken at the start: transaction markers and aborted records occupy offsets that are never delivered, so
counting records would wait for ever. Each step is one WriteBatch of rows and position.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from stream.engine.store import Store
from stream.errors import BrokenInvariant
from stream.stage import Row


class Changelog(Protocol):
    """The committed rows of one partition, in order."""

    changelog_id: bytes
    tombstone_retention_ms: int
    #: From where on the takeover aborted what a broker had forgotten (unfinished.py); None for nothing.
    aborted_from: int | None

    async def changelog_bounds(self) -> tuple[int, int]:
        """First offset and last stable offset."""

    def changelog(self, start: int, end: int) -> AsyncIterator[tuple[list[Row], int]]:
        """Committed rows from ``start``, and the position after them, until the position reaches ``end``."""


def reason_to_wipe(store: Store, log: Changelog, bounds: tuple[int, int], now_ms: int) -> str | None:
    """Why the local rows cannot be continued from, or None."""
    position = store.position()
    if position is None:
        return None
    beginning, end = bounds
    if store.changelog_id() != log.changelog_id:
        return "they belong to another changelog topic"
    if position + 1 > end:
        return f"their position {position} is beyond the changelog's last stable offset {end}"
    if log.aborted_from is not None and position >= log.aborted_from:
        return f"they may hold a transaction that the broker forgot and that is aborted, from {log.aborted_from} on"
    if position + 1 < beginning:
        return f"their position {position} is before the changelog's beginning {beginning}"
    if now_ms - store.written_ms() > log.tombstone_retention_ms:
        # Tombstones older than delete.retention.ms may be compacted away: continuing would bring erased users back.
        return "they are older than the changelog's delete.retention.ms"
    return None


async def restore(
    store: Store, log: Changelog, now_ms: int, probe: Callable[[str], None]
) -> tuple[int, str | None]:
    """Bring the store to the changelog's last stable offset.

    Returns:
        Records applied, and why the local rows were wiped first (None: they were continued from).

    Raises:
        BrokenInvariant: the changelog went backwards.
    """
    bounds = await log.changelog_bounds()
    wiped = reason_to_wipe(store, log, bounds, now_ms)
    if wiped is not None:
        store.wipe()
    beginning, end = bounds
    position = store.position()
    at = beginning if position is None else position + 1
    applied = 0
    async for rows, next_position in log.changelog(at, end):
        if next_position < at:
            raise BrokenInvariant(f"The changelog went backwards, from {at} to {next_position}.")
        store.apply(rows, next_position - 1, log.changelog_id, now_ms)
        applied += len(rows)
        at = next_position
        probe("restoring")
    return applied, wiped
