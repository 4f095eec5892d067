"""Laws of ``foreclick evaluate-labels`` and ``evaluate-churn``: logs in, figures or one line of error out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.command_line import foreclick

DAY_S = 86_400
BEGAN_S = 1_600_000_000
LABELLED = "user=who,time=at,action=did,label=kind,extra.pace=pace"
ORDERED = "user=who,time=at,action=did"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 people of some 15 events; every fourth is a bot, which clicks fast and evenly. The last five are unknown."""
    rng = np.random.default_rng(3)
    rows = ["who,at,did,kind,pace"]
    for user in range(80):
        bot = user % 4 == 0
        kind = "" if user >= 75 else "bot" if bot else "human"
        at = BEGAN_S + user
        for _ in range(int(rng.integers(8, 22))):
            at += 2 if bot else int(rng.integers(5, 300))
            pace = rng.normal(5.0 if bot else 3.0, 1.0)
            rows.append(f"u{user},{at},{rng.choice(['view', 'cart'])},{kind},{pace:.3f}")
    path = tmp_path_factory.mktemp("labelled") / "log.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 days of orders: every other customer comes every nine days, the others once or twice and never again."""
    rng = np.random.default_rng(4)
    rows = ["who,at,did"]
    for user in range(160):
        loyal, day, count = user % 2 == 0, rng.uniform(0, 120), 0
        while day < 200 and (loyal or count < 2):
            rows.append(f"c{user},{BEGAN_S + round(day * DAY_S)},purchase")
            day, count = day + rng.exponential(9 if loyal else 25), count + 1
    path = tmp_path_factory.mktemp("orders") / "orders.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_every_labelled_user_is_measured_once_beside_the_others(labelled: Path) -> None:
    """75 users have a label; the head is measured on all of them, paired with each learner on the same users."""
    ran = foreclick("evaluate-labels", labelled, "--columns", LABELLED, "--folds", 3, "--json")
    assert ran.code == 0, ran.err
    result = ran.json
    assert (result["users"], result["positive"], result["folds"]) == (75, 19, 3)
    assert result["positive_labels"] == ["bot"]
    assert result["extra"] == ["pace"]
    auc = {each["name"]: each for each in result["metrics"] if each["metric"] == "roc_auc"}
    assert {"fake_order", "lightgbm", "logistic_regression"} <= set(auc)
    assert auc["fake_order"]["value"] > 0.9
    assert all(each["n"] == 75 and each["low"] <= each["value"] <= each["high"] for each in auc.values())
    pairs = {each["name"] for each in result["differences"] if each["metric"] == "roc_auc"}
    assert {"fake_order - lightgbm", "fake_order - logistic_regression"} <= pairs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--columns", "user=who,time=at,action=did"), "no labels"),
        (("--columns", LABELLED, "--positive", "martian"), "nothing to measure"),
        (("--columns", LABELLED, "--labels", "nowhere.jsonl"), "nowhere.jsonl"),
    ],
)
def test_labels_that_say_nothing_are_one_line(labelled: Path, arguments: tuple[str, ...], words: str) -> None:
    """No column, no user of one kind, no file: a sentence that says what is missing."""
    ran = foreclick("evaluate-labels", labelled, *arguments)
    assert ran.code in {1, 2}
    assert words in ran.error


def test_who_stays_away_is_asked_one_horizon_before_the_end(orders: Path) -> None:
    """The cut lies a horizon before the last event, what is fitted has its answers before it, and loyalty shows."""
    ran = foreclick("evaluate-churn", orders, "--columns", ORDERED, "--horizon-days", 30, "--json")
    assert ran.code == 0, ran.err
    result = ran.json
    assert result["horizon_s"] == 30 * DAY_S
    last_s = max(int(line.split(",")[1]) for line in orders.read_text().splitlines()[1:])
    assert result["cut_ms"] == (last_s - 30 * DAY_S) * 1000
    assert 0 < result["stayed_away"] < result["users"] <= 160
    assert result["fitted_answers"] > 0
    auc = {each["name"]: each["value"] for each in result["metrics"] if each["metric"] == "roc_auc"}
    assert auc["return_odds"] > 0.8
    assert "logistic_regression" in auc
    ran = foreclick("evaluate-churn", orders, "--columns", ORDERED, "--horizon-days", 30)
    assert f"{result['users']} users" in ran.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--cut", "yesterday"), "--cut 'yesterday'"),
        (("--horizon-days", "400"), "horizon"),
        (("--model", "nowhere/1"), "nowhere/1"),
    ],
)
def test_a_moment_without_answers_is_one_line(orders: Path, arguments: tuple[str, ...], words: str) -> None:
    """No moment, a log that is shorter than the horizon, no model: a sentence that says so."""
    ran = foreclick("evaluate-churn", orders, "--columns", ORDERED, *arguments)
    assert ran.code in {1, 2}
    assert words in ran.error
