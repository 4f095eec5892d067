"""Rings of buyers, live: a user who orders beside the same others again and again, at whatever item.

Who orders beside whom says nothing the first time: a sale, a link, a season brings anybody. That a certain one of N
buyers is again among the c who order the same thing within two hours has a chance of c / N:

    evidence of a user = sum over partners of (occasions - 1) log(N / c)        nats, of two partners at least

``Meeting`` records tell of the occasions (stream/item_farms.py). What follows within two hours of the one before is
the same occasion still, so a spree is one, whatever it holds. How many buyers there are one row cannot know; N is a
hundred. One partner alone is a couple, and no ring.

Only the one who came last at an item is told, so each user's row holds about half of the meetings: in a ring somebody's
shows it. The row keeps the last occasions of four weeks; what finds no room leaves, the oldest first, and alerts from
then on say ``approximate``. Meetings that come again, or in another order, change nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import log
from typing import ClassVar, Final, NamedTuple, cast

import msgspec

from stream.alerts import Alert, severity_of
from stream.crowd_alerts import evidence_entry, score_of
from stream.group_detectors import (
    MAX_ROW_BYTES,
    MEETINGS,
    TOGETHER_MS,
    USER,
    Fold,
    Group,
    GroupEvent,
    Meeting,
    Partner,
)
from stream.packed_rows import PackedRows

__all__ = ["KIND", "BuyerRings"]

KIND: Final = "buyer_ring"
_ROW_VERSION: Final = 1
_MEMORY_MS: Final = 28 * 24 * 3_600_000
_LEAST_PARTNERS: Final = 2
_SHOWN: Final = 24
_MEETING_BYTES, _PARTNER_BYTES = 48, 40  # at most, beside ids


class _Met(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A meeting: when, where the user's own order stands, and who else was there."""

    event_time_ms: int
    partition: int
    offset: int
    item_id: str
    partners: list[Partner]

    @property
    def place(self) -> tuple[int, int, str]:
        """What tells it from others: an order of several items may meet somebody at each."""
        return self.partition, self.offset, self.item_id

    @property
    def cost(self) -> int:
        """Bytes in a row, at most."""
        ids = [self.item_id, *(each.user_id for each in self.partners)]
        return _MEETING_BYTES + _PARTNER_BYTES * len(self.partners) + sum(len(one.encode()) for one in ids)


class _Row(msgspec.Struct, array_like=True, gc=False):
    """Whose they are, and meetings by time."""

    user_id: str = ""
    met: list[_Met] = []
    approximate: bool = False


class _Kept(NamedTuple):
    """A partner who was there again: on how many occasions, in how large a crowd at most, when last, and where."""

    user_id: str
    occasions: int
    crowd: int
    last_ms: int
    last: Partner


_ROWS = PackedRows(_Row, _ROW_VERSION, "A user's row of meetings")


