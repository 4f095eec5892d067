"""Laws of the detectors of coordination, on hand-made lives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import pytest

from models.fraud.crowds import Crowds
from models.fraud.fusion import Reference, cross_fitted, life_tail, once, scores_of
from models.fraud.habits import KINDS as HABITS
from models.fraud.habits import Habits
from models.fraud.measuring import average_precision, recall_at
from models.fraud.meetings import KINDS, Meetings
from models.fraud.own_terms import OWN_TERMS, OwnScores
from models.fraud.paths import Paths
from models.fraud.watch import TERMS, Engagements, watched

HOUR_MS = 3_600_000
Life = tuple[int, str, str, bool]  # time, user, item, ordered


def strangers(seed: int = 1, users: int = 150, items: int = 120) -> list[Life]:
    """People who come when they like and look at what they like; popular items are popular."""
    rng = np.random.default_rng(seed)
    lives = []
    for user in range(users):
        at_ms = int(rng.integers(200 * HOUR_MS))
        for _ in range(int(rng.integers(5, 30))):
            at_ms += int(rng.exponential(60_000 if rng.random() < 0.9 else 30 * HOUR_MS)) + 1000
            lives.append((at_ms, f"p{user}", f"i{int(rng.random() ** 2 * items)}", bool(rng.random() < 0.06)))
    return sorted(lives)


def met(lives: Iterable[Life], **bounds: int) -> dict[str, dict[str, float]]:
    """The strongest evidence by kind and user."""
    meetings, strongest = Meetings(**bounds), defaultdict(lambda: defaultdict(float))
    for at_ms, user, item, ordered in sorted(lives):
        for who, kind, nats in meetings.observe(user, at_ms, item, ordered):
            strongest[KINDS[kind]][str(who)] = max(nats, strongest[KINDS[kind]][str(who)])
    return strongest


def lockstep(users: int = 6, visits: int = 8) -> list[Life]:
    """Accounts that look at the same two items at the same hours of many days."""
    return [
        (visit * 24 * HOUR_MS + user * 60_000, f"f{user}", f"t{visit % 2}", False)
        for visit in range(visits)
        for user in range(users)
    ]


def test_those_who_keep_coming_together_are_found_among_strangers() -> None:
    """Every account of a lockstep group has more evidence than any person has."""
    together = met(strangers() + lockstep())["together"]
    honest = max((nats for who, nats in together.items() if who.startswith("p")), default=0.0)
    assert min(together[f"f{user}"] for user in range(6)) > honest + 5


def test_one_crowd_proves_nothing() -> None:
    """Forty people who buy one item within an hour have no evidence against each other."""
    sale = [(100 * HOUR_MS + n * 50_000, f"p{n}", "sale", True) for n in range(40)]
    found = met(strangers() + sale)
    assert all(nats < 3 for kind in KINDS for nats in found[kind].values())


def test_shelf_beside_one_sale_is_one_meeting() -> None:
    """Ten who see the same six rare items in the hour of a sale have met once; on six days, six times."""
    shelf = [(n % 2 * 500_000 + item * 60_000, item, f"p{n}") for n in range(10) for item in range(6)]
    at_once = [(HOUR_MS + at, user, f"shelf{item}", False) for at, item, user in shelf]
    by_day = [(at + item * 26 * HOUR_MS, user, f"shelf{item}", False) for at, item, user in shelf]
    others = [life for life in strangers() if int(life[1][1:]) >= 10]
    assert not any(met(others + at_once)["visited"][f"p{n}"] for n in range(10))
    assert min(met(others + by_day)["visited"][f"p{n}"] for n in range(10)) > 3


def test_couples_may_meet_as_often_as_they_like() -> None:
    """Two who always come together are no farm: it takes a third partner."""
    assert not any(who.startswith("f") for who in met(strangers() + lockstep(users=2))["together"])


def test_smaller_memory_of_partners_finds_no_more() -> None:
    """What a bound makes forget may be missed; nothing is invented."""
    wide, narrow = met(strangers() + lockstep()), met(strangers() + lockstep(), visitors=8, partners=6)
    for user in range(6):
        assert narrow["together"][f"f{user}"] <= wide["together"][f"f{user}"] + 1e-9


def chains(lives: Iterable[Life]) -> dict[str, float]:
    paths, longest = Paths(), defaultdict(float)
    for at_ms, user, item, _ in sorted(lives):
        for who, _, nats in paths.observe(user, at_ms, item):
            longest[str(who)] = max(nats, longest[str(who)])
    return longest


def recorded(steps: int = 15) -> list[Life]:
    """A session, and two days later its copy with pauses a few per cent off."""
    rng = np.random.default_rng(3)
    pauses = rng.lognormal(3.0, 1.2, steps)
    items = [f"i{n}" for n in rng.integers(120, size=steps)]
    original = np.cumsum(pauses)
    copy = np.cumsum(pauses * np.exp(rng.normal(0, 0.03, steps))) + 50 * 3600
    return [
        (int(at * 1000), name, item, False)
        for name, times in (("original", original), ("copy", copy))
        for at, item in zip(times, items, strict=True)
    ]


def test_session_lived_twice_is_found_at_its_copy() -> None:
    """A copy has its original's path and rhythm, other people have not; of the original it says much less."""
    longest = chains(strangers() + recorded())
    others = max((nats for who, nats in longest.items() if who.startswith("p")), default=0.0)
    assert longest["copy"] > others + 10
    assert others < longest["original"] <= 24.0


