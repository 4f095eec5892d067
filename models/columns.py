"""The columns of folded events that models read: one row an event, a user's events in time order.

The fold of the stream makes them, for the worker and for training alike; models never look at events themselves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Columns = dict[str, NDArray]

WINDOW = 32
NEVER_S = 0xFFFFFFFF

# name -> (dtype, trailing shape). "A" stands for the number of actions, "W" for the window's length, "E" for the
# number of declared extras.
LAYOUT: dict[str, tuple[str, tuple[str, ...]]] = {
    "row": ("i4", ()),
    "wave": ("i4", ()),
    "action": ("u1", ()),
    "category": ("u4", ()),
    "item": ("u4", ()),
    "event_time_ms": ("i8", ()),
    "gap_ms": ("i8", ()),
    "log_price": ("f4", ()),
    "extra": ("f4", ("E",)),
    "session_position": ("i4", ()),
    "session_index": ("i4", ()),
    "life_events": ("i4", ()),
    "new_session": ("?", ()),
    "repeat_item": ("?", ()),
    "repeat_category": ("?", ()),
    "action_session": ("u2", ("A",)),
    "action_life": ("u4", ("A",)),
    "action_age_s": ("u4", ("A",)),
    "window_action": ("u1", ("W",)),
    "window_category": ("u4", ("W",)),
    "window_item": ("u4", ("W",)),
    "window_log_gap": ("f2", ("W",)),
    "window_log_price": ("f2", ("W",)),
    "window_count": ("u1", ()),
}


def blank_columns(n_events: int, n_actions: int, n_extras: int = 0) -> Columns:
    """Columns of ``n_events`` rows of zeros."""
    sizes = {"A": n_actions, "W": WINDOW, "E": n_extras}
    return {
        name: np.zeros((n_events, *(sizes[axis] for axis in shape)), dtype)
        for name, (dtype, shape) in LAYOUT.items()
    }


def take(columns: Columns, index: NDArray) -> Columns:
    """The columns of the events at ``index`` (positions or a mask), in that order."""
    return {name: column[index] for name, column in columns.items()}


def histories(columns: Columns, index: NDArray) -> Columns:
    """``take`` of some users, each from the first event on; rows are numbered anew from 0."""
    part = take(columns, index)
    part["row"] = (np.cumsum(part["wave"] == 0) - 1).astype(np.int32)
    return part


def sample_columns(
    n_users: int,
    n_events: int,
    n_actions: int,
    category_codes: NDArray[np.uint32],
    seed: int,
    n_extras: int = 0,
) -> tuple[NDArray[np.uint32], Columns]:
    """Made-up columns for golden outputs and timings: every value in range, no story behind them.

    Returns the windows of categories before the events (n_users, 32), and the columns of ``n_events`` events,
    each user having at least one if there are enough.
    """
    rng = np.random.default_rng(seed)
    columns = blank_columns(n_events, n_actions, n_extras)
    row = np.concatenate([np.arange(n_users), rng.integers(0, n_users, max(0, n_events - n_users))])[
        :n_events
    ]
    seen = np.zeros(n_users, np.int64)
    for event, user in enumerate(row):
        columns["wave"][event] = seen[user]
        seen[user] += 1
    codes = np.append(category_codes, np.array([0, 4_000_000_019], np.uint32))
    columns["row"][:] = row
    columns["action"][:] = rng.integers(0, n_actions, n_events)
    columns["category"][:] = rng.choice(codes, n_events)
    columns["item"][:] = rng.integers(0, 500, n_events)
    columns["event_time_ms"][:] = 1_700_000_000_000 + np.arange(n_events) * 977
    columns["gap_ms"][:] = np.exp(rng.normal(10, 3, n_events)).astype(np.int64)
    columns["gap_ms"][rng.random(n_events) < 0.1] = -1
    columns["log_price"][:] = np.where(rng.random(n_events) < 0.3, np.nan, rng.normal(3, 1, n_events))
    columns["session_position"][:] = rng.integers(1, 40, n_events)
    columns["session_index"][:] = rng.integers(1, 9, n_events)
    columns["life_events"][:] = rng.integers(1, 90, n_events)
    for flag in ("new_session", "repeat_item", "repeat_category"):
        columns[flag][:] = rng.random(n_events) < 0.3
    columns["action_session"][:] = rng.integers(0, 9, (n_events, n_actions))
    columns["action_life"][:] = rng.integers(0, 40, (n_events, n_actions))
    ages = rng.integers(0, 200_000, (n_events, n_actions))
    columns["action_age_s"][:] = np.where(rng.random(ages.shape) < 0.5, NEVER_S, ages)
    count = rng.integers(1, WINDOW + 1, n_events)
    columns["window_count"][:] = count
    held = np.arange(WINDOW) >= WINDOW - count[:, None]
    for name, values in {
        "window_action": rng.integers(0, n_actions, held.shape),
        "window_category": rng.choice(codes, held.shape),
        "window_item": rng.integers(1, 60, held.shape),
        "window_log_gap": rng.gamma(3, 1.5, held.shape),
        "window_log_price": rng.normal(3, 1, held.shape),
    }.items():
        columns[name][:] = np.where(held, values, 0)
    before = rng.choice(codes, (n_users, WINDOW))
    extra = rng.normal(0, 100, (n_events, n_extras))
    columns["extra"][:] = np.where(rng.random(extra.shape) < 0.3, np.nan, extra)
    return before, columns
