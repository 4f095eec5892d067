"""Laws of training: what is learned from, what comes out, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from zlib import crc32

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from models.columns import take
from models.errors import ArtefactError, TrainingError
from models.evaluation import run
from models.features import inputs, numbers_of
from models.registry import load_artefact
from models.runtime import StepEngine
from models.training import fit_features, train
from models.training_log import TrainingLog, frequent_categories, log_price_medians, targets_of
from models.vocabulary import ActionVocabulary, code_of
from tests.models import synthetic

NAMES = {code_of(name): name for name in synthetic.CATEGORIES + synthetic.RARE}


def log_of(columns, actions=synthetic.ACTIONS) -> TrainingLog:
    users = int(columns["row"].max()) + 1
    return TrainingLog(columns, [f"u{row}" for row in range(users)], NAMES, ActionVocabulary(actions))


@pytest.fixture(scope="module")
def log() -> TrainingLog:
    return log_of(synthetic.shop(200, 3000, seed=4))


@pytest.fixture(scope="module")
def trained(log, tmp_path_factory):
    return train(log, tmp_path_factory.mktemp("store"), epochs=20, seed=3)


def test_training_learns(log, trained):
    """Twenty epochs bring the loss of users it never saw well below the unigram's."""
    from models.baselines import unigram

    test = log.of_users(70, 100)
    later = test["wave"] > 0
    network = run(StepEngine(load_artefact(trained), device="cpu"), test).terms[later, 0].mean()
    plain = unigram.losses(test, unigram.probabilities(log.of_users(0, 60), len(log.actions)))[later].mean()
    assert network < 0.75 * plain


