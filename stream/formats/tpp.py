"""Point-process benchmarks: a line a sequence, ``{"seq": 0, "events": [[type, time, gap], ...]}``.

A sequence is a user, a type an action of its number. Time counts ten thousand seconds since 1970, so that a gap of
one second is 0.0001 and half an hour 0.18; scaled so, sessions and the floor of one second mean what they mean
elsewhere. Where events were taken out of a sequence, its times jump and its gaps do not; gaps are what is
predicted and measured, so the clock of a sequence starts at its first time and goes on by the gaps.
"""

from __future__ import annotations

from math import isfinite
from typing import Any, Final

from stream.formats.shapes import Sequences
from stream.formats.values import Rejected, required, text

__all__ = ["TPP", "UNIT_S", "events_of"]

#: One unit of the file's time and gaps, seconds.
UNIT_S: Final = 10_000.0
_END_MS = 2**53


def events_of(sequence: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The events of a sequence as canonical dicts; None when it is none. Raises ``Rejected``."""
    steps = sequence.get("events")
    if "seq" not in sequence or type(steps) is not list:
        return None
    user = required(text(sequence["seq"], "$.seq"), "$.seq")
    events: list[dict[str, Any]] = []
    units = 0.0
    for position, step in enumerate(steps):
        path = f"$.events[{position}]"
        if type(step) is not list or len(step) != 3:
            raise Rejected("wrong_type", f"expected [type, time, gap] at {path}")
        kind, time, gap = step
        units = units + _amount(gap, path, "gap") if events else _amount(time, path, "time")
        # A millisecond is the ten-millionth part of a unit.
        time_ms = round(units * UNIT_S * 1000)
        if not 0 < time_ms < _END_MS:
            raise Rejected("wrong_type", f"expected a time after 1970 in units of {UNIT_S:g} s at {path}")
        action = required(text(kind, path), path)
        events.append({"user_id": user, "event_time_ms": time_ms, "action": action})
    return events


def _amount(value: Any, path: str, name: str) -> float:
    if type(value) not in (int, float):
        raise Rejected("wrong_type", f"expected a number as {name} at {path}")
    if not isfinite(value):
        raise Rejected("not_finite", f"expected a finite {name} at {path}")
    if value < 0:
        raise Rejected("wrong_type", f"expected a {name} of 0 or more at {path}")
    return float(value)


TPP = Sequences("tpp", events_of)
