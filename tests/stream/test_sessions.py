"""The fold: equal to a plain reference that takes one event at a time, and its laws one by one."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.errors import BrokenInvariant
from stream.event_columns import EventColumns
from stream.rows import RowLayout
from stream.sessions import APPLIED, DUPLICATE, FUTURE, LATE, Folded, FoldRules, fold, rebuild_columns
from tests.stream.fold_reference import fold_one_by_one

RULES = FoldRules()
EPOCH = b"topic-id"
NOON = 1_700_000_000_000
LAYOUT = RowLayout(n_actions=11, state_width=4)
SMALL = RowLayout(n_actions=4, state_width=0, window=5)


@dataclass(frozen=True)
class Turn:
    """One event as the tests write it."""

    user: int = 0
    time_ms: int = NOON
    action: int = 0
    category: int = 0
    item: int = 0
    log_price: float = math.nan
    event_hash: int = 0
    replayed: bool = False


def events_of(turns: list[Turn], first_offset: int = 0) -> EventColumns:
    offset = np.arange(first_offset, first_offset + len(turns))
    return EventColumns(
        row=np.array([turn.user for turn in turns], np.int32),
        event_time_ms=np.array([turn.time_ms for turn in turns], np.int64),
        action=np.array([turn.action for turn in turns], np.uint8),
        category=np.array([turn.category for turn in turns], np.uint32),
        item=np.array([turn.item for turn in turns], np.uint32),
        log_price=np.array([turn.log_price for turn in turns], np.float32),
        # Two numbers that nothing is computed of: they must only stay with their events.
        extra=np.array(
            [[at, -turn.time_ms] for turn, at in zip(turns, offset, strict=True)], np.float32
        ).reshape(-1, 2),
        event_hash=np.array(
            [turn.event_hash or 1000 + at for turn, at in zip(turns, offset, strict=True)], np.uint64
        ),
        offset=offset,
        replayed=np.array([turn.replayed for turn in turns], np.bool_),
    )


def part(events: EventColumns, chosen: slice | np.ndarray) -> EventColumns:
    return EventColumns(**{field.name: getattr(events, field.name)[chosen] for field in fields(events)})


def folded(
    turns: list[Turn], layout: RowLayout = LAYOUT, now_ms: int | None = None
) -> tuple[np.ndarray, Folded]:
    rows = layout.blank(max(turn.user for turn in turns) + 1)
    return rows, fold(rows, events_of(turns), RULES, now_ms, EPOCH, layout.n_actions)


DTYPES = {
    **dict.fromkeys(("row", "wave", "session_position", "session_index", "life_events"), "int32"),
    **dict.fromkeys(("event_time_ms", "gap_ms"), "int64"),
    **dict.fromkeys(("action", "window_action", "window_count"), "uint8"),
    **dict.fromkeys(
        ("category", "item", "action_life", "action_age_s", "window_category", "window_item"), "uint32"
    ),
    **dict.fromkeys(("new_session", "repeat_item", "repeat_category"), "bool"),
    **dict.fromkeys(("window_log_gap", "window_log_price"), "float16"),
    **dict.fromkeys(("log_price", "extra"), "float32"),
    "action_session": "uint16",
}

turns = st.lists(
    st.builds(
        Turn,
        user=st.integers(0, 3),
        time_ms=st.one_of(
            st.integers(NOON - 4_000_000, NOON + 4_000_000),
            st.sampled_from([NOON + hour * 1_800_000 + ms for hour in (-1, 0, 1, 2) for ms in (-1, 0, 1)]),
        ),
        action=st.integers(0, 3),
        category=st.integers(0, 2),
        item=st.integers(0, 3),
        log_price=st.sampled_from([math.nan, 0.0, 1.5, -20.0, 20.0]),
        event_hash=st.sampled_from([0, 0, 0, 7, 8, 9]),
        replayed=st.sampled_from([False, False, False, True]),
    ),
    max_size=60,
)


def assert_equal_to_reference(
    layout: RowLayout, events: EventColumns, ends: list[int], now_ms: int | None
) -> None:
    users = int(events.row.max(initial=0)) + 1
    rows, expected_rows = layout.blank(users), layout.blank(users)
    for start, end in zip([0, *ends], [*ends, len(events.row)], strict=True):
        batch = part(events, slice(start, end))
        result = fold(rows, batch, RULES, now_ms, EPOCH, layout.n_actions)
        outcomes, late_applied, expected = fold_one_by_one(expected_rows, batch, RULES, now_ms, EPOCH)
        assert result.outcome.tolist() == outcomes
        assert result.late_applied.tolist() == late_applied
        assert result.applied.tolist() == [n for n, outcome in enumerate(outcomes) if outcome == APPLIED]
        assert layout.pack(rows) == layout.pack(expected_rows)
        assert {name: str(column.dtype) for name, column in result.columns.items()} == DTYPES
        for name, column in result.columns.items():
            assert column.flags.c_contiguous
            wanted = np.array([entry[name] for entry in expected], column.dtype).reshape(column.shape)
            assert column.tobytes() == wanted.tobytes(), name


@settings(max_examples=100, deadline=None)
@given(turns, st.sets(st.integers(0, 60)), st.sampled_from([None, NOON, NOON + 1_500_000]))
def test_fold_equals_one_event_at_a_time(turns: list[Turn], cuts: set[int], now_ms: int | None) -> None:
    """Outcomes, columns and row bytes are those of a plain loop, wherever micro-batches end."""
    assert_equal_to_reference(
        SMALL, events_of(turns), sorted(cut for cut in cuts if cut <= len(turns)), now_ms
    )


def busy_log(count: int, users: int, seed: int) -> EventColumns:
    """Users of very different zeal, some disorder, some repeats: long runs, full rings, full windows."""
    draw = random.Random(seed)
    return events_of(
        [
            Turn(
                user=min(int(draw.expovariate(4 / users)), users - 1),
                time_ms=NOON + n * 30_000 + draw.choice([0, 0, 0, -400_000, -3_000_000, 2_000_000]),
                action=draw.randrange(11),
                category=draw.randrange(6),
                item=draw.randrange(40),
                log_price=draw.choice([math.nan, draw.uniform(-20, 20)]),
                event_hash=draw.choice([0, 0, 0, 1 + draw.randrange(60)]),
                replayed=draw.random() < 0.05,
            )
            for n in range(count)
        ]
    )


@pytest.mark.parametrize("seed", range(3))
def test_fold_equals_one_event_at_a_time_on_a_long_log(seed: int) -> None:
    """The same over 1,500 events, in which windows and rings run over many times within a micro-batch."""
    assert_equal_to_reference(LAYOUT, busy_log(1500, 40, seed), [0, 1, 30, 31, 700], NOON + 40_000_000)


def test_interleaved_users_equal_users_alone() -> None:
    """A user's row and columns are the same bytes whether the micro-batch holds one user or fifty."""
    events = busy_log(800, 50, 5)
    rows = LAYOUT.blank(50)
    together = fold(rows, events, RULES, None, EPOCH, 11)
    for user in range(50):
        mine = np.flatnonzero(events.row == user)
        alone_row, alone_events = LAYOUT.blank(1), part(events, mine)
        alone_events.row = np.zeros_like(alone_events.row)
        alone = fold(alone_row, alone_events, RULES, None, EPOCH, 11)
        assert alone_row.tobytes() == rows[user : user + 1].tobytes()
        assert alone.outcome.tolist() == together.outcome[mine].tolist()
        at = together.columns["row"] == user
        for name in alone.columns.keys() - {"row"}:
            assert alone.columns[name].tobytes() == together.columns[name][at].tobytes(), name


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 300), max_size=12))
def test_any_split_into_batches_gives_the_same_bytes(seed: int, cuts: list[int]) -> None:
    """Row bytes, outcomes and columns (but ``wave``) do not depend on where micro-batches end."""
    events = busy_log(300, 12, seed)
    rows, cut_rows = LAYOUT.blank(12), LAYOUT.blank(12)
    whole = fold(rows, events, RULES, None, EPOCH, 11)
    ends = sorted(cuts)
    parts = [
        fold(cut_rows, part(events, slice(start, end)), RULES, None, EPOCH, 11)
        for start, end in zip([0, *ends], [*ends, 300], strict=True)
    ]
    assert rows.tobytes() == cut_rows.tobytes()
    assert np.concatenate([each.outcome for each in parts]).tolist() == whole.outcome.tolist()
    for name in whole.columns.keys() - {"wave"}:
        assert (
            np.concatenate([each.columns[name] for each in parts]).tobytes() == whole.columns[name].tobytes()
        ), name


