"""What real traffic carries and a simulation does not: repeats, stragglers, and records that are no events.

Every kind is made so that its fate is certain, and so a pipeline's counts can be compared with what was put in.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

__all__ = ["KINDS", "Record", "Soiled", "soil"]

KINDS = ("duplicate", "late_minutes", "late_hours", "undecodable", "missing_field", "wrong_type")
_MINUTE_MS = 60_000
#: How far behind a later event of the same user a straggler comes: within what is applied, and far beyond it.
_LATE_MS = {
    "late_minutes": (_MINUTE_MS // 2, 20 * _MINUTE_MS),
    "late_hours": (60 * _MINUTE_MS, 12 * 60 * _MINUTE_MS),
}


class Record(NamedTuple):
    """A key and a value, as a topic holds them."""

    key: bytes | None
    value: bytes


class Soiled(NamedTuple):
    """The records with the dirt among them, and how many of each kind were put in or moved."""

    records: list[Any]
    injected: dict[str, int]


def soil(records: Sequence[Any], share: float, seed: int) -> Soiled:
    """Put dirt among records of canonical events in time order.

    =============  ========================================================================================
    duplicate      the same record again, at most five records later: dropped by its event id
    late_minutes   moved behind a later event of its user, up to 20 min ahead: applied, counted as late
    late_hours     moved behind a later event of its user, 1 to 12 h ahead: a dead letter
    undecodable    a copy that breaks off: a dead letter; the original stays, as with the next two
    missing_field  a copy without its action
    wrong_type     a copy whose time is text
    =============  ========================================================================================

    Args:
        records: anything with ``key``, ``value`` and ``_replace`` (a NamedTuple); left unchanged.
        share: of the records, 0 to 0.5; a kind of straggler with too few candidates comes out lower.
        seed: the same arguments give the same records.
    """
    if not 0.0 <= share <= 0.5:
        raise ValueError(f"share {share} of dirt is not between 0 and 0.5")
    rng = np.random.Generator(np.random.PCG64(seed))
    later = _LaterEvents(records)
    # Stragglers first: not every record has a later one at the right distance.
    missing = dict.fromkeys((*_LATE_MS, *(kind for kind in KINDS if kind not in _LATE_MS)), 0)
    for n in range(int(share * len(records))):
        missing[KINDS[n % len(KINDS)]] += 1
    injected: Counter[str] = Counter()
    moved: set[int] = set()
    touched: set[int] = set()
    behind: defaultdict[int, list[Any]] = defaultdict(list)
    for index in rng.permutation(len(records)).tolist():
        if index in touched:
            continue
        record = records[index]
        for kind in [kind for kind, n in missing.items() if n]:
            # What a straggler's lateness is measured by is used once, or that lateness would be another.
            used = [index]
            if kind in _LATE_MS:
                used = later.until(index, *_LATE_MS[kind])
                if not used or not touched.isdisjoint(used):
                    continue
                moved.add(index)
                behind[used[-1]].append(record)
            elif kind == "duplicate":
                behind[min(index + int(rng.integers(0, 6)), len(records) - 1)].append(record)
            else:
                behind[index].append(record._replace(value=_BROKEN[kind](record.value)))
            touched.update(used)
            injected[kind] += 1
            missing[kind] -= 1
            break
    out: list[Any] = []
    for index, record in enumerate(records):
        if index not in moved:
            out.append(record)
        out += behind[index]
    return Soiled(out, {kind: injected[kind] for kind in KINDS})


class _LaterEvents:
    """For each record, the later records of the same user."""

    def __init__(self, records: Iterable[Any]) -> None:
        self._times_ms = [msgspec.json.decode(record.value)["event_time_ms"] for record in records]
        self._rank: list[int] = []
        self._of: defaultdict[bytes | None, list[int]] = defaultdict(list)
        self._keys = [record.key for record in records]
        for index, key in enumerate(self._keys):
            self._rank.append(len(self._of[key]))
            self._of[key].append(index)

    def until(self, index: int, least_ms: int, most_ms: int) -> list[int]:
        """The user's records from this one to the first that is so much later, both included; empty without one."""
        indices, rank = self._of[self._keys[index]], self._rank[index]
        for end in range(rank + 1, len(indices)):
            ahead_ms = self._times_ms[indices[end]] - self._times_ms[index]
            if ahead_ms > most_ms:
                break
            if ahead_ms >= least_ms:
                return indices[rank : end + 1]
        return []


def _without_action(value: bytes) -> bytes:
    event = msgspec.json.decode(value)
    event.pop("action", None)
    return msgspec.json.encode(event)


def _time_as_text(value: bytes) -> bytes:
    event = msgspec.json.decode(value)
    return msgspec.json.encode(event | {"event_time_ms": str(event["event_time_ms"])})


_BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "undecodable": lambda value: value[: len(value) // 2],
    "missing_field": _without_action,
    "wrong_type": _time_as_text,
}
