"""The groups stage: records of stream/group_records.py in, alerts and rows of the detectors out.

What stage.py asks of a stage, for groups. Time here is the event time that every partition of the source has reached
(``Sources``): the groups of one partition are fed by all of them, and one that is far ahead must not make the orders of
the others late.

    record ──► whose watermark? late? ──► a fold for each detector and group ──► said lately? ──► alert
                                     due rows ──┘

A row's key is ``group \\0 detector``, nine zero bytes and the number of the piece; its first piece names how many
there are, of 16 KiB each, and when the row is due. The index of due rows lives in memory and is made of the rows when a
partition opens.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from stream.alert_records import alert_message
from stream.alerts import END_MS, Alert
from stream.errors import BrokenInvariant, DamagedRow
from stream.group_detectors import MAX_ROW_BYTES, GroupDetector, GroupEvent, Meeting, Said, hold_back
from stream.group_due import DueRows
from stream.group_erasure import Erasures
from stream.group_records import Erasure, Watermark, erasure_messages, group_of, meeting_message, read_record
from stream.group_sources import Sources
from stream.stage import Message, Rendered, Row

__all__ = ["DecodedGroups", "GroupCounts", "GroupsWork"]

#: Reserved row: the event time that each partition of the source has reached.
SOURCES_KEY: Final = b"\0w"
#: How far beyond the newest event the wall clock completes what a silent source left open.
SETTLE_MS: Final = 86_400_000
MOST_DUE: Final = 4096  # rows a micro-batch
TURN: Final = 32  # folds between which the clicks, which wait in the same event loop, have their turn
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<BBq")
_KEY_END: Final = bytes(10)  # of the first piece's key, behind the kind


class _Kept(msgspec.Struct, array_like=True, gc=False):
    """What a row holds: what the detector keeps, and what was said."""

    row: bytes | None
    said: Said | None


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(_Kept).decode


class _Event(msgspec.Struct, frozen=True, gc=False):
    """``rows`` are the keys of those that its folds need."""

    group: bytes
    event: GroupEvent
    rows: Sequence[bytes] = ()


@dataclass(slots=True)
class DecodedGroups:
    """The records of a micro-batch in their order; ``keys`` are of the rows that their folds need."""

    records: list[_Event | Watermark | Erasure]
    keys: list[bytes]
    damaged: int


@dataclass(slots=True)
class GroupCounts:
    """What a micro-batch tells the metrics."""

    events: int = 0
    late: int = 0
    damaged: int = 0
    due: int = 0
    rows: int = 0
    approximate: int = 0
    alerts: dict[str, int] = field(default_factory=dict)
    held_back: dict[str, int] = field(default_factory=dict)


def parts_of(key: bytes) -> tuple[bytes, str]:
    """The group's key and the kind in a row's key, read from the right: a group's id may hold anything."""
    group, _, kind = key[: -len(_KEY_END)].rpartition(b"\0")
    return group, kind.decode()


