"""Events as columns: codes of names, logarithms of prices, ids of events that have none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.vocabulary import DEFAULT_ACTIONS, ActionVocabulary, code_of, event_hash
from stream.event_columns import EventColumns, NameCodes, columns_of
from stream.events import Event

VOCABULARY = ActionVocabulary(DEFAULT_ACTIONS)


def event(**given: object) -> Event:
    return Event(**{"user_id": "u", "event_time_ms": 1_700_000_000_000, "action": "view", **given})


def columns(events: list[Event], codes: NameCodes) -> EventColumns:
    offsets, replayed = np.arange(40, 40 + len(events)), np.zeros(len(events), bool)
    return columns_of(events, np.arange(len(events)), offsets, replayed, VOCABULARY, codes, b"clicks/3")


def test_names_become_codes_and_missing_ones_zero() -> None:
    """Items and categories get their codes, missing and empty ones 0, an unknown action is ``other``."""
    codes = NameCodes()
    made = columns(
        [event(item_id="i", category_id="c"), event(item_id="", action="dance"), event(action="cart")],
        codes,
    )
    assert made.item.tolist() == [code_of("i"), 0, 0]
    assert made.category.tolist() == [code_of("c"), 0, 0]
    assert made.action.tolist() == [0, 10, 4]
    columns([event(action="other")], codes)
    assert codes.unknown_actions == {"dance"}


def test_declared_extras_are_columns_within_what_a_network_can_square() -> None:
    """In their order, NaN where an event has none; undeclared ones are not read."""
    events = [event(extra={"b": 2.5, "c": 9.0}), event(), event(extra={"a": -1e300, "b": 1e300})]
    offsets, replayed = np.arange(3), np.zeros(3, bool)
    made = columns_of(events, np.arange(3), offsets, replayed, VOCABULARY, NameCodes(), b"p", ("a", "b"))
    assert made.extra.dtype == np.float32
    np.testing.assert_array_equal(made.extra, np.float32([[np.nan, 2.5], [np.nan, np.nan], [-1e18, 1e18]]))
    assert columns(events, NameCodes()).extra.shape == (3, 0)


def test_an_event_without_id_is_known_by_its_position() -> None:
    """Its hash is that of topic, partition and offset, never of the content; an empty id is none."""
    made = columns([event(event_id="e9"), event(), event(event_id="")], NameCodes())
    ids = [b"e9", b"clicks/3/41", b"clicks/3/42"]
    assert made.event_hash.tolist() == [event_hash(event_id) for event_id in ids]


@pytest.mark.parametrize(
    ("price", "expected"),
    [(None, math.nan), (0.0, 0.0), (9.0, math.log(10)), (1e300, 20.0), (-1.0, -20.0), (-5.0, -20.0)],
)
def test_prices_become_bounded_logarithms(price: float | None, expected: float) -> None:
    """log(1 + price) within ±20, NaN when there is none, and no warning at or below -1."""
    np.testing.assert_equal(
        columns([event(price=price)], NameCodes()).log_price, np.array([expected], np.float32)
    )


def test_the_cache_of_codes_is_bounded() -> None:
    """When it is full it forgets, and codes stay what they are."""
    codes = NameCodes(limit=3)
    assert [codes[name] for name in "abcdabcd"] == [code_of(name) for name in "abcdabcd"]
    assert len(codes) <= 3


def test_unknown_actions_are_counted_once_and_no_more_than_a_thousand() -> None:
    """A producer that puts free text into ``action`` fills no memory."""
    codes = NameCodes()
    for _ in range(2):
        columns([event(action=f"action {n}") for n in range(1_500)], codes)
    assert len(codes.unknown_actions) == 1_000
    assert "action 999" in codes.unknown_actions


def test_no_events_make_empty_columns() -> None:
    """A micro-batch of rejections and tombstones alone is no error."""
    assert len(columns([], NameCodes()).row) == 0
