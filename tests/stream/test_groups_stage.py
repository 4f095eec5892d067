"""Laws of the groups stage: alerts do not depend on cuts, on which source is ahead, or on where rows were stored."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import jsonschema
import msgspec
import numpy as np
import pytest

from stream.alerts import Alert
from stream.brushed_shops import BrushedShops
from stream.buyer_rings import BuyerRings
from stream.errors import BrokenInvariant
from stream.events import Event, Line
from stream.group_detectors import (
    ITEM,
    MAX_ROW_BYTES,
    Fold,
    Group,
    GroupDetector,
    GroupEvent,
    Meeting,
    Partner,
)
from stream.group_erasure import AGAIN_KEY, ERASING_KEY, MOST_USERS, Erasures
from stream.group_records import Erasure, GroupRecords, Watermark, meeting_message, read_record
from stream.group_sources import Sources
from stream.groups_stage import MOST_DUE, SETTLE_MS, SOURCES_KEY, GroupsWork
from stream.item_farms import ItemFarms
from stream.order_brushing import OrderBrushing, ShopLog
from stream.outputs import load_schema
from stream.stage import Message, Rendered
from stream.user_news import UserEvent
from stream.user_watch import UserWatch

HOUR_MS = 3_600_000
START_MS = 1_577_836_800_000
RULE = OrderBrushing("clicks")
LATE_MS = RULE.late_limit_ms


def orders_of(seed: int, count: int = 300) -> list[Event]:
    """Purchases of a day in six shops, some of them brushed, by time."""
    rng = random.Random(seed)
    events = []
    for number in range(count):
        shop = rng.randrange(6)
        buyer = rng.randrange(3) if shop < 3 else rng.randrange(60)
        events.append(
            Event(
                user_id=f"u{shop}-{buyer}",
                event_time_ms=START_MS + rng.randrange(24 * HOUR_MS),
                action="purchase",
                order_id=f"o{number}",
                shop_id=f"s{shop}",
                item_id="i1",
            )
        )
    return sorted(events, key=lambda event: event.event_time_ms)


def records_of(events: Sequence[Event], sources: int, kinds: tuple[str, ...] = ("shop",)) -> list[list[Any]]:
    """What each partition of the input tells one partition of groups, events by their users' partition."""
    told: list[list[Any]] = []
    for partition in range(sources):
        mine = [event for event in events if crc32(event.user_id.encode()) % sources == partition]
        render = GroupRecords("groups", 1, kinds)
        lines = []
        for offset, event in enumerate(mine):
            one = np.ones(1, np.int64)
            messages = render.messages([event], partition, offset * one, -one, one)
            lines += [SimpleNamespace(key=key, value=value) for key, value, _ in messages["groups/0"]]
        told.append(lines)
    return told


class Stored:
    """Rows as a store keeps them; a new stage is opened upon them as after a restart."""

    def __init__(self, sources: int, detectors: Sequence[GroupDetector], cool_down_ms: int = 10**12):
        self.rows: dict[bytes, bytes] = {}
        self.alerts: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()
        self._sources, self._detectors, self._cool_down_ms = sources, detectors, cool_down_ms
        self.open()

    def open(self) -> None:
        self.work = GroupsWork(
            detectors=self._detectors,
            sources=Sources(self._sources, self.rows.get(SOURCES_KEY)),
            late_limit_ms=LATE_MS,
            cool_down_ms=self._cool_down_ms,
            alerts_topic="alerts.fraud",
            topic_id="T",
            source="/app/clicks",
            fetch=lambda keys: [self.rows.get(key) for key in keys],
            stored=[(key, row) for key, row in self.rows.items() if key[0]],
            erasures=Erasures(
                [key for key in self.rows if key.startswith((ERASING_KEY, AGAIN_KEY))], self.page
            ),
            told_to=("groups", 1),
        )

    def page(self, first: bytes, most: int) -> list[tuple[bytes, bytes]]:
        return sorted(pair for pair in self.rows.items() if pair[0] >= first)[:most]

    def take(self, records: Sequence[Any], now_ms: int = 0) -> Rendered:
        decoded = self.work.decode(records)
        rows = [self.rows.get(key) for key in decoded.keys]
        rendered = asyncio.run(self.work.score(decoded, rows, now_ms))
        for key, row in rendered.rows:
            assert row is None or len(row) <= MAX_ROW_BYTES
            if row is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = row
        sent: Sequence[Message] = list(rendered.messages.get("alerts.fraud", ()))
        self.alerts += [json.loads(value or b"") for _, value, _ in sent]
        self.counts.update(late=rendered.counts.late, damaged=rendered.counts.damaged)
        return rendered

    def finish(self) -> None:
        """All sources fall silent, and the wall clock goes on."""
        self.work.sources.quiet = frozenset(range(self._sources))
        assert self.work.has_due(START_MS + 48 * HOUR_MS)
        self.take([], START_MS + 48 * HOUR_MS)


