"""Laws of the timers of silence: keys in the order of time, and an index that follows the rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream.rows import LEAST, SAID, RowLayout, looked_at_ms
from stream.silence import (
    EXPECTED,
    MOST_DUE,
    RETURNED,
    PartitionTimers,
    Said,
    Silence,
    SortedIndex,
    due_end,
    moved_timers,
    read_timer_key,
    timer_key,
    timers_of,
)

LAYOUT = RowLayout(n_actions=3, state_width=4, window=2)


def row(last_ms: int, silence_s: int, said: int = 0) -> bytes:
    rows = LAYOUT.blank(1)
    rows["last_ms"], rows["silence_s"], rows["said"] = last_ms, silence_s, said
    return LAYOUT.pack(rows)[0]


@given(st.lists(st.tuples(st.integers(1, 2**63 - 1), st.binary(min_size=1, max_size=20)), max_size=30))
def test_timers_sort_by_deadline(pairs: list[tuple[int, bytes]]) -> None:
    """Bytes are in the order of time, and tell deadline and user again; a scan ends before the watermark."""
    timers = sorted(timer_key(deadline_ms, key) for deadline_ms, key in pairs)
    assert [read_timer_key(timer) for timer in timers] == sorted(pairs)
    for deadline_ms, key in pairs:
        assert not timer_key(deadline_ms, key) < due_end(deadline_ms)
        assert timer_key(deadline_ms, key) < due_end(deadline_ms + 1)


def test_a_row_has_a_timer_while_its_silence_is_waited_for() -> None:
    """Not when it never ends, not when it was said, not in a row of before there were silences."""
    rows = [row(5_000, 7), row(5_000, 0), row(5_000, 7, said=SAID), None]
    assert timers_of([b"u", b"v", b"w", b"x"], rows) == [timer_key(12_000, b"u"), None, None, None]
    old = RowLayout(3, 4, 2, version=1).blank(1)
    old["deadline_ms"] = 77
    assert timers_of([b"u"], [old.tobytes()]) == [None]


def test_due_is_what_the_watermark_has_passed() -> None:
    """The earliest first; an event may raise the watermark, and nothing lowers it."""
    index = SortedIndex()
    for deadline_ms in (300, 100, 200):
        index.move([], [timer_key(deadline_ms, b"u%d" % deadline_ms)])
    timers = PartitionTimers(index, 100)
    assert not timers.due()
    assert timers.keys_before(250) == [b"u100", b"u200"]
    timers.pass_time(101)
    timers.pass_time(50)
    assert timers.watermark_ms == 101
    assert timers.due()
    index.move([timer_key(100, b"u100")], [timer_key(400, b"u100")])
    assert not timers.due()
    assert timers.keys_before(9_999) == [b"u200", b"u300", b"u100"]


def test_one_micro_batch_takes_a_bounded_number_of_timers() -> None:
    """The rest waits for the next ones."""
    index = SortedIndex()
    for deadline_ms in range(1, MOST_DUE + 10):
        index.move([], [timer_key(deadline_ms, b"u")])
    assert len(PartitionTimers(index, 10**9).keys_before(0)) == MOST_DUE


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=60))
def test_the_index_in_memory_holds_one_timer_a_user(moves: list[tuple[int, int]]) -> None:
    """Old ones go when new ones come; deadline 0 stands for none."""
    index, held = SortedIndex(), dict[int, bytes | None]()
    for user, deadline_ms in moves:
        new = timer_key(deadline_ms, b"%d" % user) if deadline_ms else None
        old = held.get(user)
        index.move([] if old is None else [old], [] if new is None else [new])
        held[user] = new
    wanted = sorted(timer for timer in held.values() if timer is not None)
    assert index.timers_before(due_end(99), 100) == wanted
    assert len(index) == len(wanted)


def test_ids_name_the_event_and_the_deadline() -> None:
    """What began the silence and when it was too long; what ended it."""
    silence = Silence(20_001, 8, 70_001, 400_000)
    expected = Said(EXPECTED, b"a", silence, 70_001, 8)
    returned = Said(RETURNED, b"a", silence, 90_000, 12)
    assert expected.id("T/3", "a") == "T/3/8/churn.expected/a/70001"
    assert returned.id("T/3", "a") == "T/3/12/churn.returned/a"


def test_only_timers_that_move_are_written() -> None:
    """Another row at the same time, a row that comes, goes, or is said."""
    keys = [b"a", b"b", b"c", b"d"]
    before = [row(5_000, 7), None, row(8_000, 2), row(9_000, 3)]
    after = [row(6_000, 6), row(1_000, 1), None, row(9_000, 3, SAID)]
    out, into = moved_timers(keys, before, after)
    assert (out, into) == ([timer_key(10_000, b"c"), timer_key(12_000, b"d")], [timer_key(2_000, b"b")])


def test_silences_are_read_from_the_bytes_of_rows() -> None:
    """The quick look at a row's bytes sees what the layout sees."""
    rng = np.random.default_rng(1)
    for layout in (LAYOUT, RowLayout(11, 128)):
        rows = layout.blank(50)
        rows["last_ms"] = rng.integers(1, 2**41, 50)
        rows["silence_s"] = rng.integers(1, 2**32, 50)
        for timer, entry in zip(timers_of([b"k"] * 50, layout.pack(rows)), rows, strict=True):
            assert timer is not None
            assert read_timer_key(timer)[0] == int(entry["last_ms"]) + 1000 * int(entry["silence_s"])


@given(st.integers(1, 2**41), st.integers(1, 2**32 - 1))
def test_a_least_silence_is_looked_at_before_it_is_over(last_ms: int, silence_s: int) -> None:
    """By at most a quarter of it; a row's bytes say what the arrays say."""
    at_ms = int(looked_at_ms(np.array([last_ms]), np.array([silence_s]))[0])
    over_ms = last_ms + 1000 * silence_s
    assert over_ms - max(250 * silence_s, 1_000) <= at_ms <= over_ms
    assert timers_of([b"u"], [row(last_ms, silence_s, LEAST)]) == [timer_key(at_ms, b"u") if at_ms else None]


def test_events_of_a_visit_keep_their_timer() -> None:
    """While the least silence is the same, the index of timers does not move with each event."""
    times = 1_700_000_000_000 + np.arange(0, 6 * 3_600_000, 60_000)
    looked_at = looked_at_ms(times, np.full(len(times), 460_800))
    assert len(np.unique(looked_at)) <= 2
