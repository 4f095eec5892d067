"""Laws of the detector of fake accounts that runs live: rules, terms, bounds, and what may not matter."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from models.fraud.own_terms import OwnScores
from models.fraud.rules import DEFAULT_LIMITS
from stream.alerts import Alert
from stream.errors import ConfigurationError, DamagedRow
from stream.group_detectors import MAX_ROW_BYTES, USER, Group, GroupEvent
from stream.outputs import load_schema
from stream.settings import load_settings
from stream.user_news import ODDITIES, TOO_PREDICTABLE, UserEvent
from stream.user_row import MOST_ORDERS, UserRow
from stream.user_scores import user_watch
from stream.user_watch import UserWatch, _plain_terms, countable

SECOND_MS, HOUR_MS = 1_000, 3_600_000
DAY_MS = 24 * HOUR_MS
START_MS = 1_700_000_000_000
NOBODY = Group(USER, "u")
WATCH = UserWatch("clicks")
RULES = replace(WATCH, limits=DEFAULT_LIMITS)


def told(at_ms: int, life: int, **more: Any) -> UserEvent:
    """A record about a user's ``life``-th event; what does not say otherwise is an oddity of nobody."""
    fields = {"action": "view", "item_id": "i", "user_id": "u", "partition": 2, "offset": 10 * life}
    return UserEvent(event_time_ms=START_MS + at_ms, life_events=life, **fields | more)


def order(at_ms: int, number: int, every: int = 10, **more: Any) -> UserEvent:
    """The user's ``number``-th order, one in ``every`` of its events, of a thing of its own."""
    fields = {"order_id": f"o{number}", "item_id": f"i{number}", "orders": number} | more
    return told(at_ms, fields.pop("life", number * every), action="purchase", **fields)


def run(
    calls: Sequence[Sequence[GroupEvent]], watch: UserWatch = WATCH, row: bytes | None = None
) -> list[Alert]:
    """The alerts of consecutive calls through stored rows, the watermark at the latest event."""
    alerts, watermark_ms = [], 0
    for events in calls:
        watermark_ms = max([watermark_ms, *(event.event_time_ms for event in events)])
        fold = watch.fold(NOBODY, row, events, watermark_ms)
        assert fold.row is None or len(fold.row) <= watch.max_row_bytes < MAX_ROW_BYTES
        assert fold.due_ms is None or fold.due_ms > watermark_ms
        row, alerts = fold.row, alerts + fold.alerts
    return alerts


def codes(alerts: Sequence[Alert]) -> set[str]:
    return {reason["code"] for alert in alerts for reason in alert.reasons}


# ---------------------------------------------------------------------- who is flagged


def burst(count: int = 9, pause_ms: int = 20 * SECOND_MS, **more: Any) -> list[UserEvent]:
    """Orders of two things, one after the other."""
    return [order(n * pause_ms, n, every=5, item_id=f"i{n % 2}", **more) for n in range(1, count + 1)]


def test_a_burst_of_orders_is_flagged_within_two_minutes_with_its_orders() -> None:
    """The alert names the terms, each with the source positions of its orders, and is as the schema wants it."""
    alerts = run([burst(pause_ms=5 * SECOND_MS, pace_ms=6 * SECOND_MS)])
    first = alerts[0]
    assert first.event_time_ms - START_MS <= 30 * SECOND_MS
    assert {"haste", "orders_at_once", "same_order_again"} <= codes(alerts)
    assert codes(run([burst()])) == {"orders_at_once", "same_order_again"}, "without haste a little later"
    assert (first.kind, first.subject_type, first.subject, first.probability) == (
        "fake_account",
        "user",
        "u",
        None,
    )
    assert 0.99 <= first.score <= 1
    validator = jsonschema.Draft202012Validator(load_schema("alerts.fraud"))
    for alert in alerts:
        validator.validate(json.loads(alert.as_json()))
        positions = {f"{one['source']['partition']}/{one['source']['offset']}" for one in alert.evidence}
        for reason in alert.reasons:
            assert reason["events"]
            assert set(reason["events"].split()) <= positions
        assert all(one["event_time_ms"] <= alert.event_time_ms for one in alert.evidence)
        assert all(one["order_id"].startswith("o") for one in alert.evidence)
    assert len({alert.id for alert in alerts}) == len(alerts)


