"""Laws of what the clicks stage tells of users: orders, tempo and oddities, and nothing of honest browsing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from models.fraud.rules import DEFAULT_LIMITS
from models.vocabulary import ActionVocabulary
from stream.event_columns import NameCodes, columns_of
from stream.events import Event, Line
from stream.group_detectors import USER
from stream.group_records import GroupRecords, read_record
from stream.group_sources import Sources
from stream.groups_stage import GroupsWork
from stream.rows import RowLayout
from stream.sessions import Folded, FoldRules, fold
from stream.user_news import NO_ODDITY, TOO_PREDICTABLE, UserEvent, UserLevels, UserNews
from stream.user_watch import UserWatch

SECOND_MS, HOUR_MS = 1_000, 3_600_000
START_MS = 1_700_000_000_000
NAMES = ("view", "cart", "purchase", "other")
LEVELS = UserLevels(10 * SECOND_MS, 0.995)


def event(user: str, at_ms: int, action: str = "view", **more: Any) -> Event:
    return Event(user_id=user, event_time_ms=START_MS + at_ms, action=action, **more)


def folded(events: Sequence[Event], names: tuple[str, ...] = NAMES) -> Folded:
    """The events upon blank rows, as the clicks stage folds them."""
    users = list(dict.fromkeys(one.user_id for one in events))
    layout = RowLayout(len(names), 4)
    columns = columns_of(
        events,
        np.array([users.index(one.user_id) for one in events]),
        np.arange(len(events)),
        np.zeros(len(events), np.bool_),
        ActionVocabulary(names[:-1]),
        NameCodes(),
        b"T/0",
    )
    return fold(layout.blank(len(users)), columns, FoldRules(), None, bytes(8), len(names))


def scores(count: int, **given: dict[int, float]) -> Any:
    """Nothing odd but what is given by place."""
    made = SimpleNamespace(
        terms=np.zeros((count, 3), np.float32),
        too_predictable=np.zeros(count, np.float32),
        anomaly_score=np.zeros(count, np.float32),
        fake_order=np.zeros((count, 0), np.float32),
    )
    for name, values in given.items():
        for place, value in values.items():
            getattr(made, name)[place] = value
    return made


def news(
    events: Sequence[Event], purchase_code: int = 2, names: tuple[str, ...] = NAMES, **given: Any
) -> UserNews:
    found = folded(events, names)
    return LEVELS.news(found.columns, found.last_ms, scores(len(found.applied), **given), purchase_code)


def told(events: Sequence[Event], what: UserNews, partitions: int = 1) -> list[UserEvent]:
    """What a partition of the input writes about users, read again."""
    found = folded(events)
    render = GroupRecords("groups", partitions, (USER,))
    count = len(events)
    messages = render.messages(
        events,
        7,
        np.arange(100, 100 + count),
        found.columns["gap_ms"],
        found.columns["session_position"],
        what,
    )
    records = [
        read_record(key, value or b"")
        for lines in messages.values()
        for key, value, _ in lines
        if key is not None
    ]
    assert all(isinstance(one, UserEvent) for one in records)
    return sorted(records, key=lambda one: one.offset)  # type: ignore[union-attr, arg-type, return-value]


def test_of_honest_browsing_nothing_is_told() -> None:
    """Two hundred views and carts, a few seconds apart: not one record."""
    events = [event("u", n * 7 * SECOND_MS, "cart" if n % 9 == 0 else "view") for n in range(200)]
    assert len(news(events).place) == 0
    assert told(events, news(events)) == []


def test_every_order_is_told_with_the_users_counts() -> None:
    """Life events and orders as of then, ids, and of an order with lines the first line's item."""
    events = [
        event("a", 0),
        event("b", 0, "purchase", order_id="o0"),
        event(
            "a", 9 * SECOND_MS, "purchase", order_id="o1", event_id="e1", lines=[Line(), Line(item_id="i")]
        ),
        event("a", 20 * SECOND_MS, "purchase", order_id="o2", item_id="j", shop_id="s"),
    ]
    first, second, third = told(events, news(events))
    assert (first.user_id, first.life_events, first.orders, first.order_id) == ("b", 1, 1, "o0")
    assert (second.life_events, second.orders, second.event_id, second.item_id) == (2, 1, "e1", "i")
    assert (third.life_events, third.orders, third.item_id, third.shop_id) == (3, 2, "j", "s")
    assert (third.partition, third.offset, third.gap_ms, third.session_position) == (
        7,
        103,
        11 * SECOND_MS,
        3,
    )
    assert (third.took_ms, third.pace_ms, third.anomaly, third.oddity) == (-1, -1, 0.0, NO_ODDITY)


def test_an_order_has_the_pace_of_the_eight_events_that_end_with_it() -> None:
    """Where its session has as many; a late one has none."""
    events = [event("u", n * 500, "purchase" if n in (6, 7, 20) else "view") for n in range(21)]
    events.append(event("u", 9_000, "purchase"))
    found = news(events)
    orders = {one.offset - 100: one.pace_ms for one in told(events, found) if one.action == "purchase"}
    assert (orders[6], orders[21]) == (-1, -1)
    assert (orders[7], orders[20]) == (pytest.approx(3_500, rel=2e-3), pytest.approx(3_500, rel=2e-3))


def test_an_order_is_told_though_the_model_knows_none() -> None:
    """Purchases are `other` to it then, and other names among these are no orders."""
    names = ("view", "other")
    events = [event("u", 0, "purchase"), event("u", 1, "dance"), event("u", 2)]
    found = news(events, -1, names)
    assert [one.action for one in told(events, found)] == ["purchase"]
    assert found.orders.tolist() == [0, 0]


