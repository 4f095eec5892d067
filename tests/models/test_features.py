"""Laws of the inputs of a network."""

from __future__ import annotations

from dataclasses import replace
from math import log, pi, sin

import numpy as np
import pytest

from models.columns import take
from models.errors import ModelError
from models.features import (
    FEATURES,
    ITEM_BUCKETS,
    declared,
    extras_of,
    features_of,
    inputs,
    item_buckets,
    missing_features,
    numeric_width,
    raw_inputs,
)
from tests.models import synthetic


def place_of(name: str, n_actions: int) -> int:
    """The first column of a feature."""
    at = 0
    for feature in FEATURES:
        if feature.name == name:
            return at
        if feature.make is not None:
            at += n_actions if feature.width < 0 else feature.width
    raise KeyError(name)


@pytest.fixture(scope="module")
def spec(artefact):
    return artefact.features


def value(columns, spec, event: int, name: str, offset: int = 0) -> float:
    return float(raw_inputs(columns, spec).x_NF[event, place_of(name, len(spec.actions)) + offset])


def test_batch_composition_changes_no_bit_of_the_inputs(columns, spec):
    """An event has the same inputs alone, in a crowd, and in any order."""
    whole = inputs(columns, spec).x_NF.numpy()
    for chosen in (
        np.array([7]),
        np.arange(64),
        np.arange(100)[::-1],
        np.flatnonzero(columns["action"] == 1),
    ):
        part = inputs(take(columns, chosen), spec).x_NF.numpy()[: len(chosen)]
        assert part.tobytes() == whole[chosen].tobytes()


def test_hand_written_event_has_hand_written_features(spec):
    """Each kind of feature, computed by hand."""
    noon = 1_700_049_600_000  # Wednesday, 15 November 2023, 12:00 UTC
    events = [
        {"time_ms": noon, "action": "view", "category": "c1", "item": "a", "price": None},
        {"time_ms": noon + 60_000, "action": "cart", "category": "c1", "item": "a", "price": np.expm1(4.0)},
        {"time_ms": noon + 120_000, "action": "view", "category": None, "item": "b", "price": np.expm1(4.0)},
    ]
    columns = synthetic.columns_of([events])
    assert value(columns, spec, 0, "first_event") == 1
    assert value(columns, spec, 0, "log_gap") == 0
    assert value(columns, spec, 0, "price_missing") == 1
    assert value(columns, spec, 0, "price") == 0
    assert value(columns, spec, 0, "action_age") == 0
    assert value(columns, spec, 0, "life_actions") == pytest.approx(log(2), rel=1e-6)
    assert value(columns, spec, 1, "log_gap") == pytest.approx(log(61), rel=1e-6)
    assert value(columns, spec, 1, "price") == pytest.approx(1.0, abs=1e-6)  # the median log price is 3
    assert value(columns, spec, 1, "repeat_item") == 1
    assert value(columns, spec, 1, "session_actions") == pytest.approx(log(2), rel=1e-6)
    assert value(columns, spec, 2, "category_missing") == 1
    assert value(columns, spec, 2, "repeat_item") == 0
    assert value(columns, spec, 2, "action_age", offset=0) == pytest.approx(log(122), rel=1e-6)
    assert value(columns, spec, 2, "action_age", offset=2) == 0
    assert value(columns, spec, 2, "life_actions", offset=0) == pytest.approx(log(3), rel=1e-6)
    assert value(columns, spec, 2, "life_events") == pytest.approx(log(4), rel=1e-6)
    assert value(columns, spec, 0, "hour", offset=1) == pytest.approx(-1.0, abs=1e-6)


