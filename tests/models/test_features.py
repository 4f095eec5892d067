"""Laws of the inputs of a network."""

from __future__ import annotations

from dataclasses import replace
from math import log, pi, sin

import numpy as np
import pytest

from models.columns import take
from models.features import FEATURES, inputs, missing_features, numeric_width, raw_inputs
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
    assert value(columns, spec, 0, "action_never") == 1
    assert value(columns, spec, 1, "log_gap") == pytest.approx(log(61), rel=1e-6)
    assert value(columns, spec, 1, "price") == pytest.approx(1.0, abs=1e-6)  # the median log price is 3
    assert value(columns, spec, 1, "repeat_item") == 1
    assert value(columns, spec, 1, "session_actions") == pytest.approx(log(2), rel=1e-6)
    assert value(columns, spec, 2, "category_missing") == 1
    assert value(columns, spec, 2, "repeat_item") == 0
    assert value(columns, spec, 2, "action_age", offset=0) == pytest.approx(log(121), rel=1e-6)
    assert value(columns, spec, 2, "action_never", offset=2) == 1
    assert value(columns, spec, 2, "life_events") == pytest.approx(log(4), rel=1e-6)
    assert value(columns, spec, 0, "hour_cos") == pytest.approx(-1.0, abs=1e-6)


def test_hours_are_the_shop_s(spec):
    """The offset moves the clock: noon UTC is 20 o'clock at UTC+8."""
    events = [{"time_ms": 1_700_049_600_000, "action": "view", "category": None, "item": None, "price": None}]
    columns = synthetic.columns_of([events])
    there = replace(spec, utc_offset_s=8 * 3600)
    assert value(columns, there, 0, "hour_sin") == pytest.approx(sin(2 * pi * 20 / 24), abs=1e-6)


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
    assert numeric_width(11) == 47
