"""Laws of the timers of silence: keys in the order of time, and an index that follows the rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream.moments import Moment
from stream.rows import LEAST, SAID, RowLayout, looked_at_ms
from stream.silence import (
    EXPECTED,
    MOST_DUE,
    RETURNED,
    PartitionTimers,
    Said,
    Silence,
    Silences,
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
    (entry, *others) = timers_of([b"u", b"v", b"w", b"x"], rows)
    assert entry is not None
    assert (entry[0], others) == (timer_key(12_000, b"u"), [None, None, None])
    old = RowLayout(3, 4, 2, version=1).blank(1)
    old["deadline_ms"] = 77
    assert timers_of([b"u"], [old.tobytes()]) == [None]


def test_due_is_what_the_watermark_has_passed() -> None:
    """The earliest first; an event may raise the watermark, and nothing lowers it."""
    index = SortedIndex()
    for deadline_ms in (300, 100, 200):
        index.move([], [(timer_key(deadline_ms, b"u%d" % deadline_ms), b"")])
    timers = PartitionTimers(index, 100)
    assert not timers.due()
    assert timers.due_by(250).looked_at == [b"u100", b"u200"]
    timers.pass_time(101)
    timers.pass_time(50)
    assert timers.watermark_ms == 101
    assert timers.due()
    index.move([timer_key(100, b"u100")], [(timer_key(400, b"u100"), b"")])
    assert not timers.due()
    assert timers.due_by(9_999).looked_at == [b"u200", b"u300", b"u100"]


def test_what_was_said_is_not_due_again() -> None:
    """At one time by key; the moment is never taken back."""
    index = SortedIndex()
    for deadline_ms, key in ((100, b"b"), (100, b"c"), (100, b"a"), (90, b"d"), (200, b"a")):
        index.move([], [(timer_key(deadline_ms, key), b"")])
    timers = PartitionTimers(index, 300)
    timers.pass_time(0, Moment(100, b"b"))
    timers.pass_time(0, Moment(99, b"z"))
    assert timers.due_by(0).looked_at == [b"b", b"c", b"a"]
    timers.pass_time(0, Moment(300))
    assert not timers.due()


def test_a_timer_says_what_its_alert_needs() -> None:
    """Last time, offset, deadline and chance come back from the entry; a least silence has none."""
    rows = LAYOUT.blank(2)
    rows["last_ms"], rows["silence_s"], rows["return_millionths"] = [5_000, 9_000], [7, 2], [12, 999_999]
    rows["position"] = [2**40, 3]
    entries = [entry for entry in timers_of([b"u", b"v"], LAYOUT.pack(rows)) if entry is not None]
    silences = Silences.of(entries)
    columns = zip(*(column.tolist() for column in silences.columns), strict=True)
    assert silences.keys == [b"u", b"v"]
    assert [Silence(*each) for each in columns] == [
        Silence(5_000, 2**40, 12_000, 12),
        Silence(9_000, 3, 11_000, 999_999),
    ]
    assert silences.before(Moment(12_000)).keys == [b"v"]
    assert silences.before(Moment(12_000, b"uu")).keys == [b"u", b"v"]


def test_one_micro_batch_takes_a_bounded_number_of_timers() -> None:
    """The rest waits for the next ones, also when all are due at one time."""
    index = SortedIndex()
    for number in range(MOST_DUE + 10):
        index.move([], [(timer_key(7, b"u%05d" % number), b"")])
    timers = PartitionTimers(index, 10**9)
    due = timers.due_by(0)
    assert due.bound == Moment(7, b"u%05d\0" % (MOST_DUE - 1))
    timers.pass_time(0, due.bound)
    assert [due.looked_at, timers.due_by(0).looked_at] == [
        [b"u%05d" % number for number in range(MOST_DUE)],
        [b"u%05d" % number for number in range(MOST_DUE, MOST_DUE + 10)],
    ]
    assert timers.due_by(0).bound is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=60))
def test_the_index_in_memory_holds_one_timer_a_user(moves: list[tuple[int, int]]) -> None:
    """Old ones go when new ones come; deadline 0 stands for none."""
    index, held = SortedIndex(), dict[int, bytes | None]()
    for user, deadline_ms in moves:
        new = timer_key(deadline_ms, b"%d" % user) if deadline_ms else None
        old = held.get(user)
        index.move([] if old is None else [old], [] if new is None else [(new, b"%d" % len(moves))])
        held[user] = new
    wanted = sorted(timer for timer in held.values() if timer is not None)
    entries = [(timer, b"%d" % len(moves)) for timer in wanted]
    assert index.timers_between(b"", due_end(99), 100) == entries
    assert (
        index.timers_between(timer_key(3, b"2"), due_end(99), 2)
        == [entry for entry in entries if entry[0] >= timer_key(3, b"2")][:2]
    )
    assert len(index) == len(wanted)


def test_ids_name_the_event_and_the_deadline() -> None:
    """What began the silence and when it was too long; what ended it."""
    silence = Silence(20_001, 8, 70_001, 400_000)
    expected = Said(EXPECTED, b"a", silence, 70_001, 8)
    returned = Said(RETURNED, b"a", silence, 90_000, 12)
    assert expected.id("T/3", "a") == "T/3/8/churn.expected/a/70001"
    assert returned.id("T/3", "a") == "T/3/12/churn.returned/a"


def test_only_timers_that_move_are_written() -> None:
    """Another row at the same time, a row that comes, goes, or was said; what is known of a silence is renewed."""
    keys = [b"a", b"b", b"c", b"d", b"e", b"f"]
    before = [row(5_000, 7, LEAST), None, row(8_000, 2), row(9_000, 3), row(5_000, 7), row(5_000, 7, LEAST)]
    after = [
        row(6_000, 6, LEAST),
        row(1_000, 1, LEAST),
        None,
        row(9_000, 3, SAID),
        row(6_000, 6),
        row(5_000, 7),
    ]
    out, into = moved_timers(keys, before, after)
    assert out == [timer_key(at_ms, key) for at_ms, key in ((10_000, b"c"), (12_000, b"d"))]
    values = {key: entry[1] for key, entry in zip(keys, timers_of(keys, after), strict=True) if entry}
    assert into == [
        (timer_key(2_000, b"b"), b""),
        (timer_key(12_000, b"e"), values[b"e"]),
        (timer_key(12_000, b"f"), values[b"f"]),
    ]
    assert len(values[b"e"]) == 16


def test_silences_are_read_from_the_bytes_of_rows() -> None:
    """The quick look at a row's bytes sees what the layout sees."""
    rng = np.random.default_rng(1)
    for layout in (LAYOUT, RowLayout(11, 128)):
        rows = layout.blank(50)
        rows["last_ms"] = rng.integers(1, 2**41, 50)
        rows["silence_s"] = rng.integers(1, 2**32, 50)
        for timer, entry in zip(timers_of([b"k"] * 50, layout.pack(rows)), rows, strict=True):
            assert timer is not None
            assert read_timer_key(timer[0])[0] == int(entry["last_ms"]) + 1000 * int(entry["silence_s"])


@given(st.integers(1, 2**41), st.integers(1, 2**32 - 1))
def test_a_least_silence_is_looked_at_before_it_is_over(last_ms: int, silence_s: int) -> None:
    """By at most a quarter of it; a row's bytes say what the arrays say."""
    at_ms = int(looked_at_ms(np.array([last_ms]), np.array([silence_s]))[0])
    over_ms = last_ms + 1000 * silence_s
    assert over_ms - max(250 * silence_s, 1_000) <= at_ms <= over_ms
    entry = (timer_key(at_ms, b"u"), b"") if at_ms else None
    assert timers_of([b"u"], [row(last_ms, silence_s, LEAST)]) == [entry]


def test_events_of_a_visit_keep_their_timer() -> None:
    """While the least silence is the same, the index of timers does not move with each event."""
    times = 1_700_000_000_000 + np.arange(0, 6 * 3_600_000, 60_000)
    looked_at = looked_at_ms(times, np.full(len(times), 460_800))
    assert len(np.unique(looked_at)) <= 2