def test_logarithms_do_not_depend_on_neighbours() -> None:
    """log1p has the same bits alone, shuffled, and at every length up to some vector registers."""
    draw = np.random.default_rng(3)
    values = np.exp(draw.uniform(-12, 25, 2000))
    alone = np.array([np.log1p(values[n : n + 1])[0] for n in range(2000)])
    shuffle = draw.permutation(2000)
    assert np.log1p(values[shuffle]).tobytes() == alone[shuffle].tobytes()
    for length in range(70):
        assert np.log1p(values[:length].copy()).tobytes() == alone[:length].tobytes()
        assert np.log1p(values[length : 2 * length].copy()).tobytes() == alone[length : 2 * length].tobytes()


def test_the_last_sixteen_event_ids_are_remembered() -> None:
    """A repeat of one of the last 16 applied events is dropped; of the 17th it is applied again."""
    first = [Turn(event_hash=100 + n) for n in range(17)]
    _, again = folded([*first, Turn(event_hash=101), Turn(event_hash=100), Turn(event_hash=101)])
    # 101 is the 16th last; 100 is forgotten, so it is applied, and now 101 is forgotten as well.
    assert again.outcome.tolist()[17:] == [DUPLICATE, APPLIED, APPLIED]


def test_a_repeat_changes_nothing() -> None:
    """Neither its time nor its action counts, so that what follows is judged as if it had not come."""
    once = [Turn(event_hash=5), Turn(time_ms=NOON + 1, event_hash=6)]
    with_repeat = [once[0], Turn(time_ms=NOON + 9_000_000, action=3, event_hash=5), once[1]]
    rows, result = folded(with_repeat)
    expected, _ = folded(once)
    assert result.outcome.tolist() == [APPLIED, DUPLICATE, APPLIED]
    rows["position"] = expected["position"]
    assert rows.tobytes() == expected.tobytes()