def test_what_an_event_does_not_tell_has_the_table_s_default(spec):
    """A first event of an unknown action, at the epoch, with nothing else."""
    there = replace(spec, extras=("value",))
    event = {"time_ms": 0, "action": "dance", "category": None, "item": None, "price": None}
    columns = {**synthetic.columns_of([[event]]), "extra": np.full((1, 1), np.nan, np.float32)}
    made, other = raw_inputs(columns, there), len(spec.actions) - 1
    alone = [float(action == other) for action in range(len(spec.actions))]
    # The shop's shares are all a quarter here, of which four events' worth are in the user's.
    habit = [log((1 + one) / 5 * 4) for one in alone]
    expected = {
        "log_gap": [0.0],
        "session_position": [log(2)],
        "life_events": [log(2)],
        "session_actions": [log(2) * one for one in alone],
        "life_actions": [log(2) * one for one in alone],
        "action_age": [0.0] * len(alone),
        "hour": [0.0, 1.0],
        "weekday": [0.0, 1.0],
        "price": [0.0],
        "price_missing": [1.0],
        "category_missing": [1.0],
        "first_event": [1.0],
        "new_session": [1.0],
        "repeat_item": [0.0],
        "repeat_category": [0.0],
        "category_run": [0.0],
        "category_share": [0.0],
        "window_actions": alone,
        "habit": habit,
        "next_habit": habit,
        "extra.value": [0.0],
        "extra_missing.value": [1.0],
    }
    assert [*expected] == [feature.name for feature in features_of(("value",)) if feature.make is not None]
    assert made.x_NF[0].tolist() == pytest.approx([n for numbers in expected.values() for n in numbers])
    assert made.action_NL[0].tolist() == [other] + [other + 1] * 4
    assert (made.category_N[0], made.item_N[0]) == (0, 0)


def test_staying_with_a_category_is_counted(spec):
    """How many of the last events in a row had it, and how much of the window: also beyond what the window holds."""
    names = ["c1", "c2", "c1", "c1", None, "c1", *["c3"] * 40]
    events = [
        {"time_ms": 1000 * turn, "action": "view", "category": name, "item": None, "price": None}
        for turn, name in enumerate(names)
    ]
    columns = synthetic.columns_of([events])
    runs, shares = [1, 1, 1, 2, 0, 1, 1, 2, 3], [1, 1, 2, 3, 0, 4, 1, 2, 3]
    for event, (run, share) in enumerate(zip(runs, shares, strict=True)):
        assert value(columns, spec, event, "category_run") == pytest.approx(log(1 + run), rel=1e-6)
        assert value(columns, spec, event, "category_share") == share / 32
    assert value(columns, spec, 45, "category_run") == pytest.approx(log(33), rel=1e-6)
    assert value(columns, spec, 45, "category_share") == 1


def test_hours_are_the_shop_s(spec):
    """The offset moves the clock: noon UTC is 20 o'clock at UTC+8."""
    events = [{"time_ms": 1_700_049_600_000, "action": "view", "category": None, "item": None, "price": None}]
    columns = synthetic.columns_of([events])
    there = replace(spec, utc_offset_s=8 * 3600)
    assert value(columns, there, 0, "hour") == pytest.approx(sin(2 * pi * 20 / 24), abs=1e-6)


def test_unseen_categories_share_hashed_embeddings(columns, spec):
    """A frequent category has its own index, a rare one a bucket, a missing one index 0."""
    index = inputs(columns, spec).category_N.numpy()[: len(columns["row"])]
    known = spec.categories.index_of(columns["category"])
    rare = (known == 0) & (columns["category"] != 0)
    assert rare.any()
    np.testing.assert_array_equal(index[known > 0], known[known > 0])
    assert (index[columns["category"] == 0] == 0).all()
    assert (index[rare] > len(spec.categories)).all()
    assert index.max() < 1 + len(spec.categories) + 64


def test_habits_are_the_user_s_own_shares_against_the_shop_s(spec):
    """Counts of life, and of what followed the current action in the window, smoothed by what is known more widely."""
    names = ["view", "cart", "view", "view", "purchase", "view"]
    events = [
        {"time_ms": 60_000 * turn, "action": name, "category": None, "item": None, "price": None}
        for turn, name in enumerate(names)
    ]
    columns = synthetic.columns_of([events])
    shop = spec.action_share
    life = (np.array([4, 1, 1, 0]) + 4 * shop) / (6 + 4)
    habit = [value(columns, spec, 5, "habit", offset) for offset in range(4)]
    assert habit == pytest.approx(np.log(life / shop), abs=1e-5)
    followers = [value(columns, spec, 5, "next_habit", offset) for offset in range(4)]
    assert followers == pytest.approx(np.log((np.array([1, 1, 1, 0]) + 4 * life) / (3 + 4) / shop), abs=1e-5)
    shares = [value(columns, spec, 5, "window_actions", offset) for offset in range(4)]
    assert shares == pytest.approx([4 / 6, 1 / 6, 1 / 6, 0])
    first = [value(columns, spec, 0, "next_habit", offset) for offset in range(4)]
    assert first == pytest.approx([value(columns, spec, 0, "habit", offset) for offset in range(4)])


