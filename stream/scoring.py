"""The clicks stage: records and rows in, predictions, dead letters and new rows out.

What stage.py asks of a stage, for clicks. The order inside a micro-batch is the order of offsets; a tombstone ends a
user's row and what follows begins a blank one, so a micro-batch may hold two lives of one user. Users whose silence
runs out join with their rows and without events.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from stream.dead_letters import REPLAYED_HEADER, dead_letter
from stream.events import Adapt, Event, Rejection, decode_events, unknown_fields
from stream.group_records import GroupRecords
from stream.moments import FIRST_MOMENT, Moment
from stream.partition_names import PartitionNames
from stream.sessions import DUPLICATE, FUTURE, LATE, FoldRules
from stream.silence import PartitionTimers, Silences
from stream.stage import Message, Rendered, Row
from stream.user_news import UserNews


@dataclass(slots=True)
class DecodedClicks:
    """Events, rejections and slots of one micro-batch; a slot is one life of one user.

    Attributes:
        ended: by slot, the index of the tombstone that ended that life.
        waited_for: how many of the last slots are there for their timers only.
        waiting: users who are waited for and need no row; None for none.
        bound: of timers, see ``stream.silence.Due``.
    """

    records: Sequence[Any]
    events: list[Event]
    event_records: Sequence[int]
    slots: np.ndarray
    keys: list[bytes]
    fresh: list[int]
    rejected: list[tuple[int, Rejection]]
    erased: set[bytes]
    replayed: np.ndarray
    offsets: np.ndarray
    ended: dict[int, int] = field(default_factory=dict)
    waited_for: int = 0
    waiting: Silences | None = None
    bound: Moment | None = None

    def event_keys(self) -> list[bytes]:
        """The record key of each event."""
        return [self.records[index].key for index in self.event_records]


@dataclass(slots=True)
class Counts:
    """What a micro-batch tells the metrics, once.

    ``unknown_fields`` are those of one record in the batch: enough to find every producer that sends them.
    """

    events: int
    duplicates: int
    late: int
    erased: int
    dead_letters: dict[str, int]
    predictions: int
    alerts: dict[str, int]
    unknown_actions: int
    unknown_fields: set[str]
    timestamps_ms: np.ndarray


@dataclass(slots=True)
class ClicksRequest:
    """What one partition hands in to be folded, scored and rendered, together with others (``stream.rounds``).

    Args:
        rows: of the keys, as they are stored; None for a new user.
        now_ms: the wall clock, or None when time stands in the events alone.

    Attributes:
        watermark_ms: the highest event time before this micro-batch; 0 where nobody waits for it.
        said_before: all timers before it were said.
    """

    work: ClicksWork
    decoded: DecodedClicks
    rows: list[bytes | None]
    now_ms: int | None
    watermark_ms: int = field(default=0, init=False)
    said_before: Moment = field(default=FIRST_MOMENT, init=False)

    def __post_init__(self) -> None:
        # As they stood when due timers were looked for. Time may pass while this waits for the model: what that makes
        # due was not looked for, and a moment beyond it would say that it was said.
        timers = self.work.timers
        if timers is not None:
            self.watermark_ms, self.said_before = timers.watermark_ms, timers.said_before

    @property
    def partition(self) -> int:
        return self.work.partition

    @property
    def source_prefix(self) -> bytes:
        return self.work.source_prefix

    @property
    def names(self) -> PartitionNames:
        return self.work.names

    def raws(self) -> list[bytes | None]:
        """The rows, without those of users who began anew after a tombstone."""
        if not self.decoded.fresh:
            return self.rows
        raws = list(self.rows)
        for slot in self.decoded.fresh:
            raws[slot] = None
        return raws

    @property
    def tells_of_users(self) -> bool:
        """Whether the second stage wants news of users."""
        return self.work.groups is not None and self.work.groups.users

    @property
    def tells_of_items(self) -> bool:
        """Whether the second stage wants to hear of items."""
        return self.work.groups is not None and self.work.groups.items

    def groups(
        self, applied: np.ndarray, news: UserNews | None = None, **of_each: np.ndarray
    ) -> dict[str, list[Message]]:
        """Records for the groups of the applied events (``stream.group_records``), by output."""
        if self.work.groups is None:
            return {}
        decoded = self.decoded
        events = [decoded.events[index] for index in applied.tolist()]
        found = self.work.groups.messages(
            events, self.partition, offsets=decoded.offsets[applied], news=news, **of_each
        )
        self.work.groups.erase({*decoded.erased, *(decoded.keys[slot] for slot in decoded.ended)}, found)
        return found


class ClicksWork:
    """The clicks stage of one partition; implements ``stream.stage.Work``.

    Args:
        names: what this partition remembers.
        timers: of its users' silences; None where churn is not looked for.
        score: hands a request in and waits until it is folded, scored and rendered.
        groups: renders what the second stage is told; None where there is none.
        vectors_topic: where users' vectors go, and from where those of erased users are; None without.
        observe: told of each committed micro-batch, with the times of its receipt and its commit, Unix seconds.
    """

    def __init__(
        self,
        *,
        topic: str,
        topic_id: bytes,
        partition: int,
        dead_letters_topic: str,
        names: PartitionNames,
        timers: PartitionTimers | None,
        rules: FoldRules,
        score: Callable[[ClicksRequest], Awaitable[Rendered]],
        adapt: Adapt | None,
        observe: Callable[[Counts, float, float], None],
        groups: GroupRecords | None = None,
        vectors_topic: str | None = None,
    ):
        self.partition = partition
        self.groups = groups
        self.source_prefix = f"{readable_id(topic_id)}/{partition}".encode()
        self.names = names
        self.timers = timers
        self._topic = topic
        self._dead_letters_topic, self._vectors_topic = dead_letters_topic, vectors_topic
        self._rules = rules
        self._score = score
        self._adapt = adapt
        self._observe = observe

    # ------------------------------------------------------------------ step 2

    def decode(self, records: Sequence[Any]) -> DecodedClicks:
        """Events, rejections and tombstones, and the users whose timers may be due with them."""
        decoded = self._decoded(records)
        if self.timers is not None:
            self._join_due(decoded, self.timers)
        return decoded

    def _join_due(self, decoded: DecodedClicks, timers: PartitionTimers) -> None:
        latest_ms = max([event.event_time_ms for event in decoded.events], default=0)
        due = timers.due_by(latest_ms)
        if not due.looked_at and not len(due.silences):
            return
        fresh = set(decoded.fresh)
        first_life = {key for slot, key in enumerate(decoded.keys) if slot not in fresh}
        tombstones: dict[bytes, int] = {}
        if decoded.erased or fresh:
            ended = decoded.erased | {decoded.keys[slot] for slot in fresh}
            for index, record in enumerate(decoded.records):
                if record.value is None and record.key in ended:
                    tombstones.setdefault(record.key, index)
        # What a record here touches goes by its row; of all others the timer says enough. A tombstone ends a silence
        # for good: its user joins also when the timer is not among the earliest.
        alone = np.array(
            [key not in first_life and key not in tombstones for key in due.silences.keys], np.bool_
        )
        waited_for = [key for key in dict.fromkeys([*due.looked_at, *tombstones]) if key not in first_life]
        for slot, key in enumerate(waited_for, len(decoded.keys)):
            if key in tombstones:
                decoded.ended[slot] = tombstones[key]
        decoded.keys += waited_for
        decoded.waited_for = len(waited_for)
        decoded.bound = due.bound
        if alone.any():
            decoded.waiting = due.silences.where(alone)

    def _decoded(self, records: Sequence[Any]) -> DecodedClicks:
        keys = [record.key for record in records]
        decoded = decode_events(keys, [record.value for record in records], self._adapt)
        replayed = _replayed(records)
        if set(map(type, decoded)) == {Event}:
            # Nearly every micro-batch: nothing rejected, nobody erased.
            slot_of: dict[bytes, int] = {}
            slots = [slot_of.setdefault(key, len(slot_of)) for key in keys]
            return DecodedClicks(
                records,
                cast(list[Event], decoded),
                range(len(records)),
                np.array(slots, np.int32),
                list(slot_of),
                [],
                [],
                set(),
                replayed,
                np.array([record.offset for record in records], np.int64),
            )
        return self._sorted_out(records, decoded, replayed)

    def _sorted_out(self, records: Sequence[Any], decoded: list[Any], replayed: np.ndarray) -> DecodedClicks:
        """Events, rejections and tombstones apart; each life of a user in a slot of its own."""
        event_records: list[int] = []
        slots: list[int] = []
        keys: list[bytes] = []
        slot_of: dict[bytes, int] = {}
        fresh: list[int] = []
        rejected: list[tuple[int, Rejection]] = []
        erased: set[bytes] = set()
        ended: dict[int, int] = {}
        for index, event in enumerate(decoded):
            key = records[index].key
            if type(event) is Event:
                slot = slot_of.get(key)
                if slot is None:
                    slot = slot_of[key] = len(keys)
                    keys.append(key)
                    if key in erased:
                        fresh.append(slot)  # this life began after a tombstone: the stored row is another's
                event_records.append(index)
                slots.append(slot)
            elif event is None:
                if (slot := slot_of.pop(key, None)) is not None:
                    ended[slot] = index
                erased.add(key)
            else:
                rejected.append((index, event))
        events = [decoded[index] for index in event_records]
        # A user whose last word is a tombstone is erased; one who came back after it has a slot.
        erased = {key for key in erased if key not in slot_of}
        return DecodedClicks(
            records,
            events,
            event_records,
            np.array(slots, np.int32),
            keys,
            fresh,
            rejected,
            erased,
            replayed[event_records],
            np.array([records[index].offset for index in event_records], np.int64),
            ended,
        )

    # ------------------------------------------------------------------ steps 4 to 6

    async def score(self, decoded: DecodedClicks, rows: list[bytes | None], now_ms: int | None) -> Rendered:
        return await self._score(ClicksRequest(self, decoded, rows, now_ms))

    def rendered(
        self,
        decoded: DecodedClicks,
        *,
        rows: Iterable[tuple[int, bytes]],
        names: list[Row],
        predictions: dict[str, list[Message]],
        vectors: Sequence[Message],
        alerts: dict[str, list[Message]],
        alert_counts: dict[str, int],
        groups: dict[str, list[Message]],
        outcome: np.ndarray,
        late_applied: np.ndarray,
        watermark_ms: int,
        said_before: Moment | None,
        unknown_actions: int,
    ) -> Rendered:
        """Put together what a micro-batch writes.

        Args:
            rows: slot and new row of each life that got events, in the order of slots.
            names: rows to remember names by.
            predictions, alerts: messages by topic.
            vectors: of users.
            alert_counts: alerts by kind.
            groups: records for the second stage, by output.
            outcome, late_applied: of each event, see ``stream.sessions.Folded``.
            watermark_ms: the highest event time that was applied, also before, 0 if none.
            said_before: all timers before it are said, those of this micro-batch included; None without timers.
            unknown_actions: names of actions met so far that the model does not know.
        """
        # Of two lives in one batch the later slot wins.
        kept: dict[bytes, bytes | None] = {decoded.keys[slot]: raw for slot, raw in rows}
        kept |= dict.fromkeys(decoded.erased)
        messages = {topic: items for topic, items in {**predictions, **alerts, **groups}.items() if items}
        if self._vectors_topic is not None:
            # A user who is erased and comes back within a micro-batch has the new life's vector, as the row.
            gone: list[Message] = [(key, None, []) for key in sorted(decoded.erased)]
            if vectors or gone:
                messages[self._vectors_topic] = [*vectors, *gone]
        dead = self._dead_letters(decoded, outcome)
        if dead:
            messages[self._dead_letters_topic] = [letter for _, letter in dead]
        counts = Counts(
            events=len(decoded.records),
            duplicates=int((outcome == DUPLICATE).sum()),
            late=int(late_applied.sum()),
            erased=len(decoded.erased),
            dead_letters=Counter(reason for reason, _ in dead),
            predictions=sum(map(len, predictions.values())),
            alerts=alert_counts,
            unknown_actions=unknown_actions,
            unknown_fields=unknown_fields(decoded.records[-1].value or b"") if decoded.records else set(),
            timestamps_ms=np.array([record.timestamp for record in decoded.records], np.int64),
        )
        return Rendered(messages, [*kept.items(), *names], watermark_ms, counts, said_before)

    def _dead_letters(self, decoded: DecodedClicks, outcome: np.ndarray) -> list[tuple[str, Message]]:
        untimely = [
            (decoded.event_records[i], self._untimely(decoded.events[i], int(outcome[i])))
            for i in np.flatnonzero((outcome == LATE) | (outcome == FUTURE)).tolist()
        ]
        rejected = sorted([*decoded.rejected, *untimely], key=lambda pair: pair[0])
        letters: list[tuple[str, Message]] = []
        for index, why in rejected:
            record = decoded.records[index]
            key, value, headers = dead_letter(
                self._topic,
                self.partition,
                record.offset,
                record.key,
                record.value,
                why.reason,
                why.message,
                record.headers,
            )
            letters.append((why.reason, (key, value, headers)))
        return letters

    def _untimely(self, event: Event, outcome: int) -> Rejection:
        if outcome == LATE:
            limit_s = self._rules.late_limit_ms // 1000
            return Rejection(
                "late", f"event_time_ms {event.event_time_ms} is over {limit_s} s before the user's last"
            )
        limit_s = self._rules.future_limit_ms // 1000
        return Rejection(
            "future", f"event_time_ms {event.event_time_ms} is over {limit_s} s ahead of the clock"
        )

    # ------------------------------------------------------------------ step 9

    def account(self, rendered: Rendered, received_s: float, committed_s: float) -> None:
        self.pass_time(rendered.watermark_ms, rendered.said_before)
        self._observe(rendered.counts, received_s, committed_s)

    # ------------------------------------------------------------------ time

    def due(self) -> bool:
        """Whether a user waits to be missed; see ``stream.stage.Timed``."""
        return self.timers is not None and self.timers.due()

    def pass_time(self, watermark_ms: int, said_before: Moment | None = None) -> None:
        """Raise the watermark that silences are measured against, and the moment up to which they were said."""
        if self.timers is not None:
            self.timers.pass_time(watermark_ms, said_before or self.timers.said_before)


def _replayed(records: Sequence[Any]) -> np.ndarray:
    """Which records are dead letters sent again; nearly always none of a batch has any header at all."""
    if not any([record.headers for record in records]):  # noqa: C419 - a list is twice as fast here
        return np.zeros(len(records), np.bool_)
    return np.array(
        [any(name == REPLAYED_HEADER for name, _ in record.headers) for record in records], np.bool_
    )


def readable_id(topic_id: bytes) -> str:
    """A topic id as Kafka's own tools print it."""
    return base64.urlsafe_b64encode(topic_id).decode().rstrip("=")
