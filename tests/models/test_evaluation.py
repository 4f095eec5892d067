"""Laws of the measures."""

from __future__ import annotations

import numpy as np
import pytest

from models.evaluation import auc, mean_interval


def test_intervals_resample_users_not_events():
    """A hundred copies of each user's event leave the interval as wide as one."""
    rng = np.random.default_rng(0)
    loss, user = rng.normal(size=200), np.arange(200)
    one = mean_interval(loss, user)
    many = mean_interval(np.repeat(loss, 100), np.repeat(user, 100))
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=1e-6)
    assert one.low < one.value < one.high
    assert (one.n, many.n) == (200, 20_000)


def test_intervals_hold_the_truth_most_of_the_time():
    """Of 200 samples, about 95 % of the intervals hold the true mean."""
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(200):
        interval = mean_interval(rng.normal(size=120), np.repeat(np.arange(40), 3), seed=seed)
        held += interval.low <= 0 <= interval.high
    assert 180 <= held <= 199


def test_auc_is_the_chance_to_rank_a_positive_above_a_negative():
    """By counting pairs; ties count half."""
    rng = np.random.default_rng(2)
    label, score = rng.random(80) < 0.3, rng.integers(0, 10, 80)
    pairs = [(s > t) + 0.5 * (s == t) for s in score[label] for t in score[~label]]
    assert auc(label, score) == pytest.approx(np.mean(pairs))
    assert np.isnan(auc(np.zeros(5, bool), np.arange(5)))
