"""Laws of meetings, which a stage tells itself, and of the detector that finds rings of buyers in them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import pairwise

import jsonschema
import pytest

from stream.alerts import Alert
from stream.buyer_rings import BuyerRings
from stream.errors import DamagedRow
from stream.group_detectors import ITEM, MAX_ROW_BYTES, MEETINGS, Group, GroupEvent, Meeting, Partner
from stream.group_records import meeting_message, read_record
from stream.item_farms import ItemFarms
from stream.outputs import load_schema
from tests.stream.live_shop import ATTACKS, alerts_of, shop_log

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
START_MS = 1_700_000_000_000
RINGS = BuyerRings("clicks")
ME = Group(MEETINGS, "me")


def met(at_ms: int, offset: int, others: Sequence[str], item: str = "thing") -> Meeting:
    """One's order beside those of others, a minute before each."""
    partners = [Partner(user, START_MS + at_ms - 60_000, 1, offset + 1) for user in others]
    return Meeting(START_MS + at_ms, "me", "met", 0, offset, item_id=item, partners=partners)


def run(calls: Sequence[Sequence[GroupEvent]], rings: BuyerRings = RINGS) -> tuple[list[Alert], bytes | None]:
    """The alerts of consecutive calls through stored rows, the watermark at the latest event, and the last row."""
    row: bytes | None = None
    alerts: list[Alert] = []
    watermark_ms = 0
    for events in calls:
        watermark_ms = max([watermark_ms, *(event.event_time_ms for event in events)])
        fold = rings.fold(ME, row, events, watermark_ms)
        assert fold.row is None or len(fold.row) <= rings.max_row_bytes <= MAX_ROW_BYTES
        assert fold.due_ms is None or fold.due_ms > watermark_ms
        assert not fold.meetings, "or what a stage tells itself would never end"
        row, alerts = fold.row, alerts + fold.alerts
    return alerts, row


def ring(days: int = 3) -> list[Meeting]:
    """Three others each day, at another item each time."""
    return [met(day * DAY_MS, 10 * day, ["a", "b", "c"], f"i{day}") for day in range(days)]


# ---------------------------------------------------------------------- who meets whom


def orders(*pairs: tuple[str, int]) -> list[GroupEvent]:
    return [
        GroupEvent(START_MS + at_ms, user, "purchase", 0, offset, order_id=f"o{offset}", item_id="thing")
        for offset, (user, at_ms) in enumerate(pairs)
    ]


def meetings(events: Sequence[GroupEvent]) -> list[tuple[str, list[str]]]:
    """Who is told, and of whom, when all orders of an item are complete."""
    fold = ItemFarms("clicks").fold(Group(ITEM, "thing"), None, events, START_MS + 9 * DAY_MS)
    return [(each.user_id, sorted(one.user_id for one in each.partners)) for each in fold.meetings]


def test_who_orders_within_two_hours_of_a_few_others_has_met_them() -> None:
    """The later one is told, of the others alone; a day later nobody is met, nor in a crowd."""
    some = orders(("a", 0), ("b", HOUR_MS), ("c", 2 * HOUR_MS), ("c", 3 * HOUR_MS + 1), ("a", DAY_MS))
    assert meetings(some) == [("b", ["a"]), ("c", ["a", "b"])]
    crowd = meetings(orders(*((f"u{n:02d}", n * 1000) for n in range(60))))
    assert max(len(others) for _, others in crowd) <= 12
    assert len(crowd) <= 12


@pytest.mark.parametrize("seed", range(10))
def test_meetings_do_not_depend_on_arrival(seed: int) -> None:
    """Orders that come late, within the limit, have met whom they would have met."""
    chance = random.Random(seed)
    events = orders(*((f"u{chance.randrange(5)}", chance.randrange(DAY_MS)) for _ in range(20)))
    shuffled = list(events)
    chance.shuffle(shuffled)
    assert meetings(shuffled) == meetings(events)


def test_a_meeting_survives_its_bytes_and_has_a_key_of_its_own() -> None:
    """It goes to the partition of its user's meetings, beside the user's own group."""
    meeting = met(0, 7, ["a", "b"])
    output, (key, value, headers) = meeting_message(meeting, "groups", 2)
    assert (output in {"groups/0", "groups/1"}, key, headers) == (True, b"met:me", [])
    assert read_record(key, value or b"") == meeting


# ---------------------------------------------------------------------- who is flagged


