"""Who meets whom: users who come together at one item after another, as independent people would not.

An item may be busy for any reason: a sale, a link, a season. A crowd therefore proves nothing, and the first meeting
of two users is free. But whatever drew one crowd does not choose the same people for the next: that a certain other
of N users is among the c of a second crowd has a chance of about c / N. A pair's evidence is the sum of the
surprises of all its meetings, less what choosing the partner among N and the m meetings among n occasions gives away:

    evidence = sum log(N / c) - log N - log (n choose m)        nats

Two whom one sale or link brings look around on one shelf: of a pair's visits side by side, those within an hour of
the one before are the same meeting still.

What counts for a user is the third-strongest partner: couples and families meet all the time, farms are larger.

Three kinds of occasions are told apart: ``together`` (at an item within the same hour, as often as that happens),
``visited`` (the first time at an item, within a week, on items that few visit) and ``ordered`` (each order).

Memory is bounded: an item remembers its last visitors, a user the strongest partners.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from math import lgamma, log

__all__ = ["KINDS", "Meetings"]

KINDS = ("together", "visited", "ordered")
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
WEEK_MS = 7 * DAY_MS
_VISIT_GAP_MS = 1_800_000
_PARTNERS = 3


class _Visitor:
    """One user at one item."""

    __slots__ = ("last_ms", "ordered_ms", "orders")

    def __init__(self) -> None:
        self.last_ms = self.ordered_ms = -WEEK_MS
        self.orders = 0


class _User:
    """By kind: occasions so far; partners with meetings, nats and the last time; the strongest partners."""

    __slots__ = ("best", "occasions", "partners")

    def __init__(self) -> None:
        self.occasions = [0, 0, 0]
        self.partners: tuple[dict[Hashable, list[float]], ...] = ({}, {}, {})
        self.best: tuple[dict[Hashable, float], ...] = ({}, {}, {})


class Recent:
    """How many different users there were within a span, oldest first."""

    __slots__ = ("last_ms", "span_ms")

    def __init__(self, span_ms: int) -> None:
        self.span_ms = span_ms
        self.last_ms: dict[Hashable, int] = {}

    def add(self, user: Hashable, time_ms: int) -> int:
        """Count a user; the number with this one."""
        last_ms = self.last_ms
        last_ms.pop(user, None)
        last_ms[user] = time_ms
        oldest = time_ms - self.span_ms
        while True:
            first = next(iter(last_ms))
            if last_ms[first] >= oldest:
                return len(last_ms)
            del last_ms[first]


def _log_choose(n: int, m: float) -> float:
    return lgamma(n + 1) - lgamma(m + 1) - lgamma(n - m + 1)


class Meetings:
    """Evidence of users, from engagements in time order.

    Args:
        visitors: an item remembers so many.
        partners: a user remembers so many, by kind.
    """

    def __init__(self, visitors: int = 64, partners: int = 96) -> None:
        self._visitors, self._partners = visitors, partners
        self._items: dict[Hashable, dict[Hashable, _Visitor]] = {}
        self._users: dict[Hashable, _User] = {}
        self._occasions = [0, 0, 0]
        self._day, self._week, self._buyers = Recent(DAY_MS), Recent(WEEK_MS), Recent(WEEK_MS)

    def observe(
        self, user: Hashable, time_ms: int, item: Hashable, ordered: bool
    ) -> Iterator[tuple[Hashable, int, float]]:
        """Take in one engagement; gives user, place in KINDS and nats whenever a user's evidence changed."""
        n_day, n_week = self._day.add(user, time_ms), self._week.add(user, time_ms)
        visitors = self._items.setdefault(item, {})
        known = visitors.pop(user, None)
        me = _Visitor() if known is None else known
        if time_ms - me.last_ms > _VISIT_GAP_MS:
            crowd = []
            for other in reversed(visitors):
                if time_ms - visitors[other].last_ms > HOUR_MS:
                    break
                crowd.append(other)
            yield from self._meet(0, user, crowd, n_day, time_ms)
        if known is None and len(visitors) < self._visitors // 2:
            crowd = [other for other, there in visitors.items() if time_ms - there.last_ms <= WEEK_MS]
            beside = {other for other in crowd if time_ms - visitors[other].last_ms <= HOUR_MS}
            yield from self._meet(1, user, crowd, n_week, time_ms, beside)
        me.last_ms = time_ms
        if ordered:
            n_buyers = self._buyers.add(user, time_ms)
            crowd = [other for other, there in visitors.items() if time_ms - there.ordered_ms <= WEEK_MS]
            yield from self._meet(2, user, crowd, n_buyers, time_ms)
            me.ordered_ms = time_ms
            me.orders += 1
        visitors[user] = me
        if len(visitors) > self._visitors:
            del visitors[next(iter(visitors))]

    def _meet(
        self,
        kind: int,
        user: Hashable,
        crowd: list[Hashable],
        n: int,
        time_ms: int,
        beside: Collection[Hashable] = (),
    ) -> Iterator[tuple[Hashable, int, float]]:
        mine = self._user(user)
        mine.occasions[kind] += 1
        self._occasions[kind] += 1
        if not crowd:
            return
        rarity = max(n, len(crowd) + 1) / (len(crowd) + 1)
        log_n = log(max(len(self._users), 2))
        usual = self._occasions[kind] / len(self._users)
        rose = False
        for other in crowd:
            theirs = self._user(other)
            met = mine.partners[kind].get(other)
            if other in beside and met is not None and time_ms - met[2] <= HOUR_MS:
                met[2] = time_ms
                continue
            # Whoever is everywhere meets everybody.
            there = rarity * usual / max(usual, theirs.occasions[kind])
            rose |= self._count(kind, mine, other, there, log_n, time_ms)
            back = rarity * usual / max(usual, mine.occasions[kind])
            if self._count(kind, theirs, user, back, log_n, time_ms) and len(theirs.best[kind]) >= _PARTNERS:
                yield other, kind, sorted(theirs.best[kind].values())[-_PARTNERS]
        if rose and len(mine.best[kind]) >= _PARTNERS:
            yield user, kind, sorted(mine.best[kind].values())[-_PARTNERS]

    def _user(self, user: Hashable) -> _User:
        found = self._users.get(user)
        if found is None:
            found = self._users[user] = _User()
        return found

    def _count(
        self, kind: int, user: _User, partner: Hashable, rarity: float, log_n: float, time_ms: int
    ) -> bool:
        """Add a meeting to a user's memory of a partner; whether it made the partner one of the strongest."""
        partners = user.partners[kind]
        surprise = log(max(1.0, rarity))
        pair = partners.get(partner)
        if pair is None:
            if len(partners) >= self._partners:
                # Half of the memory at once: the weakest are those met once in a large crowd.
                for weak in sorted(partners, key=lambda who: partners[who][1])[: self._partners // 2]:
                    del partners[weak]
            partners[partner] = [1.0, surprise, time_ms]
            return False
        pair[2] = time_ms
        pair[0] += 1
        pair[1] += surprise
        met, nats, _ = pair
        evidence = nats - log_n - _log_choose(max(user.occasions[kind], int(met)), met)
        if evidence <= 0:
            return False
        best = user.best[kind]
        if evidence <= best.get(partner, 0.0):
            return False
        best[partner] = evidence
        if len(best) > 2 * _PARTNERS:
            del best[min(best, key=best.__getitem__)]
        return True

    def partners(self, user: Hashable) -> list[Hashable]:
        """Those who keep meeting the user, of all kinds, the strongest first."""
        known = self._users.get(user)
        if known is None:
            return []
        nats: dict[Hashable, float] = {}
        for best in known.best:
            for partner, evidence in best.items():
                nats[partner] = max(evidence, nats.get(partner, 0.0))
        return sorted(nats, key=lambda partner: (-nats[partner], str(partner)))