def test_late_limit_at_its_edge() -> None:
    """30 minutes before the user's last time is applied, with gap 0; a millisecond more is late."""
    edge = NOON - RULES.late_limit_ms
    rows, result = folded(
        [Turn(), Turn(time_ms=edge), Turn(time_ms=edge - 1), Turn(time_ms=edge - 1, replayed=True)]
    )
    assert result.outcome.tolist() == [APPLIED, APPLIED, LATE, APPLIED]
    assert result.late_applied.tolist() == [False, True, False, True]
    assert result.columns["gap_ms"].tolist() == [-1, 0, 0]
    assert rows["last_ms"].tolist() == [NOON]
    assert rows["life_events"].tolist() == [3]


def test_future_limit_at_its_edge() -> None:
    """5 minutes ahead of the clock is applied, a millisecond more is future, sent again or not.

    A dead letter whose producer's clock was a year ahead would else make a year of its user's events late.
    """
    edge = NOON + RULES.future_limit_ms
    ahead = [
        Turn(user=0, time_ms=edge),
        Turn(user=1, time_ms=edge + 1),
        Turn(user=2, time_ms=edge + 1, replayed=True),
    ]
    rows, result = folded(ahead, now_ms=NOON)
    assert result.outcome.tolist() == [APPLIED, FUTURE, FUTURE]
    assert rows[1:].tobytes() == LAYOUT.blank(2).tobytes()
    assert folded(ahead)[1].outcome.tolist() == [APPLIED, APPLIED, APPLIED]


def test_a_future_event_does_not_make_others_late() -> None:
    """An event that is refused as future is forgotten when the next is judged."""
    _, result = folded([Turn(time_ms=NOON + 9_000_000), Turn()], now_ms=NOON)
    assert result.outcome.tolist() == [FUTURE, APPLIED]
    assert result.columns["gap_ms"].tolist() == [-1]


