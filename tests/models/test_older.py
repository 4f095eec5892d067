"""Laws of the categories that a window has forgotten."""

from __future__ import annotations

import numpy as np
import pytest

from models.columns import WINDOW
from models.older import OLDER, older_before
from models.registry import load_artefact, untrained
from models.runtime import StepEngine
from models.vocabulary import CategoryVocabulary, code_of
from tests.models import synthetic
from tests.models.micro_batches import Shop, in_order_of_time

KNOWN = tuple(f"c{number}" for number in range(40))
MINUTE_MS = 60_000


def wanderer(user: int, count: int) -> list[dict]:
    """Somebody who goes through many categories, known or not, and returns to some after long."""
    rng = np.random.default_rng([7, user])
    now_ms, names, at = 1_700_000_000_000 + user, (*KNOWN, "rare0", "rare1", None), 0
    events = []
    for _ in range(count):
        at = int(rng.integers(len(names))) if rng.random() < 0.3 else at
        events.append(
            {"time_ms": now_ms, "action": "view", "category": names[at], "item": "i", "price": None}
        )
        now_ms += MINUTE_MS
    return events


@pytest.fixture(scope="module")
def columns():
    return synthetic.columns_of([wanderer(user, 40 + 60 * user) for user in range(4)])


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = untrained(
        tmp_path_factory.mktemp("older"), actions=synthetic.ACTIONS, categories=KNOWN, architecture="gru"
    )
    return StepEngine(load_artefact(folder), device="cpu")


def plain(columns, categories) -> tuple[list[list[int]], list[list[int]]]:
    """What a list a user remembers before and after each event, one event at a time."""
    index = [int(categories.index_of(np.array([code], np.uint32))[0]) for code in columns["category"]]
    before, after, held, window = [], [], [], []
    filled = lambda held: [0] * (OLDER - len(held)) + held  # noqa: E731
    for wave, number, code in zip(columns["wave"].tolist(), index, columns["category"].tolist(), strict=True):
        if wave == 0:
            held, window = [], []
        before.append(filled(held))
        window.append((number, code))
        if len(window) > WINDOW:
            gone, gone_code = window.pop(0)
            if gone and gone_code not in [other for _, other in window]:
                held = [*held, gone]
        held = [other for other in held if other != number][-OLDER:]
        after.append(filled(held))
    return before, after


def test_places_hold_the_last_known_categories_that_left_the_window(columns):
    """Each known category once, from when its last event leaves the window until it returns or its place is taken."""
    categories = CategoryVocabulary(KNOWN)
    held = older_before(columns, categories)
    assert held.tolist() == plain(columns, categories)[0]
    assert (held != 0).sum(axis=1).max() == OLDER


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_the_carried_state_remembers_what_a_whole_history_says(engine, columns, at_once):
    """In micro-batches of any size, one user's many events among others' few, the state holds the same places."""
    shop = Shop(engine, columns)
    order = in_order_of_time(columns)
    for start in range(0, len(order), at_once):
        shop.step(order[start : start + at_once])
    ends = np.flatnonzero(np.append(columns["wave"][1:] == 0, True))
    _, after = plain(columns, engine.artefact.categories)
    assert shop.state[:, -OLDER:].astype(int).tolist() == [after[end] for end in ends]
    assert (shop.state[:, -OLDER:] != 0).any(axis=1).sum() >= 3


def test_a_forgotten_category_can_be_named_again(tmp_path):
    """Where the window holds one category, one from before it is likelier than its like that the user never had."""
    folder = untrained(tmp_path, actions=synthetic.ACTIONS, categories=KNOWN)
    artefact = load_artefact(folder)
    artefact.network.heads.category.weight.zero_()  # nothing else tells categories apart
    artefact.network.heads.category.bias.zero_()
    engine = StepEngine(artefact, device="cpu")
    here, gone, never = KNOWN[3], KNOWN[30], KNOWN[31]
    start = {"action": "view", "item": "i", "price": None}
    events = [{"time_ms": 1_700_000_000_000, "category": gone, **start}]
    events += [
        {"time_ms": 1_700_000_000_000 + MINUTE_MS * turn, "category": here, **start} for turn in range(1, 40)
    ]
    result = Shop(engine, synthetic.columns_of([events])).step(np.arange(len(events)))
    listed = dict(
        zip(result.top_category[-1].tolist(), result.top_category_probability[-1].tolist(), strict=True)
    )
    assert result.top_category[-1, :2].tolist() == [code_of(here), code_of(gone)]
    assert listed[code_of(gone)] > 1.2 * listed.get(code_of(never), result.top_category_probability[-1, -1])
