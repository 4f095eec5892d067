"""Laws of the fold of silences: it says what the rules say event by event, however the events are cut."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.moments import Moment
from stream.rows import LEAST, SAID, looked_at_ms
from stream.silence import EXPECTED, RETURNED, Said, Silences
from stream.silence_fold import Part, fold_silences
from tests.stream.silence_reference import Reference

ROW = np.dtype(
    [("last_ms", "i8"), ("position", "i8"), ("silence_s", "u4"), ("return_millionths", "u4"), ("said", "u1")]
)


class Step(NamedTuple):
    """An event, or with ``silence_s`` None a tombstone."""

    key: bytes
    time_ms: int
    silence_s: int | None


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from([b"a", b"b", b"ab", b"\xff"]),
        st.integers(1, 60).map(lambda ten_minutes: 600_000 * ten_minutes),
        st.sampled_from([0, 1_800, 1_801, 4_000, 9_000, None]),
    ),
    max_size=24,
)


class Told:
    """Deadlines by offset, as ``stream.silence_fold.Deadlines``; a share of each is surely less, 0 tells nothing.

    Attributes:
        asked: events whose deadline was asked for.
    """

    def __init__(self, silence_s: dict[int, int], offset: np.ndarray, position: np.ndarray, share: float):
        self._silence_s, self._offset, self._position, self._share = silence_s, offset, position, share
        self.asked: list[int] = []

    def least(self, events: np.ndarray) -> np.ndarray:
        known = np.array([self._silence_s[at] for at in self._offset[events].tolist()], np.int64)
        return np.where(known > 0, (known * self._share).astype(np.int64), int(9_999 * self._share))

    def after(self, events: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.asked += events.tolist()
        return self._of(self._offset[events])

    def carried(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._of(self._position[rows])

    def _of(self, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.array([self._silence_s[at] for at in offset.tolist()], np.int64), offset


class Partition:
    """Rows in memory; every user joins every micro-batch, as if all timers might be due.

    Args:
        most: of the timers that are due only so many may be said in one micro-batch; None for all.
        alone: users of whom no record comes join without their rows when their deadlines are known.
    """

    def __init__(
        self, silence_s: dict[int, int], share: float, most: int | None = None, alone: bool = False
    ) -> None:
        self.rows: dict[bytes, np.ndarray] = {}
        self.watermark_ms = 0
        self.said_before = Moment()
        self._silence_s, self._share, self._most, self._alone = silence_s, share, most, alone

    def timers(self) -> list[tuple[Moment, bool]]:
        """What waits, in its order, and whether the deadline is known."""
        found = []
        for key, row in self.rows.items():
            last_ms, silence_s = int(row["last_ms"]), int(row["silence_s"])
            least = bool(row["said"] & LEAST)
            at_ms = last_ms + 1000 * silence_s
            if least:
                at_ms = int(looked_at_ms(np.array([last_ms]), np.array([silence_s]))[0])
            if silence_s and Moment(at_ms, key) >= self.said_before:
                found.append((Moment(at_ms, key), not least))
        return sorted(found)

    def due(self) -> bool:
        return any(moment < Moment(self.watermark_ms) for moment, _ in self.timers())

    def bound(self) -> Moment | None:
        waiting = self.timers()
        if self._most is None or len(waiting) < self._most:
            return None
        at_ms, key = waiting[self._most - 1][0]
        return Moment(at_ms, key + b"\0")

    def silences(self, keys: list[bytes]) -> Silences | None:
        """Of users who have no slot."""
        chosen = [moment.key for moment, known in self.timers() if known and moment.key not in keys]
        if not chosen:
            return None
        rows = np.array([self.rows[key] for key in chosen], ROW)
        deadline_ms = rows["last_ms"] + 1000 * rows["silence_s"].astype(np.int64)
        millionths = rows["return_millionths"].astype(np.int64)
        return Silences(chosen, rows["last_ms"], rows["position"], deadline_ms, millionths)

    def waited_for(self) -> dict[bytes, tuple[int, bool]]:
        """Deadline of each user, 0 for none, and whether that was said; a least one is asked about."""
        found = {}
        for key, row in self.rows.items():
            last_ms, least_s = int(row["last_ms"]), int(row["silence_s"])
            silence_s = least_s
            if row["said"] & LEAST:
                assert looked_at_ms(np.array([last_ms]), np.array([least_s]))[0] >= self.watermark_ms
                asked_s = self._silence_s[int(row["position"])]
                silence_s = max(asked_s, least_s) if asked_s else 0
            deadline_ms = last_ms + 1000 * silence_s if silence_s else 0
            said = silence_s > 0 and not row["said"] & LEAST and Moment(deadline_ms, key) < self.said_before
            found[key] = (deadline_ms, said)
        return found

    def slots(self, steps: list[Step]) -> tuple[list[bytes], list[int], dict[int, int], set[int]]:
        """Keys of slots, slot of each event, events before each tombstone by slot, and slots that begin blank."""
        keys, at, ended, blank = [], [], {}, set()
        slot_of: dict[bytes, int] = {}

        def slot(key: bytes, fresh: bool) -> int:
            slot_of[key] = len(keys)
            keys.append(key)
            if fresh:
                blank.add(slot_of[key])
            return slot_of[key]

        erased: set[bytes] = set()
        for step in steps:
            if step.silence_s is None:
                if step.key not in slot_of and step.key not in erased:
                    slot(step.key, False)
                if step.key in slot_of:
                    ended[slot_of.pop(step.key)] = len(at)
                erased.add(step.key)
            else:
                known = slot_of.get(step.key)
                at.append(slot(step.key, step.key in erased) if known is None else known)
        known = {moment.key for moment, known in self.timers() if known} if self._alone else set()
        for key in self.rows:
            if key not in keys and (key not in known or key in erased):
                slot(key, False)
        return keys, at, ended, blank

    def take(self, steps: list[Step], first_offset: int) -> list[Said]:
        keys, at, ended, blank = self.slots(steps)
        rows = np.zeros(len(keys), ROW)
        for slot, key in enumerate(keys):
            if slot not in blank and key in self.rows:
                rows[slot] = self.rows[key]
        events = [(place, step) for place, step in enumerate(steps) if step.silence_s is not None]
        row, times = np.array(at, np.int32), np.array([step.time_ms for _, step in events], np.int64)
        offset = np.array([first_offset + place for place, _ in events], np.int64)
        before = rows.copy()
        after_ms = np.empty(len(row), np.int64)
        for event, slot in enumerate(at):
            after_ms[event] = rows["last_ms"][slot] = max(rows["last_ms"][slot], times[event])
            rows["position"][slot] = offset[event]

        told = Told(self._silence_s, offset, before["position"], self._share)
        waiting = self.silences(keys) if self._alone else None
        part = Part(
            keys,
            slice(0, len(keys)),
            slice(0, len(row)),
            self.watermark_ms,
            ended,
            self.said_before,
            self.bound(),
            waiting,
        )
        columns: dict[str, Any] = {"row": row, "event_time_ms": times}
        (said,), missed, (self.said_before,) = fold_silences(
            rows, before["last_ms"], before["position"], columns, after_ms, offset, [part], told
        )
        written = {*at, *missed.tolist()}
        for step in steps:
            if step.silence_s is None:
                self.rows.pop(step.key, None)
        for slot in sorted(written - ended.keys()):
            self.rows[keys[slot]] = rows[slot].copy()
        self.watermark_ms = max([self.watermark_ms, *times.tolist()])
        return said


def told_by_reference(steps: list[Step]) -> tuple[list[Said], Reference]:
    reference = Reference()
    said: list[Said] = []
    for offset, step in enumerate(steps):
        if step.silence_s is None:
            reference.erase(step.key)
        else:
            said += reference.event(step.key, step.time_ms, offset, step.silence_s, offset)
    return said, reference


@settings(deadline=None, max_examples=400)
@given(STEPS, st.lists(st.integers(0, 24), max_size=6), st.sampled_from([0.0, 0.3, 1.0]))
def test_micro_batches_say_what_is_said_event_by_event(
    steps: list[Step], cuts: list[int], share: float
) -> None:
    """Any order of events and tombstones, cut anywhere; order, deadlines and positions included.

    Whether a lesser silence is known beforehand, and how much less it is, changes nothing.
    """
    expected, reference = told_by_reference(steps)
    partition = Partition({at: step.silence_s or 0 for at, step in enumerate(steps)}, share)
    bounds = [0, *sorted(min(cut, len(steps)) for cut in cuts), len(steps)]
    said: list[Said] = []
    for start, end in pairwise(bounds):
        said += partition.take(steps[start:end], start)
    assert said == expected
    assert partition.waited_for() == {
        key: (waited.silence.deadline_ms, waited.said) for key, waited in reference.users.items()
    }


@settings(deadline=None, max_examples=400)
@given(
    STEPS,
    st.lists(st.integers(0, 24), max_size=6),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([None, 1, 2]),
    st.booleans(),
)
def test_of_many_timers_some_are_said_later(
    steps: list[Step], cuts: list[int], share: float, most: int | None, alone: bool
) -> None:
    """Of each user the same is said in the same order, with rows or without, however few at once."""
    expected, reference = told_by_reference(steps)
    partition = Partition({at: step.silence_s or 0 for at, step in enumerate(steps)}, share, most, alone)
    bounds = [0, *sorted(min(cut, len(steps)) for cut in cuts), len(steps)]
    said: list[Said] = []
    for start, end in pairwise(bounds):
        said += partition.take(steps[start:end], start)
    while partition.due():
        told = partition.take([], len(steps))
        assert [(one.event_time_ms, one.key) for one in told] == sorted(
            (one.event_time_ms, one.key) for one in told
        )
        said += told
    for key in {step.key for step in steps}:
        assert [one for one in said if one.key == key] == [one for one in expected if one.key == key]
    assert partition.waited_for() == {
        key: (waited.silence.deadline_ms, waited.said) for key, waited in reference.users.items()
    }


def test_a_silence_that_a_row_calls_said_is_not_said_again() -> None:
    """Builds without a moment in the mark noted it there; the return is told as ever."""
    rows, hour = np.zeros(2, ROW), 3_600_000
    rows["last_ms"], rows["silence_s"], rows["said"] = hour, 1_800, SAID
    columns: dict[str, Any] = {"row": np.array([1], np.int32), "event_time_ms": np.array([9 * hour])}
    part = Part([b"a", b"b"], slice(0, 2), slice(0, 1), 5 * hour)
    (said,), changed, _ = fold_silences(
        rows,
        rows["last_ms"].copy(),
        np.array([4, 5]),
        columns,
        columns["event_time_ms"],
        np.array([7]),
        [part],
        Told({7: 0}, np.array([7]), np.zeros(2), 0.0),
    )
    assert [(one.kind, one.key) for one in said] == [(RETURNED, b"b")]
    assert (rows["said"].tolist(), changed.tolist()) == ([SAID, 0], [])


@settings(deadline=None)
@given(STEPS, st.lists(st.integers(0, 24), max_size=6))
def test_rows_do_not_tell_how_events_were_cut(steps: list[Step], cuts: list[int]) -> None:
    """Also when a deadline was asked for is the same in each cut."""
    silence_s = {at: step.silence_s or 0 for at, step in enumerate(steps)}
    whole, cut = Partition(silence_s, 0.5), Partition(silence_s, 0.5)
    whole.take(steps, 0)
    for start, end in pairwise([0, *sorted(min(at, len(steps)) for at in cuts), len(steps)]):
        cut.take(steps[start:end], start)
    assert {key: row.tobytes() for key, row in cut.rows.items()} == {
        key: row.tobytes() for key, row in whole.rows.items()
    }


def test_partitions_of_one_round_do_not_see_each_other() -> None:
    """Two partitions folded together say what each says alone; the watermark of one does not move the other."""
    hour = 3_600_000
    rows = np.zeros(3, ROW)
    rows["silence_s"], rows["last_ms"] = [1_800, 1_800, 0], [hour, hour, 0]
    columns: dict[str, Any] = {
        "row": np.array([2], np.int32),
        "event_time_ms": np.array([9 * hour]),
    }
    parts = [Part([b"a"], slice(0, 1), slice(0, 0), hour), Part([b"b", b"c"], slice(1, 3), slice(0, 1), hour)]
    said, missed, reached = fold_silences(
        rows,
        rows["last_ms"].copy(),
        np.array([4, 5, -1]),
        columns,
        np.array([9 * hour]),
        np.array([7]),
        parts,
        Told({7: 0}, np.array([7]), np.zeros(3), 0.0),
    )
    assert [[(one.kind, one.key, one.offset) for one in some] for some in said] == [[], [(EXPECTED, b"b", 5)]]
    assert missed.tolist() == []
    assert reached == [Moment(hour), Moment(9 * hour)]
    assert rows["said"].tolist() == [0, 0, 0]


def test_deadlines_are_asked_for_where_they_can_matter() -> None:
    """Of each user's last event, and of one followed by so long a silence that its timer may have run out."""
    minute = 60_000
    times = np.array([0, 10, 20, 60, 61], np.int64) * minute + minute
    columns: dict[str, Any] = {
        "row": np.array([0, 0, 0, 0, 1], np.int32),
        "event_time_ms": times,
    }
    offset = np.arange(5)
    told = Told(dict.fromkeys(range(5), 1_800), offset, np.zeros(2), 0.0)
    rows = np.zeros(2, ROW)
    part = Part([b"a", b"b"], slice(0, 2), slice(0, 5), 0)
    (said,), *_ = fold_silences(
        rows, np.zeros(2, np.int64), np.full(2, -1), columns, times, offset, [part], told
    )
    assert told.asked == [2, 3, 4]
    assert [(one.kind, one.key, one.event_time_ms // minute) for one in said] == [
        (EXPECTED, b"a", 51),
        ("churn.returned", b"a", 61),
    ]


def test_a_deadline_that_is_surely_far_is_asked_for_when_time_comes_near() -> None:
    """Not with the event, not with others, but with the row, once, before the lesser silence is over."""
    rows, hour, day = np.zeros(2, ROW), 3_600_000, 86_400
    times = np.array([100 * hour, 100 * hour + 1])
    columns: dict[str, Any] = {"row": np.array([0, 1], np.int32), "event_time_ms": times}
    offset = np.array([3, 4])
    told = Told({3: 2 * day, 4: 8 * day}, offset, offset, 0.5)
    part = Part([b"a", b"b"], slice(0, 2), slice(0, 2), 0)
    fold_silences(rows, np.zeros(2, np.int64), np.full(2, -1), columns, times, offset, [part], told)
    assert told.asked == []
    assert rows["silence_s"].tolist() == [day, 4 * day]
    assert rows["said"].tolist() == [LEAST, LEAST]

    nothing: dict[str, Any] = {"row": np.zeros(0, np.int32), "event_time_ms": np.zeros(0, np.int64)}
    for later_hours, waits_s, said_of, changed in (
        (17, [day, 4 * day], [LEAST, LEAST], []),
        (24, [2 * day, 4 * day], [0, LEAST], [0]),
        (48, [2 * day, 4 * day], [0, LEAST], []),
        (49, [2 * day, 4 * day], [0, LEAST], []),
    ):
        part = Part([b"a", b"b"], slice(0, 2), slice(0, 0), (100 + later_hours) * hour)
        (said,), written, _ = fold_silences(
            rows, times, offset, nothing, nothing["event_time_ms"], nothing["event_time_ms"], [part], told
        )
        assert (rows["silence_s"].tolist(), rows["said"].tolist()) == (waits_s, said_of)
        assert written.tolist() == changed
    assert [(one.key, one.event_time_ms) for one in said] == [(b"a", 148 * hour)]


def test_a_clock_ages_ahead_misses_nobody() -> None:
    """Deadlines beyond what a row can say are none, instead of some time in the past."""
    columns: dict[str, Any] = {
        "row": np.array([0, 1], np.int32),
        "event_time_ms": np.array([2**53 - 1, 1_700_000_000_000]),
    }
    rows = np.zeros(2, ROW)
    part = Part([b"a", b"b"], slice(0, 2), slice(0, 2), 0)
    (said,), *_ = fold_silences(
        rows,
        np.zeros(2, np.int64),
        np.full(2, -1),
        columns,
        columns["event_time_ms"],
        np.arange(2),
        [part],
        Told({0: 1_800, 1: 1_800}, np.arange(2), np.zeros(2), 0.0),
    )
    assert said == []
    assert rows["silence_s"].tolist() == [1_800, 0]
