"""Same path, same rhythm: a session that somebody else has lived through before.

Two people may well go from one item to the same next one; that they do so again and again, with the same pauses, is
a recording played once more. Matches are chains: steps ``a -> b`` of two users that follow each other in both lives.
A step counts only as far as its pause agrees and could have been another:

    rhythm = log (1 / chance that two such pauses agree)         0 for whom every pause is the same, as crawlers'
    path   = log (times at a / times from a to b)

The first step of a chain says nothing: with so many steps, somebody has always gone from there to there. And a
recording is played after it was made: of whoever was there first, it says 24 nats at most. Forty say as much as any
number: a whole life copied must not outweigh all else, its original would too.

Memory is bounded: a step ``a -> b`` remembers its last users, a user the longest chains.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from math import log, log1p, sqrt

__all__ = ["Paths"]

_ALIKE = 0.15  # difference of two log pauses; recordings are replayed within a few per cent
_SKIP = 3  # steps that a chain may leave out
#: Most nats of the first of two, and of the second: an original is no accomplice, but a copy may have an earlier date.
_AUTHOR_NATS, _MOST_NATS = 24.0, 40.0
_DENSITY = 0.282  # of a difference of two normals with spread 1, at its centre


class _Walker:
    """A user on the way: the item before, when, the step's number, and moments of the log pauses."""

    __slots__ = ("chains", "count", "item", "mean", "square", "step", "time_ms")

    def __init__(self) -> None:
        self.item: Hashable = None
        self.time_ms = self.step = self.count = 0
        self.mean = self.square = 0.0
        self.chains: dict[Hashable, list[float]] = {}

    def pause(self, log_pause: float) -> None:
        """Take in a pause (Welford)."""
        self.count += 1
        delta = log_pause - self.mean
        self.mean += delta / self.count
        self.square += delta * (log_pause - self.mean)

    @property
    def spread(self) -> float:
        """Of the log pauses."""
        return sqrt(self.square / self.count) if self.count else 0.0


class Paths:
    """Evidence of users, from engagements in time order.

    Args:
        passers: a step from one item to another remembers so many.
        chains: a user remembers so many.
    """

    def __init__(self, passers: int = 16, chains: int = 48) -> None:
        self._passers, self._chains = passers, chains
        self._steps: dict[tuple[Hashable, Hashable], list[tuple[Hashable, int, float]]] = {}
        self._left: dict[Hashable, int] = {}
        self._walkers: dict[Hashable, _Walker] = {}

    def observe(
        self, user: Hashable, time_ms: int, item: Hashable
    ) -> Iterator[tuple[Hashable, Hashable, float]]:
        """Take in one engagement; gives user, partner and nats whenever a chain of the user is longer than before."""
        me = self._walkers.get(user)
        if me is None:
            me = self._walkers[user] = _Walker()
        before, me.item = me.item, item
        log_pause = log1p(max(0, time_ms - me.time_ms) / 1000.0)
        me.time_ms = time_ms
        if before is None or before == item:
            return
        me.step += 1
        me.pause(log_pause)
        self._left[before] = left = self._left.get(before, 0) + 1
        passers = self._steps.setdefault((before, item), [])
        for other, their_step, their_pause in passers:
            if other == user or abs(their_pause - log_pause) > _ALIKE:
                continue
            spread = min(me.spread, self._walkers[other].spread)
            alike = 2 * _ALIKE * _DENSITY / max(spread, 1e-3)
            if alike >= 0.5:
                continue
            # The path counts as far as the rhythm does: catalogues have one order for everybody.
            rhythm = -log(max(alike, 1e-3))
            nats = rhythm + min(rhythm, log(left / (len(passers) + 1.0) + 1.0))
            yield from self._chain(user, me, me.step, other, their_step, nats)
        passers.append((user, me.step, log_pause))
        if len(passers) > self._passers:
            del passers[0]

    def _chain(
        self, user: Hashable, me: _Walker, my_step: int, other: Hashable, their_step: int, nats: float
    ) -> Iterator[tuple[Hashable, Hashable, float]]:
        chain = me.chains.get(other)
        if chain is not None and 0 < my_step - chain[0] <= _SKIP and 0 < their_step - chain[1] <= _SKIP:
            chain[0], chain[1], chain[2] = my_step, their_step, chain[2] + nats
            yield user, other, min(chain[2], _MOST_NATS)
            yield other, user, min(chain[2], _AUTHOR_NATS)
            return
        if chain is None and len(me.chains) >= self._chains:
            del me.chains[next(iter(me.chains))]
        me.chains[other] = [my_step, their_step, 0.0]
