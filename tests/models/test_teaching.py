"""Laws of soft targets: nobody is taught by a learner that was fitted on him."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models import teaching
from models.losses import head_terms
from models.network import Architecture, Network
from models.related import related_categories
from models.sequences import chunks_of, readings, sequences_of
from models.split import Split, split_of
from models.teaching import best_mixture, teach
from models.training import fit_features
from models.training_log import TrainingLog
from models.vocabulary import ActionVocabulary, code_of
from tests.models import synthetic


@pytest.fixture(scope="module")
def split() -> Split:
    columns = synthetic.shop(80, 1200, seed=4)
    names = {code_of(name): name for name in synthetic.CATEGORIES + synthetic.RARE}
    users = [f"u{row}" for row in range(int(columns["row"].max()) + 1)]
    return split_of(TrainingLog(columns, users, names, ActionVocabulary(synthetic.ACTIONS)), (60, 80))


@pytest.fixture(scope="module")
def said(split):
    return teach(split, seed=1)


def test_every_event_that_can_be_predicted_gets_a_distribution(split, said):
    """A user's first event gets none: it cannot be predicted from the user."""
    later = split.fit["wave"] > 0
    np.testing.assert_allclose(said.action_NA[later].sum(axis=1), 1, atol=1e-5)
    assert (said.action_NA[~later] == 0).all()
    np.testing.assert_allclose(said.tuning_action_NA.sum(axis=1), 1, atol=1e-5)
    assert ((said.purchase_N >= 0) & (said.purchase_N <= 1)).all()


def test_a_user_s_teachers_never_saw_the_user(split, monkeypatch):
    """No user is both among those that a learner is fitted on and those that it is asked about, and all are asked."""
    asked = []

    def stand_in(part: Split) -> np.ndarray:
        times = [set(columns["event_time_ms"].tolist()) for columns in (part.fit, part.test)]
        asked.append(times)
        return np.full((len(part.test["row"]), split.n_actions), 0.25)

    for learner in (teaching.boosted_trees, teaching.logistic_regression):
        monkeypatch.setattr(learner, "next_action", stand_in)
        monkeypatch.setattr(learner, "purchase", lambda part: np.zeros(len(part.test["row"])))
    teach(split, seed=1)
    assert not any(fitted & test for fitted, test in asked)
    assert set(split.fit["event_time_ms"].tolist()) <= set.union(*(test for _, test in asked))


def test_teachers_change_what_is_learned_and_not_what_is_measured(split, said):
    """Soft targets count in training mode alone, and a teacher that knows the answer leaves the loss as it is."""
    spec = fit_features(split.log, split.fit)
    network = Network(Architecture(hidden=8, n_actions=split.n_actions, n_categories=len(spec.categories)))
    network.begin_from(spec)
    lifts = related_categories(split.fit, spec.categories).log_lift[None]
    plain = sequences_of(split.fit, spec, split.purchase_code, lifts)
    taught = plain.taught_by(said)
    sure = np.eye(split.n_actions, dtype=np.float32)[split.fit["action"]]
    certain = plain.taught_by(teaching.Teaching(sure, plain.purchase_N.numpy(), said.tuning_action_NA))

    def nats(part, training: bool) -> torch.Tensor:
        network.eval()
        reading = next(readings(network, part, chunks_of(part, None)))
        network.train(training)
        torch.manual_seed(1)
        return head_terms(network, part, reading)["action"]

    assert torch.equal(nats(plain, training=False), nats(taught, training=False))
    assert not torch.equal(nats(plain, training=True), nats(taught, training=True))
    torch.testing.assert_close(nats(plain, training=True), nats(certain, training=True), atol=1e-5, rtol=0)


def test_what_a_learner_is_fitted_on_is_bounded(split, monkeypatch):
    """Whole users are left out until events times actions fit."""
    fitted = []

    def stand_in(part: Split) -> np.ndarray:
        fitted.append(part.fit)
        return np.full((len(part.test["row"]), split.n_actions), 0.25)

    for learner in (teaching.boosted_trees, teaching.logistic_regression):
        monkeypatch.setattr(learner, "next_action", stand_in)
        monkeypatch.setattr(learner, "purchase", lambda part: np.zeros(len(part.test["row"])))
    monkeypatch.setattr(teaching, "MOST_ANSWERS", 200 * split.n_actions)
    teach(split, seed=1)
    length = np.bincount(split.fit["row"]).max()
    for columns in fitted:
        assert 200 - length <= len(columns["row"]) <= 200
        assert (columns["wave"][np.diff(columns["row"], prepend=-1) > 0] == 0).all()


def test_the_best_mixture_is_no_worse_than_its_parts():
    """Both weights 0 and 1 are tried."""
    rng = np.random.default_rng(2)
    network, teachers = rng.uniform(0.1, 1, 200), rng.uniform(0.1, 1, 200)
    weight, loss = best_mixture(network, teachers)
    assert 0 < weight < 1
    assert loss <= min(-np.log(network).mean(), -np.log(teachers).mean())
