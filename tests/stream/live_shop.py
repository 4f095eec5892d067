"""A simulated shop with attacks and hard negatives, as the second stage hears of it: no model, no broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np

from models.simulator.dirt import Record
from models.simulator.injection import AccountLabel
from models.simulator.simulate import simulate
from models.vocabulary import ActionVocabulary
from stream.event_columns import NameCodes, columns_of
from stream.events import Event, decode_events
from stream.group_detectors import GroupDetector
from stream.group_records import GroupRecords
from stream.group_sources import Sources
from stream.groups_stage import GroupsWork
from stream.injecting import inject_into
from stream.insistence import insistent_visits
from stream.rows import RowLayout
from stream.sessions import FoldRules, fold

__all__ = ["ATTACKS", "NEGATIVES", "alerts_of", "events_of", "shop_log"]

ATTACKS = ("burst", "coattail", "replay", "camouflage", "drip")
NEGATIVES = {"flash_sale": 5, "celebrity": 3, "families": 10, "crawlers": 5, "heavy_buyers": 10}
_NAMES = ("view", "click", "search", "favourite", "cart", "remove", "checkout", "purchase", "other")


def shop_log(
    users: int, events: int, seed: int, attacks: Mapping[str, int], days: float = 14.0
) -> tuple[list[Event], list[AccountLabel]]:
    """A simulated shop's events in time order, and who is who."""
    shop = simulate(users, events, seed, days=days)
    encode = msgspec.json.Encoder().encode
    records = [Record(event.user_id.encode(), encode(event)) for event in shop.events]
    crawlers = {label.user_id for label in shop.labels if label.label == "crawler"}
    mixed = inject_into(records, shop.events, attacks, NEGATIVES, seed, crawlers=crawlers)
    return events_of(mixed.records), mixed.labels


def events_of(records: Sequence[Record]) -> list[Event]:
    """What records hold, in time order."""
    decoded = decode_events([record.key for record in records], [record.value for record in records])
    found = [event for event in decoded if isinstance(event, Event)]
    return sorted(found, key=lambda event: event.event_time_ms)


def told_of(events: Sequence[Event], kinds: Iterable[str]) -> list[Any]:
    """The records of groups that one partition of clicks writes, in their order."""
    layout, codes = RowLayout(len(_NAMES), 4), NameCodes()
    users = {user: place for place, user in enumerate(dict.fromkeys(event.user_id for event in events))}
    rows = layout.blank(len(users))
    render = GroupRecords("groups", 1, kinds)
    told: list[Any] = []
    for first in range(0, len(events), 2048):
        batch = events[first : first + 2048]
        offsets = np.arange(first, first + len(batch))
        columns = columns_of(
            batch,
            np.array([users[event.user_id] for event in batch]),
            offsets,
            np.zeros(len(batch), np.bool_),
            ActionVocabulary(_NAMES[:-1]),
            codes,
            b"T/0",
        )
        folded = fold(rows, columns, FoldRules(), None, bytes(8), len(_NAMES))
        found = folded.columns
        messages = render.messages(
            [batch[place] for place in folded.applied.tolist()],
            0,
            offsets[folded.applied],
            found["gap_ms"],
            found["session_position"],
            None,
            insistent_visits(found),
        )
        told += messages.get("groups/0", [])
    return [SimpleNamespace(key=key, value=value) for key, value, _ in told]


def alerts_of(
    events: Sequence[Event], detectors: Sequence[GroupDetector], late_limit_ms: int = 1_800_000
) -> list[dict[str, Any]]:
    """What the second stage says of a log, an alert a subject and its wider ones, until all is complete."""
    rows: dict[bytes, bytes] = {}
    kinds = frozenset[str]().union(*(each.group_types for each in detectors))
    work = GroupsWork(
        detectors=detectors,
        sources=Sources(1),
        late_limit_ms=late_limit_ms,
        cool_down_ms=7 * 86_400_000,
        alerts_topic="alerts.fraud",
        topic_id="T",
        source="/app/clicks",
        fetch=lambda keys: [rows.get(key) for key in keys],
        told_to=("groups", 1),
    )
    said: list[dict[str, Any]] = []
    records = told_of(events, kinds)
    while records or not work.sources.silent:
        if not records:
            work.sources.quiet = frozenset({0})
        decoded = work.decode(records[:256])
        now_ms = events[-1].event_time_ms + 10**9
        rendered = asyncio.run(work.score(decoded, [rows.get(key) for key in decoded.keys], now_ms))
        for key, row in rendered.rows:
            if row is None:
                rows.pop(key, None)
            else:
                rows[key] = row
        said += [json.loads(value or b"") for _, value, _ in rendered.messages.get("alerts.fraud", ())]
        # What it tells itself stands behind what is there.
        told = rendered.messages.get("groups/0", ())
        records = records[256:] + [SimpleNamespace(key=key, value=value) for key, value, _ in told]
    return said
