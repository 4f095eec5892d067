"""What the clicks stage tells the second stage: records keyed by group, in the transaction of their clicks.

    shop     every order (a purchase that names its shop)
    item     every order; of one with lines, each of its items; visits to which users come back again and again
    device   every order; where no device is named, the address
    user     what is out of the ordinary (stream/user_news.py)
    met      meetings of users, which the second stage itself tells

Of crawlers that announce themselves nothing is told but their orders at shops.

The value is the same for all of them but the user, so it is packed once. Between them stand watermarks (no key): the
event time that a partition of the source has reached, told at most once a minute of event time, so that a partition
without orders does not hold the others' windows open; and users whom a tombstone erases, told to every partition of
groups.

A group's records stand in one partition of the topic, by crc32 of the key. An output ``TOPIC/3`` is partition 3 of
that topic; what stands without a number goes to the partition of its source's number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple
from zlib import crc32

import msgspec
import numpy as np

from stream.engagements import announced
from stream.events import Event
from stream.group_detectors import DEVICE, ITEM, MEETINGS, SHOP, USER, Group, GroupEvent, Meeting
from stream.stage import Message
from stream.user_news import UserEvent, UserNews

__all__ = [
    "TELL_MS",
    "Erasure",
    "GroupRecords",
    "Watermark",
    "erasure_messages",
    "group_of",
    "meeting_message",
    "read_record",
    "routed",
]

#: Event time after which a partition tells its watermark again.
TELL_MS: Final = 60_000
_MOST_LINES: Final = 16  # of one order; what buys more lines is no detail of this stage
_OF_USER: Final = f"{USER}:".encode()
_OF_MEETINGS: Final = f"{MEETINGS}:".encode()
_LONGEST_ID: Final = 256  # bytes; a longer one is told by its hash


class Watermark(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The highest event time that one partition of the source has applied."""

    partition: int
    event_time_ms: int


class Erasure(NamedTuple):
    """A user of whom nothing may stay; ``again`` where a partition of groups tells that it has come to its end."""

    user: bytes
    again: bool = False


#: Keys of the records that tell tombstones, as clicks and as partitions of groups do; no group's starts with them.
ERASURE_KEY: Final = b"\0erase"
_AGAIN_KEY: Final = b"\0erase again"

_pack = msgspec.msgpack.Encoder().encode
_unpack_event = msgspec.msgpack.Decoder(GroupEvent).decode
_unpack_user_event = msgspec.msgpack.Decoder(UserEvent).decode
_unpack_meeting = msgspec.msgpack.Decoder(Meeting).decode
_unpack_watermark = msgspec.msgpack.Decoder(Watermark).decode


def routed(topic: str, partition: int) -> str:
    """The name of an output that is one partition of a topic."""
    return f"{topic}/{partition}"


def group_of(key: bytes) -> Group:
    """The group of a record's key."""
    kind, _, name = key.decode().partition(":")
    return Group(kind, name)


def read_record(key: bytes | None, value: bytes) -> GroupEvent | Watermark | Erasure:
    """What a record of the topic holds.

    Raises:
        msgspec.DecodeError: it is none of ours.
    """
    if key == ERASURE_KEY:
        return Erasure(value)
    if key == _AGAIN_KEY:
        return Erasure(value, again=True)
    if key is None:
        return _unpack_watermark(value)
    if key.startswith(_OF_USER):
        return _unpack_user_event(value)
    return _unpack_meeting(value) if key.startswith(_OF_MEETINGS) else _unpack_event(value)


def meeting_message(meeting: Meeting, topic: str, partitions: int) -> tuple[str, Message]:
    """A meeting as a record to the user whom it names: the output, and the message."""
    key = _key(MEETINGS, meeting.user_id)
    return routed(topic, crc32(key) % partitions), (key, _pack(meeting), [])


def erasure_messages(user: bytes, topic: str, partitions: int) -> list[tuple[str, Message]]:
    """That a partition of groups has forgotten a user, to all of them: outputs and messages."""
    return [(routed(topic, number), (_AGAIN_KEY, user, [])) for number in range(partitions)]


