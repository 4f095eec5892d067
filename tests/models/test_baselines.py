"""Laws of the simple methods."""

from __future__ import annotations

import numpy as np
import pytest

from models.baselines import GAP, NEXT_ACTION, NEXT_CATEGORY, PURCHASE, unigram
from models.baselines.adaptive_markov import own_counts
from models.baselines.categories import recency
from models.baselines.gaps import running_median_s
from models.baselines.markov import Markov, contexts
from models.columns import Columns, blank_columns, take
from models.split import Split
from models.training_log import TrainingLog
from models.vocabulary import ActionVocabulary, code_of
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


def test_own_counts_are_of_this_user_this_context_and_earlier():
    """Counted by hand after the same last action; the second user starts from nothing."""
    columns = written("view cart view cart view view", "view cart view")
    counts = own_counts(columns, 4, 1)[:, :2]
    assert counts.tolist() == [[0, 0], [0, 0], [0, 0], [0, 1], [1, 0], [0, 2], [0, 0], [0, 0], [0, 0]]
    assert own_counts(columns, 4, 0)[5].tolist() == [3, 2, 0, 0]


def test_a_user_s_habits_outweigh_everybody_s(columns):
    """Among users who each repeat one action, ten of it make the eleventh all but certain."""
    habits = [" ".join([action] * 12) for action in ("view", "cart", "purchase")] * 4
    users = written(*habits)
    p_NA = NEXT_ACTION["adaptive_markov_2"](split_by_hand(users, users, users))
    later = users["wave"] == 10
    assert (p_NA[later, users["action"][later]] > 0.9).all()


@pytest.mark.parametrize("name", ["session_knn", "logistic_regression", "lightgbm"])
def test_what_always_follows_is_learned(name):
    """View, cart, purchase in a circle leave no doubt."""
    users = written(*["view cart purchase " * 10] * 30)
    p_NA = NEXT_ACTION[name](split_by_hand(users, users, users))
    later = users["wave"] >= 3
    assert (p_NA[later, users["action"][later]] > 0.95).all()


def test_purchases_are_foreseen_where_a_cart_gives_them_away():
    """Sessions with a cart end in a purchase, others do not: before it, every regression ranks all rightly."""
    users = written(*["view cart view purchase", "view view view view"] * 60)
    # One more event a day later closes the sessions before it.
    users["event_time_ms"][-1] += 100_000_000
    split = split_by_hand(users, users, users)
    at_third = users["wave"] == 2
    bought = users["action"][np.flatnonzero(at_third) + 1] == 2
    for name in ("logistic_regression", "lightgbm"):
        p_N = PURCHASE[name](split)[at_third]
        assert p_N[bought].min() > 0.8
        assert p_N[~bought].max() < 0.2
    # 60 times three events before the purchase, of 480 less the last, open, session's one.
    rate = PURCHASE["constant"](split)
    assert rate == pytest.approx(np.full(480, 180.5 / 480), abs=0.01)


def test_gaps_are_medians_by_hand():
    """Of all, of those after the same action, and of the user's own once the tuning users trust them."""
    fit = written("view view cart view view")
    fit["gap_ms"] = np.array([-1, 2_000, 4_000, 60_000, 8_000])
    split = split_by_hand(fit, take(fit, np.arange(0)), fit)
    assert GAP["global_median"](split).tolist() == [6.0] * 5
    assert GAP["type_median"](split).tolist() == [4.0, 4.0, 60.0, 4.0, 4.0]
    median_s, count = running_median_s(fit)
    assert median_s.tolist() == [0, 2, 3, 4, 6]
    assert count.tolist() == [0, 1, 2, 3, 4]
    quick = written("view " * 30, "view " * 30)
    quick["gap_ms"] = np.where(quick["wave"] == 0, -1, np.where(quick["row"] == 0, 1_000, 90_000))
    own = GAP["user_median"](split_by_hand(quick, quick, quick))
    assert own[1:30].tolist() == [1.0] * 29
    assert own[31:].tolist() == [90.0] * 29


def test_recent_categories_come_first_then_the_frequent_ones():
    """Newest first, each once, never the event's own unless it was there before; events without one change nothing."""
    fit = written("view:hats view:hats view:hats view:shoes view:shoes view:belts")
    test = written("view:shoes view:gloves view view:shoes view:hats")
    codes = {name: code_of(name) for name in ("hats", "shoes", "belts", "gloves")}
    lists = recency(split_by_hand(fit, fit, test))
    named = [
        [next(n for n, c in codes.items() if c == code) for code in row if code] for row in lists.tolist()
    ]
    assert named == [
        ["hats", "shoes", "belts"],
        ["shoes", "hats", "belts"],
        ["gloves", "shoes", "hats", "belts"],
        ["gloves", "shoes", "hats", "belts"],
        ["shoes", "gloves", "hats", "belts"],
    ]
    popular = NEXT_CATEGORY["popularity"](split_by_hand(fit, fit, test))
    assert popular.shape == (5, 20)
    assert popular[4, :4].tolist() == [codes["hats"], codes["shoes"], codes["belts"], 0]


