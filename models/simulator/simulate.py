"""Clickstreams of people who do not exist, for the demo, the tests and the bundled model.

The same arguments give the same bytes: chance comes only from the seed, time only from ``start_ms``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import NamedTuple

import msgspec

from models.errors import ForeclickError
from models.simulator.people import Dice, Habits, Memory, away_s, draw_habits, opening_ms
from models.simulator.shop import Item, Shop, open_shop
from models.simulator.visits import Step, visit

__all__ = ["DEFAULT_START_MS", "Label", "SimulatedEvent", "Simulation", "SimulationError", "simulate"]

#: Monday, 6 January 2025, 00:00 UTC.
DEFAULT_START_MS = 1_736_121_600_000
_DAY_S = 86_400.0
_CRAWLER_SHARE = 0.02
#: Users whose lives are tried out to find how often people come.
_SAMPLE = 150
_LEAVING = 0.015


class SimulationError(ForeclickError):
    """The numbers asked for make no log."""


class SimulatedEvent(msgspec.Struct, kw_only=True, gc=False, omit_defaults=True):
    """A canonical event; its fields are those of the topic, absent ones are left out of the JSON."""

    user_id: str
    event_time_ms: int
    action: str
    event_id: str
    item_id: str | None = None
    category_id: str
    price: float | None = None
    order_id: str | None = None
    device_id: str
    ip: str


class Label(msgspec.Struct, gc=False):
    """Who a user is: ``human`` or ``crawler``. Never part of the events."""

    user_id: str
    label: str


class Simulation(NamedTuple):
    """Events in time order, and the label of every user who occurs in them, in order of user_id."""

    events: list[SimulatedEvent]
    labels: list[Label]


class _Moment(NamedTuple):
    """An event before it is written; sorts by time, then user, and never compares further."""

    time_ms: int
    user: int
    position: int
    action: str
    category: int
    item: Item | None
    device: str
    ip: str


class _Crowd(NamedTuple):
    """The shop, the seed of everybody in it, and who is a crawler."""

    shop: Shop
    seed: int
    crawls: list[bool]


def simulate(
    users: int,
    events: int,
    seed: int,
    *,
    start_ms: int = DEFAULT_START_MS,
    days: float = 14.0,
    progress: Callable[[int, int], None] | None = None,
) -> Simulation:
    """Simulate a shop's clickstream.

    Args:
        users: people and crawlers who may come; with few events an unlucky one does not.
        events: exactly so many, the first ones in time.
        seed: of everything but the catalogue, which is always the same shop.
        start_ms: Unix milliseconds of the first day's beginning.
        days: about how long it takes until that many events have happened.
        progress: called with the users done and the users in all.

    Raises:
        SimulationError: a number is not positive.
    """
    if users < 1 or events < 1 or days <= 0 or seed < 0:
        raise SimulationError(
            f"Cannot simulate {events} events of {users} users in {days:g} days with seed {seed}: "
            "give at least one user, one event, more than no time and a seed from 0."
        )
    dice = Dice(seed, 0)
    crowd = _Crowd(open_shop(), seed, [dice.flip(_CRAWLER_SHARE) for _ in range(users)])
    mean_away_s = _fitting_absence_s(crowd, events, days)
    length_days = days
    while True:
        lives: list[_Moment] = []
        for user in range(users):
            lives += _life(crowd, user, mean_away_s, start_ms, length_days)
            if progress is not None:
                progress(user + 1, users)
        if len(lives) >= events:
            break
        # Too few came, or stayed, to fill the log: the shop stays open longer.
        length_days *= 1.3
    lives.sort()
    del lives[events:]
    seen = sorted({moment.user for moment in lives})
    return Simulation(
        [_written(moment, number, seed, crowd.shop) for number, moment in enumerate(lives)],
        [Label(_user_id(user), "crawler" if crowd.crawls[user] else "human") for user in seen],
    )


def _fitting_absence_s(crowd: _Crowd, events: int, days: float) -> float:
    """The typical absence, in seconds, with which a sample of the users makes its share of the events in ``days``."""
    users = len(crowd.crawls)
    sample = range(min(users, _SAMPLE))
    wanted = 1.06 * events * len(sample) / users
    absence_s = days * _DAY_S * users / events * 20.0
    for _ in range(4):
        found = sum(sum(1 for _ in _life(crowd, user, absence_s, 0, days)) for user in sample)
        absence_s *= min(4.0, max(0.25, found / wanted))
    return absence_s


def _life(crowd: _Crowd, user: int, mean_away_s: float, start_ms: int, days: float) -> Iterator[_Moment]:
    """All that one user does from the start on, for so many days."""
    life = _crawl if crowd.crawls[user] else _live
    dice = Dice(crowd.seed, 1 + user)  # 0 is the crowd's own
    end_ms = start_ms + int(days * _DAY_S * 1000)
    for position, (time_ms, step, device, ip) in enumerate(
        life(dice, crowd.shop, mean_away_s, start_ms, end_ms)
    ):
        if time_ms >= end_ms:
            return
        yield _Moment(time_ms, user, position, step.action, step.category, step.item, device, ip)


def _first_ms(dice: Dice, habits: Habits, start_ms: int, end_ms: int) -> int:
    """Somewhere within a first absence, early enough to be seen at all."""
    return start_ms + int(dice.chance() * min(habits.away_s * 1000, 0.8 * (end_ms - start_ms)))


def _live(
    dice: Dice, shop: Shop, mean_away_s: float, start_ms: int, end_ms: int
) -> Iterator[tuple[int, Step, str, str]]:
    """One person's time, step, device and address of every event, until they have had enough of the shop."""
    habits = draw_habits(dice, shop, mean_away_s)
    memory = Memory()
    time_ms = _first_ms(dice, habits, start_ms, end_ms)
    while not memory.left:
        time_ms = opening_ms(dice, habits, time_ms)
        device = habits.devices[dice.between(0, len(habits.devices) - 1)]
        for n, step in enumerate(visit(dice, shop, habits, memory, time_ms)):
            if n:
                time_ms += int(step.gap_s * 1000)
            yield time_ms, step, device, habits.ip
        memory.left = dice.flip(_LEAVING)
        time_ms += int(away_s(dice, habits, memory) * 1000)


