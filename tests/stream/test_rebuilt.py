"""Laws of rebuilt states: they are what the worker makes of a row whose weights are gone."""

from __future__ import annotations

import numpy as np
import pytest

from models.evaluation.predictions import predictions_of
from models.registry import load_artefact, untrained
from models.runtime import StepEngine
from stream.bundled_model import simulated_log
from stream.rebuilt import rebuilt_predictions, sample_of_users
from stream.rows import RowLayout
from stream.sessions import FoldRules, fold, rebuild_columns

GAP_MS = 1_800_000


@pytest.fixture(scope="module")
def log():
    return simulated_log(40, 1500, seed=8)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return StepEngine(load_artefact(untrained(tmp_path_factory.mktemp("m"), hidden=16)), device="cpu")


def test_a_second_event_is_scored_as_with_the_carried_state(log, engine):
    """One event lies in the window whole, but for its rounded price: nothing is lost of such a history."""
    rebuilt, carried = (
        rebuilt_predictions(engine, log.columns, GAP_MS),
        predictions_of(engine, log.columns),
    )
    early = np.flatnonzero(log.columns["wave"] <= 1)
    np.testing.assert_allclose(rebuilt.purchase[early], carried.purchase[early], atol=2e-3)
    first = np.flatnonzero(log.columns["wave"] == 0)
    assert (rebuilt.purchase[first] == carried.purchase[first]).all()


def test_what_the_window_has_forgotten_makes_a_difference(log, engine):
    """Long histories are not what their last 32 events are."""
    rebuilt, carried = (
        rebuilt_predictions(engine, log.columns, GAP_MS),
        predictions_of(engine, log.columns),
    )
    late = log.columns["wave"] > 40
    assert late.sum() > 50
    assert np.abs(rebuilt.purchase[late] - carried.purchase[late]).max() > 1e-4


def test_rebuilding_is_the_worker_s(log, engine):
    """The same row through the clicks stage's own rebuild gives the same prediction, bit by bit."""
    columns, artefact = log.columns, engine.artefact
    rebuilt = rebuilt_predictions(engine, columns, GAP_MS)
    layout = RowLayout(len(artefact.actions), artefact.state_width, artefact.window)
    rules = FoldRules(GAP_MS, 2**62, 2**62)
    for event in np.flatnonzero(columns["wave"] == 37)[:5]:
        row = layout.blank(1)
        row["window_count"], row["last_ms"] = (
            columns["window_count"][event - 1],
            columns["event_time_ms"][event - 1],
        )
        for name in ("action", "category", "item", "log_gap", "log_price"):
            row[f"w_{name}"] = columns[f"window_{name}"][event - 1]
        blank, events = rebuild_columns(row, layout)
        stale = fold(blank, events, rules, None, bytes(8), len(artefact.actions)).columns
        one = {name: column[event : event + 1] for name, column in columns.items()}
        one["row"] = one["wave"] = np.zeros(1, np.int32)
        result = engine.step(engine.rebuild(1, stale), row["w_category"], one)
        assert result.purchase_probability[0] == rebuilt.purchase[event]


def test_a_sample_holds_whole_users(log):
    """Enough events, everything of each user, rows from 0; all users if there are no more."""
    sample = sample_of_users(log.columns, events=300)
    assert 300 <= len(sample["row"]) < 1000
    assert np.unique(sample["row"]).tolist() == list(range(int(sample["row"].max()) + 1))
    assert (np.diff(sample["wave"])[np.diff(sample["row"]) == 0] == 1).all()
    assert len(sample_of_users(log.columns, events=10**6)["row"]) == len(log.columns["row"])
