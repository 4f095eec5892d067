"""Laws of attacks and hard negatives: they speak the log's language, do what they say, and every user is labelled."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from statistics import median

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.simulator.attacks import ATTACKS, group_sizes
from models.simulator.injection import AccountLabel, Injection, inject
from models.simulator.market import InjectionError, LogEvent
from models.simulator.negatives import NEGATIVES
from models.simulator.simulate import simulate
from stream.events import Event, decode_events

HOUR_MS = 3_600_000
ALL_ATTACKS = dict.fromkeys(ATTACKS, 12)
ALL_NEGATIVES = {"flash_sale": 2, "celebrity": 1, "families": 3, "crawlers": 2, "heavy_buyers": 3}


@cache
def shop_log() -> tuple[list[LogEvent], set[str]]:
    """A simulated shop's events, and its crawlers."""
    events, labels = simulate(250, 8_000, seed=5, days=8)
    crawlers = {label.user_id for label in labels if label.label == "crawler"}
    return [msgspec.convert(event, LogEvent, from_attributes=True) for event in events], crawlers


@cache
def plain_log() -> tuple[LogEvent, ...]:
    """The same as a log of few columns has it: numbers for users, whole seconds, no item twice in a row, an outlier."""
    events, _ = shop_log()
    users = {user: str(71_000 + 37 * n) for n, user in enumerate(sorted({event.user_id for event in events}))}
    last: dict[str, str | None] = {}
    plain = []
    for event in events:
        if event.item_id is not None and last.get(event.user_id) != event.item_id:
            last[event.user_id] = event.item_id
            plain.append(
                LogEvent(
                    user_id=users[event.user_id],
                    event_time_ms=event.event_time_ms // 1000 * 1000,
                    action=event.action,
                    item_id=event.item_id,
                    category_id=event.category_id,
                )
            )
    stray = msgspec.structs.replace(plain[0], event_time_ms=plain[0].event_time_ms - 400 * 24 * HOUR_MS)
    return stray, *plain


@cache
def injection(seed: int = 1, plain: bool = False) -> Injection:
    """Everything at once."""
    events, crawlers = (plain_log(), ()) if plain else shop_log()
    return inject(events, ALL_ATTACKS, ALL_NEGATIVES, seed, crawlers=crawlers)


def by_user(events: Sequence[LogEvent]) -> dict[str, list[LogEvent]]:
    users: defaultdict[str, list[LogEvent]] = defaultdict(list)
    for event in events:
        users[event.user_id].append(event)
    return users


def groups(injected: Injection, kind: str) -> list[tuple[list[AccountLabel], list[list[LogEvent]]]]:
    """Labels and scripted events of each account, group by group."""
    events = by_user(injected.events)
    members: defaultdict[str, list[AccountLabel]] = defaultdict(list)
    for label in injected.labels:
        if label.kind == kind:
            members[str(label.group)].append(label)
    return [(labels, [events[label.user_id] for label in labels]) for labels in members.values()]


SEEDS_AND_LOGS = [(1, False), (2, False), (1, True)]


def test_the_same_seed_gives_the_same_accounts() -> None:
    """Another seed is other accounts with other parameters; the log itself is not touched."""
    before = msgspec.json.encode(shop_log()[0])
    again = inject(shop_log()[0], ALL_ATTACKS, ALL_NEGATIVES, 1, crawlers=shop_log()[1])
    assert msgspec.json.encode(again) == msgspec.json.encode(injection())
    assert msgspec.json.encode(injection(2).events) != msgspec.json.encode(injection().events)
    assert msgspec.json.encode(shop_log()[0]) == before


@pytest.mark.parametrize(("seed", "plain"), SEEDS_AND_LOGS)
def test_counts_are_those_asked_for(seed: int, plain: bool) -> None:
    """Attacks, crawlers and heavy buyers count accounts; sales, links and families count groups."""
    labels = injection(seed, plain).labels
    accounts = Counter(label.kind for label in labels)
    assert {kind: accounts[kind] for kind in ATTACKS} == ALL_ATTACKS
    assert {kind: len(groups(injection(seed, plain), kind)) for kind in NEGATIVES} == ALL_NEGATIVES
    assert accounts["crawlers"] == 2
    assert accounts["heavy_buyers"] == 3


