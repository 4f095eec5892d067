"""Plain rules: the most that is believed of one user. An analyst reads and edits them; they need no reference.

events_per_second      impossible speed: more events in a second than hands make
events_per_minute      rate
orders_per_hour        rate of orders
same_order_per_day     orders of one item in 24 hours
"""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

from models.errors import ForeclickError

__all__ = ["DEFAULT_LIMITS", "RULES", "Broken", "RuleError", "Rules", "limits_of"]

#: Span in milliseconds, and what is counted: events, orders, or orders of one item.
RULES = {
    "events_per_second": (1_000, "events"),
    "events_per_minute": (60_000, "events"),
    "orders_per_hour": (3_600_000, "orders"),
    "same_order_per_day": (86_400_000, "orders of one item"),
}
DEFAULT_LIMITS = {
    "events_per_second": 20,
    "events_per_minute": 200,
    "orders_per_hour": 30,
    "same_order_per_day": 8,
}
_MOST_LIMIT = 10_000


class RuleError(ForeclickError):
    """A rule is unknown, or its limit is no whole number from 1."""


class Broken(NamedTuple):
    """A rule that a user broke: how many there were within its span, and the limit."""

    rule: str
    times: int
    limit: int


def limits_of(settings: Mapping[str, Any]) -> dict[str, int]:
    """Limits by rule; a rule that is not named is off.

    Raises:
        RuleError: an unknown rule, or a limit that is no whole number from 1.
    """
    for name, limit in settings.items():
        if name not in RULES:
            close = difflib.get_close_matches(str(name), RULES, 1)
            raise RuleError(
                f"There is no rule {name!r}{f'; did you mean {close[0]}?' if close else '.'} "
                f"The rules are {', '.join(RULES)}."
            )
        if type(limit) is not int or not 1 <= limit <= _MOST_LIMIT:
            raise RuleError(
                f"The rule {name} has the limit {limit!r}; expected a whole number from 1 to {_MOST_LIMIT}. "
                f"Write for example {name} = {DEFAULT_LIMITS[name]}, or leave the rule out."
            )
    return dict(settings)


class Rules:
    """Counts of users, from events in time order; a user keeps at most as many times as a rule's limit allows."""

    def __init__(self, limits: Mapping[str, int]) -> None:
        self._rules = [(name, *RULES[name], limit) for name, limit in limits.items()]
        self._times: dict[tuple[Hashable, ...], deque[int]] = {}

    def observe(self, user: Hashable, time_ms: int, item: Hashable | None, ordered: bool) -> list[Broken]:
        """Take in one event; the rules that it breaks."""
        broken = []
        for name, span_ms, what, limit in self._rules:
            if what != "events" and not ordered:
                continue
            if what == "orders of one item" and item is None:
                continue
            key = (name, user, item) if what == "orders of one item" else (name, user)
            times = self._times.get(key)
            if times is None:
                times = self._times[key] = deque(maxlen=limit + 1)
            times.append(time_ms)
            if len(times) > limit and time_ms - times[0] <= span_ms:
                broken.append(Broken(name, len(times), limit))
        return broken
