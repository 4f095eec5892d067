"""Laws of the simple methods."""

from __future__ import annotations

import numpy as np
import pytest

from models.baselines import NEXT_ACTION, unigram
from models.baselines.markov import Markov, contexts
from models.columns import Columns, take
from models.split import Split
from models.training_log import TrainingLog
from models.vocabulary import ActionVocabulary
from tests.models import synthetic


@pytest.fixture(scope="module")
def columns():
    return synthetic.shop(120, 2400, seed=9)


def written(*users: str, gap_ms: int = 10_000) -> Columns:
    """Users as their actions in a row, ten seconds apart; ``cart:shoes`` has a category."""
    histories = []
    for text in users:
        words = [word.partition(":") for word in text.split()]
        histories.append(
            [
                {"time_ms": turn * gap_ms, "action": a, "category": c or None, "item": None, "price": None}
                for turn, (a, _, c) in enumerate(words)
            ]
        )
    return synthetic.columns_of(histories)


def split_by_hand(fit: Columns, tune: Columns, test: Columns) -> Split:
    log = TrainingLog(fit, ["u"], {}, ActionVocabulary(synthetic.ACTIONS))
    return Split(log, fit, tune, test)


def split_of_rows(columns: Columns) -> Split:
    """Two users of four fit, one tunes, one tests."""
    parts = []
    for rows in ((0, 1), (2,), (3,)):
        part = take(columns, np.flatnonzero(np.isin(columns["row"] % 4, rows)))
        part["row"] = (np.cumsum(part["wave"] == 0) - 1).astype(np.int32)
        parts.append(part)
    return split_by_hand(*parts)


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


def test_deeper_chains_know_more(columns):
    """The shop's cart needs two views, which order 1 cannot see."""
    split = split_of_rows(columns)
    later = split.test["wave"] > 0
    loss = [Markov.fit(split.fit, split.tune, 4, k).losses(split.test)[later].mean() for k in (1, 2)]
    assert loss[1] < loss[0] - 0.05


def test_a_chain_counts_what_followed():
    """After a view: two carts, one purchase of three; smoothing adds the shorter context's shares."""
    fit = written("view cart", "view cart", "view purchase")
    chain = Markov.fit(fit, written("view"), 4, order=1)
    share = np.array([4, 3, 2, 1]) / 10
    mass = chain.orders[0].mass
    expected = (np.array([0, 2, 1, 0]) + mass * share) / (3 + mass)
    np.testing.assert_allclose(chain.probabilities(written("view view"))[1], expected)


def test_an_unseen_context_backs_off_to_the_shorter_one():
    """Nobody bought twice in a row: after that, what follows one purchase counts."""
    fit = written("view purchase view", "cart purchase view")
    chains = [Markov.fit(fit, fit, 4, order) for order in (1, 2)]
    test = written("purchase purchase view")
    one, two = (chain.probabilities(test)[2] for chain in chains)
    np.testing.assert_allclose(one, two)


@pytest.mark.parametrize("name", NEXT_ACTION)
def test_next_actions_are_distributions(columns, name):
    """Each test event has one, and no action is impossible."""
    split = split_of_rows(columns)
    p_NA = NEXT_ACTION[name](split)
    assert p_NA.shape == (len(split.test["row"]), 4)
    np.testing.assert_allclose(p_NA.sum(axis=1), 1, rtol=1e-9)
    assert (p_NA > 0).all()