def test_whole_life_copied_says_no_more_than_forty_nats() -> None:
    """However long a copy is, its original can be outweighed by what others do."""
    longest = chains(recorded(80))
    assert longest["copy"] == 40.0
    assert longest["original"] == 24.0


def test_one_step_in_common_is_no_path() -> None:
    """Two who go from one item to the same next one with the same pause have no evidence yet."""
    lives = strangers() + recorded()
    own = [life for life in lives if not life[1].startswith("p")]
    short = [life for life in recorded() if life[1] == "original"] + [
        life for life in recorded() if life[1] == "copy"
    ][:2]
    assert chains(own)["copy"] > 0
    assert chains(short) == {}


def test_catalogue_read_by_the_clock_is_nobodys_path() -> None:
    """Two crawlers share order and pause, because there is only one catalogue and one clock: no evidence."""
    lives = [(n * 4000, "a", f"i{n}", False) for n in range(60)]
    lives += [(HOUR_MS + n * 4000, "b", f"i{n}", False) for n in range(60)]
    assert chains(lives) == {}


def orders_seen(lives: Iterable[Life]) -> dict[str, float]:
    crowds, most = Crowds(), defaultdict(float)
    for at_ms, user, item, ordered in sorted(lives):
        for who, kind, nats in crowds.observe(user, at_ms, item, ordered):
            if kind == 1:
                most[str(who)] = max(nats, most[str(who)])
    return most


def test_orders_without_an_audience_are_suspicious_and_a_sale_is_not() -> None:
    """Seven orders of an item that nobody else looks at say more than forty within the hour of a sale."""
    quiet = [(n * 9 * HOUR_MS, f"f{n}", "quiet", True) for n in range(7)]
    sale = [(90 * HOUR_MS + n * 50_000, f"b{n}", "sale", True) for n in range(40)]
    most = orders_seen(strangers() + quiet + sale)
    assert min(most[f"f{n}"] for n in range(7)) > max(most[f"b{n}"] for n in range(40))


def test_haste_is_that_of_eight_events() -> None:
    """The same number of events in less time is more haste; after a long pause it begins anew."""
    quick, slow, habits = "quick", "slow", Habits()
    haste = HABITS.index("haste")
    for n in range(8):
        at_slow = habits.observe(slow, n * 20_000, "i", False)[haste]
        at_quick = habits.observe(quick, n * 500, "i", False)[haste]
    assert at_quick > at_slow > 0
    assert habits.observe(quick, 10 * HOUR_MS, "i", False)[haste] == 0


