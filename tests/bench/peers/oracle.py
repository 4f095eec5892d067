"""What an entrant lost and doubled: its input folded here, held against everything that it wrote.

Nothing of any entrant is imported, and no counter is believed. Beside presence, each prediction says which event of its
user's session it is about (``session.index`` and ``session.position``): a state that forgot an event, or took one in
twice, gives itself away there, also where the outputs are complete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from tests.chaos.oracle import read_committed

SESSION_GAP_MS = 1_800_000
Position = tuple[int, int]


class Click(msgspec.Struct):
    """What the fold needs of an event."""

    user_id: str
    event_time_ms: int


class Source(msgspec.Struct):
    """Where a prediction says that its event stood."""

    partition: int
    offset: int


class Session(msgspec.Struct):
    """Which session of the user, and which event of it; from 1."""

    index: int
    position: int


class Said(msgspec.Struct):
    """What the oracle reads of a prediction."""

    user_id: str
    source: Source
    session: Session


@dataclass(frozen=True)
class Verdict:
    """What became of the events.

    Args:
        lost: events without a prediction.
        doubled: events with more than one.
        contradicting: predictions about no event of the input, of another user, or from a state in which events are
            missing or counted twice.
    """

    events: int
    lost: int
    doubled: int
    contradicting: int


def judge(inputs: Iterable[tuple[Position, Click]], outputs: Iterable[Said]) -> Verdict:
    """Compare outputs with the fold of the inputs; those of one partition in the order of their offsets."""
    expected: dict[Position, tuple[str, int, int]] = {}
    users: dict[str, tuple[int, int, int]] = {}
    for position, click in inputs:
        last_ms, index, place = users.get(click.user_id, (0, 0, 0))
        if not index or click.event_time_ms - last_ms > SESSION_GAP_MS:
            index, place = index + 1, 0
        users[click.user_id] = max(last_ms, click.event_time_ms), index, place + 1
        expected[position] = click.user_id, index, place + 1
    seen: Counter[Position] = Counter()
    contradicting = 0
    for said in outputs:
        position = said.source.partition, said.source.offset
        if expected.get(position) != (said.user_id, said.session.index, said.session.position):
            contradicting += 1
        if position in expected:
            seen[position] += 1
    return Verdict(
        events=len(expected),
        lost=len(expected) - len(seen),
        doubled=sum(count > 1 for count in seen.values()),
        contradicting=contradicting,
    )


def judge_topics(bootstrap: str, clicks: str, predictions: str, partitions: int) -> Verdict:
    """``judge`` over two topics as a read_committed consumer sees them; keys beginning with U+0000 are no outputs."""
    decode_click, decode_said = msgspec.json.Decoder(Click).decode, msgspec.json.Decoder(Said).decode

    def position(message: Any) -> Position:
        return message.partition(), message.offset()

    inputs = (
        (position(message), decode_click(message.value()))
        for message in read_committed(bootstrap, clicks, partitions)
    )
    outputs = (
        decode_said(message.value())
        for message in read_committed(bootstrap, predictions, partitions)
        if not message.key().startswith(b"\0")
    )
    return judge(inputs, outputs)