@pytest.mark.parametrize(
    "events",
    [
        pytest.param([order(n * 5 * HOUR_MS, n) for n in range(1, 60)], id="heavy buyer"),
        pytest.param([order(n * 9 * DAY_MS, n, every=1) for n in range(1, 200)], id="a log of orders alone"),
        pytest.param(
            [order(0, 1, item_id=f"i{n}", life=40 + n, orders=n) for n in range(1, 30)], id="a large basket"
        ),
        pytest.param(
            [order(0, n, order_id=None, item_id=f"i{n}", life=40 + n) for n in range(1, 30)],
            id="a basket without a number",
        ),
        pytest.param([order(n * DAY_MS, n, item_id="milk") for n in range(1, 4)], id="milk again"),
        pytest.param([order(n * 600 * SECOND_MS, n) for n in range(1, 5)], id="four orders in an hour"),
        pytest.param([told(0, 16, took_ms=2_000)], id="a hasty stretch"),
        pytest.param([order(0, 1, pace_ms=0)], id="an order that came in one upload with seven other events"),
        pytest.param(
            [told(n * SECOND_MS, 8 * n, oddity=n % 3, anomaly=1.0) for n in range(1, 300)],
            id="whom the model does not fit",
        ),
        pytest.param(
            [told(n * SECOND_MS, 8 * n, oddity=TOO_PREDICTABLE, anomaly=1.0) for n in range(1, 300)],
            id="who is as regular as a machine and does nothing else",
        ),
    ],
)
def test_who_only_is_unusual_is_not_flagged(events: list[UserEvent]) -> None:
    """One odd thing, a basket of many lines, or a model that does not fit a shop is no fake account."""
    assert run([events], RULES) == []


@pytest.mark.parametrize(
    ("code", "events"),
    [
        ("haste", [*burst(3), told(HOUR_MS, 40, took_ms=900)]),
        ("haste", [order(n * 30 * SECOND_MS, n, pace_ms=2_000, item_id="i") for n in range(1, 5)]),
        ("orders_at_once", [order(n * SECOND_MS, n) for n in range(1, 41)]),
        ("same_order_again", [order(n * 2 * HOUR_MS, n, item_id="i") for n in range(1, 12)]),
        ("hardly_looks", [order(n * 60 * SECOND_MS, n, every=1) for n in range(1, 25)]),
        (
            "too_predictable",
            [
                *(told(n * SECOND_MS, 32 * n, oddity=TOO_PREDICTABLE, anomaly=1.0) for n in range(1, 6)),
                *(order(HOUR_MS + n * SECOND_MS, n, life=160 + n) for n in range(1, 17)),
            ],
        ),
        (
            "labelled",
            [
                told(0, 3, labelled=0.9999),
                *(order(HOUR_MS + n * SECOND_MS, n, life=40 * n) for n in range(1, 5)),
            ],
        ),
        (
            "surprising",
            [
                *(told(n * SECOND_MS, n, oddity=0, anomaly=1.0) for n in range(1, 9)),
                *(order(HOUR_MS + n * SECOND_MS, n, life=9 + n) for n in range(1, 19)),
            ],
        ),
    ],
)
def test_each_term_is_a_reason_with_its_events(code: str, events: list[UserEvent]) -> None:
    """Every term that can be known of one user shows, with its nats and its events."""
    assert code in codes(run([events]))
    without = [event for event in events if event.action == "purchase"]
    if len(without) < len(events):
        assert run([without]) == []


# ---------------------------------------------------------------------- the analyst's rules


def stretch(events_per_s: float, count: int) -> list[UserEvent]:
    """The blocks of 16 of one session at an even rate."""
    block_ms = round(15 / events_per_s * 1000)
    return [
        told(round(life / events_per_s * 1000), life, took_ms=block_ms, session_position=life)
        for life in range(16, count + 1, 16)
    ]


