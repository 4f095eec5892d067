"""What click farms do, as scripts. Every group draws its own parameters; ``fake_from_ms`` is where its attack begins.

burst       views, cart and purchases of one shop's items, as fast as a program clicks
coattail    a best-seller and the target clicked in turn, so that the two are recommended together
replay      sessions of real people once more: other times, pauses a few per cent off, nothing else
camouflage  an ordinary past, and in it a few fake orders of the group's items
drip        the same items at the same hours, over days, by the whole group, seldom
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise

import numpy as np

from models.simulator.cast import Account, Cast, Step
from models.simulator.market import LogEvent

__all__ = ["ATTACKS", "group_sizes"]

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS


def group_sizes(rng: np.random.Generator, n: int) -> Iterator[int]:
    """Sizes of groups of 4 to 12 accounts that make n in all; the last takes a remainder below three."""
    while n:
        size = int(rng.integers(4, 13))
        if n - size < 3:
            size = n
        yield size
        n -= size


def _burst(cast: Cast, rng: np.random.Generator, group: str, n: int) -> list[Account]:
    market = cast.market
    targets = market.targets(rng, int(rng.integers(1, 5)))
    pause_s, spread = float(np.exp(rng.uniform(np.log(0.3), np.log(4.0)))), float(rng.uniform(0.03, 0.5))
    window_ms = int(rng.uniform(2, 90) * 60_000)
    views, orders = int(rng.integers(1, 4)), int(rng.integers(2, 9))
    with_cart, with_checkout = rng.random() < 0.75, rng.random() < 0.75
    start_ms = market.moment_ms(rng)
    accounts = cast.recruits(rng, "fake", "burst", group, n)
    for account in accounts:
        steps: list[Step] = []
        first = int(rng.integers(len(targets)))
        for order in range(max(1, orders + int(rng.integers(-1, 2)))):
            item = targets[(first + order) % len(targets)]
            roles = ["view"] * views + ["cart"] * with_cart + ["checkout"] * with_checkout + ["purchase"]
            steps += [(pause_s * float(np.exp(rng.normal(0.0, spread))), role, item) for role in roles]
        cast.act(rng, account, start_ms + int(rng.random() * window_ms), steps, fake=True)
    return accounts


def _coattail(cast: Cast, rng: np.random.Generator, group: str, n: int) -> list[Account]:
    market = cast.market
    targets = market.targets(rng, int(rng.integers(1, 4)))
    hot = market.best_sellers(max(3, min(20, len(market.products) // 100)))
    pairs, visits = int(rng.integers(3, 9)), int(rng.integers(1, 5))
    disguise, hurry = float(rng.uniform(0.0, 0.4)), float(rng.uniform(0.3, 1.0))
    start_ms, length_ms = market.moment_ms(rng), int(rng.uniform(0.1, 1.0) * min(market.span_ms, 5 * _DAY_MS))
    accounts = cast.recruits(rng, "fake", "coattail", group, n)
    for account in accounts:
        for _ in range(visits):
            steps: list[Step] = []
            for _ in range(max(1, pairs + int(rng.integers(-1, 2)))):
                ridden = hot[int(rng.integers(len(hot)))]
                if rng.random() < disguise:
                    steps.append((hurry * market.pause_s(rng), "view", market.any_product(rng)))
                steps.append((hurry * market.pause_s(rng), "click", ridden))
                steps.append((hurry * market.pause_s(rng), "click", targets[int(rng.integers(len(targets)))]))
            cast.act(rng, account, start_ms + int(rng.random() * length_ms), steps, fake=True)
    return accounts


def _replay(cast: Cast, rng: np.random.Generator, group: str, n: int) -> list[Account]:
    market = cast.market
    picks = rng.permutation(len(cast.originals))[: int(rng.integers(1, n + 1))].tolist()
    most, jitter = int(rng.integers(15, 90)), float(rng.uniform(0.005, 0.05))
    accounts = cast.recruits(rng, "fake", "replay", group, n)
    for number, account in enumerate(accounts):
        account.source_user = cast.originals[picks[number % len(picks)]]
        # Of a few tries the longest: a handful of events would be nobody's copy.
        parts = [
            _part(rng, market.sessions[account.source_user], most, 0.6 * market.span_ms) for _ in range(4)
        ]
        part = max(parts, key=len)
        gaps_s = [
            (event.event_time_ms - before.event_time_ms) / 1000.0 * float(np.exp(rng.normal(0.0, jitter)))
            for before, event in pairwise(part)
        ]
        times = market.placed(market.moment_ms(rng), list(accumulate(gaps_s, initial=0.0)))
        account.events += [
            cast.copied(event, account, time_ms) for event, time_ms in zip(part, times, strict=True)
        ]
        account.fake_from_ms = times[0]
    return accounts


def _part(
    rng: np.random.Generator, sessions: list[list[LogEvent]], most: int, longest_ms: float
) -> list[LogEvent]:
    """Consecutive sessions with at most so many events, in at most so much time; one session at least."""
    first = int(rng.integers(len(sessions)))
    part = sessions[first][:most]
    # Backwards as well: whoever begins with a short last session would copy hardly anything.
    before, after = first - 1, first + 1
    while True:
        if after < len(sessions) and _fits(part + sessions[after], most, longest_ms):
            part, after = part + sessions[after], after + 1
        elif before >= 0 and len(part) < most and _fits(sessions[before] + part, most, longest_ms):
            part, before = sessions[before] + part, before - 1
        else:
            return part


def _fits(part: list[LogEvent], most: int, longest_ms: float) -> bool:
    return len(part) <= most and part[-1].event_time_ms - part[0].event_time_ms <= longest_ms


def _camouflage(cast: Cast, rng: np.random.Generator, group: str, n: int) -> list[Account]:
    market = cast.market
    targets = market.targets(rng, int(rng.integers(1, 4)))
    orders, sessions = int(rng.integers(1, 5)), int(rng.integers(3, 12))
    views = int(rng.integers(0, 3))
    inside = float(rng.uniform(0.3, 0.9))
    start_ms, length_ms = market.moment_ms(rng), int(rng.uniform(0.2, 3.0) * _DAY_MS)
    accounts = cast.recruits(rng, "fake", "camouflage", group, n)
    for account in accounts:
        past = cast.live(rng, account, max(1, sessions + int(rng.integers(-2, 3))))
        for _ in range(orders):
            steps = cast.errand(rng, targets[int(rng.integers(len(targets)))], views, 0.6)
            at_ms = start_ms + int(rng.random() * length_ms)
            if past and rng.random() < inside:
                # At the end of a visit like any other.
                visit = past[int(rng.integers(len(past)))]
                at_ms = visit[-1].event_time_ms + int(1000 * market.pause_s(rng))
            cast.act(rng, account, at_ms, steps, fake=True)
    return accounts


def _drip(cast: Cast, rng: np.random.Generator, group: str, n: int) -> list[Account]:
    market = cast.market
    targets = market.targets(rng, int(rng.integers(2, 7)))
    # One or two visits a day for as long as the log lasts; a log of hours is lived through faster.
    visits = int(min(25, max(4, rng.uniform(0.8, 2.0) * market.span_ms / _DAY_MS)))
    every_ms = market.span_ms / (visits + 1)
    loose_ms = float(rng.uniform(0.002, 0.05)) * every_ms
    looks, buys = int(rng.integers(1, 4)), float(rng.uniform(0.0, 0.5))
    starts = [market.first_ms + every_ms * (visit + rng.uniform(0.2, 0.8)) for visit in range(visits)]
    bought = [rng.random() < buys for _ in starts]
    accounts = cast.recruits(rng, "fake", "drip", group, n)
    for account in accounts:
        lag_ms = rng.random() * loose_ms
        for number, start_ms in enumerate(starts):
            item = targets[number % len(targets)]
            roles = ["view"] * looks + ["checkout", "purchase"] * bought[number]
            steps = [(market.pause_s(rng), role, item) for role in roles]
            at_ms = int(start_ms + lag_ms + rng.random() * loose_ms)
            cast.act(rng, account, at_ms, steps, fake=True)
    return accounts


#: By name: the script of one group of n accounts.
ATTACKS: dict[str, Callable[[Cast, np.random.Generator, str, int], list[Account]]] = {
    "burst": _burst,
    "coattail": _coattail,
    "replay": _replay,
    "camouflage": _camouflage,
    "drip": _drip,
}