def test_the_same_seed_gives_the_same_weights(log, tmp_path):
    """Training is repeatable to the bit, and another seed gives other weights."""
    prints = [
        load_artefact(train(log, tmp_path / str(number), epochs=1, seed=seed)).fingerprint
        for number, seed in enumerate((5, 5, 6))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_training_computes_with_one_thread(log, tmp_path):
    """Sums that are split over threads round differently where there are other cores."""
    with threadpool_limits(limits=2):
        train(log, tmp_path, epochs=1)
        assert {pool["num_threads"] for pool in threadpool_info()} == {1}


def test_metrics_are_measured_on_what_is_served(log, trained):
    """The manifest's log-loss is the step engine's over the saved weights, without users' first events."""
    artefact = load_artefact(trained)
    test = log.of_users(70, 100)
    later = test["wave"] > 0
    loss = run(StepEngine(artefact, device="cpu"), test).terms[later, 0]
    entry = artefact.manifest["metrics"]["test"]
    assert entry["value"] == pytest.approx(float(loss.mean()), abs=1e-6)
    assert entry["n"] == later.sum()
    assert entry["low"] < entry["value"] < entry["high"]


def test_nothing_of_other_users_reaches_the_artefact(log, trained, tmp_path):
    """Without the test users, the weights, vocabulary, scaling and thresholds are the same."""
    share = log.shares()[log.columns["row"]]
    rest = replace(log, columns=take(log.columns, np.flatnonzero(share < 70)))
    one, other = (load_artefact(folder) for folder in (trained, train(rest, tmp_path, epochs=20, seed=3)))
    assert one.fingerprint == other.fingerprint
    for part in ("categories", "scaling", "anomaly"):
        assert one.manifest[part] == other.manifest[part]


def test_the_reference_of_anomaly_is_the_tuning_users(log, trained):
    """Their scores are evenly spread: one event in ten of theirs lies above 0.9."""
    tune = log.of_users(60, 70)
    score = run(StepEngine(load_artefact(trained), device="cpu"), tune).anomaly_score
    assert (score > 0.9).mean() == pytest.approx(0.1, abs=0.05)


def test_a_version_is_not_trained_over(log, trained):
    """The old version stays as it was."""
    with pytest.raises(ArtefactError, match="never overwritten"):
        train(log, trained.parents[1], epochs=1)


def test_users_are_split_by_crc32(log):
    """A user's share is crc32 of the id in decimal text, modulo 100."""
    part = log.of_users(60, 70)
    users = {row for row, user in enumerate(log.user_ids) if 60 <= crc32(user.encode()) % 100 < 70}
    assert set(log.columns["row"][np.isin(log.columns["row"], list(users))]) == users
    assert len(np.unique(part["row"])) == len(users)
    assert len(part["row"]) == np.isin(log.columns["row"], list(users)).sum()


@pytest.mark.parametrize("bounds", [(0, 10), (70, 60), (60, 101)])
def test_contradicting_bounds_are_refused(log, tmp_path, bounds):
    """The message shows the bounds and an example."""
    with pytest.raises(TrainingError, match=r"--bounds .* for example 60,70"):
        train(log, tmp_path, bounds=bounds)


def test_users_with_one_event_each_are_refused(tmp_path):
    """Without a second event there is nothing to predict."""
    lonely = log_of(synthetic.columns_of([synthetic.events_of(user, 1) for user in range(50)]))
    with pytest.raises(TrainingError, match="No user with two or more events falls into the part to fit on"):
        train(lonely, tmp_path)


def test_an_unknown_architecture_is_refused(log, tmp_path):
    """What this build has is listed."""
    with pytest.raises(
        TrainingError, match="No architecture 'abacus'; this build has linear, mlp, gru, lstm"
    ):
        train(log, tmp_path, architecture="abacus")


def test_a_shop_without_categories_prices_or_purchases_trains(tmp_path):
    """What a log lacks stays silent; nothing becomes NaN."""
    plain = [
        [{**event, "action": "view", "category": None, "item": None, "price": None} for event in events]
        for events in (synthetic.events_of(user, 12) for user in range(60))
    ]
    folder = train(log_of(synthetic.columns_of(plain, ("view",)), ("view",)), tmp_path, epochs=2)
    artefact = load_artefact(folder)
    assert len(artefact.categories) == 0
    assert "NaN" not in json.dumps(artefact.manifest)


def test_targets_look_one_event_ahead_and_to_the_end_of_the_session():
    """Hand-written history: two sessions, a purchase in the first."""
    minute = 60_000
    times = [0, minute, 2 * minute, 60 * minute, 61 * minute]
    actions = ["view", "cart", "purchase", "view", "view"]
    events = [
        {"time_ms": at, "action": action, "category": None, "item": None, "price": None}
        for at, action in zip(times, actions, strict=True)
    ]
    other = [{**events[0], "time_ms": 65 * minute}]
    target = targets_of(synthetic.columns_of([events, other]), purchase_code=2)
    assert target.follows.tolist() == [True, True, True, True, False, False]
    assert target.purchase.tolist() == [True, True, False, False, False, False]
    # The second session, and the other user's, are still open when the log ends.
    assert target.purchase_known.tolist() == [True, True, True, False, False, False]
    expected = np.log([60, 60, 58 * 60, 60, 4 * 60, 1])  # of the last two, the silence until the log ends
    np.testing.assert_allclose(target.log_gap_s, expected, rtol=1e-6)


def test_rare_categories_stay_outside_the_vocabulary():
    """A category of one user alone is no vocabulary; the most frequent come first."""
    histories = [
        [event(0, "a"), event(1, "a"), event(2, "solo")],
        [event(0, "b"), event(1, "a")],
        [event(0, "b")],
    ]
    columns = synthetic.columns_of(histories)
    names = {code_of(name): name for name in ("a", "b", "solo")}
    assert frequent_categories(columns, names) == ("a", "b")
    assert frequent_categories(columns, names, most=1) == ("a",)


def test_price_medians_are_per_category_and_fall_back_to_all():
    """A category without a price takes the shop's median."""
    columns = synthetic.columns_of(
        [[event(0, "a", 1.0), event(1, "a", 3.0), event(2, "a", 9.0), event(3, "b")]]
    )
    index = np.array([1, 1, 1, 2], np.int32)
    np.testing.assert_allclose(log_price_medians(columns, index, 2), np.log1p([3.0, 3.0, 3.0]), rtol=1e-6)


def test_scaling_is_of_training_users(log):
    """Mean 0 and spread 1 over the users that are fitted on; habits share one size, so that 0 says nothing is odd."""
    fit = log.of_users(0, 60)
    x = inputs(fit, fit_features(log, fit)).x_NF[: len(fit["row"])]
    habits = [numbers_of(name, len(log.actions)) for name in ("habit", "next_habit")]
    for at in habits:
        assert float(x[:, at].square().mean()) == pytest.approx(1, abs=1e-3)
    others = np.delete(x.numpy(), np.r_[tuple(habits)], axis=1)
    np.testing.assert_allclose(others.mean(axis=0), 0, atol=1e-3)
    spread = others.std(axis=0)
    assert ((np.abs(spread - 1) < 1e-2) | (spread < 1e-3)).all()


def event(turn: int, category: str, price: float | None = None) -> dict:
    return {"time_ms": 1000 * turn, "action": "view", "category": category, "item": None, "price": price}
