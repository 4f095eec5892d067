"""Laws of the split by user and of the events that count."""

from __future__ import annotations

import numpy as np
import pytest

from models.split import Split, at_lag, cross_fitted, cross_splits, next_gap_s, scored_events, split_of, until
from models.training_log import TrainingLog
from models.vocabulary import ActionVocabulary
from tests.models import synthetic


@pytest.fixture(scope="module")
def log() -> TrainingLog:
    columns = synthetic.shop(60, 900, seed=2)
    users = [f"u{row}" for row in range(60)]
    return TrainingLog(columns, users, {}, ActionVocabulary(synthetic.ACTIONS))


def test_every_event_is_in_one_part_and_no_user_in_two(log):
    """The parts' events together are the log's, by their times."""
    split = split_of(log, (50, 60))
    times = [set(part["event_time_ms"].tolist()) for part in (split.fit, split.tune, split.test)]
    assert sum(len(part["row"]) for part in (split.fit, split.tune, split.test)) == len(log.columns["row"])
    assert set.union(*times) == set(log.columns["event_time_ms"].tolist())
    share = log.shares()
    assert len(np.unique(split.test["row"])) == (share >= 60).sum()


def test_folds_test_every_event_once_and_share_no_user(log):
    """Five folds cover the log; training, tuning and test users of a fold are different people."""
    seen = np.zeros(len(log.columns["row"]), int)
    for split, at in cross_splits(log):
        seen[at] += 1
        np.testing.assert_array_equal(split.test["event_time_ms"], log.columns["event_time_ms"][at])
        parts = [np.unique(part["row"]).size for part in (split.fit, split.tune, split.test)]
        assert parts == [36, 12, 12]
        assert len(split.fit["row"]) + len(split.tune["row"]) + len(at) == len(seen)
    assert (seen == 1).all()


def test_cross_fitted_predictions_stand_at_their_events(log):
    """A function that hands back the test events' times gives the log's times, whatever the shape."""
    times = cross_fitted(log, lambda split: split.test["event_time_ms"])
    np.testing.assert_array_equal(times, log.columns["event_time_ms"])
    counts = cross_fitted(log, lambda split: split.test["action_life"])
    np.testing.assert_array_equal(counts, log.columns["action_life"])


def test_folds_do_not_depend_on_the_order_of_the_users(log):
    """The same people meet in the same folds when the log lists them differently."""

    def tested(ids: list[str]) -> list[set[str]]:
        moved = TrainingLog(log.columns, ids, {}, log.actions)
        return [{ids[row] for row in log.columns["row"][at]} for _, at in cross_splits(moved)]

    assert tested(log.user_ids) == tested(log.user_ids[::-1])


def test_lags_never_reach_into_another_user(log):
    """The action three events ago, where there is one."""
    columns = log.columns
    before = at_lag(columns["action"].astype(int), columns, 3, 99)
    for event in range(0, len(before), 17):
        at = event - 3
        assert before[event] == (columns["action"][at] if columns["wave"][event] >= 3 else 99)


def test_counted_events_and_gaps_on_a_log_written_by_hand():
    """First events count for no action, last ones for no gap, open sessions for no purchase."""
    hour = 3_600_000
    first = [(0, "view", "c1"), (5_000, "purchase", None), (2 * hour, "view", "c1")]
    second = [(2 * hour - 60_000, "view", None), (2 * hour, "cart", "c2")]
    histories = [
        [{"time_ms": t, "action": a, "category": c, "item": None, "price": None} for t, a, c in events]
        for events in (first, second)
    ]
    columns = synthetic.columns_of(histories)
    scored = scored_events(columns, purchase_code=2)
    assert scored.action.tolist() == [False, True, True, False, True]
    assert scored.category.tolist() == [False, False, True, False, True]
    assert scored.gap.tolist() == [True, True, False, True, False]
    assert scored.purchase.tolist() == [True, True, False, False, False]
    assert not scored_events(columns, purchase_code=-1).purchase.any()
    np.testing.assert_array_equal(next_gap_s(columns), [5, 7195, np.nan, 60, np.nan])


def test_a_vocabulary_without_purchases_has_no_purchase_code(log):
    """No event is mistaken for a purchase."""
    plain = TrainingLog(log.columns, log.user_ids, {}, ActionVocabulary(("a", "b", "c")))
    assert split_of(plain, (50, 60)).purchase_code == -1
    assert isinstance(split_of(log, (50, 60)), Split)
    assert split_of(log, (50, 60)).purchase_code == 2


def test_a_split_by_time_fits_and_tunes_on_what_came_before(log):
    """No event of the moment or later is learned from; tuning users are fitted on by nobody; all later events test."""
    moment = int(np.median(log.columns["event_time_ms"]))
    split = split_of(log, (50, 60), moment)
    for part in (split.fit, split.tune):
        assert part["event_time_ms"].max() < moment
        assert (part["wave"] == 0).sum() == part["row"].max() + 1
    by_user = split_of(log, (50, 60))
    earlier = sum((part["event_time_ms"] < moment).sum() for part in (by_user.fit, by_user.test))
    assert len(split.fit["row"]) == earlier
    assert len(split.tune["row"]) == (by_user.tune["event_time_ms"] < moment).sum()
    counted = scored_events(split.test, split.purchase_code, split.from_ms).action
    later = (log.columns["event_time_ms"] >= moment) & (log.columns["wave"] > 0)
    np.testing.assert_array_equal(counted, later)


def test_a_late_event_after_the_moment_is_not_learned_from():
    """A history ends at its first event of the moment: what arrived after it is future, whatever its time says."""
    times = [1000, 5000, 2000, 6000]
    history = [{"time_ms": t, "action": "view", "category": None, "item": None, "price": None} for t in times]
    columns = synthetic.columns_of([history, history[:1], history[1:]])
    assert until(columns, 4000)["event_time_ms"].tolist() == [1000, 1000]
    assert until(columns, 4000)["row"].tolist() == [0, 1]
    assert len(until(columns, 0)["row"]) == 0
