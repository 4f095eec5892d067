"""Laws of the two-sided anomaly score."""

from __future__ import annotations

import numpy as np
import pytest

from models.anomaly import BUCKETS, Reference, bucket_of, predictability_statistics
from models.columns import take
from tests.models import synthetic


@pytest.fixture(scope="module")
def people():
    """Columns, surprise and statistics of a crowd."""
    columns = synthetic.shop(300, 6000, seed=2)
    surprise = np.random.default_rng(1).gamma(2, 1, len(columns["row"])).astype(np.float32)
    return columns, surprise, predictability_statistics(columns)


@pytest.fixture(scope="module")
def reference(people) -> Reference:
    columns, surprise, statistics = people
    return Reference.fit(columns["life_events"], surprise, statistics)


def machine(gap_s: int, actions: list[str], items: list[str]):
    """A user who repeats itself, 60 events long."""
    return synthetic.columns_of(
        [
            [
                {
                    "time_ms": 1_700_000_000_000 + 1000 * gap_s * turn,
                    "action": actions[turn % len(actions)],
                    "category": "c1",
                    "item": items[turn % len(items)],
                    "price": None,
                }
                for turn in range(60)
            ]
        ]
    )


def test_statistics_of_hand_written_windows():
    """A loop of three actions over one item, every 10 seconds."""
    columns = machine(10, ["view", "cart", "remove"], ["i"])
    regular, loop, same = predictability_statistics(columns)[-1]
    assert regular == pytest.approx(-np.log(0.02), rel=0.02)  # float16 gaps: the spread is not quite 0
    assert loop == pytest.approx(1.0)
    assert same == pytest.approx(31 / 32)
    many = machine(10, ["view"], [f"i{number}" for number in range(60)])
    assert predictability_statistics(many)[-1, 1] == pytest.approx(0.0)
    assert predictability_statistics(many)[-1, 2] == 0


def test_short_windows_have_no_statistics():
    """Nothing is said of a user's first events."""
    statistics = predictability_statistics(machine(10, ["view"], ["i"]))
    assert np.isnan(statistics[:3]).all()
    assert not np.isnan(statistics[8:]).any()


def test_batch_composition_changes_no_bit_of_the_statistics(people):
    """A user's statistics depend on the user's window alone."""
    columns, _, whole = people
    for chosen in (np.array([41]), np.arange(70), np.arange(500, 900)[::-1]):
        assert predictability_statistics(take(columns, chosen)).tobytes() == whole[chosen].tobytes()


def test_scores_of_the_reference_are_evenly_spread(people, reference):
    """One event in twenty of the reference scores above 0.95, in every bucket of history."""
    columns, surprise, statistics = people
    score = reference.judge(columns["life_events"], surprise, statistics).score
    bucket = bucket_of(columns["life_events"])
    for b in range(BUCKETS):
        assert (score[bucket == b] > 0.95).mean() == pytest.approx(0.05, abs=0.02)


def test_surprise_raises_the_score(reference, people):
    """More surprise never lowers the score, and what nobody in the reference did is near 1."""
    columns, _, statistics = people
    one = np.full(200, 500)
    rising = np.linspace(0, 100, 200, dtype=np.float32)
    score = reference.judge(columns["life_events"][one], rising, statistics[one]).score
    assert (np.diff(score) >= 0).all()
    assert score[-1] > 0.999


@pytest.mark.parametrize(
    "columns",
    [machine(10, ["view", "cart", "remove"], ["i"]), machine(30, ["view"], [f"i{n}" for n in range(60)])],
    ids=["loop over one item", "every item once, by the clock"],
)
def test_machines_are_too_predictable(columns, reference):
    """Bots that no event of theirs gives away are found by their regularity."""
    calm = np.zeros(60, np.float32)
    anomaly = reference.judge(columns["life_events"], calm, predictability_statistics(columns))
    assert (anomaly.too_predictable[32:] > 0.95).all()
    assert (anomaly.score[32:] > 0.95).all()


def test_usual_windows_are_not_predictable(people, reference):
    """Half of the people score below one half."""
    columns, surprise, statistics = people
    predictable = reference.judge(columns["life_events"], surprise, statistics).too_predictable
    assert np.median(predictable) < 0.55


def test_history_is_corrected_for(reference, people):
    """The same surprise means less for a user with a short history, if short histories surprise more."""
    columns, surprise, statistics = people
    louder = np.where(columns["life_events"] < 4, surprise * 5, surprise).astype(np.float32)
    corrected = Reference.fit(columns["life_events"], louder, statistics)
    none = np.full((2, 3), np.nan, np.float32)
    young, old = corrected.judge(np.array([2, 40]), np.full(2, 6.0, np.float32), none).score
    assert young < old


def test_a_reference_survives_the_manifest(reference, people):
    """Writing and reading the tables changes no bit of a score."""
    columns, surprise, statistics = people
    again = Reference.from_dict(reference.as_dict())
    one, other = (r.judge(columns["life_events"], surprise, statistics) for r in (reference, again))
    np.testing.assert_array_equal(one.score, other.score)