@pytest.mark.parametrize(
    ("rule", "below", "above"),
    [
        ("events_per_second", stretch(18.0, 500), stretch(40.0, 80)),
        ("events_per_minute", stretch(3.0, 190), stretch(5.0, 260)),
        (
            "orders_per_hour",
            [order(n * 119 * SECOND_MS + n, n, every=50) for n in range(1, 31)],
            [order(n * 119 * SECOND_MS, n, every=50) for n in range(1, 32)],
        ),
        (
            "same_order_per_day",
            [order(n * 3 * HOUR_MS + n, n, every=50, item_id="i") for n in range(1, 100)],
            [order(n * 3 * HOUR_MS, n, every=50, item_id="i") for n in range(1, 10)],
        ),
    ],
)
def test_each_rule_flags_above_its_limit_and_says_how_much(
    rule: str, below: list[UserEvent], above: list[UserEvent]
) -> None:
    """More than the limit within its span is a reason by itself; as many as the limit is none."""
    alone = replace(WATCH, limits={rule: DEFAULT_LIMITS[rule]}, scores=_Blind)
    assert rule not in codes(run([below], alone))
    alerts = run([above], alone)
    assert alerts
    (reason,) = alerts[0].reasons
    assert reason["code"] == rule
    assert reason["count"] > reason["limit"] == DEFAULT_LIMITS[rule]
    assert reason["events"]
    assert alerts[0].score == WATCH.threshold
    assert run([above], replace(alone, limits={})) == [], "a rule that is left out is off"


class _Blind(OwnScores):
    """Finds nothing, so that rules are seen alone."""

    def judge(self, events: int, values: tuple[float, ...], beside: tuple[float, ...] = ()) -> Any:
        return super().judge(events, (0.0,) * len(values))