def test_window_shares_reach_31_events_back(spec):
    """Longer histories lose their oldest events, shorter ones have no empty slots counted."""
    names = ["cart"] * 2 + ["view"] * 31
    events = [
        {"time_ms": 60_000 * turn, "action": name, "category": None, "item": None, "price": None}
        for turn, name in enumerate(names)
    ]
    columns = synthetic.columns_of([events])
    assert value(columns, spec, 31, "window_actions", offset=1) == pytest.approx(1 / 31)
    assert value(columns, spec, 32, "window_actions") == 1
    # 30 of the views of the window came after a view: the first view's event before it was a cart.
    shop = float(spec.action_share[0])
    views = np.log((30 + 4 * (31 + 4 * shop) / (33 + 4)) / (30 + 4) / shop)
    assert value(columns, spec, 32, "next_habit") == pytest.approx(views, abs=1e-5)


def test_last_actions_begin_with_the_event_s_own(spec):
    """The newest first, and an index of their own where the user had no event yet."""
    names = ["view", "cart", "purchase"]
    events = [
        {"time_ms": 60_000 * turn, "action": name, "category": None, "item": None, "price": None}
        for turn, name in enumerate(names)
    ]
    index = inputs(synthetic.columns_of([events]), spec).action_NL.numpy()
    assert index[2].tolist() == [2, 1, 0, 4, 4]
    assert index[0].tolist() == [0, 4, 4, 4, 4]


def test_items_of_several_training_users_have_embeddings_of_their_own(columns):
    """Only their buckets are known; others are read as unseen, and no item is index 0."""
    known = item_buckets(columns, least_users=3)
    users = {}
    for item, row in zip(columns["item"].tolist(), columns["row"].tolist(), strict=True):
        users.setdefault(item, set()).add(row)
    assert set(np.flatnonzero(known)) == {
        item % ITEM_BUCKETS for item, who in users.items() if item and len(who) >= 3
    }


def test_unseen_and_missing_items_are_told_apart(columns, spec):
    """A known bucket, the shared fallback, and nothing at all."""
    changed = {**columns, "item": np.arange(len(columns["item"]), dtype=np.uint32)}
    index = inputs(changed, spec).item_N.numpy()
    assert index[0] == 0
    for item in (1, 2, 500, 501):
        assert index[item] == (item + 2 if spec.known_items[item] else 1)


def test_an_extra_is_read_on_a_scale_of_its_size_and_a_missing_one_is_0_with_a_flag(spec):
    """Asinh grows like a logarithm on both sides of 0; the table has a line for the value and one for the flag."""
    events = [{"time_ms": 60_000, "action": "view", "category": None, "item": None, "price": None}] * 4
    columns = synthetic.columns_of([events])
    columns["extra"] = np.float32([[0, 1], [-1000, np.nan], [1e18, -1e18], [np.nan, 5]])
    there = replace(spec, extras=("duration", "value"))
    x_NF = raw_inputs(columns, there).x_NF[:4, numeric_width(len(spec.actions)) :].numpy()
    values = np.arcsinh(np.nan_to_num(columns["extra"].astype(np.float64)))
    np.testing.assert_allclose(x_NF[:, :2], values, rtol=1e-6)
    assert x_NF[:, 2:].tolist() == [[0, 0], [0, 1], [0, 0], [1, 0]]
    assert [feature["name"] for feature in declared(there.extras)][-4:] == [
        *("extra.duration", "extra.value"),
        *("extra_missing.duration", "extra_missing.value"),
    ]
    assert extras_of(declared(there.extras)) == there.extras
    assert missing_features(declared(there.extras)) == []


def test_columns_with_other_extras_than_the_model_s_are_refused(columns, spec):
    """The sentence names the extras that the model declares."""
    with pytest.raises(ModelError, match=r"hold 0 extras, the model declares 1 \(value\)"):
        inputs(columns, replace(spec, extras=("value",)))


def test_inputs_are_finite_whatever_the_event(spec):
    """Absurd but valid events give finite inputs."""
    events = [{"time_ms": -(2**50), "action": "view", "category": "x", "item": None, "price": np.expm1(20.0)}]
    events.append({**events[0], "time_ms": 2**50, "price": None})
    assert np.isfinite(inputs(synthetic.columns_of([events]), spec).x_NF.numpy()).all()


def test_the_table_says_what_is_missing():
    """Features are known by name and version."""
    assert missing_features([{"name": "price", "version": 1}, {"name": "dwell_s", "version": 1}]) == [
        "dwell_s"
    ]
    assert missing_features([{"name": "price", "version": 2}]) == ["price"]
    assert numeric_width(11) == 82
