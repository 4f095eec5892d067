"""Laws of the timers of silence: one alert a silence, none too early, whatever comes in which order."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from stream.silence import (
    EXPECTED,
    RETURNED,
    Said,
    Silence,
    SilenceTimers,
    SortedIndex,
    due_end,
    read_timer_key,
    timer_key,
    timer_of,
)


class Step(NamedTuple):
    """An event, or with ``silence_ms`` None a tombstone, or with ``key`` None a mere passing of time."""

    key: bytes | None
    time_ms: int
    silence_ms: int | None


KEYS = [b"a", b"b", b"ab", b"\xff"]
STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from([*KEYS, *KEYS, None]),
        st.integers(1, 400),
        st.sampled_from([0, 1, 5, 20, 90, None]),
    ),
    max_size=40,
)


def fresh() -> SilenceTimers:
    return SilenceTimers({}, SortedIndex())


def take(timers: SilenceTimers, step: Step, offset: int) -> list[Said]:
    if step.key is None:
        return timers.pass_time(step.time_ms)
    if step.silence_ms is None:
        timers.erase(step.key)
        return []
    return timers.apply_event(step.key, step.time_ms, offset, step.silence_ms)


def run(steps: list[Step]) -> list[list[Said]]:
    timers = fresh()
    return [take(timers, step, offset) for offset, step in enumerate(steps)]


def by_search(steps: list[Step]) -> list[list[tuple[str, bytes, int, int]]]:
    """The same by looking at every user on every step, without an index."""
    users: dict[bytes, dict[str, int]] = {}
    watermark, answer = 0, []
    for offset, (key, time_ms, silence_ms) in enumerate(steps):
        said: list[tuple[str, bytes, int, int]] = []
        answer.append(said)
        if key is not None and silence_ms is None:
            users.pop(key, None)
            continue
        watermark = max(watermark, time_ms)
        due = [
            (user["deadline"], name)
            for name, user in users.items()
            if not user["said"]
            and 0 < user["deadline"] < watermark
            and not (name == key and time_ms <= user["deadline"])
        ]
        for deadline, name in sorted(due):
            users[name]["said"] = 1
            said.append((EXPECTED, name, deadline, users[name]["offset"]))
        if key is None or silence_ms is None:
            continue
        last = time_ms
        if key in users:
            last = max(last, users[key]["last"])
            if users[key]["said"]:
                said.append((RETURNED, key, time_ms, offset))
        deadline = last + silence_ms if silence_ms else 0
        users[key] = {"last": last, "offset": offset, "deadline": deadline, "said": 0}
    return answer


@given(STEPS)
def test_the_index_says_what_a_look_at_everybody_would_say(steps: list[Step]) -> None:
    """Any order of events, tombstones and watermarks; the order of what is said included."""
    said = [[(one.kind, one.key, one.event_time_ms, one.offset) for one in some] for some in run(steps)]
    assert said == by_search(steps)


@given(STEPS)
def test_a_silence_is_said_once_and_never_before_its_deadline(steps: list[Step]) -> None:
    """An alert names an event that began a silence: no two name the same, and the watermark is beyond each."""
    watermark, told = 0, set()
    for step, some in zip(steps, run(steps), strict=True):
        if step.key is None or step.silence_ms is not None:
            watermark = max(watermark, step.time_ms)
        for one in some:
            if one.kind == EXPECTED:
                assert one.event_time_ms == one.silence.deadline_ms < watermark
                assert one.offset not in told
                told.add(one.offset)
            else:
                assert one.silence.said
                assert one.silence.offset in told
                assert one.key == step.key


@given(STEPS)
def test_ids_differ_and_do_not_depend_on_the_run(steps: list[Step]) -> None:
    """The same records give the same ids, each of them once."""
    ids = [one.id("T/0", one.key.hex()) for some in run(steps) for one in some]
    assert ids == [one.id("T/0", one.key.hex()) for some in run(steps) for one in some]
    assert len(set(ids)) == len(ids)


@given(STEPS, st.integers(0, 40))
def test_a_restored_partition_goes_on_as_if_nothing_had_happened(steps: list[Step], cut: int) -> None:
    """The index is made of the rows alone; what was said before is not said again."""
    timers = fresh()
    before = [take(timers, step, offset) for offset, step in enumerate(steps[:cut])]
    rows = dict(timers.rows)
    index = SortedIndex(filter(None, (timer_of(key, silence) for key, silence in rows.items())))
    restored = SilenceTimers(rows, index, timers.watermark_ms)
    after = [take(restored, step, cut + offset) for offset, step in enumerate(steps[cut:])]
    assert before + after == run(steps)


@given(STEPS, st.integers(1, 7))
def test_a_store_that_follows_the_changes_holds_the_timers_of_the_rows(steps: list[Step], every: int) -> None:
    """Puts and deletes, applied a micro-batch at a time, leave one key for each user who is waited for."""
    timers, stored = fresh(), set()
    for offset, step in enumerate(steps):
        take(timers, step, offset)
        if offset % every == 0 or offset == len(steps) - 1:
            for timer, put in timers.take_changes().items():
                (stored.add if put else stored.discard)(timer)
            expected = {timer_of(key, silence) for key, silence in timers.rows.items()} - {None}
            assert stored == expected


@given(st.lists(st.tuples(st.integers(1, 2**63 - 1), st.binary(min_size=1, max_size=20)), max_size=30))
def test_timers_sort_by_deadline(pairs: list[tuple[int, bytes]]) -> None:
    """Bytes are in the order of time, and tell deadline and user again; a scan ends before the watermark."""
    timers = sorted(timer_key(deadline_ms, key) for deadline_ms, key in pairs)
    assert [read_timer_key(timer) for timer in timers] == sorted(pairs)
    for deadline_ms, key in pairs:
        assert not timer_key(deadline_ms, key) < due_end(deadline_ms)
        assert timer_key(deadline_ms, key) < due_end(deadline_ms + 1)


def test_a_source_that_stops_alerts_nobody() -> None:
    """Without an event the watermark stands, however long one waits; the first one after it brings the alert."""
    timers = fresh()
    assert timers.apply_event(b"a", 1_000, 0, 50) == []
    assert timers.pass_time(1_000) == []
    assert timers.watermark_ms == 1_000
    assert [one.kind for one in timers.apply_event(b"b", 1_051, 1, 50)] == [EXPECTED]


def test_an_event_at_the_deadline_is_in_time() -> None:
    """Whichever of two events of one millisecond comes first."""
    for order in ((b"a", b"b"), (b"b", b"a")):
        timers = fresh()
        timers.apply_event(b"a", 100, 0, 50)
        assert [timers.apply_event(key, 150, 1 + n, 50) for n, key in enumerate(order)] == [[], []]


def test_who_comes_back_is_said_and_waited_for_again() -> None:
    """Expected, returned, expected: each once, with ids of their own."""
    timers = fresh()
    timers.apply_event(b"a", 100, 7, 50)
    said = timers.pass_time(10_000) + timers.pass_time(20_000)
    said += timers.apply_event(b"a", 20_001, 8, 50) + timers.pass_time(30_000)
    assert [one.id("T/3", "a") for one in said] == [
        "T/3/7/churn.expected/a/150",
        "T/3/8/churn.returned/a",
        "T/3/8/churn.expected/a/20051",
    ]
    assert timers.rows[b"a"] == Silence(20_001, 8, 20_051, said=True)


def test_an_event_that_arrives_late_but_happened_in_time_prevents_the_alert() -> None:
    """The watermark is beyond the deadline, but the event itself says that the user was not silent."""
    timers = fresh()
    timers.apply_event(b"a", 100, 0, 500)
    timers.watermark_ms = 1_000
    assert timers.apply_event(b"a", 400, 1, 5_000) == []
    assert timers.pass_time(2_000) == []


def test_the_index_does_not_grow_with_the_number_of_events() -> None:
    """A heap that forgets lazily is cleared before it is twice what it has to hold and a thousand more."""
    index, users = SortedIndex(), 10
    timers = SilenceTimers({}, index)
    for number in range(20_000):
        timers.apply_event(b"%d" % (number % users), 1_000 + number, number, 1_000_000)
    assert len(index) == users
    assert len(index._heap) <= 2 * users + 1_001