def test_rules_of_the_analysts_file_are_checked_at_the_start(tmp_path: Path) -> None:
    """An unknown rule, a limit that no row can count, no TOML, no file: each is an error that names what to write."""
    file = tmp_path / "rules.toml"
    file.write_text("orders_per_hour = 12\n")
    settings = load_settings({"FORECLICK_FRAUD__RULES": str(file)})
    assert user_watch(settings, "clicks", OwnScores).limits == {"orders_per_hour": 12}
    for text, said in (
        ("orders_per_our = 3", "did you mean orders_per_hour"),
        ("orders_per_hour = 0", "a whole number from 1"),
        ("=", "no TOML"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigurationError, match=said):
            load_settings({"FORECLICK_FRAUD__RULES": str(file)})
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_settings({"FORECLICK_FRAUD__RULES": str(tmp_path / "none.toml")})
    for rule, most in (("orders_per_hour", 63), ("events_per_minute", 511)):
        countable({rule: most})
        with pytest.raises(
            ConfigurationError, match=f"{rule} has the limit {most + 1}.*{rule} = {most} or less"
        ):
            countable({rule: most + 1})


# ---------------------------------------------------------------------- what may not matter, and bounds


def mixed(seed: int) -> list[UserEvent]:
    """A week of a user who does everything now and then, and bursts once."""
    rng = random.Random(seed)
    found, life, orders, at_ms = [], 0, 0, 0
    for _ in range(60):
        at_ms += rng.choice((20 * SECOND_MS, 20 * SECOND_MS, HOUR_MS))
        life += rng.randrange(1, 20)
        kind = rng.randrange(4)
        if kind < 2:
            orders += 1
            found.append(order(at_ms, orders, life=life, item_id=f"i{rng.randrange(4)}"))
        elif kind == 2:
            found.append(told(at_ms, life, took_ms=rng.randrange(500, 9_000)))
        else:
            found.append(told(at_ms, life, oddity=rng.randrange(len(ODDITIES)), anomaly=0.999))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_cuts_into_calls_change_no_alert(seed: int) -> None:
    """One call, one event a call, or any cuts between: the same bytes, and the same row."""
    events = mixed(seed)
    whole = [alert.as_json() for alert in run([events], RULES)]
    assert whole
    rng = random.Random(seed)
    cuts = [0, *sorted(rng.sample(range(1, len(events)), 7)), len(events)]
    assert [alert.as_json() for alert in run([events[a:b] for a, b in pairwise(cuts)], RULES)] == whole
    assert [alert.as_json() for alert in run([[event] for event in events], RULES)] == whole


@pytest.mark.parametrize("seed", range(5))
def test_times_that_arrive_out_of_order_end_in_the_same_verdict(seed: int) -> None:
    """Clocks that jump back and forth between events: what is remembered at the end is the same."""
    events = [event for event in mixed(seed) if event.oddity != TOO_PREDICTABLE]
    shuffled = list(events)
    random.Random(seed).shuffle(shuffled)
    rows = []
    for sequence in (events, shuffled):
        row = UserRow()
        for event in sequence:
            row.take(event)
        row.life = 0
        rows.append(row.packed())
    assert rows[0] == rows[1]


def test_a_clock_far_ahead_only_forgets_what_is_a_week_older() -> None:
    """One event of the next century, and the user's later ones: no error, no alert of old and new together."""
    events = [
        *burst(3),
        order(40_000 * DAY_MS, 5),
        *(order(n * SECOND_MS, n, every=30, item_id="i1") for n in range(6, 11)),
    ]
    assert run([events], RULES) == []


def test_orders_without_number_item_or_shop_count() -> None:
    """What an order does not say makes it no less of one: an amount is never asked for."""
    bare = [order(n * SECOND_MS, n, order_id=None, item_id=None) for n in range(1, 41)]
    alerts = run([bare])
    assert codes(alerts) == {"orders_at_once"}
    assert all("order_id" not in entry for alert in alerts for entry in alert.evidence)


def test_a_buyer_with_a_million_orders_stays_bounded_and_says_so() -> None:
    """The row does not grow, whatever ids are like; what is told is approximate."""
    longest = 2**53 - 10**9
    events = [
        order(
            longest - START_MS + n * 1000,
            1_000_000 + n,
            order_id=f"{n:040d}",
            event_id=f"{n:040d}",
            partition=1023,
            offset=2**60 + n,
            user_id="u" * 512,
            took_ms=9_999_000,
            oddity=n % len(ODDITIES),
            anomaly=0.999999,
            every=40,
        )
        for n in range(300)
    ]
    fold = WATCH.fold(NOBODY, None, events, 0)
    assert fold.row is not None
    assert WATCH.max_row_bytes * 0.8 < len(fold.row) <= WATCH.max_row_bytes
    assert fold.alerts[-1].approximate
    assert not fold.alerts[0].approximate
    assert len(UserRow.of_row(fold.row).orders) == MOST_ORDERS
    long = [order(n, n, order_id="o" * 5000 + str(n), event_id="e" * 70_000) for n in range(1, 300)]
    fold = WATCH.fold(NOBODY, None, long, 0)
    assert len(fold.row or b"") < WATCH.max_row_bytes
    assert len(fold.alerts[-1].evidence) <= 24


def test_a_user_who_begins_anew_is_another_one() -> None:
    """After a tombstone the count of events starts again, and nothing of the life before counts."""
    events = burst(3)
    assert (
        run([[*events, *(order(100 * SECOND_MS + n, n, every=4, item_id=f"i{n % 2}") for n in range(1, 7))]])
        == []
    )


@pytest.mark.parametrize(
    "events", [[], [order(0, 1)], [order(0, 3, every=1)], [order(0, 1, pace_ms=5)], [told(0, 8)]]
)
def test_a_plain_row_is_judged_as_all_are(events: list[UserEvent]) -> None:
    """The short way for a row of one order at most gives the terms of the long one, and breaks no rule."""
    row = UserRow()
    for event in events:
        row.take(event)
    assert row.plain == all(event.pace_ms < 0 for event in events)
    if row.plain:
        assert WATCH._terms(row)[:2] == _plain_terms(row)
        assert replace(WATCH, limits=dict.fromkeys(RULES.limits, 1))._broken(row) == []


def test_a_row_is_forgotten_a_week_after_its_last_event() -> None:
    """Nothing of it counts any more, so nothing is kept."""
    fold = WATCH.fold(NOBODY, None, burst(3), START_MS)
    assert fold.row is not None
    assert fold.due_ms == START_MS + 60 * SECOND_MS + 7 * DAY_MS
    assert WATCH.fold(NOBODY, fold.row, [], fold.due_ms).row is None


def test_a_row_of_an_erased_user_is_no_row() -> None:
    """Of others nothing changes."""
    row = WATCH.fold(NOBODY, None, burst(3), START_MS).row
    assert row is not None
    assert WATCH.erase(row, {"u"}) is None
    assert WATCH.erase(row, {"v"}) == row


def test_damaged_rows_are_said() -> None:
    """Bytes of another build are no row."""
    for damaged in (b"\x09abc", b"\x01abc"):
        with pytest.raises(DamagedRow):
            WATCH.fold(NOBODY, damaged, [], START_MS)


def test_records_survive_their_bytes() -> None:
    """What is packed is what is read."""
    for event in mixed(1):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=UserEvent) == event
