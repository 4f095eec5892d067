"""The shop's visitors: habits that stay, a memory that grows, and the calendar by which they come and go.

A person is drawn once. What a person does within a visit is the story of ``visits.py``; this file decides who they
are, when a visit starts, and what is remembered from one to the next.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from math import exp

import numpy as np

from models.simulator.shop import Item, Shop

__all__ = ["Dice", "Habits", "Memory", "away_s", "draw_habits", "opening_ms"]

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
#: Longer than any pause within a visit: below it two visits would be one session.
_SHORTEST_ABSENCE_S = 2_100.0


class Dice:
    """One person's source of chance. Drawn in blocks: a call to numpy for every decision would be most of the time."""

    def __init__(self, seed: int, person: int) -> None:
        self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, person))))
        self._uniforms = self._drawn_uniforms()
        self._normals = self._drawn_normals()

    def _drawn_uniforms(self) -> Iterator[float]:
        while True:
            yield from self._rng.random(128).tolist()

    def _drawn_normals(self) -> Iterator[float]:
        while True:
            yield from self._rng.standard_normal(32).tolist()

    def chance(self) -> float:
        """Uniform in [0, 1)."""
        return next(self._uniforms)

    def flip(self, probability: float) -> bool:
        """True with that probability."""
        return next(self._uniforms) < probability

    def between(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return low + int(next(self._uniforms) * (high - low + 1))

    def normal(self) -> float:
        """Standard normal."""
        return next(self._normals)

    def around(self, median: float, sigma: float) -> float:
        """Log-normal with that median; sigma of the logarithm."""
        return median * exp(sigma * next(self._normals))


@dataclass(frozen=True)
class Habits:
    """What stays the same about a person.

    Attributes:
        tastes: categories that the person likes, and ``taste_odds``, their cumulated shares.
        patience: products looked at after one search.
        looks: times that a product is looked at before it is wanted enough.
        lingers: products looked at between cart and checkout.
        clicks_through: chance that a product is opened from a list (click, then view).
        searches: chance that a run of products starts with a search.
        wishes: chance that a wanted product is marked as favourite first.
        reviews: chance of a word on what was bought.
        budget: a price of this multiple of the category's typical one is where wanting starts to fail.
        pace: of every pause, a multiple.
        peak_hour: of the day (UTC) at which visits are likeliest.
        away_s: typical time between visits.
        devices: one or two device ids; ip: address.
    """

    tastes: tuple[int, ...]
    taste_odds: tuple[float, ...]
    patience: int
    looks: int
    lingers: int
    clicks_through: float
    searches: float
    wishes: float
    reviews: float
    budget: float
    pace: float
    peak_hour: float
    away_s: float
    devices: tuple[str, ...]
    ip: str

    def taste(self, chance: float) -> int:
        """A liked category."""
        return self.tastes[bisect_right(self.taste_odds, chance)]


@dataclass
class Memory:
    """What a person takes from one visit to the next.

    Attributes:
        cart: products in the cart, the last one last, and ``carted_ms``, when that one went in.
        wanted: products looked at or marked often enough to come back for, the latest last.
        bought: purchases that nobody has spoken of yet, and ``bought_ms``, when the last one was.
        left: gone for good.
    """

    cart: list[Item] = field(default_factory=list)
    carted_ms: int = 0
    wanted: list[Item] = field(default_factory=list)
    bought: list[Item] = field(default_factory=list)
    bought_ms: int = 0
    left: bool = False


def draw_habits(dice: Dice, shop: Shop, mean_away_s: float) -> Habits:
    """Draw a person. Habits that are either strong or weak make the next step hang on who it is."""
    tastes: list[int] = []
    while len(tastes) < 5:
        category = shop.popular_category(dice.chance())
        if category not in tastes:
            tastes.append(category)
    shares = [exp(0.9 * dice.normal()) for _ in tastes]
    odds = list(accumulate(share / sum(shares) for share in shares))
    n_devices = 2 if dice.flip(0.2) else 1
    return Habits(
        tastes=tuple(tastes),
        taste_odds=(*odds[:-1], 1.0),
        patience=dice.between(1, 4),
        looks=dice.between(2, 3),
        lingers=dice.between(0, 3),
        clicks_through=0.9 if dice.flip(0.45) else 0.06,
        searches=0.85 if dice.flip(0.5) else 0.3,
        wishes=0.9 if dice.flip(0.6) else 0.15,
        reviews=0.9 if dice.flip(0.5) else 0.25,
        budget=dice.around(1.4, 0.4),
        pace=dice.around(1.0, 0.25),
        peak_hour=(20.0 + 2.5 * dice.normal() if dice.flip(0.7) else 12.0 + 2.0 * dice.normal()) % 24.0,
        away_s=dice.around(mean_away_s, 0.8),
        devices=tuple(f"d{dice.between(0, 2**32 - 1):08x}" for _ in range(n_devices)),
        ip=f"10.{dice.between(0, 255)}.{dice.between(0, 255)}.{dice.between(1, 254)}",
    )


def away_s(dice: Dice, habits: Habits, memory: Memory) -> float:
    """Seconds until the next visit: heavy-tailed, shorter with something in the cart or in mind."""
    typical = habits.away_s
    if memory.cart:
        typical *= 0.3
    elif memory.wanted:
        typical *= 0.7
    elif memory.bought:
        typical *= 1.3
    return max(_SHORTEST_ABSENCE_S, dice.around(0.6 * typical, 1.1))


def opening_ms(dice: Dice, habits: Habits, earliest_ms: int) -> int:
    """When a visit that could start at ``earliest_ms`` does: most wait for the person's hours."""
    time_ms = earliest_ms
    while True:
        distance = abs(time_ms % _DAY_MS / _HOUR_MS - habits.peak_hour)
        distance = min(distance, 24.0 - distance)
        if dice.flip(0.06 + 0.94 * exp(-0.5 * (distance / 3.0) ** 2)):
            return time_ms
        time_ms += int((0.3 + dice.chance()) * _HOUR_MS)