@pytest.mark.parametrize(("seed", "plain"), SEEDS_AND_LOGS)
def test_labels_are_complete(seed: int, plain: bool) -> None:
    """Every user of the log and every new one has one label; whoever attacks is fake from a time that occurs."""
    injected = injection(seed, plain)
    log = plain_log() if plain else shop_log()[0]
    users = {event.user_id for event in log} | {event.user_id for event in injected.events}
    assert [label.user_id for label in injected.labels] == sorted(users)
    times = {user: {event.event_time_ms for event in own} for user, own in by_user(injected.events).items()}
    known = {event.user_id for event in log}
    for label in injected.labels:
        assert (label.label == "fake") == (label.kind in ATTACKS)
        assert (label.fake_from_ms in times.get(label.user_id, ())) == (label.label == "fake")
        assert (label.user_id in known) == (label.kind in {"normal", "original", "flash_sale", "celebrity"})


@pytest.mark.parametrize(("seed", "plain"), SEEDS_AND_LOGS)
def test_every_event_is_canonical_and_in_the_logs_language(seed: int, plain: bool) -> None:
    """Fields, actions, items with their categories, resolution of time and span are the log's own; ids are new."""
    log = plain_log() if plain else shop_log()[0]
    events = injection(seed, plain).events
    keys, values = [e.user_id.encode() for e in events], [msgspec.json.encode(e) for e in events]
    assert all(isinstance(event, Event) for event in decode_events(keys, values))
    shelves = {event.item_id: event.category_id for event in log}
    times = sorted(event.event_time_ms for event in log)
    fields = {field for event in log for field in msgspec.json.decode(msgspec.json.encode(event))}
    assert {event.action for event in events} <= {event.action for event in log}
    for event in events:
        assert set(msgspec.json.decode(msgspec.json.encode(event))) <= fields | {"extra"}
        assert event.item_id is None or shelves[event.item_id] == event.category_id
        assert times[0] <= event.event_time_ms <= times[-1]
        assert not plain or (event.event_time_ms % 1000 == 0 and event.user_id.isdigit())
        assert not plain or event.event_time_ms >= times[1]  # the outlier stretches nothing
    if not plain:
        assert not {event.event_id for event in log} & {event.event_id for event in events}
        assert len({event.event_id for event in events}) == len(events)
        # The shape says nothing: a prefix and digits as in the log.
        assert {len(str(event.event_id)) for event in events} == {len(str(event.event_id)) for event in log}
        orders = Counter(event.order_id for event in events if event.order_id)
        assert max(orders.values()) == 1
    assert [event.event_time_ms for event in events] == sorted(event.event_time_ms for event in events)


def test_nothing_but_an_announced_crawler_says_what_it_is() -> None:
    """No event names its script; announced crawlers carry the number ``crawler`` in every event, nobody else does."""
    announced = {label.user_id for label in injection().labels if label.kind == "crawlers"}
    for event in injection().events:
        assert (event.extra == {"crawler": 1.0}) == (event.user_id in announced)
        text = msgspec.json.encode(msgspec.structs.replace(event, extra=None)).decode()
        assert not any(kind in text for kind in (*ATTACKS, *NEGATIVES))


def test_a_log_without_repeated_items_gets_none() -> None:
    """Where upstream removed them, an item twice in a row would give every script away."""
    own = [own for user, own in by_user(injection(1, True).events).items()]
    pairs = [(a.item_id, b.item_id) for events in own for a, b in pairwise(events)]
    assert sum(a == b for a, b in pairs) < 0.02 * len(pairs)


# ---- attacks


@pytest.mark.parametrize(("seed", "plain"), SEEDS_AND_LOGS)
def test_bursts_are_fast_and_stay_in_one_shop(seed: int, plain: bool) -> None:
    """Seconds between events, one group within two hours, all of one category in a log without shops, with orders."""
    for _, accounts in groups(injection(seed, plain), "burst"):
        gaps = [b.event_time_ms - a.event_time_ms for own in accounts for a, b in pairwise(own)]
        assert median(gaps) < 8_000
        times = [event.event_time_ms for own in accounts for event in own]
        assert max(times) - min(times) < 2 * HOUR_MS
        assert len({event.category_id for own in accounts for event in own}) == 1
        assert all(any(event.action == "purchase" for event in own) for own in accounts)


@pytest.mark.parametrize(("seed", "plain"), SEEDS_AND_LOGS)
def test_coattails_ride_on_best_sellers(seed: int, plain: bool) -> None:
    """Every account meets its group's few unpopular targets and popular items, and buys nothing."""
    log = plain_log() if plain else shop_log()[0]
    counts = Counter(event.item_id for event in log if event.item_id)
    for _, accounts in groups(injection(seed, plain), "coattail"):
        shared = set.union(*({event.item_id for event in own} for own in accounts))
        hot = {item for item, _ in counts.most_common(20)}
        assert all({event.item_id for event in own} & hot for own in accounts)
        assert all({event.item_id for event in own} - hot for own in accounts)
        assert shared & hot
        assert not any(event.action == "purchase" for own in accounts for event in own)