def _crawl(
    dice: Dice, shop: Shop, mean_away_s: float, start_ms: int, end_ms: int
) -> Iterator[tuple[int, Step, str, str]]:
    """A crawler's: every product of every category in the catalogue's order, by the clock."""
    habits = draw_habits(dice, shop, mean_away_s)
    period_ms = 1000 * dice.around(4.0, 0.6)
    pages = dice.between(15, 60)
    actions = ("click", "view") if dice.flip(0.4) else ("view",)
    first = dice.between(0, len(shop.categories) - 1)
    walk = cycle(item for shelf in shop.items[first:] + shop.items[:first] for item in shelf)
    time_ms = _first_ms(dice, habits, start_ms, end_ms)
    while True:
        for item in islice(walk, pages):
            for action in actions:
                yield time_ms, Step(0.0, action, item.category, item), habits.devices[0], habits.ip
                time_ms += int(period_ms * (1.0 + 0.02 * dice.normal()))
        time_ms += int(max(3600.0, 2.0 * habits.away_s) * 1000)


def _user_id(user: int) -> str:
    return f"u{user:06d}"


def _written(moment: _Moment, number: int, seed: int, shop: Shop) -> SimulatedEvent:
    # The seed is part of the ids: logs of two seeds in one topic are not each other's duplicates.
    item = moment.item
    return SimulatedEvent(
        user_id=_user_id(moment.user),
        event_time_ms=moment.time_ms,
        action=moment.action,
        event_id=f"e{seed}-{number:07d}",
        item_id=None if item is None else item.id,
        category_id=shop.categories[moment.category],
        price=None if item is None else item.price,
        order_id=f"o{seed}-{number:07d}" if moment.action == "purchase" else None,
        device_id=moment.device,
        ip=moment.ip,
    )