class GroupsWork:
    """The groups stage of one partition; implements ``stream.stage.Work``.

    Args:
        detectors: by kind.
        sources: of this partition, as the store remembers them.
        late_limit_ms: an event older than the watermark by more is late.
        cool_down_ms: in which one alert on a subject is enough.
        alerts_topic: where alerts go; ``topic_id`` and ``source`` name the input in their headers.
        fetch: rows of this partition's store.
        stored: its rows, for the index of what is due.
        erasures: users whom tombstones have named.
        told_to: topic of groups and its partitions, where meetings go; None tells of none.
        observe: told of each committed micro-batch, with the times of its receipt and its commit.
    """

    def __init__(
        self,
        *,
        detectors: Sequence[GroupDetector],
        sources: Sources,
        late_limit_ms: int,
        cool_down_ms: int,
        alerts_topic: str,
        topic_id: str,
        source: str,
        fetch: Callable[[list[bytes]], list[bytes | None]],
        stored: Iterable[tuple[bytes, bytes]] = (),
        erasures: Erasures | None = None,
        told_to: tuple[str, int] | None = None,
        observe: Callable[[GroupCounts, float, float], None] = lambda *_: None,
    ) -> None:
        self.sources = sources
        self._detectors = {detector.kind: detector for detector in detectors}
        #: By type of groups: what follows the group in the row keys of each detector.
        self._suffixes: dict[str, list[bytes]] = {}
        for detector in detectors:
            for group_type in detector.group_types:
                suffix = b"\0" + detector.kind.encode() + _KEY_END
                self._suffixes.setdefault(group_type, []).append(suffix)
        self._late_limit_ms, self._cool_down_ms = late_limit_ms, cool_down_ms
        self._alerts_topic, self._topic_id, self._source = alerts_topic, topic_id, source
        self._fetch = fetch
        self._erasures = Erasures((), lambda *_: []) if erasures is None else erasures
        self._told_to, self._observe = told_to, observe
        self._due = DueRows((key, _header(raw)[2]) for key, raw in stored if key[-1:] == b"\0")

    # ------------------------------------------------------------------ step 2

    def decode(self, records: Sequence[Any]) -> DecodedGroups:
        read: list[_Event | Watermark | Erasure] = []
        keys: dict[bytes, None] = {}
        damaged = 0
        for record in records:
            try:
                found = read_record(record.key, record.value or b"")
                if isinstance(found, GroupEvent):
                    rows = self._rows_of(record.key)
                    for key in rows:
                        keys[key] = None
                    read.append(_Event(record.key, found, rows))
                else:
                    read.append(found)
            except (msgspec.DecodeError, UnicodeDecodeError):
                damaged += 1
        return DecodedGroups(read, list(keys), damaged)

    def _rows_of(self, group: bytes) -> list[bytes]:
        group_type, _, _ = group.decode().partition(":")
        return [group + suffix for suffix in self._suffixes.get(group_type, ())]

    # ------------------------------------------------------------------ steps 4 to 6

    async def score(self, decoded: DecodedGroups, rows: list[bytes | None], now_ms: int) -> Rendered:
        """Fold what is not late, and what is due; look at some rows for users who are to be erased."""
        counts = GroupCounts(damaged=decoded.damaged)
        wanted, moved = self._sort_out(decoded, counts)
        raws = dict(zip(decoded.keys, rows, strict=True))
        watermark_ms = self.sources.watermark_ms
        horizon_ms = max(watermark_ms, self._horizon_ms(now_ms))
        due = [key for key in self._due.until(horizon_ms, MOST_DUE) if key not in wanted]
        counts.due = len(due)
        missing = [key for key in due if key not in raws]
        raws.update(zip(missing, self._fetch(missing), strict=True))

        written: list[Row] = [(SOURCES_KEY, self.sources.row())] if moved else []
        for read in decoded.records:
            if isinstance(read, Erasure):
                written += self._erasures.add(read.user, again=read.again)
        self._erasures.begin()
        messages: dict[str, list[Message]] = {}
        folds = [
            *((key, events, watermark_ms) for key, events in wanted.items()),
            *((key, [], horizon_ms) for key in due),
        ]
        for number, (key, events, mark_ms) in enumerate(folds, 1):
            if number % TURN == 0:
                await asyncio.sleep(0)
            alerts, meetings = self._fold(key, raws[key], events, mark_ms, written, counts)
            for alert in alerts:
                message = alert_message(alert, self._topic_id, self._source)
                messages.setdefault(self._alerts_topic, []).append(message)
            if self._told_to is not None:
                for meeting in meetings:
                    output, message = meeting_message(meeting, *self._told_to)
                    messages.setdefault(output, []).append(message)
        for user in await self._erase(wanted.keys() | set(due), written):
            for output, message in erasure_messages(user, *self._told_to) if self._told_to else ():
                messages.setdefault(output, []).append(message)
        counts.rows = len(written)
        return Rendered(messages, written, watermark_ms, counts)

    def _sort_out(
        self, decoded: DecodedGroups, counts: GroupCounts
    ) -> tuple[dict[bytes, list[GroupEvent]], bool]:
        """Events by row, late ones left out; and whether a source has moved on."""
        wanted: dict[bytes, list[GroupEvent]] = {}
        sources, moved = self.sources, False
        oldest_ms = sources.watermark_ms - self._late_limit_ms
        for read in decoded.records:
            if isinstance(read, Erasure):
                continue
            said = read.event if isinstance(read, _Event) else read
            met = isinstance(said, Meeting)
            if not met and sources.advance(said.partition, said.event_time_ms):
                moved = True
                oldest_ms = max(oldest_ms, sources.watermark_ms - self._late_limit_ms)
            if isinstance(read, Watermark):
                continue
            counts.events += 1
            if not met and said.event_time_ms < oldest_ms:
                counts.late += 1
                continue
            for key in read.rows:
                if (events := wanted.get(key)) is None:
                    wanted[key] = [read.event]
                else:
                    events.append(read.event)
        return wanted, moved

    def _fold(
        self,
        key: bytes,
        raw: bytes | None,
        events: list[GroupEvent],
        watermark_ms: int,
        written: list[Row],
        counts: GroupCounts,
    ) -> tuple[list[Alert], Sequence[Meeting]]:
        """One row through its detector; what it writes goes to ``written``."""
        group, kind = parts_of(key)
        detector = self._detectors.get(kind)
        old, old_due_ms = self._stored(key, raw)
        if detector is None:  # of a build or a setting that had it
            self._write(key, old, b"", 0, written)
            self._due.move(key, old_due_ms, 0)
            return [], ()
        kept = _unpack(b"".join(old)) if old else _Kept(None, None)
        fold = detector.fold(group_of(group), kept.row, events, watermark_ms)
        if fold.row is not None and len(fold.row) > detector.max_row_bytes:
            raise BrokenInvariant(
                f"Detector {kind} made a row of {len(fold.row)} bytes of {group!r}; at most "
                f"{detector.max_row_bytes} were agreed."
            )
        if raw is None and fold.row is None and not fold.alerts:  # nothing was, and nothing is
            return [], fold.meetings
        said, alerts = kept.said, []
        for found in fold.alerts:
            said, alert = hold_back(said, found, self._cool_down_ms)
            tally = counts.held_back if alert is None else counts.alerts
            tally[kind] = tally.get(kind, 0) + 1
            if alert is not None:
                alerts.append(alert)
                counts.approximate += alert.approximate
        due_ms = fold.due_ms
        row = fold.row
        if self._erasures.under_way:
            row, said = self._without_erased(group, detector, row, said)
        if said is not None and row is None:
            due_ms = min(said.event_time_ms + self._cool_down_ms, END_MS)
            if due_ms <= watermark_ms:
                said = None
        nothing = row is None and said is None
        due_ms = 0 if nothing or due_ms is None else max(due_ms, watermark_ms + 1)
        self._write(key, old, b"" if nothing else _pack(_Kept(row, said)), due_ms, written)
        self._due.move(key, old_due_ms, due_ms)
        return alerts, fold.meetings

    def _without_erased(
        self, group: bytes, detector: GroupDetector, row: bytes | None, said: Said | None
    ) -> tuple[bytes | None, Said | None]:
        """What a row holds, without the users who are being erased; nothing of a group that is one of them."""
        users = self._erasures.named_in(group, row or b"")
        if not users:
            return row, said
        whose = group_of(group)
        left = None if row is None else detector.erase(row, users)
        gone = left is None and (row is not None or whose.id in users)
        return left, None if gone else said

    async def _erase(self, folded: Set[bytes], written: list[Row]) -> list[bytes]:
        """Look at the next rows of the store; those that were folded are clean already.

        Returns:
            Whom no row holds any more, to tell all partitions of.
        """
        for number, (key, raw) in enumerate(self._erasures.turn(), 1):
            if number % (8 * TURN) == 0:
                await asyncio.sleep(0)
            if key[-1:] != b"\0" or key in folded:
                continue
            group, kind = parts_of(key)
            detector = self._detectors.get(kind)
            old, old_due_ms = self._stored(key, raw)
            packed = b"".join(old)
            if detector is None or not self._erasures.named_in(group, packed):
                continue
            kept = _unpack(packed)
            row, said = self._without_erased(group, detector, kept.row, kept.said)
            nothing = row is None and said is None
            due_ms = 0 if nothing else old_due_ms
            self._write(key, old, b"" if nothing else _pack(_Kept(row, said)), due_ms, written)
            self._due.move(key, old_due_ms, due_ms)
        rows, forgotten = self._erasures.end()
        written += rows
        return forgotten

    def _stored(self, key: bytes, raw: bytes | None) -> tuple[list[bytes], int]:
        """The pieces of a row, without the first one's header, and when it is due."""
        if raw is None:
            return [], 0
        version, count, due_ms = _header(raw)
        if version != _VERSION:
            raise DamagedRow(
                f"A row of groups is of version {version}; this build reads {_VERSION}. Use the build that wrote it."
            )
        if count == 1:
            return [raw[_HEADER.size :]], due_ms
        rest = self._fetch([_piece_key(key, number) for number in range(1, count)])
        if None in rest:
            raise DamagedRow(f"A row of groups lacks pieces: {key!r}. Restore the store.")
        return [raw[_HEADER.size :], *(piece for piece in rest if piece is not None)], due_ms

    @staticmethod
    def _write(key: bytes, old: list[bytes], packed: bytes, due_ms: int, written: list[Row]) -> None:
        """The pieces that changed; those that are no longer needed are erased."""
        size = MAX_ROW_BYTES - _HEADER.size
        if 0 < len(packed) <= size and len(old) <= 1:  # nearly every row
            written.append((key, _HEADER.pack(_VERSION, 1, due_ms) + packed))
            return
        new = [packed[start : start + size] for start in range(0, len(packed), size)]
        if new:
            written.append((key, _HEADER.pack(_VERSION, len(new), due_ms) + new[0]))
        elif old:
            written.append((key, None))
        written += [
            (_piece_key(key, number), piece)
            for number, piece in enumerate(new)
            if number and (number >= len(old) or old[number] != piece)
        ]
        written += [(_piece_key(key, number), None) for number in range(max(1, len(new)), len(old))]

    # ------------------------------------------------------------------ what is due

    def _horizon_ms(self, now_ms: int) -> int:
        """Where windows end when the whole source is silent: the wall clock goes on, to a day after its last event."""
        latest_ms = self.sources.latest_ms
        return min(now_ms, latest_ms + SETTLE_MS) if latest_ms and self.sources.silent else 0

    def has_due(self, now_ms: int) -> bool:
        """Whether a micro-batch without records would do anything."""
        if self._erasures.pending:
            return True
        horizon_ms = max(self.sources.watermark_ms, self._horizon_ms(now_ms))
        return bool(self._due.until(horizon_ms, 1))

    # ------------------------------------------------------------------ step 9

    def account(self, rendered: Rendered, received_s: float, committed_s: float) -> None:
        self._observe(rendered.counts, received_s, committed_s)


def _header(raw: bytes) -> tuple[int, int, int]:
    if len(raw) < _HEADER.size:
        raise DamagedRow(f"A row of groups has {len(raw)} bytes. Restore the store.")
    version, count, due_ms = _HEADER.unpack_from(raw)
    return version, count, due_ms


def _piece_key(key: bytes, number: int) -> bytes:
    return key[:-1] + bytes([number])