def test_who_keeps_meeting_the_same_others_is_flagged_with_them() -> None:
    """The others are members, the alert is about the user and as the topic's schema wants it."""
    alerts, _ = run([ring()])
    assert (alerts[0].subject_type, alerts[0].subject) == ("user", "me")
    assert alerts[0].members == ["a", "b", "c", "me"]
    assert alerts[0].reasons[0]["code"] == "ordered_together"
    validator = jsonschema.Draft202012Validator(load_schema("alerts.fraud"))
    for alert in alerts:
        validator.validate(json.loads(alert.as_json()))
        assert all(entry["event_time_ms"] <= alert.event_time_ms for entry in alert.evidence)
        assert {entry["user_id"] for entry in alert.evidence} == set(alert.members)
    assert len({alert.id for alert in alerts}) == len(alerts)


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(ring(1), id="once"),
        pytest.param([met(n * 30 * 60_000, n, ["a", "b", "c"], f"i{n}") for n in range(20)], id="a spree"),
        pytest.param([met(n * DAY_MS, n, ["a"]) for n in range(30)], id="a couple"),
        pytest.param(
            [met(n * DAY_MS, 20 * n, [f"p{n}-{k}" for k in range(8)]) for n in range(20)], id="strangers"
        ),
        pytest.param([met(n * 29 * DAY_MS, n, ["a", "b", "c"]) for n in range(9)], id="seldom"),
    ],
)
def test_honest_meetings_are_not_flagged(events: list[Meeting]) -> None:
    """Nobody who meets others once, one other often, or always others."""
    assert run([events])[0] == []


@pytest.mark.parametrize("seed", range(10))
def test_cuts_repeats_and_arrival_change_no_verdict(seed: int) -> None:
    """In calls of any size the bytes are the same; in any order, and told twice, the last row is."""
    chance = random.Random(seed)
    events = [met(n * 20 * HOUR_MS, n, chance.sample("abcde", 3), f"i{n % 3}") for n in range(12)]
    whole, row = run([events])
    cuts = [0, *sorted(chance.sample(range(1, 12), 4)), 12]
    cut, cut_row = run([events[a:b] for a, b in pairwise(cuts)])
    assert [alert.as_json() for alert in cut] == [alert.as_json() for alert in whole]
    assert cut_row == row
    shuffled = [*events, *events[:5]]
    chance.shuffle(shuffled)
    assert run([shuffled])[1] == row


def test_bounded_row_says_so() -> None:
    """Whatever ids are like the row stays below its limit, and what is said then is approximate."""
    friends = ["a" * 200, "b" * 200, "c" * 200]
    events = [
        met(n * 3 * HOUR_MS, n, [*friends, *(f"{n}-{k}-{'x' * 150}" for k in range(9))]) for n in range(90)
    ]
    alerts, row = run([events])
    assert (8 << 10) < len(row or b"") <= MAX_ROW_BYTES
    assert alerts[-1].approximate
    assert not alerts[0].approximate


def test_a_row_is_forgotten_four_weeks_after_the_last_meeting() -> None:
    """Nothing of it counts any more."""
    fold = RINGS.fold(ME, None, ring(), START_MS)
    assert RINGS.fold(ME, fold.row, [], fold.due_ms or 0).row is None


def test_an_erased_user_is_in_no_row() -> None:
    """The others stay; where nobody is left, or it was the user's own, there is no row."""
    _, row = run([ring()])
    left = RINGS.erase(row or b"", {"b"})
    assert left is not None
    assert (b"\xa1b" in (row or b""), b"\xa1b" in left, b"\xa1a" in left) == (True, False, True)
    assert RINGS.erase(row or b"", {"a", "b", "c"}) is None
    assert RINGS.erase(row or b"", {"me"}) is None


def test_damaged_rows_are_said() -> None:
    """Bytes of another build are no row."""
    for damaged in (b"\x09abc", b"\x01abc"):
        with pytest.raises(DamagedRow):
            RINGS.fold(ME, damaged, [], START_MS)


def test_simulated_drips_are_flagged_as_without_a_bound_and_honest_crowds_are_not() -> None:
    """By way of the stage's own records: a good part of the drip, nobody honest, and nobody less for 16 KiB a row."""
    log, labels = shop_log(500, 15_000, 5, dict.fromkeys(ATTACKS, 20))
    kinds = {label.user_id: label.kind for label in labels}

    def flagged(memory_bytes: int) -> set[str]:
        alerts = alerts_of(log, [ItemFarms("clicks"), BuyerRings("clicks", memory_bytes=memory_bytes)])
        return {user for alert in alerts if alert["kind"] == "buyer_ring" for user in alert["members"]}

    found = flagged(RINGS.memory_bytes)
    assert sum(kinds[user] == "drip" for user in found) >= 8
    assert {kinds[user] for user in found} <= set(ATTACKS)
    assert found == flagged(1 << 30)
    assert len(flagged(256)) < len(found)
