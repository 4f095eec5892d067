"""What an item's visitors do together that visitors of other items do not.

- ``insistence``: more visitors than elsewhere come back to the item again and again, with other items in between, as
  those do who want two items to be recommended together;
- ``unseen_orders``: more orders than its audience explains;
- ``repeated_orders``: more orders of the same thing by the same users than usual.

All compare k of the n visitors whom the item remembers with a share p that all items have:

    evidence = k log(k / n p) - (k - n p)        nats, of a Poisson count; only for k >= 3 users

A crowd that comes at once, a sale or a link, does the same thing for an honest reason, but each once. The more new
visitors the item's busiest hour or day had, the less its own evidence says: it is divided by the square of how many
times 5 in an hour, or 8 in a day, they were; that of repeated orders is not. Coordination that shows at several items
is for ``meetings``.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from math import log

__all__ = ["KINDS", "Crowds"]

KINDS = ("insistence", "unseen_orders", "repeated_orders")
_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_WEEK_MS = 7 * _DAY_MS
_RUSH_HOUR, _RUSH_DAY = 5.0, 8.0
_BOUND_ARRIVALS = 128
_MOST_RETURNS = 32
_AT_LEAST = 3
#: Pairs of user and item that stand for a share before there is any experience.
_PRIOR_PAIRS = 200.0


class _Visitor:
    __slots__ = ("last_ms", "orders", "returns")

    def __init__(self) -> None:
        self.last_ms = self.orders = self.returns = 0


class _Item:
    """Visitors, the latest last; new ones of the last day; how many times a usual crowd the busiest time had."""

    __slots__ = ("arrivals", "rush", "visitors")

    def __init__(self) -> None:
        self.visitors: dict[Hashable, _Visitor] = {}
        self.arrivals: list[int] = []
        self.rush = 1.0

    def arrive(self, time_ms: int) -> None:
        """A new visitor."""
        day = [at for at in self.arrivals if time_ms - at <= _DAY_MS][-_BOUND_ARRIVALS:]
        day.append(time_ms)
        self.arrivals = day
        hour = sum(time_ms - at <= _HOUR_MS for at in day)
        self.rush = max(self.rush, hour / _RUSH_HOUR, len(day) / _RUSH_DAY)


def excess_nats(k: float, expected: float) -> float:
    return k * log(k / expected) - (k - expected) if k > expected else 0.0


class Crowds:
    """Evidence of users, from engagements in time order. An item remembers ``visitors`` of them."""

    def __init__(self, visitors: int = 64) -> None:
        self._bound = visitors
        self._items: dict[Hashable, _Item] = {}
        self._last_item: dict[Hashable, Hashable] = {}
        self._pairs = _PRIOR_PAIRS
        #: Entry r: pairs of user and item with at least r returns.
        self._insistent = [_PRIOR_PAIRS * 0.5**r for r in range(_MOST_RETURNS + 1)]
        self._orders = _PRIOR_PAIRS * 0.02
        self._buyers, self._repeats = _PRIOR_PAIRS * 0.1, _PRIOR_PAIRS * 0.004

    def observe(
        self, user: Hashable, time_ms: int, item: Hashable, ordered: bool
    ) -> Iterator[tuple[Hashable, int, float]]:
        """Take in one engagement; gives user, place in KINDS and nats of everybody whom it makes suspicious."""
        here = self._items.get(item)
        if here is None:
            here = self._items[item] = _Item()
        known = here.visitors.pop(user, None)
        new = known is None
        me = _Visitor() if known is None else known
        if new:
            self._pairs += 1
            here.arrive(time_ms)
        here.visitors[user] = me
        me.last_ms = time_ms
        if len(here.visitors) > self._bound:
            del here.visitors[next(iter(here.visitors))]
        came_back = self._last_item.get(user) != item
        self._last_item[user] = item
        # The first coming is no return.
        if came_back and not new and me.returns < _MOST_RETURNS:
            me.returns += 1
            self._insistent[me.returns] += 1
            if me.returns >= 2:
                yield from self._insist(here, me.returns, time_ms)
        if ordered:
            me.orders += 1
            self._orders += 1
            if me.orders == 1:
                self._buyers += 1
            else:
                self._repeats += 1
            yield from self._unseen(here, time_ms)

    def _insist(self, here: _Item, returns: int, time_ms: int) -> Iterator[tuple[Hashable, int, float]]:
        recent = {u: v for u, v in here.visitors.items() if time_ms - v.last_ms <= _WEEK_MS}
        those = [user for user, visitor in recent.items() if visitor.returns >= returns]
        if len(those) >= _AT_LEAST:
            nats = self._spoken(here, len(those), len(recent) * self._insistent[returns] / self._pairs)
            for user in those:
                yield user, 0, nats

    def _unseen(self, here: _Item, time_ms: int) -> Iterator[tuple[Hashable, int, float]]:
        recent = {u: v for u, v in here.visitors.items() if time_ms - v.last_ms <= _WEEK_MS}
        those = [user for user, visitor in recent.items() if visitor.orders]
        if len(those) >= _AT_LEAST:
            orders = sum(recent[user].orders for user in those)
            nats = self._spoken(here, orders, len(recent) * self._orders / self._pairs)
            for user in those:
                yield user, 1, nats
            again = [user for user in those if recent[user].orders > 1]
            if len(again) >= _AT_LEAST:
                nats = excess_nats(orders - len(those), len(those) * self._repeats / self._buyers)
                for user in again:
                    yield user, 2, nats

    @staticmethod
    def _spoken(here: _Item, k: float, expected: float) -> float:
        return excess_nats(k, expected) / here.rush**2
