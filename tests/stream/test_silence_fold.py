"""Laws of the fold of silences: it says what the rules say event by event, however the events are cut."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.silence import EXPECTED, Said
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


class Partition:
    """Rows in memory; every user joins every micro-batch, as if all timers might be due."""

    def __init__(self) -> None:
        self.rows: dict[bytes, np.ndarray] = {}
        self.watermark_ms = 0

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
        for key in self.rows:
            if key not in keys:
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

        def deadlines(asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            chosen = [events[event][1].silence_s for event in asked]
            return np.array(chosen, np.int64), offset[asked]

        part = Part(keys, slice(0, len(keys)), slice(0, len(row)), self.watermark_ms, ended)
        columns: dict[str, Any] = {"row": row, "event_time_ms": times}
        (said,), missed = fold_silences(
            rows, before["last_ms"], before["position"], columns, after_ms, offset, [part], deadlines
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
@given(STEPS, st.lists(st.integers(0, 24), max_size=6))
def test_micro_batches_say_what_is_said_event_by_event(steps: list[Step], cuts: list[int]) -> None:
    """Any order of events and tombstones, cut anywhere; order, deadlines and positions included."""
    expected, reference = told_by_reference(steps)
    partition = Partition()
    bounds = [0, *sorted(min(cut, len(steps)) for cut in cuts), len(steps)]
    said: list[Said] = []
    for start, end in pairwise(bounds):
        said += partition.take(steps[start:end], start)
    assert said == expected
    waited_for = {key: (w.silence.deadline_ms, w.said) for key, w in reference.users.items()}
    assert {
        key: (
            int(row["last_ms"]) + 1000 * int(row["silence_s"]) if row["silence_s"] else 0,
            bool(row["said"]),
        )
        for key, row in partition.rows.items()
    } == waited_for


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
    said, missed = fold_silences(
        rows,
        rows["last_ms"].copy(),
        np.array([4, 5, -1]),
        columns,
        np.array([9 * hour]),
        np.array([7]),
        parts,
        lambda asked: (np.zeros(len(asked), np.int64), np.zeros(len(asked), np.int64)),
    )
    assert [[(one.kind, one.key, one.offset) for one in some] for some in said] == [[], [(EXPECTED, b"b", 5)]]
    assert missed.tolist() == [1]
    assert rows["said"].tolist() == [0, 1, 0]


def test_deadlines_are_asked_for_where_they_can_matter() -> None:
    """Of each user's last event, and of one followed by so long a silence that its timer may have run out."""
    minute = 60_000
    times = np.array([0, 10, 20, 60, 61], np.int64) * minute + minute
    columns: dict[str, Any] = {
        "row": np.array([0, 0, 0, 0, 1], np.int32),
        "event_time_ms": times,
    }
    asked: list[int] = []

    def deadlines(events: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked.extend(events.tolist())
        return np.full(len(events), 1_800), np.zeros(len(events), np.int64)

    rows = np.zeros(2, ROW)
    part = Part([b"a", b"b"], slice(0, 2), slice(0, 5), 0)
    (said,), _ = fold_silences(
        rows, np.zeros(2, np.int64), np.full(2, -1), columns, times, np.arange(5), [part], deadlines
    )
    assert asked == [2, 3, 4]
    assert [(one.kind, one.key, one.event_time_ms // minute) for one in said] == [
        (EXPECTED, b"a", 51),
        ("churn.returned", b"a", 61),
    ]


def test_a_clock_ages_ahead_misses_nobody() -> None:
    """Deadlines beyond what a row can say are none, instead of some time in the past."""
    columns: dict[str, Any] = {
        "row": np.array([0, 1], np.int32),
        "event_time_ms": np.array([2**53 - 1, 1_700_000_000_000]),
    }
    rows = np.zeros(2, ROW)
    part = Part([b"a", b"b"], slice(0, 2), slice(0, 2), 0)
    (said,), _ = fold_silences(
        rows,
        np.zeros(2, np.int64),
        np.full(2, -1),
        columns,
        columns["event_time_ms"],
        np.arange(2),
        [part],
        lambda asked: (np.full(len(asked), 1_800), np.zeros(len(asked), np.int64)),
    )
    assert said == []
    assert rows["silence_s"].tolist() == [1_800, 0]
