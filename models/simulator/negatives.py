"""Honest behaviour that looks like an attack. What cries wolf at these is of no use to an analyst.

    flash_sale    a sale: a crowd of the log's people buys one item within an hour
    celebrity     a link: a crowd comes for one item within hours, many buy it, some look around
    families      a household: a few accounts behind one address, which look at and buy the same things
    crawlers      one account: every product in order, by the clock; each event says so (``extra.crawler`` is 1)
    heavy_buyers  one account: many visits with an order in nearly each, all of different items

The number is of sales, links and households, or of accounts where it says so. The crowds are people of the log, with
all that they did anyway; families, crawlers and heavy buyers are new accounts.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from models.simulator.cast import Account, Cast, Step
from models.simulator.market import InjectionError, Product

__all__ = ["NEGATIVES"]

_HOUR_S = 3600.0
_DAY_S = 86_400.0


def _flash_sale(cast: Cast, rng: np.random.Generator, group: str) -> list[Account]:
    market = cast.market
    _need_purchases(cast, "flash_sale")
    item = market.any_product(rng)
    crowd = cast.crowd("flash_sale", group, int(rng.integers(15, 61)))
    rush_s, carts = float(rng.uniform(300, 1500)), float(rng.uniform(0.2, 0.9))
    # The end of the span cuts no sale short: it begins an hour before at the latest.
    start_ms = min(market.moment_ms(rng), max(market.first_ms, market.last_ms - int(_HOUR_S * 1000)))
    for account in crowd:
        steps = cast.errand(rng, item, int(rng.integers(1, 4)), carts)
        # Most come at the beginning; whoever looks around for long still buys within the hour.
        length_s = sum(gap_s for gap_s, _, _ in steps[1:])
        squeeze = min(1.0, 0.5 * _HOUR_S / max(length_s, 1.0))
        steps = [(gap_s * squeeze, role, product) for gap_s, role, product in steps]
        arrival_s = min(float(rng.exponential(rush_s)), _HOUR_S - length_s * squeeze - 1.0)
        cast.act(rng, account, start_ms + int(1000 * arrival_s), steps)
    return crowd


def _celebrity(cast: Cast, rng: np.random.Generator, group: str) -> list[Account]:
    market = cast.market
    _need_purchases(cast, "celebrity")
    item = market.any_product(rng)
    crowd = cast.crowd("celebrity", group, int(rng.integers(30, 81)))
    fades_s, buys = float(rng.uniform(0.5, 6.0)) * _HOUR_S, float(rng.uniform(0.4, 0.9))
    start_ms = market.moment_ms(rng)
    for account in crowd:
        steps: list[Step] = [(0.0, "click", item)]
        steps += [
            (market.pause_s(rng), "view", item if rng.random() < 0.4 else market.beside(rng, item))
            for _ in range(int(rng.integers(0, 5)))
        ]
        if rng.random() < buys:
            steps += cast.errand(rng, item, 0, 0.6)
        cast.act(rng, account, start_ms + int(1000 * min(rng.exponential(fades_s), _DAY_S)), steps)
    return crowd


def _families(cast: Cast, rng: np.random.Generator, group: str) -> list[Account]:
    market = cast.market
    family = cast.recruits(rng, "honest", "families", group, int(rng.integers(2, 6)))
    ip, device = family[0].ip, family[0].device_id
    one_device = rng.random() < 0.5
    for member in family:
        member.ip = ip
        if one_device:
            member.device_id = device
        cast.live(rng, member, int(rng.integers(2, 8)))
    for _ in range(int(rng.integers(2, 7))):
        # "Look what I found": the same evening, on another account; one of them buys it, now and then two.
        item, at_ms = market.any_product(rng), market.moment_ms(rng)
        shown = rng.permutation(len(family))[: int(rng.integers(2, len(family) + 1))].tolist()
        buyers = int(rng.integers(0, 3))
        for place, number in enumerate(shown):
            looks = int(rng.integers(1, 4))
            steps: list[Step] = [(market.pause_s(rng), "view", item) for _ in range(looks)]
            if place < buyers:
                steps += cast.errand(rng, item, 0, 0.7)
            cast.act(rng, family[number], at_ms + int(rng.random() * 2 * _HOUR_S * 1000), steps)
    return family


def _crawler(cast: Cast, rng: np.random.Generator, group: str) -> list[Account]:
    market = cast.market
    (crawler,) = cast.recruits(rng, "honest", "crawlers", group, 1)
    shelf = sorted(market.products, key=lambda product: (product.category_id or "", product.item_id or ""))
    period_s, pages = float(np.exp(rng.normal(1.2, 0.6))), int(rng.integers(40, 200))
    at = int(rng.integers(len(shelf)))
    for _ in range(int(rng.integers(1, 4))):
        steps: list[Step] = [
            (period_s * (1.0 + 0.02 * float(rng.normal())), "view", shelf[(at + page) % len(shelf)])
            for page in range(pages)
        ]
        at += pages
        cast.act(rng, crawler, market.moment_ms(rng), steps)
    crawler.events = [msgspec.structs.replace(event, extra={"crawler": 1.0}) for event in crawler.events]
    return [crawler]


def _heavy_buyer(cast: Cast, rng: np.random.Generator, group: str) -> list[Account]:
    market = cast.market
    _need_purchases(cast, "heavy_buyers")
    (buyer,) = cast.recruits(rng, "honest", "heavy_buyers", group, 1)
    orders = int(rng.integers(8, 31))
    visits = cast.live(rng, buyer, int(rng.integers(6, 20)))
    bought: set[str | None] = set()
    for _ in range(orders):
        item = market.any_product(rng)
        visit = visits[int(rng.integers(len(visits)))]
        seen = visit[int(rng.integers(len(visit)))]
        if rng.random() < 0.7 and (seen.item_id or not item.item_id):
            item = Product(seen.item_id, seen.category_id, seen.shop_id, seen.price, seen.currency)
        if item.item_id in bought and rng.random() < 0.9:
            continue  # hardly anybody buys the same thing twice
        bought.add(item.item_id)
        at_ms = visit[-1].event_time_ms + int(1000 * market.pause_s(rng))
        cast.act(rng, buyer, at_ms, cast.errand(rng, item, int(rng.integers(0, 3)), 0.8))
    return [buyer]


def _need_purchases(cast: Cast, kind: str) -> None:
    if cast.market.name_of("purchase") is None:
        raise InjectionError(
            f"Nobody buys in this log ({', '.join(cast.market.actions)[:200]}), so {kind} has no meaning. "
            f"Leave it out of --negatives, or name the log's format."
        )


#: By name: the script of one sale, link, household or account.
NEGATIVES: dict[str, Callable[[Cast, np.random.Generator, str], list[Account]]] = {
    "flash_sale": _flash_sale,
    "celebrity": _celebrity,
    "families": _families,
    "crawlers": _crawler,
    "heavy_buyers": _heavy_buyer,
}