@dataclass(frozen=True, slots=True)
class BuyerRings:
    """A ``GroupDetector`` for meetings.

    Args:
        topic: that evidence names.
        least_nats: evidence from which on a user is flagged; 9 is three partners once again, or two twice.
        buyers: N, above.
        memory_bytes: what meetings may take in a row.
    """

    kind: ClassVar = KIND
    group_types: ClassVar = frozenset({MEETINGS})

    topic: str
    least_nats: float = 9.0
    buyers: float = 100.0
    memory_bytes: int = MAX_ROW_BYTES - 2048

    @property
    def max_row_bytes(self) -> int:
        """As agreed for its meetings, and what is around them."""
        return self.memory_bytes + 2048

    def fold(self, group: Group, row: bytes | None, events: Sequence[GroupEvent], watermark_ms: int) -> Fold:  # noqa: ARG002
        """Take the meetings one by one, and judge after each."""
        known = _Row() if row is None else _ROWS.read(row)
        alerts: list[Alert] = []
        for event in cast(Sequence[Meeting], events):
            known.user_id = event.user_id
            met = _Met(
                event.event_time_ms, event.partition, event.offset, event.item_id or "", event.partners
            )
            if self._take(known, met) and (alert := self._judged(known, event)) is not None:
                alerts.append(alert)
        due_ms = known.met[-1].event_time_ms + _MEMORY_MS if known.met else 0
        if due_ms <= watermark_ms:
            return Fold(None, alerts)
        return Fold(_ROWS.packed(known), alerts, due_ms)

    def erase(self, row: bytes, users: Collection[str]) -> bytes | None:
        """The row without these users; no row of one of them, and none where nobody else is left."""
        known = _ROWS.read(row)
        if known.user_id in users:
            return None
        left = [
            msgspec.structs.replace(
                met, partners=[each for each in met.partners if each.user_id not in users]
            )
            for met in known.met
        ]
        known.met = [met for met in left if met.partners]
        return _ROWS.packed(known) if known.met else None

    def _take(self, known: _Row, met: _Met) -> bool:
        """Put a meeting among the others; False where it is known, or older than what counts."""
        if any(one.place == met.place for one in known.met):
            return False
        known.met = sorted([*known.met, met], key=lambda one: (one.event_time_ms, one.place))
        oldest_ms = known.met[-1].event_time_ms - _MEMORY_MS
        known.met = [one for one in known.met if one.event_time_ms >= oldest_ms]
        spare = self.memory_bytes - sum(one.cost for one in known.met)
        while spare < 0:
            known.approximate = True
            spare += known.met.pop(0).cost
        return any(one is met for one in known.met)

    def _judged(self, known: _Row, event: Meeting) -> Alert | None:
        """The alert, if the evidence is strong enough and somebody of this meeting is part of it."""
        kept = _kept(known.met)
        here = {each.user_id for each in event.partners}
        if len(kept) < _LEAST_PARTNERS or not any(each.user_id in here for each in kept):
            return None
        nats = sum((each.occasions - 1) * log(self.buyers / min(each.crowd, self.buyers)) for each in kept)
        if nats < self.least_nats:
            return None
        score = score_of(nats)
        most = max(each.occasions for each in kept)
        text = f"ordered within two hours of the same {len(kept)} others, on up to {most} occasions in four weeks"
        again = {each.user_id for each in kept}
        mine = [met for met in known.met if any(each.user_id in again for each in met.partners)]
        shown = [
            *(
                Partner(event.user_id, met.event_time_ms, met.partition, met.offset)
                for met in mine[-_SHOWN // 2 :]
            ),
            *(each.last for each in kept),
        ]
        return Alert(
            id=f"{KIND}/{USER}/{event.user_id}/{self.topic}/{event.partition}/{event.offset}/{event.item_id}",
            kind=KIND,
            subject_type=USER,
            subject=event.user_id,
            score=score,
            severity=severity_of(score),
            event_time_ms=known.met[-1].event_time_ms,
            reasons=[{"code": "ordered_together", "text": text, "nats": round(nats, 3)}],
            evidence=[evidence_entry(self.topic, each) for each in dict.fromkeys(shown)][:_SHOWN],
            members=sorted({event.user_id, *(each.user_id for each in kept)}),
            approximate=known.approximate,
        )


def _kept(met: Sequence[_Met]) -> list[_Kept]:
    """Those who were there on two occasions at least, by their ids."""
    found: dict[str, _Kept] = {}
    for one in met:
        crowd = len(one.partners) + 1
        for each in one.partners:
            before = found.get(each.user_id)
            if before is None:
                found[each.user_id] = _Kept(each.user_id, 1, crowd, one.event_time_ms, each)
                continue
            again = one.event_time_ms - before.last_ms > TOGETHER_MS
            found[each.user_id] = _Kept(
                each.user_id, before.occasions + again, max(before.crowd, crowd), one.event_time_ms, each
            )
    return sorted((each for each in found.values() if each.occasions > 1), key=lambda each: each.user_id)
