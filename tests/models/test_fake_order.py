"""Laws of the supervised head: what it reads, what it serves, and when it is there."""

from __future__ import annotations

from dataclasses import replace

import lightgbm
import numpy as np
import pytest
import torch

from models.columns import take
from models.evaluation import run
from models.evaluation.labelled import cross_fitted_fake_order
from models.features import inputs
from models.forest import Forest
from models.labelled import fit_fake_order, labelled_part, platt
from models.registry import load_artefact
from models.running_statistics import KINDS, NOTHING, RunningStatistics
from models.runtime import StepEngine
from models.training import fit_features, train
from models.training_log import TrainingLog
from models.vocabulary import ActionVocabulary
from tests.models import synthetic
from tests.models.test_training import NAMES


@pytest.fixture(scope="module")
def log() -> TrainingLog:
    """200 users, every third labelled 1; half of these buy at once, again and again. The last 20 have no label."""
    columns = synthetic.shop(200, 3000, seed=4)
    users = int(columns["row"].max()) + 1
    labels = (np.arange(users) % 3 == 0).astype(np.int8)
    hasty = (labels[columns["row"]] == 1) & (columns["wave"] > 0)
    columns["gap_ms"][hasty] = 1000 + columns["wave"][hasty]
    labels[-20:] = -1
    ids = [f"u{row}" for row in range(users)]
    return TrainingLog(columns, ids, NAMES, ActionVocabulary(synthetic.ACTIONS), given_labels=labels)


@pytest.fixture(scope="module")
def trained(log, tmp_path_factory):
    return load_artefact(train(log, tmp_path_factory.mktemp("store"), epochs=1, seed=3, least_labels=20))