@pytest.mark.parametrize(("pause_ms", "blocks"), [(50, 3), (660, 3), (670, 0), (1200, 0)])
def test_tempo_is_told_at_every_sixteenth_event_of_a_fast_session(pause_ms: int, blocks: int) -> None:
    """Fifteen pauses together, to one part in a thousand, at or below the limit."""
    events = [event("u", n * pause_ms) for n in range(50)]
    found = news(events)
    assert found.place.tolist() == [15, 31, 47][:blocks]
    assert found.took_ms == pytest.approx([15 * pause_ms] * blocks, rel=2e-3)


def test_tempo_is_of_one_session_and_of_events_that_are_not_late() -> None:
    """Eight events before a long silence and eight after are no sixteen; late ones, whose pause is 0, tell nothing."""
    events = [event("u", n * 50 + (n >= 8) * 2 * HOUR_MS) for n in range(23)]
    assert len(news(events).place) == 0
    late = [event("u", HOUR_MS), *(event("u", HOUR_MS - n * SECOND_MS) for n in range(1, 40))]
    assert len(news(late).place) == 0


def test_an_oddity_is_told_at_its_level_with_its_largest_reason() -> None:
    """From the level on, of every eighth event of the user's life."""
    events = [event("u", n * 60 * SECOND_MS) for n in range(30)]
    odd = {2: 1.0, 7: 0.995, 15: 0.9949, 23: 1.0}
    found = news(events, anomaly_score=odd)
    assert (found.place.tolist(), found.anomaly.tolist()) == ([7, 23], [0.995, 1.0])
    terms = scores(30, anomaly_score=odd)
    terms.terms[7], terms.terms[23] = (1.0, 3.0, 2.0), (0.5, 0.0, 9.0)
    one = folded(events)
    assert LEVELS.news(one.columns, one.last_ms, terms, 2).oddity.tolist() == [1, 2]
    always = dict.fromkeys(range(30), 1.0)
    found = news(events, anomaly_score=always, too_predictable=always)
    assert found.place.tolist() == [7, 15, 23]
    assert set(found.oddity.tolist()) == {TOO_PREDICTABLE}


def test_what_labelled_users_taught_is_told_with_what_is_told_anyway() -> None:
    """The head's score of each order; of a model without one it is 0."""
    events = [event("u", n * 60 * SECOND_MS, "purchase" if n else "view") for n in range(3)]
    one, given = folded(events), scores(3)
    given.fake_order = np.array([[0.9, np.nan], [0.25, np.nan], [0.75, np.nan]], np.float32)
    assert LEVELS.news(one.columns, one.last_ms, given, 2).labelled.tolist() == [0.25, 0.75]
    assert news(events).labelled.tolist() == [0.0, 0.0]


def test_nothing_is_told_of_an_announced_crawler() -> None:
    """Whatever it orders and however fast it is: it is nobody's fake."""
    events = [event("bot", n * 20, "purchase", extra={"crawler": 1.0}) for n in range(100)]
    found = news(events, anomaly_score=dict.fromkeys(range(100), 1.0))
    assert len(found.place) == 100
    assert told(events, found) == []


def test_parts_of_a_round_are_what_each_partition_would_tell_alone() -> None:
    """Places count from the partition's first event."""
    events = [event("a", n * 100, "purchase" if n % 5 == 0 else "view") for n in range(40)]
    events += [event("b", n * 100, "purchase" if n % 3 == 0 else "view") for n in range(40)]
    both, last = news(events), news(events[40:])
    part = both.between(40, 80)
    assert [each.tolist() for each in part] == [each.tolist() for each in last]
    assert len(both.between(0, 40).place) + len(part.place) == len(both.place)


def test_a_fast_orderer_goes_from_the_clicks_to_one_alert() -> None:
    """News, records, second stage and cool-down together: one alert, the rest held back, none of the shoppers."""
    events = [
        event("fast", n * 40, "purchase" if n % 8 == 7 else "view", item_id=f"i{n % 3}") for n in range(200)
    ]
    for shopper in range(20):
        events += [
            event(f"p{shopper}", n * 30 * SECOND_MS, "purchase" if n == 18 else "view", item_id=f"i{n}")
            for n in range(20)
        ]
    found, count = folded(events), len(events)
    render = GroupRecords("groups", 1, (USER,))
    columns = found.columns
    messages = render.messages(
        events, 0, np.arange(count), columns["gap_ms"], columns["session_position"], news(events)
    )
    work = GroupsWork(
        detectors=[UserWatch("clicks", DEFAULT_LIMITS)],
        sources=Sources(1),
        late_limit_ms=HOUR_MS,
        cool_down_ms=24 * HOUR_MS,
        alerts_topic="alerts.fraud",
        topic_id="T",
        source="/app/clicks",
        fetch=lambda keys: [None for _ in keys],
    )
    records = [SimpleNamespace(key=key, value=value) for key, value, _ in messages["groups/0"]]
    decoded = work.decode(records)
    rendered = asyncio.run(work.score(decoded, [None for _ in decoded.keys], 0))
    (sent,) = rendered.messages["alerts.fraud"]
    alert = json.loads(sent[1] or b"")
    assert alert["subject"] == "fast"
    assert alert["event_time_ms"] < START_MS + 8 * SECOND_MS
    assert rendered.counts.held_back["fake_account"] > 5
