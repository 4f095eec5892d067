"""The score of one user by what its own events show, where no crowd is at hand: that is how a running pipeline judges.

The terms are those of ``habits`` that can be known of a user without its whole life; all others count as unremarkable.
How unusual a value is says the reference population of the model in use (``fusion``), where its training made one.
Else plain limits do, which are no population: of each term a value that one honest user in fifty may reach, and how
much more makes it e times rarer. They were set by hand, on the Taobao log with bursts and heavy buyers put in (seed
31). No single term but one far beyond its limit is enough: what came in one upload looks hasty, and a log of orders
alone has nobody who looks.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cache, lru_cache
from math import exp, expm1, inf, log, log1p
from typing import Final, NamedTuple

import numpy as np

from models.fraud.fusion import BUCKET_EDGES, HEAVY_BUYERS, Reference
from models.fraud.watch import TERMS

__all__ = ["OWN_TERMS", "Judged", "OwnScores", "at_once", "haste", "plain_scores", "same_again", "unlooked"]

#: Value, share of honest users above it, rise that makes it e times rarer, and the most that is believed.
_PLAIN: Final = {
    "haste": (7.0, 0.02, 0.3, 7.9),  # eight events within 15 s; 6 s
    "orders_at_once": (log(6.0), 0.02, 0.4, inf),
    "same_order_again": (log(5.0), 0.02, 0.2, inf),
    "hardly_looks": (5.0, 0.1, 3.0, inf),
}
#: Terms depend on each other, so that their sum counts for less.
_PLAIN_SUM: Final = 1.6
OWN_TERMS: Final = tuple(_PLAIN)
_PLAIN_USERS: Final = 100_000
_PLACES: Final = [TERMS.index(term) for term in OWN_TERMS]
_MOST_AT_ONCE: Final = 32
_KEPT: Final = 1 << 16
_RARE_NATS: Final = log(1e4)


def haste(took_ms: int, events: int) -> float:
    """Of ``habits``, from the time that so many events took: as if eight of them had shared it evenly."""
    return round(max(0.0, 12.0 - log1p(took_ms * 7 / (events - 1) / 100.0)), 2)


def at_once(orders: int) -> float:
    """Of ``habits``, from the most orders within an hour."""
    return log(min(orders, _MOST_AT_ONCE)) if orders else 0.0


def same_again(repeats: int) -> float:
    """Of ``habits``, from how often something was ordered that had been ordered before."""
    return log1p(repeats)


def unlooked(orders: int, events: int) -> float:
    """Of ``habits``, at an order."""
    return round(10.0 * orders / (events + 4.0), 1)


class Judged(NamedTuple):
    """Score in 0..1, and nats by `OWN_TERMS`."""

    score: float
    nats: tuple[float, ...]


class _Tail(NamedTuple):
    """Of one term or sum: where its tail begins, the nats of being beyond that, and the rise that adds one more."""

    cut: float
    unusual: float
    scale: float

    @classmethod
    def of(cls, cut: float, share: float, scale: float) -> _Tail:
        """As ``fusion`` has it, with the share of users above the cut."""
        return cls(cut, -log(share), scale)

    def nats(self, value: float) -> float:
        """Of a value."""
        if value > self.cut:
            return self.unusual + (value - self.cut) / self.scale
        return self.unusual * (max(value, 0.0) / self.cut) if self.cut > 0.0 else 0.0


class OwnScores:
    """Scores of users; pure, but what was asked before is remembered.

    What ``fusion`` does with arrays for a population is done here with numbers: a running pipeline judges one user
    after each event, and a dozen array operations on one row cost more than all else that is done for it.

    Args:
        reference: of the model; None for the plain limits.
    """

    def __init__(self, reference: Reference | None = None) -> None:
        # The plain limits were set for all terms as they are.
        self._counted = _once if reference else list[float]
        self._most = [inf if reference else most for *_, most in _PLAIN.values()]
        reference = reference or _plain()
        self._most_nats = log(reference.users)
        tables = (reference.cut, reference.share, reference.scale)
        #: By bucket, of each of `OWN_TERMS`.
        self._tails = [
            [_Tail.of(*(float(table[bucket, place]) for table in tables)) for place in _PLACES]
            for bucket in range(len(BUCKET_EDGES) + 1)
        ]
        nobody = reference.terms(np.array([1, *BUCKET_EDGES]), np.zeros((len(BUCKET_EDGES) + 1, len(TERMS))))
        #: By bucket, of all other terms.
        self._others = np.delete(nobody, _PLACES, axis=1).tolist()
        self._summed, self._fused = _Tail.of(*reference.summed.tolist()), _Tail.of(*reference.fused.tolist())
        self._judged = lru_cache(_KEPT)(self._judge)

    def judge(self, events: int, values: tuple[float, ...], beside: tuple[float, ...] = ()) -> Judged:
        """The score of a user.

        Args:
            events: of it so far.
            values: by `OWN_TERMS`, 0 for unknown.
            beside: nats of terms that no reference knows.
        """
        return self._judged(bisect_right(BUCKET_EDGES, events), values, beside)

    def _judge(self, bucket: int, values: tuple[float, ...], beside: tuple[float, ...]) -> Judged:
        nats = [
            _bounded(tail.nats(min(value, most)), self._most_nats)
            for tail, value, most in zip(self._tails[bucket], values, self._most, strict=True)
        ]
        each = [*self._counted(nats), *self._others[bucket], *beside]
        together = self._summed.nats(sum([nat - 1.0 for nat in each if nat > 1.0]))
        most = max(*each, together)
        alone = sum([exp(nat - most) for nat in each]) / len(each)
        fused = most + log(0.5 * alone + 0.5 * exp(together - most))
        return Judged(round(_score(self._fused.nats(fused)), 6), tuple(nats))


def _bounded(nats: float, most: float) -> float:
    return min(nats, most + log1p(max(nats - most, 0.0)))


def _once(nats: list[float]) -> list[float]:
    """As ``fusion.once``, of `OWN_TERMS`."""
    haste_nats, *buying = nats
    counted = [haste_nats, *(_bounded(each, log(HEAVY_BUYERS)) for each in buying)]
    rarest = counted.index(max(counted))
    return [each if place == rarest else 0.0 for place, each in enumerate(counted)]


def _score(nats: float) -> float:
    """As ``fusion.scores_of``."""
    beyond = nats - _RARE_NATS
    return 1.0 - 1e-4 / (1.0 + beyond) if beyond > 0.0 else -expm1(-max(nats, 0.0))


@cache
def plain_scores() -> OwnScores:
    """Scores by the plain limits."""
    return OwnScores()


def _plain() -> Reference:
    shape = (len(BUCKET_EDGES) + 1, len(TERMS))
    cut, share, scale = np.ones(shape), np.full(shape, 0.5), np.ones(shape)
    for place, limits in zip(_PLACES, _PLAIN.values(), strict=True):
        cut[:, place], share[:, place], scale[:, place], _ = limits
    summed, fused = np.array([0.0, 1.0, _PLAIN_SUM]), np.array([0.0, 1.0, 1.0])
    return Reference(cut, share, scale, summed, _PLAIN_USERS, fused)