class GroupRecords:
    """Renders the records of one source partition.

    Args:
        topic: of groups; ``partitions`` it has.
        kinds: types of groups that are wanted.
    """

    def __init__(self, topic: str, partitions: int, kinds: Iterable[str]) -> None:
        self._outputs = [routed(topic, number) for number in range(partitions)]
        kinds = frozenset(kinds)
        self._shops, self._devices = SHOP in kinds, DEVICE in kinds
        #: Whether `messages` wants news of users, and insistent visits of items.
        self.users, self.items = USER in kinds, ITEM in kinds
        self._told_ms = 0

    def messages(
        self,
        events: Sequence[Event],
        partition: int,
        offsets: np.ndarray,
        gap_ms: np.ndarray,
        session_position: np.ndarray,
        news: UserNews | None = None,
        insistent: np.ndarray | None = None,
    ) -> dict[str, list[Message]]:
        """Messages by output, in the order of the events.

        Args:
            events: M applied ones.
            partition: of the source.
            offsets: (M,) in it.
            gap_ms: (M,) since each user's event before, -1 for the first.
            session_position: (M,) from 1.
            news: of users, about these events.
            insistent: (M,) whether the visit is one of ``stream.insistence``; None for none.
        """
        found: dict[str, list[Message]] = {}
        if not len(events):
            return found
        outputs, count = self._outputs, len(self._outputs)
        told = {place for place, event in enumerate(events) if event.action == "purchase"}
        if insistent is not None and self.items:
            told.update(np.flatnonzero(insistent).tolist())
        for place in sorted(told):
            event = events[place]
            keys = self._keys(event) if event.action == "purchase" else self._keys_of_visit(event)
            if not keys:
                continue
            value = _pack(
                GroupEvent(
                    event.event_time_ms,
                    event.user_id,
                    event.action,
                    partition,
                    int(offsets[place]),
                    event.event_id,
                    event.order_id,
                    event.item_id,
                    event.shop_id,
                    int(gap_ms[place]),
                    int(session_position[place]),
                )
            )
            for key in keys:
                found.setdefault(outputs[crc32(key) % count], []).append((key, value, []))
        if news is not None:
            self._tell_of_users(events, partition, offsets, gap_ms, session_position, news, found)
        self._tell(max(event.event_time_ms for event in events), partition, found)
        return found

    def _tell_of_users(
        self,
        events: Sequence[Event],
        partition: int,
        offsets: np.ndarray,
        gap_ms: np.ndarray,
        session_position: np.ndarray,
        news: UserNews,
        found: dict[str, list[Message]],
    ) -> None:
        place = news.place
        columns = (place, offsets[place], gap_ms[place], session_position[place], *news[1:])
        for at, offset, gap, position, life, orders, took, pace, anomaly, oddity, labelled in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            event = events[at]
            plain = took < 0 and oddity < 0 and event.action != "purchase"
            if plain or announced(event):
                continue
            item = event.item_id or next((line.item_id for line in event.lines or () if line.item_id), None)
            value = _pack(
                UserEvent(
                    event.event_time_ms,
                    event.user_id,
                    event.action,
                    partition,
                    offset,
                    event.event_id,
                    event.order_id,
                    item,
                    event.shop_id,
                    gap,
                    position,
                    life,
                    orders,
                    took,
                    pace,
                    anomaly,
                    oddity,
                    labelled,
                )
            )
            key = _key(USER, event.user_id)
            found.setdefault(self._outputs[crc32(key) % len(self._outputs)], []).append((key, value, []))

    def erase(self, users: Iterable[bytes], found: dict[str, list[Message]]) -> None:
        """Tell every partition of groups whom tombstones have named, behind the ``found`` messages by output."""
        lines: list[Message] = [(ERASURE_KEY, user, []) for user in users]
        for output in self._outputs if lines else ():
            found.setdefault(output, []).extend(lines)

    def _keys(self, event: Event) -> list[bytes]:
        keys = []
        if self._shops and event.shop_id:
            keys.append(_key(SHOP, event.shop_id))
        if event.extra and announced(event):
            return keys
        if self.items:
            if event.item_id:
                keys.append(_key(ITEM, event.item_id))
            for line in (event.lines or ())[:_MOST_LINES]:
                if line.item_id and (key := _key(ITEM, line.item_id)) not in keys:
                    keys.append(key)
        if self._devices and (device := event.device_id or event.ip):
            keys.append(_key(DEVICE, device))
        return keys

    @staticmethod
    def _keys_of_visit(event: Event) -> list[bytes]:
        return [] if event.item_id is None or announced(event) else [_key(ITEM, event.item_id)]

    def _tell(self, latest_ms: int, partition: int, found: dict[str, list[Message]]) -> None:
        if latest_ms < self._told_ms + TELL_MS:
            return
        self._told_ms = latest_ms
        value = _pack(Watermark(partition, latest_ms))
        for output in self._outputs:
            found.setdefault(output, []).append((None, value, []))


def _key(kind: str, name: str) -> bytes:
    key = f"{kind}:{name}".encode()
    if len(key) <= _LONGEST_ID:
        return key
    return f"{kind}:{blake2b(key, digest_size=16).hexdigest()}".encode()
