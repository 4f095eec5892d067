"""A log as those see it who plan to pass for its users: what it sells, how its people move, how it writes.

Attackers and hard negatives speak the log's own language. Items, categories, actions, hours, pauses, the shape of
ids, the resolution of time and even which fields are filled come from here, so that none of it gives them away.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from itertools import pairwise
from math import ceil
from typing import Any, NamedTuple

import msgspec
import numpy as np

from models.errors import ForeclickError

__all__ = ["SESSION_GAP_MS", "InjectionError", "LogEvent", "Market", "Product"]

SESSION_GAP_MS = 1_800_000
_DAY_MS = 86_400_000
#: Real logs hold a few rows from another year: the log's span is where all but a thousandth on either side lies.
_OUTLIERS = 0.001
_RARE = 0.01
_IDS = ("user_id", "event_id", "order_id", "session_id", "device_id", "ip")
#: What each step of a script is called, the canonical name first; the first name that the log knows is taken.
_NAMES = {
    "view": ("view", "pv", "click"),
    "click": ("click", "view", "pv"),
    "cart": ("cart", "addtocart", "add_to_cart"),
    "checkout": ("checkout", "begin_checkout"),
    "purchase": ("purchase", "buy", "transaction", "order"),
}
_IP = re.compile(r"\d+\.\d+\.\d+\.\d+")


class InjectionError(ForeclickError):
    """The log holds too little for what is to be put into it."""


class LogEvent(msgspec.Struct, kw_only=True, gc=False, omit_defaults=True):
    """A canonical event; absent fields are left out of the JSON."""

    user_id: str
    event_time_ms: int
    action: str
    event_id: str | None = None
    session_id: str | None = None
    item_id: str | None = None
    category_id: str | None = None
    shop_id: str | None = None
    order_id: str | None = None
    price: float | None = None
    quantity: float | None = None
    currency: str | None = None
    dwell_ms: int | None = None
    device_id: str | None = None
    ip: str | None = None
    lines: Any = None
    extra: dict[str, float] | None = None


class Product(NamedTuple):
    """What an event may be about, as the log writes it; a log without items has its categories here."""

    item_id: str | None
    category_id: str | None
    shop_id: str | None
    price: float | None
    currency: str | None


class Market:
    """What there is to know of a log.

    Attributes:
        first_ms, last_ms: its span, outliers left out; every script ends within it.
        resolution_ms: times are multiples of it.
        sessions: of each ordinary user, lists of events within the span that no pause of 30 min parts.
        products: most frequent first.
        actions: names of the actions, most frequent first.
        names: by field, every id that occurs, sorted.
        filled: names of the fields that the log uses.
        repeats_items: whether people do two things in a row with one item; some logs are rid of that upstream.
    """

    def __init__(self, events: Sequence[LogEvent], crawlers: Collection[str] = ()) -> None:
        """Read a log.

        Args:
            events: all of it, each user's events in time order.
            crawlers: users whose ways nobody copies.

        Raises:
            InjectionError: there is nothing in it.
        """
        if not events:
            raise InjectionError("There are no events to put others among. Name a log that holds some.")
        times = np.sort(np.array([event.event_time_ms for event in events], np.int64))
        cut = int(_OUTLIERS * len(times))
        self.first_ms, self.last_ms = int(times[cut]), int(times[len(times) - 1 - cut])
        self.resolution_ms = 1000 if not np.any(times % 1000) else 1
        self._times = times[cut : len(times) - cut]
        self.filled = frozenset(
            name
            for name in LogEvent.__struct_fields__
            if any(getattr(event, name) is not None for event in events)
        )
        self.actions = [name for name, _ in Counter(event.action for event in events).most_common()]
        self._named = {
            role: next((name for name in names if name in self.actions), None)
            for role, names in _NAMES.items()
        }
        if not any(self._named.values()):
            raise InjectionError(
                f"The log knows none of {', '.join(_NAMES)}; its actions are {', '.join(self.actions)[:200]}. "
                "Name its format, or rename its actions."
            )
        self.names = {
            field: sorted({name for event in events if (name := getattr(event, field))}) for field in _IDS
        }
        self.users = self.names["user_id"]
        self.sessions = self._sessions(events, crawlers)
        if not self.sessions:
            raise InjectionError("Nobody in the log is an ordinary user to learn from. Name a longer log.")
        self.products = _products(events)
        self._shelves: defaultdict[str | None, list[Product]] = defaultdict(list)
        for product in self.products:
            self._shelves[self._shelf(product)].append(product)
        pairs = [pair for own in self.sessions.values() for session in own for pair in pairwise(session)]
        repeats = sum(
            before.item_id is not None and before.item_id == event.item_id for before, event in pairs
        )
        self.repeats_items = repeats > _RARE * len(pairs)
        gaps = [event.event_time_ms - before.event_time_ms for before, event in pairs]
        self._gaps_s = np.array([gap for gap in gaps if gap] or [15_000]) / 1000.0

    def _sessions(
        self, events: Sequence[LogEvent], crawlers: Collection[str]
    ) -> dict[str, list[list[LogEvent]]]:
        sessions: dict[str, list[list[LogEvent]]] = {}
        for event in events:
            if event.user_id in crawlers or not self.first_ms <= event.event_time_ms <= self.last_ms:
                continue
            own = sessions.setdefault(event.user_id, [])
            if own and event.event_time_ms - own[-1][-1].event_time_ms <= SESSION_GAP_MS:
                own[-1].append(event)
            else:
                own.append([event])
        return sessions

    def _shelf(self, product: Product) -> str | None:
        return product.shop_id if "shop_id" in self.filled else product.category_id

    @property
    def span_ms(self) -> int:
        """From the first to the last event, outliers left out."""
        return self.last_ms - self.first_ms

    def name_of(self, role: str) -> str | None:
        """The log's name for view, click, cart, checkout or purchase; None when it has no such action."""
        return self._named[role]

    # ---- products

    def best_sellers(self, n: int) -> list[Product]:
        """The n most frequent products."""
        return self.products[:n]

    def targets(self, rng: np.random.Generator, n: int) -> list[Product]:
        """Up to n products of one shop that few look at (of one category, in a log without shops)."""
        slow = self.products[len(self.products) // 2 :]
        shelf = self._shelves[self._shelf(slow[int(rng.integers(len(slow)))])]
        slowest = shelf[-max(n, (len(shelf) + 1) // 2) :]
        return [slowest[k] for k in rng.permutation(len(slowest))[:n].tolist()]

    def beside(self, rng: np.random.Generator, product: Product) -> Product:
        """Another product of the same shop or category, often a popular one."""
        shelf = self._shelves[self._shelf(product)] or [product]
        return shelf[int(rng.random() ** 2 * len(shelf))]

    def any_product(self, rng: np.random.Generator) -> Product:
        """A product, often a popular one."""
        return self.products[int(rng.random() ** 2 * len(self.products))]

    # ---- time

    def moment_ms(self, rng: np.random.Generator) -> int:
        """A moment at which somebody was there: busy hours are likelier."""
        return int(self._times[int(rng.integers(len(self._times)))])

    def pause_s(self, rng: np.random.Generator) -> float:
        """A pause that somebody made within a session, seconds."""
        return float(self._gaps_s[int(rng.integers(len(self._gaps_s)))]) * float(np.exp(rng.normal(0.0, 0.2)))

    def other_day_ms(self, rng: np.random.Generator, first_ms: int, last_ms: int) -> int:
        """A shift by whole days that keeps what lasts from ``first_ms`` to ``last_ms`` within the span."""
        least = -((first_ms - self.first_ms) // _DAY_MS)
        most = (self.last_ms - last_ms) // _DAY_MS
        return int(rng.integers(least, most + 1)) * _DAY_MS

    def placed(self, start_ms: int, offsets_s: Sequence[float]) -> list[int]:
        """Times of events so many seconds after ``start_ms``: moved, and at need squeezed, into the span."""
        if not offsets_s:
            return []
        longest_ms = max(max(offsets_s) * 1000.0, 1.0)
        squeeze = min(1.0, self.span_ms / longest_ms)
        start_ms = max(self.first_ms, min(start_ms, self.last_ms - ceil(longest_ms * squeeze)))
        step = self.resolution_ms
        # Rounded down, a time stays before the end; the span itself begins on a multiple.
        return [int(start_ms + offset * 1000.0 * squeeze) // step * step for offset in offsets_s]

    # ---- names

    def lookalike(self, rng: np.random.Generator, field: str, examples: Sequence[str]) -> str:
        """An id of the same shape as the log's: an example of which every digit is drawn again."""
        example = examples[int(rng.integers(len(examples)))]
        if field == "ip" and _IP.fullmatch(example):
            octets = rng.integers(1, 255, 3).tolist()
            return ".".join((example.partition(".")[0], *map(str, octets)))
        # A number keeps its length: no zero in front.
        drawn = [
            str(int(rng.integers(not n, 10))) if char.isdigit() else char for n, char in enumerate(example)
        ]
        return "".join(drawn)


def _products(events: Sequence[LogEvent]) -> list[Product]:
    """Every item (in a log without any, every category) as its last event has it, most frequent first."""
    by_item = any(event.item_id is not None for event in events)
    counts: Counter[str | None] = Counter()
    latest: dict[str | None, Product] = {}
    for event in events:
        key = event.item_id if by_item else event.category_id
        if key is None and by_item:
            continue
        counts[key] += 1
        latest[key] = Product(event.item_id, event.category_id, event.shop_id, event.price, event.currency)
    # Of equal counts the first seen comes first: a Counter keeps that order.
    return [latest[key] for key, _ in counts.most_common()]
