"""What happens in a round, drawn before it begins: the same seed gives the same plan, however the round goes."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# How often each is drawn. A worker that is down when the next fault comes is a fault wasted, so what takes all of
# them down is rare.
WORKER_FAULTS: Mapping[str, int] = {
    "kill": 3,
    "failover": 4,
    "term": 3,
    "stop": 2,
    "stop inside": 3,
    "join": 3,
    "leave": 3,
    "wipe": 2,
    "old": 2,
    "ahead": 2,
    "aged": 2,
    "damaged": 3,
    "full disk": 3,
    "cut": 3,
    "slow": 2,
    "silence": 2,
    "lost answer": 4,
    "compaction": 2,
    "clock": 2,
    "poison": 2,
    "power cut": 1,
}
# Of the product's own workers, which have models and timers besides.
PRODUCT_FAULTS: Mapping[str, int] = {**WORKER_FAULTS, "swap": 2}
BROKER_FAULTS = ("broker", "broker and workers")


@dataclass(frozen=True)
class Fault:
    """One thing that is done to a running round.

    Args:
        kind: a key of ``WORKER_FAULTS``, or one of ``BROKER_FAULTS``.
        pause_s: before it.
        seed: of everything else that it decides, such as which worker it hits.
    """

    kind: str
    pause_s: float
    seed: int


@dataclass(frozen=True)
class Plan:
    """A round before it begins: whose workers it has and how many at first, and its faults in their order."""

    seed: int
    workers: int
    product: bool
    faults: tuple[Fault, ...]


def draw(
    seed: int,
    count: int,
    pause_s: tuple[float, float] = (0.4, 1.6),
    kinds: Mapping[str, int] = WORKER_FAULTS,
    broker_share: float = 1 / 3,
    broker_kills: int = 1,
    product_share: float = 0,
    product_kinds: Mapping[str, int] = PRODUCT_FAULTS,
) -> Plan:
    """The plan of a seed.

    Args:
        count: of faults; those of the broker are among them.
        pause_s: between two faults, drawn evenly from the two.
        kinds: and how often each is drawn.
        broker_share: chance of a round in which the broker is killed, ``broker_kills`` times.
        product_share: chance of a round of the product's own workers, with ``product_kinds``.
    """
    chance = random.Random(f"round {seed}")  # a number would give its neighbours much the same beginning
    workers, product = chance.randint(1, 3), chance.random() < product_share
    if product:
        kinds = product_kinds
    drawn = chance.choices(list(kinds), list(kinds.values()), k=count) if kinds else []
    if chance.random() < broker_share:
        for place in chance.sample(range(len(drawn)), min(broker_kills, len(drawn))):
            drawn[place] = chance.choice(BROKER_FAULTS)
    faults = [Fault(kind, chance.uniform(*pause_s), chance.getrandbits(32)) for kind in drawn]
    return Plan(seed, workers, product, tuple(faults))


def quantile(values: Sequence[float], q: float) -> float | None:
    """The value that a share ``q`` of them does not exceed; None of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else None