def test_a_forest_says_what_lightgbm_says_in_any_company():
    """Log-odds equal but for the rounding of leaves; the same bits alone and among others."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=(700, 6)).astype(np.float32)
    z[:, 5] = np.round(z[:, 5])
    label = (z[:, 0] * z[:, 1] + z[:, 5] > 0).astype(float)
    settings = {"objective": "binary", "num_leaves": 8, "use_missing": False, "verbose": -1, "num_threads": 1}
    booster = lightgbm.train(settings, lightgbm.Dataset(z, label, params=settings), 30)
    forest = Forest(32, 8)  # two trees stay empty
    forest.fill(booster.dump_model()["tree_info"])
    said = forest(torch.from_numpy(z)).numpy()
    np.testing.assert_allclose(said, booster.predict(z, raw_score=True), atol=30 / 65_536)
    alone = np.concatenate([forest(torch.from_numpy(z[at : at + 1])).numpy() for at in range(50)])
    assert (alone == said[:50]).all()


def test_statistics_are_those_of_the_numbers_so_far():
    """Count, mean, spread, greatest and least by brute force; of an action its own; nothing where nothing is known."""
    rng = np.random.default_rng(2)
    statistics = RunningStatistics(n_actions=3, n_extras=1)
    events = 40
    # Gap, price, two repeats, the extra, whether the gap was short; the slots go on with the extra's changes.
    q = torch.from_numpy(rng.normal(size=(events, 6)).astype(np.float32))
    known = torch.from_numpy((rng.random((events, 6)) < 0.7).astype(np.float32))
    known[:, 1] = 0
    action = torch.from_numpy(rng.integers(0, 3, events))
    state = torch.zeros(1, statistics.state_width, dtype=torch.float16)
    for at in range(events):
        new = torch.empty_like(state)
        statistics.advance(q[at : at + 1], known[at : at + 1], action[at : at + 1], state, new)
        state = new
    read = statistics.read(state).numpy().reshape(KINDS, statistics.slots)

    def expected(values: np.ndarray) -> list[float]:
        return [len(values), values.mean(), values.std(), values.max(), values.min()]

    for quantity in (0, 2, 3, 4, 5):
        values = q[:, quantity].numpy()[known[:, quantity].numpy() > 0]
        np.testing.assert_allclose(read[:, quantity], expected(values), atol=0.02)
    assert read[0, 1] == 0
    assert (read[1:, 1] == NOTHING).all()
    changes = np.diff(q[:, 4].numpy()[known[:, 4].numpy() > 0])
    for slot, values in ((6, changes), (7, changes == 0), (8, changes < 0)):
        np.testing.assert_allclose(read[:, slot], expected(values.astype(float)), atol=0.02)
    own = (known[:, 4].numpy() > 0) & (action.numpy() == 1)
    np.testing.assert_allclose(read[:, 9 + 2 * 1 + 1], expected(q[:, 4].numpy()[own]), atol=0.02)


def test_served_scores_are_those_of_training_however_batches_are_cut(log, trained):
    """The step engine's numbers equal the head's over whole histories, bit for bit, in one batch and in many."""
    engine = StepEngine(trained, device="cpu")
    columns = log.of_users(0, 100)
    whole = run(engine, columns).fake_order
    head, made = trained.network.fake_order, inputs(columns, trained.features)
    log_odds = head.forest(head.inputs_of_users(made, columns))
    assert (torch.sigmoid(log_odds).numpy() == whole[:, 0]).all()

    users = int(columns["row"].max()) + 1
    state = np.zeros((users, trained.state_width), np.float16)
    window = np.zeros((users, 32), np.uint32)
    parts = []
    for start in range(0, int(columns["wave"].max()) + 1, 7):
        at = np.flatnonzero((columns["wave"] >= start) & (columns["wave"] < start + 7))
        part = take(columns, at)
        part["wave"] = part["wave"] - start
        result = engine.step(state, window, part)
        state = result.state
        parts.append((at, result.fake_order))
    cut = np.empty_like(whole)
    for at, scores in parts:
        cut[at] = scores
    assert (cut == whole).all()


def test_the_clock_says_nothing_to_the_head(log, trained):
    """Moving a log by hours and days leaves every score as it is."""
    engine = StepEngine(trained, device="cpu")
    columns = log.of_users(0, 100)
    moved = columns | {"event_time_ms": columns["event_time_ms"] + 3_600_000 * 31}
    assert (run(engine, moved).fake_order == run(engine, columns).fake_order).all()


def test_labels_are_found_again_in_users_that_it_never_saw(log, trained):
    """Labelled test users are told apart, and a probability is there and is right on average."""
    share = log.shares()
    test = labelled_part(log, share >= 70)
    said = run(StepEngine(trained, device="cpu"), test.columns).fake_order[test.last()]
    label = test.label_N[test.last()]
    assert said[label, 0].min() > said[~label, 0].mean()
    assert abs(said[:, 1].mean() - label.mean()) < 0.1
    assert "label" not in test.columns


def test_users_without_a_label_do_not_matter(log):
    """Leaving them out of the log gives the same trees."""
    spec = fit_features(log, log.columns)
    everybody = np.ones(len(log.user_ids), np.bool_)
    nobody = ~everybody
    fitted = fit_fake_order(labelled_part(log, everybody), labelled_part(log, nobody), spec)
    known = log.labels != -1
    less = replace(
        log,
        columns=log.part(known),
        user_ids=[user for user, kept in zip(log.user_ids, known, strict=True) if kept],
        given_labels=log.labels[known],
    )
    again = fit_fake_order(labelled_part(less, everybody[known]), labelled_part(less, nobody[known]), spec)
    assert fitted is not None
    assert again is not None
    assert (fitted.head.forest.value_TL == again.head.forest.value_TL).all()


def test_a_probability_waits_for_labels_enough(log):
    """Below the wanted number of labelled users there is a score and no calibration; the manifest says which."""
    spec = fit_features(log, log.columns)
    everybody = labelled_part(log, np.ones(len(log.user_ids), np.bool_))
    nobody = labelled_part(log, np.zeros(len(log.user_ids), np.bool_))
    fitted = fit_fake_order(everybody, nobody, spec, least_labels=1000)
    assert fitted is not None
    assert fitted.calibration is None
    assert fitted.described["slope"] is None
    assert fitted.described["labelled_users"] == {"positive": 60, "negative": 120}


@pytest.mark.parametrize("kind", [0, 1, -1])
def test_without_both_labels_a_model_has_no_head(log, tmp_path, kind):
    """One kind alone, or no label at all, trains the rest as before."""
    labels = np.full(len(log.user_ids), kind, np.int8)
    folder = train(replace(log, given_labels=labels), tmp_path, epochs=1, architecture="linear")
    artefact = load_artefact(folder)
    assert artefact.network.fake_order is None
    assert run(StepEngine(artefact, device="cpu"), log.of_users(0, 100)).fake_order.shape[1] == 0


def test_platt_gives_the_probability_that_drew_the_labels():
    """Labels drawn with a known slope and intercept give these back."""
    rng = np.random.default_rng(5)
    log_odds = rng.normal(0, 2, 20_000)
    label = rng.random(20_000) < 1 / (1 + np.exp(-(0.6 * log_odds - 0.4)))
    found = platt(log_odds, label, np.ones(20_000))
    assert found.slope == pytest.approx(0.6, abs=0.03)
    assert found.intercept == pytest.approx(-0.4, abs=0.05)


def test_cross_fitting_scores_every_labelled_user_once(log):
    """Without a label no score; what cannot be learned cannot be found: drawn labels rank by chance."""
    found = cross_fitted_fake_order(log, 2, with_baselines=False)
    assert len(found.label_U) == 180
    assert found.own.score[found.label_U].mean() > found.own.score[~found.label_U].mean() + 0.3
    drawn = np.random.default_rng(7).permutation(log.labels)
    chance = cross_fitted_fake_order(replace(log, given_labels=drawn), 2, with_baselines=False)
    difference = chance.own.score[chance.label_U].mean() - chance.own.score[~chance.label_U].mean()
    assert abs(difference) < 0.15
