"""What the fold must do, said as plainly as can be: one event after the other, no vector anywhere."""

from __future__ import annotations

import math

import numpy as np

from stream.event_columns import EventColumns
from stream.sessions import APPLIED, DUPLICATE, FUTURE, LATE, NEVER_S, FoldRules


def fold_one_by_one(
    rows: np.ndarray, events: EventColumns, rules: FoldRules, now_ms: int | None, epoch: bytes
) -> tuple[list[int], list[bool], list[dict]]:
    """Fold in place; the outcome and lateness of every event, and the columns of every applied one."""
    outcomes, late_applied, seen = [], [], []
    turns = [0] * len(rows)
    width = rows["w_item"].shape[1]
    for n in range(len(events.row)):
        user, time, hash_ = int(events.row[n]), int(events.event_time_ms[n]), int(events.event_hash[n])
        row = rows[user : user + 1]
        life, last_ms = int(row["life_events"][0]), int(row["last_ms"][0])
        late_applied.append(False)
        if hash_ in row["ring"][0].tolist():
            outcomes.append(DUPLICATE)
            continue
        if now_ms is not None and time > now_ms + rules.future_limit_ms:
            outcomes.append(FUTURE)
            continue
        if life and not events.replayed[n] and time < last_ms - rules.late_limit_ms:
            outcomes.append(LATE)
            continue
        outcomes.append(APPLIED)
        late_applied[-1] = bool(life) and time < last_ms
        now = max(time, last_ms) if life else time
        gap_ms = now - last_ms if life else -1
        opens = not life or gap_ms > rules.session_gap_ms
        action, category, item = int(events.action[n]), int(events.category[n]), int(events.item[n])
        ages = [
            min(max(now // 1000, 0) - int(row["action_last_s"][0][a]), NEVER_S - 1)
            if row["action_life"][0][a]
            else NEVER_S
            for a in range(row["action_life"].shape[1])
        ]
        repeat_item = item != 0 and item in row["w_item"][0].tolist()
        repeat_category = category != 0 and category in row["w_category"][0].tolist()
        if opens:
            row["session_index"] += 1
            row["session_events"] = 0
            row["session_start_ms"] = now
            row["action_session"] = 0
        if not life:
            row["first_ms"] = now
        row["last_ms"] = now
        row["session_events"] += 1
        row["life_events"] += 1
        row["action_session"][0, action] = min(65535, int(row["action_session"][0, action]) + 1)
        row["action_life"][0, action] += 1
        row["action_last_s"][0, action] = max(now // 1000, 0)
        slot = int(row["ring_next"][0])
        row["ring"][0, slot] = hash_
        row["ring_next"] = (slot + 1) % 16
        row["position"], row["epoch"] = events.offset[n], np.void(epoch)
        row["window_count"] = min(width, int(row["window_count"][0]) + 1)
        new = {
            "w_action": action,
            "w_category": category,
            "w_item": item,
            "w_log_gap": np.float16(math.log1p(max(gap_ms, 0) / 1000)),
            "w_log_price": np.float16(events.log_price[n]),
        }
        for name, value in new.items():
            row[name][0, :-1] = row[name][0, 1:].copy()
            row[name][0, -1] = value
        seen.append(
            {
                "row": user,
                "wave": turns[user],
                "action": action,
                "category": category,
                "item": item,
                "event_time_ms": time,
                "gap_ms": gap_ms,
                "log_price": events.log_price[n],
                "extra": events.extra[n],
                "session_position": row["session_events"][0],
                "session_index": row["session_index"][0],
                "life_events": row["life_events"][0],
                "new_session": opens,
                "repeat_item": repeat_item,
                "repeat_category": repeat_category,
                "action_session": row["action_session"][0].copy(),
                "action_life": row["action_life"][0].copy(),
                "action_age_s": ages,
                **{f"window_{name[2:]}": row[name][0].copy() for name in new},
                "window_count": row["window_count"][0],
            }
        )
        turns[user] += 1
    return outcomes, late_applied, seen
