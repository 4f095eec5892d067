"""The rules of silence told event by event, without arrays: what ``stream.silence_fold`` has to equal."""

from __future__ import annotations

from typing import NamedTuple

from stream.silence import EXPECTED, RETURNED, Said, Silence

FIRST_MS = 1_800_000


class Waited(NamedTuple):
    """A silence, and whether it was said."""

    silence: Silence
    said: bool


class Reference:
    """One partition; ``users`` maps keys to their silences, deadline 0 for one that is never an alert."""

    def __init__(self) -> None:
        self.users: dict[bytes, Waited] = {}
        self.watermark_ms = 0

    def event(self, key: bytes, time_ms: int, offset: int, silence_s: int, millionths: int) -> list[Said]:
        """An applied event."""
        said = self.pass_time(time_ms)
        before = self.users.get(key)
        if before is not None and before.said:
            said.append(Said(RETURNED, key, before.silence, time_ms, offset))
        last_ms = time_ms if before is None else max(time_ms, before.silence.last_ms)
        deadline_ms = 0
        if silence_s:
            heard_s = -(-(self.watermark_ms + FIRST_MS - last_ms) // 1000)
            deadline_ms = last_ms + 1000 * max(silence_s, heard_s)
        self.users[key] = Waited(Silence(last_ms, offset, deadline_ms, millionths), False)
        return said

    def pass_time(self, watermark_ms: int) -> list[Said]:
        """Everybody is looked at."""
        self.watermark_ms = max(self.watermark_ms, watermark_ms)
        due = [
            (waited.silence.deadline_ms, key)
            for key, waited in self.users.items()
            if not waited.said and 0 < waited.silence.deadline_ms < self.watermark_ms
        ]
        said = []
        for deadline_ms, key in sorted(due):
            silence = self.users[key].silence
            self.users[key] = Waited(silence, True)
            said.append(Said(EXPECTED, key, silence, deadline_ms, silence.offset))
        return said

    def erase(self, key: bytes) -> None:
        """A tombstone."""
        self.users.pop(key, None)
