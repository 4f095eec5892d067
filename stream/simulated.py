"""Simulated traffic as the records that a replay would produce."""

from __future__ import annotations

import msgspec

from models.simulator.dirt import soil
from models.simulator.simulate import simulate
from stream.files import FileRecord

__all__ = ["simulated_records", "soiled_records"]


def simulated_records(users: int, events: int, seed: int) -> list[FileRecord]:
    """Events of ``models.simulator`` in time order; the same arguments give the same bytes."""
    encode = msgspec.json.Encoder().encode
    return [
        FileRecord(line, event.user_id.encode(), encode(event), event.event_time_ms)
        for line, event in enumerate(simulate(users, events, seed).events, 1)
    ]


def soiled_records(users: int, events: int, seed: int, share: float = 0.02) -> list[FileRecord]:
    """The same with a share of dirt among them (``models.simulator.dirt``), so that every rule of cleaning is seen.

    Their order is part of the dirt: sorted by time again, no event would be late.
    """
    return soil(simulated_records(users, events, seed), share, seed).records
