"""Laws of return odds: what is asked of the past, that silence only lowers the chance, and where deadlines are."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

from models.churn import LAST_SILENCE_S, ReturnCurves
from models.columns import NEVER_S, Columns, blank_columns
from models.errors import TrainingError
from models.evaluation.churn import evaluated_churn
from models.return_odds import (
    ReturnOdds,
    comes_back,
    fit_return_odds,
    landmarks_of,
    moments_ms,
    user_numbers,
)
from models.split import until

DAY_S, DAY_MS = 86_400, 86_400_000
PURCHASE, RETURN = 0, 1


def orders(users: int, days: int, seed: int) -> Columns:
    """Some order every few days for as long as the log goes, others once or twice and never again."""
    rng = np.random.default_rng(seed)
    times = []
    for user in range(users):
        loyal = user % 2 == 0
        at = rng.uniform(0, days * 0.6)
        own = [at]
        while (loyal or len(own) < 2) and (at := at + rng.exponential(9 if loyal else 25)) < days:
            own.append(at)
        times.append(np.array(own))
    n = sum(map(len, times))
    columns = blank_columns(n, 2)
    start = 0
    for user, own in enumerate(times):
        part = slice(start, start + len(own))
        count = np.arange(1, len(own) + 1)
        columns["row"][part], columns["wave"][part] = user, count - 1
        columns["event_time_ms"][part] = (own * DAY_MS).astype(np.int64)
        columns["gap_ms"][part] = np.append(-1, np.diff(columns["event_time_ms"][part]))
        columns["life_events"][part] = columns["session_index"][part] = count
        columns["action_life"][part, PURCHASE] = count
        columns["window_count"][part] = np.minimum(count, 32)
        start += len(own)
    columns["action_age_s"][:] = NEVER_S
    columns["window_log_price"][:] = 2.0
    return columns


@pytest.fixture(scope="module")
def log() -> Columns:
    return orders(300, 200, seed=1)


@pytest.fixture(scope="module")
def odds(log: Columns) -> ReturnOdds:
    found = fit_return_odds(log, 30 * DAY_S, PURCHASE)
    assert found is not None
    return found


def test_landmarks_ask_what_was_known_and_answer_what_came(log: Columns) -> None:
    """By brute force: all who had come, their last event until then, and whether one more came within the horizon."""
    moment, horizon_s = 77 * DAY_MS, 30 * DAY_S
    found = landmarks_of(log, moment, horizon_s, comes_back(log, PURCHASE))
    expected = []
    for user in range(300):
        time_ms = log["event_time_ms"][log["row"] == user]
        if (time_ms <= moment).any():
            last = time_ms[time_ms <= moment].max()
            back = ((time_ms > moment) & (time_ms <= moment + horizon_s * 1000)).any()
            expected.append(((moment - last) / 1000, not back))
    assert list(zip(found.silence_s_N.tolist(), found.stayed_away_N.tolist(), strict=True)) == expected


def test_every_answer_lies_before_the_end() -> None:
    """The last moment is one horizon before it; of a log that is too short there is none."""
    moments = moments_ms(0, 200 * DAY_MS, 30.0 * DAY_S)
    assert moments[0] == 170 * DAY_MS
    assert moments[-1] >= 10 * DAY_MS
    assert moments_ms(0, 39 * DAY_MS, 30.0 * DAY_S) == []


def test_nothing_after_the_end_reaches_the_fit(log: Columns) -> None:
    """The whole log and the log cut at the end give the same regression."""
    end = 120 * DAY_MS
    cut = until(log, end + 1)
    assert fit_return_odds(log, 30 * DAY_S, PURCHASE, end) == fit_return_odds(cut, 30 * DAY_S, PURCHASE, end)


def test_who_ordered_often_is_likelier_to_come_back(log: Columns, odds: ReturnOdds) -> None:
    """And silence lowers the chance of everybody, second by second."""
    base = odds.bases(user_numbers(log, PURCHASE))
    often = log["life_events"] >= 8
    assert base[often].mean() < base[log["life_events"] == 1].mean() - 1
    curves = ReturnCurves(30.0 * DAY_S, np.zeros((3, 3, len(base))), odds, base)
    chances = [curves.chance(np.array(float(silence))) for silence in (1, 3600, 10 * DAY_S, 40 * DAY_S)]
    assert all((later < earlier).all() for earlier, later in pairwise(chances))


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.9])
def test_the_chance_is_below_the_threshold_at_the_deadline_and_not_a_second_before(
    odds: ReturnOdds, threshold: float
) -> None:
    """Unless the deadline is the earliest one; without a deadline the chance is not below it after ten years."""
    base = np.linspace(-20, 6, 400)
    curves = ReturnCurves(30.0 * DAY_S, np.zeros((3, 3, 400)), odds, base)
    deadline = curves.deadlines(threshold)
    found = deadline > 0
    assert found.any()
    assert (curves.chance(np.where(found, deadline, LAST_SILENCE_S).astype(float))[found] < threshold).all()
    assert (curves.chance(np.full(400, float(LAST_SILENCE_S)))[~found] >= threshold).all()
    later = deadline > 1_800
    assert (curves.chance((deadline - 1).astype(float))[later] >= threshold).all()


def test_a_short_log_has_no_return_odds(log: Columns) -> None:
    """Nor one in which nobody stayed away or came back in numbers."""
    assert fit_return_odds(log, 180 * DAY_S, PURCHASE) is None
    assert fit_return_odds(orders(10, 200, seed=2), 30 * DAY_S, PURCHASE) is None


def test_a_manifest_keeps_the_odds(odds: ReturnOdds) -> None:
    """Through JSON the same; other numbers, or odds that fall with silence, are refused."""
    kept = json.loads(json.dumps(odds.as_dict()))
    assert ReturnOdds.from_dict(kept) == odds
    assert ReturnOdds.from_dict(None) is None
    for change in ({"slope": -1.0}, {"numbers": ["orders"]}):
        with pytest.raises(ValueError, match="return odds"):
            ReturnOdds.from_dict(kept | change)


def test_evaluation_asks_one_horizon_before_the_end(log: Columns) -> None:
    """Ahead of recency where frequency tells; a moment whose answers the log does not hold is refused."""
    found = evaluated_churn(log, PURCHASE, 30 * DAY_S)
    assert found.moment_ms == int(log["event_time_ms"].max()) - 30 * DAY_MS
    value = {(each["name"], each["metric"]): each["value"] for each in found.figures.entries()}
    assert value["return_odds", "roc_auc"] > 0.8
    assert {name for name, _ in value} == {"return_odds", "recency", "logistic_regression", "lightgbm"}
    with pytest.raises(TrainingError, match="does not lie within the log"):
        evaluated_churn(log, PURCHASE, 30 * DAY_S, 190 * DAY_MS)
