"""Laws of the measures and the simple methods."""

from __future__ import annotations

import numpy as np
import pytest

from models.baselines import unigram
from models.baselines.markov import Markov, contexts
from models.columns import take
from models.evaluation import auc, mean_interval
from tests.models import synthetic


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


@pytest.fixture(scope="module")
def columns():
    return synthetic.shop(120, 2400, seed=9)


def test_shares_sum_to_one_and_none_is_impossible(columns):
    """An action that the log lacks keeps a small probability."""
    share = unigram.probabilities(columns, 4)
    assert share.sum() == pytest.approx(1)
    assert (share > 0).all()


def test_contexts_are_the_actions_before(columns):
    """Context numbers, decoded, are the user's own last actions, and never another user's."""
    context = contexts(columns, 4, 2)
    for event in range(0, len(context), 37):
        newest, older = context[event] % 5, context[event] // 5
        turn = columns["wave"][event]
        assert newest == (columns["action"][event - 1] if turn >= 1 else 4)
        assert older == (columns["action"][event - 2] if turn >= 2 else 4)


def test_chains_are_distributions_and_deeper_ones_know_more(columns):
    """Every context's probabilities sum to 1; the shop's cart needs two views, which order 1 cannot see."""
    fit, tune = (take(columns, np.flatnonzero(columns["row"] % 2 == side)) for side in (0, 1))
    later = tune["wave"] > 0
    loss = []
    for order in (1, 2):
        chain = Markov.fit(fit, tune, 4, order)
        np.testing.assert_allclose(chain.tables[-1].sum(axis=1), 1)
        loss.append(chain.losses(tune)[later].mean())
    assert loss[1] < loss[0] - 0.05
