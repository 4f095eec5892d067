"""Laws of the metrics: their values are the field's, their draws are those of the resampled users' events."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from models.evaluation import measures
from models.evaluation.intervals import Resamples

N, A, USERS = 600, 4, 25


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def user(rng):
    return np.sort(rng.integers(0, USERS, N))


@pytest.fixture
def resamples():
    return Resamples(USERS, seed=3, resamples=60)


@pytest.fixture
def actions(rng):
    """Probabilities with ties, as simple methods give them, and what came."""
    p = rng.dirichlet(np.ones(A), 12)[rng.integers(0, 12, N)]
    return p, np.array([rng.choice(A, p=row) for row in p])


@pytest.fixture
def binary(rng):
    """Rare positives, ties among the probabilities."""
    p = np.round(rng.beta(1, 5, N), 2)
    return p, rng.random(N) < p


def named(estimates):
    return {estimate.metric: estimate for estimate in estimates}


def repeated(resamples, user, draw):
    """Which events a resample holds, each as often as its user was drawn."""
    return np.repeat(np.arange(len(user)), resamples.weight_RU[draw][user].astype(int))


def test_next_action_measures_are_scikit_learn_s(actions, user, resamples):
    """Log-loss, accuracies and macro-F1 by another's code, on the events and on each resample."""
    p, action = actions
    found = named(measures.next_action(p, action, user, resamples))

    def expected(at):
        labels = np.unique(action[at])
        top = p[at].argmax(axis=1)
        return {
            "log_loss": metrics.log_loss(action[at], p[at], labels=range(A)),
            "accuracy": metrics.accuracy_score(action[at], top),
            "top_3_accuracy": metrics.top_k_accuracy_score(action[at], p[at], k=3, labels=range(A)),
            "macro_f1": metrics.f1_score(action[at], top, labels=labels, average="macro", zero_division=0),
        }

    for name, value in expected(np.arange(N)).items():
        assert found[name].value == pytest.approx(value), name
    for draw in range(5):
        for name, value in expected(repeated(resamples, user, draw)).items():
            assert found[name].draws_R[draw] == pytest.approx(value, rel=1e-5), name


def test_areas_are_scikit_learn_s(binary, user, resamples):
    """ROC and precision-recall areas with ties, on the events and on each resample."""
    p, label = binary
    roc, pr = measures.areas(p, label, user, resamples)
    assert roc.value == pytest.approx(metrics.roc_auc_score(label, p))
    assert roc.value == pytest.approx(measures.auc(label, p))
    assert pr.value == pytest.approx(metrics.average_precision_score(label, p))
    for draw in (0, 7, 59):
        at = repeated(resamples, user, draw)
        assert roc.draws_R[draw] == pytest.approx(metrics.roc_auc_score(label[at], p[at]))
        assert pr.draws_R[draw] == pytest.approx(metrics.average_precision_score(label[at], p[at]))


def test_a_resample_without_positives_has_no_area(user, resamples):
    """One user has all positives: the resamples without it are left out of the interval, not counted as 0."""
    label = user == user[0]
    roc, _ = measures.areas(np.linspace(0, 1, N), label, user, resamples)
    without = resamples.weight_RU[:, user[0]] == 0
    assert without.any()
    assert np.isnan(roc.draws_R[without]).all()
    assert np.isfinite(roc.interval().low)


def test_precision_and_recall_are_scikit_learn_s(binary, user, resamples):
    """At a threshold an event, on the events and on a resample."""
    p, label = binary
    threshold = np.where(user % 2, 0.2, 0.3)
    found = named(measures.purchase(p, label, threshold, user, resamples))
    said = p >= threshold
    assert found["precision"].value == pytest.approx(metrics.precision_score(label, said))
    assert found["recall"].value == pytest.approx(metrics.recall_score(label, said))
    at = repeated(resamples, user, 4)
    assert found["precision"].draws_R[4] == pytest.approx(metrics.precision_score(label[at], said[at]))
    assert found["log_loss"].value == pytest.approx(metrics.log_loss(label, np.clip(p, 1e-9, 1 - 1e-9)))


def test_the_threshold_has_the_greatest_f1(binary):
    """No other probability that was said has a greater one."""
    p, label = binary
    best = metrics.f1_score(label, p >= measures.best_f1_threshold(p, label))
    assert best == pytest.approx(max(metrics.f1_score(label, p >= each) for each in np.unique(p)))


def test_a_threshold_does_not_know_its_own_user(binary, user):
    """Changing a fold's labels changes no threshold of that fold."""
    p, label = binary
    before = measures.cross_fitted_threshold(p, label, user)
    mine = user % 5 == 2
    after = measures.cross_fitted_threshold(p, np.where(mine, ~label, label), user)
    assert (before[mine] == after[mine]).all()
    assert (before != after).any()


def test_calibrated_probabilities_have_little_error_and_others_what_they_are_off_by(rng):
    """Labels drawn from the probabilities give almost none; a tenth added to each gives a tenth."""
    p = rng.uniform(0.2, 0.8, 200_000)
    label, user = rng.random(len(p)) < p, np.arange(len(p)) % 50
    resamples = Resamples(50, resamples=20)
    assert measures.calibration_error("ece", p, label, user, resamples).value < 0.005
    off = measures.calibration_error("ece", p + 0.1, label, user, resamples)
    assert off.value == pytest.approx(0.1, abs=0.005)
    assert off.interval().low <= off.value <= off.interval().high


def test_bins_hold_equally_many_events_and_equal_probabilities_share_one(rng):
    """Fifteen bins of one fifteenth; a constant probability is one bin."""
    count = np.bincount(measures.bins_of(rng.random(3000)))
    assert count.tolist() == [200] * 15
    assert len(np.unique(measures.bins_of(np.full(100, 0.3)))) == 1


def test_median_of_a_resample_is_that_of_its_events(rng, user, resamples):
    """The lower middle one where their number is even."""
    error = rng.lognormal(size=N)
    found = measures.median("m", error, user, resamples)
    assert found.value == np.median(error)
    for draw in (0, 30):
        at = repeated(resamples, user, draw)
        assert found.draws_R[draw] == pytest.approx(np.sort(error[at])[(len(at) - 1) // 2])


def test_category_measures_count_ranks(resamples):
    """First place counts 1, fourth a quarter, beyond ten not for ten, absent nothing."""
    listed = np.arange(1, 21, dtype=np.uint32)[None].repeat(4, axis=0)
    codes, user = np.array([1, 4, 15, 99], np.uint32), np.array([0, 1, 2, 3])
    found = named(measures.next_category(listed, codes, user, resamples))
    assert found["recall_at_20"].value == 0.75
    assert found["recall_at_10"].value == 0.5
    assert found["mrr"].value == pytest.approx((1 + 1 / 4 + 1 / 15) / 4)


def test_differences_are_paired(actions, user, resamples):
    """A method less itself is exactly nothing, with an interval of nothing."""
    p, action = actions
    one = measures.next_action(p, action, user, resamples)[0]
    interval = one.minus(one).interval()
    assert (interval.value, interval.low, interval.high) == (0, 0, 0)


def test_the_same_seed_draws_the_same_users():
    """And another seed others."""
    assert (Resamples(9, seed=1).weight_RU == Resamples(9, seed=1).weight_RU).all()
    assert (Resamples(9, seed=1).weight_RU != Resamples(9, seed=2).weight_RU).any()
    assert (Resamples(9).weight_RU.sum(axis=1) == 9).all()
