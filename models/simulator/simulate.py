"""Clickstreams of people who do not exist, for the demo, the tests and the bundled model.

The same arguments give the same bytes: chance comes only from the seed, time only from ``start_ms``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from models.errors import ForeclickError
from models.simulator.people import Dice, Memory, away_s, draw_habits, opening_ms
from models.simulator.shop import Item, Shop, open_shop
from models.simulator.visits import Step, visit

__all__ = ["DEFAULT_START_MS", "Label", "Simulation", "SimulatedEvent", "SimulationError", "simulate"]

#: Monday, 6 January 2025, 00:00 UTC.
DEFAULT_START_MS = 1_736_121_600_000
_DAY_S = 86_400.0
_CRAWLER_SHARE = 0.02
#: Events that a typical absence is followed by, the often-come and the carts left included. Measured over many
#: people; decides only how often they come, so that the events fill the days.
_EVENTS_PER_ABSENCE = 22.0
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


def simulate(
    users: int,
    events: int,
    seed: int,
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
    shop = open_shop()
    absences_each = events / users / _EVENTS_PER_ABSENCE
    mean_away_s = days * _DAY_S / absences_each
    length_days = days
    while True:
        end_ms = start_ms + int(length_days * _DAY_S * 1000)
        moments: list[_Moment] = []
        crawlers = set()
        for user in range(users):
            dice = Dice(seed, user)
            crawls = dice.flip(_CRAWLER_SHARE)
            if crawls:
                crawlers.add(user)
            life = _crawl if crawls else _live
            moments += life(dice, shop, user, mean_away_s, start_ms, end_ms)
            if progress is not None:
                progress(user + 1, users)
        if len(moments) >= events:
            break
        # Too few came, or stayed, to fill the log: let the shop stay open longer.
        length_days *= 1.5
    moments.sort()
    del moments[events:]
    seen = sorted({moment.user for moment in moments})
    return Simulation(
        [_written(moment, number, seed, shop) for number, moment in enumerate(moments)],
        [Label(_user_id(user), "crawler" if user in crawlers else "human") for user in seen],
    )


def _live(dice: Dice, shop: Shop, user: int, mean_away_s: float, start_ms: int, end_ms: int) -> Iterator[_Moment]:
    """One person's events from the first visit until the end, or until they have had enough."""
    habits = draw_habits(dice, shop, mean_away_s)
    memory = Memory()
    first_s = min(habits.away_s, 0.8 * (end_ms - start_ms) / 1000)
    time_ms = start_ms + int(dice.chance() * first_s * 1000)
    position = 0
    while not memory.left:
        time_ms = opening_ms(dice, habits, time_ms)
        device = habits.devices[dice.between(0, len(habits.devices) - 1)]
        for n, step in enumerate(visit(dice, shop, habits, memory, time_ms)):
            if n:
                time_ms += int(step.gap_s * 1000)
            if time_ms >= end_ms:
                return
            yield _moment(time_ms, user, position, step, device, habits.ip)
            position += 1
        memory.left = dice.flip(_LEAVING)
        time_ms += int(away_s(dice, habits, memory) * 1000)


def _crawl(dice: Dice, shop: Shop, user: int, mean_away_s: float, start_ms: int, end_ms: int) -> Iterator[_Moment]:
    """A crawler: every product of every category in the catalogue's order, by the clock."""
    habits = draw_habits(dice, shop, mean_away_s)
    period_s = dice.around(4.0, 0.6)
    pages = dice.between(15, 60)
    opens_lists = dice.flip(0.4)
    category = dice.between(0, len(shop.categories) - 1)
    walk = (item for turn in range(10**9) for item in shop.items[(category + turn) % len(shop.categories)])
    time_ms = start_ms + int(dice.chance() * min(habits.away_s, 0.8 * (end_ms - start_ms) / 1000) * 1000)
    position = 0
    while True:
        for _ in range(pages):
            item = next(walk)
            for action in ("click", "view") if opens_lists else ("view",):
                if time_ms >= end_ms:
                    return
                step = Step(0.0, action, item.category, item)
                yield _moment(time_ms, user, position, step, habits.devices[0], habits.ip)
                position += 1
                time_ms += int(1000 * period_s * (1.0 + 0.02 * dice.normal()))
        time_ms += int(max(3600.0, 2.0 * habits.away_s) * 1000)


def _moment(time_ms: int, user: int, position: int, step: Step, device: str, ip: str) -> _Moment:
    return _Moment(time_ms, user, position, step.action, step.category, step.item, device, ip)


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