ALL = [(kind, name) for kind in (NEXT_ACTION, GAP, PURCHASE, NEXT_CATEGORY) for name in kind]
NAMES = [f"{label}-{name}" for label, kind in
         zip(("action", "gap", "purchase", "category"), (NEXT_ACTION, GAP, PURCHASE, NEXT_CATEGORY), strict=True)
         for name in kind]  # fmt: skip


@pytest.fixture(scope="module")
def small():
    """Histories of some 40 users, events as dictionaries, so that the fold can be repeated with other futures."""
    lengths = np.random.default_rng(3).integers(6, 30, 40)
    return [synthetic.events_of(user, int(count), seed=8) for user, count in enumerate(lengths)]


@pytest.mark.parametrize(("kind", "name"), ALL, ids=NAMES)
def test_nothing_of_the_future_is_seen(small, kind, name):
    """Test users whose later events are others get the same predictions up to there.

    A prediction made before an event may not see the event either; one made after it may.
    """
    fit, tune = synthetic.columns_of(small[:20]), synthetic.columns_of(small[20:30])
    kept = 4
    changed = [
        events[:kept]
        + [
            event | {"action": "purchase", "category": "c1", "time_ms": event["time_ms"] + 7_000_000}
            for event in events[kept:]
        ]
        for events in small[30:]
    ]
    before, after = (synthetic.columns_of(histories) for histories in (small[30:], changed))
    seen = kept + 1 if kind in (NEXT_ACTION, NEXT_CATEGORY) else kept
    predicted = [
        np.asarray(kind[name](split_by_hand(fit, tune, test)))[test["wave"] < seen]
        for test in (before, after)
    ]
    # Products of matrices with other rows beside them may differ in the last bits.
    np.testing.assert_allclose(*predicted, rtol=1e-9)
    assert len(predicted[0]) == 10 * seen


@pytest.mark.parametrize(("kind", "name"), ALL, ids=NAMES)
def test_test_users_change_nothing_that_was_fitted(small, kind, name):
    """Some of the test users get the same predictions whether the others are there or not."""
    fit, tune = synthetic.columns_of(small[:20]), synthetic.columns_of(small[20:30])
    few, all_ = synthetic.columns_of(small[30:33]), synthetic.columns_of(small[30:])
    alone, among = (np.asarray(kind[name](split_by_hand(fit, tune, test))) for test in (few, all_))
    # See above.
    np.testing.assert_allclose(alone, among[: len(alone)], rtol=1e-9)


@pytest.mark.parametrize("name", NEXT_ACTION)
def test_next_actions_are_distributions(columns, name):
    """Each test event has one, and no action is impossible."""
    split = split_of_rows(columns)
    p_NA = NEXT_ACTION[name](split)
    assert p_NA.shape == (len(split.test["row"]), 4)
    np.testing.assert_allclose(p_NA.sum(axis=1), 1, rtol=1e-9)
    assert (p_NA > 0).all()


def degenerate() -> dict[str, Split]:
    plain, one, varied = (
        written("view " * 8, "view " * 5),
        written("view"),
        written("view cart view", "cart view"),
    )
    empty = blank_columns(0, 4)
    strange = written("view:c1 cart view " * 4, "other purchase other")
    return {
        "one action": split_by_hand(plain, plain, plain),
        "one user with one event": split_by_hand(one, one, one),
        "nobody to fit on": split_by_hand(empty, varied, strange),
        "nobody to tune on": split_by_hand(varied, empty, strange),
        "nobody to test": split_by_hand(strange, strange, empty),
        "nobody at all": split_by_hand(empty, empty, empty),
        "no purchases, no categories": split_by_hand(varied, varied, varied),
        "test users do what nobody did": split_by_hand(plain, plain, strange),
        "tuning users do what nobody did": split_by_hand(varied, strange, strange),
    }


@pytest.mark.parametrize("case", degenerate())
@pytest.mark.parametrize(("kind", "name"), ALL, ids=NAMES)
def test_degenerate_logs_give_finite_numbers(case, kind, name):
    """Of the right shape, and probabilities where they are due."""
    split = degenerate()[case]
    predicted = np.asarray(kind[name](split))
    n = len(split.test["row"])
    assert predicted.shape == {id(NEXT_ACTION): (n, 4), id(NEXT_CATEGORY): (n, 20)}.get(id(kind), (n,))
    assert np.isfinite(predicted).all()
    if kind is NEXT_ACTION:
        np.testing.assert_allclose(predicted.sum(axis=1), 1, rtol=1e-9)
        assert (predicted > 0).all()
    if kind is PURCHASE:
        assert ((predicted > 0) & (predicted < 1)).all()


@pytest.mark.parametrize("name", ["lightgbm", "logistic_regression", "session_knn"])
def test_the_same_log_gives_the_same_predictions(columns, name):
    """To the bit."""
    split = split_of_rows(columns)
    np.testing.assert_array_equal(NEXT_ACTION[name](split), NEXT_ACTION[name](split))