def plain(alerts: Sequence[Any]) -> dict[str, Any]:
    found = [alert if isinstance(alert, dict) else json.loads(alert.as_json()) for alert in alerts]
    for alert in found:
        for each in alert["evidence"]:
            del each["source"]
    assert len({alert["id"] for alert in found}) == len(found), "an alert was sent twice"
    return {alert["id"]: alert for alert in found}


def expected(events: Sequence[Event]) -> dict[str, Any]:
    return plain(ShopLog(RULE).alerts(enumerate(events)))


@pytest.mark.parametrize("seed", range(4))
def test_one_source_far_ahead_makes_no_order_of_another_late(seed: int) -> None:
    """Partitions are read one after the other, a day apart: the alerts are those of the log in its true order."""
    rng = random.Random(seed)
    events = orders_of(seed)
    stored = Stored(3, [BrushedShops(RULE)])
    waiting = records_of(events, 3)
    rng.shuffle(waiting)
    if seed % 2:  # or in pieces, with a restart between any two micro-batches
        pieces = [lines[at : at + 7] for lines in waiting for at in range(0, len(lines), 7)]
        order = [number for number, lines in enumerate(waiting) for _ in range(0, len(lines), 7)]
        rng.shuffle(order)
        queues = [[piece for piece in pieces if piece[0] in lines] for lines in waiting]
        waiting = [queues[number].pop(0) for number in order]
    for records in waiting:
        stored.take(records)
        if seed % 2:
            stored.open()
    stored.finish()
    assert stored.counts["late"] == 0
    assert plain(stored.alerts) == expected(events)
    assert stored.alerts


def test_alerts_are_cloud_events_of_the_schema() -> None:
    """Key, headers and value, as the topic's consumers are told to expect them."""
    stored = Stored(1, [BrushedShops(RULE)])
    (records,) = records_of(orders_of(1), 1)
    sent = stored.take(records).messages["alerts.fraud"]
    validator = jsonschema.Draft202012Validator(load_schema("alerts.fraud"))
    for key, value, headers in sent:
        alert = json.loads(value or b"")
        validator.validate(alert)
        assert key == alert["subject"].encode()
        named = dict(headers)
        assert named["ce_type"] == b"foreclick.alert.v1"
        first = alert["evidence"][0]["source"]
        place = f"T/{first['partition']}/{first['offset']}/{alert['event_time_ms']}"
        assert named["ce_id"] == f"order_brushing/{place}/{alert['subject']}".encode()


def test_a_quiet_source_holds_nothing_open_until_it_speaks() -> None:
    """It is not waited for; and when it speaks, all are, until it is known again who is quiet."""
    sources = Sources(3)
    sources.advance(0, 50)
    sources.advance(1, 40)
    assert sources.watermark_ms == 0
    sources.quiet = frozenset({2})
    assert sources.watermark_ms == 40
    sources.advance(2, 10)
    assert (sources.quiet, sources.awakenings, sources.watermark_ms) == (frozenset(), 1, 10)
    assert Sources(4, sources.row()).row() == sources.row() + bytes(8)
    with pytest.raises(BrokenInvariant, match="partition 3 of a source that has 3"):
        sources.advance(3, 1)


def test_a_silent_source_completes_what_is_open_but_forgets_nothing() -> None:
    """The wall clock takes over up to a day beyond the last event: verdicts that live for weeks stay."""
    stored = Stored(1, [BrushedShops(RULE)])
    (records,) = records_of(orders_of(2), 1)
    stored.take(records)
    assert not stored.work.has_due(START_MS + 10**12), "a source that may go on is waited for"
    stored.work.sources.quiet = frozenset({0})
    stored.take([], START_MS + 10**12)
    verdicts = [key for key in stored.rows if key != SOURCES_KEY]
    assert verdicts
    assert not stored.work.has_due(START_MS + 10**12)
    newest_ms = stored.work.sources.latest_ms
    assert stored.work._horizon_ms(START_MS + 10**12) == newest_ms + SETTLE_MS


