"""The fold of events into state rows: repeats, lateness, sessions, counters and windows.

Pure and vectorised, without a loop over events or over a user's turns. The events of a micro-batch are
sorted by user, in arrival order within each user, so that every user has one *run*:

    sorted place   0    1    2    3    4    5         run 0: places 0..2, run 1: place 3, run 2: places 4..5
    user           a    a    a    b    c    c
    rank           0    1    2    0    0    1         the event's turn among its user's

What an event finds is its user's row (rank 0), or what the events before it in its run left behind. Both are
prefix sums and running maxima over places, counted from the run's first place. So one user with a thousand
events costs what a thousand users cost, and a value depends on nothing but the user's own row and events.

A late event that is still applied counts as if it had happened at the user's last time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from stream.errors import BrokenInvariant
from stream.event_columns import EventColumns
from stream.rows import RING, RowLayout

__all__ = [
    "APPLIED",
    "DUPLICATE",
    "FUTURE",
    "LATE",
    "NEVER_S",
    "FoldRules",
    "Folded",
    "fold",
    "fold_windows",
    "rebuild_columns",
]

APPLIED: Final = 0
DUPLICATE: Final = 1
LATE: Final = 2
FUTURE: Final = 3

#: Age in seconds of an action that the user never did.
NEVER_S: Final = 0xFFFFFFFF
_MAX_S: Final = NEVER_S - 1
#: A time before all times (ms): the last event of a user who has none.
_NEVER_MS: Final = -(2**61)


@dataclass(frozen=True)
class FoldRules:
    """Limits of sessions and of lateness, in milliseconds."""

    session_gap_ms: int = 1_800_000
    late_limit_ms: int = 1_800_000
    future_limit_ms: int = 300_000


@dataclass
class Folded:
    """What became of N events, and what the M applied ones saw.

    Attributes:
        outcome: uint8 (N,), APPLIED, DUPLICATE, LATE or FUTURE.
        late_applied: bool (N,), applied although its time is before the user's last.
        applied: int64 (M,), indices of the applied events, rising.
        columns: arrays of M entries in that order, C-contiguous. Before the event: `action_age_s` (seconds
            since the last of each action, `NEVER_S` if never), `repeat_item` and `repeat_category` (whether
            it stands in the window), `gap_ms` (-1 for the user's first event, 0 for a late one). After it:
            all others. `wave` is the rank among the user's applied events of this call.
        last_ms: int64 (M,), the user's last time after the event; a late one leaves it where it was.
    """

    outcome: np.ndarray
    late_applied: np.ndarray
    applied: np.ndarray
    columns: dict[str, np.ndarray]
    last_ms: np.ndarray


def fold(
    rows: np.ndarray, events: EventColumns, rules: FoldRules, now_ms: int | None, epoch: bytes, n_actions: int
) -> Folded:
    """Apply events to their users' rows, in place.

    Rules, in this order: an event id among the user's last 16 is a DUPLICATE; a time more than
    ``future_limit_ms`` after ``now_ms`` is FUTURE; a time more than ``late_limit_ms`` before the user's last
    is LATE; everything else is APPLIED. Only applied events change a row. Replayed ones are
    never LATE. They may be FUTURE: applied, one would make its user's true events late, and as the partition's
    watermark leave everybody else behind in silence.

    Args:
        rows: (B,) of a `RowLayout`.
        events: N events; each user's offsets rise.
        rules: limits.
        now_ms: the wall clock, or None when time stands in the events alone.
        epoch: first 8 bytes of the source topic's id.
        n_actions: of the vocabulary that the action codes are from.

    Raises:
        BrokenInvariant: an offset that the row has seen already, or rows of another vocabulary.
    """
    if rows["action_life"].shape[1] != n_actions:
        raise BrokenInvariant(
            f"State rows count {rows['action_life'].shape[1]} actions, the model's vocabulary has "
            f"{n_actions}. Read the rows with the layout of the model in use."
        )
    # Sixteen bits are sorted by radix, eight times faster.
    order = np.argsort(events.row.astype(np.uint16) if len(rows) <= 2**16 else events.row, kind="stable")
    runs = _runs(events.row, order)
    mine = _rows_of(rows, runs)
    judged = _judge(mine, events, runs, rules, now_ms, epoch)
    outcome = np.empty_like(judged)
    outcome[order] = judged
    if judged.any():
        runs = _runs(events.row, order[judged == APPLIED])
        mine = _rows_of(rows, runs)
    folded = _advance(mine, events, runs, outcome, rules, epoch)
    if mine is not rows:
        rows[runs.user] = mine
    return folded


@dataclass
class _Runs:
    """Events sorted by user: R runs over M places."""

    order: np.ndarray  # (M,) the event at each place
    run: np.ndarray  # (M,) its run
    rank: np.ndarray  # (M,) its turn in the run
    first: np.ndarray  # (R,) first place of each run
    last: np.ndarray  # (R,) last place of each run
    user: np.ndarray  # (R,) row of each run


def _runs(row: np.ndarray, order: np.ndarray) -> _Runs:
    sorted_row = row[order]
    starts = np.ones(len(order), np.bool_)
    np.not_equal(sorted_row[1:], sorted_row[:-1], out=starts[1:])
    first = np.flatnonzero(starts)
    run = np.cumsum(starts) - 1
    last = np.append(first[1:], len(order))[: len(first)] - 1
    return _Runs(order, run, np.arange(len(order)) - first[run], first, last, sorted_row[first])


def _rows_of(rows: np.ndarray, runs: _Runs) -> np.ndarray:
    """The row of each run, (R,): the rows themselves when every one has events, else copies."""
    return rows if len(runs.user) == len(rows) else rows[runs.user]


def _last_ms(mine: np.ndarray, runs: _Runs, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The user's last time before and after the event at each place, (M,) each."""
    known = np.where(mine["life_events"] > 0, mine["last_ms"], _NEVER_MS)
    after = time.copy()
    after[runs.first] = np.maximum(after[runs.first], known)
    # A running maximum within runs: each round doubles the distance over which a place has looked back.
    deepest, step = int(runs.rank.max(initial=0)), 1
    while step <= deepest:
        after[step:] = np.maximum(after[step:], np.where(runs.rank[step:] >= step, after[:-step], _NEVER_MS))
        step *= 2
    before = np.empty_like(after)
    before[1:] = after[:-1]
    before[runs.first] = known
    return before, after


def _judge(
    mine: np.ndarray, events: EventColumns, runs: _Runs, rules: FoldRules, now_ms: int | None, epoch: bytes
) -> np.ndarray:
    """The outcome at each place, (N,) uint8."""
    _check_offsets(mine, runs, events.offset[runs.order], epoch)
    time, hashes = events.event_time_ms[runs.order], events.event_hash[runs.order]
    bound = ~events.replayed[runs.order]
    future = np.zeros(len(time), np.bool_)
    if now_ms is not None:
        future = time > now_ms + rules.future_limit_ms
    before, _ = _last_ms(mine, runs, np.where(future, _NEVER_MS, time))
    late = (time < before - rules.late_limit_ms) & bound
    outcome = np.where(future, np.uint8(FUTURE), late * np.uint8(LATE))

    # Repeats are rare, and one changes what is late or repeated after it: such a run is judged turn by turn.
    for run in _runs_with_repeats(mine, runs, hashes).tolist():
        last_ms = int(mine["last_ms"][run]) if mine["life_events"][run] else _NEVER_MS
        ring, slot = mine["ring"][run].tolist(), int(mine["ring_next"][run])
        for place in range(runs.first[run], runs.last[run] + 1):
            time_ms, hash_ = int(time[place]), int(hashes[place])
            if hash_ in ring:
                outcome[place] = DUPLICATE
            elif future[place]:
                outcome[place] = FUTURE
            elif bound[place] and time_ms < last_ms - rules.late_limit_ms:
                outcome[place] = LATE
            else:
                outcome[place] = APPLIED
                ring[slot] = hash_
                slot = (slot + 1) % RING
                last_ms = max(last_ms, time_ms)
    return outcome


def _check_offsets(mine: np.ndarray, runs: _Runs, offset: np.ndarray, epoch: bytes) -> None:
    same_epoch = mine["epoch"].view("<u8") == int.from_bytes(epoch, "little")
    before = np.empty_like(offset)
    before[1:] = offset[:-1]
    before[runs.first] = np.where(same_epoch, mine["position"], -1)
    again = offset <= before
    if again.any():
        place = int(again.argmax())
        raise BrokenInvariant(
            f"Offset {offset[place]} came to a user whose row stands at offset {before[place]}: an event "
            "would count twice. The process ends here; its successor restores the rows and goes on."
        )


def _runs_with_repeats(mine: np.ndarray, runs: _Runs, hashes: np.ndarray) -> np.ndarray:
    """Runs in which an event id may have come before, in the row or in the run."""
    known = mine["ring"].take(runs.run, axis=0) == hashes[:, None]
    suspect = runs.run[known.any(axis=1)] if known.any() else runs.run[:0]
    by_hash = np.sort(hashes)
    if (by_hash[1:] == by_hash[:-1]).any():
        order = np.lexsort((hashes, runs.run))
        same = (hashes[order[1:]] == hashes[order[:-1]]) & (runs.run[order[1:]] == runs.run[order[:-1]])
        suspect = np.concatenate([suspect, runs.run[order[1:][same]]])
    return np.unique(suspect)


def _advance(
    mine: np.ndarray, events: EventColumns, runs: _Runs, outcome: np.ndarray, rules: FoldRules, epoch: bytes
) -> Folded:
    """Apply M events, all of them accepted, to the rows of their runs."""
    order, run, rank, first, last = runs.order, runs.run, runs.rank, runs.first, runs.last
    place = np.arange(len(order))
    # `arrival` takes what is in order of places into the order of arrival, which is that of `applied`.
    applied = np.flatnonzero(outcome == APPLIED)
    arrived = np.empty(len(outcome), np.int64)
    arrived[order] = place
    arrival = arrived[applied]

    time = events.event_time_ms[order]
    before, after = _last_ms(mine, runs, time)
    first_ever = before == _NEVER_MS
    gap_ms = np.where(first_ever, -1, after - before)
    new_session = first_ever | (gap_ms > rules.session_gap_ms)
    log_gap = np.log1p(np.maximum(gap_ms, 0) / 1000.0).astype(np.float16)
    life_events = mine["life_events"].astype(np.int64)[run] + (rank + 1)

    # The place where the event's session began; if that is before the run's first, the row knows more.
    opened = np.maximum.accumulate(np.where(new_session, place, -1))
    opened_here = opened >= first[run]
    started = np.cumsum(new_session)
    session_index = started + (mine["session_index"] - (started - new_session)[first])[run]
    session_position = np.where(opened_here, place - opened, mine["session_events"][run] + rank) + 1

    columns = {
        "row": events.row[applied],
        "wave": rank[arrival].astype(np.int32),
        "action": events.action[applied],
        "category": events.category[applied],
        "item": events.item[applied],
        "event_time_ms": events.event_time_ms[applied],
        "gap_ms": gap_ms[arrival],
        "log_price": events.log_price[applied],
        "extra": events.extra[applied],
        "session_position": session_position[arrival].astype(np.int32),
        "session_index": session_index[arrival].astype(np.int32),
        "life_events": life_events[arrival].astype(np.int32),
        "new_session": new_session[arrival],
    }
    columns |= _count_actions(mine, runs, arrival, events.action[order], after, opened, opened_here)
    columns |= _move_windows(mine, runs, arrival, {**columns, "log_gap": log_gap[arrival]})

    mine["position"] = events.offset[order[last]]
    mine["epoch"] = np.void(epoch)
    mine["first_ms"] = np.where(first_ever[first], after[first], mine["first_ms"])
    mine["last_ms"] = after[last]
    mine["session_start_ms"] = np.where(opened_here[last], after[opened[last]], mine["session_start_ms"])
    mine["session_index"] = session_index[last]
    mine["session_events"] = session_position[last]
    mine["life_events"] = life_events[last]
    # Where a run is longer than the ring, numpy assigns in order, so that the newest stay.
    slot = mine["ring_next"].astype(np.int64)[run] + rank
    mine["ring"][run, slot % RING] = events.event_hash[order]
    mine["ring_next"] = (slot[last] + 1) % RING

    late_applied = np.zeros(len(outcome), np.bool_)
    late_applied[order] = time < before
    return Folded(outcome, late_applied, applied, columns, after[arrival])


def _count_actions(
    mine: np.ndarray,
    runs: _Runs,
    arrival: np.ndarray,
    action: np.ndarray,
    after: np.ndarray,
    opened: np.ndarray,
    opened_here: np.ndarray,
) -> dict[str, np.ndarray]:
    """Counts and ages of every action, (M, A) in arrival order; moves those of the rows."""
    run, first, last = runs.run, runs.first, runs.last
    place = np.arange(len(action))

    # Counts over all places, less what stood there when the run or the session began. Unsigned numbers may
    # wrap on the way, but not in the sum.
    happened = np.zeros((len(action), mine["action_life"].shape[1]), np.uint32)
    happened[place, action] = 1
    total = np.cumsum(happened, axis=0, dtype=np.uint32)
    earlier = total - happened
    at_first = earlier.take(first, axis=0)
    life = total + (mine["action_life"] - at_first).take(run, axis=0)
    bases = np.concatenate([mine["action_session"] - at_first, -earlier])
    session = total + bases.take(np.where(opened_here, len(first) + opened, run), axis=0)
    session = np.minimum(session, 0xFFFF).astype(np.uint16)

    # Seconds + 1 of each action's last time, 0 for never, above the run's number: so the running maximum over
    # all places never reaches back into the run before.
    time_s = np.clip(after // 1000, 0, _MAX_S)
    floor = run << 32
    known = np.where(mine["action_life"] > 0, mine["action_last_s"].astype(np.int64) + 1, 0)
    latest = np.zeros(happened.shape, np.int64)
    latest[place[1:], action[:-1]] = (floor + time_s + 1)[:-1]
    latest[first] = known + floor[first][:, None]
    np.maximum.accumulate(latest, axis=0, out=latest)
    latest -= floor[:, None]
    age_s = np.where(latest == 0, NEVER_S, time_s[:, None] + 1 - latest).astype(np.uint32)

    mine["action_life"] = life.take(last, axis=0)
    mine["action_session"] = session.take(last, axis=0)
    newest = latest.take(last, axis=0)
    newest[np.arange(len(last)), action[last]] = time_s[last] + 1
    mine["action_last_s"] = np.maximum(newest - 1, 0)
    return {
        "action_session": session.take(arrival, axis=0),
        "action_life": life.take(arrival, axis=0),
        "action_age_s": age_s.take(arrival, axis=0),
    }


def _move_windows(
    mine: np.ndarray, runs: _Runs, arrival: np.ndarray, columns: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The window after each event, (M, window) in arrival order; moves those of the rows."""
    count, width = len(arrival), mine["w_item"].shape[1]
    # One tape for all runs: a row's window, then the run's events. The window after an event is a stretch of
    # tape that ends with it, so all windows are copied out in one go, each as one item of raw bytes.
    begin = np.arange(len(runs.first)) * width + runs.first
    after = (begin[runs.run] + runs.rank)[arrival] + 1
    moved: dict[str, np.ndarray] = {}
    for name in ("action", "category", "item", "log_gap", "log_price"):
        old = np.ascontiguousarray(mine[f"w_{name}"])
        entered = columns[name].astype(old.dtype, copy=False)
        bytes_ = f"V{width * old.itemsize}"
        tape = np.empty((len(runs.first) + 1) * width + count, old.dtype)
        stretches = np.ndarray((len(tape) - width + 1,), bytes_, tape, 0, tape.strides)
        stretches[begin] = old.view(bytes_)[:, 0]
        tape[after + width - 1] = entered
        window = stretches[after].view(old.dtype).reshape(count, width)
        moved[f"window_{name}"] = window
        mine[f"w_{name}"] = stretches[(begin + 1 + runs.last) - runs.first].view(old.dtype).reshape(-1, width)
        if name in {"category", "item"}:
            stands = window == entered[:, None]
            stands[:, -1] = tape[after - 1] == entered
            moved[f"repeat_{name}"] = stands.any(axis=1) & (entered != 0)
    window_count = np.minimum(mine["window_count"].astype(np.int64)[runs.run] + (runs.rank + 1), width)
    mine["window_count"] = window_count[runs.last]
    moved["window_count"] = window_count[arrival].astype(np.uint8)
    return moved


def rebuild_columns(
    rows: np.ndarray, layout: RowLayout, n_extras: int = 0
) -> tuple[np.ndarray, EventColumns]:
    """The windows of rows as events upon blank rows, so that another model can make its state vector.

    Times end at the row's last event and go back by the gaps, which float16 keeps to one part in a thousand;
    the gap before the oldest event is lost. Extras are not in a window: all ``n_extras`` are missing.

    Returns:
        Blank rows (B,), and the events of all windows, each user's in order, exempt from limits of time.
    """
    held = np.arange(layout.window) >= layout.window - rows["window_count"][:, None].astype(np.int64)
    row, slot = np.nonzero(held)
    gap_ms = np.rint(np.expm1(rows["w_log_gap"].astype(np.float64)) * 1000.0).astype(np.int64)
    since_last = np.cumsum(gap_ms[:, ::-1], axis=1)[:, ::-1] - gap_ms
    return layout.blank(len(rows)), EventColumns(
        row=row.astype(np.int32),
        event_time_ms=(rows["last_ms"][:, None] - since_last)[held],
        action=rows["w_action"][held],
        category=rows["w_category"][held],
        item=rows["w_item"][held],
        log_price=rows["w_log_price"][held].astype(np.float32),
        extra=np.full((len(row), n_extras), np.nan, np.float32),
        event_hash=(slot + 1).astype(np.uint64),
        offset=np.arange(len(row), dtype=np.int64),
        replayed=np.ones(len(row), np.bool_),
    )


def fold_windows(
    rows: np.ndarray, layout: RowLayout, session_gap_ms: int, n_extras: int = 0
) -> dict[str, np.ndarray]:
    """The columns of ``rebuild_columns``' events: what a model goes through to make the rows' state vectors."""
    blank, events = rebuild_columns(rows, layout, n_extras)
    # Replayed events are never late, without a clock none is of the future, and a blank row knows no topic.
    return fold(blank, events, FoldRules(session_gap_ms), None, bytes(8), layout.n_actions).columns
