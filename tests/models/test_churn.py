"""Laws of the deadline: where the chance of coming back falls below a threshold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erfc

from models.churn import (
    LAST_SILENCE_S,
    least_silences,
    log_survival,
    return_chance,
    silence_deadlines,
    silence_grid,
)
from models.heads import COMPONENTS, GapMixture

HOUR, DAY = 3_600, 86_400


def mixture(seed: int, users: int) -> np.ndarray:
    """Weights, means and sigmas as the head may give them, from minutes to years."""
    rng = np.random.default_rng(seed)
    weight = rng.dirichlet(np.full(COMPONENTS, 0.5), users).T
    return np.stack(
        [weight, rng.normal(9, 4, (COMPONENTS, users)), rng.uniform(0.05, 3, (COMPONENTS, users))]
    )


def test_survival_is_that_of_the_gap_head() -> None:
    """In logarithms and float64 the same numbers as the head's own, where those are not yet 0."""
    made = mixture(1, 200)
    head = GapMixture(*(torch.tensor(part) for part in made))
    for silence_s in (1.0, 60.0, HOUR, 30 * DAY):
        theirs = head.survival(float(np.log(silence_s))).numpy()
        ours = np.exp(log_survival(made, np.float64(silence_s)))
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-14)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 500), st.sampled_from([HOUR, DAY, 30 * DAY]), st.sampled_from([0.05, 0.3, 0.5, 0.9]))
def test_the_chance_is_below_the_threshold_at_the_deadline_and_not_a_place_before(
    seed: int, horizon_s: int, threshold: float
) -> None:
    """And at the earliest deadline it need only be below it; without a deadline it is not below it at the end.

    Looks between which the chance falls and rises again are overlooked, so the place before is the grid's. The search
    is in single precision, whose rounding moves the chance by less than 2e-5.
    """
    made, grid, rounding = mixture(seed, 20), silence_grid(), 2e-5
    deadline = silence_deadlines(made, horizon_s, threshold)
    found = deadline > 0
    chance = return_chance(made, np.where(found, deadline, LAST_SILENCE_S).astype(float), horizon_s)
    assert (chance[found] < threshold + rounding).all()
    assert (chance[~found] >= threshold - rounding).all()
    later = deadline > 1_800
    place = np.searchsorted(grid, deadline[later])
    assert (grid[place] == deadline[later]).all()
    earlier = return_chance(made[:, :, later], grid[place - 1].astype(float), horizon_s)
    assert (earlier >= threshold - rounding).all()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 500),
    st.sampled_from([HOUR, DAY, 30 * DAY, 365 * DAY]),
    st.sampled_from([0.001, 0.05, 0.3, 0.5, 0.9]),
)
def test_a_least_silence_is_shorter_than_the_deadline(seed: int, horizon_s: int, threshold: float) -> None:
    """Whatever the curve; where no deadline comes it may be any, and no user's depends on others."""
    made = mixture(seed, 200)
    least, deadline = (
        least_silences(made, horizon_s, threshold),
        silence_deadlines(made, horizon_s, threshold),
    )
    assert (least[deadline > 0] < deadline[deadline > 0]).all()
    np.testing.assert_array_equal(least_silences(made[:, :, 7:8], horizon_s, threshold), least[7:8])


def test_most_deadlines_have_a_least_silence() -> None:
    """Of people who come back within days, watched for a month."""
    rng = np.random.default_rng(2)
    made = np.stack(
        [rng.dirichlet([3, 2, 1], 500).T, rng.normal([[3], [8], [13]], 0.5, (3, 500)), np.full((3, 500), 1.5)]
    )
    assert (least_silences(made, 30 * DAY, 0.5) > DAY).mean() > 0.8


def test_the_grid_of_deadlines_is_fine() -> None:
    """Whole seconds, rising by less than 0.3 %, from the first silence to the last."""
    grid = silence_grid()
    assert (grid[0], grid[-1]) == (1_800, LAST_SILENCE_S)
    steps = np.diff(grid[:-128]) / grid[:-129]
    assert 0 < steps.min() <= steps.max() < 0.0033