def engagements(lives: list[Life]) -> tuple[Engagements, list[str]]:
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    lives = sorted(lives)
    columns = [
        np.array([users.setdefault(user, len(users)) for _, user, _, _ in lives]),
        np.array([at_ms for at_ms, _, _, _ in lives]),
        np.array([int(ordered) for _, _, _, ordered in lives]),
        np.array([items.setdefault(item, len(items)) for _, _, item, _ in lives]),
        np.array([ordered for _, _, _, ordered in lives]),
        np.array([user == "crawler" for _, user, _, _ in lives]),
    ]
    return Engagements(*columns, n_users=len(users), n_actions=2), list(users)


def test_announced_crawlers_have_no_terms() -> None:
    """Who says that it is a crawler is not suspected of being one."""
    log, users = engagements(strangers() + [(n * 1000, "crawler", f"i{n % 50}", False) for n in range(300)])
    found, _ = watched(log)
    assert not found.values_RT[found.user_R == users.index("crawler")].any()


def test_rows_never_fall_and_look_at_nothing_later() -> None:
    """A user's rows rise only, and the rows of a log's first half are those of the half alone."""
    lives = sorted(strangers() + lockstep())
    whole, _ = watched(engagements(lives)[0])
    half = len(lives) // 2
    part, _ = watched(engagements(lives[:half])[0])
    early = whole.event_R < half
    assert np.array_equal(whole.values_RT[early], part.values_RT)
    for user in range(whole.user_R.max() + 1):
        assert (np.diff(whole.values_RT[whole.user_R == user], axis=0) >= 0).all()


def test_scores_of_a_fold_do_not_hang_on_its_own_users() -> None:
    """The reference that judges a user was fitted without the user's fold."""
    rng = np.random.default_rng(0)
    user, events = np.arange(400), np.full(400, 20)
    values = rng.exponential(1.0, (400, len(TERMS)))
    fold = user % 4
    _, _, references = cross_fitted(user, events, values, fold, 4)
    changed = values.copy()
    changed[fold == 0] *= 3
    _, _, again = cross_fitted(user, events, changed, fold, 4)
    assert references[0].as_dict() == again[0].as_dict()
    assert references[1].as_dict() != again[1].as_dict()


def test_reference_survives_its_manifest() -> None:
    """What is written is what judges."""
    rng = np.random.default_rng(0)
    values = rng.exponential(1.0, (300, len(TERMS)))
    reference = Reference.fit(np.full(300, 9), values, np.ones(300, bool), np.arange(300))
    read = Reference.from_dict(reference.as_dict())
    assert read.nats(np.full(300, 9), values) == pytest.approx(
        reference.nats(np.full(300, 9), values), abs=1e-3
    )


def test_one_user_is_scored_as_a_population_is() -> None:
    """The score by numbers and the score by arrays are one, for any values and number of events."""
    rng = np.random.default_rng(0)
    learned = rng.exponential(2.0, (2000, len(TERMS))) * (rng.random((2000, len(TERMS))) < 0.6)
    reference = Reference.fit(rng.integers(1, 400, 2000), learned, np.ones(2000, bool), np.arange(2000))
    scores = OwnScores(reference)
    events = np.array([1, 3, 4, 20, 255, 256, 5000]).repeat(60)
    values = np.zeros((len(events), len(TERMS)))
    places = [TERMS.index(term) for term in OWN_TERMS]
    shape = len(events), len(places)
    values[:, places] = rng.uniform(0.0, 12.0, shape) * (rng.random(shape) < 0.5)
    beside = rng.uniform(0.0, 9.0, (len(events), 3)) * (rng.random((len(events), 3)) < 0.5)
    nats = reference.terms(events, values)
    fused = reference.fuse(np.append(once(nats), beside, axis=1))
    judged = [
        scores.judge(number, tuple(mine), tuple(others))
        for number, mine, others in zip(
            events.tolist(), values[:, places].tolist(), beside.tolist(), strict=True
        )
    ]
    assert len({one.score for one in judged}) > 200
    # A sum of a dozen numbers may end one unit in the last place apart; scores have six places.
    assert [one.score for one in judged] == pytest.approx(reference.level(fused).tolist(), abs=5.1e-7)
    assert np.array([one.nats for one in judged]) == pytest.approx(nats[:, places], abs=1e-12)