@pytest.mark.parametrize(("seed", "plain"), SEEDS_AND_LOGS)
def test_replays_equal_their_originals(seed: int, plain: bool) -> None:
    """Actions and items are a stretch of the original's, in order; times are elsewhere, pauses a few per cent off."""
    log = by_user(plain_log() if plain else shop_log()[0])
    labels = injection(seed, plain).labels
    kinds = {label.user_id: label.kind for label in labels}
    for replayed, accounts in groups(injection(seed, plain), "replay"):
        for label, own in zip(replayed, accounts, strict=True):
            assert kinds[str(label.source_user)] == "original"
            original = log[str(label.source_user)]
            steps = [(event.action, event.item_id) for event in own]
            whole = [(event.action, event.item_id) for event in original]
            at = next(n for n in range(len(whole)) if whole[n : n + len(steps)] == steps)
            pairs = zip(pairwise(own), pairwise(original[at:]), strict=False)
            for (a, b), (c, d) in pairs:
                pause_ms = d.event_time_ms - c.event_time_ms
                assert abs(b.event_time_ms - a.event_time_ms - pause_ms) <= 0.35 * pause_ms + 1000
    originals = {label.source_user for label in labels if label.source_user}
    assert {user for user, kind in kinds.items() if kind == "original"} == originals


@pytest.mark.parametrize(("seed", "plain"), SEEDS_AND_LOGS)
def test_camouflage_surrounds_the_groups_fake_orders(seed: int, plain: bool) -> None:
    """All accounts of a group buy from a handful of targets, which are a small part of what they do."""
    for _, accounts in groups(injection(seed, plain), "camouflage"):
        bought = [{event.item_id for event in own if event.action == "purchase"} for own in accounts]
        assert all(bought)
        by_item = Counter(item for items in bought for item in items)
        targets = {item for item, _ in by_item.most_common(3)}
        assert all(items & targets for items in bought)
        fake = [sum(event.item_id in targets for event in own) / len(own) for own in accounts]
        assert median(fake) < 0.7


@pytest.mark.parametrize(("seed", "plain"), SEEDS_AND_LOGS)
def test_drips_are_slow_and_in_lockstep(seed: int, plain: bool) -> None:
    """Days from the first to the last event, and whenever one account comes the others come within hours."""
    for _, accounts in groups(injection(seed, plain), "drip"):
        for own in accounts:
            assert own[-1].event_time_ms - own[0].event_time_ms > 3 * 24 * HOUR_MS
            for event in own:
                for other in accounts:
                    assert min(abs(event.event_time_ms - its.event_time_ms) for its in other) < 6 * HOUR_MS
        items = [{event.item_id for event in own} for own in accounts]
        if not plain:  # else with other items in between
            assert all(len(own) <= 6 and own == items[0] for own in items)


# ---- hard negatives


@pytest.mark.parametrize(("seed", "plain"), SEEDS_AND_LOGS)
def test_a_flash_sale_is_many_people_buying_one_item_within_an_hour(seed: int, plain: bool) -> None:
    """People of the log, each with an order of that item, the first and the last at most 3,600 s apart."""
    for _, accounts in groups(injection(seed, plain), "flash_sale"):
        bought = [{event.item_id: event for event in own if event.action == "purchase"} for own in accounts]
        (item,) = set.intersection(*(set(orders) for orders in bought))
        times = [orders[item].event_time_ms for orders in bought]
        assert len(times) >= 10
        assert max(times) - min(times) <= HOUR_MS


@pytest.mark.parametrize(("seed", "plain"), SEEDS_AND_LOGS)
def test_a_celebritys_link_brings_a_crowd_to_one_item(seed: int, plain: bool) -> None:
    """Everybody looks at that item within about a day, and many buy it."""
    for _, accounts in groups(injection(seed, plain), "celebrity"):
        (item, n), *_ = Counter(
            item for own in accounts for item in {event.item_id for event in own}
        ).most_common()
        assert n == len(accounts) >= 10
        times = [event.event_time_ms for own in accounts for event in own if event.item_id == item]
        assert max(times) - min(times) < 30 * HOUR_MS
        buyers = [
            any((event.item_id, event.action) == (item, "purchase") for event in own) for own in accounts
        ]
        assert sum(buyers) >= 0.25 * len(accounts)


