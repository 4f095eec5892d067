"""Records of all kinds for the laws of silence, and what the rules told event by event make of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

from stream.silence import Said, Silence
from tests.stream.silence_reference import Reference, Waited

TEN_MINUTES_MS = 600_000
#: The wall clock; what is more than five minutes ahead of it is no event.
NOW_MS = 100 * TEN_MINUTES_MS


class Step(NamedTuple):
    """A record: ``kind`` is event, repeat (of the user's last id), replayed, broken or tombstone."""

    kind: str
    user: str
    ten_minutes: int
    silence_s: int


class Expected:
    """What is to be said: the reference, told which records are events, and when alerts are off."""

    def __init__(self, steps: list[Step]) -> None:
        self.steps, self.rules, self.said = steps, Reference(), list[Said]()
        self._seen: set[tuple[str, str]] = set()  # user and id of what was applied
        self._id_of: dict[str, str] = {}
        self.values = list(self._values())

    def _values(self) -> Iterator[tuple[bytes | None, tuple[tuple[str, bytes], ...]]]:
        """Each record's value and headers; a repeat has the id that the user's record before it had."""
        for offset, step in enumerate(self.steps):
            if step.kind == "tombstone":
                self._id_of.pop(step.user, None)
                yield None, ()
                continue
            if step.kind == "broken":
                yield b"{", ()
                continue
            name = self._id_of.get(step.user, f"e{offset}") if step.kind == "repeat" else f"e{offset}"
            self._id_of[step.user] = name
            event = {
                "user_id": step.user,
                "event_id": name,
                "event_time_ms": step.ten_minutes * TEN_MINUTES_MS,
                "action": "view",
            }
            yield (
                json.dumps(event).encode(),
                ((("clicks.replayed", b"1"),) if step.kind == "replayed" else ()),
            )

    def take(self, start: int, end: int, moved_ms: int, alerts: bool) -> None:
        """Records of a micro-batch that was committed, and the time that had passed before it."""
        if alerts:
            self.said += self.rules.pass_time(moved_ms)
        for offset in range(start, end):
            self._record(offset, alerts)

    def _record(self, offset: int, alerts: bool) -> None:
        step, rules = self.steps[offset], self.rules
        key, time_ms = step.user.encode(), step.ten_minutes * TEN_MINUTES_MS
        if step.kind == "tombstone":
            self._seen = {one for one in self._seen if one[0] != step.user}
            rules.erase(key)
            return
        if step.kind == "broken":
            return
        name = (step.user, json.loads(self.values[offset][0] or b"")["event_id"])
        before = rules.users.get(key)
        last_ms = 0 if before is None else before.silence.last_ms
        late = step.kind != "replayed" and time_ms < last_ms - 1_800_000
        if name in self._seen or late or time_ms > NOW_MS + 300_000:
            return
        self._seen.add(name)
        if alerts:
            self.said += rules.event(key, time_ms, offset, step.silence_s, offset)
        else:
            rules.watermark_ms = max(rules.watermark_ms, time_ms)
            rules.users[key] = Waited(Silence(max(time_ms, last_ms), offset, 0), False)
