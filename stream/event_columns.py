"""Events as columns: what the fold reads, names already turned into codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Final

import numpy as np

from models.vocabulary import ActionVocabulary, code_of, event_hash
from stream.events import Event

__all__ = ["EventColumns", "NameCodes", "columns_of"]

_MAX_UNKNOWN: Final = 1000
#: Characters of a name that is remembered: one may have 64 KiB, and 200,000 of these would fill any memory.
LONGEST_REMEMBERED: Final = 256
# Its square is still a float32, which functions of it may go through.
_MOST_EXTRA: Final = 1e18


@dataclass
class EventColumns:
    """N events in offset order, a column each.

    Attributes:
        row: int32, the index of the user's row.
        event_time_ms: int64.
        action: uint8, code in the model's vocabulary.
        category: uint32 code, 0 missing.
        item: uint32 code, 0 missing.
        log_price: float32, log(1 + price) within ±20, NaN missing.
        extra: float32 (N, E), the model's declared extras within ±1e18, NaN missing.
        event_hash: uint64, never 0.
        offset: int64, rising for each user.
        replayed: bool, a dead letter sent again: it is never late.
    """

    row: np.ndarray
    event_time_ms: np.ndarray
    action: np.ndarray
    category: np.ndarray
    item: np.ndarray
    log_price: np.ndarray
    extra: np.ndarray
    event_hash: np.ndarray
    offset: np.ndarray
    replayed: np.ndarray


class NameCodes(dict[str | None, int]):
    """Codes of names, remembered unless they are long; 0 for a missing or empty name.

    Forgets all when it holds ``limit`` names.

    ``unknown_actions`` collects the names of actions that became ``other``, the first 1,000.
    """

    def __init__(self, limit: int = 200_000) -> None:
        super().__init__()
        self.limit = limit
        self.unknown_actions: set[str] = set()

    def __missing__(self, name: str | None) -> int:
        code = code_of(name) if name else 0
        if len(name or "") <= LONGEST_REMEMBERED:
            if len(self) >= self.limit:
                self.clear()
            self[name] = code
        return code


def columns_of(
    events: Sequence[Event],
    rows_index: np.ndarray,
    offsets: np.ndarray,
    replayed: np.ndarray,
    actions: ActionVocabulary,
    codes: NameCodes,
    source_prefix: bytes | Sequence[bytes],
    extras: Sequence[str] = (),
) -> EventColumns:
    """Turn events into columns.

    Args:
        events: N events in offset order.
        rows_index: (N,) index of each user's row.
        offsets: (N,) offsets in the source partition.
        replayed: (N,) whether the record is a dead letter sent again.
        actions: the model's vocabulary; an action that it lacks becomes ``other``.
        codes: cache of name codes.
        source_prefix: ``topic id/partition``, of all events or of each; with the offset it is the id of an event
            that has none.
        extras: names of the model's declared numbers in the events' ``extra``.
    """
    action_codes = {name: code for code, name in enumerate(actions.names)}
    other = len(actions.names) - 1
    action = np.array([action_codes.get(event.action, other) for event in events], np.uint8)
    if len(codes.unknown_actions) < _MAX_UNKNOWN:
        for place in np.flatnonzero(action == other).tolist():
            name = events[place].action
            if name != actions.names[other] and len(codes.unknown_actions) < _MAX_UNKNOWN:
                codes.unknown_actions.add(name[:LONGEST_REMEMBERED])
    prefixes = repeat(source_prefix, len(events)) if isinstance(source_prefix, bytes) else source_prefix
    hashes = [
        event_hash(event.event_id.encode() if event.event_id else b"%b/%d" % (prefix, offset))
        for event, prefix, offset in zip(events, prefixes, offsets.tolist(), strict=True)
    ]
    price = np.array([event.price for event in events], np.float64)  # None becomes NaN
    with np.errstate(divide="ignore"):
        log_price = np.log1p(np.maximum(price, -1.0)).clip(-20.0, 20.0)
    return EventColumns(
        row=np.ascontiguousarray(rows_index, np.int32),
        event_time_ms=np.array([event.event_time_ms for event in events], np.int64),
        action=action,
        category=np.array([codes[event.category_id] for event in events], np.uint32),
        item=np.array([codes[event.item_id] for event in events], np.uint32),
        log_price=log_price.astype(np.float32),
        extra=_extra_of(events, extras),
        event_hash=np.array(hashes, np.uint64),
        offset=np.ascontiguousarray(offsets, np.int64),
        replayed=np.ascontiguousarray(replayed, np.bool_),
    )


def _extra_of(events: Sequence[Event], extras: Sequence[str]) -> np.ndarray:
    columns = np.empty((len(events), len(extras)), np.float32)
    for place, name in enumerate(extras):
        found = [None if event.extra is None else event.extra.get(name) for event in events]
        columns[:, place] = np.array(found, np.float64).clip(-_MOST_EXTRA, _MOST_EXTRA)  # None becomes NaN
    return columns