@pytest.mark.parametrize("threshold", [0.2, 0.5])
@pytest.mark.parametrize("horizon_s", [600.0, 1_800.0])
def test_a_search_second_by_second_finds_the_same_deadline(threshold: float, horizon_s: float) -> None:
    """Brute force on the plain survival function, where it is still a double, over six hours."""
    first_s, last_s, users = 60, 6 * HOUR, 60
    seconds = np.arange(float(first_s), last_s + 1)
    rng = np.random.default_rng(3)
    made = np.stack(
        [
            rng.dirichlet(np.ones(3), users).T,
            rng.normal(6.5, 1.0, (3, users)),
            rng.uniform(0.6, 2.0, (3, users)),
        ]
    )

    def survival(silence_s: np.ndarray) -> np.ndarray:
        z = (np.log(silence_s)[:, None, None] - made[1]) / made[2]
        return (made[0] * 0.5 * erfc(z / np.sqrt(2))).sum(axis=1)

    below = 1 - survival(seconds + horizon_s) / survival(seconds) < threshold
    expected = []
    for mine in below.T:
        falls = np.flatnonzero(~mine[:-1] & mine[1:]) + 1
        rises_in_time = not mine[seconds <= horizon_s].all()
        expected.append((seconds[falls[0]] if len(falls) else 0) if rises_in_time else first_s)
    found = silence_deadlines(made, horizon_s, threshold, first_s=first_s, last_s=last_s)
    assert (found > first_s).sum() > 10
    # A rise or a fall between two looks may be overlooked; of 60 users it is none here.
    grid = silence_grid(first_s, last_s)
    assert ((found == 0) == (np.array(expected) == 0)).all()
    place = np.searchsorted(grid, expected)
    on_grid = np.where(np.array(expected) == 0, 0, grid[np.minimum(place, len(grid) - 1)])
    np.testing.assert_allclose(found, on_grid, rtol=0.0035)  # one place, by rounding


def test_a_deadline_does_not_depend_on_the_users_beside_it() -> None:
    """Alone, in another order or among many: the same second."""
    made = mixture(4, 101)
    together = silence_deadlines(made, 30 * DAY, 0.5)
    order = np.random.default_rng(0).permutation(101)
    np.testing.assert_array_equal(silence_deadlines(made[:, :, order], 30 * DAY, 0.5), together[order])
    alone = [silence_deadlines(made[:, :, [user]], 30 * DAY, 0.5)[0] for user in range(101)]
    np.testing.assert_array_equal(alone, together)


def test_who_comes_seldom_is_waited_for() -> None:
    """The chance of a regular but slow user is low at first: the next visit is not due within the horizon."""
    slow = np.stack([np.ones((1, 1)), np.full((1, 1), np.log(40.0 * DAY)), np.full((1, 1), 0.5)])
    assert return_chance(slow, np.array([1_800.0]), 30 * DAY) < 0.5
    assert silence_deadlines(slow, 30 * DAY, 0.5) > 40 * DAY


def test_who_is_not_expected_at_all_is_missed_at_the_first_moment() -> None:
    """A chance that stays below the threshold: the deadline is the earliest, never the event itself."""
    made = np.stack([np.ones((1, 1)), np.full((1, 1), np.log(3000.0 * DAY)), np.full((1, 1), 0.3)])
    assert silence_deadlines(made, DAY, 0.5).tolist() == [1_800]
    assert silence_deadlines(made, DAY, 0.5, first_s=7_200).tolist() == [7_200]


def test_far_tails_give_numbers() -> None:
    """A narrow component is over after a minute: what its survival function says next month is no longer a double."""
    made = np.stack([np.ones((1, 1)), np.zeros((1, 1)), np.full((1, 1), 0.05)])
    assert return_chance(made, np.array([1e6]), HOUR).tolist() == pytest.approx([1.0])
    assert silence_deadlines(made, HOUR, 0.5)[0] > 30 * DAY
    assert silence_deadlines(made, HOUR, 0.5, last_s=30 * DAY).tolist() == [0]


@pytest.mark.parametrize(
    "wrong", [{"horizon_s": 0}, {"threshold": 0.0}, {"threshold": 1.0}, {"first_s": 0}, {"last_s": 5}]
)
def test_a_deadline_of_nothing_is_refused(wrong: dict[str, float]) -> None:
    """Horizon, threshold and limits are named with what they were."""
    with pytest.raises(ValueError, match="A deadline needs a horizon above 0 s"):
        silence_deadlines(mixture(0, 1), **{"horizon_s": DAY, "threshold": 0.5, **wrong})  # type: ignore[arg-type]


def test_no_user_has_no_deadline() -> None:
    """An empty micro-batch is no special case."""
    assert silence_deadlines(np.zeros((3, COMPONENTS, 0)), DAY, 0.5).shape == (0,)