def test_families_share_an_address_and_finds() -> None:
    """One address a family, nobody else's; in a log without addresses no event gets one."""
    others = {event.ip for event in shop_log()[0]}
    for _, accounts in groups(injection(), "families"):
        (ip,) = {event.ip for own in accounts for event in own}
        assert ip not in others
        assert 2 <= len(accounts) <= 5
        seen = Counter(item for own in accounts for item in {event.item_id for event in own if event.item_id})
        assert max(seen.values()) >= 2
    assert all(event.ip is None and event.device_id is None for event in injection(1, True).events)


@pytest.mark.parametrize(("seed", "plain"), SEEDS_AND_LOGS)
def test_crawlers_walk_and_heavy_buyers_buy_different_things(seed: int, plain: bool) -> None:
    """A crawler only looks, a different product each time; a heavy buyer hardly orders anything twice."""
    for _, (own,) in groups(injection(seed, plain), "crawlers"):
        assert {event.action for event in own} == {"view"}
        assert len({event.item_id for event in own}) > 30
    for _, (own,) in groups(injection(seed, plain), "heavy_buyers"):
        bought = [event.item_id for event in own if event.action == "purchase"]
        assert len(bought) >= 4
        assert len(set(bought)) >= 0.6 * len(bought)
        assert sum(event.action == "view" for event in own) > 3


# ---- the whole


@given(st.integers(0, 2**32), st.integers(1, 200))
def test_groups_make_up_the_number(seed: int, n: int) -> None:
    """Sizes are 4 to 14, or all there are when fewer were asked for."""
    sizes = list(group_sizes(np.random.Generator(np.random.PCG64(seed)), n))
    assert sum(sizes) == n
    assert all(min(n, 3) <= size <= 14 for size in sizes)


log_events = st.lists(
    st.builds(
        LogEvent,
        user_id=st.sampled_from(["a", "b", "7", "user-12", "é"]),
        event_time_ms=st.integers(1, 10**7),
        action=st.sampled_from(["view", "cart", "purchase", "dance"]),
        item_id=st.sampled_from([None, "i1", "i2"]),
        category_id=st.sampled_from([None, "c1"]),
        device_id=st.sampled_from([None, "d"]),
        order_id=st.sampled_from([None, "o"]),
        session_id=st.sampled_from([None, "s"]),
        event_id=st.none(),
        ip=st.sampled_from([None, "10.0.0.1"]),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(log_events, st.sampled_from([*ATTACKS, *NEGATIVES]), st.integers(0, 99))
def test_any_log_is_injected_into_or_refused_with_a_reason(
    events: list[LogEvent], kind: str, seed: int
) -> None:
    """However small and odd: canonical events within the span with labels for all, or one sentence about the log."""
    events.sort(key=lambda event: event.event_time_ms)
    wanted: tuple[dict[str, int], dict[str, int]] = ({kind: 2}, {}) if kind in ATTACKS else ({}, {kind: 2})
    try:
        injected = inject(events, *wanted, seed)
    except InjectionError as error:
        reason = str(error)
    else:
        reason = None
    assert reason is None or "log" in reason
    if reason is not None:
        return
    values = [msgspec.json.encode(event) for event in injected.events]
    decoded = decode_events([event.user_id.encode() for event in injected.events], values)
    assert all(isinstance(event, Event) for event in decoded)
    assert all(
        events[0].event_time_ms <= e.event_time_ms <= events[-1].event_time_ms for e in injected.events
    )
    users = {event.user_id for event in (*events, *injected.events)}
    assert [label.user_id for label in injected.labels] == sorted(users)


def refused(events: list[LogEvent], *kinds: str) -> str:
    wanted = {kind: 3 for kind in kinds if kind in ATTACKS}, {kind: 1 for kind in kinds if kind in NEGATIVES}
    with pytest.raises(InjectionError) as error:
        inject(events, *wanted, 1)
    return str(error.value)


def test_logs_that_hold_too_little_are_refused() -> None:
    """Each refusal says what the log lacks: events, known actions, purchases, clicks, people."""

    def log_of(user: Callable[[int], str], action: str) -> list[LogEvent]:
        return [
            LogEvent(user_id=user(n), event_time_ms=1 + n * 60_000, action=action, item_id="i")
            for n in range(50)
        ]

    assert "no events" in refused([], "burst")
    assert "knows none of view" in refused(log_of(lambda n: f"u{n % 9}", "dance"), "burst")
    assert "Nobody buys" in refused(log_of(lambda n: f"u{n % 9}", "view"), "flash_sale")
    assert "leaves no trace" in refused(log_of(lambda n: f"u{n % 9}", "purchase"), "coattail")
    assert "too few for flash_sale" in refused(log_of(lambda _: "u", "purchase"), "flash_sale")