def test_many_attackers_hide_one_another_only_so_far() -> None:
    """Of a seventh of all, too weak to be left out of the reference, those with most evidence still stand out."""
    rng = np.random.default_rng(0)
    path = TERMS.index("same_path")
    values = np.zeros((1000, len(TERMS)))
    values[:, path] = np.where(np.arange(1000) < 850, rng.exponential(1.0, 1000), rng.uniform(6, 14, 1000))
    events = np.full(1000, 20)
    reference = Reference.fit(events, values, np.ones(1000, bool), np.arange(1000))
    assert reference.terms(events, values)[:, path].max() > 4.0


def test_buying_much_is_one_fact() -> None:
    """Of haste and habits of orders the rarest counts, that of orders bounded; all other terms stay as they are."""
    row = np.arange(1.0, len(TERMS) + 1)[None]
    buying = [TERMS.index(term) for term in ("haste", "orders_at_once", "same_order_again", "hardly_looks")]
    row[0, buying] = (4.0, 12.0, 9.0, 5.0)
    counted = once(row)[0]
    assert counted[buying[1]] == pytest.approx(np.log(30) + np.log1p(12.0 - np.log(30)))
    assert not counted[[buying[0], *buying[2:]]].any()
    others = [term for term in range(len(TERMS)) if term not in buying]
    assert np.array_equal(counted[others], row[0, others])


def test_heavy_buyer_is_less_odd_than_whoever_coordinates() -> None:
    """Somebody who buys as nobody else does, alone, has less to explain than one group term as rare gives."""
    rng = np.random.default_rng(0)
    values = rng.exponential(1.0, (1000, len(TERMS)))
    reference = Reference.fit(np.full(1000, 20), values, np.ones(1000, bool), np.arange(1000))
    heavy, member = np.zeros((2, 1, len(TERMS)))
    heavy[0, [TERMS.index(term) for term in ("orders_at_once", "same_order_again", "hardly_looks")]] = 12.0
    member[0, TERMS.index("ordered")] = 12.0
    assert reference.level(reference.nats(np.array([20]), heavy))[0] < 0.99
    assert reference.level(reference.nats(np.array([20]), member))[0] > 0.99


def test_tail_of_lives_is_that_of_those_who_were_left_out_too() -> None:
    """However many attackers are beyond the bound, one honest life in a hundred is beyond its quantile."""
    lives = np.random.default_rng(0).exponential(2.0, 4000)
    for attackers in (0, 1000):
        cut, share, scale = life_tail(np.append(lives, np.full(attackers, 50.0)), 7.0)
        assert scale == pytest.approx(2.0, rel=0.15)
        assert (lives > cut + scale * np.log(share / 0.01)).mean() == pytest.approx(0.01, abs=0.005)


def test_score_keeps_the_order_of_nats() -> None:
    """Beyond one in ten thousand scores approach 1 and stay apart."""
    scores = scores_of(np.array([0.0, 1.0, 5.0, 9.0, 9.5, 50.0, 500.0]))
    assert (np.diff(scores) > 0).all()
    assert scores[0] == 0
    assert scores[-1] < 1


def test_average_precision_and_recall_by_hand() -> None:
    """Two of four positives before the first false one; ties count as one group."""
    label = np.array([True, True, False, True, False, True, False])
    score = np.array([7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    assert average_precision(label, score) == pytest.approx((1 + 1 + 3 / 4 + 4 / 6) / 4)
    assert average_precision(label, np.zeros(7)) == pytest.approx(4 / 7)
    assert recall_at(label, score, 0.34) == 0.75