def test_a_session_ends_after_more_than_the_gap() -> None:
    """30 minutes of silence end no session; a millisecond more does, and clears its counts."""
    gap = RULES.session_gap_ms
    rows, result = folded([Turn(), Turn(time_ms=NOON + gap), Turn(time_ms=NOON + 2 * gap + 1, action=2)])
    assert result.columns["new_session"].tolist() == [True, False, True]
    assert result.columns["session_index"].tolist() == [1, 1, 2]
    assert result.columns["session_position"].tolist() == [1, 2, 1]
    assert rows["action_session"][0, :3].tolist() == [0, 0, 1]
    assert rows["action_life"][0, :3].tolist() == [2, 0, 1]
    assert rows["session_start_ms"].tolist() == [NOON + 2 * gap + 1]


def test_counts_in_a_session_stay_at_their_largest() -> None:
    """A crawler's 65,536th view of a session neither wraps nor raises."""
    rows = LAYOUT.blank(1)
    turns = [Turn(time_ms=NOON + n, event_hash=n + 1) for n in range(65_540)]
    fold(rows, events_of(turns), RULES, None, EPOCH, 11)
    assert rows["action_session"][0, 0] == 65_535
    assert rows["action_life"][0, 0] == 65_540
    result = fold(rows, events_of([Turn(time_ms=NOON + 70_000)], 70_000), RULES, None, EPOCH, 11)
    assert result.columns["action_session"][0, 0] == 65_535


def test_an_offset_twice_ends_the_process() -> None:
    """The same offset of the same topic may not reach a row again; a recreated topic starts anew."""
    rows, _ = folded([Turn(), Turn(time_ms=NOON + 1)])
    with pytest.raises(BrokenInvariant, match=r"Offset 1 .* offset 1"):
        fold(rows, events_of([Turn(event_hash=5)], 1), RULES, None, EPOCH, 11)
    twice = events_of([Turn(), Turn(time_ms=NOON + 1)])
    twice.offset[:] = 4
    with pytest.raises(BrokenInvariant, match=r"Offset 4 .* offset 4"):
        fold(LAYOUT.blank(1), twice, RULES, None, EPOCH, 11)
    fold(rows, events_of([Turn(event_hash=5)], 1), RULES, None, b"recreate", 11)
    assert (rows["position"].tolist(), rows["epoch"][0].tobytes()) == ([1], b"recreate")


def test_rows_of_another_vocabulary_are_refused() -> None:
    """Action codes mean nothing to rows that count other actions."""
    with pytest.raises(BrokenInvariant, match="count 4 actions, the model's vocabulary has 11"):
        fold(SMALL.blank(1), events_of([Turn()]), RULES, None, EPOCH, 11)


def test_rows_without_events_stay_untouched() -> None:
    """Only the rows of the batch's users change."""
    rows, before = LAYOUT.blank(5), LAYOUT.blank(5)
    fold(rows, events_of([Turn(user=3), Turn(user=1)]), RULES, None, EPOCH, 11)
    changed = [
        user for user in range(5) if rows[user : user + 1].tobytes() != before[user : user + 1].tobytes()
    ]
    assert changed == [1, 3]


def test_an_empty_batch_folds_to_nothing() -> None:
    """No events, no columns' entries, no error; not even with no rows."""
    result = fold(LAYOUT.blank(0), events_of([]), RULES, NOON, EPOCH, 11)
    assert len(result.applied) == 0
    assert {len(column) for column in result.columns.values()} == {0}


def test_rebuilt_windows_equal_the_windows_they_come_from() -> None:
    """Replaying a window upon a blank row makes the same window; only the oldest gap is lost."""
    rows = LAYOUT.blank(40)
    fold(rows, busy_log(700, 40, 8), RULES, None, EPOCH, 11)
    fresh, events = rebuild_columns(rows, LAYOUT, n_extras=2)
    assert events.extra.shape == (len(events.row), 2)
    assert np.isnan(events.extra).all()
    result = fold(fresh, events, RULES, None, EPOCH, 11)
    assert not result.outcome.any()
    for name in ("w_action", "w_category", "w_item", "w_log_price", "window_count"):
        assert fresh[name].tobytes() == rows[name].tobytes(), name
    users = np.flatnonzero(rows["window_count"])
    assert fresh["last_ms"][users].tolist() == rows["last_ms"][users].tolist()
    oldest = LAYOUT.window - rows["window_count"][users]
    rows["w_log_gap"][users, oldest] = 0
    assert fresh["w_log_gap"].tobytes() == rows["w_log_gap"].tobytes()