def test_late_and_damaged_records_are_counted_and_change_nothing() -> None:
    """An order beyond the limit, and bytes that nobody of ours wrote."""
    stored = Stored(1, [BrushedShops(RULE)])
    (records,) = records_of(orders_of(3), 1)
    (old,) = records_of([orders_of(3)[0]], 1)
    rows = dict(stored.rows)
    stored.take(
        [SimpleNamespace(key=b"shop:s", value=b"junk"), SimpleNamespace(key=b"\xff", value=records[0].value)]
    )
    assert (stored.counts["damaged"], stored.rows) == (2, rows)
    stored.take(records)
    rows = dict(stored.rows)
    stored.take(old)
    assert (stored.counts["late"], stored.rows) == (1, rows)


class Hoard:
    """Keeps every user's id of an hour, and complains about each tenth event."""

    kind = "hoard"
    group_types = frozenset({ITEM})
    max_row_bytes = 100_000

    def erase(self, row: bytes, users: Collection[str]) -> bytes:
        return b" ".join(each for each in row.split() if each.decode() not in users)

    def fold(self, group: Group, row: bytes | None, events: Sequence[GroupEvent], watermark_ms: int) -> Fold:
        users = [*(row or b"").split(), *(event.user_id.encode() for event in events)]
        alerts = []
        if events and len(users) % 10 == 0:
            last = events[-1]
            alerts = [
                Alert(
                    id=f"hoard/{group.id}/{len(users)}",
                    kind=self.kind,
                    subject_type=group.type,
                    subject=group.id,
                    score=0.5,
                    severity="low",
                    event_time_ms=last.event_time_ms,
                    reasons=[{"code": "hoard", "text": "much"}],
                    evidence=[],
                    members=["u"],
                )
            ]
        end_ms = (START_MS // HOUR_MS + 1) * HOUR_MS
        if watermark_ms >= end_ms + LATE_MS:
            return Fold(None, alerts)
        return Fold(b" ".join(users), alerts, end_ms + LATE_MS)


def test_a_row_is_kept_in_pieces_and_forgotten_whole() -> None:
    """60 kB in pieces of at most 16 KiB, only changed ones written again; then all of them are erased."""
    stored = Stored(1, [Hoard()], cool_down_ms=0)
    events = [
        Event(user_id=f"user-{n:06}-" + "x" * 600, event_time_ms=START_MS + n, action="purchase", item_id="i")
        for n in range(100)
    ]
    (records,) = records_of(events, 1, ("item",))
    for record in records[:-1]:
        stored.take([record])
        stored.open()
    rendered = stored.take(records[-1:])
    assert sum(map(len, stored.rows.values())) > 60_000
    assert len([key for key, _ in rendered.rows if key != SOURCES_KEY]) <= 3
    assert [alert["id"] for alert in stored.alerts] == [f"hoard/i/{n}" for n in range(10, 101, 10)]
    later = Watermark(0, START_MS + 2 * HOUR_MS)
    encoded = SimpleNamespace(key=None, value=msgspec.msgpack.encode(later))
    stored.take([encoded])
    assert stored.rows.keys() == {SOURCES_KEY}


def test_one_alert_a_subject_in_a_cool_down_also_across_restarts() -> None:
    """Nine findings on one item, one alert, eight held back: said again when the cool-down has passed."""
    stored = Stored(1, [Hoard()], cool_down_ms=95)
    events = [
        Event(user_id=f"u{n}", event_time_ms=START_MS + n, action="purchase", item_id="i") for n in range(120)
    ]
    (records,) = records_of(events, 1, ("item",))
    for record in records:
        stored.take([record])
        stored.open()
    assert [(alert["id"], alert["held_back"], alert["supersedes"]) for alert in stored.alerts] == [
        ("hoard/i/10", 0, None),
        ("hoard/i/110", 9, "hoard/i/10"),
    ]


def test_many_due_rows_are_taken_in_portions() -> None:
    """A micro-batch is bounded, and what is left is still due."""
    stored = Stored(1, [BrushedShops(RULE)])
    count = MOST_DUE + 10
    events = [
        Event(user_id="u", event_time_ms=START_MS, action="purchase", order_id=f"o{n}", shop_id=f"s{n}")
        for n in range(count)
    ]
    (records,) = records_of(events, 1)
    stored.take(records)
    stored.work.sources.quiet = frozenset({0})
    assert stored.take([], START_MS + 3 * HOUR_MS).counts.due == MOST_DUE
    assert stored.work.has_due(START_MS + 3 * HOUR_MS)
    assert stored.take([], START_MS + 3 * HOUR_MS).counts.due == 10
    assert stored.rows.keys() == {SOURCES_KEY}


def test_records_name_the_groups_of_an_event_once() -> None:
    """Orders to shop, items and device, nothing else and nothing of a crawler's; long ids by a hash."""
    render = GroupRecords("groups", 3, ("shop", "item", "device"))
    one = np.ones(1, np.int64)
    for other in ({"action": "view"}, {"action": "purchase", "extra": {"crawler": 1.0}}):
        event = Event(
            **{"user_id": "u", "event_time_ms": START_MS, "item_id": "i", "ip": "10.0.0.1", **other}
        )
        messages = render.messages([event], 2, one, one, one)
        assert {key for lines in messages.values() for key, _, _ in lines} <= {None}
    order = Event(
        user_id="u",
        event_time_ms=START_MS,
        action="purchase",
        item_id="i",
        shop_id="s" * 1000,
        device_id="d",
        ip="10.0.0.1",
        lines=[Line(item_id="j"), Line(item_id="i")],
    )
    messages = render.messages([order], 2, one, one, one)
    for output, lines in messages.items():
        for key, value, _ in lines:
            assert output == f"groups/{crc32(key or b'') % 3}"
            assert isinstance(read_record(key, value or b""), GroupEvent)
    keys = Counter(key for lines in messages.values() for key, _, _ in lines)
    assert {len(key) for key in keys if key.startswith(b"shop:")} == {37}
    assert {key for key in keys if not key.startswith(b"shop:")} == {b"item:i", b"item:j", b"device:d"}
    assert set(keys.values()) == {1}


def erasures(*users: str) -> list[Any]:
    found: dict[str, list[Message]] = {}
    GroupRecords("groups", 1, ()).erase([user.encode() for user in users], found)
    return [SimpleNamespace(key=key, value=value) for key, value, _ in found.get("groups/0", [])]


def test_an_erased_user_leaves_every_row_in_turns_also_across_restarts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tombstone empties shops, items and rows in pieces of one user, three rows a micro-batch; others stay."""
    monkeypatch.setattr("stream.group_erasure.MOST_ROWS", 3)
    stored = Stored(1, [BrushedShops(RULE), ItemFarms("clicks"), Hoard()])
    (records,) = records_of(orders_of(5), 1, ("shop", "item"))
    stored.take(records)
    gone, kept = b"u0-1", b"u0-2"

    def named(user: bytes) -> int:
        return sum(user in row for row in stored.rows.values())

    assert min(named(gone), named(kept)) >= 2
    assert not stored.work.has_due(0)
    before = named(kept)
    stored.take(erasures(gone.decode()))
    turns = 1
    while stored.work.has_due(0):
        if turns == 2:
            stored.open()  # the pass begins anew
        stored.take([])
        turns += 1
        assert turns < 20
    assert turns > 3
    assert (named(gone), named(kept)) == (0, before)
    assert not any(key.startswith(ERASING_KEY) for key in stored.rows)


def test_a_row_that_is_folded_while_users_are_erased_holds_none_of_them() -> None:
    """The store's row is stale in that micro-batch; and more users than a pass takes are erased in the next."""
    stored = Stored(1, [ItemFarms("clicks")])
    log = [
        Event(user_id=f"user-{n}", event_time_ms=START_MS, action="purchase", item_id="i") for n in range(100)
    ]
    first, second = records_of(log[:99], 1, ("item",))[0], records_of(log[99:], 1, ("item",))[0]
    stored.take(first)
    stored.take([*erasures(*(f"user-{n}" for n in range(99))), *second])
    left = [n for n in range(99) if any(f"user-{n}".encode() in row for row in stored.rows.values())]
    assert len(left) >= 99 - MOST_USERS
    stored.take([])
    assert [key for key in stored.rows if key != SOURCES_KEY] == [
        key for key, row in stored.rows.items() if b"user-99" in row
    ]
    assert not any(b"user-98" in row for row in stored.rows.values())


def test_nothing_stays_of_a_group_that_is_an_erased_user() -> None:
    """Row, verdict and timer of that user go; those of one whose id begins with the same letters stay."""
    stored = Stored(1, [UserWatch("clicks", {"orders_per_hour": 3})])
    records = []
    for user in ("u1", "u17"):
        for number in range(5):
            event = UserEvent(START_MS, user, "purchase", 0, number, order_id=f"o{number}", life_events=9)
            records.append(SimpleNamespace(key=f"user:{user}".encode(), value=msgspec.msgpack.encode(event)))
    stored.take(records)
    assert {alert["subject"] for alert in stored.alerts} == {"u1", "u17"}
    stored.take(erasures("u1"))
    keys = [key for key in stored.rows if key != SOURCES_KEY]
    assert [key.split(b"\0")[0] for key in keys] == [b"user:u17"]
    assert not any(b"/u1/" in row for row in stored.rows.values())


def told_by(rendered: Rendered) -> list[Any]:
    """What the stage told itself."""
    sent: Sequence[Message] = list(rendered.messages.get("groups/0", ()))
    return [SimpleNamespace(key=key, value=value) for key, value, _ in sent]


def test_a_meeting_that_comes_behind_a_tombstone_is_forgotten_as_well() -> None:
    """Another partition, which was behind, names the user once more; its own end with that user clears this too."""
    stored = Stored(1, [BuyerRings("clicks")])
    meeting = Meeting(START_MS, "u1", "met", 0, 7, item_id="i", partners=[Partner("gone", START_MS, 0, 8)])
    _, (key, value, _) = meeting_message(meeting, "groups", 1)
    again = told_by(stored.take(erasures("gone")))
    assert [(one.key, read_record(one.key, one.value)) for one in again] == [
        (b"\0erase again", Erasure(b"gone", again=True))
    ]
    stored.take([SimpleNamespace(key=key, value=value)])
    assert any(b"gone" in row for row in stored.rows.values())
    stored.open()
    assert told_by(stored.take(again)) == [], "and this comes to an end"
    assert not stored.work.has_due(0)
    assert not any(b"gone" in part for pair in stored.rows.items() for part in pair)


def test_a_pass_for_the_second_time_survives_a_restart_and_a_new_tombstone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cut off it begins anew and tells nobody; a tombstone meanwhile makes it the first time again."""
    monkeypatch.setattr("stream.group_erasure.MOST_ROWS", 1)
    for tombstone in (False, True):
        stored = Stored(1, [ItemFarms("clicks")])
        stored.take(records_of(orders_of(5, 40), 1, ("item",))[0])
        stored.take([SimpleNamespace(key=b"\0erase again", value=b"u0-1")])
        told = told_by(stored.take(erasures("u0-1"))) if tombstone else []
        stored.open()
        while stored.work.has_due(0):
            told += told_by(stored.take([]))
        assert len(told) == tombstone
        assert not any(b"u0-1" in part for pair in stored.rows.items() for part in pair)


def test_meetings_are_never_late_and_move_no_watermark() -> None:
    """What they are made of was on time, however long ago that is."""
    stored = Stored(2, [BuyerRings("clicks")])
    stored.take(
        [SimpleNamespace(key=None, value=msgspec.msgpack.encode(Watermark(0, START_MS + 9 * HOUR_MS)))]
    )
    stored.take(
        [SimpleNamespace(key=None, value=msgspec.msgpack.encode(Watermark(1, START_MS + 9 * HOUR_MS)))]
    )
    for at_ms in (START_MS, START_MS + 99 * HOUR_MS):
        meeting = Meeting(at_ms, "u1", "met", 0, 7, item_id="i", partners=[Partner("v", at_ms, 0, 8)])
        _, (key, value, _) = meeting_message(meeting, "groups", 1)
        stored.take([SimpleNamespace(key=key, value=value)])
    assert stored.counts["late"] == 0
    assert stored.work.sources.watermark_ms == START_MS + 9 * HOUR_MS
    assert any(key.startswith(b"met:u1") for key in stored.rows)
