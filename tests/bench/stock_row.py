"""One user's row and one event, in plain Python: the fold as the stock agent does it, event by event.

The bytes are those of ``stream.rows`` (layout version 2), so that both sides keep, write and restore the same content;
the code is written for one row at a time: one struct for the numbers, slices of bytes for the windows.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

RING = 16
WINDOW = 32
SESSION_GAP_MS = 1_800_000
LATE_LIMIT_MS = 1_800_000
NEVER_S = 0xFFFFFFFF

_VERSION = 2
_ENTRY_BYTES = 13
_u4 = struct.Struct("<I").pack
_f2 = struct.Struct("<e").pack
CODES = struct.Struct(f"<{WINDOW}I")


class RowFormat:
    """Where the fields of a row stand; ``actions`` includes ``other``."""

    def __init__(self, actions: int, state_width: int):
        self.actions, self.state_width = actions, state_width
        self.bytes = struct.Struct(
            f"<BBBBHq8sqqqIII{actions}H{actions}I{actions}I{RING}QBBQ{2 * state_width}s"
            f"{WINDOW}s{4 * WINDOW}s{4 * WINDOW}s{2 * WINDOW}s{2 * WINDOW}sqB"
        )
        self.header = (_VERSION, actions, WINDOW, _ENTRY_BYTES, state_width)

    def new(self) -> UserRow:
        """The row of a user without events."""
        none = [0] * self.actions
        return UserRow(
            *(-1, bytes(8), 0, 0, 0, 0, 0, 0),
            *(none, none.copy(), none.copy()),
            *([0] * RING, 0, 0, 0, bytes(2 * self.state_width)),
            *(
                bytes(WINDOW),
                bytes(4 * WINDOW),
                bytes(4 * WINDOW),
                bytes(2 * WINDOW),
                bytes(2 * WINDOW),
                0,
                0,
            ),
        )

    def unpack(self, raw: bytes) -> UserRow:
        """A stored row."""
        fields = self.bytes.unpack(raw)
        a, b, c = 13 + self.actions, 13 + 2 * self.actions, 13 + 3 * self.actions
        return UserRow(
            *fields[5:13],
            *(list(fields[13:a]), list(fields[a:b]), list(fields[b:c])),
            list(fields[c : c + RING]),
            *fields[c + RING :],
        )

    def pack(self, row: UserRow) -> bytes:
        """What is stored."""
        return self.bytes.pack(
            *self.header,
            *(row.position, row.epoch, row.first_ms, row.last_ms, row.session_start_ms),
            *(row.session_index, row.session_events, row.life_events),
            *row.action_session,
            *row.action_life,
            *row.action_last_s,
            *row.ring,
            *(row.ring_next, row.window_count, row.fingerprint, row.state),
            *(row.window_actions, row.window_categories, row.window_items),
            *(row.window_log_gaps, row.window_log_prices, row.deadline_ms, row.said),
        )


@dataclass(slots=True)
class UserRow:
    """A row as Python values; windows and state stay bytes, newest last."""

    position: int
    epoch: bytes
    first_ms: int
    last_ms: int
    session_start_ms: int
    session_index: int
    session_events: int
    life_events: int
    action_session: list[int]
    action_life: list[int]
    action_last_s: list[int]
    ring: list[int]
    ring_next: int
    window_count: int
    fingerprint: int
    state: bytes
    window_actions: bytes
    window_categories: bytes
    window_items: bytes
    window_log_gaps: bytes
    window_log_prices: bytes
    deadline_ms: int
    said: int


@dataclass(slots=True)
class Seen:
    """What the model reads of one event beside the row after it."""

    action: int
    category: int
    item: int
    event_time_ms: int
    gap_ms: int
    log_price: float
    new_session: bool
    repeat_item: bool
    repeat_category: bool
    ages_s: Sequence[int]


def log_price_of(price: float | None) -> float:
    """log(1 + price) within 20; NaN without a price."""
    if price is None:
        return math.nan
    return max(-20.0, min(20.0, math.log1p(price))) if price > -1 else -20.0


def is_repeat(row: UserRow, event_hash: int) -> bool:
    """Whether the event's id is among the user's last 16."""
    return event_hash in row.ring


def is_late(row: UserRow, event_time_ms: int) -> bool:
    """Whether the event is too old to be applied."""
    return row.life_events > 0 and event_time_ms < row.last_ms - LATE_LIMIT_MS


def advance(
    row: UserRow,
    *,
    action: int,
    category: int,
    item: int,
    price: float | None,
    event_time_ms: int,
    event_hash: int,
    offset: int,
    epoch: bytes,
) -> Seen:
    """Apply one event to the row, in place."""
    life = row.life_events
    now_ms = max(event_time_ms, row.last_ms) if life else event_time_ms
    gap_ms = now_ms - row.last_ms if life else -1
    new_session = not life or gap_ms > SESSION_GAP_MS
    now_s = now_ms // 1000
    ages = [
        now_s - last if count else NEVER_S
        for count, last in zip(row.action_life, row.action_last_s, strict=True)
    ]
    log_price = log_price_of(price)
    seen = Seen(
        action,
        category,
        item,
        event_time_ms,
        gap_ms,
        log_price,
        new_session,
        item != 0 and item in CODES.unpack(row.window_items),
        category != 0 and category in CODES.unpack(row.window_categories),
        ages,
    )
    if new_session:
        row.session_index += 1
        row.session_events = 0
        row.session_start_ms = now_ms
        row.action_session = [0] * len(ages)
    if not life:
        row.first_ms = now_ms
    row.last_ms = now_ms
    row.session_events += 1
    row.life_events = life + 1
    row.action_session[action] = min(0xFFFF, row.action_session[action] + 1)
    row.action_life[action] += 1
    row.action_last_s[action] = now_s
    row.ring[row.ring_next] = event_hash
    row.ring_next = (row.ring_next + 1) % RING
    row.position, row.epoch = offset, epoch
    row.window_count = min(WINDOW, row.window_count + 1)
    row.window_actions = row.window_actions[1:] + bytes((action,))
    row.window_categories = row.window_categories[4:] + _u4(category)
    row.window_items = row.window_items[4:] + _u4(item)
    row.window_log_gaps = row.window_log_gaps[2:] + _f2(math.log1p(max(gap_ms, 0) / 1000))
    row.window_log_prices = row.window_log_prices[2:] + _f2(log_price)
    return seen
