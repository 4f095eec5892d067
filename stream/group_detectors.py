"""What a detector of coordination is: a pure fold of one group's events into one row, and the alerts that it gives.

A group is what several users have in common: a shop, an item, a device (or the address, where events name no device).
The second stage (stream/groups_stage.py) keeps a row for each detector and group, and hands it in with the group's
new events:

    row (bytes, None at first) ──┐
    events, as they arrived   ───┼──► fold ──► row to keep (None: forget), alerts, when to look again
    watermark                 ───┘    └─► meetings of its users, which come back as records of their own

What a detector may rely on:

- Events come in the sequence of arrival, which is not that of event time. None is older than the watermark before this
  call by more than ``late_limit_ms``; older ones are counted and left out. A repeated record is never handed in twice.
- ``watermark_ms`` is the event time that every partition of the source has reached, after these events; an event may
  be ahead of it. What happened up to ``watermark_ms - late_limit_ms`` is complete: judge then, so that the verdict is
  the same however the events were cut into calls.
- At ``due_ms`` it is called again, with no events if none came, so a verdict needs no later event of its group.

What it may not do: keep anything but its row; look at a clock; let the row grow beyond ``max_row_bytes``. What finds no
room leaves, and later alerts say ``approximate``. The same finding again is sent once in a cool-down and counted in
``held_back``; that is the stage's business (`hold_back`), not the detector's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, Protocol
from zlib import crc32

import msgspec

from stream.alerts import Alert

__all__ = [
    "DEVICE",
    "ITEM",
    "MAX_ROW_BYTES",
    "MEETINGS",
    "SHOP",
    "TOGETHER_MS",
    "USER",
    "Fold",
    "Group",
    "GroupDetector",
    "GroupEvent",
    "Meeting",
    "Partner",
    "Said",
    "hold_back",
]

SHOP: Final = "shop"
ITEM: Final = "item"
DEVICE: Final = "device"
USER: Final = "user"
#: A user's meetings with others, as detectors of other groups tell them.
MEETINGS: Final = "met"
#: Who orders the same within so long has met, and meets anew only after as long again.
TOGETHER_MS: Final = 2 * 3_600_000

#: A row of the stage; a longer one is kept in several pieces of this size.
MAX_ROW_BYTES: Final = 16 << 10
_SAID_MEMBERS: Final = 512


class Group(msgspec.Struct, frozen=True, gc=False):
    """Which group: ``type`` is `SHOP`, `ITEM`, `DEVICE` or `USER`, and the subject type of its alerts."""

    type: str
    id: str

    @property
    def key(self) -> bytes:
        """Of its records and rows."""
        return f"{self.type}:{self.id}".encode()


class GroupEvent(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What one user did in a group.

    Attributes:
        event_time_ms: milliseconds since 1970, UTC.
        user_id: who.
        action: as the producer wrote it.
        partition, offset: of the record in the input topic.
        event_id: of the event, if it has one; ``order_id`` and the others likewise.
        gap_ms: since the user's event before, -1 for the first.
        session_position: of the event in its session, from 1.
    """

    event_time_ms: int
    user_id: str
    action: str
    partition: int
    offset: int
    event_id: str | None = None
    order_id: str | None = None
    item_id: str | None = None
    shop_id: str | None = None
    gap_ms: int = -1
    session_position: int = 1


class Partner(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Somebody who did the same, and where that stands in the input topic."""

    user_id: str
    event_time_ms: int
    partition: int
    offset: int


class Meeting(GroupEvent, array_like=True, frozen=True, gc=False):
    """One user's event beside those of others, told by the detector of a group that they have in common.

    It is read like any event of a group, but it is never late and moves no watermark: what it is made of was on time.
    A detector that takes meetings tells none, so that what is told comes to an end.
    """

    partners: list[Partner] = []


class Fold(msgspec.Struct, frozen=True):
    """What a detector makes of a row and events.

    Attributes:
        row: to keep; None when there is nothing to remember.
        alerts: findings, each with a deterministic id made of what it is about.
        due_ms: the watermark at which the row is to be looked at again without events; None for never.
        meetings: to be told to the users whom they name, in the same transaction.
    """

    row: bytes | None
    alerts: list[Alert]
    due_ms: int | None = None
    meetings: Sequence[Meeting] = ()


class GroupDetector(Protocol):
    """One detector; it holds its limits and nothing else.

    Attributes:
        kind: of its alerts, and of its rows; the stage keeps them apart by it.
        group_types: which groups it wants to see.
        max_row_bytes: what a row may take, at most 128 KiB; beyond 16 KiB it is kept in pieces.
    """

    @property
    def kind(self) -> str: ...

    @property
    def group_types(self) -> frozenset[str]: ...

    @property
    def max_row_bytes(self) -> int: ...

    def fold(self, group: Group, row: bytes | None, events: Sequence[GroupEvent], watermark_ms: int) -> Fold:
        """Take the group's new events, and judge what the watermark has completed.

        Args:
            group: whose row and events these are.
            row: as this detector gave it last, None for a group that it does not know.
            events: new ones, none when only time has passed.
            watermark_ms: after these events.

        Raises:
            DamagedRow: the row is of another build, or damaged.
        """
        ...

    def erase(self, row: bytes, users: Collection[str]) -> bytes | None:
        """The row without these users, whom tombstones have named: neither ids nor what they did; None for no row."""
        ...


class Said(msgspec.Struct, array_like=True, gc=False):
    """What a detector's last alert on a group said.

    Attributes:
        alert_id: of it.
        event_time_ms: of it.
        members: hashes (crc32) of everybody whom alerts in this cool-down named, at most 512.
        held_back: findings since then that said nothing new.
    """

    alert_id: str
    event_time_ms: int
    members: list[int] = []
    held_back: int = 0


def hold_back(said: Said | None, found: Alert, cool_down_ms: int) -> tuple[Said, Alert | None]:
    """Send a finding, or count it when the last alert on its subject said as much within the cool-down.

    A finding says more when it names somebody new. What is sent supersedes the alert before it.

    Args:
        said: of this detector and subject; None before the first alert.
        found: as the detector gave it.
        cool_down_ms: event time in which one alert is enough.

    Returns:
        What is said now, and the alert to send, if any.
    """
    members = {crc32(member.encode()) for member in found.members}
    if said is not None:
        recent = found.event_time_ms < said.event_time_ms + cool_down_ms
        if recent and members <= set(said.members):
            return Said(said.alert_id, said.event_time_ms, said.members, said.held_back + 1), None
        if recent:
            members |= set(said.members)
        found = msgspec.structs.replace(
            found,
            supersedes=found.supersedes or said.alert_id,
            held_back=found.held_back + said.held_back,
        )
    return Said(found.id, found.event_time_ms, sorted(members)[:_SAID_MEMBERS]), found
