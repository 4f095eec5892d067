"""All detectors over one log: every event in, and out of it the terms of whoever looks more suspicious than before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.fraud import crowds, habits, meetings
from models.fraud.crowds import Crowds
from models.fraud.habits import Habits
from models.fraud.meetings import Meetings
from models.fraud.paths import Paths

__all__ = ["GROUP_TERMS", "TERMS", "Engagements", "Found", "Watch", "watched"]

#: In the order of a row; the first are a user's own, the others show only beside other users.
TERMS = (*habits.KINDS, *meetings.KINDS, *crowds.KINDS, "same_path")
GROUP_TERMS = frozenset(range(len(habits.KINDS), len(TERMS)))
_MEETINGS = len(habits.KINDS)
_CROWDS = _MEETINGS + len(meetings.KINDS)
_PATH = _CROWDS + len(crowds.KINDS)
_EVIDENCE = 6
#: A value that rose by less is no news.
_NEWS = 0.05


@dataclass(frozen=True)
class Engagements:
    """A log in time order, (N,) each.

    Attributes:
        user, action, item: codes from 0; item -1 where the event names none.
        time_ms: Unix milliseconds.
        ordered: whether it is an order.
        announced: whether the event says itself that a crawler made it; such users are nobody's fake.
        n_users, n_actions: numbers of codes.
    """

    user: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    action: NDArray[np.int64]
    item: NDArray[np.int64]
    ordered: NDArray[np.bool_]
    announced: NDArray[np.bool_]
    n_users: int
    n_actions: int


class Watch:
    """The detectors together; everything is bounded but the number of users and items.

    Args:
        memory: times what an item and a user usually remember.
    """

    def __init__(self, memory: int = 1) -> None:
        self._habits = Habits(64 * memory)
        self._meetings = Meetings(64 * memory, 96 * memory)
        self._crowds = Crowds(64 * memory)
        self._paths = Paths(16 * memory, 48 * memory)

    def observe(
        self, user: int, time_ms: int, item: int | None, ordered: bool
    ) -> list[tuple[int, int, float, int | None]]:
        """Take in one event: user, place in TERMS, value and, where it is about one, the partner."""
        values = self._habits.observe(user, time_ms, item, ordered)
        found: list[tuple[int, int, float, int | None]] = [
            (user, term, value, None) for term, value in enumerate(values) if value
        ]
        if item is None:
            return found
        found += [
            (who, _MEETINGS + kind, nats, None if who == user else user)  # type: ignore[misc]
            for who, kind, nats in self._meetings.observe(user, time_ms, item, ordered)
        ]
        found += [
            (who, _CROWDS + kind, nats, None if who == user else user)  # type: ignore[misc]
            for who, kind, nats in self._crowds.observe(user, time_ms, item, ordered)
            if nats
        ]
        found += [
            (who, _PATH, nats, partner)  # type: ignore[misc]
            for who, partner, nats in self._paths.observe(user, time_ms, item)
        ]
        return found

    def partners(self, user: int) -> list[int]:
        """Those who keep meeting the user, the strongest first."""
        return self._meetings.partners(user)  # type: ignore[return-value]


class Found(NamedTuple):
    """What a log gave: a row whenever a user's largest values changed, in time order.

    Attributes:
        user_R, event_R: whose row it is, and the number of the event that made it.
        n_R: the user's events until then.
        values_RT: largest value so far of each of TERMS.
        evidence: by user and term, numbers of the last events that made it larger.
    """

    user_R: NDArray[np.int64]
    event_R: NDArray[np.int64]
    n_R: NDArray[np.int64]
    values_RT: NDArray[np.float32]
    evidence: dict[tuple[int, int], list[int]]


def watched(
    log: Engagements, advance: Callable[[int], object] = lambda _: None, memory: int = 1
) -> tuple[Found, Watch]:
    """Run all detectors over a log; ``advance`` is told the events done, ``memory`` is that of ``Watch``."""
    watch = Watch(memory)
    best = np.zeros((log.n_users, len(TERMS)), np.float32)
    rows: list[NDArray[np.float32]] = []
    users: list[int] = []
    events: list[int] = []
    counts: list[int] = []
    n = [0] * log.n_users
    evidence: dict[tuple[int, int], list[int]] = {}
    columns: Sequence[list] = [
        column.tolist() for column in (log.user, log.time_ms, log.item, log.ordered, log.announced)
    ]
    largest = best.tolist()
    for number, (user, time_ms, item, ordered, announced) in enumerate(zip(*columns, strict=True)):
        n[user] += 1
        if number % 2000 == 0:
            advance(number)
        # At 1, 2, 4, ... events, for the reference.
        changed = {user} if n[user] & (n[user] - 1) == 0 else set()
        for who, term, value, _ in (
            () if announced else watch.observe(user, time_ms, item if item >= 0 else None, ordered)
        ):
            if value > largest[who][term] + _NEWS:
                largest[who][term] = value
                changed.add(who)
                noted = evidence.setdefault((who, term), [])
                if not noted or noted[-1] != number:
                    noted.append(number)
                    if len(noted) > _EVIDENCE:
                        del noted[0]
        for who in changed:
            users.append(who)
            events.append(number)
            counts.append(n[who])
            rows.append(np.array(largest[who], np.float32))
    advance(len(log.user))
    values = np.stack(rows) if rows else np.zeros((0, len(TERMS)), np.float32)
    return Found(np.array(users), np.array(events), np.array(counts), values, evidence), watch
