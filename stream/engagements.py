"""Events as the detectors of ``models.fraud`` read them: users, actions and items as numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from models.fraud.watch import Engagements
from stream.events import Event

__all__ = ["Coded", "announced", "coded"]


class Coded(NamedTuple):
    """A log for the detectors, and what its numbers mean.

    Attributes:
        log: an engagement an event; an order of several lines is one for each of them.
        users, items: names by code.
        event_N: place, among the events given, of each engagement.
    """

    log: Engagements
    users: list[str]
    items: list[str]
    event_N: list[int]


def announced(event: Event) -> bool:
    """Whether a crawler says of itself that it is one."""
    return bool(event.extra and event.extra.get("crawler"))


def coded(events: Iterable[Event]) -> Coded:
    """Number users, actions and items of events in time order; without an item, the shop stands for it."""
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    actions: dict[str, int] = {}
    rows: list[tuple[int, int, int, int, bool, bool]] = []
    places: list[int] = []
    for place, event in enumerate(events):
        user = users.setdefault(event.user_id, len(users))
        action = actions.setdefault(event.action, len(actions))
        about: list[str | None] = [line.item_id for line in event.lines or () if line.item_id]
        about = about or [event.item_id or event.shop_id]
        for name in dict.fromkeys(about):
            item = -1 if name is None else items.setdefault(name, len(items))
            bought = event.action == "purchase"
            rows.append((user, event.event_time_ms, action, item, bought, announced(event)))
            places.append(place)
    numbers = np.array([row[:4] for row in rows], np.int64).reshape(-1, 4)
    flags = np.array([row[4:] for row in rows], np.bool_).reshape(-1, 2)
    log = Engagements(
        user=numbers[:, 0],
        time_ms=numbers[:, 1],
        action=numbers[:, 2],
        item=numbers[:, 3],
        ordered=flags[:, 0],
        announced=flags[:, 1],
        n_users=len(users),
        n_actions=max(1, len(actions)),
    )
    return Coded(log, list(users), list(items), places)
