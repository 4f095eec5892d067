"""The simulated shop: what it sells, how popular and how dear it is, and what goes with what.

There is one shop. Its catalogue has a seed of its own, so that logs of different seeds are different people in the
same shop, and a model that was trained on one log meets known categories in the next.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

__all__ = ["CATEGORIES", "Item", "Shop", "open_shop"]

CATEGORIES = (
    "shoes", "boots", "sandals", "dresses", "shirts", "jeans", "jackets", "hats", "bags", "jewellery",
    "watches", "sunglasses", "phones", "phone-cases", "chargers", "headphones", "speakers", "laptops", "keyboards",
    "monitors", "tablets", "cameras", "tripods", "games", "consoles", "books", "comics", "music", "films", "toys",
    "puzzles", "strollers", "baby-wear", "diapers", "skin-care", "make-up", "perfume", "hair-care", "vitamins",
    "fitness", "running", "cycling", "camping", "fishing", "garden-tools", "plants", "seeds", "grills", "furniture",
    "lamps", "bedding", "towels", "cookware", "coffee", "tea", "snacks", "pet-food", "pet-toys", "car-care", "tools",
)  # fmt: skip

_CATALOGUE_SEED = 2209
_ITEM_EXPONENT = 1.05
_CATEGORY_EXPONENT = 0.7


@dataclass(frozen=True)
class Item:
    """One product: its id, its category's index, and its price in the shop's currency."""

    id: str
    category: int
    price: float


@dataclass(frozen=True)
class Shop:
    """A catalogue.

    Attributes:
        categories: names.
        items: by category, most popular first.
        category_odds: cumulated popularity of the categories, ending at 1.
        item_odds: by category, cumulated popularity of its items, ending at 1.
        neighbours: by category, the categories that people go on to, closest first.
        typical_prices: by category, the median.
    """

    categories: tuple[str, ...]
    items: tuple[tuple[Item, ...], ...]
    category_odds: tuple[float, ...]
    item_odds: tuple[tuple[float, ...], ...]
    neighbours: tuple[tuple[int, ...], ...]
    typical_prices: tuple[float, ...]

    def popular_category(self, chance: float) -> int:
        """The category at ``chance`` (0 <= chance < 1) of the cumulated popularity."""
        return bisect_right(self.category_odds, chance)

    def popular_item(self, category: int, chance: float) -> Item:
        """The item of a category at ``chance`` (0 <= chance < 1) of its cumulated popularity."""
        return self.items[category][bisect_right(self.item_odds[category], chance)]


def _zipf_odds(n: int, exponent: float) -> tuple[float, ...]:
    weights = np.arange(1, n + 1, dtype=np.float64) ** -exponent
    cumulated = list(accumulate((weights / weights.sum()).tolist()))
    # Rounding may leave the sum below 1, and a chance above it would find no entry.
    return (*cumulated[:-1], 1.0)


def open_shop() -> Shop:
    """The shop, the same at every call. Popularity is Zipf's, prices are log-normal around their category's."""
    rng = np.random.Generator(np.random.PCG64(_CATALOGUE_SEED))
    n_categories = len(CATEGORIES)
    sizes = rng.integers(40, 160, n_categories)
    levels = np.exp(rng.normal(3.4, 0.9, n_categories))
    items = []
    for category, (size, level) in enumerate(zip(sizes.tolist(), levels.tolist(), strict=True)):
        prices = np.round(level * np.exp(rng.normal(0.0, 0.45, size)), 2).tolist()
        name = CATEGORIES[category]
        items.append(
            tuple(Item(f"{name}-{n + 1:03d}", category, max(price, 0.5)) for n, price in enumerate(prices))
        )
    popularity = rng.permutation(np.diff(_zipf_odds(n_categories, _CATEGORY_EXPONENT), prepend=0.0))
    # Categories stand by theme: the neighbours are the four around, in an order of their own, and one from afar.
    neighbours = []
    for category in range(n_categories):
        near = [(category + step) % n_categories for step in (-2, -1, 1, 2)]
        afar = (category + int(rng.integers(5, n_categories - 5))) % n_categories
        neighbours.append((*rng.permutation(near).tolist(), afar))
    return Shop(
        CATEGORIES,
        tuple(items),
        (*accumulate(popularity.tolist()[:-1]), 1.0),
        tuple(_zipf_odds(size, _ITEM_EXPONENT) for size in sizes.tolist()),
        tuple(neighbours),
        tuple(float(np.median([item.price for item in shelf])) for shelf in items),
    )
