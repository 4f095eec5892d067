"""A small made-up shop and a naive fold of its events into the columns that models read."""

from __future__ import annotations

import numpy as np

from models.columns import NEVER_S, WINDOW, Columns, blank_columns, take
from models.vocabulary import code_of

ACTIONS = ("view", "cart", "purchase")
CATEGORIES = tuple(f"c{number}" for number in range(12))
RARE = tuple(f"rare{number}" for number in range(6))
SESSION_GAP_MS = 1_800_000


def events_of(user: int, count: int, seed: int = 0) -> list[dict]:
    """Events of one user: tastes, sessions, a cart after two views of an item, a purchase after a cart."""
    rng = np.random.default_rng([seed, user])
    names = CATEGORIES + RARE
    tastes = rng.choice(len(names), 3)
    now_ms = 1_700_000_000_000 + int(rng.integers(0, 86_400_000))
    events: list[dict] = []
    views = 0
    for _ in range(count):
        if views >= 2 and rng.random() < 0.8:
            action, views = "cart", 0
        elif events and events[-1]["action"] == "cart" and rng.random() < 0.7:
            action = "purchase"
        else:
            action, views = "view", views + 1
        taste = int(rng.choice(tastes))
        events.append(
            {
                "time_ms": now_ms,
                "action": action,
                "category": names[taste] if rng.random() < 0.9 else None,
                "item": f"i{taste}-{rng.integers(4)}",
                "price": float(rng.lognormal(3, 1)) if rng.random() < 0.8 else None,
            }
        )
        now_ms += int(1000 * rng.lognormal(3, 1)) if rng.random() < 0.8 else int(1000 * rng.lognormal(10, 1))
    return events


def columns_of(histories: list[list[dict]], actions: tuple[str, ...] = ACTIONS) -> Columns:
    """Columns of all events, each user's contiguous in time order; one event at a time, as plain as can be."""
    names = (*actions, "other")
    columns = blank_columns(sum(map(len, histories)), len(names))
    at = 0
    for user, events in enumerate(histories):
        session, life = np.zeros(len(names)), np.zeros(len(names))
        last_s: dict[int, int] = {}
        window: list[tuple] = []
        last_ms, index, position = None, 0, 0
        for turn, event in enumerate(events):
            action = names.index(event["action"]) if event["action"] in names else len(names) - 1
            category = code_of(event["category"]) if event["category"] else 0
            item = code_of(event["item"]) if event["item"] else 0
            gap_ms = -1 if last_ms is None else max(event["time_ms"] - last_ms, 0)
            new = last_ms is None or gap_ms > SESSION_GAP_MS
            if new:
                session[:], index, position = 0, index + 1, 0
            position += 1
            session[action] += 1
            life[action] += 1
            row = {name: column[at] for name, column in columns.items() if column.ndim > 1}
            row["action_age_s"][:] = NEVER_S
            for other, then_s in last_s.items():
                row["action_age_s"][other] = min(max(event["time_ms"] // 1000 - then_s, 0), NEVER_S - 1)
            last_s[action] = event["time_ms"] // 1000
            columns["repeat_item"][at] = item != 0 and item in [slot[2] for slot in window]
            columns["repeat_category"][at] = category != 0 and category in [slot[1] for slot in window]
            log_price = np.nan if event["price"] is None else np.log1p(event["price"])
            window = [*window, (action, category, item, np.log1p(max(gap_ms, 0) / 1000), log_price)][-WINDOW:]
            for place, slot in enumerate(window, WINDOW - len(window)):
                for name, value in zip(
                    ("action", "category", "item", "log_gap", "log_price"), slot, strict=True
                ):
                    row[f"window_{name}"][place] = value
            row["action_session"][:], row["action_life"][:] = session, life
            for name, value in {
                "row": user, "wave": turn, "action": action, "category": category, "item": item,
                "event_time_ms": event["time_ms"], "gap_ms": gap_ms, "log_price": log_price,
                "session_position": position, "session_index": index, "life_events": turn + 1,
                "new_session": new, "window_count": len(window),
            }.items():  # fmt: skip
                columns[name][at] = value
            last_ms = event["time_ms"]
            at += 1
    return columns


def shop(n_users: int, n_events: int, seed: int = 0) -> Columns:
    """Columns of users with 1 to ``2 * n_events / n_users`` events each."""
    most = max(2, 2 * n_events // n_users)
    lengths = np.random.default_rng(seed).integers(1, most, n_users)
    return columns_of([events_of(user, int(count), seed) for user, count in enumerate(lengths)])


def micro_batch(columns: Columns, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, Columns]:
    """A micro-batch of some events (a user's in time order, and whole from some event on).

    Returns the users of its rows, the windows of categories before it, and its columns.
    """
    users, row = np.unique(columns["row"][index], return_inverse=True)
    part = take(columns, index)
    part["row"] = row.astype(np.int32)
    seen = np.zeros(len(users), np.int64)
    before = np.zeros((len(users), WINDOW), np.uint32)
    for event, user in enumerate(row):
        if seen[user] == 0 and part["life_events"][event] > 1:
            before[user] = columns["window_category"][index[event] - 1]
        part["wave"][event] = seen[user]
        seen[user] += 1
    return users, before, part
